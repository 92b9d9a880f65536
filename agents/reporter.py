"""Reporter: says on the topic of reports how far the partitions of this worker are with the recalculation under way. Decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from schemas.recalculation import (
    COMPARISON,
    VIEWS,
    WORKER,
    Recalculation,
    Report,
    ViewsReport,
    WorkerReport,
    encode_report,
    report_key,
)

from .catalog import REPORTS, CatalogReader
from .partition import Partition
from .partitions import Partitions

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05  # how often, while a recalculation is under way
IDLE_SECONDS = 0.5


def report_of(partition: Partition, one: Recalculation, before: WorkerReport | None, log_begin: int, log_end: int) -> WorkerReport:
    """What *partition* has to say of *one*; *before*: what was said of it last. *log_begin*, *log_end*: of its activities, when *one* was known.

    All of the log is read again, also what this worker has before it: an earlier recalculation may have, and numbers must not go back.
    """
    topics, reflected = partition.context.topics, partition.context.reflected
    recording_from = max(partition.succession.recording_from(), log_end) if before is None else before.recording_from
    scanned, shown, changed = (0.0, False, 0) if one.switched_at is None else partition.building.shown(one.id)
    compared = partition.comparing.progress(one)
    joined, handed = (reflected(topics[source], partition.number) or 0 for source in ("rebuilt-evidence", "handoffs"))
    return WorkerReport(recording_from, log_begin, joined, handed, round(scanned, 3), shown, changed, round(compared, 3))


def views_of(partition: Partition) -> dict[str, tuple[tuple[int, int], ...]]:
    """Journey -> its views that can be read in *partition*."""
    found: dict[str, list[tuple[int, int]]] = {}
    for view in partition.views.all:
        if partition.building.readable(view):
            found.setdefault(view.journey.id, []).append(view.order)
    return {journey: tuple(sorted(orders)) for journey, orders in found.items()}


class Reporter:
    """Runs beside the partitions. `moved()` wakes it."""

    def __init__(self, partitions: Partitions, reader: CatalogReader, serving: Callable[[], bool]) -> None:
        self._partitions = partitions
        self._reader = reader
        self._serving = serving
        self._woken = asyncio.Event()
        self._said: dict[bytes, Report] = {}
        self._views: dict[int, tuple[object, dict[str, tuple[tuple[int, int], ...]]]] = {}  # by partition, what was said, and when
        self._bounds: dict[tuple[str, int], tuple[int, int]] = {}  # of the activities, by recalculation and partition

    def moved(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        """Reports until cancelled. After an error it can be run again, and reports everything again."""
        self._said.clear()
        self._views.clear()
        while True:
            active = self._reader.catalog.recalculations.active()
            self._woken.clear()
            if self._serving():
                await self._report_views()
                if active:
                    await self._report(active)
            if not active:
                self._said.clear()
                self._bounds.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), LOOK_SECONDS if active else IDLE_SECONDS)
            if active:
                await asyncio.sleep(LOOK_SECONDS / 2)  # our own reports wake us as well

    async def _report_views(self) -> None:
        """Says which views can be read, where that changed: partitions drop old ones by it."""
        context, out = self._partitions.context, []
        here = self._partitions.active()
        self._views = {p: said for p, said in self._views.items() if p in here}
        for number, partition in here.items():
            turns = partition.building, partition.building.turns, context.recalculations.turns
            before = self._views.get(number)
            if before is not None and before[0] == turns:
                continue
            views = views_of(partition)
            said = {} if before is None else before[1]
            self._views[number] = turns, views
            for journey in views.keys() | said.keys():
                if views.get(journey) != said.get(journey):
                    report = encode_report(ViewsReport(views[journey])) if journey in views else None
                    out.append((0, report_key(journey, VIEWS, number), report, [], context.now_ms()))
        if out:
            await (await context.outward.send(context.topics[REPORTS], out))

    async def _report(self, active: list[Recalculation]) -> None:
        context = self._partitions.context
        topic, here = context.topics["activities"], set(self._partitions.active())
        for one in active:
            unknown = [p for p in here if (one.id, p) not in self._bounds]
            if unknown:
                begins, ends = await self._reader.begins_of(topic, unknown), await self._reader.ends_of(topic, unknown)
                self._bounds |= {(one.id, p): (begins[p], ends[p]) for p in unknown}
        out = []
        now_ms = context.now_ms()
        for one in active:
            for number, partition in self._partitions.active().items():
                bounds = self._bounds.get((one.id, number))
                if bounds is None:
                    continue  # came meanwhile
                before = self._reader.catalog.reports.worker(one.id, number)
                report = report_of(partition, one, before, *bounds)
                found = partition.comparing.found.get(one.id)
                for who, said in ((WORKER, report), (COMPARISON, found)):
                    key = report_key(one.id, who, number)
                    if said is not None and self._said.get(key) != said:
                        self._said[key] = said
                        out.append((0, key, encode_report(said), [], now_ms))
        if out:
            await (await context.outward.send(context.topics[REPORTS], out))
