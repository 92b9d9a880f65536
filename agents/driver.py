"""Driver: moves recalculations on, from planned to live, as `state.recalculation` decides. Every worker has one; the owner of partition 0 acts.

Everything it knows stands on topics, so that the next owner goes on where it was; two that act at the same time do no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim

from schemas import recalculation
from schemas.journey import Journey
from schemas.recalculation import (
    CANCELLING,
    COMPARING,
    CONFIRMING,
    FILLING,
    PLANNED,
    SCHEDULE,
    Recalculation,
    Schedule,
)
from schemas.rules import Rule
from state.comparison import Tolerance
from state.progression import Flush, advance, costs, taken_back
from state.recalculation import Table, begin, forgotten, missing, parts, rules_by_key, unneeded

from .catalog import RECALCULATIONS, REPORTS, CatalogReader
from .partitions import Partitions

log = logging.getLogger(__name__)

ACTIVE_SECONDS, IDLE_SECONDS = 0.2, 5.0  # between two looks
TELL_MS = 500  # between two words on progress; longer where there are more than a thousand rules, since each word names them all
MAX_WRITTEN = 1000  # tombstones at a time


def scheduled(
    table: Table, journeys: list[Journey], schedule: Schedule | None, cron: str, zone: str, now_ms: int
) -> tuple[Schedule | None, Recalculation | None]:
    """`(the schedule to write down, the recalculation to plan)`, each None when there is nothing to do.

    *schedule*: as written down, with the moment since when it is followed. A run that was missed is made up for once; while one is under way, none
    begins.
    """
    if not cron:
        return None, None
    if schedule is None or (schedule.cron, schedule.zone) != (cron, zone):
        return Schedule(cron, zone, now_ms), None
    runs = [one for one in table.all() if one.cause == SCHEDULE]
    if any(not one.over for one in runs):
        return None, None
    since_ms = min(now_ms, max([schedule.since_ms, *(one.planned_at for one in runs)]))
    due_ms = next_run_ms(cron, zone, since_ms)
    if due_ms is None or due_ms > now_ms:
        return None, None
    mine = [journey for journey in journeys if journey.scheduled_recalculation]
    rules: dict[bytes, Rule] = {}
    for journey in mine:
        rules.update(rules_by_key(journey))
    if not rules:
        return Schedule(cron, zone, now_ms), None
    return None, Recalculation(
        id=f"schedule-{due_ms}", state=PLANNED, cause=SCHEDULE, journeys=tuple(sorted(j.id for j in mine)), rules=tuple(rules.values()),
        planned_at=now_ms,
    )  # fmt: skip


def next_run_ms(cron: str, zone: str, after_ms: int) -> int | None:
    """When *cron*, read in the time zone *zone*, is next due after *after_ms*; None when never."""
    after = datetime.fromtimestamp(after_ms / 1000, UTC).astimezone(ZoneInfo(zone))
    with contextlib.suppress(StopIteration):
        return int(next(CronSim(cron, after)).timestamp() * 1000)
    return None


class Driver:
    """Runs beside the partitions. `moved()` wakes it."""

    def __init__(
        self,
        partitions: Partitions,
        reader: CatalogReader,
        serving: Callable[[], bool],
        *,
        cron: str = "",
        zone: str = "UTC",
        keep_ms: int,
        tolerance: Tolerance = Tolerance(),
    ) -> None:
        self._partitions = partitions
        self._reader = reader
        self._serving = serving
        self._cron, self._zone, self._keep_ms = cron, zone, keep_ms
        self._tolerance = tolerance
        self._woken = asyncio.Event()
        self._flushes: dict[str, Flush] = {}
        self._told_ms: dict[str, int] = {}
        self._restated: dict[str, Recalculation] = {}

    def moved(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        """Drives until cancelled. After an error it can be run again: all that is known stands on topics."""
        while True:
            self._woken.clear()
            if self._serving() and 0 in self._partitions.active():
                await self._act()
            elif self._reader.catalog.recalculations.stale:
                await self._restate()
            active = self._reader.catalog.recalculations.active()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), ACTIVE_SECONDS if active else IDLE_SECONDS)
            await asyncio.sleep(0.02)

    async def _restate(self) -> None:
        """Write what this worker knows of recalculations whose last record says less, though it does not drive.

        The driver may have been started since, and then knows only what compaction left.
        """
        await self._reader.caught_up()
        context, table = self._partitions.context, self._reader.catalog.recalculations
        now_ms = context.now_ms()
        # once: others may know something else for good, and would write that again
        due = [id_ for id_ in sorted(table.stale) if self._restated.get(id_) != table.records[id_]]
        if due:
            self._restated.update({id_: table.records[id_] for id_ in due})
            records = [(0, id_.encode(), recalculation.encode(table.records[id_]), [], now_ms) for id_ in due]
            await (await context.outward.send(context.topics[RECALCULATIONS], records))

    async def _act(self) -> None:
        await self._reader.caught_up()
        context, catalog = self._partitions.context, self._reader.catalog
        table, journeys, now_ms = catalog.recalculations, list(catalog.journeys.values()), context.now_ms()
        out: dict[str, Recalculation | None] = {id_: table.records[id_] for id_ in sorted(table.stale)}
        schedule, run = scheduled(table, journeys, catalog.schedule, self._cron, self._zone, now_ms)
        for planned in (missing(table, journeys, now_ms), run):
            if planned is not None and planned.id not in table.records:
                log.info("recalculation %s is planned, cause %s, for %s", planned.id, planned.cause, ", ".join(planned.journeys))
                out |= {part.id: part for part in parts(planned)}
        out |= {one.id: one for one in unneeded(table, journeys, now_ms, self._keep_ms)}
        following = begin(table, journeys, now_ms)
        if following is not None:
            out[following.id] = following
        for one in table.active():
            moved = await self._advanced(one, now_ms)
            if moved is not None:
                out[one.id] = moved
        for one in table.records.values():
            if one.phase == CANCELLING and taken_back(one, table, catalog.reports, journeys, context.partitions):
                log.info("recalculation %s: what was announced of it is taken back", one.id)
                out[one.id] = one.but(phase=None)
        for id_ in forgotten(table)[:MAX_WRITTEN]:
            out[id_] = None
        await self._write(out, schedule, now_ms)

    async def _advanced(self, one: Recalculation, now_ms: int) -> Recalculation | None:
        """*one* as it stands now, if that is to be said."""
        catalog, context = self._reader.catalog, self._partitions.context
        before = one.state, one.phase
        ends: dict[int, int] = {}
        if one.state == FILLING:
            # the log's ends are asked for after the reports were read: what these say was sent on lies before them
            topic, numbers = context.topics["handoffs"], range(context.partitions)
            begins = await self._reader.begins_of(topic, numbers)
            ends = {p: end if end > begins[p] else 0 for p, end in (await self._reader.ends_of(topic, numbers)).items()}
        flush = self._flushes.setdefault(one.id, Flush())
        after = advance(one, catalog.reports, context.partitions, flush, ends, now_ms, self._tolerance, costs(catalog.recalculations))
        if after.state != one.state:
            del self._flushes[one.id]
        if (after.state, after.phase) != before:
            log.info("recalculation %s: %s -> %s", one.id, "/".join(filter(None, before)), "/".join(filter(None, (after.state, after.phase))))
            if after.phase == COMPARING:
                after = after.but(log_begins=await self._log_begins())
            if after.phase == CONFIRMING:
                log.warning("recalculation %s waits for a confirmation: %s", one.id, after.reason)
        elif after == one or now_ms - self._told_ms.get(one.id, 0) < TELL_MS * max(1.0, len(one.rules) / 1000):
            return None
        self._told_ms[one.id] = now_ms
        return after

    async def _log_begins(self) -> dict[int, int]:
        """For each partition whose log has lost its beginning, the time of the first activity that is left."""
        topic, numbers = self._partitions.context.topics["activities"], range(self._partitions.context.partitions)
        lost = [p for p, begin in (await self._reader.begins_of(topic, numbers)).items() if begin > 0]
        return await self._reader.first_times_of(topic, lost)

    async def _write(self, out: dict[str, Recalculation | None], schedule: Schedule | None, now_ms: int) -> None:
        context, catalog = self._partitions.context, self._reader.catalog
        records = [
            (0, id_.encode(), None if one is None else recalculation.encode(one), [], now_ms) for id_, one in out.items()
        ]
        reports = []
        for id_ in catalog.reports.known():
            one = catalog.recalculations.records.get(id_)
            if one is None or one.over:
                reports += [(0, recalculation.report_key(id_, who, p), None, [], now_ms) for who, p in catalog.reports.of(id_)]
        if schedule is not None:
            reports.append((0, recalculation.SCHEDULE_KEY, recalculation.encode_schedule(schedule), [], now_ms))
        for topic, mine in ((RECALCULATIONS, records), (REPORTS, reports[:MAX_WRITTEN])):
            if mine:
                await (await context.outward.send(context.topics[topic], mine))
