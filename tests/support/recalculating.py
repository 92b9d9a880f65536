"""Recalculating: a driver and a job for partitions in memory: brings every recalculation that is due to its end, step by step. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from agents import handoffs, intake, rebuilding
from agents.partition import Context, Partition
from agents.partitions import recorded
from agents.reporter import report_of
from schemas.recalculation import (
    COMPARING,
    COMPARISON,
    FILLING,
    JOB,
    WORKER,
    JobReport,
    Recalculation,
)
from state.comparison import Tolerance
from state.matching import Matcher
from state.progression import Flush, advance
from state.recalculation import Reports, begin, missing
from streams.partitioner import partition_of
from tests.support.records import block_of


def rebuilt(one: Recalculation, rules: Mapping[bytes, Any], log: Sequence[Any], ahead_ms: int) -> list[tuple[bytes, bytes]]:
    """`(key, value)` of the rebuilt evidence of a piece of the log: what the job writes."""
    hits: rebuilding.Hits = {}
    sum(rebuilding.hits(block_of(log), rebuilding.finder(one, rules), ahead_ms, hits))
    return [(contact.encode(), value) for contact, mine in hits.items() for value in handoffs.encode_all(intake.as_join(contact, mine))]


class Recalculating:
    """Drives recalculations; what waits for a confirmation is left waiting.

    *log* gives a log by source and partition, *send* appends to that of rebuilt evidence, *reconcile* tells partitions of what changed."""

    def __init__(
        self,
        context: Context,
        partitions: Callable[[], Mapping[int, Partition]],
        log: Callable[[str, int], Sequence[Any]],
        send: Callable[[int, bytes, bytes], None],
        reconcile: Callable[[], None],
    ) -> None:
        self.context, self.partitions, self.log, self.send, self.reconcile = context, partitions, log, send, reconcile
        self.reports = Reports()
        self.tolerance = Tolerance()
        self.log_begins: dict[int, int] = {}  # by partition, where retention took the beginning of the log

    def take(self, one: Recalculation) -> None:
        """A record of the recalculations topic."""
        if self.context.recalculations.take(one.id, one):
            self.apply()

    def apply(self) -> None:
        """Journeys or recalculations changed."""
        self.reconcile()
        self.context.matcher = Matcher(recorded(self.context, self.partitions().values()))

    def steps(self) -> Iterator[None]:
        """Goes on until nothing is under way; wants everything to settle at each yield."""
        table, now_ms, n = self.context.recalculations, self.context.now_ms(), self.context.partitions
        flushes: dict[str, Flush] = {}
        for _ in range(10_000):
            for following in (missing, begin):
                one = following(table, self.context.catalog.values(), now_ms)
                if one is not None:
                    self.take(one)
            active = [one for one in table.active() if not one.waits]
            if not active:
                return
            for one in active:
                for p, partition in self.partitions().items():
                    self.reports.take(one.id, WORKER, p, report_of(partition, one, self.reports.worker(one.id, p), 0, len(self.log("activities", p))))
                    self.reports.take(one.id, COMPARISON, p, partition.comparing.found.get(one.id))
                if one.state == FILLING:
                    self._read(one)
                ends = {p: len(self.log("handoffs", p)) for p in range(n)}
                after = advance(one, self.reports, n, flushes.setdefault(one.id, Flush()), ends, now_ms, self.tolerance)
                if after.phase == COMPARING != one.phase:
                    after = after.but(log_begins=self.log_begins)
                self.take(after)
            yield
        raise AssertionError(f"the recalculations come to no end: {table.active()}")

    def _read(self, one: Recalculation) -> None:
        rules, n = self.context.recalculations.rules(one.id), self.context.partitions
        for p in range(n):
            worker, job = self.reports.worker(one.id, p), self.reports.job(one.id, p)
            if worker is None or (job is not None and job.read >= worker.recording_from):
                continue
            for key, value in rebuilt(one, rules, self.log("activities", p)[: worker.recording_from], self.context.ahead_ms):
                self.send(partition_of(key, n), key, value)
            written = {q: len(self.log("rebuilt-evidence", q)) for q in range(n)}
            self.reports.take(one.id, JOB, p, JobReport(0, worker.recording_from, 0, written))
