"""Expected: what the oracle says of the persons of a shard, and the sum of that over all shards. Asks no worker.

The oracle is asked about the persons of one shard at a time and walks each person once per journey; what it says is added up here.
"""

from __future__ import annotations

import heapq
import signal
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from schemas.hashing import h
from schemas.journey import Journey, parse_journey
from state import checksums, oracle
from state.evidence import hit, moment
from state.identity import place

from .shards import load

EXPLAINED = 100  # contacts of a journey whose page is compared; checksums say of everybody by what stages were met
Judged = Callable[[oracle.Answer], None]
"""Hears what the oracle says of the persons of a shard and a journey; once more when the check is repeated."""


class Standing(NamedTuple):
    """What lists say of a person: when each stage was reached, and the groups. Sorts as the lists of one furthest stage do."""

    reached_at_ms: int
    listed_as: bytes
    """The name in UTF-8, and behind 0xff the holder, if that is another contact (`state.views.index_key`)."""
    moments: tuple[int, ...]
    groups: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.listed_as.partition(b"\xff")[0].decode()


@dataclass
class StageSum:
    """The oracle's `StageResult` of several shards, added up."""

    converted: int = 0
    dropped_off: int = 0
    waits_ms: array[int] = field(default_factory=lambda: array("q"))
    since_first_ms: array[int] = field(default_factory=lambda: array("q"))
    days: Counter[int] = field(default_factory=Counter)

    def add(self, more: oracle.StageResult | StageSum) -> None:
        self.converted += more.converted
        self.dropped_off += more.dropped_off or 0
        self.waits_ms.extend(more.waits_ms)
        self.since_first_ms.extend(more.since_first_ms)
        self.days.update(more.days)


@dataclass
class GroupSum:
    """What is expected of one journey and group (None: everyone). `first`: by furthest stage, the first lines of its list."""

    stages: list[StageSum]
    lists: dict[int, tuple[int, int]] = field(default_factory=dict)
    first: dict[int, list[Standing]] = field(default_factory=dict)

    def add(self, more: GroupSum, lines: int) -> None:
        for mine, theirs in zip(self.stages, more.stages, strict=True):
            mine.add(theirs)
        _sum(self.lists, more.lists)
        for furthest, standings in more.first.items():
            self.first[furthest] = list(heapq.merge(self.first.get(furthest, ()), standings))[
                :lines
            ]


@dataclass
class JourneySum:
    """What is expected of one journey. `stages`: `(count, checksum)` of all that is said of those who reached a stage."""

    groups: dict[str | None, GroupSum] = field(default_factory=dict)
    stages: dict[int, tuple[int, int]] = field(default_factory=dict)
    explained: list[tuple[int, str, list[tuple[int, list[str]]]]] = field(default_factory=list)

    def add(self, more: JourneySum, lines: int) -> None:
        for group, theirs in more.groups.items():
            self.groups.setdefault(group, GroupSum([StageSum() for _ in theirs.stages])).add(
                theirs, lines
            )
        _sum(self.stages, more.stages)
        self.explained = sorted([*self.explained, *more.explained])[:EXPLAINED]


@dataclass
class Expected:
    """What is expected of all journeys. `persons`: how many the oracle knows, those who reached nothing too."""

    persons: int = 0
    journeys: dict[str, JourneySum] = field(default_factory=dict)

    def add(self, more: Expected, lines: int) -> None:
        self.persons += more.persons
        for id_, theirs in more.journeys.items():
            self.journeys.setdefault(id_, JourneySum()).add(theirs, lines)


def of_shard(
    path: Path, journeys: Iterable[Journey], lines: int, judged: Judged = lambda answer: None
) -> Expected:
    """What the oracle says of the persons of a shard; *lines*: how many first lines of lists are kept."""
    people = oracle.persons(load(path))
    holders = _holders(people)
    found = Expected(len(people))
    for journey in journeys:
        answer = _answer(journey, people)
        judged(answer)
        found.journeys[journey.id] = of_answer(answer, holders, lines)
    return found


