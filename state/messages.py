"""Messages: what reaches a contact, wherever its evidence lives (design, section 6). Values only; `decision` says what they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .identity import Merge, Profile

ACTIVITY, MERGE, ERASURE, EDIT, RECALCULATION = "activity", "merge", "erasure", "edit", "recalculation"


class Origin(NamedTuple):
    """Where a merge came from, with its bytes, so that it can be rejected wherever that is decided."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes | None], ...]


class Said(NamedTuple):
    """What was announced of a person in one journey: by which version last, whether only by that one, and the names of the stages it went to;
    `generation`: that of the version's evidence (`views.Source`)."""

    version: int
    settled: bool
    stages: tuple[str, ...]
    generation: int = 0


class Part(NamedTuple):
    """A whole holder that hands over: the name under which it was visible until now, its evidence, and what was said of it, by journey."""

    name: str
    hits: Mapping[bytes, bytes]
    said: Mapping[str, Said]


class Join(NamedTuple):
    """Facts for *to* to join. `part`: the name of a whole holder that hands over; `said`: what was announced of it, by journey."""

    to: str
    hits: Mapping[bytes, bytes] = {}
    marked: frozenset[bytes] = frozenset()
    members: tuple[str, ...] = ()
    merges: tuple[Merge, ...] = ()
    profiles: Mapping[str, Profile] = {}
    erased_at_ms: int | None = None
    cause: str = ACTIVITY
    cause_id: str | None = None
    ids: Mapping[bytes, str] = {}  # hit -> id of its activity
    part: str | None = None
    said: Mapping[str, Said] = {}
    again: bool = False  # what was said of `to` is not known, at most `said`: the truth is to be said again
    halvings: int = 0  # of the limit of hits a rule, where `hits` were cut: see `Evidence`


class Unite(NamedTuple):
    """A request to *to* to become one person with *other*; `merges` are the merge records behind it, if it carries them."""

    to: str
    other: str
    merges: tuple[Merge, ...] = ()
    cause_id: str | None = None
    origin: Origin | None = None


Message = Join | Unite
