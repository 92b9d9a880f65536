"""Hypothesis strategies for the pure core: small worlds, in which equal times, repeated ids and clashes are common."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from schemas.hashing import h8
from schemas.journey import Journey, parse_journey
from schemas.rules import Rule, rule_key
from state.evidence import Evidence, hit
from state.identity import Merge, Profile
from state.oracle import Activity, meets
from state.progress import rules_of

RULES: tuple[dict[str, Any], ...] = (
    {"rule": "performed_activity", "activity": "a"},
    {"rule": "performed_activity", "activity": "a", "value": "1"},
    {"rule": "performed_activity", "activity": "A", "value": {"not_contains": "2"}},
    {"rule": "performed_activity", "activity": "b", "value": {"one_of": ["x", "1"]}},
    {"rule": "visited_page", "page": {"starts_with": "/l"}},
    {"rule": "visited_page", "page": "/loan", "channel": "web"},
    {"rule": "became_member"},
)

CONTACTS = ("ann", "bob", "cy", "dee", "eve", "flo", "gus")

times = st.integers(0, 9)


@st.composite
def conditions(draw: st.DrawFn, depth: int = 1) -> dict[str, Any]:
    deeper = st.nothing() if depth == 3 else conditions(depth + 1)
    return {
        draw(st.sampled_from(("any", "all"))): draw(st.lists(st.sampled_from(RULES) | deeper, min_size=1, max_size=3))
    }


@st.composite
def journeys(draw: st.DrawFn) -> Journey:
    found = draw(st.lists(conditions(), min_size=1, max_size=4))
    return parse_journey(
        {"id": "j", "name": "j", "stages": [{"name": f"s{i}", "condition": c} for i, c in enumerate(found)]}
    )


@st.composite
def activities(draw: st.DrawFn, who: tuple[str, ...] = CONTACTS) -> Activity:
    type_ = draw(st.sampled_from(("a", "A", "b", "pagevisit", "memberregistration", "click")))
    fields = {
        "value": draw(st.sampled_from((None, "1", "12", "X"))),
        "page": draw(st.sampled_from((None, "/loan", "/LOAN", "/other"))),
        "channel": draw(st.sampled_from((None, "web"))),
    }
    return Activity(draw(st.sampled_from(who)), type_, draw(times), f"act-{draw(st.integers(0, 40))}", fields)


hits = st.builds(lambda at_ms, n: hit(at_ms, h8(f"act-{n}")), times, st.integers(0, 12))
rule_keys = st.sampled_from([bytes([n]) * 8 for n in range(4)])
blobs = st.sets(hits, min_size=1, max_size=8).map(lambda found: b"".join(sorted(found)))
hit_sets = st.dictionaries(rule_keys, blobs, max_size=4)

merges = st.builds(
    lambda at_ms, n, pair: Merge(at_ms, h8(f"m-{n}"), pair[0], pair[1]),
    times, st.integers(0, 5), st.lists(st.sampled_from(CONTACTS), min_size=2, max_size=2, unique=True),
)  # fmt: skip
profiles = st.builds(
    Profile,
    times,
    st.sampled_from(("{}", '{"n":1}', '{"n":2}')),
    st.lists(st.sampled_from(("smb", "vip")), max_size=2, unique=True).map(tuple),
)


def evidence_of(journey: Journey, done: list[Activity]) -> Evidence:
    """The evidence that *done* gives for the rules of *journey*, rule by rule."""
    evidence = Evidence()
    for rule in all_rules(journey):
        for one in done:
            if meets(one, rule):
                evidence.add(rule_key(rule), hit(one.at_ms, h8(one.id)))
    return evidence


def all_rules(journey: Journey) -> list[Rule]:
    return [rule for stage in journey.stages for rule in rules_of(stage.condition)]
