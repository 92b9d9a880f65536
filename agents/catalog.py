"""Catalog: keeps what the control topics say: journeys, recalculations, and reports of these. Reads only; what follows is its listeners' business.

`caught_up()` is a barrier: everything acknowledged on the journeys and recalculations topics before it was called is known when it returns. A worker
waits there before it decides a chunk, so that whoever takes a partition over records what the owner before it said it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas import codec, recalculation
from schemas.errors import Refused
from schemas.journey import Journey
from state.recalculation import Reports, Table
from streams import batches

log = logging.getLogger(__name__)

JOURNEYS, RECALCULATIONS, REPORTS = "journeys", "recalculations", "recalculation-reports"


class Catalog:
    """What the control topics say so far. `take` folds one record in and says whether partitions have to know."""

    def __init__(self) -> None:
        self.journeys: dict[str, Journey] = {}
        self.recalculations = Table()
        self.reports = Reports()
        self.schedule: recalculation.Schedule | None = None
        self.refused: dict[int, Refused] = {}  # offset on the journeys topic -> why: see `agents.refusals`

    def take(self, source: str, key: bytes | None, value: bytes | None, offset: int) -> bool:
        """One record of the topic *source*. A bad one is told and passed over: who writes here checks before. A bad journey is kept in mind."""
        try:
            if source == JOURNEYS:
                return self._journey(*codec.decode_journey(key, value))
            if source == RECALCULATIONS:
                id_ = (key or b"").decode()
                return self.recalculations.take(id_, None if value is None else recalculation.decode(key, value))
            if key == recalculation.SCHEDULE_KEY:
                self.schedule = None if value is None else recalculation.decode_schedule(value)
                return False
            self.reports.take(*recalculation.decode_report(key, value))
        except (ValueError, Refused, RecursionError) as error:
            if source == JOURNEYS and isinstance(error, Refused):
                self.refused[offset] = error
            log.error("%s topic, offset %s: passed over: %s", source, offset, error)
        return False

    def _journey(self, id_: str, journey: Journey | None) -> bool:
        if journey is None:
            return self.journeys.pop(id_, None) is not None
        self.journeys[id_] = journey
        return True


class CatalogReader:
    """Follows the control topics, each of one partition, without a group. *topics*: short name -> topic.

    *changed* is called after each change that partitions have to know, once for all records that were there at the time; *moved* after anything.
    *failed* gets what broke.
    """

    def __init__(
        self,
        topics: Mapping[str, str],
        kafka: dict[str, Any],
        changed: Callable[[], None],
        moved: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        batches.install()
        self.catalog = Catalog()
        self._tps = {TopicPartition(topics[short], 0): short for short in (JOURNEYS, RECALCULATIONS, REPORTS)}
        self._consumer = AIOKafkaConsumer(enable_auto_commit=False, auto_offset_reset="earliest", **kafka)
        # a broker answers the requests of a connection in turn: behind a waiting fetch, the end of the log would be half a second old
        self._asker = AIOKafkaConsumer(enable_auto_commit=False, **kafka)
        self._changed = changed
        self._others_moved = moved
        self._failed = failed
        self._positions: dict[TopicPartition, int] = {}
        self._moved = asyncio.Condition()
        self._checking: asyncio.Task[None] | None = None
        self._next_check: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connects, reads to the end, then follows."""
        await self._asker.start()
        await self._consumer.start()
        self._consumer.assign(list(self._tps))
        await self._consumer.seek_to_beginning(*self._tps)
        self._positions = {tp: await self._consumer.position(tp) for tp in self._tps}
        self._task = asyncio.create_task(self._follow())
        await self.caught_up()

    async def stop(self) -> None:
        """Ends; what is known stays as it is."""
        for task in (self._task, self._checking, self._next_check):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._consumer.stop()
        await self._asker.stop()

    async def caught_up(self) -> None:
        """Returns when everything acknowledged on the topics before the call is known.

        Callers share checks: one that begins after the call serves it, one that had begun before does not.
        """
        if self._next_check is None:
            self._next_check = asyncio.create_task(self._check(self._checking))
        await asyncio.shield(self._next_check)

    async def ends(self, topics: Sequence[str], partition: int) -> dict[str, int]:
        """Where *partition* of each of *topics* ends now."""
        ends = await self._asker.end_offsets([TopicPartition(topic, partition) for topic in topics])
        return {tp.topic: offset for tp, offset in ends.items()}

    async def ends_of(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Where each of *partitions* of *topic* ends now."""
        ends = await self._asker.end_offsets([TopicPartition(topic, p) for p in partitions])
        return {tp.partition: offset for tp, offset in ends.items()}

    async def begins_of(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Where each of *partitions* of *topic* begins now."""
        begins = await self._asker.beginning_offsets([TopicPartition(topic, p) for p in partitions])
        return {tp.partition: offset for tp, offset in begins.items()}

    async def _check(self, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait([previous])
        self._checking, self._next_check = self._next_check, None
        ends = await self._asker.end_offsets([tp for tp, short in self._tps.items() if short != REPORTS])
        async with self._moved:
            await self._moved.wait_for(lambda: all(self._positions[tp] >= end for tp, end in ends.items()))

    async def _follow(self) -> None:
        try:
            while True:
                fetched = await self._consumer.getmany(timeout_ms=1000)
                changed = False
                for tp, records in fetched.items():
                    for record in records:
                        changed = self.catalog.take(self._tps[tp], record.key, record.value, record.offset) or changed
                if changed:
                    self._changed()
                positions = {tp: await self._consumer.position(tp) for tp in self._tps}
                if positions != self._positions:
                    async with self._moved:
                        self._positions = positions
                        self._moved.notify_all()
                if fetched:
                    self._others_moved()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failed(error)
