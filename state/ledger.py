"""Ledger: one partition's RocksDB. The edge module of `state`; it reads and writes bytes and decides nothing.

| key | value |
|---|---|
| `e`, `i` | records, see `records` |
| `x`, `t` | index and totals of views, see `views` |
| `v` + view id | a view: its journey as JSON and its scan cursor |
| `p` + name | positions: `changelog`, and the next offset of each source topic |
| `#` | the format of all this; a directory of another one is emptied when it is opened, and filled again from the changelog |
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, cast

import rocksdict

BLOCK_BYTES = 4 << 10
BLOOM_BITS = 10
RECENT_SHIFT = 2  # a quarter of the memory keeps records at hand: people come in visits, of several activities each
BESIDE_SHIFT = 2  # a quarter of it is what is on its way to the broker and to RocksDB, and what an allocator cannot give back
RECENT_OVERHEAD_BYTES = 160  # of an entry: two objects and their place in a dict
MEMTABLE_BYTES = 4 << 20  # one of the size of a processor's cache takes a write in two thirds of the time that one of 32 MiB needs
RECORDS = b"ei"  # see the table above
FORMAT_KEY, FORMAT = b"#", b"1"


class Memory:
    """What the ledgers of a process share: one block cache, one write-buffer manager and room for recent records, which with what is under way take
    about *memory_mb* MiB. RocksDB's own defaults would take that much for each partition.
    """

    def __init__(self, memory_mb: int) -> None:
        self.recent_bytes = memory_mb << 20 >> RECENT_SHIFT
        """For records that were written last, of all ledgers."""
        self.ledgers = 0
        """How many are open."""
        self.beside_bytes = memory_mb << 20 >> BESIDE_SHIFT
        """For what is on its way, and in recovery for what was read and is not joined yet."""
        total = (memory_mb << 20) - self.recent_bytes - self.beside_bytes
        self.cache = rocksdict.Cache(total)
        self.buffer_bytes = total // 3
        # write buffers are charged to the cache, so that both together keep to the setting
        self.buffers = rocksdict.WriteBufferManager.new_write_buffer_manager_with_cache(
            self.buffer_bytes, False, self.cache
        )

    def options(self) -> rocksdict.Options:
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_manager(self.buffers)
        options.set_write_buffer_size(max(1 << 20, min(MEMTABLE_BYTES, self.buffer_bytes // 4)))
        options.set_level_zero_file_num_compaction_trigger(8)  # of such small files
        options.set_max_write_buffer_number(3)
        options.set_allow_concurrent_memtable_write(False)  # each has one writer; preparing for more costs a quarter of a write
        options.set_max_open_files(128)
        options.set_compression_type(rocksdict.DBCompressionType.lz4())
        options.set_keep_log_file_num(2)
        options.set_max_total_wal_size(64 << 20)
        table = rocksdict.BlockBasedOptions()
        table.set_bloom_filter(BLOOM_BITS, False)
        table.set_block_cache(self.cache)
        table.set_block_size(BLOCK_BYTES)
        table.set_data_block_index_type(rocksdict.DataBlockIndexType.binary_and_hash())
        table.set_cache_index_and_filter_blocks(True)
        table.set_pin_l0_filter_and_index_blocks_in_cache(True)
        options.set_block_based_table_factory(table)
        return options


class Ledger:
    """The RocksDB in *path*, opened at once; `close` releases its lock. `emptied`: the format that was there and is not known, else None."""

    def __init__(self, path: Path, memory: Memory) -> None:
        self.path = path
        self.emptied: bytes | None = None
        path.mkdir(parents=True, exist_ok=True)
        self._db = rocksdict.Rdict(str(path), options=memory.options())
        found = self._db.get(FORMAT_KEY)
        if found is not None and found != FORMAT:
            self._db.close()
            wipe(path)
            path.mkdir(parents=True)
            self._db, self.emptied = rocksdict.Rdict(str(path), options=memory.options()), found
        if found != FORMAT:  # a new one, or one of before formats were written down, which was the first
            self._db.put(FORMAT_KEY, FORMAT)
        self._memory = memory
        memory.ledgers += 1
        # Records written last, and those before them; they are in RocksDB as well. The former become the latter once they take half of the room.
        self._recent: dict[bytes, bytes] = {}
        self._before: dict[bytes, bytes] = {}
        self._recent_bytes = 0  # an upper bound: what is written again counts again
        self.get: Any = self._db.get  # bytes -> bytes | None, or a list of keys -> a list of values

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of *keys*, in their order; None where there is none."""
        values: list[bytes | None] = list(map(self._recent.get, keys))
        if None in values:
            before = self._before.get
            values = [before(key) if value is None else value for key, value in zip(keys, values, strict=True)]
        absent = [i for i, value in enumerate(values) if value is None]
        if absent:
            for i, value in zip(absent, self.get([keys[i] for i in absent]), strict=True):
                values[i] = value
        return values

    def write(
        self, changes: Iterable[tuple[bytes, bytes | None]], drop: Iterable[tuple[bytes, bytes]] = (),
        records: Mapping[bytes, bytes | None] = {},
    ) -> None:
        """All of *records*, of contacts, and *changes* in one WriteBatch; None deletes. *drop* are ranges `[from, to)` deleted before."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for start, end in drop:
            batch.delete_range(start, end)
            if start[:1] <= RECORDS[1:] and end > RECORDS[:1]:
                self._forget()
        put, delete = batch.put, batch.delete
        recent, size = self._recent, self._recent_bytes
        if None in records.values():
            changes = chain(records.items(), changes)
        else:  # as nearly always: many, and all are kept at hand
            for entry in records.items():
                put(*entry)
            recent.update(cast(Mapping[bytes, bytes], records))
            size += batch.size_in_bytes() + RECENT_OVERHEAD_BYTES * len(records)
        for key, value in changes:
            if value is None:
                delete(key)
                if key[0] in RECORDS:
                    recent.pop(key, None)
                    self._before.pop(key, None)
            else:
                put(key, value)
                if key[0] in RECORDS:
                    recent[key] = value
                    size += len(key) + len(value) + RECENT_OVERHEAD_BYTES
        self._db.write(batch)
        self._recent_bytes = size
        if size > self._memory.recent_bytes // (2 * self._memory.ledgers):
            self._before, self._recent, self._recent_bytes = recent, {}, 0

    def scan(
        self, prefix: bytes, after: bytes | None = None, limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Entries whose key begins with *prefix*, in order, those after the key *after* only, at most *limit*."""
        it = self._db.iter()
        it.seek(prefix if after is None else max(prefix, after + b"\0"))
        while it.valid() and (limit is None or limit > 0):
            key = it.key()
            if not key.startswith(prefix):
                break
            yield key, it.value()
            if limit is not None:
                limit -= 1
            it.next()
        del it  # a live iterator keeps the lock of a closed RocksDB

    def scan_back(self, prefix: bytes, before: bytes | None, limit: int) -> Iterator[tuple[bytes, bytes]]:
        """Entries whose key begins with *prefix*, the last first, those before the key *before* only, at most *limit*."""
        it = self._db.iter()
        end = prefix_end(prefix) if before is None else min(before, prefix_end(prefix))
        it.seek_for_prev(end)
        if it.valid() and it.key() >= end:
            it.prev()
        while it.valid() and limit > 0:
            key = it.key()
            if not key.startswith(prefix):
                break
            yield key, it.value()
            limit -= 1
            it.prev()
        del it  # as above

    def last(self, prefix: bytes) -> bytes | None:
        """The last key that begins with *prefix*."""
        return next((key for key, _ in self.scan_back(prefix, None, 1)), None)

    def size_bytes(self) -> int:
        """Bytes of the files on disk."""
        found = 0
        for file in self.path.iterdir():
            with suppress(FileNotFoundError):  # compacted away meanwhile
                found += file.stat().st_size
        return found

    def close(self) -> None:
        """Closes the RocksDB and releases its lock."""
        self._forget()
        self._memory.ledgers -= 1
        del self.get
        self._db.close()

    def _forget(self) -> None:
        self._recent, self._before, self._recent_bytes = {}, {}, 0


def wipe(path: Path) -> None:
    """Removes a closed ledger from disk."""
    shutil.rmtree(path, ignore_errors=True)


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with *prefix*, which is not all 0xff."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes((head[-1] + 1,))
