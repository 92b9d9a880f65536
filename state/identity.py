"""Identity: who is one person, by which name, and where its evidence lives (design, sections 3 and 6). Pure; knows no hit and no topic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from schemas.hashing import h8
from schemas.profile import TRUNCATED
from schemas.wire import MAX_ID

MAX_MERGES_BYTES = 17 << 19  # of the ids of a person's contacts and its merges: 10,000 merges between contacts with the longest ids fit
MAX_PROFILES_BYTES = 5 << 20  # of a person's profiles: the largest that one record can bring fits
MERGE_BYTES, ID_BYTES, PROFILE_BYTES = 32, 5, 32  # beside the texts, at most: see `records`
LONGEST_ID_BYTES = 4 * MAX_ID


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
    side is still on its way counts for the name only once that side is here. `cut`: what the last `join` took away because it was too much.
    """

    holder: str
    members: set[str] = field(default_factory=set)
    merges: set[Merge] = field(default_factory=set)
    profiles: dict[str, Profile] = field(default_factory=dict)
    erased_at_ms: int | None = None
    name: str = ""
    groups: tuple[str, ...] = ()
    cut: tuple[str, ...] = field(default=(), compare=False)

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
        self.cut = ()
        n_members, n_merges = len(self.members), len(self.merges)
        self.members.update(members)
        self.merges.update(merges)
        cut = self._bound_merges()
        named = cut or len(self.members) != n_members or len(self.merges) != n_merges
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
        self._bound_profiles()
        profile = self.profiles.get(self.name)
        self.groups = () if profile is None else profile.groups

    def merges_bytes(self) -> int:
        """How much room the ids of its contacts and its merges take in its record, at most; exact only where that is more than it may be."""
        count, contacts = len(self.merges), max(len(self.members), len(self.merges) + 1)
        most = contacts * (LONGEST_ID_BYTES + ID_BYTES) + count * MERGE_BYTES
        if most <= MAX_MERGES_BYTES:
            return most
        ids = self.members.union(*((merge.from_, merge.into) for merge in self.merges))
        return sum(map(_id_bytes, ids)) + count * MERGE_BYTES

    def _bound_merges(self) -> bool:
        """Forgets the oldest merges of a person that has more than its record holds, and the members that no other merge names; whether it did.

        New merges of such a person are refused (`Batch`), but two persons who become one may come to more.
        """
        if self.merges_bytes() <= MAX_MERGES_BYTES:
            return False
        ids, left, kept = {self.holder}, MAX_MERGES_BYTES - _id_bytes(self.holder), set[Merge]()
        for merge in sorted(self.merges, reverse=True):
            new = {merge.from_, merge.into} - ids
            left -= MERGE_BYTES + sum(map(_id_bytes, new))
            if left < 0:
                break
            ids |= new
            kept.add(merge)
        self.merges, self.members = kept, self.members & ids
        self.cut += ("merges",)
        return True

    def _bound_profiles(self) -> None:
        """Takes attributes, then groups, out of the oldest profiles of a person that has more than its record holds; those of the survivor last."""
        size = sum(map(_profile_bytes, self.profiles.values()))
        if size <= MAX_PROFILES_BYTES:
            return
        self.cut += ("profiles",)
        order = sorted(self.profiles, key=lambda contact: (contact == self.name, self.profiles[contact].at_ms, contact))
        for groups_too in (False, True):
            for contact in order:
                before = self.profiles[contact]
                after = self.profiles[contact] = Profile(before.at_ms, TRUNCATED, () if groups_too else before.groups)
                size -= _profile_bytes(before) - _profile_bytes(after)
                if size <= MAX_PROFILES_BYTES:
                    return

    def blank(self) -> bool:
        """Whether nothing is known beyond the contact itself."""
        return not self.merges and not self.profiles and self.erased_at_ms is None and len(self.members) == 1


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _id_bytes(contact: str) -> int:
    return ID_BYTES + _utf8_bytes(contact)


def _profile_bytes(profile: Profile) -> int:
    return PROFILE_BYTES + LONGEST_ID_BYTES + _utf8_bytes(profile.attributes) + sum(map(_id_bytes, profile.groups))
