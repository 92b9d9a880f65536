"""Blocks: what a fetch brings, taken apart in bulk, without making an object of each record. Knows Kafka's message format 2, and no topic.

https://kafka.apache.org/documentation/#recordbatch
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from aiokafka import codec
from aiokafka.record.util import calc_crc32c

from schemas.compiled import Array, Loops, compiled
from schemas.grouping import grouped

HEADER = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length after it, leader epoch, magic, CRC, attributes, last offset delta, first and greatest timestamp, producer id and epoch, first
sequence, records."""
LENGTH_ENDS, CRC_ENDS = 12, 21
COMPRESSION, APPEND_TIME, TRANSACTIONAL, CONTROL = 0x07, 0x08, 0x10, 0x20
DECOMPRESS: dict[int, Callable[[bytes], bytes]] = {
    1: codec.gzip_decode, 2: codec.snappy_decode, 3: codec.lz4_decode, 4: codec.zstd_decode,
}  # fmt: skip
OFFSET, TIMESTAMP, KEY, KEY_SIZE, VALUE, VALUE_SIZE, HEADERS, COLUMNS = range(8)


class CorruptBatch(ValueError):
    """Bytes that are no record batch, or not what they were when they were written."""


class OldFormat(CorruptBatch):
    """A batch of before Kafka 0.11, which is not read here."""


class Record(NamedTuple):
    """One record. `timestamp`: milliseconds since 1970, -1 none. `headers`: a name that is not UTF-8 has those bytes as `\\xff` (see `batches`)."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class Absent(NamedTuple):
    """Offsets that hold no record although no transaction accounts for it: compaction removed them.

    `size` of the offsets from `first` to before `end`.
    """

    first: int
    end: int
    size: int


class Block(NamedTuple):
    """Consecutive records of a partition. `data`: their bytes; `spans`: int64, a row for each record, in offset order, with the columns

    OFFSET, TIMESTAMP (milliseconds since 1970, -1 none), KEY and VALUE (where in `data` they begin), KEY_SIZE and VALUE_SIZE (bytes, -1 null),
    HEADERS (how many). The block accounts for the offsets from `begin` to before `next`: each is a record of it, a marker or a record of an
    aborted transaction, or in `absent`.
    """

    data: bytes
    spans: Array
    next: int
    begin: int = 0
    absent: tuple[Absent, ...] = ()

    def __len__(self) -> int:
        return len(self.spans)

    def before(self, offset: int) -> Block:
        """The records before *offset*."""
        if self.next <= offset:
            return self
        rows = self.spans[: np.searchsorted(self.spans[:, OFFSET], offset)]
        absent = tuple(
            Absent(first, min(end, offset), min(size, offset - first))
            for first, end, size in self.absent
            if first < offset
        )
        return Block(self.data, rows, offset, min(self.begin, offset), absent)

    def record(self, row: int) -> Record:
        """The record of a row."""
        return self._record(self.spans[row].tolist())

    def records(self) -> Iterator[Record]:
        """All records, in order."""
        return map(self._record, self.spans.tolist())

    def _record(self, span: list[int]) -> Record:
        offset, timestamp, key, key_size, value, value_size, headers = span
        return Record(
            offset,
            timestamp,
            None if key_size < 0 else self.data[key : key + key_size],
            None if value_size < 0 else self.data[value : value + value_size],
            self._headers(value + max(value_size, 0), headers) if headers > 0 else (),
        )

    def _headers(self, at: int, count: int) -> tuple[tuple[str, bytes | None], ...]:
        """The *count* headers of a record whose value ends at *at*."""
        data, headers = self.data, []
        _, at = _varint_at(data, at)
        for _ in range(count):
            size, at = _varint_at(data, at)
            name, at = data[at : at + size].decode("utf-8", "backslashreplace"), at + size
            size, at = _varint_at(data, at)
            headers.append((name, None if size < 0 else data[at : at + size]))
            at += max(size, 0)
        return tuple(headers)

    def values(self) -> Iterator[bytes | None]:
        """The records' values."""
        for begin, size in self.spans[:, [VALUE, VALUE_SIZE]].tolist():
            yield None if size < 0 else self.data[begin : begin + size]


