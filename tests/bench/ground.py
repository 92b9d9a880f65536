"""Ground: the topics of one case on a broker that is there, what was written to them, and the worker that reads them. Judges by `data` alone.

Every figure is worth as much as the numbers behind it: `verify` compares everything that the worker says with what must come out.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from schemas import recalculation
from schemas.journey import parse_journey
from schemas.recalculation import EDIT, LIVE, PLANNED, REQUEST, Recalculation
from schemas.times import parse_ms
from state.recalculation import rules_by_key
from streams import topics
from streams.brokers import free_port
from streams.guarded import GuardedProcess
from streams.reader import end_offsets, partitions_of_topics, read_log
from streams.settings import Settings, librdkafka_config
from tests.bench.data import BASE_MS, JOURNEY, Expected, Made, journey
from tests.support import PATIENCE_SECONDS

log = logging.getLogger(__name__)
log.setLevel(logging.ERROR)  # a broker that has just started is not ready at once, and librdkafka tells each time

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.1
Progress = Callable[[str, float, float], None]
"""Is told (what is done, how far, of how much)."""


class WrongAnswer(AssertionError):
    """What the worker says is not what must come out. No figure of such a run counts."""


@dataclass
class Run:
    """What a worker took for *records* records: from the last look at which nothing was done to the first at which all was."""

    records: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    samples: list[tuple[float, int, float]] = field(default_factory=list)
    """(seconds, records done, CPU seconds)"""

    @property
    def per_second(self) -> float:
        return self.records / self.seconds

    @property
    def cpu_per_million(self) -> float:
        return self.cpu_seconds * 1e6 / self.records


class Worker:
    """One worker process, as `waypost worker` starts it."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.settings = settings.replaced("bench", worker_port=free_port())
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WAYPOST_")}
        self._process = GuardedProcess(
            [sys.executable, "-m", "console", "worker"], log=log, cwd=ROOT, env={**clean, **self.settings.environment()}
        )
        self._ps = psutil.Process(self._process.pid)
        self._http: http.client.HTTPConnection | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.stop(20.0)

    def kill(self) -> None:
        self._process.kill()

    @contextmanager
    def drawn(self, file: Path | None) -> Iterator[None]:
        """Draws, while it lasts, a flame graph of what holds the interpreter's lock into *file* (SVG); None draws nothing."""
        if file is None:
            yield
            return
        spy_on = [str(Path(sys.executable).with_name("py-spy")), "record", "--gil", "--function", "--rate", "200", "--pid", str(self.pid)]
        spy = subprocess.Popen([*spy_on, "--output", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            yield
        finally:
            spy.send_signal(signal.SIGINT)
            said = spy.communicate(timeout=60)[1]
        if not file.exists():
            raise RuntimeError(f"no flame graph: {said}")
        titled(file, f"{file.stem}: what holds the interpreter's lock")

    def cpu_seconds(self) -> float:
        """User and system time of all its threads."""
        times = self._ps.cpu_times()
        return float(times.user + times.system)

    def rss_mib(self) -> float:
        return float(self._ps.memory_info().rss) / 2**20

    def peak_mib(self) -> float:
        """The most memory it had at once, as the kernel counted it."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def ask(self, path: str) -> bytes | None:
        """What it answers, None while it does not. Raises when it has ended."""
        if not self._process.alive:
            raise WrongAnswer(f"the worker ended with {self._process.exit_code}; its log ends:\n{self._process.tail(40)}")
        try:
            if self._http is None:
                self._http = http.client.HTTPConnection("127.0.0.1", self.settings.worker_port, timeout=30)
            self._http.request("GET", path)
            answer = self._http.getresponse()
            body = answer.read()
            return body if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            self._http = None
            return None

    def partitions(self) -> dict[str, dict[str, Any]]:
        """State and positions of its partitions, by number."""
        body = self.ask("/internal/partitions")
        return {} if body is None else dict(json.loads(body)["partitions"])

    def live(self, count: int) -> bool:
        """Whether it serves this many partitions."""
        return sum(partition["state"] == "live" for partition in self.partitions().values()) == count

    def done(self, source: str = "activities") -> int:
        """How many records of a source the numbers reflect."""
        return sum(partition["positions"].get(source) or 0 for partition in self.partitions().values())

    def metric(self, name: str) -> float:
        """The sum over all labels of a metric; 0 while it does not answer."""
        lines = (self.ask("/metrics") or b"").decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))

    def built(self, journeys: int, partitions: int) -> bool:
        """Whether this many journeys are complete in every partition."""
        body = self.ask("/internal/journeys")
        if body is None:
            return False
        found = json.loads(body)["partitions"]
        complete = [len(p["journeys"]) for p in found.values()]
        return len(complete) == partitions and min(complete) >= journeys

    def cells(self, journey: str) -> dict[tuple[str, int, int], int]:
        """The numbers of a journey, summed over the partitions."""
        body = self.ask(f"/internal/results?journey={journey}")
        summed: Counter[tuple[str, int, int]] = Counter()
        for partition in json.loads(body or b'{"partitions": {}}')["partitions"].values():
            for kind, stage, bucket, count in partition["cells"]:
                summed[kind, stage, bucket] += count
        return dict(summed)


class Ground:
    """Topics, group and data directory under one name. *progress* is told how far things are."""

    def __init__(self, bootstrap: str, directory: Path, name: str, progress: Progress, **more: Any) -> None:
        self.name, self.progress = name, progress
        self.directory = directory / name
        self.directory.mkdir(parents=True, exist_ok=True)
        flags: dict[str, Any] = {"broker": bootstrap, "topic_prefix": f"bench-{name}.", "group": f"bench-{name}", "data_dir": self.directory / "data"}
        self.settings = Settings.load({**flags, "log_level": "WARNING", **more}, environ={})
        self.expected = Expected()
        self.played = False
        topics.provision(self.settings)

    def topic(self, short: str) -> str:
        return topics.topic_name(self.settings, short)

    # ---------------------------------------------------------------- what is written

    def apply(self, journeys: Iterable[dict[str, Any]]) -> None:
        """Writes *journeys* to their topic, as the console does, and the recalculation of their rules as it would have ended on an empty log."""
        producer = Producer(librdkafka_config(self.settings), logger=log)
        parsed = []
        for said in journeys:
            producer.produce(self.topic("journeys"), json.dumps({"version": 1, "saved_at": 0, **said}).encode(), said["id"], partition=0)
            parsed.append(parse_journey(said))
        rules = {key: rule for one in parsed for key, rule in rules_by_key(one).items()}
        one = Recalculation(
            id="begun-with", state=LIVE, cause=EDIT, journeys=tuple(one.id for one in parsed), rules=tuple(rules.values()), epoch=1,
            planned_at=1, started_at=1, switched_at=1, finished_at=1, progress=1.0,
        )  # fmt: skip
        producer.produce(self.topic("recalculations"), recalculation.encode(one), one.id, partition=0)
        _flush(producer)

    def load(self, activities: Iterable[Made], count: int) -> None:
        """Writes *activities*, *count* of them, each to its contact's partition (Kafka's murmur2), and gathers what must come out."""
        failed: list[Any] = []
        producer = Producer(librdkafka_config(self.settings) | {
            "partitioner": "murmur2_random", "linger.ms": 50, "batch.size": 1_000_000, "acks": "all", "enable.idempotence": True,
            "queue.buffering.max.messages": 500_000, "delivery.report.only.error": True, "on_delivery": lambda error, _: failed.append(error),
        }, logger=log)  # fmt: skip
        topic, take, written = self.topic("activities"), self.expected.take, 0
        for made in activities:
            take(made)
            while True:
                try:
                    producer.produce(topic, made.value, made.contact)
                    break
                except BufferError:
                    producer.poll(0.05)
            written += 1
            if written % 20_000 == 0:
                producer.poll(0)
                self.progress(f"{self.name}: writing activities", written, count)
        _flush(producer)
        if failed or written != count:
            raise RuntimeError(f"{written} of {count} activities written, {len(failed)} refused by the broker: {failed[:1]}")
        self.progress(f"{self.name}: writing activities", written, count)

    def merge(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Writes a merge of each (from, into); no contact may stand in two."""
        producer = Producer(librdkafka_config(self.settings) | {"partitioner": "murmur2_random", "linger.ms": 50}, logger=log)
        for n, (one, other) in enumerate(pairs):
            producer.produce(self.topic("contact-merges"), json.dumps({"id": f"m-{n}", "from": one, "into": other, "at": BASE_MS}).encode(), one)
            producer.poll(0)
            self.expected.merged[one] = other
        _flush(producer)

    def discard(self) -> None:
        """All topics and the data directory go."""
        admin = AdminClient(librdkafka_config(self.settings))
        for future in admin.delete_topics([self.topic(spec.name) for spec in topics.TABLE]).values():
            future.result()
        self.lose()

    def clear(self) -> None:
        """Back to activities, journeys and recalculations alone: everything that a worker made of them goes."""
        admin = AdminClient(librdkafka_config(self.settings))
        made = [self.topic(spec.name) for spec in topics.TABLE if spec.name not in ("activities", "journeys", "recalculations")]
        for future in admin.delete_topics(made).values():
            future.result()
        try:
            admin.delete_consumer_groups([self.settings.group])[self.settings.group].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:  # no worker came yet
                raise
        while set(made) & set(admin.list_topics(timeout=15).topics):
            time.sleep(0.1)
        time.sleep(1.0)  # the broker forgets a topic a little after its name
        topics.provision(self.settings)
        self.lose()
        self.played = False

    def lose(self) -> None:
        """The data directory is gone."""
        for each in self.directory.glob(f"{self.settings.data_dir.name}*"):
            shutil.rmtree(each)

    # ---------------------------------------------------------------- the worker

    @contextmanager
    def job(self) -> Iterator[None]:
        """A recalculation job, as `waypost recalculator` starts it."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WAYPOST_")}
        environ = {**clean, **self.settings.environment()}
        process = GuardedProcess([sys.executable, "-m", "console", "recalculator"], log=self.directory / "job.log", cwd=ROOT, env=environ)
        try:
            yield
        finally:
            process.stop(20.0)

    def plan(self, id_: str, throttle: float | None = None) -> None:
        """Plans a recalculation of everything, as the console does."""
        rules = rules_by_key(parse_journey(journey()))
        one = Recalculation(
            id=id_, state=PLANNED, cause=REQUEST, journeys=(JOURNEY,), rules=tuple(rules.values()), throttle=throttle,
            planned_at=time.time_ns() // 1_000_000,
        )  # fmt: skip
        producer = Producer(librdkafka_config(self.settings), logger=log)
        producer.produce(self.topic("recalculations"), recalculation.encode(one), one.id, partition=0)
        _flush(producer)

    def recalculation(self, id_: str) -> Recalculation | None:
        """What the topic says of a recalculation last."""
        found = None
        for _, records in read_log(self.settings, self.topic("recalculations")):
            for record in records:
                if record.key() == id_.encode() and record.value() is not None:
                    found = recalculation.decode(record.key(), record.value() or b"")
        return found

    @contextmanager
    def worker(self, name: str = "") -> Iterator[Worker]:
        """A worker; *name* tells further ones from the first."""
        settings = self.settings.replaced("bench", data_dir=f"{self.settings.data_dir}{name}")
        worker = Worker(settings, self.directory / f"worker{name}.log")
        try:
            yield worker
        finally:
            worker.stop()

    def until(self, holds: Callable[[], bool], what: str, poll_s: float = POLL_SECONDS) -> None:
        """Waits until *holds*. Raises `WrongAnswer` after PATIENCE_SECONDS."""
        ends_at = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            if time.monotonic() > ends_at:
                raise WrongAnswer(f"{self.name}: not within {PATIENCE_SECONDS:g} s: {what}; see {self.directory / 'worker.log'}")
            time.sleep(poll_s)

    def prepare(self, journeys: int) -> float:
        """Builds the views of this many journeys before there is anything in them; how long a worker takes for that, in seconds."""
        began = time.monotonic()
        with self.worker() as worker:
            self.until(lambda: worker.built(journeys, self.settings.partitions), "every journey is built", 0.3)
            return time.monotonic() - began

    def play(self, worker: Worker) -> Run:
        """Waits until *worker* is through with everything that was loaded, and with what it handed over to itself."""
        total, started, cpu_started = self.expected.activities, time.monotonic(), worker.cpu_seconds()
        while not worker.partitions():  # imports, connections
            if time.monotonic() - started > PATIENCE_SECONDS:
                raise WrongAnswer(f"{self.name}: the worker does not answer; see {self.directory / 'worker.log'}")
            time.sleep(POLL_SECONDS)
        moved = time.monotonic()
        samples: list[tuple[float, int, float]] = [(moved - started, 0, worker.cpu_seconds())]  # it may be through before it is asked again
        while samples[-1][1] < total:
            done = worker.done()
            sample = (time.monotonic() - started, done, worker.cpu_seconds())
            if done > samples[-1][1]:
                moved = time.monotonic()
            if done == 0:
                samples = [sample]
            else:
                samples.append(sample)
                self.progress(f"{self.name}: worker", done, total)
            if time.monotonic() - moved > PATIENCE_SECONDS:
                raise WrongAnswer(f"{self.name}: the worker stands at {done} of {total}; see {self.directory / 'worker.log'}")
            time.sleep(POLL_SECONDS)
        if samples[-1][1] != total:
            raise WrongAnswer(f"{self.name}: the worker claims {samples[-1][1]} of {total} activities")
        if self.expected.merged:
            self.until(lambda: all(worker.done(short) == self.ends(short) for short in ("contact-merges", "handoffs")), "all merges are done")
            samples.append((time.monotonic() - started, total, worker.cpu_seconds()))
        self.played = True
        (began, _, cpu_before), (ended, _, cpu_after) = samples[0], samples[-1]
        if cpu_after == cpu_before:  # so little that it was through when it was looked at first: with its start
            began, cpu_before = 0.0, cpu_started
        return Run(total, ended - began, cpu_after - cpu_before, worker.peak_mib(), samples)

    # ---------------------------------------------------------------- the judge

    def verify(self, *workers: Worker) -> None:
        """Every number of all *workers* together, and the last word of the stage changes about every contact and stage, against `expected`."""
        self.verify_numbers(*workers)
        said: dict[tuple[str, int], int | None] = {}
        for _, records in read_log(self.settings, self.topic("stage-changes")):
            for record in records:
                change = json.loads(record.value() or b"{}")
                if change["journey"] == JOURNEY:
                    said[change["contact_id"], change["stage"]] = change["reached_at"]
        last = {key: parse_ms(at) for key, at in said.items() if at is not None}
        wanted = self.expected.reached()
        if last != wanted:
            wrong = [key for key in wanted.keys() | last.keys() if wanted.get(key) != last.get(key)]
            raise WrongAnswer(f"{self.name}: the last stage change is wrong for {len(wrong)} of {len(wanted)}, for example "
                              f"{sorted(wrong)[0]}: {last.get(sorted(wrong)[0])}, it must be {wanted.get(sorted(wrong)[0])}")  # fmt: skip
        rejected = self.ends("rejected")
        if rejected:
            raise WrongAnswer(f"{self.name}: {rejected} records were rejected, none is bad")

    def verify_numbers(self, *workers: Worker) -> None:
        """Every number against `expected`."""
        wanted, found = self.expected.cells(), dict(sum((Counter(worker.cells(JOURNEY)) for worker in workers), Counter[tuple[str, int, int]]()))
        if found != wanted:
            wrong = sorted(cell for cell in wanted.keys() | found.keys() if wanted.get(cell) != found.get(cell))
            raise WrongAnswer(f"{self.name}: {len(wrong)} of {len(wanted)} numbers are wrong, for example {wrong[0]}: {found.get(wrong[0])}, "
                              f"it must be {wanted.get(wrong[0])}")  # fmt: skip

    def ends(self, short: str) -> int:
        """The sum of the end offsets of a topic."""
        return sum(end_offsets(self.settings, partitions_of_topics(self.settings, [self.topic(short)])).values())

    def records(self, short: str) -> int:
        """How many records a topic has; fewer than offsets once it was compacted."""
        return sum(len(records) for _, records in read_log(self.settings, self.topic(short)))

    def disk_bytes(self) -> int:
        """Bytes of everything in the data directory."""
        return sum(file.stat().st_size for file in self.settings.data_dir.rglob("*") if file.is_file())


def _flush(producer: Producer) -> None:
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"{left} records are not acknowledged after 120 s")


def titled(file: Path, title: str) -> None:
    """Gives a flame graph another title than the command that drew it, which names this machine's directories."""
    file.write_text(re.sub(r'(<text id="title"[^>]*>)[^<]*', lambda found: found[1] + title, file.read_text()))


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
