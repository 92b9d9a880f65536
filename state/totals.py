"""Totals: every number is a sum of contributions of persons (design, section 2). Pure; knows no evidence and no clock.

A *cell* is `(kind, stage, bucket)`, its value a count:

| kind | bucket | counts |
|---|---|---|
| `r` | 0 | persons that reached the stage |
| `d` | day since 1970, UTC | persons that reached the stage on that day |
| `w` | wait bucket | persons by the time from the previous stage to this one |
| `o` | wait bucket | of the last of three or more stages: persons by the time from the first stage to it |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from schemas.compiled import Array
from schemas.journey import Journey

from .progress import Progress

DAY_MS = 86_400_000
EXACT_SECONDS = 512  # waits below are counted to the second; above, buckets are 1/256 wide or finer
SUB_BUCKETS = EXACT_SECONDS // 2

Cell = tuple[str, int, int]
Everyone = ""  # the group that stands for all persons; a group of that name cannot exist, groups are not empty


def wait_bucket(wait_ms: int) -> int:
    """The bucket of a wait: whole seconds below 512 s, then buckets of a relative width of at most 1/256."""
    seconds = wait_ms // 1000
    shift = max(0, seconds.bit_length() - EXACT_SECONDS.bit_length() + 1)
    return (shift << 32) | (seconds >> shift)


def wait_buckets(waits_ms: Array) -> Array:
    """The bucket of each wait, int64, below 2^53 ms."""
    seconds = waits_ms // 1000
    shift = np.maximum(0, np.frexp(seconds.astype(np.float64))[1].astype(np.int64) - EXACT_SECONDS.bit_length() + 1)
    return (shift << 32) | (seconds >> shift)


def wait_seconds(bucket: int) -> int:
    """The shortest wait of a bucket, in seconds."""
    return (bucket & 0xFFFFFFFF) << (bucket >> 32)


def contribution(progress: Progress, stages: int, since: int = 0) -> list[Cell]:
    """The cells that a person with this progress on a journey of so many *stages* adds one to; without those of the first *since* stages."""
    cells: list[Cell] = []
    previous_ms = progress[since - 1].at_ms if since else None
    for stage, reached in enumerate(progress[since:], since + 1):
        at_ms = reached.at_ms
        cells.append(("r", stage, 0))
        cells.append(("d", stage, at_ms // DAY_MS))
        if previous_ms is not None:
            cells.append(("w", stage, wait_bucket(at_ms - previous_ms)))
        previous_ms = at_ms
    if since < stages == len(progress) > 2:
        cells.append(("o", stages, wait_bucket(progress[-1].at_ms - progress[0].at_ms)))
    return cells


def agreed(a: Progress, b: Progress) -> int:
    """How many stages, from the first on, both have reached at the same moments: what these contribute is the same."""
    stages = 0
    for mine, theirs in zip(a, b, strict=False):
        if mine.at != theirs.at:
            break
        stages += 1
    return stages


def add(totals: dict[Cell, int], cells: Iterable[Cell], count: int) -> None:
    """Adds *count* to each of *cells* in *totals*; cells that become zero stay, so that their zero is written too."""
    for cell in cells:
        totals[cell] = totals.get(cell, 0) + count


def summed(parts: Iterable[Iterable[Sequence[Any]]]) -> dict[Cell, int]:
    """The sum of several lists of `[kind, stage, bucket, count]`: partitions are added, nothing else."""
    total: dict[Cell, int] = defaultdict(int)
    for part in parts:
        for kind, stage, bucket, count in part:
            total[kind, stage, bucket] += count
    return dict(total)


def waits(totals: Mapping[Cell, int], stage: int, since_first: bool = False) -> list[tuple[int, int]]:
    """`(seconds, persons)`, the shortest first, of the waits from the stage before to *stage*; or from the first, where *stage* is the last."""
    wanted = "o" if since_first and stage > 2 else "w"  # the second stage's are the same
    return sorted((wait_seconds(b), n) for (kind, s, b), n in totals.items() if kind == wanted and s == stage and n)


def median_wait_seconds(totals: Mapping[Cell, int], stage: int, since_first: bool = False) -> float | None:
    """The median of these waits in seconds: of an even number, the mean of the two in the middle; None when nobody waited."""
    found = waits(totals, stage, since_first)
    count = sum(n for _, n in found)
    if not count:
        return None

    def at(rank: int) -> int:
        for seconds, n in found:
            if rank < n:
                return seconds
            rank -= n
        raise AssertionError("rank beyond the count")

    return (at((count - 1) // 2) + at(count // 2)) / 2


def results(journey: Journey, totals: Mapping[Cell, int]) -> list[dict[str, Any]]:
    """The contract's rows, one a stage (design, section 3, results). Ratios are unrounded; null where the divisor is 0."""
    count = [totals.get(("r", k, 0), 0) for k in range(1, len(journey.stages) + 1)]
    rows: list[dict[str, Any]] = []
    for i, stage in enumerate(journey.stages):
        previous = count[i - 1] if i else count[0]
        dropped = count[i] - count[i + 1] if i + 1 < len(count) else None
        rows.append(
            {
                "stage": i + 1,
                "name": stage.name,
                "converted": count[i],
                "converted_ratio": count[i] / previous if previous else None,
                "dropped_off": dropped,
                "dropped_off_ratio": dropped / count[i] if dropped is not None and count[i] else None,
                "kpi": stage.kpi,
                "kpi_ratio": count[i] / stage.kpi if stage.kpi else None,
                "median_seconds_from_previous": median_wait_seconds(totals, i + 1) if i else None,
            }
        )
    return rows