class Rows(Sequence[Record]):
    """Consecutive records of a partition, in blocks. Of what nobody looks at one by one, no object is made."""

    __slots__ = ("_size", "blocks")

    def __init__(self, *blocks: Block) -> None:
        self.blocks = [block for block in blocks if len(block)]
        self._size = sum(map(len, self.blocks))

    def __len__(self) -> int:
        return self._size

    def size_bytes(self) -> int:
        """Bytes that the blocks take."""
        return sum(len(block.data) for block in self.blocks)

    def __iter__(self) -> Iterator[Record]:
        for block in self.blocks:
            yield from block.records()

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> Rows: ...
    def __getitem__(self, at: int | slice) -> Record | Rows:
        """A record, or a part without steps."""
        if isinstance(at, slice):
            begin, end, step = at.indices(self._size)
            assert step == 1, "records follow each other"
            parts = []
            for block in self.blocks:
                if begin < len(block) and end > 0:
                    parts.append(Block(block.data, block.spans[max(begin, 0) : end], block.next))
                begin, end = begin - len(block), end - len(block)
            return Rows(*parts)
        row = at + self._size if at < 0 else at
        for block in self.blocks if row >= 0 else ():
            if row < len(block):
                return block.record(row)
            row -= len(block)
        raise IndexError(f"record {at} of {self._size}")

    def together(self) -> Block:
        """The same as one block."""
        if len(self.blocks) == 1:
            return self.blocks[0]
        at, parts = 0, []
        for block in self.blocks:
            spans = block.spans.copy()
            spans[:, [KEY, VALUE]] += at
            parts.append(spans)
            at += len(block.data)
        spans = np.concatenate(parts) if parts else np.empty((0, COLUMNS), np.int64)
        return Block(b"".join([block.data for block in self.blocks]), spans, self.blocks[-1].next if parts else 0)

    def apart(self) -> Iterator[Rows]:
        """The same, those of each block by themselves."""
        return map(Rows, self.blocks)

    def __iadd__(self, following: Rows) -> Rows:
        """Adds what was fetched next."""
        self.blocks += following.blocks
        self._size += len(following)
        return self


Records = Rows | list[Any]
"""Consecutive records of a partition (.offset .timestamp .key .value .headers)."""


@Loops
def loops() -> None:
    unpack(b"")


class Aborted:
    """Which batches belong to transactions that were aborted. *transactions*: (producer id, first offset) as a fetch lists them."""

    def __init__(self, transactions: Iterable[tuple[int, int]] = ()) -> None:
        self._coming = sorted(transactions, key=lambda one: one[1], reverse=True)
        self._now: set[int] = set()

    def holds(self, base_offset: int, producer: int, attributes: int, records: bytes) -> bool:
        """Whether the batch is to be left out; they are asked about in offset order. *records*: its bytes behind the header."""
        while self._coming and self._coming[-1][1] <= base_offset:
            self._now.add(self._coming.pop()[0])
        if attributes & CONTROL:
            if _is_abort(records):
                self._now.discard(producer)
            return True
        return bool(attributes & TRANSACTIONAL) and producer in self._now


