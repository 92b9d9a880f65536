"""Cases: what is measured and how, one function each. Each is worth nothing unless its numbers are right, so each lets `ground` judge them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from streams.settings import librdkafka_config
from tests.bench import data, peers
from tests.bench.ground import ROOT, Ground, Progress, Run, Worker, WrongAnswer, median
from tests.bench.report import Row
from tests.support import PATIENCE_SECONDS

LATENCY_RATE = 5000
STAGES_OF_MANY = 10


@dataclass
class Bench:
    """What the cases share. *scale* shrinks data and contacts alike; *repeat* is how often throughput and recovery are measured."""

    bootstrap: str
    directory: Path
    scale: float = 1.0
    repeat: int = 1
    latency_seconds: float = 60.0
    many_journeys: int = 1000
    every: int = 1
    """Of the points of a curve, one in so many."""
    journeys_over: tuple[tuple[str, int], ...] = (("sparse", 1_000_000), ("dense", 400_000))
    """Kinds of data and numbers of activities of the case journeys."""
    flames: Path | None = None
    """Where flame graphs of the cases sparse and dense go."""
    progress: Progress = lambda what, done, total: None
    grounds: dict[str, Ground] = field(default_factory=dict)

    def scaled(self, count: int) -> int:
        return max(1, round(count * self.scale))

    def ground(self, name: str, **more: Any) -> Ground:
        if name not in self.grounds:
            self.grounds[name] = Ground(self.bootstrap, self.directory, name, self.progress, max_future_hours=1e5, **more)
        return self.grounds[name]

    def forget(self, ground: Ground) -> None:
        """What *ground* wrote and expects goes: the next needs the room."""
        ground.discard()
        del self.grounds[ground.name]

    def loaded(self, kind: str) -> Ground:
        """The ground of the two main cases: the bench's data and its one journey of five stages."""
        ground = self.ground(kind)
        if not ground.expected.activities:
            count = self.scaled(2_000_000)
            ground.apply([data.journey()])
            ground.load(data.activities(kind, count, self.scaled(200_000)), count)
        return ground

    def played(self, kind: str) -> Ground:
        """The same, once a worker went through it."""
        ground = self.loaded(kind)
        if not ground.played:
            with ground.worker() as worker:
                ground.play(worker)
        return ground


# ---------------------------------------------------------------- throughput


def _throughput(bench: Bench, kind: str, at_least: float, aim: float, aim_cpu: float) -> list[Row]:
    ground, runs = bench.loaded(kind), list[Run]()
    for i in range(bench.repeat):
        if i or ground.played:
            ground.clear()
        with ground.worker() as worker:
            with worker.drawn(None if bench.flames is None else bench.flames / f"flame-{kind}.svg"):
                runs.append(ground.play(worker))
            ground.verify(worker)
    said = f"{ground.expected.activities:,} activities, {len(ground.expected.hits):,} contacts with evidence"
    if len(runs) > 1:
        said += "; runs: " + ", ".join(f"{run.per_second:,.0f}" for run in runs)
    return [
        Row(kind, "activities a second", median([run.per_second for run in runs]), "/s", said, at_least=at_least, aim=aim),
        Row(kind, "CPU of the worker", median([run.cpu_per_million for run in runs]), "s/M", aim=aim_cpu, less=True),
        Row(kind, "memory of the worker, peak", max(run.peak_mib for run in runs), "MiB"),
    ]


def sparse(bench: Bench) -> list[Row]:
    """One journey of five stages, 10 % of the activities meet a rule."""
    return _throughput(bench, "sparse", 200_000, 470_000, 3.0)


def dense(bench: Bench) -> list[Row]:
    """One journey of five stages, every activity meets a rule."""
    return _throughput(bench, "dense", 60_000, 120_000, 9.0)


