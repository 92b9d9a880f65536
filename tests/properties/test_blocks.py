"""Blocks hold what aiokafka reads from the same bytes, however they were batched, compressed, cut off or aborted; damaged bytes are refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.blocks import (
    CRC_ENDS,
    HEADERS,
    KEY,
    KEY_SIZE,
    OFFSET,
    TIMESTAMP,
    VALUE,
    VALUE_SIZE,
    Block,
    CorruptBatch,
    Rows,
    unpack,
)
from streams.replay import end_of

Sent = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]
blobs = st.none() | st.binary(max_size=40) | st.binary(min_size=1, max_size=4).map(lambda piece: piece * 200)
records = st.tuples(st.integers(0, 1 << 41), blobs, blobs, st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=2))
batches = st.lists(st.tuples(st.lists(records, min_size=1, max_size=6), st.integers(0, 4), st.integers(0, 3)), max_size=5)
PRODUCER = 7


def batch(base: int, sent: list[Sent], codec: int = 0, producer: int = -1) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, producer >= 0, producer, 0 if producer >= 0 else -1, 0 if producer >= 0 else -1, 1 << 30)
    for offset, (at_ms, key, value, headers) in enumerate(sent):
        assert builder.append(offset, at_ms, key, value, headers) is not None
    raw = bytearray(builder.build())
    raw[:8] = base.to_bytes(8, "big")
    return bytes(raw)


def marker(base: int, commit: bool, producer: int = PRODUCER) -> bytes:
    """The control batch that ends a transaction."""
    raw = bytearray(batch(base, [(0, struct.pack(">hh", 0, int(commit)), b"\0" * 6, [])], 0, producer))
    raw[22] |= 0x20
    raw[17:CRC_ENDS] = calc_crc32c(raw[CRC_ENDS:]).to_bytes(4, "big")
    return bytes(raw)


def log_of(made: list[tuple[list[Sent], int, int]]) -> bytes:
    raw, base = b"", 100
    for sent, codec, gap in made:
        raw += batch(base + gap, sent, codec)
        base += gap + len(sent)
    return raw


def rows(block: Block) -> list[tuple[Any, ...]]:
    def piece(begin: int, size: int) -> bytes | None:
        return None if size < 0 else block.data[begin : begin + size]

    table = block.spans.tolist()
    return [(row[OFFSET], row[TIMESTAMP], piece(row[KEY], row[KEY_SIZE]), piece(row[VALUE], row[VALUE_SIZE]), row[HEADERS]) for row in table]


def records_of(found: Any) -> list[tuple[Any, ...]]:
    return [(r.offset, r.timestamp, r.key, r.value, list(r.headers)) for r in found]


@settings(max_examples=300)
@given(batches, st.integers(0, 20), st.integers(0, 20), st.integers(0, 4))
def test_rows_are_the_records_that_aiokafka_reads(made: list[tuple[list[Sent], int, int]], begin: int, end: int, parts: int) -> None:
    cuts = [made[: parts + 1], made[parts + 1 :]]
    rows, expected, base = Rows(), [], 0
    for part in cuts:
        raw = b""
        for sent, codec, gap in part:
            raw += batch(base + gap, sent, codec)
            base += gap + len(sent)
        rows += Rows(unpack(raw))
        read = MemoryRecords(raw)
        while read.has_next():
            expected += list(read.next_batch())
    assert records_of(rows) == records_of(expected)
    assert len(rows) == len(expected)
    assert rows.size_bytes() >= sum(len(r.key or b"") + len(r.value or b"") for r in expected)
    assert records_of(rows[begin:end]) == records_of(expected[begin:end])
    assert records_of(rows[at] for at in range(-len(rows), len(rows))) == records_of(expected + expected)
    assert [r for alone in rows.apart() for r in records_of(alone)] == records_of(expected)
    for at in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            rows[at]


def test_the_name_of_a_header_that_is_no_text_is_told_with_its_bytes() -> None:
    raw = bytearray(batch(0, [(1, None, b"v", [("name", b"1")])]))
    at = raw.index(b"name")
    raw[at : at + 4] = b"n\xff\xfee"
    raw[17:CRC_ENDS] = calc_crc32c(raw[CRC_ENDS:]).to_bytes(4, "big")
    assert Rows(unpack(bytes(raw)))[0].headers == (("n\\xff\\xfee", b"1"),)


def as_aiokafka_reads(raw: bytes) -> list[tuple[Any, ...]]:
    found, read = [], MemoryRecords(raw)
    while read.has_next():
        found += [(r.offset, r.timestamp, r.key, r.value, len(r.headers)) for r in read.next_batch()]
    return found


@settings(max_examples=300, deadline=None)
@given(batches, st.integers(90, 130), st.integers(0, 80))
def test_a_block_holds_what_aiokafka_reads(made: list[tuple[list[Sent], int, int]], from_offset: int, cut: int) -> None:
    raw = log_of(made)
    raw = raw[: len(raw) - cut]
    block = unpack(raw, from_offset)
    expected = as_aiokafka_reads(raw)
    assert rows(block) == [row for row in expected if row[0] >= from_offset]
    assert [row[3] for row in rows(block)] == list(block.values())
    last = end_of(raw)
    assert last == (expected[-1][0] + 1 if expected else None)
    assert block.next == max(from_offset, last or 0)
    for before in (from_offset, from_offset + 3, 10_000):
        assert rows(block.before(before)) == [row for row in rows(block) if row[0] < before]


@settings(max_examples=500, deadline=None)
@given(batches.filter(bool), st.data())
def test_damaged_bytes_are_refused_or_cut_off(made: list[tuple[list[Sent], int, int]], data: st.DataObject) -> None:
    """A flipped byte behind the checksum is noticed; before it, it names another place, length or format, and nothing breaks."""
    raw = bytearray(log_of(made))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        unpack(bytes(raw))
    except CorruptBatch:
        return
    first = 12 + int.from_bytes(log_of(made)[8:12], "big")
    assert at < 17 or at >= first, "the checksum of the first batch lets nothing through"


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=80), st.integers(-1, 5), st.integers(0, 4))
def test_records_that_lie_about_their_length_are_refused(body: bytes, count: int, codec: int) -> None:
    """Even with a checksum that is right: no loop runs over the end."""
    raw = bytearray(batch(0, [(0, b"k", b"v", [])]))[:61] + body
    raw[8:12] = (len(raw) - 12).to_bytes(4, "big")
    raw[22] = codec
    raw[57:61] = count.to_bytes(4, "big", signed=True)
    raw[17:CRC_ENDS] = calc_crc32c(raw[CRC_ENDS:]).to_bytes(4, "big")
    try:
        block = unpack(bytes(raw))
    except CorruptBatch:
        return
    for row in block.spans.tolist():
        assert row[KEY] + max(row[KEY_SIZE], 0) <= len(block.data)
        assert row[VALUE] + max(row[VALUE_SIZE], 0) <= len(block.data)


def test_what_was_aborted_is_left_out_and_what_comes_after_is_not() -> None:
    one: list[Sent] = [(1, b"k", b"aborted", [])]
    raw = batch(0, one, 0, PRODUCER) + batch(1, [(1, b"k", b"other", [])], 0, 8) + batch(2, one, 3, PRODUCER) + marker(3, commit=False)
    raw += batch(4, [(1, b"k", b"kept", [])], 0, PRODUCER) + marker(5, commit=True) + batch(6, [(1, b"k", b"plain", [])])
    raw += marker(7, commit=False, producer=8)
    block = unpack(raw, 0, [(PRODUCER, 0)])
    assert list(block.values()) == [b"other", b"kept", b"plain"]
    assert block.next == 8
    assert list(unpack(raw, 0, [(PRODUCER, 0), (8, 1)]).values()) == [b"kept", b"plain"]


def test_times_that_the_broker_set_are_those_of_the_batch() -> None:
    raw = bytearray(batch(0, [(5, b"k", b"1", []), (9, b"k", b"2", [])]))
    raw[22] |= 0x08
    raw[35:43] = (1_700_000_000_000).to_bytes(8, "big")
    raw[17:CRC_ENDS] = calc_crc32c(raw[CRC_ENDS:]).to_bytes(4, "big")
    assert unpack(bytes(raw)).spans[:, TIMESTAMP].tolist() == [1_700_000_000_000] * 2


def test_an_old_format_is_named() -> None:
    raw = bytearray(batch(3, [(5, b"k", b"1", [])]))
    raw[16] = 1
    with pytest.raises(CorruptBatch, match="message format 1; only 2"):
        unpack(bytes(raw))
