"""Changelog: writes changed evidence to the changelog partition of its owner, in order, and repairs what a foreign writer left there.

Never writes for a partition whose assignment is over, and never reports a write as done that was acknowledged under another assignment. A record that
is larger than the topic takes is left out, logged and counted (`unsent`): evidence and identities are kept smaller.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import aiokafka
from aiokafka import TopicPartition
from aiokafka.errors import MessageSizeTooLargeError

from streams import batches
from streams.seam import Fenced
from streams.transport import MAX_REQUEST_BYTES

log = logging.getLogger(__name__)

Items = list[tuple[bytes, bytes | None]]


@dataclass(slots=True, eq=False)
class _Tenure:
    """One partition under one assignment."""

    partition: int
    generation: int
    next_offset: int
    """The offset of the next record, if nobody else writes."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    pending: deque[Items] = field(default_factory=deque)
    """Batches sent and not acknowledged, oldest first."""
    holes: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of offsets that somebody else wrote."""
    rewritten: set[bytes] = field(default_factory=set)
    """Keys that were sent after the newest hole: their last record is ours."""
    healer: asyncio.Task[None] | None = None
    serving: bool = False
    """Whether the rebalance that began this tenure is over. A partition writes while it is activated already; the next rebalance ends the tenure."""


class Changelog:
    """The changelog of this worker's partitions. Everything is called in the main event loop. *limit_bytes*: the largest record batch it takes."""

    def __init__(self, app: Any, topic: str, limit_bytes: int = MAX_REQUEST_BYTES) -> None:
        self.app = app
        self.topic = topic
        self.limit_bytes = limit_bytes
        self.unsent = 0
        """Records that were too large."""
        self.foreign_records = 0
        """Records of other writers seen in our partitions."""
        self._tenures: dict[int, _Tenure] = {}

    # -- assignments (called by Recovery)

    def begin(self, partition: int, generation: int, next_offset: int) -> None:
        """This worker owns *partition* from now on, and has read its changelog up to *next_offset*."""
        self._tenures[partition] = _Tenure(partition, generation, next_offset)

    def end(self, partition: int) -> None:
        """The assignment is over: whatever is not acknowledged is fenced."""
        tenure = self._tenures.pop(partition, None)
        if tenure is not None and tenure.healer is not None:
            tenure.healer.cancel()

    # -- writing

    def frozen(self, partition: int) -> bool:
        """True while records of somebody else in the partition are not healed: the persisted changelog offset must not advance past them."""
        tenure = self._tenures.get(partition)
        return tenure is not None and tenure.healer is not None

    async def send(self, partition: int, items: Items) -> asyncio.Future[int | None]:
        """Writes *items* (None is a tombstone) behind all that was sent before. Waits while the producer is full.

        The future gives the last changelog offset once the broker has all that are not too large, None where there are none. Raises `Fenced`,
        here or by the future, when the assignment is over; the future raises what the broker answered otherwise.
        """
        tenure = await self._owned(partition)
        if not items:
            nothing: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
            nothing.set_result(None)
            return nothing
        async with tenure.lock:
            self._check(tenure)
            sent = await self._send(tenure, items)
        return asyncio.ensure_future(self._settle(tenure, sent))

    async def owned(self, partition: int) -> None:
        """Returns while this worker may write for *partition*; waits where only a heartbeat can tell. Raises `Fenced` when it may not."""
        await self._owned(partition)

    async def _owned(self, partition: int) -> _Tenure:
        tenure = self._tenures.get(partition)
        if tenure is None:
            raise Fenced(f"{self.topic}-{partition} is not ours")
        self._check(tenure)
        thread = self.app.consumer._thread
        # Perhaps this process was stopped for longer than its session: wait for the group to say whether we are still the owner.
        while time.monotonic() > thread.member_until:
            await asyncio.sleep(0.05)
            self._check(tenure)
        return tenure

    def _check(self, tenure: _Tenure) -> None:
        app = self.app
        if (
            self._tenures.get(tenure.partition) is not tenure
            or tenure.generation != app.consumer_generation_id
            or (app.rebalancing and tenure.serving)
        ):
            raise Fenced(f"the assignment of {self.topic}-{tenure.partition} is over")
        tenure.serving = not app.rebalancing

    async def _send(self, tenure: _Tenure, items: Items) -> list[tuple[asyncio.Future[Any], Items]]:
        """Hands *items* to the producer in record batches. The tenure's lock is held. Returns (future, records) of each batch in order."""
        producer, now_ms = self.app.producer._producer, int(time.time() * 1000)
        sent = []
        start = 0
        while start < len(items):
            batch = producer.create_batch()
            end = start + batches.fill(batch, items[start:] if start else items, repeat([]), repeat(now_ms))
            if end == start + 1 and batch.size() > self.limit_bytes:  # the first goes in, whatever its size
                self._left_out(tenure.partition, items[start])
                start = end
                continue
            mine = items[start:end] if end - start < len(items) else items
            tenure.pending.append(mine)
            if tenure.healer is not None:
                tenure.rewritten.update(key for key, _ in mine)
            future = await producer.send_batch(batch, self.topic, partition=tenure.partition)
            future.add_done_callback(lambda done, mine=mine: self._account(tenure, done, mine))
            sent.append((future, mine))
            start = end
        return sent

    async def _settle(self, tenure: _Tenure, sent: list[tuple[asyncio.Future[Any], Items]]) -> int | None:
        last = None
        for future, mine in sent:
            try:
                last = (await future).offset + len(mine) - 1
            except MessageSizeTooLargeError:  # its limit was changed while we ran
                last = await self._one_by_one(tenure, mine, last)
        self._check(tenure)
        return last

    async def _one_by_one(self, tenure: _Tenure, items: Items, last: int | None) -> int | None:
        """Writes *items*, which are too large together; the last offset, *last* where none of them was written."""
        if len(items) == 1:
            self._left_out(tenure.partition, items[0])
            return last
        for item in items:
            async with tenure.lock:
                self._check(tenure)
                sent = await self._send(tenure, [item])
            offset = await self._settle(tenure, sent)
            last = last if offset is None else offset
        return last

    def _left_out(self, partition: int, item: tuple[bytes, bytes | None]) -> None:
        key, value = item
        self.unsent += 1
        log.error("%s-%d: a record of %d bytes (key %r) is larger than the topic takes, and is not sent", self.topic, partition,
                  len(value or b""), key)

    # -- foreign records

    def _account(self, tenure: _Tenure, future: asyncio.Future[Any], mine: Items) -> None:
        """Acknowledgements of a partition come in the order of sending: a hole between two of ours was written by somebody else."""
        tenure.pending.popleft()
        if future.cancelled() or future.exception() is not None or self._tenures.get(tenure.partition) is not tenure:
            return
        base, expected = future.result().offset, tenure.next_offset
        tenure.next_offset = base + len(mine)
        if base > expected:
            self.foreign_records += base - expected
            log.warning("%s-%d: somebody else wrote offsets %d to %d", self.topic, tenure.partition, expected, base - 1)
            tenure.holes.append((expected, base))
            tenure.rewritten = {key for items in (mine, *tenure.pending) for key, _ in items}
            self._start_healing(tenure)

    def _start_healing(self, tenure: _Tenure) -> None:
        if tenure.healer is None:
            tenure.healer = asyncio.ensure_future(self._heal(tenure))
            tenure.healer.add_done_callback(self._healed)

    def _healed(self, task: asyncio.Task[None]) -> None:
        exc = None if task.cancelled() else task.exception()
        if exc is not None and not isinstance(exc, Fenced):
            self.app.loop.create_task(self.app.crash(exc))

    async def _heal(self, tenure: _Tenure) -> None:
        """A compacted log keeps the last value of a key, so ours has to come after the foreign one.

        But perhaps this worker is the one who should not write: then its heartbeat fails within an interval. So it waits for two and looks.
        """
        while tenure.holes:
            await asyncio.sleep(2 * self.app.conf.broker_heartbeat_interval)
            await self._owned(tenure.partition)
            holes, tenure.holes = tenure.holes, []
            foreign = [item for low, high in holes for item in await self._read(tenure.partition, low, high)]
            await self.app.partitions.keep_foreign(tenure.partition, foreign)
            async with tenure.lock:
                self._check(tenure)
                keys = {key for key, _ in foreign} - tenure.rewritten
                sent = await self._send(tenure, self.app.partitions.changelog_values(tenure.partition, sorted(keys)))
            await self._settle(tenure, sent)
            log.warning("%s-%d: %d keys written again", self.topic, tenure.partition, len(keys))
        tenure.healer = None
        tenure.rewritten = set()

    async def _read(self, partition: int, low: int, high: int) -> Items:
        """Key and value of offsets *low* to *high* - 1, read by a consumer of its own."""
        options = {**self.app.kafka_options, "max_partition_fetch_bytes": 17 << 20, "isolation_level": "read_uncommitted"}
        reader = aiokafka.AIOKafkaConsumer(**options, enable_auto_commit=False, auto_offset_reset="earliest")
        tp, items = TopicPartition(self.topic, partition), Items()
        await reader.start()
        try:
            reader.assign([tp])
            reader.seek(tp, low)
            while await reader.position(tp) < high:
                for records in (await reader.getmany(timeout_ms=500)).values():
                    items += [(record.key, record.value) for record in records if record.offset < high and record.key is not None]
        finally:
            await reader.stop()
        return items
