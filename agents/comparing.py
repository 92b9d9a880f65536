"""Comparing: counts, before a recalculation is switched to, how many contacts of a partition reach each stage by its evidence and by the visible one.

Reads only: nothing is announced and nothing becomes visible by it. What the numbers mean `state.comparison` decides, for all partitions together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from schemas.recalculation import COMPARING, ComparisonReport, Recalculation
from state.comparison import Counting, pairs

from . import metrics
from .pipeline import Work

if TYPE_CHECKING:
    from .partition import Partition

log = logging.getLogger(__name__)

STEP_CONTACTS = 1000  # bounds how long the loop is blocked
STEP_PROJECTIONS, FEWEST = 100_000, 64  # where many journeys are compared


class Comparing:
    """The comparisons of one partition. `found`: what came out, by recalculation, while that is
    under way; `tasks`: those that go on."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._cursors: dict[str, bytes] = {}
        self.found: dict[str, ComparisonReport] = {}

    def reconcile(self) -> None:
        """Begin what is to be compared, once all views are built here, and forget what is over."""
        if self._partition.pipeline is None:
            return
        active = {one.id: one for one in self._partition.context.recalculations.active()}
        self.found = {id_: report for id_, report in self.found.items() if id_ in active}
        for id_, one in active.items():
            if one.phase != COMPARING or id_ in self.found or id_ in self.tasks:
                continue
            if self._partition.building.shown(id_)[1]:  # else what is visible is not all there to be compared
                self._cursors[id_] = b""
                self.tasks[id_] = asyncio.create_task(self._walk(one))

    def progress(self, one: Recalculation) -> float:
        """How much of *one* is compared, 0 to 1."""
        if one.id in self.found:
            return 1.0
        cursor = self._cursors.get(one.id)
        return 0.0 if cursor is None else self._partition.contacts.passed(cursor)

    async def close(self) -> None:
        """Ends; whoever owns the partition next begins again."""
        tasks = [*self.tasks.values()]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _walk(self, one: Recalculation) -> None:
        partition = self._partition
        context = partition.context
        table = context.recalculations
        visible = partition.building.visible()
        compared = pairs(visible, table.rules(one.id), one.id)
        counting = Counting(compared, one.log_begins.get(partition.number), context.few)
        size = min(STEP_CONTACTS, max(FEWEST, STEP_PROJECTIONS // max(1, 2 * len(compared))))
        cursor: bytes | None = b""
        try:
            while cursor is not None:
                pipeline = partition.pipeline
                if pipeline is None or not await pipeline.room(behind=True):
                    return
                now = table.records.get(one.id)
                if now is None or now.phase != COMPARING:
                    pipeline.spare()
                    return
                found, holders, cursor = partition.contacts.step(
                    cursor, size, context.decision_bytes
                )
                counting.add(holders, partition.reader(known=found))
                metrics.SCAN_CONTACTS.inc(len(holders))
                self._cursors[one.id] = cursor or b""
                pipeline.add(Work())  # nothing is to be written; what it took is accounted for
                await asyncio.sleep(0)
            self.found[one.id] = counting.report()
            log.info(
                "partition %s: recalculation %s is compared with what is visible",
                partition.number,
                one.id,
            )
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            context.failed(error)
        finally:
            self.tasks.pop(one.id, None)
            self._cursors.pop(one.id, None)
