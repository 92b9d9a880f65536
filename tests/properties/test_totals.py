"""Totals: sums of contributions are the oracle's counts, whoever comes, moves and goes."""

from __future__ import annotations

import statistics
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.journey import Journey
from state import oracle
from state.oracle import Activity
from state.progress import Progress, project
from state.totals import (
    Cell,
    add,
    agreed,
    contribution,
    median_wait_seconds,
    results,
    summed,
    wait_bucket,
    wait_buckets,
    wait_seconds,
)
from tests.support.strategies import CONTACTS, activities, evidence_of, journeys


def progress_of(journey: Journey, done: list[Activity]) -> dict[str, Progress]:
    return {
        who: project(journey, evidence_of(journey, [a for a in done if a.contact_id == who]).hits) for who in CONTACTS
    }


@settings(max_examples=150, deadline=None)
@given(journeys(), st.lists(activities(), max_size=16))
def test_results_are_the_oracles(journey: Journey, done: list[Activity]) -> None:
    totals: dict[Cell, int] = {}
    for progress in progress_of(journey, done).values():
        add(totals, contribution(progress, len(journey.stages)), 1)
    rows = results(journey, totals)
    expected = oracle.answer(journey, oracle.History(activities=done)).results()
    for row, truth in zip(rows, expected, strict=True):
        for field in (
            "stage",
            "name",
            "converted",
            "converted_ratio",
            "dropped_off",
            "dropped_off_ratio",
            "kpi",
            "kpi_ratio",
        ):
            assert row[field] == getattr(truth, field), field
        days = {bucket: n for (kind, stage, bucket), n in totals.items() if kind == "d" and stage == truth.stage}
        assert days == truth.days
        waits = [wait_ms // 1000 for wait_ms in truth.waits_ms]
        assert row["median_seconds_from_previous"] == (statistics.median(waits) if waits else None)
    overall = [wait_ms // 1000 for wait_ms in expected[-1].since_first_ms]
    assert median_wait_seconds(totals, len(rows), since_first=True) == (statistics.median(overall) if overall else None)


@settings(max_examples=100, deadline=None)
@given(journeys(), st.lists(activities(), max_size=10))
def test_a_difference_at_a_time_is_the_sum_of_all(journey: Journey, done: list[Activity]) -> None:
    totals: dict[Cell, int] = {}
    before = progress_of(journey, [])
    for n in range(1, len(done) + 1):
        after = progress_of(journey, done[:n])
        for who in CONTACTS:
            add(totals, contribution(before[who], len(journey.stages)), -1)
            add(totals, contribution(after[who], len(journey.stages)), 1)
        before = after
        whole: Counter[Cell] = Counter()
        for progress in after.values():
            whole.update(contribution(progress, len(journey.stages)))
        assert {cell: n for cell, n in totals.items() if n} == dict(whole)


cells = st.tuples(st.sampled_from("rdw"), st.integers(1, 3), st.integers(0, 3))


@given(st.lists(st.lists(st.tuples(cells, st.integers(0, 5)), max_size=5), max_size=4))
def test_partitions_are_added_and_nothing_else(parts: list[list[tuple[Cell, int]]]) -> None:
    expected: Counter[Cell] = Counter()
    for part in parts:
        for cell, n in part:
            expected[cell] += n
    found = summed([[*cell, n] for cell, n in part] for part in parts)
    assert {cell: n for cell, n in found.items() if n} == {cell: n for cell, n in expected.items() if n}


@given(st.integers(0, 2**45))
def test_wait_buckets_are_fine_and_ordered(wait_ms: int) -> None:
    seconds = wait_ms // 1000
    lower = wait_seconds(wait_bucket(wait_ms))
    assert lower <= seconds
    assert seconds - lower <= seconds / 256 if seconds >= 512 else lower == seconds
    assert wait_bucket(lower * 1000) == wait_bucket(wait_ms)
    assert wait_bucket(wait_ms) <= wait_bucket(wait_ms + 1000)


@given(st.lists(st.integers(0, 1 << 49) | st.integers(500_000, 530_000)))
def test_many_waits_fall_into_the_buckets_of_each(waits_ms: list[int]) -> None:
    assert wait_buckets(np.array(waits_ms, np.int64)).tolist() == [wait_bucket(wait_ms) for wait_ms in waits_ms]


@settings(max_examples=200, deadline=None)
@given(journeys(), st.lists(activities(), max_size=10), st.lists(activities(), max_size=4))
def test_what_two_progresses_share_need_not_be_counted_again(journey: Journey, done: list[Activity], more: list[Activity]) -> None:
    before, after = (project(journey, evidence_of(journey, activities).hits) for activities in (done, done + more))
    same = agreed(before, after)
    assert [r.at for r in before[:same]] == [r.at for r in after[:same]]
    whole: Counter[Cell] = Counter(contribution(after, len(journey.stages)))
    whole.subtract(contribution(before, len(journey.stages)))
    rest: Counter[Cell] = Counter(contribution(after, len(journey.stages), same))
    rest.subtract(contribution(before, len(journey.stages), same))
    assert {cell: n for cell, n in whole.items() if n} == {cell: n for cell, n in rest.items() if n}
