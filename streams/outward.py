"""Outward: writes what leaves a worker (stage changes, handoffs, totals, rejected records), in order per partition, acknowledged by the broker.

Never reports a record as sent before all replicas have it; never reorders what one caller sends to one partition. A record that is larger than its
topic takes is left out, logged and counted (`unsent`): whoever makes records keeps them smaller, and no single one may end a worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import aiokafka
from aiokafka.errors import MessageSizeTooLargeError

from streams import batches
from streams.partitioner import partition_of
from streams.transport import MAX_REQUEST_BYTES, start_producer

log = logging.getLogger(__name__)

Header = tuple[str, bytes]
Outgoing = tuple[int | None, bytes | None, bytes | None, list[Header], int]
"""(partition or None for the key's, key, value, headers, timestamp_ms)"""


class Outward:
    """A producer of its own, so that a large changelog batch never delays a stage change. *limits*: topic -> the largest record batch it takes, in
    bytes; brokers differ in what they take beyond it."""

    def __init__(self, kafka_options: Mapping[str, Any], client_id: str, limits: Mapping[str, int] = {}) -> None:
        self._options, self._client_id, self._limits = kafka_options, client_id, limits
        self.unsent: Counter[str] = Counter()
        """Records that were too large, by topic."""
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

        The future ends once the broker has acknowledged every one that is not too large; it raises what else the broker answered. Without partition
        the key decides (Kafka's murmur2); without both, records go round the partitions.
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
        limit_bytes = self._limits.get(topic, MAX_REQUEST_BYTES)
        for partition, mine in by_partition.items():
            sent = 0
            while sent < len(mine):
                batch = producer.create_batch()
                _, keys, values, headers, times_ms = zip(*(mine[sent:] if sent else mine), strict=True)
                fitted = batches.fill(batch, zip(keys, values, strict=True), headers, times_ms)
                if fitted == 1 and batch.size() > limit_bytes:  # the first goes in, whatever its size
                    self._left_out(topic, mine[sent])
                else:
                    future = await producer.send_batch(batch, topic, partition=partition)
                    acknowledged.append((future, partition, mine[sent : sent + fitted]))
                sent += fitted
        return asyncio.ensure_future(self._acknowledged(topic, acknowledged))

    async def _acknowledged(self, topic: str, sent: list[tuple[asyncio.Future[Any], int, list[Outgoing]]]) -> None:
        for future, partition, records in sent:
            try:
                await future
            except MessageSizeTooLargeError:  # its limit was changed while we ran
                if len(records) == 1:
                    self._left_out(topic, records[0])
                    continue
                for record in records:
                    await (await self.send(topic, [(partition, *record[1:])]))

    def _left_out(self, topic: str, record: Outgoing) -> None:
        _, key, value, _, _ = record
        self.unsent[topic] += 1
        log.error("%s: a record of %d bytes (key %r) is larger than the topic takes, and is not sent", topic, len(value or b""), key)
