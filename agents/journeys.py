"""Journeys: keeps the catalogue of journeys as the journeys topic has it. Reads only; what follows from a change is its listener's business.

`caught_up()` is a barrier: everything acknowledged on the journeys topic before it was called is in the catalogue when it returns. A worker waits
there before it decides a chunk, so that every activity sent after a journey was applied is matched against that journey.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.errors import Refused
from schemas.journey import Journey, parse_journey

log = logging.getLogger(__name__)


class JourneysReader:
    """Follows the one partition of the journeys topic, without a group.

    *changed* is called with the catalogue after each change, once for all records that were there at the time. *failed* gets what broke.
    """

    def __init__(
        self,
        topic: str,
        kafka: dict[str, Any],
        changed: Callable[[dict[str, Journey]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.catalog: dict[str, Journey] = {}
        self._tp = TopicPartition(topic, 0)
        self._consumer = AIOKafkaConsumer(enable_auto_commit=False, auto_offset_reset="earliest", **kafka)
        # a broker answers the requests of a connection in turn: behind a waiting fetch, the end of the log would be half a second old
        self._asker = AIOKafkaConsumer(enable_auto_commit=False, **kafka)
        self._changed = changed
        self._failed = failed
        self._position = 0
        self._moved = asyncio.Condition()
        self._checking: asyncio.Task[None] | None = None
        self._next_check: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connects, reads to the end, then follows."""
        await self._asker.start()
        await self._consumer.start()
        self._consumer.assign([self._tp])
        await self._consumer.seek_to_beginning(self._tp)
        self._position = await self._consumer.position(self._tp)
        self._task = asyncio.create_task(self._follow())
        await self.caught_up()

    async def stop(self) -> None:
        """Ends; the catalogue stays as it is."""
        for task in (self._task, self._checking, self._next_check):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._consumer.stop()
        await self._asker.stop()

    async def caught_up(self) -> None:
        """Returns when everything acknowledged on the topic before the call is in the catalogue.

        Callers share checks: one that begins after the call serves it, one that had begun before does not.
        """
        if self._next_check is None:
            self._next_check = asyncio.create_task(self._check(self._checking))
        await asyncio.shield(self._next_check)

    async def ends(self, topics: Sequence[str], partition: int) -> dict[str, int]:
        """Where *partition* of each of *topics* ends now."""
        ends = await self._asker.end_offsets([TopicPartition(topic, partition) for topic in topics])
        return {tp.topic: offset for tp, offset in ends.items()}

    async def _check(self, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait([previous])
        self._checking, self._next_check = self._next_check, None
        end = (await self._asker.end_offsets([self._tp]))[self._tp]
        async with self._moved:
            await self._moved.wait_for(lambda: self._position >= end)

    async def _follow(self) -> None:
        try:
            while True:
                fetched = await self._consumer.getmany(self._tp, timeout_ms=1000)
                changed = False
                for record in fetched.get(self._tp, ()):
                    changed = self._take(record.key, record.value, record.offset) or changed
                if changed:
                    self._changed(self.catalog)
                position = await self._consumer.position(self._tp)
                if position != self._position:
                    async with self._moved:
                        self._position = position
                        self._moved.notify_all()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failed(error)

    def _take(self, key: bytes | None, value: bytes | None, offset: int) -> bool:
        """One record into the catalogue; whether anything changed. A bad one is told and passed over: the console checks before it writes."""
        try:
            id_ = (key or b"").decode()
            if value is None:
                return self.catalog.pop(id_, None) is not None
            journey = parse_journey(json.loads(value))
        except (ValueError, Refused, RecursionError) as error:
            log.error("journeys topic, offset %s: not a journey, passed over: %s", offset, error)
            return False
        if journey.id != id_:
            log.error("journeys topic, offset %s: key %r is not the id %r, passed over", offset, id_, journey.id)
            return False
        self.catalog[id_] = journey
        return True
