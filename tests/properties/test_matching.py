"""The matcher answers as testing rule by rule does, however many rules there are, whatever they share and whatever it remembers."""

import json
from time import perf_counter
from typing import ClassVar

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import codec, rules
from schemas.activity import FIELDS
from schemas.rules import Contains, FieldTest, Rule, rule_key
from schemas.text import OPERATORS
from schemas.times import DAY_MS
from state import matching, oracle
from state.matching import Matcher
from state.recalculation import by_key

# Small, with texts inside each other and letters whose cases are odd: ß folds to ss, K (Kelvin) to k, İ to i and a dot.
PIECES = ["a", "A", "b", "ab", "aB", "/", ".pdf", "ß", "SS", "\u212a", "k", "İ", "i̇", "é", "É", "\x02", "日", " "]
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
patterns = st.sampled_from(
    ["a.*b", "^a", "b$", "[ab]+", "(?-i)A", r"\.pdf$", "", "s", "(a|b){2,3}", "é", "^$", "ß", "^日"]
).filter(bool)
text_tests = st.one_of(
    texts,
    st.builds(lambda op, t: {op: t}, st.sampled_from([o for o in OPERATORS if o not in ("one_of", "matches")]), texts),
    st.builds(lambda ts: {"one_of": ts}, st.lists(texts, min_size=1, max_size=3)),
    st.builds(lambda p: {"matches": p}, patterns),
)
maybe = st.none() | text_tests
TYPES = ["pagevisit", "PageVisit", "landingpage", "click", "Custom", "custom", "memberregistration", "nobody"]


class Anything(Rule):
    """A rule of any type, whose tests are given, on any field."""

    name = "anything"
    sentence = "anything {page}"
    page: Contains | None = None
    url: Contains | None = None
    made_up: Contains | None = None


class LongUrl(Rule):
    """A rule with own code beside its tests."""

    name = "long_url"
    sentence = "a URL of more than {longer_than} characters"
    types = frozenset({"pagevisit", "click"})
    longer_than: int
    page: Contains | None = None

    def accepts(self, activity):
        return activity.url is not None and len(activity.url) > self.longer_than


class Broken(Rule):
    name = "broken"
    sentence = "broken"
    types = frozenset({"click"})
    calls: ClassVar[int] = 0

    def accepts(self, activity):
        raise RuntimeError("a mistake of another distribution")


some_rules = st.one_of(
    st.builds(rules.VisitedPage, page=text_tests, channel=maybe),
    st.builds(rules.VisitedUrl, url=text_tests, channel=maybe),
    st.builds(lambda page, url: rules.LandedOnPage(page=page, url=url), text_tests, maybe),
    st.builds(rules.PerformedActivity, activity=st.sampled_from(TYPES), value=maybe),
    st.just(rules.BecameMember()),
    st.builds(Anything, page=maybe, url=maybe, made_up=maybe),
    st.builds(LongUrl, longer_than=st.integers(0, 4), page=maybe),
)
values = st.none() | texts | st.just("")
some_activities = st.builds(
    lambda type_, fields: {"contact_id": "c", "type": type_, "at": 1_700_000_000_001, "id": "a", **fields},
    st.sampled_from(TYPES),
    st.fixed_dictionaries(dict.fromkeys(("page", "url", "channel", "value"), values)),
)


def naive(all_rules, said):
    """Rule by rule, as the oracle does it."""
    activity = oracle.Activity("c", said["type"], 1, "a", {f: said.get(f) for f in FIELDS})
    return {rule_key(rule) for rule in all_rules if oracle.meets(activity, rule)}


def decoded(said):
    return codec.decode_activity(json.dumps(said).encode())


@settings(max_examples=1000, deadline=None)
@given(st.lists(some_rules, max_size=25), st.lists(some_activities, min_size=1, max_size=8))
def test_the_matcher_meets_what_testing_rule_by_rule_meets(all_rules, activities):
    matcher = Matcher(by_key(all_rules))
    for said in activities * 2:  # the second time from memory
        met = matcher.match(decoded(said))
        assert len(met) == len(set(met))
        assert set(met) == naive(all_rules, said)


@settings(max_examples=300, deadline=None)
@given(st.lists(some_rules, max_size=12), st.lists(some_activities, min_size=1, max_size=12))
def test_forgetting_changes_nothing(all_rules, activities):
    kept, matching.MEMO_ITEMS = matching.MEMO_ITEMS, 3
    kept_known, matching.KNOWN_ITEMS = matching.KNOWN_ITEMS, 3
    kept_types, matching.TYPES_KEPT = matching.TYPES_KEPT, 2
    try:
        matcher = Matcher(by_key(all_rules))
        for said in activities:
            assert set(matcher.match(decoded(said))) == naive(all_rules, said)
            matcher.remember(said["type"].encode(), matcher.match(decoded(said)))
            assert sum(map(len, matcher._memo.dicts)) <= 3
            assert sum(1 + len(keys) for keys in matcher.known.values()) <= 3 or len(matcher.known) == 1
            assert len(matcher._types) <= 2
    finally:
        matching.MEMO_ITEMS, matching.TYPES_KEPT, matching.KNOWN_ITEMS = kept, kept_types, kept_known


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(OPERATORS)), texts, texts, values, patterns)
def test_a_test_passes_as_the_oracle_says(operator, one, other, value, pattern):
    operand = {"one_of": (one, other), "matches": pattern}.get(operator, one)
    test = FieldTest("page", operator, operand)
    assert test.passes(value) == oracle.passes(test, value)


