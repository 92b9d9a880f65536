"""Records: the binary form of what a partition keeps of a contact, in RocksDB and in the changelog alike. Pure; only layout and join.

A contact has up to two records (design, section 5). The first byte of each is the version of its format.

| key | value |
|---|---|
| `e` + contact | evidence: `version flags` and then an alias's pointer, or `n` x (rule key 8, hits u16 with the top bit for *marked*) and the blobs |
| `i` + contact | identity: `version`, length of the head u32, head `[name, groups, erased_at_ms]`, rest `[members, merges, profiles]`, both msgpack |

The head is what an activity needs; the rest, which may be long, is left alone then.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import msgspec

from .evidence import HIT_BYTES, NOTHING_MARKED, Evidence
from .identity import Identity, Merge, Profile
from .messages import MERGE, Join

EVIDENCE, IDENTITY = b"e", b"i"
VERSION = 1
ALIAS, HAS_IDENTITY = 1, 2  # flags
MARKED, COUNT = 1 << 15, (1 << 15) - 1

_HEAD = struct.Struct(">BBH")
_RULE = struct.Struct(">8sH")
_LENGTH = struct.Struct(">BI")
_pack = msgspec.msgpack.Encoder().encode
_unpack_head = msgspec.msgpack.Decoder(tuple[str, tuple[str, ...], int | None]).decode
_Rest = tuple[list[str], list[tuple[int, bytes, str, str]], dict[str, tuple[int, str, tuple[str, ...]]]]
_unpack_rest = msgspec.msgpack.Decoder(_Rest).decode


class UnknownVersion(ValueError):
    """A record was written by a format that this program does not know."""


def encode_alias(pointer: str) -> bytes:
    """The evidence record of a contact whose evidence lives with *pointer*."""
    return bytes((VERSION, ALIAS)) + pointer.encode()


def encode_evidence(evidence: Evidence, has_identity: bool) -> bytes:
    """The evidence record of a holder."""
    hits, marked = evidence.hits, evidence.marked
    parts = [_HEAD.pack(VERSION, HAS_IDENTITY if has_identity else 0, len(hits))]
    if marked:
        for rule, blob in hits.items():
            parts.append(_RULE.pack(rule, len(blob) // HIT_BYTES | (MARKED if rule in marked else 0)))
    else:
        for rule, blob in hits.items():
            parts.append(_RULE.pack(rule, len(blob) // HIT_BYTES))
    parts.extend(hits.values())
    return b"".join(parts)


def pointer_of(record: bytes) -> str | None:
    """The pointer of an alias's evidence record; None when it is a holder's."""
    if record[0] != VERSION:
        raise UnknownVersion(f"evidence record of version {record[0]}; this program reads version {VERSION}")
    return record[2:].decode() if record[1] & ALIAS else None


def is_plain(record: bytes) -> bool:
    """Whether an evidence record is that of a holder without an identity record."""
    return record[1] == 0


def decode_evidence(record: bytes) -> tuple[Evidence, bool]:
    """A holder's evidence, and whether it has an identity record beside it."""
    version, flags, n = _HEAD.unpack_from(record)
    if version != VERSION:
        raise UnknownVersion(f"evidence record of version {version}; this program reads version {VERSION}")
    hits: dict[bytes, bytes] = {}
    marked = NOTHING_MARKED
    at = 4 + n * 10
    for rule, count in _RULE.iter_unpack(record[4:at]):
        if count & MARKED:
            marked |= {rule}
        end = at + (count & COUNT) * HIT_BYTES
        hits[rule] = record[at:end]
        at = end
    assert at == len(record), "an evidence record is exactly as long as its head says"
    return Evidence(hits, marked), bool(flags & HAS_IDENTITY)


def without(record: bytes, dead: AbstractSet[bytes]) -> bytes | None:
    """An evidence record without the rule keys *dead*; None when it has none of them."""
    if record[1] & ALIAS or dead.isdisjoint([record[i : i + 8] for i in range(4, 4 + 10 * int.from_bytes(record[2:4], "big"), 10)]):
        return None
    evidence, has_identity = decode_evidence(record)
    hits = {rule: blob for rule, blob in evidence.hits.items() if rule not in dead}
    return encode_evidence(Evidence(hits, evidence.marked - dead), has_identity)


def encode_identity(identity: Identity) -> bytes:
    """The identity record of a holder."""
    head = _pack((identity.name, identity.groups, identity.erased_at_ms))
    rest = _pack((sorted(identity.members), sorted(identity.merges), identity.profiles))
    return _LENGTH.pack(VERSION, len(head)) + head + rest


def _head_end(record: bytes) -> int:
    version, length = _LENGTH.unpack_from(record)
    if version != VERSION:
        raise UnknownVersion(f"identity record of version {version}; this program reads version {VERSION}")
    return _LENGTH.size + int(length)


def decode_head(record: bytes) -> tuple[str, tuple[str, ...], int | None]:
    """`(name, groups, erased_at_ms)` of an identity record, without the rest."""
    return _unpack_head(record[_LENGTH.size : _head_end(record)])


def decode_identity(holder: str, record: bytes) -> Identity:
    """The whole identity of *holder*."""
    end = _head_end(record)
    name, groups, erased_at_ms = _unpack_head(record[_LENGTH.size : end])
    members, merges, profiles = _unpack_rest(record[end:])
    return Identity(
        holder,
        set(members),
        {Merge(*m) for m in merges},
        {contact: Profile(*p) for contact, p in profiles.items()},
        erased_at_ms,
        name,
        groups,
    )


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
        evidence.join(more.hits, more.marked)
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
    version, _, n = _HEAD.unpack_from(record)
    if version != VERSION:
        raise UnknownVersion(f"evidence record of version {version}; this program reads version {VERSION}")
    hits, grew = evidence.hits, False
    at = 4 + n * 10
    for rule, count in _RULE.iter_unpack(record[4:at]):
        end = at + (count & COUNT) * HIT_BYTES
        blob = record[at:end]
        if not hits.get(rule, b"").startswith(blob) and evidence.add(rule, blob):  # as a rule hits come one behind the other
            grew = True
        if count & MARKED and rule not in evidence.marked:
            evidence.marked |= {rule}
            grew = True
        at = end
    return grew


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
        who.erased_at_ms, cause=MERGE,
    )  # fmt: skip
