"""Onward: holders without identity who reached further stages, many at once: what that announces, indexes and counts. Pure; `Decision.moved` in bulk.

Nearly all that moves moves so. What stood before stands, so that only the further stages are looked at, and these in columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from itertools import repeat

import numpy as np

from schemas.changes import StageChange
from schemas.compiled import Array

from .arrivals import FACT, Arrivals
from .bulk import Onward, Plan
from .evidence import BIAS, HIT_BYTES
from .messages import ACTIVITY, EDIT
from .totals import DAY_MS, Cell, wait_buckets

STAGE = [bytes((stage,)) for stage in range(256)]


def go_on(
    plan: Plan, onward: Onward, arrived: Arrivals, taken: bytes, changes: list[StageChange], entries: dict[bytes, bytes | None],
    totals: dict[bytes, dict[str, dict[Cell, int]]],
) -> None:  # fmt: skip
    """Adds to a decision's *changes*, *entries* and *totals* what *onward* comes to. *plan* made it of *arrived*; *taken*: see `bulk.Result`."""
    if not len(onward.rows):
        return
    changes.extend(_changes(plan, onward, arrived, taken))
    holders = [arrived.contacts[number] for number in onward.rows[:, 0].tolist()]
    views = plan.views
    included = [views[number].includes(holder) for number, holder in zip(onward.rows[:, 1].tolist(), holders, strict=True)]
    if not all(included):
        holders = [holder for holder, one in zip(holders, included, strict=True) if one]
        onward = onward._replace(rows=onward.rows[included])
    _place(plan, onward, holders, entries, totals)


def take_in(
    plan: Plan, onward: Onward, holders: Sequence[bytes], first: Container[bytes], changes: list[StageChange],
    entries: dict[bytes, bytes | None], totals: dict[bytes, dict[str, dict[Cell, int]]],
) -> None:  # fmt: skip
    """The same for *holders* that a scan takes into views (`Plan.stand`). Those *first* (ids) had nobody before them: they announce everything."""
    if not len(onward.rows):
        return
    whose = [holders[number] for number in onward.rows[:, 0].tolist()]
    if any(view.id in first for view in plan.views):
        changes.extend(_first_said(plan, onward, whose, first))
    _place(plan, onward, whose, entries, totals)


def _place(
    plan: Plan, onward: Onward, holders: Sequence[bytes], entries: dict[bytes, bytes | None], totals: dict[bytes, dict[str, dict[Cell, int]]]
) -> None:
    entries.update(_entries(plan, onward, holders))
    for (number, kind, stage, bucket), count in _cells(plan, onward).items():
        mine, cell = totals.setdefault(plan.views[number].id, {}).setdefault("", {}), (kind, stage, bucket)
        mine[cell] = mine.get(cell, 0) + count


def _gains(onward: Onward) -> tuple[Array, Array, Array]:
    """A row for each further stage: whose it is (number in `onward.rows`), which (from 0), and its row in `onward.stages`."""
    _, _, known, after, begin = onward.rows.T
    gained = after - known
    whose = np.repeat(np.arange(len(gained)), gained)
    stage = np.arange(len(whose)) - (np.cumsum(gained) - gained - known)[whose]
    return whose, stage, begin[whose] + stage


def _ms(moments: Array) -> Array:
    """Milliseconds since 1970 of moments, uint64."""
    return (moments ^ np.uint64(BIAS)).view(np.int64)