def two(bench: Bench) -> list[Row]:
    """Two workers on the sparse topic, written before, against one: from when each has half of the partitions until all is done."""
    ground = bench.loaded("sparse")
    total, half = ground.expected.activities, ground.settings.partitions // 2
    if ground.played:
        ground.clear()
    with ground.worker() as worker:
        one = ground.play(worker).per_second
        ground.verify(worker)
    ground.clear()
    with ground.worker() as first, ground.worker("-second") as second:
        ground.until(lambda: first.done() > 0 or second.done() > 0, "one of them has begun", 0.02)
        began, before = time.monotonic(), 0
        ground.until(lambda: first.live(half) and second.live(half), "both workers serve", 0.02)
        done = first.done() + second.done()
        if done < total:  # else there was too little to do
            began, before = time.monotonic(), done
        ground.until(lambda: first.done() + second.done() >= total, "both are through", 0.05)
        both = (total - before) / (time.monotonic() - began)
        ground.played = True
        ground.verify(first, second)
    said = f"{both:,.0f}/s and {one:,.0f}/s; the two counted from when they had {before:,} of {total:,} done"
    return [Row("two workers", "sparse, against one", both / one, "times", said, aim=1.6)]


def peer(bench: Bench) -> list[Row]:
    """A stock Faust agent with a table, and bare clients, on the dense topic; for a ratio, the worker's own run on it."""
    ground = bench.loaded("dense")
    total = ground.expected.activities
    rows, rates = [], {}
    for kind in peers.KINDS:
        count = min(total, bench.scaled(60_000)) if kind == "faust" else total
        bench.progress(f"peer: {kind}", 0, 1)
        run = peer_run(bench, kind, ground.topic("activities"), count)
        rates[kind] = run.per_second
        rows += [
            Row(f"peer {kind}", "activities a second", run.per_second, "/s", f"{run.records:,} activities of the dense topic"),
            Row(f"peer {kind}", "CPU of the process", run.cpu_per_million, "s/M"),
        ]
        bench.progress(f"peer: {kind}", 1, 1)
    if ground.played:
        ground.clear()
    with ground.worker() as worker:
        ours = ground.play(worker)
        ground.verify(worker)
    rows.append(Row("peer faust", "our worker is faster by", ours.per_second / rates["faust"], "times", f"dense: {ours.per_second:,.0f}/s here"))
    return sorted(rows, key=lambda row: row.case)


