"""Small verbs for tests that write to a broker and read it back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from confluent_kafka import Producer

from streams.blocks import OFFSET
from streams.reader import read_log
from streams.replay import read_blocks
from streams.settings import Settings, librdkafka_config

Written = tuple[int, int]
"""(partition, offset)"""


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
    assert producer.flush(30) == 0, "not all records were acknowledged"
    return [places[index] for index in range(count)]


def values(settings: Settings, topic: str, **options: Any) -> dict[int, list[tuple[int, bytes | None]]]:
    """All of a topic: partition -> [(offset, value)]. Partitions without records are left out."""
    found: dict[int, list[tuple[int, bytes | None]]] = {}
    for partition, records in read_log(settings, topic, **options):
        found.setdefault(partition, []).extend((record.offset(), record.value()) for record in records)
    return found


def values_in_bulk(settings: Settings, topic: str, **options: Any) -> dict[int, list[tuple[int, bytes | None]]]:
    """The same, read in blocks."""
    found: dict[int, list[tuple[int, bytes | None]]] = {}
    for partition, block in read_blocks(settings, topic, **options):
        if len(block):
            found.setdefault(partition, []).extend(zip(block.spans[:, OFFSET].tolist(), block.values(), strict=True))
    return found
