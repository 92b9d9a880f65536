"""Evidence: for each rule the set of its hits, joined by union (design, sections 2 and 5). Pure; knows no contact and no topic.

A *hit* is 16 bytes: the event time in milliseconds plus 2^63 as a big-endian u64, then the 8-byte hash of the activity's id. Bytes compare as
`(at, h)` does, so that the order of the design is the order of memcmp. The hits of a rule are one *blob*: sorted, distinct, concatenated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

HIT_BYTES = 16
LIMIT_HITS = 4096  # a rule; past it the earliest and the latest half stay (design, section 5)
LIMIT_BYTES = LIMIT_HITS * HIT_BYTES
RECORD_HEAD_BYTES, RECORD_RULE_BYTES = 4, 10  # of an evidence record, beside the hits: see `records`
MAX_RECORD_BYTES = 12 << 20  # of an evidence record; past it the limit of hits a rule is halved until the record fits
MAX_HALVINGS = 11  # leaves two hits a rule
MAX_RULES = (1 << 16) - 1  # of a record, which counts them in 16 bits; past it those with the smallest keys stay
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


def bounded(blob: bytes, limit_bytes: int = LIMIT_BYTES) -> tuple[bytes, bool]:
    """*blob* within the limit, and whether it was over it.

    Keeping the earliest and the latest half of a union is the same whether the parts were cut before or not, so bounded
    evidence is a join-semilattice still.
    """
    if len(blob) <= limit_bytes:
        return blob, False
    return blob[: limit_bytes // 2] + blob[-(limit_bytes // 2) :], True


def record_bytes(hits: Hits) -> int:
    """The size of the evidence record of *hits*."""
    return RECORD_HEAD_BYTES + RECORD_RULE_BYTES * len(hits) + sum(map(len, hits.values()))


class Evidence:
    """The hits of one person, mutable: `hits` maps rule key to blob, `marked` names the rules that went over the limit.

    `halvings`: how often the limit of hits a rule was halved, so that the record fits (`bound`). Which it is follows from the hits that ever came,
    not from their order: a part never needs more halvings than the whole, and cut at any of them it holds what the whole keeps of it.
    """

    __slots__ = ("halvings", "hits", "marked")

    def __init__(
        self, hits: dict[bytes, bytes] | None = None, marked: frozenset[bytes] = NOTHING_MARKED, halvings: int = 0
    ) -> None:
        self.hits: dict[bytes, bytes] = {} if hits is None else hits
        self.marked = marked
        self.halvings = halvings

    def add(self, rule: bytes, blob: bytes) -> bool:
        """Joins *blob* to the hits of *rule*; whether anything was new. The record may be too large afterwards: see `bound`."""
        old = self.hits.get(rule)
        if old is None:
            joined = blob
        else:
            joined = insert(old, blob) if len(blob) == HIT_BYTES else union(old, blob)
            if joined is old:
                return False
        limit_bytes = LIMIT_BYTES >> self.halvings
        if len(joined) > limit_bytes:
            joined, _ = bounded(joined, limit_bytes)
            if joined == old and rule in self.marked:
                return False
            self.marked |= {rule}
        self.hits[rule] = joined
        return True

    def join(self, hits: Hits, marked: Iterable[bytes] = (), halvings: int = 0) -> bool:
        """Joins all of *hits*; whether anything was new. The record may be too large afterwards: see `bound`."""
        changed = self.lower(halvings)
        for rule, blob in hits.items():
            if self.add(rule, blob):
                changed = True
        extra = frozenset(marked) - self.marked
        if extra:
            self.marked |= extra
            changed = True
        return changed

    def lower(self, halvings: int) -> bool:
        """Cuts all rules to the limit after so many *halvings*, unless it is that low already; whether it was not."""
        if halvings <= self.halvings:
            return False
        self.halvings, limit_bytes = halvings, LIMIT_BYTES >> halvings
        over = [rule for rule, blob in self.hits.items() if len(blob) > limit_bytes]
        for rule in over:
            self.hits[rule] = bounded(self.hits[rule], limit_bytes)[0]
        if over:
            self.marked |= frozenset(over)
        return True

    def bound(self) -> bool:
        """Cuts what is more than a record may hold; whether anything was. To be called before what was added is projected or written."""
        hits, cut = self.hits, False
        if len(hits) > MAX_RULES:
            for rule in sorted(hits)[MAX_RULES:]:
                del hits[rule]
            self.marked = frozenset(hits)  # whose hits went is known no more
            cut = True
        while self.halvings < MAX_HALVINGS and record_bytes(hits) > MAX_RECORD_BYTES:
            cut = self.lower(self.halvings + 1)
        return cut

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