def test_the_operators_are_those_that_the_oracle_knows():
    for operator in OPERATORS:
        oracle.passes(FieldTest("page", operator, ("x",) if operator == "one_of" else "x"), "x")
    for operator, row in OPERATORS.items():
        assert oracle.passes(FieldTest("page", operator, "x"), None) == row.negative


class InTheMorning(Rule):
    name = "in_the_morning"
    sentence = "in the morning (UTC)"

    def accepts(self, activity):
        return activity.at % 86_400_000 < 12 * 3_600_000


def test_own_code_gets_the_time_in_milliseconds_however_it_was_written():
    matcher = Matcher(by_key([InTheMorning()]))
    for at, met in (
        (DAY_MS * 20_000 + 1, 1),
        (DAY_MS * 20_000 + 13 * 3_600_000, 0),
        ("2026-01-02T09:00:00Z", 1),
        ("2026-01-02T12:30:00+01:00", 1),
        ("2026-01-02T12:00:00Z", 0),
    ):
        assert len(matcher.match(decoded({"contact_id": "c", "type": "t", "at": at}))) == met


def test_own_code_that_fails_is_counted_and_stops_nothing():
    matcher = Matcher(by_key([Broken(), rules.PerformedActivity(activity="click")]))
    met = matcher.match(decoded({"contact_id": "c", "type": "Click", "at": 1_700_000_000_001}))
    assert met == (rule_key(rules.PerformedActivity(activity="click")),)
    assert matcher.faults == {"broken": 1}


def test_patterns_that_overflow_a_set_are_searched_for_all_the_same():
    sources = [f"(a|b){{0,30}}{i}.*[x-z]{{5,40}}.*q{i}" for i in range(1200)]
    whole = re2.Set.SearchSet(matching.RE2_OPTIONS)
    for source in sources:
        whole.Add(source)
    with pytest.raises(re2.error):
        whole.Compile()
    matcher = Matcher(by_key(rules.VisitedUrl(url={"matches": source}) for source in sources))
    for number in (0, 17, 1199):
        url = f"abba{number} {'xyz' * 5} q{number}"
        met = matcher.match(decoded({"contact_id": "c", "type": "pagevisit", "at": 1_700_000_000_001, "url": url}))
        assert set(met) == {
            rule_key(rules.VisitedUrl(url={"matches": source}))
            for source in sources
            if re2.search("(?i)" + source, url)
        }
        assert met


def test_a_set_that_gives_up_while_searching_is_noticed():
    """`re2.Set.Match` answers "nothing" when its memory ends; the pattern that is always found tells the difference."""
    found = matching.Patterns([("a.c", matching.Found((b"1" * 8,))), ("b", matching.Found((b"2" * 8,)))])

    class GivesUp:
        def Match(self, text):
            return None

    found._set = GivesUp()
    assert [f.met for f in found.find("xabcx")] == [(b"1" * 8,), (b"2" * 8,)]
    assert [f.met for f in found.find("xby")] == [(b"2" * 8,)]


# -- what it costs ----------------------------------------------------------------------------------------------------------


def seconds(matcher, activities):
    best = float("inf")
    for _ in range(7):
        began = perf_counter()
        for activity in activities:
            matcher.match(activity)
        best = min(best, perf_counter() - began)
    return best


def many_rules(number):
    """That nothing meets: a quarter each of pages with a shared channel, of texts inside URLs, at their start, at their end."""
    quarter = range(number // 4)
    return [
        *(rules.VisitedPage(page=f"/none/{i}", channel=f"channel-{i % 7}") for i in quarter),
        *(rules.VisitedUrl(url=f"nowhere/{i}") for i in quarter),
        *(rules.VisitedUrl(url={"starts_with": f"https://none/{i}"}) for i in quarter),
        *(rules.VisitedUrl(url={"ends_with": f"none/{i}"}) for i in quarter),
    ]


@pytest.mark.parametrize("remembered", [True, False])
def test_the_cost_of_an_activity_does_not_grow_with_the_rules_that_exist(remembered, monkeypatch):
    if not remembered:
        monkeypatch.setattr(matching, "MEMO_CHARS", -1)
    fields = [
        {"page": f"/campaign/{i}", "url": f"https://bank.example/{i}?utm=ads", "channel": f"channel-{i % 7}"}
        for i in range(500)
    ]
    activities = [decoded({"contact_id": "c", "type": "pagevisit", "at": 1_700_000_000_001, **f}) for f in fields]
    few, many = Matcher(by_key(many_rules(40))), Matcher(by_key(many_rules(10_000)))
    assert seconds(many, activities) < 3 * seconds(
        few, activities
    )  # room for a busy machine; rule by rule it would be 250
