"""The sieve lets through every record that could meet a rule, whatever the rule looks for and however the record is written."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agents import intake
from schemas import codec, rules
from schemas.rules import Rule
from state.matching import Matcher
from state.recalculation import by_key
from state.sieve import LOWER, Sieve, texts_of
from streams.blocks import Record, Rows
from tests.properties.test_matching import Anything, some_activities, some_rules
from tests.support.records import block_of

NOW_MS = 1_800_000_000_000


def passing(sieve: Sieve, values: list[bytes | None]) -> list[int]:
    sizes = np.array([-1 if value is None else len(value) for value in values], np.int64)
    starts = np.cumsum([3, *np.maximum(sizes, 0)], dtype=np.int64)[:-1]
    return sieve.passing(b"xyz" + b"".join(value or b"" for value in values) + b"xyz", starts, sizes).tolist()


def written(said: dict[str, Any], ascii_only: bool, spaced: bool) -> bytes:
    return json.dumps(said, ensure_ascii=ascii_only, separators=None if spaced else (",", ":")).encode()


@settings(max_examples=1000, deadline=None)
@given(st.lists(some_rules, max_size=12), st.lists(some_activities, min_size=1, max_size=12), st.booleans(), st.booleans())
def test_whoever_meets_a_rule_passes(all_rules: list[Rule], activities: list[dict[str, Any]], ascii_only: bool, spaced: bool) -> None:
    matcher, sieve = Matcher(by_key(all_rules)), Sieve(all_rules)
    values = [written(said, ascii_only, spaced) for said in activities]
    met = [number for number, value in enumerate(values) if matcher.match(codec.decode_activity(value))]
    assert set(met) <= set(passing(sieve, values))


details = st.fixed_dictionaries(
    {"contact_id": st.sampled_from(["c", "d", "\u00e9"])},
    optional={
        "id": st.sampled_from(["a", "b", "", None, "\u00e9"]),
        "at": st.sampled_from([0, -1, NOW_MS, NOW_MS + 1, "2025-01-01T00:00:00.0009Z", "1969-12-31T23:59:59.9999Z", "2027-01-15T08:00:00.000001Z"]),
    },
)


@settings(max_examples=1000)
@given(
    st.lists(some_rules, max_size=6),
    st.lists(st.tuples(st.builds(lambda a, b: {**a, **b}, some_activities, details), st.booleans(), st.integers(0, 30)), max_size=12),
    st.integers(1, 4),
)
def test_intake_takes_of_what_was_fetched_what_it_takes_of_single_records(
    all_rules: list[Rule], made: list[tuple[dict[str, Any], bool, int]], blocks: int
) -> None:
    matcher = Matcher(by_key(all_rules))
    log = []
    for offset, (said, ascii_only, cut) in enumerate(made):
        value = written(said, ascii_only, spaced=bool(offset % 2))
        log.append(Record(offset, 1, b"c", None if cut == 1 else value[:cut] if cut < 4 else value, (("h", None), ("\u00e9", b"1"))))
    step = len(log) // blocks + 1
    intake.loops.warm()
    rows = Rows(*(block_of(log[at : at + step]) for at in range(0, len(log), step)))
    one = intake.activities(log, matcher, NOW_MS, 0)
    for few in (0, 0, 1 << 30):  # the second time by what is remembered, the third one by one
        other = intake.activities(rows, matcher, NOW_MS, 0, few)
        assert [*one.arrived.items()] == [*other.arrived.items()], "in the order in which they came"
        assert one.arrived.ids(slice(None)) == other.arrived.ids(slice(None))
        assert [(record, str(error)) for record, error in one.refused] == [(record, str(error)) for record, error in other.refused]


anything = st.none() | st.binary(max_size=60) | some_activities.map(lambda said: written(said, ascii_only=True, spaced=False))


@settings(max_examples=500, deadline=None)
@given(st.lists(some_rules, max_size=12), st.lists(anything, max_size=8))
@example([rules.SubmittedForm(form="aa")], [b'"AA"', b'"a', None, b"", b'a"aa"'])
def test_it_looks_as_well_as_a_naive_search(all_rules: list[Rule], values: list[bytes | None]) -> None:
    texts = texts_of(all_rules)

    def naive(value: bytes | None) -> bool:
        if value is None:
            return False
        plain = value.isascii() and b"\\" not in value
        return texts is None or not plain or any(text in value.lower() for text in texts)

    assert passing(Sieve(all_rules), values) == [number for number, value in enumerate(values) if naive(value)]


def test_what_no_activity_meets_lets_nothing_plain_through() -> None:
    assert passing(Sieve([]), [b'{"type":"pagevisit"}', b'{"type":"p\\u0061gevisit"}', "é".encode()]) == [1, 2]
    assert texts_of([Anything(made_up="a field that activities do not have")]) == frozenset()


@pytest.mark.parametrize(("rule", "texts"), [
    (rules.VisitedPage(page="/Loans"), {b'"/loans"'}),
    (rules.VisitedUrl(url="utm=x"), {b"utm=x"}),
    (rules.VisitedUrl(url={"starts_with": "https"}), {b'"https'}),
    (rules.VisitedUrl(url={"ends_with": ".pdf"}), {b'.pdf"'}),
    (rules.VisitedUrl(url="a"), {b'"pagevisit"'}),  # which says more than a letter
    (rules.ClickedEmailLink(url="spring", email="spring-2026"), {b'"spring-2026"'}),  # the longer one
    (rules.VisitedUrl(url={"matches": "a.*b"}), {b'"pagevisit"'}),
    (rules.VisitedUrl(url={"not_contains": "a long text of many letters"}), {b'"pagevisit"'}),
    (rules.VisitedPage(page={"one_of": ["/a/b/c/d/e/f", "/g/h/i/j/k/l"]}), {b'"/a/b/c/d/e/f"', b'"/g/h/i/j/k/l"'}),
    (rules.VisitedPage(page={"one_of": ["/a/b/c/d/e/f", "/é"]}), {b'"/a/b/c/d/e/f"'}),  # the other is never plain
    (rules.VisitedPage(page="straße nach Rom"), {b'"strasse nach rom"'}),
    (rules.VisitedPage(page='say "hello"'), set()),
    (rules.PerformedActivity(activity="Click"), {b'"click"'}),
])  # fmt: skip
def test_the_text_is_the_one_that_says_most(rule: Rule, texts: set[bytes]) -> None:
    assert texts_of([rule]) == texts


def test_a_rule_that_says_nothing_lets_everything_through() -> None:
    sieve = Sieve([Anything(page={"matches": "x"}), rules.BecameMember()])
    assert sieve.texts is None
    assert passing(sieve, [b"{}", None, b""]) == [0, 2]


def test_many_texts_are_found_as_few_are() -> None:
    many = [rules.VisitedUrl(url=f"/campaign/{number:05d}/start") for number in range(5_000)]
    values = [b'{"type":"pagevisit","url":"https://example.com/Campaign/%05d/START"}' % number for number in range(4_990, 5_010)]
    assert passing(Sieve(many), values) == list(range(10))


def test_a_value_outside_of_its_data_is_refused() -> None:
    sieve = Sieve([rules.BecameMember()])
    for start, size in ((-1, 2), (5, 6), (11, 0)):
        with pytest.raises(IndexError):
            sieve.passing(bytes(10), np.array([start]), np.array([size]))


def test_small_letters_are_those_of_ascii() -> None:
    assert bytes(LOWER.tolist()) == bytes(range(256)).lower()


@settings(max_examples=300)
@given(st.sets(st.text("abA", min_size=2, max_size=7), min_size=1, max_size=40), st.lists(st.text("abAB", max_size=12), max_size=12))
def test_texts_with_the_same_beginning_are_told_apart(operands: set[str], values: list[str]) -> None:
    sieve = Sieve([Anything(page={"contains": operand}) for operand in operands])
    naive = [n for n, value in enumerate(values) if any(operand.lower() in value.lower() for operand in operands)]
    assert passing(sieve, [value.encode() for value in values]) == naive
