"""Announcement: which stage changes tell of the difference between what was visible and what is. Pure; sends nothing."""

from __future__ import annotations

from collections.abc import Mapping

from schemas.changes import StageChange

from .evidence import moment_ms
from .messages import ACTIVITY
from .progress import Progress
from .views import View


def differences(
    view: View,
    befores: list[tuple[str, Progress]],
    name: str,
    after: Progress,
    cause: str,
    cause_id: str | None,
    ids: Mapping[bytes, str],
) -> list[StageChange]:
    """Announces the difference between what was visible under each name and what is (design, section 6, stage changes at a join).

    A part that was visible under the name that stays may have spoken after this one did: unless all agree, the truth is said again.
    """
    journey, changes = view.journey, list[StageChange]()
    version = journey.version or 0
    mine: list[Progress] = []
    for part, before in befores:
        if part == name:
            mine.append(before)
            continue
        for stage, reached in enumerate(before, 1):
            changes.append(
                StageChange(
                    journey.id,
                    version,
                    part,
                    stage,
                    _stage_name(view, stage),
                    "left",
                    None,
                    reached.at_ms,
                    cause,
                    cause_id,
                )
            )
    for k in range(max(len(after), max(map(len, mine), default=0))):
        now = after[k] if k < len(after) else None
        was = [before[k].at if k < len(before) else None for before in mine] or [None]
        at = None if now is None else now.at
        if all(before == at for before in was):
            continue
        previous = next((before for before in was if before is not None), None)
        change = "left" if now is None else "reached" if previous is None or previous == at else "moved"
        why, why_id = cause, cause_id
        if now is not None:
            arrived = next((ids[hit] for hit in reversed(now.met_by) if hit in ids), None)
            if arrived is not None:
                why, why_id = ACTIVITY, arrived
        changes.append(
            StageChange(
                journey.id, version, name, k + 1, _stage_name(view, k + 1), change, None if now is None else now.at_ms,
                None if previous is None else moment_ms(previous), why, why_id,
            )
        )  # fmt: skip
    return changes


def _stage_name(view: View, stage: int) -> str:
    return view.journey.stages[stage - 1].name
