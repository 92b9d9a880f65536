"""The oracle itself, held against cases that anybody can check by hand (design, section 3)."""

from __future__ import annotations

import pytest

from schemas.journey import Journey, parse_journey
from schemas.rules import FieldTest
from state.oracle import (
    Activity,
    Erasure,
    History,
    Merge,
    Profile,
    StageResult,
    answer,
    meets,
    passes,
    persons,
    walk,
)
from state.progress import rules_of


def journey(*conditions: dict[str, object], kpi: int | None = None) -> Journey:
    stages = [{"name": f"s{k}", "condition": c} | ({"kpi": kpi} if kpi else {}) for k, c in enumerate(conditions, 1)]
    return parse_journey({"id": "j", "name": "j", "stages": stages})


def did(type_: str, value: str | None = None) -> dict[str, object]:
    return {"rule": "performed_activity", "activity": type_} | ({"value": value} if value else {})


def act(type_: str, at_ms: int, id_: str | None = None, who: str = "ann", **fields: str) -> Activity:
    return Activity(who, type_, at_ms, id_ or f"{type_}-{at_ms}", fields)


A, B, C = {"any": [did("a")]}, {"any": [did("b")]}, {"any": [did("c")]}


def moments(plan: Journey, *done: Activity) -> list[int]:
    return [reached.at_ms for reached in walk(plan, done)]


def test_in_order_out_of_order_and_at_the_same_time() -> None:
    plan = journey(A, B)
    assert moments(plan, act("a", 1), act("b", 2)) == [1, 2]
    assert moments(plan, act("b", 2), act("a", 1)) == [1, 2], "arrival order is nothing"
    assert moments(plan, act("b", 1), act("a", 2)) == [2], "before stage 1 does not count"
    assert moments(plan, act("b", 5), act("a", 5)) == [5, 5], "equal times count as in order"
    assert moments(plan, act("b", 5)) == []


def test_one_activity_never_meets_two_stages() -> None:
    plan = journey(A, A)
    assert moments(plan, act("a", 1)) == [1]
    assert moments(plan, act("a", 1, "x"), act("a", 1, "x")) == [1], "the same id twice is the same activity"
    assert moments(plan, act("a", 1, "x"), act("a", 1, "y")) == [1, 1]


def test_within_a_stage_one_activity_may_meet_several_rules() -> None:
    plan = journey({"all": [did("a"), did("a", "x")]}, A)
    assert moments(plan, act("a", 1, value="x")) == [1]
    assert moments(plan, act("a", 1, value="x"), act("a", 2)) == [1, 2]


def test_any_takes_the_earliest_and_of_equal_ones_the_first_listed() -> None:
    plan = journey({"any": [did("a"), did("b")]}, B)
    assert moments(plan, act("b", 1), act("a", 2)) == [1]
    assert moments(plan, act("b", 3), act("a", 3)) == [3, 3], "a is listed first, so b is free for stage 2"
    assert moments(journey({"any": [did("b"), did("a")]}, B), act("b", 3), act("a", 3)) == [3]


def test_all_takes_the_latest_and_the_activities_of_all() -> None:
    plan = journey({"all": [did("a"), did("b")]}, A)
    assert moments(plan, act("a", 1), act("b", 5)) == [5]
    assert moments(plan, act("a", 1), act("b", 5), act("a", 3)) == [5], "a at 3 is before the moment of stage 1"
    assert moments(plan, act("a", 1), act("b", 5), act("a", 6)) == [5, 6]
    assert moments(plan, act("a", 5, "x"), act("b", 5), act("a", 5, "y")) == [5, 5]


def test_nested_conditions() -> None:
    plan = journey({"any": [{"all": [did("a"), did("b")]}, did("c")]}, C)
    assert moments(plan, act("a", 1), act("b", 4), act("c", 3)) == [3]
    assert moments(plan, act("a", 1), act("b", 2), act("c", 3)) == [2, 3]


@pytest.mark.parametrize(
    ("operator", "operand", "value", "expected"),
    [
        ("contains", "LOAN", "/a/loan/b", True),
        ("contains", "loan", None, False),
        ("not_contains", "loan", "/a/LOAN", False),
        ("not_contains", "loan", None, True),
        ("starts_with", "/A", "/a/b", True),
        ("ends_with", ".PDF", "x.pdf", True),
        ("equals", "straße", "STRASSE", True),
        ("equals", "a", None, False),
        ("not_equals", "a", None, True),
        ("not_equals", "a", "A", False),
        ("one_of", ("a", "B"), "b", True),
        ("one_of", ("a",), None, False),
        ("matches", "^a.c$", "ABC", True),
        ("matches", "b", "abc", True),
        ("matches", "^b", None, False),
    ],
)
def test_operators(operator: str, operand: str | tuple[str, ...], value: str | None, expected: bool) -> None:
    assert passes(FieldTest("value", operator, operand), value) is expected


