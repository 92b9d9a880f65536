"""Compacted: follows topics of one partition each, from their beginning. Knows no meaning of a record.

A follower ends only when it is stopped: after an error it connects again and goes on where it was.
Whoever waits for it says in the log what for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.blocks import CorruptBatch
from streams.reader import ReaderError
from streams.replay import holds_nothing
from streams.supervision import BROKER_ERRORS, supervise

log = logging.getLogger(__name__)

WAITING_SECONDS = 5.0
"""So long somebody waits for records before the log says so."""
FETCH_WAIT_MS = 80
"""So long the broker may hold a fetch that finds nothing. The embedded broker looks for new records at half of it only, and who wrote waits for
the record to come back."""
Fetched = Mapping[str, Sequence[Any]]
"""Topic -> records (.key .value .headers .offset .timestamp), in the order of the log."""


class Follower:
    """Follows *topics* without a group. *take* gets what was fetched; *after* is called behind it.

    *take* should not raise: what it raises is logged, and the records are not offered again. An
    error in *after* is treated alike. Records count as taken between the two.
    """

    def __init__(
        self,
        topics: Sequence[str],
        kafka: Mapping[str, Any],
        take: Callable[[Fetched], None],
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._tps = [TopicPartition(topic, 0) for topic in topics]
        self._kafka = dict(kafka)
        self._take = take
        self._after = after
        self._consumer: AIOKafkaConsumer | None = None
        self._positions: dict[str, int] = {}
        self._moved = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, read to the end, then go on following. Raises KafkaError from connecting."""
        consumer = await self._connect()
        ends = await consumer.end_offsets(self._tps)
        name = ", ".join(tp.topic for tp in self._tps)
        self._task = asyncio.create_task(supervise(f"following {name}", self._follow))
        await self.reach({tp.topic: end for tp, end in ends.items()})

    async def stop(self) -> None:
        """End; what was taken stays as it is."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._disconnect()

    async def reach(self, ends: Mapping[str, int]) -> None:
        """Return when the records before *ends* (topic -> offset) have been taken."""
        while True:
            try:
                async with asyncio.timeout(WAITING_SECONDS), self._moved:
                    await self._moved.wait_for(lambda: not self._missing(ends))
                return
            except TimeoutError:
                for topic, end in self._missing(ends).items():
                    at = self._positions.get(topic)
                    log.warning("waiting for topic %s: read to offset %s of %d", topic, at, end)
                    await self._pass_hole(topic, end)

    async def _pass_hole(self, topic: str, end: int) -> None:
        """Go on to *end* where compaction has left no record before it: aiokafka waits for one."""
        consumer, at = self._consumer, self._positions.get(topic)
        if consumer is None or at is None:
            return
        tp = TopicPartition(topic, 0)
        try:
            empty = await holds_nothing(consumer._client, tp, at, end)
            if empty and await consumer.position(tp) == at:
                consumer.seek(tp, end)
        except (*BROKER_ERRORS, CorruptBatch, ReaderError) as error:
            log.warning("topic %s: what follows at offset %d is unknown: %r", topic, at, error)

    def _missing(self, ends: Mapping[str, int]) -> dict[str, int]:
        positions = self._positions
        return {topic: end for topic, end in ends.items() if positions.get(topic, -1) < end}

    # ---------------------------------------------------------------- the loop

    async def _connect(self) -> AIOKafkaConsumer:
        await self._disconnect()
        consumer = AIOKafkaConsumer(
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            **self._kafka,
        )
        self._consumer = consumer
        await consumer.start()
        consumer.assign(self._tps)
        for tp in self._tps:
            if tp.topic in self._positions:
                consumer.seek(tp, self._positions[tp.topic])
            else:
                await consumer.seek_to_beginning(tp)
                self._positions[tp.topic] = await consumer.position(tp)
        return consumer

    async def _disconnect(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(Exception):  # it is of no use any more
                await consumer.stop()

    async def _follow(self) -> None:
        consumer = self._consumer or await self._connect()
        try:
            while True:
                await self._step(consumer)
        except BaseException:
            await self._disconnect()
            raise

    async def _step(self, consumer: AIOKafkaConsumer) -> None:
        fetched = await consumer.getmany(*self._tps, timeout_ms=1000)
        if fetched:
            self._guarded(lambda: self._take({tp.topic: got for tp, got in fetched.items()}))
        positions = {tp.topic: await consumer.position(tp) for tp in self._tps}
        if positions != self._positions:
            async with self._moved:
                self._positions = positions
                self._moved.notify_all()
        if fetched:
            self._guarded(self._after)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            log.exception("records of %s were passed over", ", ".join(tp.topic for tp in self._tps))
