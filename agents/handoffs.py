"""Handoffs: the wire form of messages between partitions. msgpack of `[format version, kind, message]`; never interprets a message.

A join that is too large for one record goes in pieces, since joining them is joining it: hits, then merges and profiles, then what gives the
person its name, and last what was announced. Of that nothing is taken as known then: the receiver announces the truth.

The topic is internal, and still nothing on it may stop a worker: what decodes and could not be kept or announced is refused like what does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import msgspec

from schemas.changes import CAUSES
from schemas.errors import Refused
from schemas.times import FIRST_MS, LAST_MS
from schemas.wire import MAX_ID
from state.evidence import HIT_BYTES, MAX_HALVINGS, each, moment
from state.identity import Merge
from state.messages import Join, Message, Unite

VERSION = 1
KEY_BYTES = 8  # of a rule, of the hash of an id
MAX_PIECE_BYTES = 8 << 20  # of a message; what cannot be cut is smaller than the rest that a record has room for
PIECE_HITS = 4096  # of one rule that stay together
JOIN_FIELDS = len(Join._fields) - 1  # that every version reads; `halvings` goes along only where it says something
Unit = tuple[dict[str, Any], int]
"""Fields of a message, and their size in bytes."""
_FIRST, _LAST = moment(FIRST_MS), moment(LAST_MS + 1)
_KINDS: dict[str, type[Join] | type[Unite]] = {"join": Join, "unite": Unite}
_encode = msgspec.msgpack.Encoder().encode
_decode_envelope = msgspec.msgpack.Decoder(tuple[int, str, msgspec.Raw]).decode
_decode_message = {kind: msgspec.msgpack.Decoder(type_).decode for kind, type_ in _KINDS.items()}


def encode(message: Message) -> bytes:
    """The bytes of *message*, however many: see `encode_all`."""
    if isinstance(message, Unite):
        return _encode((VERSION, "unite", message))
    return _encode((VERSION, "join", message if message.halvings else message[:JOIN_FIELDS]))


def encode_all(message: Message) -> list[bytes]:
    """The bytes of *message*, in pieces where it is too large for one record; to be sent in this order."""
    whole = encode(message)
    if len(whole) <= MAX_PIECE_BYTES or isinstance(message, Unite):
        return [whole]
    return [encode(piece) for piece in pieces(message)]


def pieces(message: Join) -> list[Join]:
    """Joins of about `MAX_PIECE_BYTES` at most that together are *message*, the last of them what was announced of it."""
    bare = Join(
        message.to, cause=message.cause, cause_id=message.cause_id, erased_at_ms=message.erased_at_ms, again=message.again, halvings=message.halvings
    )
    found = [bare._replace(**fields) for fields in _filled(_facts(message))]
    name = {"members": message.members, "marked": message.marked.difference(message.hits)}
    said = [({"said": {journey: one._replace(settled=False)}}, len(journey) + _size(one)) for journey, one in message.said.items()]
    if any(name.values()) or said or message.part is not None or not found:
        found += [bare._replace(part=message.part, **fields) for fields in _filled([(name, _size(message.members)), *said])]
    return found


def _facts(message: Join) -> Iterator[Unit]:
    """Hits, merges and profiles, each unit as small as may be."""
    for rule, blob in message.hits.items():
        marked = message.marked & {rule}
        for begin in range(0, len(blob), PIECE_HITS * HIT_BYTES) or (0,):
            hits = blob[begin : begin + PIECE_HITS * HIT_BYTES]
            ids = {hit: message.ids[hit] for hit in each(hits) if hit in message.ids}
            yield {"hits": {rule: hits}, "ids": ids, "marked": marked}, len(hits) + _size(ids) + 4 * KEY_BYTES
    for begin in range(0, len(message.merges), PIECE_HITS):
        merges = message.merges[begin : begin + PIECE_HITS]
        yield {"merges": merges}, _size(merges)
    for contact, profile in message.profiles.items():
        yield {"profiles": {contact: profile}}, _size((contact, profile))


def _filled(units: Iterable[Unit]) -> Iterator[dict[str, Any]]:
    """The fields of *units*, as many together as a message has room for."""
    together, size = list[dict[str, Any]](), 0
    for unit, more in units:
        if together and size + more > MAX_PIECE_BYTES:
            yield _together(together)
            together, size = [], 0
        together.append(unit)
        size += more
    if together:
        yield _together(together)


def _together(units: Iterable[dict[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for unit in units:
        for name, value in unit.items():
            if name == "hits":  # of one rule they may come in several units, in their order
                mine = fields.setdefault(name, {})
                mine.update({rule: mine.get(rule, b"") + blob for rule, blob in value.items()})
            elif isinstance(value, dict):
                fields.setdefault(name, {}).update(value)
            elif isinstance(value, frozenset):
                fields[name] = fields.get(name, frozenset()) | value
            else:
                fields[name] = (*fields.get(name, ()), *value)
    return fields


def _size(value: Any) -> int:
    return len(_encode(value))


def decode(raw: bytes) -> Message:
    """The message of *raw*. Raises `Refused` when it is none of this format, or says what no worker says."""
    try:
        version, kind, rest = _decode_envelope(raw)
        if version != VERSION or kind not in _decode_message:
            raise Refused(
                "unknown_handoff", f"handoff of format {version}, kind {kind[:50]!r}; this worker reads format {VERSION}"
            )
        message: Message = _decode_message[kind](rest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("bad_handoff", f"not a handoff: {error}") from error
    what = unsound_join(message) if isinstance(message, Join) else _unsound_unite(message)
    if what is not None:
        raise Refused("bad_handoff", f"not a handoff: {what}; only workers write to this topic")
    return message


def unsound_join(message: Join) -> str | None:
    """What is wrong with a join; None for nothing."""
    if not 0 <= message.halvings <= MAX_HALVINGS:
        return "its hits were cut as no worker cuts them"
    for rule, blob in message.hits.items():
        if len(rule) != KEY_BYTES:
            return "the key of a rule has another length"
        if len(blob) % HIT_BYTES:
            return "hits are no whole number of hits"
        if blob and not _FIRST <= blob[:HIT_BYTES] <= blob[-HIT_BYTES:] < _LAST:
            return "a hit is outside of the calendar"
        if len(blob) > HIT_BYTES:
            hits = [*each(blob)]
            if any(a >= b for a, b in pairwise(hits)):
                return "hits are not sorted"
    if any(len(rule) != KEY_BYTES for rule in message.marked):
        return "the key of a marked rule has another length"
    if message.cause not in CAUSES:
        return "its cause is none that a stage change has"
    if message.erased_at_ms is not None and not _in_calendar(message.erased_at_ms):
        return "its erasure is outside of the calendar"
    for contact, profile in message.profiles.items():
        if not _are_ids((contact,)) or not _in_calendar(profile.at_ms) or not _is_object(profile.attributes):
            return "a profile is none"
    if not _are_ids((message.to, *message.members)) or not (message.part is None or _are_ids((message.part,))):
        return "a contact id is empty or too long"
    return _unsound_merges(message.merges)


def _unsound_unite(message: Unite) -> str | None:
    """What is wrong with a unite; None for nothing."""
    if not _are_ids((message.to, message.other)):
        return "a contact id is empty or too long"
    if message.merges and message.origin is None:
        return "a merge does not say where it came from"
    return _unsound_merges(message.merges)


def _unsound_merges(merges: Iterable[Merge]) -> str | None:
    for merge in merges:
        if len(merge.h) != KEY_BYTES or not _in_calendar(merge.at_ms) or not _are_ids((merge.from_, merge.into)):
            return "a merge is none"
    return None


def _are_ids(contacts: Iterable[str]) -> bool:
    return all(0 < len(contact) <= MAX_ID for contact in contacts)


def _in_calendar(at_ms: int) -> bool:
    return FIRST_MS <= at_ms <= LAST_MS


def _is_object(attributes: str) -> bool:
    try:
        return isinstance(json.loads(attributes), dict)
    except (ValueError, RecursionError):
        return False
