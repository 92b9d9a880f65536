"""A whole cluster in memory: the real partitions of `agents`, on doubles of broker, disk and clock, driven by one seeded generator.

Every step of section 6's batch ends where the generator says: what a worker has sent and not seen acknowledged may be on the broker, in part or
not at all, when it dies. Nothing here knows what the right answer is; see `checks`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from random import Random
from typing import Any
from unittest.mock import patch

import agents.building
import agents.comparing
import agents.partition
import agents.pipeline
import agents.succession
import state.views
from agents.partition import SOURCES, Partition
from schemas.journey import Journey
from state.progress import Projection
from state.views import group_key, index_prefix
from streams.blocks import Rows
from streams.partitioner import partition_of
from tests.support.records import Record, block_of

from .doubles import Disk, Loop, MemoryLedger
from .history import Plan, journey
from .recalculating import Recalculating
from .worker import MATCHER, TOPICS, Pending, Worker


class Cluster:
    """The cluster that plays one plan. `step()` does one thing at random; `settle()` runs until nothing is left to do."""

    def __init__(
        self, plan: Plan, trace: Callable[[str], None] | None = None, watch: Callable[[Cluster], None] = lambda _: None
    ) -> None:
        self.plan = plan
        self.watch = watch  # looks on now and then
        self.visible: set[str] = set()  # journeys that showed numbers, since the last change of owners
        self.rng = Random(plan.seed ^ 0x5EED)
        self.trace = trace
        self.loop = Loop()
        self.disk = Disk()
        self.logs: dict[tuple[str, int], list[Record]] = {(s, p): [] for s in SOURCES for p in range(plan.partitions)}
        self.committed: dict[tuple[str, int], int] = dict.fromkeys(self.logs, 0)
        self.acked: dict[tuple[str, int], int] = dict.fromkeys(self.logs, 0)
        self.changelogs: list[list[Record]] = [[] for _ in range(plan.partitions)]
        self.changelog_ends = [0] * plan.partitions
        self.foreign: list[list[tuple[bytes, bytes | None]]] = [[] for _ in range(plan.partitions)]  # written by a zombie, not healed
        self.clean_to = [0] * plan.partitions  # compaction has not passed the first record of a zombie that is not healed
        self.zombies: list[Pending] = []
        self.changes: list[tuple[bytes, bytes]] = []
        self.rejected: list[Any] = []
        self.facts_sent = 0
        self.recalculating = Recalculating(self, MATCHER)
        self.asked = 0  # of the recalculations that somebody asks for
        self.faults = self.rng.choice((0, 2, 4, 8))
        self.chunk_records = self.rng.choice((1, 2, 8, 50))
        # how soon each topic answers, and is read: in some histories one is far behind the others
        self.speed = {topic: self.rng.choice((0.1, 1.0, 1.0, 3.0)) for topic in (*TOPICS, "changelog")}
        self.error: BaseException | None = None
        self.workers = [Worker(self, n) for n in range(plan.workers)]
        self.owner = [self.rng.choice(self.workers) for _ in range(plan.partitions)]
        for p in range(plan.partitions):
            self.take(p, self.owner[p])

    def failed(self, error: BaseException) -> None:
        self.error = self.error or error

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace(text)

    def run(self) -> None:
        self.loop.run()
        if self.error is not None:
            raise self.error
        assert not self.loop.errors, self.loop.errors

    # ------------------------------------------------------------------ the broker

    def append(self, topic: str, partition: int, records: list[Any]) -> int:
        """Writes to the log of a topic's partition; the last offset."""
        if topic == "changelog":
            for key, value in records:
                self.changelogs[partition].append(Record(self.changelog_ends[partition], 0, key, value))
                self.changelog_ends[partition] += 1
            return self.changelog_ends[partition] - 1
        if topic == "stage-changes":
            self.recalculating.check_switched(value for _, _, value, _, _ in records)
            self.changes.extend((key, value) for _, key, value, _, _ in records)
        elif topic == "rejected":
            self.rejected.extend(records)
        else:
            log = self.logs[topic, partition]
            for _, key, value, headers, timestamp in records:
                log.append(Record(len(log), timestamp, key, value, headers))
        return -1

    def land(self, pending: Pending, acknowledge: bool) -> None:
        """All of *pending* is on the broker; the worker hears of it or not."""
        last = -1
        for partition, records in pending.by_partition.items():
            last = self.append(pending.topic, partition, records)
            if pending.topic == "handoffs" and self.rng.random() < 0.05:
                self.append(pending.topic, partition, records)
        if acknowledge and not pending.future.done():
            pending.future.set_result(last if pending.topic == "changelog" else None)
            self.run()

    def land_in_part(self, pending: Pending) -> None:
        """What a worker that dies has sent: nothing, all, or the first records of each partition."""
        how = self.rng.random()
        if how < 0.3:
            return
        for partition, records in pending.by_partition.items():
            n = len(records) if how < 0.6 else self.rng.randint(0, len(records))
            self.append(pending.topic, partition, records[:n])

    def compact(self, partition: int, to: int | None = None) -> None:
        """Keeps the last record of each key before offset *to*. Never passes what a zombie wrote and the owner has not answered."""
        log, end = self.changelogs[partition], self.changelog_ends[partition]
        owner = self.owner[partition].open.get(partition)
        answered = not self.foreign[partition] and (owner is None or not owner.succession.stale)
        stop = end if answered else self.clean_to[partition]
        to = stop if to is None else min(to, stop)
        last = {record.key: record.offset for record in log if record.offset < to}
        self.changelogs[partition] = [r for r in log if r.offset >= to or last[r.key] == r.offset]
        if self.rng.random() < 0.3:  # tombstones go, later
            self.changelogs[partition] = [r for r in self.changelogs[partition] if r.offset >= to or r.value is not None]

    # ------------------------------------------------------------------ the group

    def frozen(self, partition: int) -> bool:
        return bool(self.foreign[partition])

    def take(self, p: int, worker: Worker) -> None:
        """*worker* becomes the owner of *p*: recovers, then serves."""
        self.visible.clear()
        self.owner[p] = worker
        part = worker.open.get(p)
        if part is None:
            part = worker.open[p] = Partition(p, worker.context)
        self.follow(part, None)
        self.foreign[p].clear()  # what it finds is all that a new owner knows, and says again by itself
        self.clean_to[p] = 0
        while worker.catalog_version < len(self.recalculating.control) - 1:
            self.learn(worker)  # a worker reads the journeys topic to its end before it takes over
        self.loop.finish(self._activate(part))
        self.recalculating.match(worker)
        for source in SOURCES:
            worker.read_to[p, source] = self.acked[source, p] = self.committed[source, p]
        self.loop.finish(self._tick(part))
        self.run()

    async def _tick(self, part: Partition) -> None:
        part.building.settle()

    async def _activate(self, part: Partition) -> None:
        part.activate({source: len(self.logs[source, part.number]) for source in SOURCES})

    def follow(self, part: Partition, most: int | None) -> None:
        """Recovers up to *most* changelog records, in chunks of random size."""
        have = part.changelog_offset()
        left = [r for r in self.changelogs[part.number] if have is None or r.offset > have]
        left = left if most is None else left[:most]
        while left:
            n = self.rng.randint(1, len(left))
            chunk, left = left[:n], left[n:]
            part.recover(Rows(block_of(chunk)) if self.plan.seed % 2 else chunk, chunk[-1].offset)

    def drop(self, worker: Worker, p: int) -> None:
        part = worker.open.pop(p)
        self.loop.finish(part.close())
        for key in [k for k in worker.busy if k[0] == p]:
            del worker.busy[key]

    def end(self, worker: Worker) -> None:
        """*worker* closes everything and asks for nothing any more."""
        for p in list(worker.open):
            self.drop(worker, p)
        for task in worker.asking:
            task.cancel()
        self.run()

    def die(self, worker: Worker, wipe: bool) -> None:
        """*worker* is killed and started again; its partitions come back to it, or go to others."""
        self.say(f"worker {worker.number} dies, {'disk wiped' if wipe else 'disk kept'}")
        for pending in worker.pending:
            if pending.asks:  # that it dies between a word that comes late and asking for the truth is a known limit
                self.land(pending, acknowledge=False)
            else:
                self.land_in_part(pending)
        self.zombies = [pending for pending in self.zombies if pending.owner is not worker or pending.topic != "stage-changes"]
        mine = [p for p in range(self.plan.partitions) if self.owner[p] is worker]
        self.end(worker)
        if wipe:
            for path in [path for path in self.disk.ledgers if path.startswith(f"/w{worker.number}/")]:
                del self.disk.ledgers[path]
        worker.start()
        if self.rng.random() < 0.5:
            self.rebalance()
        else:
            for p in mine:
                self.take(p, worker)

    def rebalance(self) -> None:
        """Every partition is taken away and given out again; some of what is on its way arrives late (zombies)."""
        for worker in self.workers:
            for pending in worker.pending:
                if pending.topic in ("changelog", "stage-changes") and self.rng.random() < 0.6:
                    self.zombies.append(pending)
                elif not pending.asks:
                    self.land_in_part(pending)
            worker.pending = [pending for pending in worker.pending if pending.asks]
        for worker in self.workers:
            for p in [p for p in worker.open if worker.open[p].active]:
                self.drop(worker, p)
        for p in range(self.plan.partitions):
            self.take(p, self.rng.choice(self.workers))
        self.say(f"rebalanced: {[w.number for w in self.owner]}")

    def haunt(self, pending: Pending) -> None:
        """A worker that was stopped for long goes on: its record lands behind the new owner's."""
        self.zombies.remove(pending)
        if pending.topic == "stage-changes":
            self.say(f"worker {pending.owner.number} speaks late: {pending.by_partition}")
            self.land(pending, acknowledge=True)
            return
        for p, records in pending.by_partition.items():
            if not self.foreign[p]:
                self.clean_to[p] = self.changelog_ends[p]
            self.append("changelog", p, records)
            self.foreign[p] += records
            self.say(f"a zombie writes {[key for key, _ in records]} to changelog {p}")

    def heal(self, p: int) -> None:
        """The owner sees foreign records and says its own again."""
        part, keys = self.owner[p].open[p], sorted({key for key, _ in self.foreign[p]})
        part.succession.keep(self.foreign[p], {source: len(self.logs[source, p]) for source in SOURCES})
        self.append("changelog", p, part.values(keys))
        self.foreign[p].clear()
        self.say(f"changelog {p} healed: {keys}")

    # ------------------------------------------------------------------ what can happen

    def deliver(self, worker: Worker, p: int, source: str) -> None:
        """A chunk of random size of one source of one partition."""
        log, at = self.logs[source, p], worker.read_to[p, source]
        n = min(len(log) - at, self.chunk_records, self.rng.choice((1, 1, 2, 3, 8, 50)))
        chunk = log[at : at + n]
        if self.plan.seed // 2 % 2:
            chunk = Rows(block_of(chunk))  # as they are fetched
        worker.read_to[p, source] = at + n

        def done() -> None:
            self.acked[source, p] = at + n

        self.say(f"{source}-{p} {at}..{at + n - 1} to worker {worker.number}")
        worker.busy[p, source] = self.loop.create_task(worker.open[p].submit(source, chunk, done))
        self.run()

    def _deliverable(self) -> list[tuple[Worker, int, str]]:
        found = []
        for p, worker in enumerate(self.owner):
            for source in SOURCES:
                if worker.read_to[p, source] < len(self.logs[source, p]):
                    task = worker.busy.get((p, source))
                    if task is None or task.done():
                        if task is not None:
                            task.result()
                        found.append((worker, p, source))
        return found

    def send_fact(self) -> None:
        fact = self.plan.facts[self.facts_sent]
        self.facts_sent += 1
        p = partition_of(fact.contact, self.plan.partitions)
        if self.rng.random() < 0.06 and fact.value is not None:
            p = self.rng.randrange(self.plan.partitions)
        self.say(f"fact {fact.source}-{p}: {fact.said}")
        self.append(fact.source, p, [(p, fact.contact.encode(), fact.value, (), fact.timestamp_ms)])
        self.edit()

    def edit(self) -> None:
        """The journeys topic gets what is due by now."""
        catalog = self.plan.journeys(self.facts_sent)
        if catalog != self.recalculating.catalog():
            self.recalculating.journeys(catalog)
        for after, journeys in self.plan.recalculations[self.asked :]:
            if after <= self.facts_sent:
                self.asked += 1
                self.recalculating.request(journeys)

    def learn(self, worker: Worker) -> None:
        """*worker* reads on in the journeys topic."""
        changed = self.recalculating.learn(worker)
        if not changed:
            return
        self.say(f"worker {worker.number} learns of {[(j.id, j.version) for j in worker.context.catalog.values()]}")

        async def reconcile() -> None:
            for part in worker.open.values():
                if part.active:
                    part.reconcile()

        self.loop.finish(reconcile())
        self.recalculating.match(worker)
        self.run()

    def step(self, until: int) -> bool:
        """One thing happens; facts up to *until* may be sent. False when nothing is left to do."""
        rng = self.rng
        if self.faults and rng.random() < 0.04:
            self.faults -= 1
            self.fault()
            return True
        choices: list[tuple[float, Callable[[], None]]] = []
        if self.facts_sent < until:
            choices.append((2.0, self.send_fact))
        for worker in self.workers:
            if worker.catalog_version < len(self.recalculating.control) - 1:
                choices.append((1.0, lambda w=worker: self.learn(w)))
            for pending in worker.pending:
                choices.append((self.speed[pending.topic], lambda w=worker, x=pending: self._acknowledge(w, x)))
        for worker, p, source in self._deliverable():
            choices.append((self.speed[source], lambda w=worker, p=p, s=source: self.deliver(w, p, s)))
        for pending in self.zombies:
            choices.append((0.1, lambda x=pending: self.haunt(x)))
        for p in range(self.plan.partitions):
            if self.foreign[p]:
                choices.append((0.5, lambda p=p: self.heal(p)))
            if self.committed_behind(p):
                choices.append((0.3, lambda p=p: self.commit(p)))
        choices += self.recalculating.choices(not choices)
        if not choices:
            return False
        if rng.random() < 0.02:
            choices = [(1.0, lambda: self.compact(rng.randrange(self.plan.partitions), rng.randint(0, 200)))]
        rng.choices([c for _, c in choices], [w for w, _ in choices])[0]()
        if rng.random() < 0.05:
            self.check_numbers()
            self.watch(self)
        return True

    def check_numbers(self) -> None:
        """At any moment a number equals the list behind it, in each partition."""
        for worker in self.workers:
            for part in worker.open.values():
                for view in part.views.all:
                    cells = part.totals.get(view.id, {})
                    for group in {"", *cells}:
                        listed = sum(1 for _ in part.ledger.scan(index_prefix(view.id, group_key(group or None))))
                        counted = cells.get(group, {}).get(("r", 1, 0), 0)
                        assert counted == listed, f"{counted} are counted, {listed} listed of {view.journey.id}, group {group!r}"

    def committed_behind(self, p: int) -> bool:
        return any(self.acked[s, p] > self.committed[s, p] for s in SOURCES)

    def commit(self, p: int) -> None:
        for source in SOURCES:
            self.committed[source, p] = max(self.committed[source, p], self.acked[source, p])

    def _acknowledge(self, worker: Worker, pending: Pending) -> None:
        worker.pending.remove(pending)
        self.say(f"acknowledged to worker {worker.number}: {pending.topic} {pending.by_partition}")
        self.land(pending, acknowledge=True)

    def fault(self) -> None:
        rng = self.rng
        kind = rng.random()
        if kind < 0.55:
            self.die(rng.choice(self.workers), wipe=rng.random() < 0.35)
        elif kind < 0.8:
            self.rebalance()
        elif self.loop.timers:
            self.loop.fire(rng.randrange(len(self.loop.timers)))
            self.run()
        else:  # a standby follows
            p, worker = rng.randrange(self.plan.partitions), rng.choice(self.workers)
            if p not in worker.open:
                worker.open[p] = Partition(p, worker.context)
            if not worker.open[p].active:
                self.follow(worker.open[p], rng.randint(0, 30))

    def settle(self, until: int) -> None:
        """Sends facts up to *until* and runs until nothing is left to do. What was cancelled that journeys need, is asked for again."""
        self.edit()
        steps = 0
        while True:
            while self.step(until):
                steps += 1
                assert steps < 100_000, "the cluster does not come to rest"
            lacking = [j.id for j in self.recalculating.catalog().values() if self.recalculating.table.source(j) is None]
            if not lacking:
                return
            self.recalculating.request(lacking)

    def start_over(self) -> None:
        """All workers end, all disks are lost, all changelogs are compacted: what is left has to be enough."""
        for p in range(self.plan.partitions):
            self.compact(p)
        self.faults = 0
        for worker in self.workers:
            self.end(worker)
            worker.start()
        self.disk.ledgers.clear()
        for p in range(self.plan.partitions):
            self.take(p, self.rng.choice(self.workers))

    def close(self) -> None:
        for worker in self.workers:
            self.end(worker)


@lru_cache(maxsize=20_000)
def _projection(journey: Journey, keys: tuple[tuple[bytes, bytes], ...]) -> Projection:
    return Projection(journey, dict(keys))


def projection(journey: Journey, keys: Mapping[bytes, bytes]) -> Projection:
    """Making one is dear, and the same few come again and again."""
    return _projection(journey, tuple(keys.items()))


@contextmanager
def with_doubles(seed: int) -> Iterator[None]:
    """Partitions open ledgers in memory, and have few decisions on their way and small scan steps."""
    rng = Random(seed)
    in_flight, contacts = rng.choice((1, 2, 6)), rng.choice((1, 2, 1000))
    clock = itertools.count()  # whose turn it is must not follow from how fast the machine is
    with (
        patch.object(agents.pipeline, "perf_counter", lambda: next(clock)),
        patch.multiple(agents.partition, Ledger=MemoryLedger, IN_FLIGHT=in_flight),
        patch.multiple(agents.building, SCAN_CONTACTS=contacts, parse_journey=journey),
        patch.object(agents.succession, "REPEATED_CONTACTS", contacts),
        patch.object(agents.comparing, "STEP_CONTACTS", contacts),
        patch.object(state.views, "Projection", projection),
    ):
        yield
