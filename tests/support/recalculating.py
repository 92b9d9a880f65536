"""Recalculating: a driver and a job for partitions in memory: brings every recalculation that is due to its end, step by step. Decides nothing.

And, for a Waypost that runs, a recalculation whose results differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx
from confluent_kafka import Producer

from agents import handoffs, intake, rebuilding
from agents.partition import Context, Partition
from agents.partitions import recorded
from agents.reporter import report_of
from schemas import recalculation
from schemas.journey import Journey
from schemas.recalculation import (
    COMPARING,
    COMPARISON,
    FILLING,
    JOB,
    PLANNED,
    REQUEST,
    WORKER,
    JobReport,
    Recalculation,
)
from state.comparison import Tolerance
from state.evidence import hit
from state.matching import Matcher
from state.messages import Join
from state.progression import Flush, advance
from state.recalculation import Reports, begin, evidence_key, missing, rules_by_key
from streams.partitioner import partition_of
from streams.settings import Settings, librdkafka_config
from tests.support import PATIENCE_SECONDS
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


def plan_differing(
    settings: Settings, worker_url: str, journey: Journey, id_: str, contacts: int
) -> None:
    """Plan a recalculation of *journey* under *id_*, for which there is evidence already, joined by the
    workers, of so many contacts that never did anything."""
    first = next(iter(rules_by_key(journey)))
    hits = {evidence_key(first, id_): hit(1_790_000_000_000, b"made up.")}
    sent = [0] * settings.partitions
    producer = Producer(librdkafka_config(settings) | {"log_level": 0})
    ends = _joined(worker_url)
    for n in range(contacts):
        key = f"{id_}-{n}".encode()
        p = partition_of(key, settings.partitions)
        value = handoffs.encode(Join(key.decode(), hits))
        producer.produce(settings.topic_prefix + "rebuilt-evidence", value, key, p)
        sent[p] += 1
    assert producer.flush(PATIENCE_SECONDS) == 0
    patience = time.monotonic() + PATIENCE_SECONDS
    while any(
        now - before < n for before, now, n in zip(ends, _joined(worker_url), sent, strict=True)
    ):
        assert time.monotonic() < patience, "the workers do not join what is rebuilt"
        time.sleep(0.1)
    one = Recalculation(
        id=id_, state=PLANNED, cause=REQUEST, journeys=(journey.id,), rules=tuple(rules_by_key(journey).values()),
        planned_at=time.time_ns() // 1_000_000,
    )  # fmt: skip
    topic = settings.topic_prefix + "recalculations"
    producer.produce(topic, recalculation.encode(one), id_.encode(), 0)
    assert producer.flush(PATIENCE_SECONDS) == 0


def _joined(worker_url: str) -> list[int]:
    """How much rebuilt evidence each partition has joined."""
    found = httpx.get(f"{worker_url}/internal/partitions", timeout=PATIENCE_SECONDS).json()
    partitions = sorted(found["partitions"].items(), key=lambda entry: int(entry[0]))
    return [one["positions"].get("rebuilt-evidence") or 0 for _, one in partitions]