def unpack(raw: bytes, from_offset: int = 0, aborted: Sequence[tuple[int, int]] = ()) -> Block:
    """The records in *raw*, what a fetch brought of one partition, from *from_offset* on.

    Those of *aborted* transactions and control records are left out; a batch that was cut off at the end is left for the next fetch.
    Raises CorruptBatch.
    """
    left_out, parts, heads = Aborted(aborted), [], []
    absent: list[Absent] = []
    at, size, following, total = 0, len(raw), from_offset, 0
    while at + HEADER.size <= size:
        base, length, _, magic, crc, attributes, last, first_ms, latest_ms, producer, _, _, count = HEADER.unpack_from(raw, at)
        if magic != 2:
            raise OldFormat(f"the batch at offset {base} has message format {magic}; only 2 can be read (Kafka has written it since 0.11)")
        behind = at + LENGTH_ENDS + length
        if behind > size:
            break
        if length < HEADER.size - LENGTH_ENDS or calc_crc32c(memoryview(raw)[at + CRC_ENDS : behind]) != crc:
            raise CorruptBatch(f"the batch at offset {base} fails its checksum")
        records = raw[at + HEADER.size : behind]
        at = behind
        if base + last < from_offset:
            continue
        if base > following:
            absent.append(Absent(following, base, base - following))
        if count <= last:
            first, end = max(base, from_offset), base + last + 1
            absent.append(Absent(first, end, min(last + 1 - count, end - first)))
        following = base + last + 1
        if left_out.holds(base, producer, attributes, records):
            continue
        if attributes & COMPRESSION:
            records = _decompressed(records, attributes & COMPRESSION, base)
        if not 0 <= count <= len(records):
            raise CorruptBatch(f"the batch at offset {base} says that it holds {count} records in {len(records)} bytes")
        parts.append(records)
        heads.append((base, first_ms, latest_ms if attributes & APPEND_TIME else -1, count, len(records)))
        total += count
    data, spans = b"".join(parts), np.empty((total, COLUMNS), np.int64)
    if total != _spans(np.frombuffer(data, np.uint8), np.array(heads, np.int64).reshape(-1, 5), spans):
        raise CorruptBatch(f"records behind offset {from_offset} are not as long as they say")
    if total and spans[0, OFFSET] < from_offset:  # a batch is sent whole
        spans = spans[np.searchsorted(spans[:, OFFSET], from_offset) :]
    return Block(data, spans, following, from_offset, tuple(absent))


def by_key(block: Block) -> tuple[list[bytes], Array, Array]:
    """The distinct keys and the rows of each (see `schemas.grouping.grouped`). No key at all is taken for an empty one."""
    return grouped(block.data, block.spans[:, KEY], np.maximum(block.spans[:, KEY_SIZE], 0))


def _decompressed(records: bytes, compression: int, base: int) -> bytes:
    try:
        return bytes(DECOMPRESS[compression](records))
    except Exception as error:  # each library has its own
        raise CorruptBatch(f"the batch at offset {base} cannot be decompressed (codec {compression}): {error}") from error


def _is_abort(records: bytes) -> bool:
    """Of a control batch: its key is (version, type), 0 for an abort."""
    head, spans = np.array([[0, 0, -1, 1, len(records)]], np.int64), np.empty((1, COLUMNS), np.int64)
    if _spans(np.frombuffer(records, np.uint8), head, spans) != 1 or spans[0, KEY_SIZE] < 4:
        return False
    at = int(spans[0, KEY])
    return records[at + 2 : at + 4] == b"\0\0"


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    """(value, where the next byte is). Raises IndexError past the end."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value >> 1 ^ -(value & 1), at


@compiled
def _varint(data: Array, at: int, end: int) -> tuple[Any, int]:
    """(value, where the next byte is); past *end* when it does not fit."""
    value = np.int64(0)
    shift = 0
    while at < end and shift < 64:
        byte = np.int64(data[at])
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return (value >> 1 & 0x7FFFFFFFFFFFFFFF) ^ -(value & 1), at
    return np.int64(0), end + 1


@compiled
def _spans(data: Array, heads: Array, spans: Array) -> int:
    """Writes a row for each record of the batches that follow each other in *data*; returns how many, -1 when they do not fit.

    *heads*: base offset, first timestamp, timestamp of all or -1, records, bytes.
    """
    row = 0
    at = 0
    for head in range(heads.shape[0]):
        base, first_ms, all_ms, count, size = heads[head]
        end = at + size
        if count < 0 or row + count > spans.shape[0]:
            return -1
        for _ in range(count):
            length, at = _varint(data, at, end)
            stop = at + length
            if at > end or length < 1 or stop > end:
                return -1
            at += 1  # attributes, unused
            delta_ms, at = _varint(data, at, stop)
            delta, at = _varint(data, at, stop)
            spans[row, 0] = base + delta
            spans[row, 1] = all_ms if all_ms >= 0 else first_ms + delta_ms
            for column in (2, 4):
                length, at = _varint(data, at, stop)
                if at > stop or length < -1 or at + length > stop:
                    return -1
                spans[row, column] = at
                spans[row, column + 1] = length
                at += max(length, 0)
            spans[row, 6], at = _varint(data, at, stop)
            if at > stop:
                return -1
            at = stop
            row += 1
        if at != end:
            return -1
    return row
