"""Outward: writes what leaves a worker (stage changes, handoffs, totals, rejected records), in order per partition, acknowledged by the broker.

Never reports a record as sent before all replicas have it; never reorders what one caller sends to one partition.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import aiokafka

from streams import batches
from streams.partitioner import partition_of
from streams.transport import start_producer

log = logging.getLogger(__name__)

Header = tuple[str, bytes]
Outgoing = tuple[int | None, bytes | None, bytes | None, list[Header], int]
"""(partition or None for the key's, key, value, headers, timestamp_ms)"""


class Outward:
    """A producer of its own, so that a large changelog batch never delays a stage change."""

    def __init__(self, kafka_options: Mapping[str, Any], client_id: str) -> None:
        self._options, self._client_id = kafka_options, client_id
        self._producer: aiokafka.AIOKafkaProducer | None = None
        self._counts: dict[str, int] = {}
        self._keyless = 0
        self._beside: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._producer = await start_producer(self._options, self._client_id)

    async def stop(self) -> None:
        """Waits for what runs beside, sends what is waiting, then closes the connections."""
        if self._beside:
            await asyncio.wait([*self._beside])
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()

    def beside(self, run: Coroutine[Any, Any, None]) -> None:
        """Runs *run*, which sends what must not be forgotten when its partition goes, to its end. What it raises is logged."""
        task = asyncio.get_running_loop().create_task(run)
        self._beside.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._beside.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("the truth cannot be asked for: %r", task.exception())

    async def send(self, topic: str, records: Sequence[Outgoing]) -> asyncio.Future[None]:
        """Hands *records* to the producer, one record batch a partition (more when they do not fit). Waits while the producer is full.

        The future ends once the broker has acknowledged every one; it raises what the broker answered. Without partition the key decides (Kafka's
        murmur2); without both, records go round the partitions. Raises `ValueError` for a record that no batch can hold.
        """
        producer = self._producer
        if producer is None:
            raise RuntimeError("the outward producer is not started")
        count = self._counts.get(topic)
        if count is None:
            count = self._counts[topic] = len(await producer.partitions_for(topic))
        by_partition: dict[int, list[Outgoing]] = {}
        for record in records:
            partition, key = record[0], record[1]
            if partition is None:
                if key is not None:
                    partition = partition_of(key, count)
                else:
                    self._keyless += 1
                    partition = self._keyless % count
            by_partition.setdefault(partition, []).append(record)
        acknowledged = []
        for partition, mine in by_partition.items():
            sent = 0
            while sent < len(mine):
                batch = producer.create_batch()
                _, keys, values, headers, times_ms = zip(*(mine[sent:] if sent else mine), strict=True)
                fitted = batches.fill(batch, zip(keys, values, strict=True), headers, times_ms)
                if not fitted:
                    raise ValueError(f"a record of {len(mine[sent][2] or b'')} bytes does not fit into a batch of {topic}")
                acknowledged.append(await producer.send_batch(batch, topic, partition=partition))
                sent += fitted
        return asyncio.ensure_future(_all(acknowledged))


async def _all(futures: list[asyncio.Future[Any]]) -> None:
    for future in futures:
        await future
