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
from schemas.recalculation import MAX_CONTROL_MS
from state.recalculation import Reports, Table
from streams import batches
from streams.compacted import Fetched, Follower
from streams.supervision import BROKER_ERRORS, RETRY_SECONDS

log = logging.getLogger(__name__)

JOURNEYS, RECALCULATIONS, REPORTS = "journeys", "recalculations", "recalculation-reports"
CONTROL = (JOURNEYS, RECALCULATIONS, REPORTS)
MAX_REFUSED = 10_000  # bad records of a topic that are kept in mind until they are rejected


class Catalog:
    """What the control topics say so far. `take` folds one record in and says whether partitions have to know."""

    def __init__(self) -> None:
        self.journeys: dict[str, Journey] = {}
        self.recalculations = Table()
        self.reports = Reports()
        self.schedule: recalculation.Schedule | None = None
        self.refused: dict[str, dict[int, Refused]] = {short: {} for short in CONTROL}
        """By topic: offset -> why the record there is bad; see `agents.refusals`."""

    def take(self, source: str, key: bytes | None, value: bytes | None, offset: int) -> bool:
        """Take one record of the topic *source*; return whether partitions have to know.

        A bad record changes nothing, whatever it is: it is logged, kept in `refused`, passed over.
        """
        try:
            return self._take(source, key, value)
        except Refused as error:
            refused = error
        except Exception as error:  # not expected; it would come again with every start
            log.exception("topic %s, offset %s: the record cannot be used", source, offset)
            refused = Refused("bad_record", f"the record cannot be used: {type(error).__name__}")
        log.error("topic %s, offset %s: bad record: %s", source, offset, refused.message)
        kept = self.refused[source]
        kept[offset] = refused
        if len(kept) > MAX_REFUSED:
            del kept[next(iter(kept))]
        return False

    def _take(self, source: str, key: bytes | None, value: bytes | None) -> bool:
        if source == JOURNEYS:
            return self._journey(*codec.decode_journey(key, value))
        if source == RECALCULATIONS:
            one = None if value is None else recalculation.decode(key, value)
            return self.recalculations.take(_text(key), one)
        if key == recalculation.SCHEDULE_KEY:
            self.schedule = None if value is None else recalculation.decode_schedule(value)
        else:
            self.reports.take(*recalculation.decode_report(key, value))
        return False

    def _journey(self, id_: str, journey: Journey | None) -> bool:
        if journey is None:
            return self.journeys.pop(id_, None) is not None
        self.journeys[id_] = journey
        return True


def _text(key: bytes | None) -> str:
    try:
        return (key or b"").decode()
    except UnicodeDecodeError as error:
        raise Refused("bad_key", f"the key is not UTF-8 (byte {error.start})") from None


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
        self._shorts = {topics[short]: short for short in CONTROL}
        self._follower = Follower(list(self._shorts), kafka, self._take, self._after)
        # a broker answers the requests of a connection in turn: behind a waiting fetch, the end of the log would be half a second old
        # Offsets of transactions that are still open are no end: nobody reads them yet.
        self._asker = AIOKafkaConsumer(
            enable_auto_commit=False, isolation_level="read_committed", **kafka
        )
        self._changed = changed
        self._others_moved = moved
        self._failed = failed
        self._checking: asyncio.Task[None] | None = None
        self._next_check: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connects, reads to the end, then follows."""
        await self._asker.start()
        await self._follower.start()
        await self.caught_up()

    async def stop(self) -> None:
        """Ends; what is known stays as it is."""
        for task in (self._checking, self._next_check):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self._follower.stop()
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

    async def first_times_of(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """The time of the first record of each of *partitions* of *topic*, in milliseconds; without those that hold none."""
        asked = {TopicPartition(topic, p): 0 for p in partitions}
        found = await self._asker.offsets_for_times(asked) if asked else {}
        return {
            tp.partition: min(at.timestamp, MAX_CONTROL_MS)
            for tp, at in found.items()
            if at is not None and at.timestamp >= 0
        }

    async def _check(self, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait([previous])
        self._checking, self._next_check = self._next_check, None
        await self._follower.reach(await self._ends())

    async def _ends(self) -> dict[str, int]:
        """Return where the topics end now that decisions depend on. Waits for the broker."""
        tps = [TopicPartition(topic, 0) for topic, short in self._shorts.items() if short != REPORTS]
        while True:
            try:
                return {tp.topic: end for tp, end in (await self._asker.end_offsets(tps)).items()}
            except BROKER_ERRORS as error:
                names = ", ".join(tp.topic for tp in tps)
                log.warning("waiting for the broker: the ends of %s are unknown: %r", names, error)
                await asyncio.sleep(RETRY_SECONDS)

    def _take(self, fetched: Fetched) -> None:
        changed = False
        for topic, records in fetched.items():
            short = self._shorts[topic]
            for record in records:
                taken = self.catalog.take(short, record.key, record.value, record.offset)
                changed = taken or changed
        if changed:
            self._guarded(self._changed)

    def _after(self) -> None:
        self._guarded(self._others_moved)

    def _guarded(self, call: Callable[[], None]) -> None:
        """Call what follows from the records; without it the worker cannot go on."""
        try:
            call()
        except Exception as error:
            self._failed(error)
