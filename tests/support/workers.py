"""Worker processes for tests: starts, kills, stops and asks counting workers, and feeds topics while they run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from streams.brokers import free_port
from streams.settings import Settings
from tests.support import PATIENCE_SECONDS, eventually
from tests.support.counting import CHANGELOG, SOURCES, VALUE
from tests.support.records import whole

INTERNAL_BYTES = 17 << 20


def make_topics(bootstrap: str, prefix: str, partitions: int = 4) -> None:
    """The topics of a counting worker."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    config = {"max.message.bytes": str(INTERNAL_BYTES)}
    topics = [NewTopic(prefix + name, partitions, 1, config=config) for name in SOURCES]
    topics.append(NewTopic(prefix + CHANGELOG, partitions, 1, config={**config, "cleanup.policy": "compact"}))
    for done in admin.create_topics(topics).values():
        done.result()


def ends(bootstrap: str, topic: str, partitions: int = 4) -> dict[int, int]:
    """The end offset of each partition, however long a broker that was just started takes to lead it."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "ends", "isolation.level": "read_uncommitted"})
    found: dict[int, int] = {}

    def asked() -> bool:
        try:
            found.update({p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=5)[1] for p in range(partitions)})
        except KafkaException:  # "not leader", "no such partition": what each client tries again for, and this call does not
            return False
        return True

    try:
        eventually(asked, f"ends of {topic}")
        return found
    finally:
        consumer.close()


def compacted(bootstrap: str, topic: str, partitions: int = 4) -> dict[bytes, bytes]:
    """The last value of each key: what compaction keeps, and what the next recovery may be left with."""
    last: dict[bytes, bytes] = {}
    for records in whole(Settings.load({"broker": bootstrap}, environ={}), topic, partitions=range(partitions)).values():
        for record in records:
            if record.value() is None:
                last.pop(record.key(), None)
            else:
                last[record.key()] = record.value()
    return last


class Feed(threading.Thread):
    """Writes *count* records over *contacts* contacts to activities (and every tenth to handoffs) at *per_second*, and knows what was written.
    The last *kept_back* wait until `rest` is set."""

    def __init__(self, bootstrap: str, prefix: str, count: int, per_second: int, contacts: int = 2000, kept_back: int = 0) -> None:
        super().__init__(daemon=True)
        self.kept_back, self.rest = kept_back, threading.Event()
        self.bootstrap, self.prefix, self.count, self.per_second, self.contacts = bootstrap, prefix, count, per_second, contacts
        self.written: Counter[str] = Counter()
        self.sent = 0

    def run(self) -> None:
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap,
                "log_level": 0,
                "enable.idempotence": True,  # each record once, whatever happens to the broker
                "linger.ms": 5,
                "partitioner": "murmur2_random",
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        started = time.monotonic()
        while self.sent < self.count:
            if self.kept_back and self.sent >= self.count - self.kept_back:
                producer.flush()
                self.rest.wait()
            for _ in range(max(1, min(self.per_second // 50, self.count - self.sent))):
                contact = f"c{self.sent * 7919 % self.contacts}"
                topic = "handoffs" if self.sent % 10 == 9 else "activities"
                producer.produce(self.prefix + topic, value=b'{"n": %d}' % self.sent, key=contact)
                self.written[f"{topic[:9]}/{contact}"] += 1
                self.sent += 1
            producer.poll(0)
            ahead = self.sent / self.per_second - (time.monotonic() - started)
            if ahead > 0:
                time.sleep(ahead)
        producer.flush()


class CountingWorker:
    """One counting worker in a process of its own. Its log is `worker.log` beside *data_dir*."""

    def __init__(self, bootstrap: str, prefix: str, data_dir: Path, **options: Any) -> None:
        self.port = free_port()
        self.data_dir = data_dir
        self.options = {"bootstrap": bootstrap, "prefix": prefix, "data_dir": str(data_dir), "port": self.port, **options}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> CountingWorker:
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        with self.data_dir.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.counting", json.dumps(self.options)], stdout=log, stderr=log
            )
        return self

    def ask(self, path: str = "state") -> Any:
        """The answer of the worker, None while it gives none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=PATIENCE_SECONDS) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def serves(self, partitions: int | None = None) -> bool:
        """Whether it serves (this many partitions)."""
        state = self.ask()
        return bool(state) and state["serving"] and (partitions is None or len(state["active"]) == partitions)

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL, whatever it does."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code. Raises `subprocess.TimeoutExpired` when it never ends."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)

    def log(self) -> str:
        return self.data_dir.with_suffix(".log").read_text()


def reflects(workers: list[CountingWorker], bootstrap: str, prefix: str, partitions: int = 4) -> bool:
    """Whether the workers together say that everything on the sources is done: a lag of exactly 0 on every partition."""
    wanted = {name: ends(bootstrap, prefix + name, partitions) for name in SOURCES}
    states = [state for state in (worker.ask() for worker in workers) if state]
    for name, by_partition in wanted.items():
        for partition, end in by_partition.items():
            said = [s["positions"][name][str(partition)] for s in states if s["serving"] and partition in s["active"]]
            if len(said) != 1:
                return False
            assert said[0] <= end, f"{name}-{partition}: claims {said[0]} of {end}"
            if said[0] != end:
                return False
    return True


def changelog_counts(bootstrap: str, prefix: str, partitions: int = 4) -> dict[str, int]:
    """What a worker that lost everything would count after a compaction."""
    last = compacted(bootstrap, prefix + CHANGELOG, partitions)
    return {key.decode(): VALUE.unpack(value)[1] for key, value in last.items()}
