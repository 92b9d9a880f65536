"""Handoffs on the wire: what workers say comes back as it was; what no worker says is refused, whatever the bytes are."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import entries, handoffs
from schemas.errors import Refused
from schemas.hashing import h8
from schemas.times import FIRST_MS, LAST_MS
from state.evidence import MAX_HALVINGS, Evidence, hit
from state.identity import Merge, Profile
from state.messages import MERGE, Join, Origin, Said, Unite
from state.records import EVIDENCE, HALVINGS_SHIFT, encode_evidence

RULE = b"12345678"
FIRST, LAST = hit(FIRST_MS, h8("a")), hit(LAST_MS, h8("z"))
ORIGIN = Origin("waypost.contact-merges", 3, 9, None, b"{}", (("trace", None), ("trace", b"\xff")))

SAID = [
    Join("c", {RULE: FIRST + LAST}, frozenset((RULE, b"gone now")), ids={FIRST: "a"}),
    Join("c" * 200, {RULE: FIRST}, members=("🙂" * 200,), merges=(Merge(0, h8("m"), "a", "b"),), profiles={"p": Profile(-1, '{"a":1}', ("g",))},
         erased_at_ms=-1, cause=MERGE, cause_id="m", part="c", said={"j": Said(2, True, ("s",))}),
    Unite("c", "d"),
    Unite("c", "d", (Merge(0, h8("m"), "c", "d"),), "m", ORIGIN),
]  # fmt: skip


@pytest.mark.parametrize("message", SAID)
def test_what_workers_say_comes_back_as_it_was(message: Join | Unite) -> None:
    assert handoffs.decode(handoffs.encode(message)) == message


UNSOUND: dict[str, Any] = {
    "half a hit": Join("c", {RULE: FIRST[:9]}),
    "a hit and a half": Join("c", {RULE: FIRST + FIRST[:8]}),
    "hits that are not sorted": Join("c", {RULE: LAST + FIRST}),
    "a hit twice": Join("c", {RULE: FIRST + FIRST}),
    "a hit before the calendar": Join("c", {RULE: bytes(16)}),
    "a hit after the calendar": Join("c", {RULE: b"\xff" * 16}),
    "a short rule key": Join("c", {b"1": FIRST}),
    "a long rule key": Join("c", {RULE * 2: FIRST}),
    "a short key of a marked rule": Join("c", {RULE: FIRST}, frozenset((b"1",))),
    "an unknown cause": Join("c", {RULE: FIRST}, cause="whim"),
    "an erasure beyond 63 bits": Join("c", erased_at_ms=2**63),
    "a profile that is not JSON": Join("c", profiles={"c": Profile(1, "{", ())}),
    "a profile that is a list": Join("c", profiles={"c": Profile(1, "[]", ())}),
    "a profile beyond the calendar": Join("c", profiles={"c": Profile(2**62, "{}", ())}),
    "a profile of nobody": Join("c", profiles={"": Profile(1, "{}", ())}),
    "nobody": Join("", {RULE: FIRST}),
    "a long id": Join("c" * 201, {RULE: FIRST}),
    "a nameless member": Join("c", members=("",)),
    "a nameless part": Join("c", {RULE: FIRST}, part=""),
    "a merge with a short hash": Join("c", merges=(Merge(1, b"1", "a", "b"),)),
    "a merge beyond the calendar": Join("c", merges=(Merge(2**62, h8("m"), "a", "b"),)),
    "a merge of nobody": Unite("c", "d", (Merge(1, h8("m"), "", "b"),), "m", ORIGIN),
    "a merge from nowhere": Unite("c", "d", (Merge(1, h8("m"), "c", "d"),), "m"),
    "a union with nobody": Unite("c", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSOUND)
def test_what_decodes_and_no_worker_says_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="not a handoff"):
        handoffs.decode(handoffs.encode(UNSOUND[name]))


@given(st.binary(max_size=200))
def test_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(Refused):
        handoffs.decode(raw)


@given(st.sampled_from(SAID), st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_says_something_else(message: Join | Unite, at: int, byte: int) -> None:
    raw = bytearray(handoffs.encode(message))
    raw[at % len(raw)] = byte
    try:
        found = handoffs.decode(bytes(raw))
    except Refused:
        return
    assert handoffs.decode(handoffs.encode(found)) == found


def test_another_format_is_named() -> None:
    later = msgspec.msgpack.encode((2, "join", ["c"]))
    with pytest.raises(Refused, match="format 2"):
        handoffs.decode(later)


@pytest.mark.parametrize("halvings", [-1, MAX_HALVINGS + 1, 15, 16, 1 << 40])
def test_hits_that_no_worker_cuts_so_are_refused(halvings: int) -> None:
    """A record has four bits for it, and a limit of less than two hits would make hits up."""
    assert handoffs.unsound_join(Join("c", {b"8 bytes.": FIRST}, halvings=halvings))
    assert handoffs.unsound_join(Join("c", {b"8 bytes.": FIRST}, halvings=MAX_HALVINGS)) is None


@pytest.mark.parametrize("halvings", range(MAX_HALVINGS + 1, 16))
def test_a_changelog_record_of_such_hits_is_refused(halvings: int) -> None:
    record = bytearray(encode_evidence(Evidence({b"8 bytes.": FIRST}), has_identity=False))
    assert entries.refusal(EVIDENCE + b"c", bytes(record)) is None
    record[1] |= halvings << HALVINGS_SHIFT
    assert entries.refusal(EVIDENCE + b"c", bytes(record))
