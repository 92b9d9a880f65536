"""Comparison: how many contacts reach each stage by rebuilt evidence, against the visible results, before a recalculation is switched to.

Pure. Both sides are counted over the same records, so activities, merges and erasures that arrive meanwhile make no difference. What is left can be
explained by the log alone: `expected` counts the visible evidence without the hits that the log no longer holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from schemas.compiled import Array
from schemas.recalculation import Compared, ComparisonReport, Difference

from . import bulk, kernel, records
from .evidence import Evidence
from .plain import BULK_STAGES, FEW
from .recalculation import evidence_key, rules_by_key
from .views import Source, View, Views

MAX_REPORT_BYTES = 800_000  # of the journeys in a report of a partition; of more, those that differ most stay
MAX_DIFFERENCES = 200  # stages that a record names; all of a journey, those that differ most first


class Tolerance(NamedTuple):
    """A stage may differ by less than `contacts`, or by `share` of what is visible, without anybody's confirmation."""

    share: float = 0.2
    contacts: int = 100


class Pair(NamedTuple):
    """A version of a journey over the visible evidence, and over the rebuilt one."""

    visible: View
    rebuilt: View


def pairs(visible: Iterable[View], rules: Iterable[bytes], recalculation: str) -> list[Pair]:
    """Return what has to be compared when the evidence of *rules* (keys) was rebuilt by *recalculation*. *visible*: the views that are read."""
    new, found = {*rules}, []
    for view in visible:
        if new.isdisjoint(rules_by_key(view.journey)):
            continue  # all its evidence stays
        keys = {
            rule: evidence_key(rule, recalculation) if rule in new else key
            for rule, key in view.source.keys.items()
        }
        if keys != view.source.keys:
            source = Source(keys, view.source.generation, recalculation)
            found.append(
                Pair(View(view.journey, source=view.source), View(view.journey, source=source))
            )
    return found