def standings_of_shard(path: Path, journey: Journey) -> list[Standing]:
    """All persons of a shard who reached a stage of *journey*."""
    people = oracle.persons(load(path))
    answer, holders = _answer(journey, people), _holders(people)
    return [
        _standing(name, stages, answer.groups[name], holders[name])
        for name, stages in answer.reached.items()
        if stages
    ]


def _answer(journey: Journey, people: list[oracle.Person]) -> oracle.Answer:
    """As `oracle.answer`, of persons that are known already."""
    return oracle.Answer(
        journey,
        {p.survivor: oracle.walk(journey, p.activities) for p in people},
        {p.survivor: p.groups for p in people},
    )


def _holders(people: list[oracle.Person]) -> dict[str, str]:
    """Return by name of a person the contact at which its evidence lives."""
    return {p.survivor: min(p.contacts, key=place) for p in people}


def _standing(
    name: str, stages: list[oracle.Reached], groups: frozenset[str], holder: str
) -> Standing:
    return Standing(
        stages[-1].at_ms,
        name.encode() if name == holder else name.encode() + b"\xff" + holder.encode(),
        tuple(reached.at_ms for reached in stages),
        tuple(sorted(groups)),
    )


def of_answer(answer: oracle.Answer, holders: Mapping[str, str], lines: int) -> JourneySum:
    """Return the sums of *answer*. *holders*: by name, where a person's evidence lives; *lines*: how many first lines are kept."""
    found = JourneySum()
    members: defaultdict[str | None, dict[str, list[oracle.Reached]]] = defaultdict(dict)
    explained: list[tuple[int, str]] = []
    for name, stages in answer.reached.items():
        if stages:
            explained.append((h(name), name))
            for group in (None, *answer.groups[name]):
                members[group][name] = stages
            for k, reached in enumerate(stages, 1):
                hits = [
                    hit(at_ms, hashed.to_bytes(8, "big")) for (at_ms, hashed), _ in reached.met_by
                ]
                row = checksums.of_row(name, answer.groups[name], moment(reached.at_ms), hits)
                found.stages[k] = checksums.added(found.stages.get(k, (0, 0)), row)
    for group, reached_by in members.items():
        found.groups[group] = _group(
            oracle.Answer(answer.journey, reached_by, answer.groups), holders, lines
        )
    for hashed, name in heapq.nsmallest(EXPLAINED, explained):
        rows = [
            (r.at_ms, sorted({met[1].to_bytes(8, "big").hex() for met, _ in r.met_by}))
            for r in answer.reached[name]
        ]
        found.explained.append((hashed, name, rows))
    return found


def _group(answer: oracle.Answer, holders: Mapping[str, str], lines: int) -> GroupSum:
    """Of the members of one group, who alone are in *answer*."""
    found = GroupSum([StageSum() for _ in answer.journey.stages])
    for mine, row in zip(found.stages, answer.results(), strict=True):
        mine.add(row)
    standings: defaultdict[int, list[Standing]] = defaultdict(list)
    for name, stages in answer.reached.items():
        entry = checksums.of_entry(name, moment(stages[-1].at_ms))
        found.lists[len(stages)] = checksums.added(found.lists.get(len(stages), (0, 0)), entry)
        standings[len(stages)].append(_standing(name, stages, answer.groups[name], holders[name]))
    found.first = {furthest: heapq.nsmallest(lines, there) for furthest, there in standings.items()}
    return found


def _sum(mine: dict[int, tuple[int, int]], more: Mapping[int, tuple[int, int]]) -> None:
    for key, (count, checksum) in more.items():
        before = mine.get(key, (0, 0))
        mine[key] = before[0] + count, (before[1] + checksum) % checksums.MODULUS


# ---------------------------------------------------------------------------------------- in processes of their own


def begin_process() -> None:
    """Leaves Ctrl-C to the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def of_shard_in_process(path: Path, journeys: list[dict[str, Any]], lines: int) -> Expected:
    """`of_shard`, with the journeys as data."""
    return of_shard(path, [parse_journey(data) for data in journeys], lines)
