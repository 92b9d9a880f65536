"""What is right is read, and comes back as it went; whatever else comes is refused, and hurts nobody."""

import copy
import json
import re

import jsonschema_rs
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import journey as journeys
from schemas.errors import Refused
from schemas.journey import JourneyRefused, body_digest, journey_json, parse_journey
from schemas.journey_schema import document
from schemas.rules import BUILT_IN
from tests.support.example import EXAMPLE, GONE, MEMBER, deep, only, rules_, stages_, with_

SCHEMA = jsonschema_rs.validator_for(document())


def test_the_example_of_the_contract():
    journey = parse_journey(EXAMPLE)
    assert parse_journey(yaml.safe_load(yaml.safe_dump(EXAMPLE))) == journey
    assert SCHEMA.is_valid(EXAMPLE)
    assert (journey.id, journey.name, journey.scheduled_recalculation, journey.version) == (
        EXAMPLE["id"],
        EXAMPLE["name"],
        True,
        None,
    )
    assert [(stage.name, stage.kpi) for stage in journey.stages] == [(s["name"], s["kpi"]) for s in EXAMPLE["stages"]]
    first = journey.stages[0].condition.members[0]
    assert first.describe() == 'visited page "/campaign/smb" in channel "business-banking"'
    inner = journey.stages[3].condition.members[1]
    assert (inner.op, [rule.name for rule in inner.members]) == ("all", ["visited_url", "became_member"])
    assert inner.members[0].describe() == 'visited a URL ending with ".pdf"'


def test_the_limits_themselves_are_allowed():
    for said in (
        with_("id", "a-0" + "x" * 61),
        with_("name", "é" * 200),
        with_("stages", stages_(10)),
        with_("stages", stages_(1)),
        with_("stages.2.name", "x" * 200),
        with_("stages.2.kpi", 1),
        with_("stages.2.kpi", None),
        with_("stages.2.kpi", GONE),
        with_("scheduled_recalculation", GONE),
        with_("stages.2.condition", deep(5)),
        with_("stages.2.condition", {"any": rules_(50)}),
        only({"rule": "visited_url", "url": {"one_of": ["a", "b"]}, "channel": None}),
        only({"rule": "landed_on_page", "page": {"matches": "^/a"}, "url": {"not_equals": "b"}}),
        only({"rule": "performed_activity", "activity": "PageVisit"}),
    ):
        parse_journey(said)
        assert SCHEMA.is_valid(said)


def test_what_the_api_adds_is_no_mistake():
    journey = parse_journey({**EXAMPLE, "version": 3, "saved_at": "2026-01-02T03:04:05.678Z", "status": "live"})
    assert (journey.version, journey.saved_at) == (3, 1_767_323_045_678)
    said = journey_json(journey)
    assert (said["version"], said["saved_at"]) == (3, "2026-01-02T03:04:05.678Z")
    assert parse_journey(said) == journey


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
operators = st.one_of(
    texts,
    st.builds(
        lambda op, t: {op: t},
        st.sampled_from(["contains", "not_contains", "starts_with", "ends_with", "equals", "not_equals"]),
        texts,
    ),
    st.builds(lambda ts: {"one_of": ts}, st.lists(texts, min_size=1, max_size=3)),
)
some_rules = st.one_of(
    st.fixed_dictionaries(
        {"rule": st.just("visited_page"), "page": operators}, optional={"channel": operators | st.none()}
    ),
    st.fixed_dictionaries(
        {"rule": st.just("landed_on_page"), "url": operators}, optional={"page": operators | st.none()}
    ),
    st.fixed_dictionaries({"rule": st.just("performed_activity"), "activity": texts}, optional={"value": operators}),
    st.just(MEMBER),
)
conditions = st.recursive(
    st.builds(
        lambda op, rows: {op: rows}, st.sampled_from(["any", "all"]), st.lists(some_rules, min_size=1, max_size=3)
    ),
    lambda inner: st.builds(
        lambda op, rows: {op: rows},
        st.sampled_from(["any", "all"]),
        st.lists(inner | some_rules, min_size=1, max_size=3),
    ),
    max_leaves=4,
)
good_stages = st.lists(
    st.fixed_dictionaries(
        {"name": texts, "condition": conditions}, optional={"kpi": st.none() | st.integers(1, 10**6)}
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda s: s["name"],
)
good_journeys = st.fixed_dictionaries(
    {"id": st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True), "name": texts, "stages": good_stages},
    optional={"scheduled_recalculation": st.booleans(), "version": st.integers(1, 9), "status": st.just("live")},
)


