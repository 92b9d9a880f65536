"""Entries: tells which records of the changelog no worker has written. Reads and writes nothing.

The topic is internal, and still nothing on it may end a worker: what could not be kept, joined or
announced is refused, and the record before it counts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from schemas.errors import Refused
from schemas.times import FIRST_MS, LAST_MS
from schemas.wire import MAX_ID
from state import records
from state.evidence import HIT_BYTES, MAX_HALVINGS, moment
from state.messages import Join

from . import handoffs
from .building import VIEW, view_fault
from .catalog import CONTROL

POSITION, REPEATED = b"p", b"r"
FIRST, LAST = moment(FIRST_MS), moment(LAST_MS)
POSITIONS = frozenset(
    {"activities", "contact-merges", "contacts", "handoffs", "rebuilt-evidence", *CONTROL}
)
_ERRORS = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, AssertionError,
    RecursionError, struct.error, msgspec.MsgspecError,
)  # fmt: skip


def refusal(key: bytes | None, value: bytes | None) -> Refused | None:
    """Return why no worker writes *value* under *key*, None when one may have.

    Raises UnknownVersion for a record that a later program may have written: to pass it over would
    lose what it holds.
    """
    if not key:
        return _bad("it has no key")
    fault = _FAULTS.get(key[:1])
    if fault is None:
        return _bad("its key begins with none of the letters that kinds of records have")
    try:
        why = fault(key, value)
    except records.UnknownVersion:
        if value and value[0] in records.LATER_VERSIONS:
            raise
        why = "its format is unknown"
    except _ERRORS as error:
        why = f"it cannot be decoded ({type(error).__name__})"
    return None if why is None else _bad(why)


def is_contact(key: bytes) -> bool:
    """Return True if *key*, of a record of a contact, names one."""
    try:
        return 0 < len(key[1:].decode()) <= MAX_ID
    except UnicodeDecodeError:
        return False


def _bad(why: str) -> Refused:
    return Refused(
        "bad_changelog", f"not a changelog record: {why}; only workers write to this topic"
    )


def _evidence(key: bytes, value: bytes | None) -> str | None:
    if not is_contact(key):
        return "its key names no contact"
    if value is None:
        return None
    pointer = records.pointer_of(value)
    if pointer is not None:
        whole = value[1] == records.ALIAS and 0 < len(pointer) <= MAX_ID
        return None if whole else "it points to no contact"
    if value[1] >> records.HALVINGS_SHIFT > MAX_HALVINGS:
        return "its hits were cut as no worker cuts them"
    end = at = 4 + 10 * int.from_bytes(
        value[2:4], "big"
    )  # by hand: each key of a recovery is looked at
    for _, count in records.RULE.iter_unpack(value[4:at]):
        begin, end = end, end + (count & records.COUNT) * HIT_BYTES
        if begin == end:
            continue
        if not FIRST <= value[begin : begin + 8] <= value[end - HIT_BYTES : end - 8] <= LAST:
            return "a hit is outside of the calendar"
        if end - begin > HIT_BYTES:
            hits = [value[i : i + HIT_BYTES] for i in range(begin, end, HIT_BYTES)]
            if hits != sorted(hits):
                return "hits are not sorted"
    return None if end == len(value) else "it has another length than it says"


def _identity(key: bytes, value: bytes | None) -> str | None:
    if not is_contact(key):
        return "its key names no contact"
    if value is None:
        return None
    who = records.decode_identity(key[1:].decode(), value)
    return handoffs.unsound_join(
        Join(
            who.name, members=tuple(who.members), merges=tuple(who.merges), profiles=who.profiles,
            erased_at_ms=who.erased_at_ms,
        )
    )  # fmt: skip


def _position(key: bytes, value: bytes | None) -> str | None:
    if key[1:].decode() not in POSITIONS:
        return "it is the position of no topic"
    if value is not None and not (value.isdigit() and len(value) <= 18):
        return "its position is no offset"
    return None


def _repeated(key: bytes, value: bytes | None) -> str | None:
    if not is_contact(key):
        return "its key names no contact"
    return "the keys of its rules are cut" if value is not None and len(value) % 8 else None


_FAULTS: dict[bytes, Callable[[bytes, bytes | None], str | None]] = {
    records.EVIDENCE: _evidence,
    records.IDENTITY: _identity,
    POSITION: _position,
    REPEATED: _repeated,
    VIEW: view_fault,
}
