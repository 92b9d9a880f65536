"""Contacts: walks over all contacts of a partition, a step at a time, and says how far a walk is. Changes nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import TYPE_CHECKING

from state import records

if TYPE_CHECKING:
    from .partition import Partition


def read_within(
    entries: Iterable[tuple[bytes, bytes]], size: int, room: int
) -> tuple[list[tuple[bytes, bytes]], bool]:
    """Return the first of *entries*, *size* or *room* bytes of them, and whether these are all there are."""
    found: list[tuple[bytes, bytes]] = []
    for entry in entries:
        found.append(entry)
        room -= len(entry[0]) + len(entry[1])
        if room <= 0:
            return found, False
    return found, len(found) < size


class Contacts:
    """The contacts of one partition, in the order of their ids as bytes. A *cursor* is the last contact of a step; empty before the first."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._marks: list[bytes] = []  # where the steps of the last complete walk ended
        self._walked: list[bytes] = []  # those of a walk that is not complete

    def step(
        self, cursor: bytes, size: int, room: int
    ) -> tuple[dict[bytes, bytes | None], list[bytes], bytes | None]:
        """Return the evidence records of the next contacts behind *cursor*, by their keys: *size*, or *room* bytes of them; these contacts; and the
        cursor behind them, None when they are the last."""
        partition, prefix = self._partition, records.EVIDENCE
        after = prefix + cursor if cursor else None
        read, done = read_within(partition.ledger.scan(prefix, after, size), size, room)
        found: dict[bytes, bytes | None] = dict(read)
        last = None if done else read[-1][0]
        low = after or prefix
        for decided in partition.overlay:
            found.update(
                (k, v)
                for k, v in decided.items()
                if k[:1] == prefix and k > low and (last is None or k <= last)
            )
        self._note(cursor, None if last is None else last[1:])
        return found, [key[1:] for key in sorted(found)], None if last is None else last[1:]

    def _note(self, cursor: bytes, following: bytes | None) -> None:
        """Remembers where steps end."""
        if not cursor:
            self._walked = []
        elif not self._walked or self._walked[-1] != cursor:
            return  # of another walk
        if following is None:
            self._marks, self._walked = self._walked, []
        else:
            self._walked.append(following)

    def ends(self) -> tuple[bytes, bytes] | None:
        """Return the first contact and the last; None when there is none, or they need not be known."""
        if self._marks:
            return None
        ledger = self._partition.ledger
        first = next((key for key, _ in ledger.scan(records.EVIDENCE, None, 1)), None)
        last = ledger.last(records.EVIDENCE)
        return None if first is None or last is None else (first[1:], last[1:])

    def passed(self, cursor: bytes, ends: tuple[bytes, bytes] | None = None) -> float:
        """Return how much of all contacts lies before *cursor*, 0 to 0.99: by the steps of the last
        complete walk, or else by the bytes of ids between *ends*, see `ends`."""
        if not cursor:
            return 0.0
        if self._marks:
            return min(0.99, bisect_left(self._marks, cursor) / len(self._marks))
        ends = ends or self.ends()
        if ends is None:
            return 0.0
        low, high, here = (
            int.from_bytes(key[:24].ljust(24, b"\0"), "big") for key in (*ends, cursor)
        )
        return 0.99 if high <= low else max(0.0, min(0.99, (here - low) / (high - low)))