@settings(max_examples=200, deadline=None)
@given(good_journeys)
def test_a_journey_comes_back_as_it_went(said):
    assert SCHEMA.is_valid(said) or depth(said) > 5
    try:
        journey = parse_journey(said)
    except JourneyRefused as error:
        refused = error
    else:
        written = json.loads(json.dumps(journey_json(journey)))
        assert SCHEMA.is_valid(written)
        assert parse_journey(written) == journey
        assert (
            body_digest(parse_journey(written))
            == body_digest(journey)
            == body_digest(journey.model_copy(update={"version": 8}))
        )
        assert body_digest(journey.model_copy(update={"name": journey.name + "!"})) != body_digest(journey)
        return
    assert {error.code for error in refused.errors} <= {"too_deep", "too_many_rules"}


def depth(said):
    def of(condition):
        members = next(iter(condition.values()))
        return 1 + max((of(m) for m in members if "rule" not in m), default=0)

    return max(of(stage["condition"]) for stage in said["stages"])


# -- harm -------------------------------------------------------------------------------------------------------------------

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.one_of(st.text(), st.integers(), st.none(), st.booleans()), inner, max_size=4)
    ),
    max_leaves=10,
)
KEYS = [
    "any",
    "all",
    "rule",
    "stages",
    "name",
    "id",
    "condition",
    "page",
    "url",
    "contains",
    "one_of",
    "matches",
    "kpi",
    "channel",
    "activity",
]
likely = st.recursive(
    junk | st.sampled_from(["visited_page", "performed_activity", "landed_on_page", "a", "("]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw):
    """A journey of which one place is something else."""
    said = copy.deepcopy(draw(good_journeys))
    places = []

    def walk(value):
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    walk(said)
    place, key = draw(st.sampled_from(places))
    place[key] = draw(likely)
    return said


@settings(max_examples=1500, deadline=None)
@given(junk | likely | damaged())
def test_whatever_comes_is_a_journey_or_refused(said):
    try:
        journey = parse_journey(said)
    except JourneyRefused as error:
        refused = error
    else:
        assert parse_journey(journey_json(journey)) == journey
        return
    for error in refused.errors:
        assert isinstance(error, Refused)
        assert re.fullmatch(r"[a-z_]+", error.code)
        assert 0 < len(error.message) < 1000
        assert error.message.isprintable()
        error.message.encode()
        (error.path or "").encode()


def bomb(make, levels=100_000):
    said = "x"
    for _ in range(levels):
        said = make(said)
    return said


def cyclic():
    said = {"any": []}
    said["any"].append(said)
    return said


def laughs(levels, wide):
    """A small YAML file whose aliases make it endless."""
    said = {"any": []}
    for _ in range(levels):
        said = {"any": [said] * wide}
    return said


@pytest.mark.parametrize(
    "make",
    [
        lambda: bomb(lambda inner: [inner]),
        lambda: bomb(lambda inner: {"any": [inner]}),
        lambda: bomb(lambda inner: {"condition": inner}),
        cyclic,
        lambda: laughs(30, 1000),
        lambda: {"any": [MEMBER] * 1_000_000},
        lambda: {"any": [None] * 1_000_000},
        lambda: {"any": [{"any": []}] * 1_000_000},
        lambda: {"any": [{"all": [MEMBER] * 40}] * 100_000},
        lambda: {str(i): i for i in range(1_000_000)},
        lambda: {"any": [{"rule": "visited_page", "page": bomb(lambda inner: {"contains": inner})}]},
        lambda: {"any": [{"rule": "visited_page", **{str(i): i for i in range(100_000)}}]},
        lambda: {"any": [{"rule": "visited_page", "page": {str(i): i for i in range(100_000)}}]},
        lambda: {"any": [{"rule": "visited_page", "page": {"one_of": [5] * 1_000_000}}]},
    ],
)
def test_bombs_are_refused(make):
    bad = make()
    for said in (
        bad,
        {"stages": bad},
        with_("stages.2", bad),
        with_("stages.2.condition", bad),
        {**EXAMPLE, "name": bad},
    ):
        with pytest.raises(JourneyRefused) as refused:
            parse_journey(said)
        assert len(refused.value.errors) <= journeys.MAX_ERRORS
    while (
        isinstance(bad, dict | list) and bad and bad is not MEMBER
    ):  # taken apart by hand: the interpreter would do it recursively
        bad = bad.popitem()[1] if isinstance(bad, dict) else bad.pop()


def test_every_rule_of_the_catalogue_can_be_said():
    given_ = {
        "visited_page": {"page": "/a"},
        "visited_url": {"url": "/a"},
        "landed_on_page": {"page": "/a"},
        "submitted_form": {"form": "a"},
        "clicked_email_link": {"url": "a"},
        "performed_activity": {"activity": "a"},
        "became_member": {},
    }
    assert set(given_) == {rule.name for rule in BUILT_IN}
    for name, parameters in given_.items():
        parse_journey(only({"rule": name, **parameters}))
