"""Recalculations: the console's copy of the recalculations topic; plans and cancels. What becomes of one is decided by the workers.

The topic is the truth: an answer to a write is given when the write has come back from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from schemas import recalculation
from schemas.errors import Refused
from schemas.journey import Journey
from schemas.recalculation import CANCELLED, PLANNED, REQUEST, Recalculation, recalculation_json
from schemas.times import format_ms
from state.recalculation import Table, rules_by_key

from .errors import ApiError
from .results import Wanted

log = logging.getLogger(__name__)

WRITE_SECONDS = 15.0
Send = Callable[[str, bytes, bytes | None, list[tuple[str, bytes]]], Awaitable[int]]
"""Writes (topic, key, value, headers) and gives the record's offset when the broker has it."""


class RecalculationStore:
    """Follows the one partition of the recalculations topic without a group; `plan` and `cancel` write to it."""

    def __init__(self, topic: str, kafka: dict[str, Any], send: Send, now_ms: Callable[[], int]) -> None:
        self.table = Table()
        self._topic = topic
        self._tp = TopicPartition(topic, 0)
        self._consumer = AIOKafkaConsumer(enable_auto_commit=False, auto_offset_reset="earliest", **kafka)
        self._send = send
        self._now_ms = now_ms
        self._position = 0
        self._moved = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connects, reads the topic to its end, then follows it. Raises KafkaError."""
        await self._consumer.start()
        self._consumer.assign([self._tp])
        await self._consumer.seek_to_beginning(self._tp)
        end = (await self._consumer.end_offsets([self._tp]))[self._tp]
        self._task = asyncio.create_task(self._follow())
        await self._reach(end)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._consumer.stop()

    # ------------------------------------------------------------------ reading

    def all(self) -> list[dict[str, Any]]:
        """All there are, the newest first, as the API shows them."""
        return [shown(one) for one in reversed(self.table.all())]

    def known(self, id_: str) -> Recalculation:
        """The recalculation *id_*. Raises `ApiError` (404)."""
        one = self.table.records.get(id_)
        if one is None:
            raise ApiError(404, "unknown_recalculation", f'there is no recalculation "{id_}"; GET /api/recalculations lists those there are')
        return one

    def wanted(self, journey: Journey) -> Wanted:
        """What *journey* should show."""
        source, one = self.table.source(journey), self.table.covering(journey)
        return Wanted(journey.version or 1, None if source is None else source.generation, None if one is None else one.progress)

    def finished_at(self, journey: Journey) -> str | None:
        """When the evidence of *journey* was last rebuilt."""
        at_ms = self.table.finished_at(journey)
        return None if at_ms is None else format_ms(at_ms)

    async def _follow(self) -> None:
        while True:
            try:
                fetched = await self._consumer.getmany(self._tp, timeout_ms=1000)
                for record in fetched.get(self._tp, ()):
                    self._take(record)
                position = await self._consumer.position(self._tp)
            except KafkaError as error:
                log.warning("the recalculations topic cannot be read at the moment, trying again: %s", error)
                await asyncio.sleep(1.0)
                continue
            if position != self._position:
                async with self._moved:
                    self._position = position
                    self._moved.notify_all()

    def _take(self, record: Any) -> None:
        try:
            id_ = (record.key or b"").decode()
            self.table.take(id_, None if record.value is None else recalculation.decode(record.key, record.value))
        except (ValueError, Refused) as error:
            log.error("recalculations topic, offset %s: passed over: %s", record.offset, error)

    async def _reach(self, position: int) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._position >= position)

    # ------------------------------------------------------------------ writing

    async def plan(self, journeys: Sequence[Journey], events_per_second: float | None, log_from_ms: int | None) -> Recalculation:
        """Plans a recalculation of all rules of *journeys*, which begins when none is under way. Raises `ApiError` (503).

        *log_from_ms*: the time of the oldest activity on the log; what happened before does not count afterwards.
        """
        rules = {key: rule for journey in journeys for key, rule in rules_by_key(journey).items()}
        one = Recalculation(
            id=f"r-{secrets.token_hex(6)}", state=PLANNED, cause=REQUEST, journeys=tuple(sorted(journey.id for journey in journeys)),
            rules=tuple(rules.values()), throttle=events_per_second, planned_at=self._now_ms(), log_from=log_from_ms,
        )  # fmt: skip
        await self._write(one)
        return self.known(one.id)

    async def cancel(self, id_: str) -> Recalculation:
        """Cancels a recalculation; what is visible stays as it is. Raises `ApiError`: 404, 409 when it is over, 503."""
        one = self.known(id_)
        if not one.over:
            await self._write(one.but(state=CANCELLED, finished_at=self._now_ms(), eta_seconds=None, events_per_second=None))
            one = self.known(id_)
        if one.state != CANCELLED:
            raise ApiError(409, "recalculation_over", f'recalculation "{id_}" is {one.state} already and cannot be cancelled')
        return one

    async def _write(self, one: Recalculation) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                offset = await self._send(self._topic, one.id.encode(), recalculation.encode(one), [])
                await self._reach(offset + 1)
        except (TimeoutError, KafkaError) as error:
            log.warning("recalculation %s could not be written: %r", one.id, error)
            message = "the broker did not confirm the write, which may have been made: look at the list of recalculations, then repeat"
            raise ApiError(503, "broker_unavailable", message) from error


def shown(one: Recalculation) -> dict[str, Any]:
    """A recalculation as the API shows it: rules in words, nothing of our bookkeeping."""
    said = recalculation_json(one)
    for internal in ("epoch", "retired", "unneeded", "switched_at"):
        said.pop(internal, None)
    return {**said, "rules": [rule.describe() for rule in one.rules]}
