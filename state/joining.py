"""Joining: what several records of one contact come to, and what that leaves out (design, section 5). Pure; layouts are those of `records`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from schemas.compiled import Array, Loops, check_inside, compiled
from schemas.times import FIRST_MS, LAST_MS
from schemas.wire import MAX_ID

from .evidence import HIT_BYTES, MAX_HALVINGS, Evidence, moment
from .identity import Identity
from .messages import MERGE, Join
from .records import (
    ALIAS,
    COUNT,
    EVIDENCE,
    HALVINGS_SHIFT,
    HAS_IDENTITY,
    HEAD,
    IDENTITY,
    MARKED,
    RULE,
    VERSION,
    UnknownVersion,
    decode_evidence,
    decode_identity,
    encode_evidence,
    encode_identity,
    pointer_of,
)  # fmt: skip

KIND = EVIDENCE[0]
FIRST, LAST = (int.from_bytes(moment(at_ms), "big") for at_ms in (FIRST_MS, LAST_MS))


def join(key: bytes, old: bytes | None, new: bytes | None) -> bytes | None:
    """The join of two values of one record, for recovery (design, section 5).

    An alias is above every holder; holders unite. A tombstone in the log is only ever that of an identity whose contact became an alias.
    """
    if old is None or new is None or old == new:
        return new
    if key[:1] == EVIDENCE:
        if pointer_of(old) is not None:
            return old
        if pointer_of(new) is not None:
            return new
        evidence, a = decode_evidence(old)
        more, b = decode_evidence(new)
        evidence.join(more.hits, more.marked, more.halvings)
        evidence.bound()
        return encode_evidence(evidence, a or b)
    identity = decode_identity(key[1:].decode(), old)
    other = decode_identity(identity.holder, new)
    identity.join(other.members, other.merges, other.profiles, other.erased_at_ms)
    return encode_identity(identity)


def join_all(key: bytes, values: Sequence[bytes | None]) -> tuple[bytes | None, bytes | None]:
    """`(join, what it leaves out)` of values of one record, in the order of the log: `join` and `lost` of all, one after the other."""
    last = values[-1]
    if len(values) == 1:
        return last, None
    if key[:1] == EVIDENCE and last is not None and all(value is not None and not value[1] & ALIAS for value in values):
        # holders of evidence: the order does not matter, and as a rule the last knows all that the others do
        evidence, has_identity = decode_evidence(last)
        grew = False
        for value in values[:-1]:
            assert value is not None
            if value != last:
                grew = _join_into(evidence, value) or grew
                if value[1] & HAS_IDENTITY and not has_identity:
                    has_identity = grew = True
        if grew:
            evidence.bound()
        return (encode_evidence(evidence, has_identity) if grew else last), None
    joined, left = values[0], None
    for value in values[1:]:
        gone = lost(key, joined, value)
        if gone is not None:
            left = join(key, left, gone) or gone
        joined = join(key, joined, value)
    return joined, left


def _join_into(evidence: Evidence, record: bytes) -> bool:
    """Joins the hits of a holder's evidence record to *evidence*; whether anything was new."""
    version, flags, n = HEAD.unpack_from(record)
    if version != VERSION:
        raise UnknownVersion(f"evidence record of version {version}; this program reads version {VERSION}")
    grew = evidence.lower(flags >> HALVINGS_SHIFT)
    hits, marked = evidence.hits, list[bytes]()
    at = 4 + n * 10
    for rule, count in RULE.iter_unpack(record[4:at]):
        end = at + (count & COUNT) * HIT_BYTES
        blob = record[at:end]
        if not hits.get(rule, b"").startswith(blob) and evidence.add(rule, blob):  # as a rule hits come one behind the other
            grew = True
        if count & MARKED and rule not in evidence.marked:
            marked.append(rule)
        at = end
    if marked:
        evidence.marked |= frozenset(marked)
    return grew or bool(marked)


def lost(key: bytes, old: bytes | None, new: bytes | None) -> bytes | None:
    """What the join of *old* and *new* leaves out: the holder's record where the other is an alias's, the identity where the other is a tombstone."""
    if old is None or old == new:
        return None
    if key[:1] == IDENTITY:
        return old if new is None else None
    if new is None:
        return None
    was, now = pointer_of(old) is not None, pointer_of(new) is not None
    return None if was == now else new if was else old


def left_behind(contact: str, evidence: bytes | None, identity: bytes | None) -> Join:
    """The message that brings what was left out to whoever holds it now; addressed to *contact*, which forwards it. Facts join, so twice is once."""
    known = Evidence() if evidence is None else decode_evidence(evidence)[0]
    who = Identity(contact) if identity is None else decode_identity(contact, identity)
    return Join(
        contact, known.hits, known.marked, tuple(sorted(who.members)), tuple(sorted(who.merges)), who.profiles,
        who.erased_at_ms, cause=MERGE, halvings=known.halvings,
    )  # fmt: skip