def peer_run(bench: Bench, kind: str, topic: str, count: int) -> Run:
    file = bench.directory / f"peer-{kind}.json"
    arguments = [sys.executable, "-m", "tests.bench.peers", kind, bench.bootstrap, topic, str(count), str(bench.directory), str(file)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        raise WrongAnswer(f"the peer {kind} failed:\n{done.stderr[-3000:]}")
    said = json.loads(file.read_text())
    return Run(said["records"], said["seconds"], said["cpu_seconds"], 0.0)


# ---------------------------------------------------------------- many journeys


def journeys(bench: Bench) -> list[Row]:
    """1,000 journeys of 10 stages instead of one of 10. Activities meet the same rules; what the others ask is in the same fields of the same
    types, and nothing meets it. The views are built before the activities come."""
    rows, thousand = [], bench.many_journeys
    for kind, count in bench.journeys_over:
        runs: dict[int, list[Run]] = {}
        built_s = {}
        for many in (1, thousand):
            ground = bench.ground(f"{kind}-{many}-journeys")
            all_of_them = [data.journey(stages=STAGES_OF_MANY), *(data.other_journey(i, STAGES_OF_MANY) for i in range(1, many))]
            ground.apply(all_of_them)
            ground.expected.stages = STAGES_OF_MANY
            built_s[many] = ground.prepare(many)
            ground.load(data.activities(kind, bench.scaled(count), bench.scaled(count // 10)), bench.scaled(count))
        for i in range(bench.repeat):
            for many in (1, thousand):
                ground = bench.ground(f"{kind}-{many}-journeys")
                if i:
                    ground.clear()
                    ground.prepare(many)
                with ground.worker() as worker:
                    runs.setdefault(many, []).append(ground.play(worker))
                    ground.verify(worker)
        seconds = {many: median([run.seconds for run in of_many]) for many, of_many in runs.items()}
        cpu = {many: median([run.cpu_per_million for run in of_many]) for many, of_many in runs.items()}
        said = f"{bench.scaled(count):,} activities; {cpu[1]:.1f} and {cpu[thousand]:.1f} s/M"
        rows += [
            Row("journeys", f"{kind}: CPU of {thousand:,} against one", cpu[thousand] / cpu[1], "times", said, at_most=1.3, aim=1.1),
            Row("journeys", f"{kind}: time of {thousand:,} against one", seconds[thousand] / seconds[1], "times",
                f"{seconds[1]:.1f} and {seconds[thousand]:.1f} s", at_most=1.3, aim=1.1),
        ]  # fmt: skip
        if kind == "dense":
            rows.append(Row("journeys", f"start with {thousand:,}, until all are built", built_s[thousand], "s", f"one: {built_s[1]:.1f} s"))
    return rows


# ---------------------------------------------------------------- latency


def latency(bench: Bench) -> list[Row]:
    """Dense activities at a steady 5,000 a second. For each: until the results reflect it (asked for all the time), and, where it changes a stage,
    until its change is read from the topic."""
    ground = bench.ground("latency")
    ground.apply([data.journey()])
    seconds = max(2.0, bench.latency_seconds * min(1.0, bench.scale))
    contacts = bench.scaled(20_000)
    with ground.worker() as worker:
        ground.until(lambda: worker.built(1, ground.settings.partitions), "the journey is built")
        cpu_before = worker.cpu_seconds()
        said, looks, changes = paced(bench, ground, worker, seconds, contacts)
        cpu_share = (worker.cpu_seconds() - cpu_before) / seconds * 100
        for made in data.activities("dense", int(LATENCY_RATE * seconds), contacts):
            ground.expected.take(made)
        ground.verify(worker)
    sent, taken = said["sent"], said["taken"]
    from_topic = until_seen(taken, looks)
    from_sent = [seen + acknowledged - at for seen, (acknowledged, _, _), at in zip(from_topic, taken, sent, strict=True)]
    announced = [at - taken[int(cause[2:])][0] for cause, at in changes]
    rows = []
    for what, values in (
        ("on the topic until in the results", from_topic),
        ("sent until in the results", from_sent),
        ("on the topic until its change is read", announced),
    ):
        values.sort()
        promised, aim = (500.0, 50.0) if what == "on the topic until in the results" else (None, None)
        pace = f"{len(values):,} at {len(sent) / said['seconds']:,.0f}/s for {said['seconds']:.0f} s"
        said_of = f"{pace}; median {percentile(values, 0.5):.0f}, most {values[-1] * 1000:.0f} ms"
        rows.append(Row("latency", what + ", p99", percentile(values, 0.99), "ms", said_of, at_most=promised, aim=aim))
    return [*rows, Row("latency", "CPU of the worker meanwhile", cpu_share, "% of a core", "asked for its positions every 5 ms")]


Looks = dict[str, list[tuple[int, float]]]


def until_seen(taken: list[tuple[float, int, int]], looks: Looks) -> list[float]:
    """Of each activity, seconds from the moment when it was on the topic until the results reflected it."""
    seen_at = {number: ([position for position, _ in of_one], [at for _, at in of_one]) for number, of_one in looks.items()}
    found = []
    for acknowledged, partition, offset in taken:
        positions, times = seen_at[str(partition)]
        found.append(times[bisect_left(positions, offset + 1)] - acknowledged)
    return found


def paced(
    bench: Bench, ground: Ground, worker: Worker, seconds: float, contacts: int, rate: int = LATENCY_RATE
) -> tuple[Any, Looks, list[tuple[str, float]]]:
    """What the sender noted; per partition (position of the results, when it was seen first); (activity behind a stage change, when it was read)."""
    count = worker.done() + int(rate * seconds)
    file = ground.directory / "pace.json"
    arguments = [bench.bootstrap, ground.topic("activities"), "dense", str(rate), str(seconds), str(contacts), str(file)]
    changes: list[tuple[float, Any]] = []
    over = threading.Event()
    reader = threading.Thread(target=_read_changes, args=(ground, changes, over))
    reader.start()
    looks: Looks = {str(number): [(0, 0.0)] for number in range(ground.settings.partitions)}
    sender = subprocess.Popen([sys.executable, "-m", "tests.bench.pace", *arguments], cwd=ROOT)
    try:
        seen = 0
        ends_at = time.monotonic() + seconds + PATIENCE_SECONDS
        while seen < count:
            partitions = worker.partitions()
            at = time.monotonic()
            for number, partition in partitions.items():
                position = partition["positions"]["activities"] or 0
                if position > looks[number][-1][0]:
                    looks[number].append((position, at))
            seen = sum(of_one[-1][0] for of_one in looks.values())
            bench.progress(f"{ground.name}: in the results", seen, count)
            if at > ends_at or sender.poll() not in (None, 0):
                raise WrongAnswer(f"latency: {seen} of {count} activities are in the results after {seconds + PATIENCE_SECONDS:.0f} s")
            time.sleep(0.005)
        sender.wait(PATIENCE_SECONDS)
    finally:
        sender.kill()
        time.sleep(0.5)
        over.set()
        reader.join()
    causes = [(json.loads(value)["cause_id"], at) for at, value in changes]
    return json.loads(file.read_text()), looks, causes


def _read_changes(ground: Ground, changes: list[tuple[float, Any]], over: threading.Event) -> None:
    config = librdkafka_config(ground.settings) | {"group.id": "bench", "enable.auto.commit": False, "fetch.wait.max.ms": 50}
    consumer = Consumer(config)
    consumer.assign([TopicPartition(ground.topic("stage-changes"), number, 0) for number in range(ground.settings.partitions)])
    try:
        while not over.is_set():
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                changes.append((time.monotonic(), message.value()))
    finally:
        consumer.close()


def percentile(values: list[float], share: float) -> float:
    """In milliseconds, of sorted *values* in seconds."""
    return values[min(len(values) - 1, int(len(values) * share))] * 1000


# ---------------------------------------------------------------- memory, recovery


def memory(bench: Bench) -> list[Row]:
    """A million contacts with two hits each; the memory setting at its default."""
    ground = bench.ground("memory")
    contacts = bench.scaled(1_000_000)
    ground.apply([data.journey()])
    ground.load(data.activities("dense", 2 * contacts, contacts, in_turn=True), 2 * contacts)
    with ground.worker() as worker:
        run = ground.play(worker)
        ground.verify(worker)
        after_mib = worker.rss_mib()
        running_bytes = ground.disk_bytes()
    ended_bytes = ground.disk_bytes()
    if len(ground.expected.hits) != contacts:
        raise WrongAnswer(f"memory: {len(ground.expected.hits)} of {contacts} contacts have evidence")
    said = f"{contacts:,} contacts with evidence, memory_mb {ground.settings.memory_mb}; {run.per_second:,.0f} activities a second"
    return [
        Row("memory", "of the worker, peak", run.peak_mib, "MiB", said, at_most=400),
        Row("memory", "of the worker, after", after_mib, "MiB"),
        Row("memory", "on disk, a contact", running_bytes / contacts, "bytes", f"while it runs; {ended_bytes / contacts:.0f} when it ended"),
    ]


def recovery(bench: Bench) -> list[Row]:
    """The data directory is lost after a dense run: everything comes from the changelog, and the numbers are what they were."""
    ground = bench.played("dense")
    rates, built = [], []
    for _ in range(bench.repeat):
        ground.lose()
        records = ground.records("evidence-changelog")
        bench.progress("recovery", 0, records)
        with ground.worker() as worker:
            ground.until(lambda: bool(worker.partitions()), "the worker answers", 0.02)
            began, recovered = time.monotonic(), 0.0
            while not worker.live(ground.settings.partitions):
                recovered = worker.metric("waypost_recovered_records_total")
                if not recovered:
                    began = time.monotonic()
                bench.progress("recovery", recovered, records)
                time.sleep(0.05)
            seconds = time.monotonic() - began
            recovered = worker.metric("waypost_recovered_records_total")
            ground.until(lambda: worker.built(1, ground.settings.partitions), "the results are back")
            built.append(time.monotonic() - began)
            ground.verify(worker)
        if recovered != records:
            raise WrongAnswer(f"recovery: {recovered:,.0f} records recovered, the changelog has {records:,}")
        rates.append(recovered / seconds)
        bench.progress("recovery", records, records)
    said = f"{records:,} records of {len(ground.expected.hits):,} contacts"
    return [
        Row("recovery", "changelog records a second", median(rates), "/s", said, at_least=150_000, aim=700_000),
        Row("recovery", "until all results are back", median(built), "s", "the views are built again behind it"),
    ]


CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "sparse": sparse, "dense": dense, "two": two, "peers": peer, "recovery": recovery, "journeys": journeys, "latency": latency, "memory": memory,
}  # fmt: skip
"""Without those of `recalculation`, which build on these."""
