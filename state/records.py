"""Records: the binary form of what a partition keeps of a contact, in RocksDB and in the changelog alike. Pure; only layout: see `joining`.

A contact has up to two records (design, section 5). The first byte of each is the version of its format.

| key | value |
|---|---|
| `e` + contact | evidence: `version flags` and then an alias's pointer, or `n` x (rule key 8, hits u16 with the top bit for *marked*) and the blobs |
| `i` + contact | identity: `version`, length of the head u32, head `[name, groups, erased_at_ms]`, rest `[members, merges, profiles]`, both msgpack |

The upper four bits of the flags say how often the limit of hits a rule was halved. The head is what an activity needs; the rest, which may be
long, is left alone then. A long rest (`COMPACT_BYTES`) is written as version 2, `[contacts, members, merges, profiles]`: each contact's id stands
there once, and members and merges name it by its number.
"""

from __future__ import annotations

import struct
from collections.abc import Set as AbstractSet

import msgspec

from .evidence import HIT_BYTES, NOTHING_MARKED, Evidence
from .identity import Identity, Merge, Profile

EVIDENCE, IDENTITY = b"e", b"i"
VERSION = 1
COMPACT_VERSION = 2  # of identities
COMPACT_BYTES = 1 << 20  # shorter ones stay as every version of the program reads them
ALIAS, HAS_IDENTITY = 1, 2  # flags
HALVINGS_SHIFT = 4  # beside them
MARKED, COUNT = 1 << 15, (1 << 15) - 1

HEAD = struct.Struct(">BBH")
RULE = struct.Struct(">8sH")
_LENGTH = struct.Struct(">BI")
_pack = msgspec.msgpack.Encoder().encode
_unpack_head = msgspec.msgpack.Decoder(tuple[str, tuple[str, ...], int | None]).decode
_Rest = tuple[list[str], list[tuple[int, bytes, str, str]], dict[str, tuple[int, str, tuple[str, ...]]]]
_unpack_rest = msgspec.msgpack.Decoder(_Rest).decode
_Compact = tuple[list[str], list[int], list[tuple[int, bytes, int, int]], dict[str, tuple[int, str, tuple[str, ...]]]]
_unpack_compact = msgspec.msgpack.Decoder(_Compact).decode


LATER_VERSIONS = range(3, 10)  # that a later program may write; any other number is damage


class UnknownVersion(ValueError):
    """A record was written by a format that this program does not know."""


def encode_alias(pointer: str) -> bytes:
    """The evidence record of a contact whose evidence lives with *pointer*."""
    return bytes((VERSION, ALIAS)) + pointer.encode()


def encode_evidence(evidence: Evidence, has_identity: bool) -> bytes:
    """The evidence record of a holder."""
    hits, marked = evidence.hits, evidence.marked
    flags = evidence.halvings << HALVINGS_SHIFT | (HAS_IDENTITY if has_identity else 0)
    parts = [HEAD.pack(VERSION, flags, len(hits))]
    if marked:
        for rule, blob in hits.items():
            parts.append(RULE.pack(rule, len(blob) // HIT_BYTES | (MARKED if rule in marked else 0)))
    else:
        for rule, blob in hits.items():
            parts.append(RULE.pack(rule, len(blob) // HIT_BYTES))
    parts.extend(hits.values())
    return b"".join(parts)


def pointer_of(record: bytes) -> str | None:
    """The pointer of an alias's evidence record; None when it is a holder's."""
    if record[0] != VERSION:
        raise UnknownVersion(f"evidence record of version {record[0]}; this program reads version {VERSION}")
    return record[2:].decode() if record[1] & ALIAS else None


def is_plain(record: bytes) -> bool:
    """Whether an evidence record is that of a holder without an identity record, and of ordinary size."""
    return record[1] == 0


def decode_evidence(record: bytes) -> tuple[Evidence, bool]:
    """A holder's evidence, and whether it has an identity record beside it."""
    version, flags, n = HEAD.unpack_from(record)
    if version != VERSION:
        raise UnknownVersion(f"evidence record of version {version}; this program reads version {VERSION}")
    hits: dict[bytes, bytes] = {}
    marked: list[bytes] = []
    at = 4 + n * 10
    for rule, count in RULE.iter_unpack(record[4:at]):
        if count & MARKED:
            marked.append(rule)
        end = at + (count & COUNT) * HIT_BYTES
        hits[rule] = record[at:end]
        at = end
    assert at == len(record), "an evidence record is exactly as long as its head says"
    return Evidence(hits, frozenset(marked) if marked else NOTHING_MARKED, flags >> HALVINGS_SHIFT), bool(flags & HAS_IDENTITY)


def without(record: bytes, dead: AbstractSet[bytes]) -> bytes | None:
    """An evidence record without the rule keys *dead*; None when it has none of them."""
    if record[1] & ALIAS or dead.isdisjoint([record[i : i + 8] for i in range(4, 4 + 10 * int.from_bytes(record[2:4], "big"), 10)]):
        return None
    evidence, has_identity = decode_evidence(record)
    hits = {rule: blob for rule, blob in evidence.hits.items() if rule not in dead}
    marked = evidence.marked - dead
    return encode_evidence(Evidence(hits, marked, evidence.halvings if marked else 0), has_identity)


def encode_identity(identity: Identity) -> bytes:
    """The identity record of a holder."""
    head = _pack((identity.name, identity.groups, identity.erased_at_ms))
    members, merges = sorted(identity.members), sorted(identity.merges)
    version, rest = VERSION, _pack((members, merges, identity.profiles))
    if len(rest) > COMPACT_BYTES:
        contacts = sorted(identity.members.union(*((merge.from_, merge.into) for merge in merges)))
        number = {contact: n for n, contact in enumerate(contacts)}
        numbered = [(merge.at_ms, merge.h, number[merge.from_], number[merge.into]) for merge in merges]
        version, rest = COMPACT_VERSION, _pack((contacts, [number[member] for member in members], numbered, identity.profiles))
    return _LENGTH.pack(version, len(head)) + head + rest


def _head_end(record: bytes) -> int:
    version, length = _LENGTH.unpack_from(record)
    if version not in (VERSION, COMPACT_VERSION):
        raise UnknownVersion(f"identity record of version {version}; this program reads versions {VERSION} and {COMPACT_VERSION}")
    return _LENGTH.size + int(length)


def decode_head(record: bytes) -> tuple[str, tuple[str, ...], int | None]:
    """`(name, groups, erased_at_ms)` of an identity record, without the rest."""
    return _unpack_head(record[_LENGTH.size : _head_end(record)])


def decode_identity(holder: str, record: bytes) -> Identity:
    """The whole identity of *holder*."""
    end = _head_end(record)
    name, groups, erased_at_ms = _unpack_head(record[_LENGTH.size : end])
    if record[0] == VERSION:
        members, merges, profiles = _unpack_rest(record[end:])
    else:
        contacts, numbers, numbered, profiles = _unpack_compact(record[end:])
        members = [contacts[n] for n in numbers]
        merges = [(at_ms, h, contacts[from_], contacts[into]) for at_ms, h, from_, into in numbered]
    return Identity(
        holder,
        set(members),
        {Merge(*m) for m in merges},
        {contact: Profile(*p) for contact, p in profiles.items()},
        erased_at_ms,
        name,
        groups,
    )
