"""Batches: fetched bytes as aiokafka's record batches, whatever the names of headers are. Never changes a key, a value or an offset.

Kafka says that the name of a header is UTF-8 and does not look; aiokafka cannot read a batch with one that is not, and a consumer
would stop there for good. Such a batch is read once more, slowly, with those bytes written as `\\xff`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.memory_records import _MemoryRecordsPy

MAGIC_AT = _MemoryRecordsPy.MAGIC_OFFSET


def fill(batch: Any, items: Iterable[tuple[bytes | None, bytes | None]], headers: Iterable[list[Any]], times_ms: Iterable[int]) -> int:
    """Appends records (key and value, headers, timestamp of each; these may go on for longer) to an aiokafka batch builder until it is full; how many
    went in.

    What `batch.append` does for each, without its work for keys and values that have to be serialized: a third of the time.
    """
    append, begin = batch._builder.append, batch.record_count()
    count = begin
    for (key, value), mine, timestamp_ms in zip(items, headers, times_ms, strict=False):
        if append(count, timestamp_ms, key, value, mine) is None:
            batch.close()
            break
        count += 1
    batch._relative_offset = count
    return count - begin


def install() -> None:
    """Makes every consumer of this process read so. Safe to call again."""
    fetcher.MemoryRecords = Records


class Records(_MemoryRecordsPy):  # type: ignore[misc]
    """What one partition's fetch brought. Cuts it into batches; the batches are read by aiokafka's compiled code."""

    def next_batch(self, *_: Any) -> Any:
        """The next batch, None behind the last one."""
        part = self._next_slice
        if part is None or len(part) < self.MIN_SLICE or part[MAGIC_AT] < 2:
            if part is not None and len(part) >= self.MIN_SLICE:
                self._cache_next()
                return LegacyRecordBatch(part, part[MAGIC_AT])  # has no headers
            return super().next_batch()
        self._cache_next()
        return Batch(part)


class Batch:
    """A batch of records, as `DefaultRecordBatch` is one."""

    __slots__ = ("_batch", "_part")

    def __init__(self, part: memoryview) -> None:
        self._part = part
        self._batch = DefaultRecordBatch(part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        try:
            return iter(list(self._batch))
        except UnicodeDecodeError:
            return iter(list(_Slow(self._part)))

    def __next__(self) -> Any:
        """The first record, for whom it is a marker that ends a transaction."""
        return next(self._batch)


class _Slow(_DefaultRecordBatchPy):  # type: ignore[misc]
    """Reads in Python, names of headers by `_Escaped`."""

    def __iter__(self) -> _Slow:
        self._maybe_uncompress()
        self._buffer = _Escaped(self._buffer)
        return self


class _Escaped(bytearray):
    """Bytes whose parts, taken as text, are text."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Escaped(found) if isinstance(at, slice) else found

    def decode(self, *_: Any) -> str:  # type: ignore[override]
        return bytes(self).decode("utf-8", "backslashreplace")
