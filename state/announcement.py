"""Announcement: which stage changes tell of the difference between what was said and what is. Pure; sends nothing.

A consumer keeps the last change per (journey, contact, stage), so what is said must be true at the moment and nothing said before may stay behind.
Of the versions of a journey the newest speaks, for everybody; while it is being built, it answers for what its predecessors said as well.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from schemas.changes import StageChange

from .evidence import Hits, moment_ms
from .messages import ACTIVITY, Join, Part, Said
from .progress import Progress
from .views import View

Spoken = tuple[str, Progress | None]  # under which name, and what was said; None: something, but what is not known here


def spoken_before(view: View, holder: bytes, name: str, hits: Hits) -> list[Spoken]:
    """What *view* and the versions before it may have said of a person whose evidence was *hits*, last."""
    spoken: list[Spoken] = [(name, view.project(hits))]
    if not view.settled(holder):
        spoken += predecessors_said(view, name, hits)
    return spoken


def predecessors_said(view: View, name: str, hits: Hits) -> list[Spoken]:
    """What the versions before *view* may have said. An abandoned one may have spoken or not, so nothing may have been said as well."""
    spoken: list[Spoken] = [(name, before.project(hits)) for before in view.predecessors]
    if not any(before.told for before in view.predecessors):
        spoken.append((name, ()))
    return spoken


def said_of(views: Iterable[View], holder: bytes, hits: Hits) -> dict[str, Said]:
    """What has been said of a person that is handed over, by journey: as far as any of its versions may have gone."""
    said: dict[str, Said] = {}
    for view in views:
        if not view.speaks:
            continue
        names: tuple[str, ...] = ()
        for version in (view, *view.predecessors):
            reached = len(version.project(hits))
            if reached > len(names):
                names = tuple(stage.name for stage in version.journey.stages[:reached])
        if names:
            said[view.journey.id] = Said(view.journey.version or 0, view.settled(holder), names, view.source.generation)
    return said


def perhaps_said(views: Iterable[View]) -> dict[str, Said]:
    """What may have been said by *views*, as far as any of their versions goes, when nothing is known about it."""
    said: dict[str, Said] = {}
    for view in views:
        if view.speaks:
            longest = max((view, *view.predecessors), key=lambda version: len(version.journey.stages))
            names = tuple(stage.name for stage in longest.journey.stages)
            said[view.journey.id] = Said(view.journey.version or 0, False, names, view.source.generation)
    return said


def doubted(changes: Iterable[StageChange]) -> list[Join]:
    """Asks for the truth of everybody that *changes* speak of, which may have come behind newer ones."""
    said: dict[str, dict[str, Said]] = {}
    for change in changes:
        mine = said.setdefault(change.contact_id, {})
        before = mine.get(change.journey)
        names = [*before.stages] if before is not None else []
        names += [""] * (change.stage - len(names))
        names[change.stage - 1] = change.stage_name
        mine[change.journey] = Said(change.version, False, tuple(names))
    return [Join(contact, said=stages, again=True) for contact, stages in said.items()]


def farewell(part: Part, but: Container[str], cause: str, cause_id: str | None) -> list[StageChange]:
    """Leaves all that was said under the name of *part*, *but* for some journeys."""
    return [
        StageChange(journey, said.version, part.name, stage, name, "left", None, None, cause, cause_id)
        for journey, said in part.said.items()
        if journey not in but
        for stage, name in enumerate(said.stages, 1)
    ]


def part_said(view: View, part: Part) -> tuple[Spoken, int]:
    """What was said of a part under the name that stays, and how many stages that went at most."""
    said = part.said.get(view.journey.id)
    if said is None:
        return (part.name, ()), 0
    if said.settled and (said.version, said.generation) == view.order:
        return (part.name, view.project(part.hits)), len(said.stages)
    return (part.name, None), len(said.stages)


def anything(view: View, names: Iterable[str]) -> tuple[list[Spoken], int]:
    """What was said under *names* when that is not known, and how many stages that can have been."""
    return [(name, None) for name in names], max(len(v.journey.stages) for v in (view, *view.predecessors))


def differences(
    view: View,
    spoken: list[Spoken],
    name: str,
    after: Progress,
    cause: str,
    cause_id: str | None,
    ids: Mapping[bytes, str],
    furthest: int = 0,
) -> list[StageChange]:
    """What *view* has to say so that *after* is the last that was said of *name*, and nothing is left of other names.

    Unless all that was said before under *name* agrees with the truth, the truth is said. *furthest*: as many stages may have been spoken of at
    least. *ids*: hit -> activity id, of those that arrived just now.
    """
    changes: list[StageChange] = []
    mine: list[Progress | None] = []
    others: dict[str, list[int | None]] = {}  # name -> when each stage was said to be reached, None for not known
    for who, said in spoken:
        if who == name:
            mine.append(said)
            continue
        reached_ms: list[int | None] = [None] * furthest if said is None else [reached.at_ms for reached in said]
        if len(reached_ms) > len(others.get(who, ())):
            others[who] = reached_ms
    for who, stages in others.items():
        for stage, before_ms in enumerate(stages, 1):
            changes.append(_change(view, who, stage, "left", None, before_ms, cause, cause_id))
    unknown = None in mine
    known = [said for said in mine if said is not None]
    for k in range(max(len(after), furthest, max(map(len, known), default=0))):
        now = after[k] if k < len(after) else None
        was = [said[k].at if k < len(said) else None for said in known] or [None]
        at = None if now is None else now.at
        if not unknown and was.count(at) == len(was):
            continue
        previous = next((before for before in was if before is not None), None)
        change = "left" if now is None else "reached" if previous is None or previous == at else "moved"
        why, why_id = cause, cause_id
        if now is not None:
            arrived = next((ids[hit] for hit in reversed(now.met_by) if hit in ids), None)
            if arrived is not None:
                why, why_id = ACTIVITY, arrived
        at_ms, previous_ms = None if now is None else now.at_ms, None if previous is None else moment_ms(previous)
        changes.append(_change(view, name, k + 1, change, at_ms, previous_ms, why, why_id))
    return changes


def _change(
    view: View,
    name: str,
    stage: int,
    change: str,
    at_ms: int | None,
    previous_ms: int | None,
    cause: str,
    cause_id: str | None,
) -> StageChange:
    journey = view.journey
    return StageChange(
        journey.id,
        journey.version or 0,
        name,
        stage,
        _stage_name(view, stage),
        change,
        at_ms,
        previous_ms,
        cause,
        cause_id,
    )


def _stage_name(view: View, stage: int) -> str:
    """The stage's name, by the newest version that has so many stages."""
    for version in (view, *view.predecessors):
        if stage <= len(version.journey.stages):
            return version.journey.stages[stage - 1].name
    return ""  # a version that only the part's worker knew
