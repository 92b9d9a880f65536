"""Evidence: for each rule the set of its hits, joined by union (design, sections 2 and 5). Pure; knows no contact and no topic.

A *hit* is 16 bytes: the event time in milliseconds plus 2^63 as a big-endian u64, then the 8-byte hash of the activity's id. Bytes compare as
`(at, h)` does, so that the order of the design is the order of memcmp. The hits of a rule are one *blob*: sorted, distinct, concatenated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

HIT_BYTES = 16
LIMIT_HITS = 4096  # a rule; past it the earliest and the latest half stay (design, section 5)
HALF_BYTES = LIMIT_HITS // 2 * HIT_BYTES
LIMIT_BYTES = LIMIT_HITS * HIT_BYTES
BIAS = 1 << 63

Hits = Mapping[bytes, bytes]  # rule key (8 bytes) -> blob
NOTHING_MARKED: frozenset[bytes] = frozenset()


def moment(at_ms: int) -> bytes:
    """The 8 bytes of an event time, in milliseconds since 1970 UTC, that sort as the time does."""
    return (at_ms + BIAS).to_bytes(8, "big")


def moment_ms(key: bytes) -> int:
    """The event time in milliseconds of a moment or of a hit (its first 8 bytes)."""
    return int.from_bytes(key[:8], "big") - BIAS


def hit(at_ms: int, h8: bytes) -> bytes:
    """The hit of the activity with id hash *h8* (8 bytes) at *at_ms*."""
    return (at_ms + BIAS).to_bytes(8, "big") + h8


def each(blob: bytes) -> Iterator[bytes]:
    """The hits of *blob*, in order."""
    return (blob[i : i + HIT_BYTES] for i in range(0, len(blob), HIT_BYTES))


def first_at_or_after(blob: bytes, key: bytes) -> int:
    """Byte offset of the first hit of *blob* that is >= *key* (a moment or a hit); len(blob) if there is none."""
    lo, hi = 0, len(blob) // HIT_BYTES
    while lo < hi:
        mid = (lo + hi) // 2
        if blob[mid * HIT_BYTES : mid * HIT_BYTES + HIT_BYTES] < key:
            lo = mid + 1
        else:
            hi = mid
    return lo * HIT_BYTES


def insert(blob: bytes, new: bytes) -> bytes:
    """*blob* with the hit *new* in its place; *blob* itself when it is there already. Not bounded: see `bounded`."""
    if not blob or new > blob[-HIT_BYTES:]:
        return blob + new
    i = first_at_or_after(blob, new)
    return blob if blob[i : i + HIT_BYTES] == new else blob[:i] + new + blob[i:]


def union(a: bytes, b: bytes) -> bytes:
    """The union of two blobs. Not bounded: see `bounded`."""
    if a == b or not b:
        return a
    if not a:
        return b
    if len(b) == HIT_BYTES:
        return insert(a, b)
    if a.startswith(b):  # as it is when hits come in the order of their times
        return a
    joined = {*each(a), *each(b)}
    return a if len(joined) * HIT_BYTES == len(a) else b"".join(sorted(joined))


def bounded(blob: bytes) -> tuple[bytes, bool]:
    """*blob* within the limit, and whether it was over it.

    Keeping the earliest and the latest half of a union is the same whether the parts were cut before or not, so bounded
    evidence is a join-semilattice still.
    """
    if len(blob) <= LIMIT_BYTES:
        return blob, False
    return blob[:HALF_BYTES] + blob[-HALF_BYTES:], True


class Evidence:
    """The hits of one person, mutable: `hits` maps rule key to blob, `marked` names the rules that went over the limit."""

    __slots__ = ("hits", "marked")

    def __init__(self, hits: dict[bytes, bytes] | None = None, marked: frozenset[bytes] = NOTHING_MARKED) -> None:
        self.hits: dict[bytes, bytes] = {} if hits is None else hits
        self.marked = marked

    def add(self, rule: bytes, blob: bytes) -> bool:
        """Joins *blob* to the hits of *rule*; whether anything was new."""
        old = self.hits.get(rule)
        if old is None:
            joined = blob
        else:
            joined = insert(old, blob) if len(blob) == HIT_BYTES else union(old, blob)
            if joined is old:
                return False
        if len(joined) > LIMIT_BYTES:
            joined, _ = bounded(joined)
            if joined == old and rule in self.marked:
                return False
            self.marked |= {rule}
        self.hits[rule] = joined
        return True

    def join(self, hits: Hits, marked: Iterable[bytes] = ()) -> bool:
        """Joins all of *hits*; whether anything was new."""
        changed = False
        for rule, blob in hits.items():
            if self.add(rule, blob):
                changed = True
        extra = frozenset(marked) - self.marked
        if extra:
            self.marked |= extra
            changed = True
        return changed

    def forget(self, erased_at_ms: int) -> bool:
        """Drops every hit not after *erased_at_ms* (design, section 3, erasure); whether there was one."""
        after, changed = moment(erased_at_ms + 1), False
        for rule, blob in list(self.hits.items()):
            i = first_at_or_after(blob, after)
            if i:
                changed = True
                if i == len(blob):
                    del self.hits[rule]
                else:
                    self.hits[rule] = blob[i:]
        return changed
