"""Identity: who is one person, by which name, and where its evidence lives (design, sections 3 and 6). Pure; knows no hit and no topic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.hashing import h8


class Merge(NamedTuple):
    """One merge, `from_` turned out to be `into`. Tuples compare in the order of the design: by time, then by the hash of the id."""

    at_ms: int
    h: bytes  # 8 bytes: the hash of the merge's id
    from_: str
    into: str


class Profile(NamedTuple):
    """What is said of a contact. Tuples compare so that the newest is the largest; equal times: by content, so arrival is nothing."""

    at_ms: int
    attributes: str  # canonical JSON
    groups: tuple[str, ...]


def place(contact: str) -> tuple[bytes, str]:
    """The order of contacts that decides where evidence lives: the smallest holds (design, section 6)."""
    return h8(contact), contact


def survivor(contact: str, merges: Iterable[Merge], members: Iterable[str] | None = None) -> str:
    """The name of the person that *contact* belongs to (design, section 3, merges).

    Each merge, in order of `(at, h(id))`, points the survivor of its `from` side to the survivor of its `into` side, unless they are the same.
    With *members*, only merges between members count: a name is shown by the part that holds the named contact's evidence and by no other.
    """
    points_to: dict[str, str] = {}
    known = None if members is None else {contact, *members}

    def find(name: str) -> str:
        while (further := points_to.get(name)) is not None:
            points_to[name] = points_to.get(further, further)  # halves the path: chains of thousands stay cheap
            name = further
        return name

    for merge in sorted(merges):
        if known is not None and not (merge.from_ in known and merge.into in known):
            continue
        source, target = find(merge.from_), find(merge.into)
        if source != target:
            points_to[source] = target
    return find(contact)


@dataclass(slots=True)
class Identity:
    """What changes rarely about a person: its contacts, merges, profiles and erasure. `name` and `groups` are derived from the rest.

    `members` are the contacts whose evidence has been joined here, the holder among them. `merges` may run ahead of it: a merge whose other
    side is still on its way counts for the name only once that side is here.
    """

    holder: str
    members: set[str] = field(default_factory=set)
    merges: set[Merge] = field(default_factory=set)
    profiles: dict[str, Profile] = field(default_factory=dict)
    erased_at_ms: int | None = None
    name: str = ""
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.members:
            self.members = {self.holder}
        if not self.name:
            self.name = self.holder

    def join(
        self,
        members: Iterable[str] = (),
        merges: Iterable[Merge] = (),
        profiles: dict[str, Profile] | None = None,
        erased_at_ms: int | None = None,
    ) -> bool:
        """Joins all four: sets unite, the newest profile and the latest erasure win; whether anything was new."""
        n_members, n_merges = len(self.members), len(self.merges)
        self.members.update(members)
        self.merges.update(merges)
        named = len(self.members) != n_members or len(self.merges) != n_merges
        changed = named
        if erased_at_ms is not None and (self.erased_at_ms is None or erased_at_ms > self.erased_at_ms):
            self.erased_at_ms, changed = erased_at_ms, True
        for contact, profile in (profiles or {}).items():
            if self.erased_at_ms is not None and profile.at_ms <= self.erased_at_ms:
                continue
            old = self.profiles.get(contact)
            if old is None or profile > old:
                self.profiles[contact], changed = profile, True
        if changed:
            self._derive(named)
        return changed

    def _derive(self, named: bool) -> None:
        if self.erased_at_ms is not None:
            erased_at_ms = self.erased_at_ms
            self.profiles = {c: p for c, p in self.profiles.items() if p.at_ms > erased_at_ms}
        if named:
            self.name = survivor(self.holder, self.merges, self.members)
        profile = self.profiles.get(self.name)
        self.groups = () if profile is None else profile.groups

    def blank(self) -> bool:
        """Whether nothing is known beyond the contact itself."""
        return not self.merges and not self.profiles and self.erased_at_ms is None and len(self.members) == 1
