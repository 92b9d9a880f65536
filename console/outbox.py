"""Outbox: delivers records to the broker in order, however long it takes; whoever writes one need not wait. Knows no meaning of a record."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
)

from streams.supervision import BROKER_ERRORS, supervise

log = logging.getLogger(__name__)

MAX_RECORDS = 10_000
AGAIN_SECONDS = 1.0
STOP_SECONDS = 3.0  # for what is still waiting when the console ends
HOPELESS = (
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    ClusterAuthorizationFailedError,
)
Send = Callable[[str, bytes, bytes | None, list[tuple[str, bytes]]], Awaitable[int]]
"""Writes (topic, key, value, headers) and gives the record's offset when the broker has it."""
Lost = Callable[[bytes, bytes | None, str], None]
"""Is called with the key and the value of a record that will not be delivered, and the reason."""


class _Record(NamedTuple):
    key: bytes
    value: bytes | None
    delivered: asyncio.Future[int]


class Outbox:
    """Records for one topic. What cannot be delivered, for it is refused, too many wait, or the console ends, is handed to *lost*."""

    def __init__(self, topic: str, send: Send, lost: Lost) -> None:
        self._topic = topic
        self._send = send
        self._lost = lost
        self._waiting: deque[_Record] = deque()
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        what = f"delivering to topic {self._topic}"
        self._task = asyncio.create_task(supervise(what, self._deliver))

    async def stop(self) -> None:
        """Delivers what is waiting, if that can be done within `STOP_SECONDS`."""
        if self._task is None:
            return
        try:
            if self._waiting:
                await asyncio.wait({self._waiting[-1].delivered}, timeout=STOP_SECONDS)
        finally:
            self._task.cancel()
            reason = "the console ended before the broker answered; it may have been delivered"
            for record in self._waiting:
                self._give_up(record, reason)
            self._waiting.clear()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def waiting(self) -> int:
        """How many records the broker does not have yet."""
        return len(self._waiting)

    def put(self, key: bytes, value: bytes | None) -> asyncio.Future[int]:
        """Takes a record. The future gets its offset when the broker has it, and is cancelled when it is lost."""
        record = _Record(key, value, asyncio.get_running_loop().create_future())
        if len(self._waiting) >= MAX_RECORDS:
            self._give_up(record, f"{MAX_RECORDS:,} records are waiting for the broker already")
        else:
            self._waiting.append(record)
            self._more.set()
        return record.delivered

    async def _deliver(self) -> None:
        while True:
            self._more.clear()
            while self._waiting:
                record = self._waiting[0]
                offset = await self._sent(record)
                self._waiting.popleft()
                if offset is None:
                    continue
                if not record.delivered.done():
                    record.delivered.set_result(offset)
            await self._more.wait()

    async def _sent(self, record: _Record) -> int | None:
        """The offset of *record*; None when the broker refuses it for good."""
        while True:
            try:
                return await self._send(self._topic, record.key, record.value, [])
            except HOPELESS as error:
                self._give_up(record, f"the broker refuses it: {error!r}")
                return None
            except BROKER_ERRORS as error:
                log.warning(
                    "%d records for topic %s wait until the broker takes them: %r",
                    len(self._waiting),
                    self._topic,
                    error,
                )
                await asyncio.sleep(AGAIN_SECONDS)
            except Exception as error:  # a fault of ours in one record must not hold up the others
                log.exception("a record for topic %s cannot be sent", self._topic)
                self._give_up(record, f"it cannot be sent: {error!r}")
                return None

    def _give_up(self, record: _Record, reason: str) -> None:
        record.delivered.cancel()
        self._lost(record.key, record.value, reason)
