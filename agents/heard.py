"""Heard: a stretch of the changelog by key, and which keys need a closer look. Joins nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from state import joining, records
from streams import blocks
from streams.blocks import KEY, KEY_SIZE, VALUE, VALUE_SIZE, Block, Rows


class Heard:
    """`last`: the last value of each key. *changes*: records of the changelog in the order of the log."""

    def __init__(self, changes: Sequence[Any]) -> None:
        self.last: dict[bytes, bytes | None] = {}
        self._all: dict[bytes, list[bytes | None]] = {}
        self._block: Block | None = None
        if isinstance(changes, Rows) and joining.loops.ready:
            self._block = block = changes.together()
            keys, self._rows, self._ends = blocks.by_key(block)
            self._number = {key: n for n, key in enumerate(keys)}
            last = block.spans[self._rows[self._ends - 1]][:, [VALUE, VALUE_SIZE]].tolist()
            self.last = {key: _value(block.data, *span) for key, span in zip(keys, last, strict=True)}
            return
        for record in changes:
            self._all.setdefault(record.key, []).append(record.value)
            self.last[record.key] = record.value

    def doubtful(self) -> list[bytes]:
        """The keys whose last value needs a closer look: all but plain evidence, as most are."""
        block = self._block
        if block is None:
            return [*self.last]
        spans = block.spans[self._rows[self._ends - 1]][:, [KEY, KEY_SIZE, VALUE, VALUE_SIZE]]
        certain = joining.certain(block.data, spans).tolist()
        return [key for key, n in self._number.items() if not certain[n]]

    def values(self, key: bytes) -> list[bytes | None]:
        """All values of *key*, in the order of the log."""
        block = self._block
        if block is None:
            return [*self._all[key]]
        n = self._number[key]
        rows = self._rows[self._ends[n - 1] if n else 0 : self._ends[n]]
        return [_value(block.data, *span) for span in block.spans[rows][:, [VALUE, VALUE_SIZE]].tolist()]

    def unsettled(self, old: Mapping[bytes, bytes]) -> list[bytes]:
        """The keys that are in `last` still of which the last value may not be what *old*, the value before, and all others come to.

        As a rule it is: the last record of a holder's evidence says all that those before it do.
        """
        block = self._block
        if block is None:
            return [*self.last]
        number, ends = self._number, self._ends
        begins = np.concatenate([[0], ends[:-1]])
        of = np.fromiter((number[key] for key in old), np.int64, len(old))
        sizes = np.fromiter(map(len, old.values()), np.int64, len(old))
        starts = len(block.data) + np.cumsum(sizes) - sizes
        settled = joining.settled(
            b"".join([block.data, *old.values()]),
            np.insert(block.spans[self._rows, VALUE], begins[of], starts),
            np.insert(block.spans[self._rows, VALUE_SIZE], begins[of], sizes),
            ends + np.cumsum(np.bincount(of, minlength=len(ends))),
        ).tolist()
        return [key for key in self.last if key[:1] != records.EVIDENCE or not settled[number[key]]]


def _value(data: bytes, at: int, size: int) -> bytes | None:
    return None if size < 0 else data[at : at + size]
