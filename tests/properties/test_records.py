"""Joining many values of a record at once is joining them one after the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from state import records
from state.evidence import Evidence, hit

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
        gone = records.lost(key, joined, value)
        if gone is not None:
            left = records.join(key, left, gone) or gone
        joined = records.join(key, joined, value)
    together, left_together = records.join_all(key, values)
    assert _same(together, joined)
    assert _same(left_together, left)


def _same(one: bytes | None, other: bytes | None) -> bool:
    """Equal but for the order of rules."""
    if one is None or other is None or records.pointer_of(one) is not None or records.pointer_of(other) is not None:
        return one == other
    (a, x), (b, y) = records.decode_evidence(one), records.decode_evidence(other)
    return (a.hits, a.marked, x) == (b.hits, b.marked, y)
