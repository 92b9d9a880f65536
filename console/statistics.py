"""Statistics: what the totals of a journey say beyond its results: all groups side by side, days, waiting times. Pure; asks nobody.

Everything is a sum of the same cells as the results (see `state.totals`), so that it adds up to their numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from schemas.journey import Journey
from state import totals
from state.totals import DAY_MS, Cell

MAX_GROUPS = 1000  # in one answer: those with the most contacts
HOUR, DAY = 3600, 86_400
EDGES = (0, 60, 300, 900, HOUR, 4 * HOUR, 12 * HOUR, DAY, 3 * DAY, 7 * DAY, 30 * DAY)
"""Seconds at which the shown intervals of waits begin; the last has no end."""


def by_group(journey: Journey, parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`{group, stages}` for all contacts, whose group is None, and then for each group, the largest first.

    *parts*: what each partition says: `groups`, with `[reached, …]` for every stage.
    """
    sums: dict[str, list[int]] = {totals.Everyone: [0] * len(journey.stages)}
    for part in parts:
        for group, reached in part["groups"].items():
            mine = sums.setdefault(group, [0] * len(journey.stages))
            for k, n in enumerate(reached):
                mine[k] += n
    everyone = sums.pop(totals.Everyone)
    groups = sorted(sums.items(), key=lambda item: (-item[1][0], item[0]))[:MAX_GROUPS]
    return [{"group": group, "stages": _rows(journey, reached)} for group, reached in [(None, everyone), *groups]]


def _rows(journey: Journey, reached: Sequence[int]) -> list[dict[str, Any]]:
    """Of each stage: how many reached it, and which part of those of the stage before (of the first stage: of itself) they are."""
    before = [reached[0], *reached[:-1]]
    return [
        {"stage": k, "name": stage.name, "converted": n, "converted_ratio": n / b if b else None}
        for k, (stage, n, b) in enumerate(zip(journey.stages, reached, before, strict=True), 1)
    ]


def days(journey: Journey, cells: Mapping[Cell, int]) -> list[dict[str, Any]]:
    """`{day, reached}` of each day on which anybody reached a stage, the earliest first; `reached`: how many reached each stage on it."""
    found: dict[int, list[int]] = {}
    for (kind, stage, bucket), count in cells.items():
        if kind == "d" and count:
            found.setdefault(bucket, [0] * len(journey.stages))[stage - 1] += count
    return [{"day": datetime.fromtimestamp(day * DAY_MS / 1000, UTC).date().isoformat(), "reached": found[day]} for day in sorted(found)]


def waits(journey: Journey, cells: Mapping[Cell, int]) -> list[dict[str, Any]]:
    """Of each stage behind the first: how long contacts took from the stage before.

    Waits under 512 s are exact to the second, longer ones to 1/256 (`state.totals.wait_bucket`): so are percentiles and the edges of intervals.
    """
    return [{"stage": k, "name": stage.name, **_waited(cells, k, False)} for k, stage in enumerate(journey.stages[1:], 2)]


def overall(journey: Journey, cells: Mapping[Cell, int]) -> dict[str, Any] | None:
    """As a row of `waits`: how long contacts took from the first stage to the last; None of a journey of one stage."""
    return _waited(cells, len(journey.stages), True) if len(journey.stages) > 1 else None


def _waited(cells: Mapping[Cell, int], stage: int, since_first: bool) -> dict[str, Any]:
    found = totals.waits(cells, stage, since_first)
    count = sum(n for _, n in found)
    return {
        "contacts": count,
        "median_seconds": totals.median_wait_seconds(cells, stage, since_first),
        "p10_seconds": percentile(found, count, 10),
        "p90_seconds": percentile(found, count, 90),
        "intervals": [
            {"from_seconds": a, "to_seconds": b, "contacts": sum(n for seconds, n in found if seconds >= a and (b is None or seconds < b))}
            for a, b in zip(EDGES, (*EDGES[1:], None), strict=True)
        ],
    }


def percentile(waits: Sequence[tuple[int, int]], count: int, percent: int) -> int | None:
    """The wait that *percent* of *count* waits, given as sorted `(seconds, how many)`, do not exceed; None of none."""
    if not count:
        return None
    rank = max(1, -(-count * percent // 100))
    for seconds, n in waits:
        rank -= n
        if rank <= 0:
            return seconds
    raise AssertionError("rank beyond the count")
