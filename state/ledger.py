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

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
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
DAMAGE = ("Corruption", "No such file or directory", "Input/output error")
"""What RocksDB's errors say when its files are not as it wrote them."""
KEPT_ASIDE = 2  # damaged ledgers beside each other
_RECOVERED = re.compile(r"Recovered from manifest file:.*? log_number is (\d+)")
_NUMBER = re.compile(r"(?:MANIFEST-)?(\d+)(?:\.log)?")


class Damaged(Exception):
    """RocksDB cannot read a ledger: a checksum is wrong, or a file. It is filled again from the changelog."""

    def __init__(self, path: Path, why: object) -> None:
        super().__init__(f"the RocksDB in {path} is damaged: {' '.join(str(why).split())}")
        self.path = path


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
    """The RocksDB in *path*, opened at once; `close` releases its lock. `emptied`: the format that was there and is not known, else None.

    Every method raises Damaged where RocksDB finds that its files are not as it wrote them;
    `on_damage` is called before.
    """

    def __init__(self, path: Path, memory: Memory) -> None:
        self.path = path
        self.emptied: bytes | None = None
        self.on_damage: Callable[[Damaged], None] = lambda damage: None
        path.mkdir(parents=True, exist_ok=True)
        try:
            self._open(memory)
        except Exception as error:
            self._judge(error)
            raise

    def _open(self, memory: Memory) -> None:
        path = self.path
        logs, manifest = _first_log(path), _manifest_number(path)
        self._db = rocksdict.Rdict(str(path), options=memory.options())
        try:
            if logs is not None and _has_hole(path, logs, manifest):
                raise Damaged(path, "Corruption: the manifest is older than the write-ahead log")
            found = self._db.get(FORMAT_KEY)
        except BaseException:
            with suppress(Exception):  # it is damaged
                self._db.close()
            raise
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

    def get(self, key: Any) -> Any:
        """The value of a key, or None; of a list of keys, a list of values."""
        try:
            return self._db.get(key)
        except Exception as error:
            self._judge(error)
            raise

    def _judge(self, error: Exception) -> None:
        """Raise Damaged in the place of *error* when that says so."""
        if isinstance(error, Damaged):
            self.on_damage(error)
            return
        if any(what in str(error) for what in DAMAGE):
            damage = Damaged(self.path, error)
            self.on_damage(damage)
            raise damage from error

    def _raise(self, error: Exception | None) -> None:
        if error is not None:
            self._judge(error)
            raise error

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
        try:
            self._db.write(batch)
        except Exception as error:
            self._judge(error)
            raise
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
        error = _error_of(it)
        del it  # a live iterator keeps the lock of a closed RocksDB
        self._raise(error)

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
        error = _error_of(it)
        del it  # as above
        self._raise(error)

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
        try:
            self._db.close()
        except Exception as error:  # what it could not write is in the changelog
            if not any(what in str(error) for what in DAMAGE):
                raise

    def _forget(self) -> None:
        self._recent, self._before, self._recent_bytes = {}, {}, 0


def wipe(path: Path) -> None:
    """Removes a closed ledger from disk."""
    shutil.rmtree(path, ignore_errors=True)


def _error_of(it: Any) -> Exception | None:
    """Return why the iterator *it* ended before its end, None when it did not."""
    try:
        it.status()
    except Exception as error:
        return error.with_traceback(None)  # which would keep the iterator
    return None


def set_aside(path: Path, stamp: str) -> tuple[Path, list[Path]]:
    """Rename the closed, damaged ledger *path*; return its new place, and which older ones were removed."""
    place = path.with_name(f"damaged-{path.name}-{stamp}")
    path.rename(place)
    aside = sorted(path.parent.glob("damaged-*"), key=lambda one: one.name.rpartition("-")[2])
    removed = [one for one in aside[:-KEPT_ASIDE] if one != place]
    for one in removed:
        wipe(one)
    return place, removed


def _numbers(path: Path, pattern: str) -> list[int]:
    matches = (_NUMBER.fullmatch(one.name) for one in path.glob(pattern))
    return [int(found[1]) for found in matches if found is not None]


def _first_log(path: Path) -> int | None:
    """Return the number of the oldest write-ahead log, None without one."""
    return min(_numbers(path, "*.log"), default=None)


def _manifest_number(path: Path) -> int:
    """Return the number of the manifest in use, 0 when none is."""
    try:
        found = _NUMBER.fullmatch((path / "CURRENT").read_text(errors="replace").strip())
    except OSError:
        return 0
    return 0 if found is None else int(found[1])


def _has_hole(path: Path, first_log: int, manifest: int) -> bool:
    """Return True when writes between the manifest and the oldest write-ahead log are lost.

    A manifest whose end is gone opens without an error: files that it does not name any more are
    deleted, and what comes behind them is read from the log. A whole one names the log that is to be
    read first; or none was since RocksDB was opened, which made the log next to the manifest.
    """
    found = _RECOVERED.findall((path / "LOG").read_text(errors="replace"))
    return bool(found) and first_log > max(int(found[-1]), manifest)


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all that begin with *prefix*, which is not all 0xff."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes((head[-1] + 1,))
