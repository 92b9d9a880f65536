"""Grouping: which of many keys are the same, from the bytes in which they stand."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from .compiled import Loops, check_inside, compiled

Array = np.ndarray[Any, Any]

_SEED = np.uint64(secrets.randbits(64))
"""Of the hash, so that nobody can choose many keys that fall together."""


def grouped(data: bytes, starts: Array, sizes: Array) -> tuple[list[bytes], Array, Array]:
    """(keys, rows, ends): the distinct keys in the order in which they came, and the rows of key *i*, in their order, from ends[i - 1] to before
    ends[i]. Row *n* has the key of sizes[n] bytes from starts[n] on; *starts*, *sizes*: int64 of one length.

    Raises IndexError for a key that is not inside.
    """
    check_inside(data, starts, sizes)
    n = len(starts)
    if not loops.ready:
        return _grouped_slowly([data[at : at + size] for at, size in zip(starts.tolist(), sizes.tolist(), strict=True)])
    group, first, rows, ends = (np.zeros(n, np.int64) for _ in range(4))
    table = np.full(2 << max(n, 1).bit_length(), -1, np.int64)
    groups = _grouped(np.frombuffer(data, np.uint8), starts, sizes, _SEED, table, group, first, rows, ends)
    first = first[:groups]
    keys = [data[at : at + size] for at, size in zip(starts[first].tolist(), sizes[first].tolist(), strict=True)]
    return keys, rows, ends[:groups]


def _grouped_slowly(keys: list[bytes]) -> tuple[list[bytes], Array, Array]:
    rows: dict[bytes, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    flat = [row for mine in rows.values() for row in mine]
    return [*rows], np.array(flat, np.int64), np.cumsum([len(mine) for mine in rows.values()], dtype=np.int64)


@Loops
def loops() -> None:
    one = np.zeros(1, np.int64)
    _grouped(np.frombuffer(b"", np.uint8), one, one, _SEED, np.full(4, -1, np.int64), one.copy(), one.copy(), one.copy(), one.copy())


@compiled
def _grouped(data: Array, starts: Array, sizes: Array, seed: Any, table: Array, group: Array, first: Array, rows: Array, ends: Array) -> int:
    """See `grouped`; returns how many keys there are. *table*: -1, of a power of two, longer than the rows are many; *group* and *first* are room."""
    groups, last_slot = 0, table.shape[0] - 1
    for row in range(starts.shape[0]):
        at, size = starts[row], sizes[row]
        h = seed
        for i in range(size):
            h = (h ^ np.uint64(data[at + i])) * np.uint64(0x9E3779B97F4A7C15)
            h ^= h >> np.uint64(29)
        slot = np.int64(h >> np.uint64(16)) & last_slot
        while True:
            found = table[slot]
            if found < 0:
                found = table[slot] = groups
                first[groups] = row
                groups += 1
                break
            there = starts[first[found]]
            same = sizes[first[found]] == size
            for i in range(size if same else 0):
                if data[at + i] != data[there + i]:
                    same = False
                    break
            if same:
                break
            slot = slot + 1 & last_slot
        group[row] = found
        ends[found] += 1
    behind = 0
    for i in range(groups):  # where each begins
        behind += ends[i]
        ends[i] = behind - ends[i]
    for row in range(starts.shape[0]):
        rows[ends[group[row]]] = row
        ends[group[row]] += 1
    return groups
