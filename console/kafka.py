"""Kafka, as the console uses it: writes facts and waits for the broker, asks where topics begin and end. Knows no meaning of what it writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from schemas.errors import Refused
from schemas.times import LAST_MS
from streams.partitioner import partition_of
from streams.transport import start_producer

from .errors import ApiError
from .facts import Good
from .results import Ends

ASK_SECONDS = 5.0
SEND_SECONDS = 15.0
AT_ONCE = 2000  # records handed to the producer before their acknowledgements are waited for


@asynccontextmanager
async def broker(seconds: float) -> AsyncIterator[None]:
    """Turns a broker that does not answer within *seconds* into an `ApiError` (503)."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (KafkaError, TimeoutError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise ApiError(503, "broker_unavailable", f"the broker does not answer ({reason}); try again", headers={"Retry-After": "1"}) from error


class Writer:
    """Writes to topics; everything is acknowledged by all replicas before a method returns."""

    def __init__(self, kafka: dict[str, Any], partition_count: int) -> None:
        self._kafka = kafka
        self._partition_count = partition_count
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        self._producer = await start_producer(self._kafka, "waypost-console")

    async def stop(self) -> None:
        if self._producer is not None:
            await self._producer.stop()

    @property
    def producer(self) -> AIOKafkaProducer:
        assert self._producer is not None, "started before it writes"
        return self._producer

    async def control(self, topic: str, key: bytes, value: bytes | None, headers: list[tuple[str, bytes]]) -> int:
        """Writes one record to partition 0; its offset. Raises KafkaError."""
        metadata = await self.producer.send_and_wait(topic, value, key=key, headers=headers, partition=0)
        return int(metadata.offset)

    async def erase(self, topic: str, contact: str) -> None:
        """Writes a null profile. Raises `ApiError` (503)."""
        key = contact.encode()
        async with broker(SEND_SECONDS):
            await self.producer.send_and_wait(topic, None, key=key, partition=partition_of(key, self._partition_count), timestamp_ms=now_ms())

    async def facts(self, topic: str, good: Sequence[Good]) -> dict[int, Refused]:
        """Writes facts, each to its contact's partition; by index, those the broker refused. Raises `ApiError` (503) when it does not answer."""
        failed: dict[int, Refused] = {}
        for start in range(0, len(good), AT_ONCE):
            async with broker(SEND_SECONDS):
                failed |= await self._some(topic, good[start : start + AT_ONCE])
        return failed

    async def _some(self, topic: str, good: Sequence[Good]) -> dict[int, Refused]:
        failed: dict[int, Refused] = {}
        waiting: list[tuple[int, asyncio.Future[Any]]] = []
        for fact in good:
            partition = partition_of(fact.key, self._partition_count)
            try:
                waiting.append((fact.place, await self.producer.send(topic, fact.value, key=fact.key, partition=partition)))
            except MessageSizeTooLargeError as error:
                failed[fact.place] = _too_large(error)
        answers = await asyncio.gather(*(future for _, future in waiting), return_exceptions=True)
        for (place, _), answer in zip(waiting, answers, strict=True):
            if isinstance(answer, MessageSizeTooLargeError):
                failed[place] = _too_large(answer)
            elif isinstance(answer, BaseException):
                raise answer
        return failed


def _too_large(error: Exception) -> Refused:
    return Refused("too_large", f"the broker refuses a record of this size ({error}); send less in one, or raise max.message.bytes of the topic")


class Offsets:
    """Asks where the partitions of the input topics begin and end. `exact_ends`: what the broker lists as the end is the end."""

    def __init__(self, topics: Mapping[str, str], kafka: dict[str, Any], partition_count: int) -> None:
        self._topics = dict(topics)  # source -> topic
        self._partition_count = partition_count
        self._consumer = AIOKafkaConsumer(enable_auto_commit=False, isolation_level="read_committed", **kafka)
        self._fetching = asyncio.Lock()
        self._true_ends: dict[TopicPartition, tuple[int, int]] = {}  # partition -> (end as listed, true end)
        self.exact_ends = True

    async def start(self) -> None:
        await self._consumer.start()

    async def stop(self) -> None:
        await self._consumer.stop()

    def _partitions(self, sources: Iterable[str]) -> dict[TopicPartition, tuple[str, int]]:
        return {TopicPartition(self._topics[s], p): (s, p) for s in sources for p in range(self._partition_count)}

    async def ends(self, sources: Iterable[str]) -> Ends:
        """The offsets behind the last records. Raises `ApiError` (503)."""
        wanted = self._partitions(sources)
        async with broker(ASK_SECONDS):
            found = await self._consumer.end_offsets(list(wanted))
            if not self.exact_ends:
                found = await self._by_fetching(found)
        return {wanted[tp]: offset for tp, offset in found.items()}

    async def begins(self, sources: Iterable[str]) -> Ends:
        """The offsets of the first records. Raises `ApiError` (503)."""
        wanted = self._partitions(sources)
        async with broker(ASK_SECONDS):
            found = await self._consumer.beginning_offsets(list(wanted))
        return {wanted[tp]: offset for tp, offset in found.items()}

    async def first_ms(self, source: str) -> int | None:
        """The time of the oldest record on a topic, in milliseconds; None when there is none. Raises `ApiError` (503)."""
        tps = self._partitions((source,))
        async with broker(ASK_SECONDS):
            found = await self._consumer.offsets_for_times(dict.fromkeys(tps, 0))
        times = (at.timestamp for at in found.values() if at is not None)
        return min((at_ms for at_ms in times if 0 <= at_ms <= LAST_MS), default=None)

    async def _by_fetching(self, listed: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """The true ends. Where the listed end is the one of the last time, so is the true one: the last batch is the same."""
        async with self._fetching:
            changed = {tp: end for tp, end in listed.items() if end and self._true_ends.get(tp, (0, 0))[0] != end}
            for tp, true_end in (await ends_by_fetching(self._consumer, changed)).items():
                self._true_ends[tp] = (listed[tp], true_end)
            return {tp: self._true_ends[tp][1] if end else 0 for tp, end in listed.items()}


async def ends_by_fetching(consumer: AIOKafkaConsumer, listed: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """The true ends on the embedded broker, which lists the first offset of the last batch plus one (see streams.reader).

    The end that comes with fetched records is right, so the last batch of each partition is fetched. Takes the assignment of *consumer*.
    """
    left = {tp for tp, end in listed.items() if end}
    ends = dict.fromkeys(listed, 0)
    if left:
        consumer.assign(sorted(left))
        for tp in left:
            consumer.seek(tp, listed[tp] - 1)
    while left:
        for tp, records in (await consumer.getmany(timeout_ms=1000)).items():
            ends[tp] = max(consumer.highwater(tp) or 0, records[-1].offset + 1)
            left.discard(tp)
            consumer.pause(tp)
    return ends


def now_ms() -> int:
    """The clock, in milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000