def test_types_ignore_case_and_rules_look_at_their_fields() -> None:
    (rule,) = rules_of(
        journey({"any": [{"rule": "visited_page", "page": "/Loan", "channel": "web"}]}).stages[0].condition
    )
    assert meets(act("PageVisit", 1, page="/LOAN", channel="WEB"), rule)
    assert not meets(act("pagevisit", 1, page="/loan"), rule)
    assert not meets(act("landingpage", 1, page="/loan", channel="web"), rule)


def names(*merges: tuple[str, str, int]) -> dict[str, set[str]]:
    found = [Merge(f"m{n}", a, b, at_ms) for n, (a, b, at_ms) in enumerate(merges)]
    return {p.survivor: set(p.contacts) for p in persons(History(merges=found))}


def test_the_survivor() -> None:
    assert names(("A", "B", 1), ("B", "C", 2)) == {"C": {"A", "B", "C"}}
    assert names(("A", "B", 1), ("A", "C", 2)) == {"C": {"A", "B", "C"}}, "A was B by then"
    assert names(("A", "B", 1), ("B", "A", 2)) == {"B": {"A", "B"}}, "a merge that closes a circle changes nothing"
    assert names(("B", "A", 2), ("A", "B", 1)) == {"B": {"A", "B"}}, "whatever the order of arrival"
    assert names(("A", "B", 1), ("C", "D", 2)) == {"B": {"A", "B"}, "D": {"C", "D"}}
    assert names(("A", "B", 1), ("C", "D", 2), ("A", "C", 3)) == {"D": {"A", "B", "C", "D"}}


def test_a_merged_person_walks_once() -> None:
    plan = journey(A, B)
    history = History([act("a", 1, who="ann"), act("b", 2, who="bob")], [Merge("m", "ann", "bob", 99)])
    assert [r.at_ms for r in answer(plan, history).reached["bob"]] == [1, 2]
    assert "ann" not in answer(plan, history).reached


def test_erasure_takes_everything_not_after_it_from_all_contacts_of_the_person() -> None:
    plan = journey(A)
    done = [act("a", 1, who="ann"), act("a", 5, who="bob")]
    merged = [Merge("m", "ann", "bob", 9)]
    gone = answer(plan, History(done, merged, erasures=[Erasure("ann", 5)]))
    assert gone.reached == {"bob": []}
    stays = answer(plan, History(done, merged, erasures=[Erasure("ann", 4)]))
    assert [r.at_ms for r in stays.reached["bob"]] == [5]
    apart = answer(plan, History(done, erasures=[Erasure("ann", 5)]))
    assert [r.at_ms for r in apart.reached["bob"]] == [5]


def test_the_profile_of_the_survivor_newest_wins() -> None:
    history = History(
        [act("a", 1, who="bob")],
        [Merge("m", "ann", "bob", 9)],
        [
            Profile("ann", ("vip",), {}, 99),
            Profile("bob", ("old",), {}, 1),
            Profile("bob", ("new",), {"n": 0}, 2),
            Profile("bob", ("newer",), {"n": 1}, 2),
        ],
    )
    (person,) = persons(history)
    assert person.groups == {"newer"}, "of equally late ones the larger attributes"
    (erased,) = persons(History(history.activities, history.merges, history.profiles, [Erasure("ann", 2)]))
    assert erased.profile is None


def test_results() -> None:
    plan = journey(A, B, C, kpi=4)
    done = [act("a", 0, who=who) for who in ("x", "y", "z", "w")] + [act("b", 2000, who=who) for who in ("x", "y")]
    profile = [Profile("x", ("g",), {}, 0)]
    found = answer(plan, History(done, profiles=profile))
    assert found.results() == [
        StageResult(1, "s1", 4, 1.0, 2, 0.5, 4, 1.0, [], [], {0: 4}),
        StageResult(2, "s2", 2, 0.5, 2, 1.0, 4, 0.5, [2000, 2000], [2000, 2000], {0: 2}),
        StageResult(3, "s3", 0, 0.0, None, None, 4, 0.0, [], [], {}),
    ]
    assert [row.contact_id for row in found.dropped_off(1)] == ["w", "z"]
    assert [row.contact_id for row in found.converted(2)] == ["x", "y"]
    assert found.dropped_off(3) == []
    assert [r.converted for r in found.results("g")] == [1, 1, 0]
    nobody = answer(plan, History())
    assert [(r.converted_ratio, r.dropped_off_ratio, r.kpi_ratio) for r in nobody.results()] == [
        (None, None, 0.0), (None, None, 0.0), (None, None, 0.0),
    ]  # fmt: skip
