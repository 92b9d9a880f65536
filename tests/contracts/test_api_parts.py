"""The parts of the API that decide, without a broker: which version is shown, sums, lag, pages, cursors, figures, what a group says of workers."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import figures, results
from console.checking import close
from console.errors import ApiError
from console.results import Choice, Wanted
from console.workers import joined, member_url
from schemas.journey import parse_journey


def built(*views: list[list[Any]]) -> dict[int, dict[str, Any]]:
    """By partition, `[version, generation, progress, readable]`."""
    return {n: {"versions": v} for n, v in enumerate(views)}


ONE, TWO, HALF = [1, 2, 1.0, True], [2, 2, 1.0, True], [2, 2, 0.5, False]


@pytest.mark.parametrize(
    ("what", "partitions", "wanted", "asked", "choice"),
    [
        ("complete everywhere", built([TWO], [TWO]), Wanted(2, 2, None), None, Choice((2, 2), "live", 1.0)),
        ("the old one meanwhile", built([ONE, HALF], [ONE, TWO]), Wanted(2, 2, None), None, Choice((1, 2), "calculating", 0.75)),
        ("nothing yet", built([[1, 2, 0.0, False]], [ONE]), Wanted(1, 2, None), None, Choice(None, "calculating", 0.5)),
        ("workers have not heard of it", built([], []), Wanted(1, 2, None), None, Choice(None, "calculating", 0.0)),
        ("workers know more than the console", built([TWO, [3, 2, 1.0, True]], [TWO]), Wanted(2, 2, None), None, Choice((2, 2), "live", 1.0)),
        ("an old one that is kept", built([ONE, TWO], [ONE, TWO]), Wanted(2, 2, None), 1, Choice((1, 2), "live", 1.0)),
        ("an old one that is gone somewhere", built([ONE, TWO], [TWO]), Wanted(2, 2, None), 1, Choice(None, "calculating", 0.5)),
        ("almost", built([ONE], [[1, 2, 0.9999999, False]]), Wanted(1, 2, None), None, Choice(None, "calculating", 0.999)),
        ("rules never seen", built([ONE], [ONE]), Wanted(2, None, 0.3), None, Choice((1, 2), "calculating", 0.3)),
        ("rules never seen, and nobody collects", built([ONE], [ONE]), Wanted(2, None, None), None, Choice((1, 2), "calculating", 0.0)),
        ("a recalculation beside it", built([ONE], [ONE]), Wanted(1, 2, 0.4), None, Choice((1, 2), "calculating", 0.4)),
        ("switching", built([ONE, [1, 4, 1.0, False]], [ONE, [1, 4, 0.5, False]]), Wanted(1, 4, 0.95), None, Choice((1, 2), "calculating", 0.95)),
        ("one partition has switched", built([ONE, [1, 4, 1.0, True]], [ONE, [1, 4, 1.0, False]]), Wanted(1, 4, None), None,
         Choice((1, 2), "calculating", 0.999)),
        ("switched", built([ONE, [1, 4, 1.0, True]], [ONE, [1, 4, 1.0, True]]), Wanted(1, 4, None), None, Choice((1, 4), "live", 1.0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_which_version_is_shown(what: str, partitions: Any, wanted: Wanted, asked: int | None, choice: Choice) -> None:
    assert results.choose(wanted, partitions, asked) == choice


def test_lag_is_what_is_not_reflected_yet() -> None:
    before = {("activities", 0): 10, ("activities", 1): 5, ("handoffs", 0): 2, ("handoffs", 1): 0}
    partitions = {0: {"positions": {"activities": 10, "handoffs": 2}}, 1: {"positions": {"activities": 5}}}
    assert results.lag(before, partitions, {}, {}) == 0
    assert results.lag(before, partitions, {("handoffs", 1): 3}, {}) == 3  # sent to each other while we asked
    assert results.lag(before | {("activities", 1): 9}, partitions, {}, {}) == 4
    unread = {0: {"positions": {"activities": None}}, 1: {}}
    assert results.lag({("activities", 0): 7}, unread, {}, {}) == 7
    assert results.lag({("activities", 0): 7}, unread, {}, {("activities", 0): 7}) == 0  # all of it is gone by retention


def test_while_nothing_is_calculated_there_are_no_numbers() -> None:
    stage = {"name": "a", "kpi": 5, "condition": {"any": [{"rule": "became_member"}]}}
    (row,) = results.rows(parse_journey({"id": "x", "name": "x", "stages": [stage]}), None)
    assert (row["kpi"], [row[k] for k in row if k not in ("stage", "name", "kpi")]) == (5, [None] * 6)


@given(st.lists(st.lists(st.binary(min_size=1, max_size=4), unique=True, max_size=8), min_size=1, max_size=3), st.integers(1, 5), st.booleans())
def test_pages_over_all_partitions_hold_each_row_once_in_order(parts: list[list[bytes]], limit: int, newest: bool) -> None:
    keys = sorted({key for part in parts for key in part}, reverse=newest)
    owner = {key: next(i for i, part in enumerate(parts) if key in part) for key in keys}
    seen: list[str] = []
    seen_to = 0
    while True:
        answers = []
        for number in range(len(parts)):
            mine = [key for key in keys if owner[key] == number]
            rows = [{"key": k.hex(), "contact_id": k.hex(), "name": None, "reached_at_ms": 0, "groups": []} for k in mine if keys.index(k) >= seen_to]
            rows = rows[:limit]
            answers.append({"total": len(mine), "rows": rows})
        total, shown, cursor = results.page(answers, limit, newest)
        assert total == len(keys)
        seen += [row["contact_id"] for row in shown]
        if cursor is None:
            break
        seen_to = keys.index(results.decode_cursor(cursor, newest)) + 1
    assert seen == [key.hex() for key in keys]


@given(st.binary(min_size=1), st.booleans())
def test_cursors_come_back_in_their_order_only(key: bytes, newest: bool) -> None:
    cursor = results.encode_cursor((results.NEWEST if newest else results.OLDEST) + key)
    assert results.decode_cursor(cursor, newest) == key
    with pytest.raises(ApiError):
        results.decode_cursor(cursor, not newest)


@given(st.text(max_size=20))
def test_other_cursors_are_refused_or_ours(text: str) -> None:
    try:
        key = results.decode_cursor(text)
    except ApiError:
        return
    assert results.encode_cursor(results.OLDEST + key) == text


def test_of_two_workers_with_one_partition_the_one_that_is_further_counts() -> None:
    behind = {"as_of_ms": 5, "partitions": {"0": {"positions": {"activities": 3}, "who": "behind"}}}
    further = {"as_of_ms": 7, "partitions": {"0": {"positions": {"activities": 4}, "who": "further"}, "1": {"positions": {"activities": None}}}}
    for answers in ([behind, further, None], [further, None, behind]):
        found = joined(answers)
        assert (found.as_of_ms, found.partitions[0]["who"], sorted(found.partitions)) == (5, "further", [0, 1])


def member(topics: list[bytes], user_data: bytes) -> bytes:
    listed = b"".join(struct.pack(">h", len(topic)) + topic for topic in topics)
    return struct.pack(">hi", 4, len(topics)) + listed + struct.pack(">i", len(user_data)) + user_data


def test_a_member_of_the_group_says_where_it_answers() -> None:
    assert member_url(member([b"waypost.activities", b"x"], json.dumps({"url": "http://10.0.0.7:6066"}).encode())) == "http://10.0.0.7:6066"


@given(st.binary(max_size=60))
def test_whatever_a_member_says_is_read_without_harm(raw: bytes) -> None:
    assert member_url(raw) is None
    assert member_url(member([], raw)) is None or b"url" in raw


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (431, 400, "107.8 %"),  # 107.75: half goes up; float formatting would print 107.7
        (1, 3, "33.3 %"), (2, 3, "66.7 %"), (0, 5, "0.0 %"), (5, 5, "100.0 %"), (1, 2000, "0.1 %"), (12_345, 10, "123,450.0 %"),
        (1, 0, "–"), (0, 0, "–"), (None, 5, "–"), (5, None, "–"),
    ],
)  # fmt: skip
def test_percents_are_rounded_once_from_the_integers(part: int | None, whole: int | None, shown: str) -> None:
    assert figures.percent(part, whole) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "–"), (0.0, "0 s"), (59.5, "59.5 s"), (60.0, "1 min"), (61.0, "1 min 1 s"), (3600.0, "1 h"), (183_600.0, "2 d 3 h")],
)
def test_durations_have_two_units(seconds: float | None, shown: str) -> None:
    assert figures.duration(seconds) == shown


def test_a_median_may_be_below_the_exact_one_by_a_bucket_and_never_above() -> None:
    assert close(10.9, 10.0)
    assert close(3584.0 * 1.001, 3584.0)
    assert not close(10.0, 11.0)
    assert not close(10_000.0, 9_000.0)
    assert close(None, None)
    assert not close(None, 0.0)
