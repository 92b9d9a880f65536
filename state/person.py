"""Person: a contact's records while a batch works on them, decoded as far as needed. Values only; `decision` says what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from . import records
from .evidence import Evidence
from .identity import Identity
from .messages import ACTIVITY, Part, Said


class Shown(NamedTuple):
    """What was visible of a part before the batch."""

    name: str
    groups: tuple[str, ...]
    hits: Mapping[bytes, bytes]
    marked: frozenset[bytes]


class Person:
    """A contact's records while a batch works on them."""

    __slots__ = (
        "again",
        "cause",
        "cause_id",
        "contact",
        "evidence",
        "head",
        "identity",
        "ids",
        "key",
        "parts",
        "perhaps",
        "pointer",
        "raw_identity",
        "renamed",
        "rules",
        "shown",
        "was_holder",
    )  # fmt: skip

    def __init__(self, contact: str) -> None:
        self.contact = contact
        self.key = contact.encode()
        self.pointer: str | None = None
        self.evidence = Evidence()
        self.identity: Identity | None = None
        self.raw_identity: bytes | None = None  # not decoded until needed
        self.head: tuple[str, tuple[str, ...], int | None] = (contact, (), None)  # name, groups, erased_at_ms
        self.shown: Shown | None = None
        self.parts: list[Part] = []
        self.rules: set[bytes] = set()  # whose hits changed
        self.renamed = False  # name, groups, members or erasure changed: every view is concerned
        self.was_holder = True
        self.again = False  # something not known may have been said of it
        self.perhaps: dict[str, Said] = {}  # by journey, what that can have been
        self.cause, self.cause_id = ACTIVITY, None  # type: str, str | None
        self.ids: dict[bytes, str] = {}

    def whole(self) -> Identity:
        if self.identity is None:
            if self.raw_identity is None:
                self.identity = Identity(self.contact)
            else:
                self.identity = records.decode_identity(self.contact, self.raw_identity)
        return self.identity

    def has_identity(self) -> bool:
        return self.raw_identity is not None or (self.identity is not None and not self.identity.blank())
