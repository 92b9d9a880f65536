"""Batches as they are fetched: read as aiokafka reads them, and also where the name of a header is not UTF-8."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchBuilderPy
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from streams.batches import Records, fill

GZIP = DefaultRecordBatch.CODEC_GZIP


class Name(str):
    """The name of a header that goes out as other bytes than UTF-8."""

    def encode(self, *_: Any) -> bytes:
        return b"\xff\xfen"


def batch(base: int, *headers: list[tuple[str, bytes | None]], codec: int = 0) -> bytes:
    builder = _DefaultRecordBatchBuilderPy(
        magic=2, compression_type=codec, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1 << 20
    )
    for offset, mine in enumerate(headers):
        assert builder.append(offset, 1000 + offset, b"\xff%d" % offset if offset else None, b"v" if offset != 1 else None, mine) is not None
    raw = bytearray(builder.build())
    raw[:8] = base.to_bytes(8, "big")
    return bytes(raw)


def legacy() -> bytes:
    builder = LegacyRecordBatchBuilder(magic=1, compression_type=0, batch_size=1 << 20)
    builder.append(0, timestamp=5, key=b"k", value=b"old")
    return bytes(builder.build())


def rows(records: Any) -> list[tuple[Any, ...]]:
    found = []
    while records.has_next():
        one = records.next_batch()
        assert one.validate_crc()
        found += [(r.offset, r.timestamp, r.key, r.value, list(r.headers)) for r in one]
        assert one.next_offset > found[-1][0]
    assert records.next_batch() is None
    return found


@pytest.mark.parametrize("codec", [0, GZIP])
def test_batches_are_read_as_aiokafka_reads_them(codec: int) -> None:
    raw = batch(7, [], [("a", b"1"), ("a", None), ("ü", b"")], [], codec=codec) + batch(20, [("z", b"\xff")], codec=codec)
    assert rows(Records(raw)) == rows(MemoryRecords(raw))
    assert rows(Records(legacy())) == rows(MemoryRecords(legacy())) != []
    assert Records(raw).size_in_bytes() == MemoryRecords(raw).size_in_bytes()
    cut = Records(raw[:-3])
    assert len(rows(cut)) == 3, "what is cut off is fetched again"


@pytest.mark.parametrize("codec", [0, GZIP])
def test_a_header_whose_name_is_not_utf8_stops_nobody(codec: int) -> None:
    raw = batch(7, [("before", b"1")], [(Name("x"), b"\xff"), ("ü", None)], [], codec=codec) + batch(10, [])
    with pytest.raises(UnicodeDecodeError):
        rows(MemoryRecords(raw))
    assert rows(Records(raw)) == [
        (7, 1000, None, b"v", [("before", b"1")]), (8, 1001, b"\xff1", None, [("\\xff\\xfen", b"\xff"), ("ü", None)]), (9, 1002, b"\xff2", b"v", []),
        (10, 1000, None, b"v", []),
    ]  # fmt: skip


def test_a_batch_is_filled_as_aiokafka_fills_it() -> None:
    items: list[tuple[bytes | None, bytes | None]] = [(b"k%d" % n, None if n == 2 else b"v" * n) for n in range(40)]
    for room in (200, 1 << 20):
        for headers in ([], [("a", b"1")]):
            one, other = BatchBuilder(room, 0), BatchBuilder(room, 0)
            count = fill(one, items, repeat(headers), range(5, 45))
            for (key, value), at_ms in zip(items, range(5, 45), strict=True):
                if other.append(timestamp=at_ms, key=key, value=value, headers=headers) is None:
                    break
            assert count == one.record_count() == other.record_count()
            assert (count < len(items)) == one.closed() == (room == 200)
            assert bytes(one._build()) == bytes(other._build())
