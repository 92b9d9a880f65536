"""Statistics, changes between versions, the watch of the workers, drafts: computed from what is given, compared with who counts by hand."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from console import edits, statistics
from console.pages import drafts
from console.watch import Look, Watch
from schemas.journey import journey_json, parse_journey
from state import totals
from state.totals import wait_bucket, wait_seconds
from tests.support.strategies import journeys as any_journey


def made(*pages: str, **more: Any) -> Any:
    stages = [{"name": page, "condition": {"any": [{"rule": "visited_page", "page": page}]}} for page in pages]
    return parse_journey({"id": "x", "name": "x", "stages": stages, **more})


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=60))
def test_intervals_and_percentiles_are_those_of_the_waits(waits: list[int]) -> None:
    cells = Counter(("w", 2, wait_bucket(seconds * 1000)) for seconds in waits)
    (row,) = statistics.waits(made("a", "b"), cells)
    assert {"stage": 2, "name": "b", **(statistics.overall(made("a", "b"), cells) or {})} == row
    longer = statistics.overall(made("a", "b", "c"), Counter(("o", 3, wait_bucket(seconds * 1000)) for seconds in waits) + cells)
    assert longer == statistics.overall(made("a", "b"), cells)
    shown = sorted(wait_seconds(wait_bucket(seconds * 1000)) for seconds in waits)
    assert row["contacts"] == sum(one["contacts"] for one in row["intervals"]) == len(waits)
    for one in row["intervals"]:
        inside = [s for s in shown if s >= one["from_seconds"] and (one["to_seconds"] is None or s < one["to_seconds"])]
        assert one["contacts"] == len(inside)
    for percent in (10, 90):
        rank = max(1, -(-len(shown) * percent // 100))
        assert row[f"p{percent}_seconds"] == shown[rank - 1]


@given(st.lists(st.dictionaries(st.sampled_from(["", "red", "blue"]), st.lists(st.integers(0, 99), min_size=2, max_size=2)), max_size=4))
def test_groups_are_the_sums_of_the_partitions(parts: list[dict[str, list[int]]]) -> None:
    rows = statistics.by_group(made("a", "b"), [{"groups": part} for part in parts])
    assert rows[0]["group"] is None
    for row in rows:
        for k in range(2):
            assert row["stages"][k]["converted"] == sum(part.get(row["group"] or "", [0, 0])[k] for part in parts)
    assert [row["stages"][0]["converted"] for row in rows[1:]] == sorted((row["stages"][0]["converted"] for row in rows[1:]), reverse=True)


def test_days_without_anybody_are_left_out() -> None:
    cells = {("d", 1, 1): 3, ("d", 2, 1): 1, ("d", 1, 5): 0, ("r", 1, 0): 3}
    assert statistics.days(made("a", "b"), cells) == [{"day": "1970-01-02", "reached": [3, 1]}]
    assert totals.DAY_MS == 86_400_000


@given(any_journey(), any_journey())
def test_changes_are_said_exactly_where_there_are_any(before: Any, after: Any) -> None:
    def body(journey: Any) -> Any:
        return {k: v for k, v in journey_json(journey).items() if k not in ("id", "version", "saved_at")}

    assert edits.changes(before, before) == []
    assert bool(edits.changes(before, after)) == (body(before) != body(after))


@given(any_journey())
def test_a_draft_of_a_saved_journey_is_judged_as_it_and_shown_whole(journey: Any) -> None:
    draft = {k: v for k, v in journey_json(journey).items() if k not in ("version", "saved_at")}
    read, errors = drafts.judged(draft)
    assert (errors, read and edits.changes(journey, read)) == ([], [])
    for k in range(len(journey.stages)):
        shown = drafts.shape(draft, k, [], frozenset())
        assert shown["rules"] == json.dumps(draft["stages"][k]).count('"rule":')


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(["stages", "name", "kpi", "condition", "any", "all", "rule", "page", "x"]), inner, max_size=4), max_leaves=25))  # fmt: skip
def test_whatever_a_draft_is_it_can_be_shown(value: Any) -> None:
    draft = value if isinstance(value, dict) else {"stages": value}
    _, errors = drafts.judged(draft)
    assert drafts.shape(draft, 3, errors, frozenset())["stages"] is not None


def test_the_watch_tells_rates_and_forgets_what_a_restarted_worker_counted() -> None:
    def process(started: int, activities: float) -> dict[str, Any]:
        visible = {"0.1": activities * 0.98, "0.5": activities, "+Inf": activities}
        return {"started_ms": started, "activities": activities, "stage_changes": 0.0, "rejected": 0.0, "visible": visible}

    watch = Watch(lambda: None)  # type: ignore[arg-type, return-value]
    watch.take(Look(0.0, 0, 5, {"a": process(1, 100.0)}))
    watch.take(Look(5.0, 5000, 0, {"a": process(1, 150.0), "b": process(2, 7.0)}))
    (point,) = watch.history()["points"]
    assert (point["lag"], point["activities"]) == (0, 10.0)
    assert watch.visible_seconds() == 0.5
    watch.take(Look(10.0, 10_000, None, {"b": process(9, 3.0)}))
    assert watch.history()["points"][-1]["activities"] is None, "b began anew"
    assert watch.lost() == ["a"]
    watch.take(Look(700.0, 700_000, 0, {"b": process(9, 3.0)}))
    assert watch.lost() == []
