"""Refusals: brings bad records of the control topics to the rejected topic: journeys, recalculations, reports.

Every worker knows of them; the owner of partition 0 sends them, once. How far it has come with each topic
stands among the positions of partition 0, in its changelog: a crash repeats the last ones and loses none.
Decides nothing: what is bad, `agents.catalog` says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.errors import Refused
from state.decision import Decision
from streams.replay import holds_nothing

from . import intake
from .catalog import CatalogReader
from .partition import Partition
from .partitions import Partitions
from .succession import POSITION

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
READ_SECONDS = 30.0
MOST = 500  # records at a time


class Refusals:
    """Runs beside the partitions."""

    def __init__(self, partitions: Partitions, reader: CatalogReader, kafka: Mapping[str, Any], serving: Callable[[], bool]) -> None:
        self._partitions = partitions
        self._reader = reader
        self._kafka = dict(kafka)
        self._serving = serving

    async def run(self) -> None:
        """Sends them until cancelled. Raises what reading raises; then it can be run again."""
        while True:
            for source, refused in self._reader.catalog.refused.items():
                partition = self._partitions.active().get(0) if self._serving() else None
                if partition is None:
                    break
                sent = partition.positions.get(source, 0)
                unsent = {offset: error for offset, error in refused.items() if offset >= sent}
                if unsent:
                    await self._send(partition, source, dict(sorted(unsent.items())[:MOST]))
            await asyncio.sleep(LOOK_SECONDS)

    async def _send(self, partition: Partition, source: str, refused: Mapping[int, Refused]) -> None:
        context = partition.context
        topic, now_ms = context.topics[source], context.now_ms()
        found = await self._read(topic, refused)
        if partition.pipeline is None:
            return  # it was revoked meanwhile: the next owner sends them
        out = [intake.rejected(topic, 0, record, refused[record.offset], now_ms) for record in found]
        following = max(refused) + 1
        position = {POSITION + source.encode(): str(following).encode()}
        work = partition.work(Decision(position, [], [], [], {}, {}), out, (source, following))
        work.took_room = False
        partition.pipeline.add(work)
        await partition.drain()

    async def _read(self, topic: str, offsets: Iterable[int]) -> list[Any]:
        """The records at *offsets*; one that compaction took meanwhile is told in the log alone."""
        tp, found = TopicPartition(topic, 0), []
        consumer = AIOKafkaConsumer(enable_auto_commit=False, auto_offset_reset="earliest", **self._kafka)
        await consumer.start()
        try:
            consumer.assign([tp])
            for offset in offsets:
                consumer.seek(tp, offset)
                record = None
                async with asyncio.timeout(READ_SECONDS):
                    while record is None:
                        fetched = await consumer.getmany(tp, timeout_ms=1000, max_records=1)
                        record = next((one for records in fetched.values() for one in records), None)
                        if record is None and await _ends_here(consumer, tp):
                            break
                if record is not None and record.offset == offset:
                    found.append(record)
                else:
                    log.warning("%s offset %s: gone before it could be brought to the rejected topic", topic, offset)
        finally:
            await consumer.stop()
        return found


async def _ends_here(consumer: AIOKafkaConsumer, tp: TopicPartition) -> bool:
    """Return True if the log holds no record at the position of *consumer* or behind it."""
    position, end = await consumer.position(tp), (await consumer.end_offsets([tp]))[tp]
    return position >= end or await holds_nothing(consumer._client, tp, position, end)
