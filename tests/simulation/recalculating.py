"""Recalculations in the simulated cluster: control topics, drivers, reports and jobs, as steps that may fail or come late. Decides nothing itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from agents.partitions import recorded
from agents.reporter import report_of, views_of
from schemas.journey import Journey
from schemas.recalculation import (
    CANCELLED,
    CANCELLING,
    COMPARISON,
    FILLING,
    JOB,
    PLANNED,
    REQUEST,
    SWITCHING,
    VIEWS,
    WORKER,
    ComparisonReport,
    JobReport,
    Recalculation,
    ViewsReport,
    WorkerReport,
)
from schemas.rules import Rule, rule_key
from state import records
from state.comparison import Tolerance
from state.evidence import moment
from state.matching import Matcher
from state.messages import RECALCULATION as CAUSE
from state.progression import Flush, advance, taken_back
from state.recalculation import Reports, Table, begin, evidence_key, missing, rules_by_key, unneeded
from streams.partitioner import partition_of
from tests.support.recalculating import rebuilt

if TYPE_CHECKING:
    from .cluster import Cluster
    from .worker import Worker

Control = dict[str, Journey] | tuple[str, Recalculation]
STRICT = Tolerance(share=-1.0, contacts=0)  # whatever is compared waits for a confirmation
KEEP_MS = 40  # evidence that no journey needs: the clock ticks with each act of a driver


class Keyed:
    """A matcher for evidence keys over one for all rules: making a real one for each change is dear."""

    def __init__(self, base: Matcher, rules: Mapping[bytes, Rule]) -> None:
        self._base = base
        self.faults, self.sieve, self.fields = base.faults, base.sieve, base.fields
        self.known: dict[bytes, tuple[bytes, ...]] = {}
        self.remember = self.known.__setitem__
        self._keys: dict[bytes, tuple[bytes, ...]] = {}
        for key, rule in rules.items():
            own = rule_key(rule)
            self._keys[own] = (*self._keys.get(own, ()), key)

    def match(self, activity: Any) -> tuple[bytes, ...]:
        return tuple(key for rule in self._base.match(activity) for key in self._keys.get(rule, ()))


class Recalculating:
    """The control topics of a cluster, and who acts on them."""

    def __init__(self, cluster: Cluster, base: Matcher) -> None:
        self.cluster = cluster
        self.base = base
        self.control: list[Control] = [{}]  # what the journeys and recalculations topics say, in one order
        self.table = Table()  # all of it
        self.reports = Reports()
        self.said: dict[tuple[str, int], WorkerReport] = {}
        self.views: dict[tuple[str, int], tuple[tuple[int, int], ...]] = {}
        self.flushes: dict[tuple[int, str], Flush] = {}
        self.clock_ms = 1_900_000_000_000
        self.due = True  # a driver may have something to do
        self.requests = 0
        self.cancels = cluster.rng.choice((0, 0, 1, 2))
        self.tolerance = cluster.rng.choice((Tolerance(), STRICT))
        self.compared: dict[tuple[str, int], ComparisonReport] = {}
        self.restated: dict[tuple[int, str], Recalculation] = {}  # by workers that do not drive
        self.read: dict[tuple[str, int], int] = {}  # by the job: (recalculation, partition) -> read to

    # ------------------------------------------------------------------ topics

    def write(self, one: Recalculation) -> None:
        """A record of the recalculations topic."""
        before = self.table.records.get(one.id)
        self.control.append((one.id, one))
        self.table.take(one.id, one)
        self.due = True
        if one.state == SWITCHING and before is not None and before.state == FILLING:
            self.check_complete(one)
        if before is None or (before.state, before.phase) != (one.state, one.phase):
            was = None if before is None else (before.state, before.phase)
            self.cluster.say(f"recalculation {one.id}: {was} -> {one.state, one.phase}")

    def journeys(self, catalog: dict[str, Journey]) -> None:
        self.control.append(catalog)
        self.due = True

    def fold(self, worker: Worker, upto: int) -> None:
        """What *worker* knows when it has read the topics so far; perhaps they were compacted."""
        seen = self.control[:upto]
        table = Table()
        entries = [entry for entry in seen if isinstance(entry, tuple)]
        if self.cluster.rng.random() < 0.5:
            entries = list({entry[0]: entry for entry in entries}.values())
        for id_, one in entries:
            table.take(id_, one)
        worker.context.recalculations = table
        worker.context.catalog = dict(next(entry for entry in reversed(seen) if isinstance(entry, dict)))

    def learn(self, worker: Worker) -> bool:
        """*worker* reads one record on; whether its partitions have to know."""
        entry = self.control[worker.catalog_version + 1]
        worker.catalog_version += 1
        if isinstance(entry, dict):
            worker.context.catalog = dict(entry)
            return True
        return worker.context.recalculations.take(*entry)

    def match(self, worker: Worker) -> None:
        parts = [part for part in worker.open.values() if part.active]
        worker.context.matcher = Keyed(self.base, recorded(worker.context, parts))  # type: ignore[assignment]

    # ------------------------------------------------------------------ what people do

    def request(self, journeys: Iterable[str]) -> None:
        """Somebody asks for a recalculation."""
        catalog = self.catalog()
        mine = [catalog[id_] for id_ in journeys if id_ in catalog]
        rules = {key: rule for journey in mine for key, rule in rules_by_key(journey).items()}
        if rules:
            self.requests += 1
            self.write(
                Recalculation(
                    id=f"r-{self.requests}", state=PLANNED, cause=REQUEST, journeys=tuple(j.id for j in mine), rules=tuple(rules.values()),
                    planned_at=self._now(),
                )
            )  # fmt: skip

    def catalog(self) -> dict[str, Journey]:
        return next(entry for entry in reversed(self.control) if isinstance(entry, dict))

    def cancel(self) -> None:
        """Somebody cancels one, perhaps by what was known of it a while ago."""
        rng = self.cluster.rng
        self.cancels -= 1
        one = rng.choice([one for one in self.table.records.values() if not one.over])
        old = [entry[1] for entry in self.control if isinstance(entry, tuple) and entry[0] == one.id and not entry[1].over]
        self.write(rng.choice(old).but(state=CANCELLED, finished_at=self._now()))

    def confirm(self, one: Recalculation) -> None:
        """Somebody confirms one that waits, or refuses it."""
        if self.cluster.rng.random() < 0.8:
            self.write(one.but(confirmed_at=self._now()))
        else:
            self.write(one.but(state=CANCELLED, finished_at=self._now()))

    def _now(self) -> int:
        self.clock_ms += 1
        return self.clock_ms

    # ------------------------------------------------------------------ what can happen

    def choices(self, all_of_them: bool) -> list[tuple[float, Callable[[], None]]]:
        """Steps that have something to do. Reports are looked at now and then, or when *all_of_them* are asked for."""
        found: list[tuple[float, Callable[[], None]]] = []
        rng, owner = self.cluster.rng, self.cluster.owner
        for worker in self.cluster.workers:
            caught_up = worker.catalog_version >= len(self.control) - 1
            if caught_up and worker is not owner[0] and self._to_restate(worker):
                self.restate(worker)
        if self.due:
            found.append((1.0, partial(self.drive, owner[0], True)))
        active = self.table.active()
        for p, worker in enumerate(owner):
            for journey, views in views_of(worker.open[p]).items():
                if self.views.get((journey, p)) != views:
                    found.append((0.5, partial(self.report_views, journey, p, views)))
        if active and self.cancels and rng.random() < 0.02:
            found.append((1.0, self.cancel))
        if not active:
            return found
        for one in active:
            if one.waits:
                found.append((0.3, partial(self.confirm, one)))
        if rng.random() < 0.03:
            found.append((0.3, partial(self.drive, rng.choice(self.cluster.workers), False)))
        if all_of_them or rng.random() < 0.4:
            for p, worker in enumerate(owner):
                for one in worker.context.recalculations.active():
                    report = report_of(worker.open[p], one, self.reports.worker(one.id, p), 0, len(self.cluster.logs["activities", p]))
                    if self.said.get((one.id, p)) != report:
                        found.append((1.0, partial(self.report, one, p, report)))
                    compared = worker.open[p].comparing.found.get(one.id)
                    if compared is not None and self.compared.get((one.id, p)) != compared:
                        found.append((1.0, partial(self.report_compared, one, p, compared)))
        for one in active:
            if one.state == FILLING:
                for p in range(len(owner)):
                    told = self.reports.worker(one.id, p)
                    if told is not None and self.read.get((one.id, p), 0) < told.recording_from:
                        found.append((1.0, partial(self.job, one, p, told.recording_from)))
        return found

    def report_views(self, journey: str, p: int, views: tuple[tuple[int, int], ...]) -> None:
        if any(one.phase == CANCELLING for one in self.table.records.values()):
            self.due = True
        self.views[journey, p] = views
        self.reports.take(journey, VIEWS, p, ViewsReport(views))

    def report(self, one: Recalculation, p: int, report: WorkerReport) -> None:
        self.said[one.id, p] = report
        self.reports.take(one.id, WORKER, p, report)
        self.due = True
        self.cluster.say(f"partition {p} of {one.id}: {report}")

    def report_compared(self, one: Recalculation, p: int, report: ComparisonReport) -> None:
        self.compared[one.id, p] = report
        self.reports.take(one.id, COMPARISON, p, report)
        self.due = True

    def drive(self, worker: Worker, real: bool) -> None:
        """A driver acts: the owner of partition 0, or one that was, and knows only what it has read."""
        while real and worker.catalog_version < len(self.control) - 1:
            self.cluster.learn(worker)
        table, catalog, now_ms, n = worker.context.recalculations, worker.context.catalog, self._now(), len(self.cluster.owner)
        out = [table.records[id_] for id_ in sorted(table.stale)]
        planned = missing(table, catalog.values(), now_ms)
        if planned is not None and planned.id not in table.records:
            out.append(planned)
        out += unneeded(table, catalog.values(), now_ms, KEEP_MS)
        following = begin(table, catalog.values(), now_ms)
        out += [] if following is None else [following]
        waiting = False
        for one in table.active():
            flush = self.flushes.setdefault((worker.number, one.id), Flush())
            rounds = flush.rounds
            ends = {p: len(self.cluster.logs["handoffs", p]) for p in range(n)}
            after = advance(one, self.reports, n, flush, ends, now_ms, self.tolerance)
            waiting = waiting or flush.rounds != rounds
            if after.state != one.state:
                del self.flushes[worker.number, one.id]
            if (after.state, after.phase) != (one.state, one.phase):
                out.append(after)
        for one in table.records.values():
            if one.phase == CANCELLING and taken_back(one, table, self.reports, catalog.values(), n):
                out.append(one.but(phase=None))
        if real:
            self.due = waiting or bool(out)
        for one in out:
            self.write(one)

    def restate(self, worker: Worker) -> None:
        """A worker that does not drive says what it knows of recalculations whose last record says less."""
        for id_ in self._to_restate(worker):
            self.restated[worker.number, id_] = one = worker.context.recalculations.records[id_]
            self.write(one)

    def _to_restate(self, worker: Worker) -> list[str]:
        table = worker.context.recalculations
        return [id_ for id_ in sorted(table.stale) if self.restated.get((worker.number, id_)) != table.records[id_]]

    def job(self, one: Recalculation, p: int, to: int) -> None:
        """A job reads on in the log of partition *p*; it may die before it has said so, or written all."""
        rng, at = self.cluster.rng, self.read.get((one.id, p), 0)
        if rng.random() < 0.05:
            at = 0  # somebody who read only what compaction left of the reports
        end = min(to, at + rng.choice((1, 3, 50)))
        n = len(self.cluster.owner)
        found = rebuilt(one, self.table.rules(one.id), self.cluster.logs["activities", p][at:end], 86_400_000)
        dies = rng.random() < 0.15
        for key, value in found[: rng.randint(0, len(found))] if dies else found:
            q = partition_of(key, n)
            self.cluster.append("rebuilt-evidence", q, [(q, key, value, (), 0)])
        self.cluster.say(f"the job reads {p} {at}..{end - 1} for {one.id}{', and dies' if dies else ''}")
        if not dies:
            self.read[one.id, p] = end
            written = {q: len(self.cluster.logs["rebuilt-evidence", q]) for q in range(n)}
            self.reports.take(one.id, JOB, p, JobReport(0, end, 0, written))
            self.due = True

    # ------------------------------------------------------------------ what must hold

    def check_switched(self, changes: Iterable[bytes]) -> None:
        """Nothing is announced of a recalculation before it is switched to."""
        for value in changes:
            change = json.loads(value)
            one = self.table.records.get(change["cause_id"] or "")
            if change["cause"] == CAUSE and one is not None:
                assert one.switched_at is not None, f"{one.id} is {one.state}, {one.phase}, and announced {change}"

    def check_rest(self) -> None:
        """What was announced of cancelled recalculations is taken back in the end, and none waits."""
        for one in self.table.records.values():
            assert one.over, f"{one.id} is {one.state}, {one.phase}"
            assert one.phase is None, f"{one.id} is {one.state} and still {one.phase}"

    def check_complete(self, one: Recalculation) -> None:
        """When a recalculation is switched to, all that was known of its rules is known under the new epoch, contact by contact.

        But for a handover that a crash left half done: then its sender holds what its receiver lacks, until the merge has come again.
        """
        before = Table()
        for entry in self.control[:-1]:
            if isinstance(entry, tuple):
                before.take(*entry)
        holders = [
            (key, hits, erased)
            for worker, p in ((worker, p) for p, worker in enumerate(self.cluster.owner))
            for key, hits, erased in _holders(worker.open[p].ledger)
        ]
        for rule in self.table.rules(one.id):
            readable = before.standing(rule).readable
            if not readable:
                continue
            old, new = evidence_key(rule, readable[0].id), evidence_key(rule, one.id)
            anywhere = {hit for _, hits, _ in holders for hit in _set(hits.get(new, b""))}
            for key, hits, erased in holders:
                missed = {hit for hit in _set(hits.get(old, b"")) - anywhere if hit[:8] > erased}
                assert not missed, f"{one.id} is switched to, and {key!r} lacks {missed}"


def _holders(ledger: Any) -> Iterator[tuple[bytes, Mapping[bytes, bytes], bytes]]:
    """`(key, hits, moment of erasure or nothing)` of each holder in RocksDB."""
    for key, value in ledger.scan(records.EVIDENCE):
        if records.pointer_of(value) is None:
            identity = ledger.get(records.IDENTITY + key[1:])
            erased_at_ms = None if identity is None else records.decode_head(identity)[2]
            yield key, records.decode_evidence(value)[0].hits, b"" if erased_at_ms is None else moment(erased_at_ms)


def _set(blob: bytes) -> set[bytes]:
    return {blob[i : i + 16] for i in range(0, len(blob), 16)}
