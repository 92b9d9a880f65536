"""Joining many values of a record at once is joining them one after the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agents.heard import Heard
from state import joining, records
from state.evidence import Evidence, hit
from streams import blocks
from streams.blocks import Rows
from tests.support.loopback import Record
from tests.support.records import block_of

joining.loops.warm()
blocks.loops.warm()

RULES = [bytes([n]) * 8 for n in range(3)]
HITS = [hit(at, bytes([n]) * 8) for at in range(4) for n in range(2)]


def _evidence(facts: list[tuple[bytes, bytes]], marked: bool, has_identity: bool) -> bytes:
    evidence = Evidence()
    for rule, one in facts:
        evidence.add(rule, one)
    if marked and facts:
        evidence.marked |= {facts[0][0]}
    return records.encode_evidence(evidence, has_identity)


HOLDERS = st.builds(_evidence, st.lists(st.tuples(st.sampled_from(RULES), st.sampled_from(HITS)), max_size=8), st.booleans(), st.booleans())
ALIASES = st.sampled_from([records.encode_alias("b")])


@given(st.lists(st.one_of(HOLDERS, HOLDERS, HOLDERS, ALIASES, st.none()), min_size=1, max_size=6))
def test_all_at_once_is_one_after_the_other(values: list[bytes | None]) -> None:
    key = records.EVIDENCE + b"a"
    joined, left = values[0], None
    for value in values[1:]:
        gone = joining.lost(key, joined, value)
        if gone is not None:
            left = joining.join(key, left, gone) or gone
        joined = joining.join(key, joined, value)
    together, left_together = joining.join_all(key, values)
    assert _same(together, joined)
    assert _same(left_together, left)


def _unsettled(values: dict[bytes, list[bytes | None]], old: int) -> list[bytes]:
    """Of *values*, as the changelog has them but for the first *old* of each key."""
    log = [
        Record(0, 1, key, value) for turn in range(9) for key, found in values.items() for value in found[old + turn : old + turn + 1]
    ]
    for n, record in enumerate(log):
        record.offset = n
    halves = Rows(block_of(log[: len(log) // 2]), block_of(log[len(log) // 2 :]))
    heard, plain = Heard(halves), Heard(log)
    assert heard.last == plain.last == {key: found[-1] for key, found in values.items() if len(found) > old}
    assert list(heard.last) == list(plain.last)
    for key in heard.last:
        assert heard.values(key) == plain.values(key) == values[key][old:]
    return heard.unsettled({key: found[0] for key, found in values.items() if key in heard.last and old and found[0] is not None})


VALUES = st.lists(st.one_of(HOLDERS, HOLDERS, HOLDERS, ALIASES, st.none()), min_size=1, max_size=4)


@given(st.lists(VALUES, max_size=4), st.booleans(), st.integers(0, 1))
def test_what_is_settled_is_the_last_record(groups: list[list[bytes | None]], grown: bool, old: int) -> None:
    values: dict[bytes, list[bytes | None]] = {records.EVIDENCE + b"%d" % n: found for n, found in enumerate(groups)}
    if grown:  # as it is with one owner: each record says what those before it do
        for key, found in values.items():
            values[key] = [joining.join_all(key, found[: n + 1])[0] for n in range(len(found))]
    values[records.IDENTITY + b"0"] = [None, b"x", None]
    assert set(_unsettled(values, old)) == {
        key for key, found in values.items()
        if len(found) > old and (
            key[:1] != records.EVIDENCE or any(value is None or records.pointer_of(value) is not None for value in found[(found[0] is None) * old :])
            or joining.join_all(key, found)[0] != found[-1]
        )
    }  # fmt: skip


@given(HOLDERS, st.integers(0, 200), st.binary(max_size=3))
def test_records_that_are_not_as_long_as_they_say_are_left_to_who_explains_them(record: bytes, cut: int, more: bytes) -> None:
    key, broken = records.EVIDENCE + b"a", record[: 4 + cut] + more
    if len(broken) != len(record):
        for found in ([broken], [broken, record], [record, broken]):
            assert _unsettled({key: found}, 0) == [key]
            assert _unsettled({key: found}, 1) == ([key] if len(found) > 1 else [])


def _same(one: bytes | None, other: bytes | None) -> bool:
    """Equal but for the order of rules."""
    if one is None or other is None or records.pointer_of(one) is not None or records.pointer_of(other) is not None:
        return one == other
    (a, x), (b, y) = records.decode_evidence(one), records.decode_evidence(other)
    return (a.hits, a.marked, x) == (b.hits, b.marked, y)
