"""Small verbs for tests that write to a broker and read it back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from confluent_kafka import Producer

from streams.blocks import OFFSET, Block, unpack
from streams.reader import read_log
from streams.replay import read_blocks
from streams.settings import Settings, librdkafka_config
from tests.support import PATIENCE_SECONDS

Written = tuple[int, int]
"""(partition, offset)"""


class Record(NamedTuple):
    """A record as the transport delivers it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Any = ()


def block_of(log: Sequence[Any]) -> Block:
    """Records of a partition with `.offset`, `.timestamp`, `.key`, `.value` and `.headers` as a block, as if they had been fetched."""
    if not log:
        return unpack(b"")
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 30)
    for record in log:
        assert builder.append(record.offset - log[0].offset, record.timestamp, record.key, record.value, list(record.headers)) is not None
    raw = bytearray(builder.build())
    raw[:8] = log[0].offset.to_bytes(8, "big")  # not part of the checksum
    return unpack(bytes(raw))


def write(settings: Settings, topic: str, records: Iterable[dict[str, Any]], **config: Any) -> list[Written]:
    """Writes *records* (arguments of librdkafka's `produce`) and waits; where each one went. AssertionError when one was refused."""
    producer = Producer(librdkafka_config(settings) | {"message.max.bytes": 64 << 20, "partitioner": "murmur2_random"} | config)
    places: dict[int, Written] = {}

    def delivered(index: int) -> Any:
        def note(error: Any, message: Any) -> None:
            assert error is None, error
            places[index] = (message.partition(), message.offset())

        return note

    count = 0
    for record in records:
        producer.produce(topic, on_delivery=delivered(count), **record)
        count += 1
    assert producer.flush(PATIENCE_SECONDS) == 0, "not all records were acknowledged"
    return [places[index] for index in range(count)]


def whole(settings: Settings, topic: str, **options: Any) -> dict[int, list[Any]]:
    """All records of a topic by partition, in however many chunks they come. Partitions without records are left out."""
    found: dict[int, list[Any]] = {}
    for partition, records in read_log(settings, topic, **options):
        found.setdefault(partition, []).extend(records)
    return found


def values(settings: Settings, topic: str, **options: Any) -> dict[int, list[tuple[int, bytes | None]]]:
    """All of a topic: partition -> [(offset, value)]. Partitions without records are left out."""
    found = whole(settings, topic, **options)
    return {p: [(record.offset(), record.value()) for record in records] for p, records in found.items()}


def values_in_bulk(settings: Settings, topic: str, **options: Any) -> dict[int, list[tuple[int, bytes | None]]]:
    """The same, read in blocks."""
    found: dict[int, list[tuple[int, bytes | None]]] = {}
    for partition, block in read_blocks(settings, topic, **options):
        if len(block):
            found.setdefault(partition, []).extend(zip(block.spans[:, OFFSET].tolist(), block.values(), strict=True))
    return found