class Counting:
    """Counts contacts of one partition, a step at a time. *load* returns a record by its key; *log_begin_ms*: the time of the first record on the
    partition's log, None where the log has all from its beginning. *few*: see `plain.FEW`."""

    def __init__(self, compared: Sequence[Pair], log_begin_ms: int | None, few: int = FEW) -> None:
        self.contacts = 0
        self._pairs = compared
        self._views = [view for pair in compared for view in pair]
        self._log_begin_ms = log_begin_ms
        self._few = few
        self._plan: bulk.Plan | None = None
        # for each pair: visible, expected, rebuilt; how many contacts reached so many stages
        self._counts = [
            np.zeros((3, 1 + len(pair.visible.journey.stages)), np.int64) for pair in compared
        ]

    def add(self, holders: Sequence[bytes], load: Callable[[bytes], bytes | None]) -> None:
        """Count *holders*, contacts as bytes; aliases among them are passed over."""
        self.contacts += len(holders)
        if not self._pairs or not holders:
            return
        evidence = [load(records.EVIDENCE + holder) or b"" for holder in holders]
        reached = self._reached(holders, evidence, load)
        for n, counts in enumerate(self._counts):
            visible, rebuilt = reached[:, 2 * n], reached[:, 2 * n + 1]
            expected = visible.copy()
            if self._log_begin_ms is not None:
                view = self._pairs[n].visible
                for row in np.flatnonzero(rebuilt < visible).tolist():
                    expected[row] = self._still_on_log(view, evidence[row], holders[row], load)
            for side, stages in enumerate((visible, expected, rebuilt)):
                counts[side] += np.bincount(stages, minlength=counts.shape[1])

    def report(self) -> ComparisonReport:
        """Return what was counted so far."""
        found = []
        for pair, counts in zip(self._pairs, self._counts, strict=True):
            journey = pair.visible.journey
            visible, expected, rebuilt = (
                tuple(np.cumsum(side[:0:-1])[::-1].tolist()) for side in counts
            )
            found.append(Compared(journey.id, journey.version or 0, visible, expected, rebuilt))
        return ComparisonReport(self.contacts, tuple(_fitting(found)))

    def _reached(
        self,
        holders: Sequence[bytes],
        evidence: Sequence[bytes],
        load: Callable[[bytes], bytes | None],
    ) -> Array:
        """How many stages each of *holders* reached in each view, int64."""
        reached = np.zeros((len(holders), len(self._views)), np.int64)
        left: Iterable[int] = range(len(holders))
        if len(holders) >= self._few and bulk.loops.ready:
            if self._plan is None:
                self._plan = bulk.Plan(Views(self._views))
            asked = [(view, (), False) for view in self._views]
            size = max(1, BULK_STAGES // sum(len(view.journey.stages) for view in self._views))
            unknown: list[int] = []
            for begin in range(0, len(holders), size):
                states, onward = self._plan.stand(evidence[begin : begin + size], asked)
                reached[begin + onward.rows[:, 0], onward.rows[:, 1]] = onward.rows[:, 3]
                unknown += (begin + np.flatnonzero(states == kernel.LEFT)).tolist()
            left = unknown
        for row in left:
            known = _known(evidence[row], holders[row], load)
            if known is not None:
                reached[row] = [len(view.project(known.hits)) for view in self._views]
        return reached

    def _still_on_log(
        self, view: View, record: bytes, holder: bytes, load: Callable[[bytes], bytes | None]
    ) -> int:
        """How many stages of *view* a contact reached by what its partition's log still holds."""
        known = _known(record, holder, load)
        assert known is not None, "an alias reached nothing"
        assert self._log_begin_ms is not None, "else all of it is there"
        known.forget(self._log_begin_ms - 1)
        return len(view.project(known.hits))


def _known(record: bytes, holder: bytes, load: Callable[[bytes], bytes | None]) -> Evidence | None:
    """The evidence of *holder*; None of an alias."""
    if not record or records.pointer_of(record) is not None:
        return None
    evidence, has_identity = records.decode_evidence(record)
    identity = load(records.IDENTITY + holder) if has_identity else None
    erased_at_ms = None if identity is None else records.decode_head(identity)[2]
    if erased_at_ms is not None:
        evidence.forget(erased_at_ms)
    return evidence


# -- what it means ----------------------------------------------------------------------------------------------------------


def unexplained(
    reports: Iterable[ComparisonReport], tolerance: Tolerance
) -> tuple[Difference, ...]:
    """Return all stages of the journeys of which a stage differs by more than *tolerance*, over all partitions, those that differ most first."""
    sums: dict[tuple[str, int], list[list[int]]] = {}
    for report in reports:
        for one in report.journeys:
            rows = sums.setdefault((one.journey, one.version), [])
            sides = zip_longest(one.visible, one.expected, one.rebuilt, fillvalue=0)
            for stage, counts in enumerate(sides):
                if stage == len(rows):
                    rows.append([0, 0, 0])
                rows[stage] = [a + b for a, b in zip(rows[stage], counts, strict=True)]
    differing = {}
    for journey, rows in sums.items():
        off = [_off(*row) for row in rows]
        if any(
            n >= tolerance.contacts and n > tolerance.share * row[0]
            for n, row in zip(off, rows, strict=True)
        ):
            differing[journey] = max(off)
    found: list[Difference] = []
    for id_, version in sorted(differing, key=lambda journey: (-differing[journey], journey)):
        mine = [
            Difference(id_, version, stage, *row) for stage, row in enumerate(sums[id_, version], 1)
        ]
        if len(found) + len(mine) > MAX_DIFFERENCES and found:
            break
        found += mine
    return tuple(found)


def _fitting(found: list[Compared]) -> list[Compared]:
    """Return those of *found* that one record has room for, which is all of some thousand."""
    sizes = {id(one): _written_bytes(one) for one in found}
    if sum(sizes.values()) <= MAX_REPORT_BYTES:
        return found
    kept, left = [], MAX_REPORT_BYTES
    for one in sorted(found, key=lambda one: (-_most_off(one), one.journey)):
        left -= sizes[id(one)]
        if left < 0:
            break
        kept.append(one)
    return kept


def _written_bytes(one: Compared) -> int:
    """Return how many bytes *one* takes in the record of a report, at most."""
    numbers = (*one.visible, *one.expected, *one.rebuilt)
    return 100 + len(one.journey) + sum(len(str(number)) + 2 for number in numbers)


def _most_off(one: Compared) -> int:
    return max(map(_off, one.visible, one.expected, one.rebuilt), default=0)


def _off(visible: int, expected: int, rebuilt: int) -> int:
    """How far *rebuilt* is from what the log explains, which is anything from *expected* to *visible*."""
    return max(min(visible, expected) - rebuilt, rebuilt - max(visible, expected), 0)


def reason(differences: Sequence[Difference], names: Mapping[str, str] = {}) -> str:
    """Return in a sentence why a recalculation waits for a confirmation."""
    worst = max(differences, key=lambda one: _off(one.visible, one.expected, one.rebuilt))
    journeys = len({one.journey for one in differences})
    more = (
        f", and {journeys - 1} more journeys"
        if journeys > 2
        else ", and one more journey"
        if journeys == 2
        else ""
    )
    held = (
        ""
        if worst.expected == worst.visible
        else f" ({worst.expected:,} without what the log no longer holds)"
    )
    return (
        f'the rebuilt results differ from the visible ones: journey "{names.get(worst.journey, worst.journey)}", stage {worst.stage}: '
        f"{worst.visible:,} contacts are visible{held}, {worst.rebuilt:,} were rebuilt{more}"
    )
