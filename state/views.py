"""Views: a journey version made concrete over the persons of a partition, an index for lists and totals. Pure; says what to write, writes nothing.

| key | value |
|---|---|
| `x` view 8, group 8, furthest stage u8, reach moment 8, name, and, where the holder is another, 0xff and the holder | nothing |
| `t` view 8, group 8, kind 1, stage u8, bucket i64 | count i64, group |

The group of all persons is eight zero bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from schemas.hashing import h8
from schemas.journey import Journey, body_digest

from .messages import EDIT, RECALCULATION
from .progress import Progress, Projection
from .totals import Cell

INDEX, TOTAL = b"x", b"t"
EVERYONE = bytes(8)
CELLS = 2  # grows when persons contribute other cells: views of before are others, and made anew
_CELL = struct.Struct(">8s8s1sBq")
_COUNT = struct.Struct(">q")
_INDEX_HEAD = 1 + 8 + 8


class Source(NamedTuple):
    """Where the evidence of a journey's rules stands: rule key -> evidence key (the same where it is not named).

    `generation` grows with each switch to other evidence, forth and back; `recalculation`: the newest behind it.
    """

    keys: Mapping[bytes, bytes] = {}
    generation: int = 0
    recalculation: str | None = None


class View:
    """One journey version, over the evidence of one generation, over one partition.

    `cursor` is None when the view is complete. Else a scan is building it: contacts up to the cursor (their ids as bytes) are in it, the others
    are not yet. `told`: its stage changes are out for everybody; where its index is lost and built again, there is nothing to tell.
    `speaks`: it is the newest of its journey, which alone announces; `predecessors` are those that announced before, until it is told.
    `changed`: contacts whose stages the scan found to be others than those of the same version before.
    """

    __slots__ = (
        "changed",
        "cursor",
        "id",
        "journey",
        "predecessors",
        "project",
        "projection",
        "rules",
        "source",
        "speaks",
        "told",
        "watched",
    )

    def __init__(
        self, journey: Journey, cursor: bytes | None = None, told: bool = False, source: Source = Source(), changed: int = 0
    ) -> None:
        self.journey = journey
        self.source = source
        self.changed = changed
        self.projection = Projection(journey, source.keys)
        self.project = self.projection.project
        self.rules = frozenset(self.projection.rules)
        self.id = view_id(journey, source)
        self.cursor = cursor
        self.told = told
        self.speaks = True
        self.predecessors: tuple[View, ...] = ()
        self.watched = self.rules  # with those of its predecessors

    @property
    def order(self) -> tuple[int, int]:
        """The newest view of a journey has the greatest: version, then generation."""
        return self.journey.version or 0, self.source.generation

    @property
    def cause(self) -> str:
        """Why it says what it says: `recalculation` where it comes in place of the same version, else `edit`."""
        return RECALCULATION if any(view.journey.version == self.journey.version for view in self.predecessors) else EDIT

    def follow(self, predecessors: Iterable[View]) -> None:
        """From now on this view announces, in place of *predecessors*."""
        self.predecessors = () if self.told else tuple(predecessors)
        self.watched = self.rules.union(*(view.rules for view in self.predecessors))

    def includes(self, contact: bytes) -> bool:
        """Whether the person held by *contact* is in this view already."""
        return self.cursor is None or contact <= self.cursor

    def settled(self, contact: bytes) -> bool:
        """Whether all that was last said of the person held by *contact* was said by this view."""
        return self.told or self.includes(contact)


_digests: dict[int, tuple[Journey, bytes]] = {}  # by identity: journeys are frozen, and all are asked at each change of the catalogue


def view_id(journey: Journey, source: Source = Source()) -> bytes:
    """8 bytes that stand for a journey's version, what it says, and where its evidence stands."""
    found = _digests.get(id(journey))
    if found is None or found[0] is not journey:
        if len(_digests) > 10_000:
            _digests.clear()
        found = _digests[id(journey)] = journey, body_digest(journey)
    text = f"{CELLS}\0{journey.id}\0{journey.version}\0{source.generation}\0".encode()
    keys = b"".join(rule + key for rule, key in sorted(source.keys.items()))
    return blake2b(text + found[1] + keys, digest_size=8).digest()