def _changes(plan: Plan, onward: Onward, arrived: Arrivals, taken: bytes) -> Iterator[StageChange]:
    """The announcement of each further stage, by the activity that met it."""
    contacts, views = onward.rows[:, 0], [plan.views[number] for number in onward.rows[:, 1].tolist()]
    names = [arrived.contact(number) for number in contacts.tolist()]
    facts = np.flatnonzero(np.frombuffer(taken, np.uint8))
    first = np.searchsorted(facts, np.where(contacts > 0, arrived.ends[contacts - 1], 0))
    behind = np.searchsorted(facts, arrived.ends[contacts])
    last = arrived.ids(facts[behind - 1])
    several = (behind - first > 1).tolist()  # of the others, the one that arrived is the one that met
    whose, stages, rows = _gains(onward)
    moments = _ms(onward.stages[rows, 0]).tolist()
    for n, stage, row, at_ms in zip(whose.tolist(), stages.tolist(), rows.tolist(), moments, strict=True):
        view = views[n]
        if view.speaks:
            journey = view.journey
            by = _by(onward, row, arrived, facts[first[n] : behind[n]], last[n]) if several[n] else last[n]
            yield StageChange(
                journey.id, journey.version or 0, names[n], stage + 1, journey.stages[stage].name, "reached", at_ms, None, ACTIVITY, by
            )


def _first_said(plan: Plan, onward: Onward, holders: Sequence[bytes], first: Container[bytes]) -> Iterator[StageChange]:
    """The announcement of each stage that a view of which nothing was said before shows."""
    views = [plan.views[number] for number in onward.rows[:, 1].tolist()]
    whose, stages, rows = _gains(onward)
    for n, stage, at_ms in zip(whose.tolist(), stages.tolist(), _ms(onward.stages[rows, 0]).tolist(), strict=True):
        view = views[n]
        if view.id in first:
            journey = view.journey
            name, stage_name = holders[n].decode(), journey.stages[stage].name
            yield StageChange(journey.id, journey.version or 0, name, stage + 1, stage_name, "reached", at_ms, None, EDIT, None)


def _by(onward: Onward, row: int, arrived: Arrivals, facts: Array, last: str) -> str:
    """The id of the activity among *facts*, those of the holder that were new, which met a stage; *last* where none did."""
    begin, count = int(onward.met_at[row]), int(onward.stages[row, 1])
    packed = onward.met[begin : begin + count].astype(FACT).tobytes()
    ids = dict(zip(map(arrived.hit, facts.tolist()), arrived.ids(facts), strict=True))
    met_by = [packed[at : at + HIT_BYTES] for at in range(0, len(packed), HIT_BYTES)]
    return next((ids[hit] for hit in reversed(met_by) if hit in ids), last)


def _entries(plan: Plan, onward: Onward, holders: Sequence[bytes]) -> Iterator[tuple[bytes, bytes | None]]:
    """Index entries: see `views.index_key`."""
    packed, heads = onward.stages[:, 0].astype(FACT).tobytes(), plan.heads
    for (_, number, known, after, begin), holder in zip(onward.rows.tolist(), holders, strict=True):
        head = heads[number]
        if known:
            end = 8 * (begin + known)
            yield head + STAGE[known] + packed[end - 8 : end] + holder, None
        end = 8 * (begin + after)
        yield head + STAGE[after] + packed[end - 8 : end] + holder, b""


def _cells(plan: Plan, onward: Onward) -> Counter[tuple[int, str, int, int]]:
    """What further stages add to totals, see `totals.contribution`: by number of the view, and cell."""
    whose, stage, rows = _gains(onward)
    numbers, at = onward.rows[:, 1], onward.stages[:, 0]
    of_each, which = numbers[whose].tolist(), (stage + 1).tolist()
    found = Counter(zip(of_each, repeat("r"), which, repeat(0)))
    found.update(zip(of_each, repeat("d"), which, (_ms(at[rows]) // DAY_MS).tolist(), strict=False))
    later = stage > 0
    waits = wait_buckets((at[rows[later]] - at[rows[later] - 1]).astype(np.int64))
    found.update(zip(numbers[whose[later]].tolist(), repeat("w"), (stage[later] + 1).tolist(), waits.tolist(), strict=False))
    _, _, _, after, begin = onward.rows.T
    whole = (after > 2) & (after == plan.lengths[numbers])
    begin, after = begin[whole], after[whole]
    waits = wait_buckets((at[begin + after - 1] - at[begin]).astype(np.int64))
    found.update(zip(numbers[whole].tolist(), repeat("o"), after.tolist(), waits.tolist(), strict=False))
    return found
