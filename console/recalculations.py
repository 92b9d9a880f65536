"""Recalculations: the console's copy of the recalculations topic; plans and cancels. What becomes of one is decided by the workers.

The topic is the truth: an answer to a write is given when the write has come back from it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiokafka.errors import KafkaError

from schemas import recalculation
from schemas.journey import Journey
from schemas.recalculation import (
    CANCELLED,
    FAILED,
    MAX_CONTROL_MS,
    PLANNED,
    REQUEST,
    Recalculation,
    recalculation_json,
)
from schemas.times import format_ms
from state.recalculation import Table, parts, rules_by_key
from streams.compacted import Fetched, Follower

from .errors import ApiError
from .results import Wanted

log = logging.getLogger(__name__)

WRITE_SECONDS = 15.0
MAX_PLANNED = 100
"""Recalculations that wait for their turn; more are refused."""
Send = Callable[[str, bytes, bytes | None, list[tuple[str, bytes]]], Awaitable[int]]
"""Writes (topic, key, value, headers) and gives the record's offset when the broker has it."""


class RecalculationStore:
    """Follows the one partition of the recalculations topic without a group; `plan` and `cancel` write to it."""

    def __init__(self, topic: str, kafka: dict[str, Any], send: Send, now_ms: Callable[[], int]) -> None:
        self.table = Table()
        self._topic = topic
        self._follower = Follower([topic], kafka, self._take)
        self._send = send
        self._now_ms = now_ms
        self._planning = asyncio.Lock()

    async def start(self) -> None:
        """Connects, reads the topic to its end, then follows it. Raises KafkaError."""
        await self._follower.start()

    async def stop(self) -> None:
        await self._follower.stop()

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
        generation, enough = None if source is None else source.generation, self.table.visible(journey)
        return Wanted(journey.version or 1, generation, None if one is None else one.progress, enough)

    def finished_at(self, journey: Journey) -> str | None:
        """When the evidence of *journey* was last rebuilt."""
        at_ms = self.table.finished_at(journey)
        return None if at_ms is None else format_ms(at_ms)

    def _take(self, fetched: Fetched) -> None:
        for record in fetched[self._topic]:
            try:
                id_ = (record.key or b"").decode()
                one = None
                if record.value is not None:
                    one = recalculation.decode(record.key, record.value)
                self.table.take(id_, one)
            except Exception as error:  # workers bring it to the rejected topic
                log.error(
                    "topic %s, offset %s: bad record: %s", self._topic, record.offset, error
                )

    # ------------------------------------------------------------------ writing

    async def plan(
        self, journeys: Sequence[Journey], events_per_second: float | None, first_ms: Callable[[], Awaitable[int | None]]
    ) -> Recalculation:
        """Plan a recalculation of all rules of *journeys*, which begins when none is under way; return it.

        Of very many rules it plans several, one behind the other, and returns the last. What is planned, has not begun and is equal is returned
        instead: it will do all that is asked for. Raises `ApiError`: 429 when too many are planned, 503. *first_ms* gives the time of the oldest
        activity on the log; what happened before does not count afterwards.
        """
        ids = tuple(sorted(journey.id for journey in journeys))
        rules = {key: rule for journey in journeys for key, rule in rules_by_key(journey).items()}
        async with self._planning:  # whoever asks for the same meanwhile finds what was planned
            waiting = [one for one in self.table.all() if one.state == PLANNED]
            equal = [one for one in waiting if (one.cause, one.journeys, one.throttle) == (REQUEST, ids, events_per_second)]
            if {key for one in equal for key in self.table.rules(one.id)} == rules.keys():
                return equal[-1]
            if len(waiting) >= MAX_PLANNED:
                message = f"{len(waiting)} recalculations are planned already; wait until some have begun, or cancel some"
                raise ApiError(429, "too_many_recalculations", message)
            log_from_ms = await first_ms()
            if log_from_ms is not None and not 0 <= log_from_ms <= MAX_CONTROL_MS:
                log_from_ms = None  # whoever sent the activity gave its record a time that is none
            one = Recalculation(
                id=f"r-{secrets.token_hex(6)}", state=PLANNED, cause=REQUEST, journeys=ids, rules=tuple(rules.values()),
                throttle=events_per_second, planned_at=self._now_ms(), log_from=log_from_ms,
            )  # fmt: skip
            planned = parts(one)
            for part in planned:
                await self._write(part)
            return self.known(planned[-1].id)

    async def cancel(self, id_: str) -> Recalculation:
        """Cancels a recalculation; what is visible stays as it is. Raises `ApiError`: 404, 409 when it is over, 503."""
        one = self.known(id_)
        if not one.over:
            cancelled = one.but(state=CANCELLED, reason=None, finished_at=self._now_ms(), eta_seconds=None, events_per_second=None)
            await self._write(cancelled)
            one = self.table.records.get(id_, cancelled)  # workers forget those of long ago at once
        if one.state != CANCELLED:
            raise ApiError(409, "recalculation_over", f'recalculation "{id_}" is {one.state} already and cannot be cancelled')
        return one

    async def confirm(self, id_: str) -> Recalculation:
        """Confirms a recalculation that waits for it: it is switched to. Raises `ApiError`: 404, 409 when it does not wait, 503."""
        one = self.known(id_)
        if one.waits:
            await self._write(one.but(confirmed_at=self._now_ms()))
            one = self.known(id_)
        if one.confirmed_at is None or one.state in (CANCELLED, FAILED):
            raise ApiError(409, "nothing_to_confirm", f'recalculation "{id_}" is {one.state} and waits for no confirmation')
        return one

    async def _write(self, one: Recalculation) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                offset = await self._send(self._topic, one.id.encode(), recalculation.encode(one), [])
                await self._follower.reach({self._topic: offset + 1})
        except (TimeoutError, KafkaError) as error:
            log.warning("recalculation %s could not be written: %r", one.id, error)
            message = "the broker did not confirm the write, which may have been made: look at the list of recalculations, then repeat"
            raise ApiError(503, "broker_unavailable", message) from error


def shown(one: Recalculation) -> dict[str, Any]:
    """A recalculation as the API shows it: rules in words, nothing of our bookkeeping."""
    said = recalculation_json(one)
    for internal in ("epoch", "retired", "unneeded", "switched_at", "log_begins"):
        said.pop(internal, None)
    return {**said, "rules": [rule.describe() for rule in one.rules]}