class Views:
    """The views of a partition, found by the rules they watch. `plan`: what `bulk` makes of them, when it is asked to."""

    __slots__ = ("_behind", "_stages", "all", "by_rule", "most_watching", "plan", "speaking", "stages")

    def __init__(self, views: Iterable[View] = ()) -> None:
        self.all = tuple(views)
        self._behind = self.all
        self.plan: Any = None
        self.speaking = {view.journey.id: view for view in self.all if view.speaks}
        watching: dict[bytes, list[View]] = {}
        for view in self.all:
            for rule in view.watched:
                watching.setdefault(rule, []).append(view)
        self.by_rule = {rule: tuple(views) for rule, views in watching.items()}
        self.most_watching = max(map(len, watching.values()), default=0)
        self.stages = sum(len(view.journey.stages) for view in self.all)
        self._stages: dict[bytes, int] = {}  # by rule, of the views that watch it; filled when asked for

    def settled(self) -> bool:
        """Whether each has said all that it has to say of the past. Who has goes on having, so that not all are asked each time."""
        self._behind = tuple(view for view in self._behind if not view.told and view.cursor is not None)
        return not self._behind

    def stages_of(self, rules: Iterable[bytes]) -> int:
        """Return about how many stages the views have that watch any of *rules*: no more can change by them."""
        count, known = 0, self._stages
        for rule in rules:
            if rule not in known:
                known[rule] = sum(len(view.journey.stages) for view in self.by_rule.get(rule, ()))
            count += known[rule]
            if count >= self.stages:
                return self.stages
        return count

    def concerned(self, rules: Iterable[bytes]) -> list[View]:
        """The views that watch any of *rules*, each once."""
        found: dict[bytes, View] = {}
        for rule in rules:
            for view in self.by_rule.get(rule, ()):
                found[view.id] = view
        return list(found.values())


def group_key(group: str | None) -> bytes:
    """The 8 bytes of a group in keys; None is everyone."""
    return EVERYONE if group is None else h8(group)


def index_prefix(view: bytes, group: bytes, stage: int | None = None) -> bytes:
    """The beginning of the index keys of a view and group, and of a furthest stage when given."""
    head = INDEX + view + group
    return head if stage is None else head + bytes((stage,))


def index_key(view: bytes, group: bytes, progress: Progress, name: str, holder: str) -> bytes:
    """The index key of a person whose furthest stage is the last of *progress*, which is not empty.

    With the holder: between a handover and its sender's becoming an alias, a crash can leave two holders of one name, and each counts. 0xff is no
    byte of UTF-8.
    """
    who = name.encode() if name == holder else name.encode() + b"\xff" + holder.encode()
    return INDEX + view + group + bytes((len(progress),)) + progress[-1].at + who


def split_index_key(key: bytes) -> tuple[int, bytes, str, str]:
    """`(furthest stage, its reach moment, name, holder)` of an index key."""
    name, _, holder = key[_INDEX_HEAD + 9 :].partition(b"\xff")
    return key[_INDEX_HEAD], key[_INDEX_HEAD + 1 : _INDEX_HEAD + 9], name.decode(), (holder or name).decode()


def cell_key(view: bytes, group: str, cell: Cell) -> bytes:
    """The key of a total; *group* "" is everyone."""
    kind, stage, bucket = cell
    return TOTAL + _CELL.pack(view, EVERYONE if not group else h8(group), kind.encode(), stage, bucket)


def cell_value(count: int, group: str) -> bytes:
    """The value of a total: the absolute count, and the group in words."""
    return _COUNT.pack(count) + group.encode()


def split_cell(key: bytes, value: bytes) -> tuple[bytes, str, Cell, int]:
    """`(view, group, cell, count)` of a total as written."""
    view, _, kind, stage, bucket = _CELL.unpack(key[1:])
    return view, value[_COUNT.size :].decode(), (kind.decode(), stage, bucket), _COUNT.unpack_from(value)[0]
