"""Grouping: which of many keys are the same, from the bytes in which they stand."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np

from .compiled import Array, Loops, check_inside, compiled

_SEED = np.uint64(secrets.randbits(64))
"""Of the hash, so that nobody can choose many keys that fall together."""


def grouped(data: bytes, starts: Array, sizes: Array) -> tuple[list[bytes], Array, Array]:
    """(keys, rows, ends): the distinct keys, and the rows of key *i*, in their order, from ends[i - 1] to before ends[i]. Row *n* has the key of
    sizes[n] bytes from starts[n] on; *starts*, *sizes*: int64 of one length.

    Keys come nearly in the order of their bytes, since RocksDB reads and writes neighbours faster than what lies about: by the eight bytes behind
    those that all have in common. Raises IndexError for a key that is not inside.
    """
    check_inside(data, starts, sizes)
    starts, sizes = np.ascontiguousarray(starts), np.ascontiguousarray(sizes)  # other layouts would be compiled for anew
    n = len(starts)
    if not loops.ready:
        return _grouped_slowly([data[at : at + size] for at, size in zip(starts.tolist(), sizes.tolist(), strict=True)])
    group, first, rows, ends = (np.zeros(n, np.int64) for _ in range(4))
    table = np.full(2 << max(n, 1).bit_length(), -1, np.int64)
    order = _grouped(np.frombuffer(data, np.uint8), starts, sizes, _SEED, table, group, first, rows, ends)
    first, groups = first[order], len(order)
    keys = [data[at : at + size] for at, size in zip(starts[first].tolist(), sizes[first].tolist(), strict=True)]
    return keys, rows, ends[:groups]


def _grouped_slowly(keys: list[bytes]) -> tuple[list[bytes], Array, Array]:
    rows: dict[bytes, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    ordered = sorted(rows)
    flat = [row for key in ordered for row in rows[key]]
    return ordered, np.array(flat, np.int64), np.cumsum([len(rows[key]) for key in ordered], dtype=np.int64)


@Loops
def loops() -> None:
    one = np.zeros(1, np.int64)
    _grouped(np.frombuffer(b"", np.uint8), one, one, _SEED, np.full(4, -1, np.int64), one.copy(), one.copy(), one.copy(), one.copy())


@compiled
def _grouped(data: Array, starts: Array, sizes: Array, seed: Any, table: Array, group: Array, first: Array, rows: Array, ends: Array) -> Array:
    """See `grouped`; returns the order of the keys, by the number of each among those that came, of whose rows *first* is the first.

    *table*: -1, of a power of two, longer than the rows are many; *group* is room.
    """
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
    common = sizes[0] if groups else 0  # bytes that all keys begin with
    for i in range(1, groups):
        at, there = starts[first[i]], starts[0]
        same = 0
        while same < min(common, sizes[first[i]]) and data[at + same] == data[there + same]:
            same += 1
        common = same
    places = np.zeros(groups, np.uint64)
    for i in range(groups):
        for k in range(common, common + 8):
            byte = data[starts[first[i]] + k] if k < sizes[first[i]] else 0
            places[i] = places[i] << np.uint64(8) | np.uint64(byte)
    order = np.argsort(places, kind="mergesort")  # whatever keys somebody chooses, it takes no longer
    counts = ends[:groups].copy()
    begin = np.empty(groups, np.int64)
    behind = 0
    for i in range(groups):
        begin[order[i]] = behind
        behind += counts[order[i]]
        ends[i] = behind
    for row in range(starts.shape[0]):
        rows[begin[group[row]]] = row
        begin[group[row]] += 1
    return order
