"""Progress: projecting evidence is walking the history."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.hashing import h8
from schemas.journey import Journey
from state import oracle
from state.evidence import hit
from state.oracle import Activity
from state.progress import Projection, project
from tests.support.strategies import activities, evidence_of, journeys


@settings(max_examples=400, deadline=None)
@given(journeys(), st.lists(activities(), max_size=12))
def test_project_is_the_oracles_walk(journey: Journey, done: list[Activity]) -> None:
    walked = oracle.walk(journey, done)
    projected = project(journey, evidence_of(journey, done).hits)
    assert [reached.at_ms for reached in projected] == [reached.at_ms for reached in walked]
    for mine, theirs in zip(projected, walked, strict=True):
        assert list(mine.met_by) == [hit(at_ms, h.to_bytes(8, "big")) for (at_ms, h), _ in theirs.met_by]


@settings(max_examples=150, deadline=None)
@given(journeys(), st.lists(activities(), max_size=10), st.randoms(use_true_random=False))
def test_after_every_prefix_of_any_order(journey: Journey, done: list[Activity], random: object) -> None:
    random.shuffle(done)  # type: ignore[attr-defined]
    evidence = evidence_of(journey, [])
    for n in range(1, len(done) + 1):
        evidence.join(evidence_of(journey, done[n - 1 : n]).hits)
        walked = oracle.walk(journey, done[:n])
        assert [reached.at_ms for reached in project(journey, evidence.hits)] == [reached.at_ms for reached in walked]


@settings(max_examples=200, deadline=None)
@given(journeys(), st.lists(activities(), max_size=12))
def test_what_must_hold_of_any_progress(journey: Journey, done: list[Activity]) -> None:
    progress = project(journey, evidence_of(journey, done).hits)
    assert len(progress) <= len(journey.stages)
    moments = [reached.at for reached in progress]
    assert moments == sorted(moments), "no stage is reached before the one in front of it"
    for k, reached in enumerate(progress):
        assert reached.at == max(one[:8] for one in reached.met_by), "the last activity it takes is the moment"
        others = {one for other in progress[:k] for one in other.met_by}
        assert not others & set(reached.met_by), "no activity meets two stages"


@settings(max_examples=400, deadline=None)
@given(journeys(), st.lists(activities(), max_size=14))
def test_a_hit_that_moves_nothing_moves_nothing(journey: Journey, done: list[Activity]) -> None:
    projection, evidence = Projection(journey), evidence_of(journey, [])
    for activity in done:
        for rule, one in evidence_of(journey, [activity]).hits.items():
            before = projection.project(evidence.hits)
            unmoved = projection.unmoved(before, rule, one)
            new = evidence.add(rule, one)
            after = projection.project(evidence.hits)
            assert after == before or (new and not unmoved)


@settings(max_examples=200, deadline=None)
@given(journeys(), st.lists(activities(), max_size=12))
def test_missing_names_rules_of_the_next_stage_only(journey: Journey, done: list[Activity]) -> None:
    evidence = evidence_of(journey, done)
    projection = Projection(journey)
    progress, missing = projection.project(evidence.hits), projection.missing(evidence.hits)
    if len(progress) == len(journey.stages):
        assert missing == []
    else:
        assert missing, "a stage that is not reached misses something"
        assert set(map(repr, missing)) <= {repr(rule) for rule in projection.stage_rules[len(progress)].values()}


def test_many_hits_take_the_search_and_few_the_walk() -> None:
    from schemas.journey import parse_journey
    from tests.support.strategies import RULES

    data = {"id": "j", "name": "j", "stages": [{"name": f"s{k}", "condition": {"any": [RULES[0]]}} for k in range(3)]}
    journey = parse_journey(data)
    for n in (1, 2, 3, 7, 8, 9, 10, 50):
        for gap in (0, 1, 5):
            done = [Activity("ann", "a", i * gap, f"act-{i}") for i in range(n)]
            walked = oracle.walk(journey, done)
            assert [r.at_ms for r in project(journey, evidence_of(journey, done).hits)] == [r.at_ms for r in walked]
            assert len(walked) == min(3, n)
    assert h8("act-0") != h8("act-1")