def settled(data: bytes, starts: Array, sizes: Array, ends: Array) -> Array:
    """Of groups of evidence records, whether the last one of each is what `join_all` makes of it: all are holders', and what they say is in the last.

    Group *i* has the records from ends[i - 1] to before ends[i]; a record has *sizes* bytes (-1: it is none) from *starts* in *data* on.
    """
    check_inside(data, starts, sizes)
    found = np.zeros(len(ends), np.bool_)
    _settled(np.frombuffer(data, np.uint8), starts, sizes, ends, found)
    return found


def certain(data: bytes, spans: Array) -> Array:
    """Return which records are beyond doubt evidence of a holder: others need a closer look.

    *spans*: where key and value of each are in *data*: key, its size, value, its size (-1: none).
    """
    spans = np.where(spans < 0, np.array([0, -1, 0, -1]), spans)
    check_inside(data, spans[:, 0], spans[:, 1])
    check_inside(data, spans[:, 2], spans[:, 3])
    found = np.zeros(len(spans), np.bool_)
    _certain(np.frombuffer(data, np.uint8), np.ascontiguousarray(spans), found)
    return found


@Loops
def loops() -> None:
    settled(b"", np.zeros(1, np.int64), np.full(1, -1), np.ones(1, np.int64))
    certain(b"", np.array([[0, -1, 0, -1]]))


@compiled
def _count(data: Array, at: int) -> Any:
    return np.int64(data[at]) << 8 | np.int64(data[at + 1])


@compiled
def _is_holder(data: Array, at: int, size: int) -> bool:
    """Whether this is a holder's evidence record, as long as it says."""
    if size < 4 or data[at] != VERSION or data[at + 1] & ALIAS or data[at + 1] >> HALVINGS_SHIFT > MAX_HALVINGS:
        return False
    n = _count(data, at + 2)
    length = 4 + 10 * n
    if length > size:
        return False
    for k in range(n):
        length += (_count(data, at + 12 + 10 * k) & COUNT) * HIT_BYTES
    return bool(length == size)


@compiled
def _are_same(data: Array, one: int, other: int, size: int) -> bool:
    i = size - 1  # of what is alike, the end differs first
    while i >= 0 and data[one + i] == data[other + i]:
        i -= 1
    return bool(i < 0)


@compiled
def _is_in(data: Array, one: int, other: int) -> bool:
    """Whether the holder's record *other* says all that *one* does."""
    if data[one + 1] & ~data[other + 1] & 255:
        return False
    n, n_other = _count(data, one + 2), _count(data, other + 2)
    blob = one + 4 + 10 * n
    for k in range(n):
        rule = one + 4 + 10 * k
        count = _count(data, rule + 8)
        there, blob_there = other + 4, other + 4 + 10 * n_other
        behind = blob_there
        while there < behind and not _are_same(data, rule, there, 8):
            blob_there += (_count(data, there + 8) & COUNT) * HIT_BYTES
            there += 10
        if there == behind:
            return False
        count_there = _count(data, there + 8)
        if count & ~count_there & MARKED:
            return False
        here, left, left_there = blob, count & COUNT, count_there & COUNT
        while 0 < left <= left_there:  # both are in order
            if _are_same(data, here, blob_there, HIT_BYTES):
                here += HIT_BYTES
                left -= 1
            blob_there += HIT_BYTES
            left_there -= 1
        if left > 0:
            return False
        blob += (count & COUNT) * HIT_BYTES
    return True


@compiled
def _is_below(data: Array, one: int, other: int) -> bool:
    """Whether the hit at *one* sorts before the one at *other*."""
    for i in range(HIT_BYTES):
        if data[one + i] != data[other + i]:
            return bool(data[one + i] < data[other + i])
    return False


@compiled
def _in_calendar(data: Array, at: int) -> bool:
    moment = np.uint64(0)
    for i in range(8):
        moment = moment << np.uint64(8) | np.uint64(data[at + i])
    return bool(np.uint64(FIRST) <= moment <= np.uint64(LAST))


@compiled
def _certain(data: Array, spans: Array, found: Array) -> None:
    for row in range(spans.shape[0]):
        key, key_size, at, size = spans[row, 0], spans[row, 1], spans[row, 2], spans[row, 3]
        if key_size < 2 or key_size > 1 + MAX_ID or data[key] != KIND:
            continue
        ascii_only = True
        for i in range(1, key_size):
            ascii_only = ascii_only and data[key + i] < 128
        if not ascii_only or not _is_holder(data, at, size):
            continue
        n = _count(data, at + 2)
        hit, sound = at + 4 + 10 * n, True
        for k in range(n):
            count = _count(data, at + 12 + 10 * k) & COUNT
            for j in range(count):
                one = hit + j * HIT_BYTES
                sound = sound and _in_calendar(data, one)
                sound = sound and (j == 0 or _is_below(data, one - HIT_BYTES, one))
            hit += count * HIT_BYTES
        found[row] = sound


@compiled
def _settled(data: Array, starts: Array, sizes: Array, ends: Array, found: Array) -> None:
    row = 0
    for group in range(ends.shape[0]):
        last = ends[group] - 1
        known = row <= last and _is_holder(data, starts[last], sizes[last])
        while known and row < last:
            known = _is_holder(data, starts[row], sizes[row]) and _is_in(data, starts[row], starts[last])
            row += 1
        found[group] = known
        row = last + 1
