"""Workers killed, wiped, stopped and joined in the middle of the shop's stream: no contact wrong, no stage change missing.

`WAYPOST_TEST_KILLS=6` (the default) says how often the single worker is killed. A failure names the seed of the order of kills.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from console.shop import JOURNEY
from schemas.journey import journey_json
from tests.broker.test_main_job import ACTIVITIES, CONTACTS, MERGES
from tests.support.group import NESTED, WORDS, Group

KILLS = int(os.environ.get("WAYPOST_TEST_KILLS", "6"))
SESSION_SECONDS = 6  # the shortest that Kafka allows
STEPS = ("changes", "handoffs", "changelog", "rocksdb", "committed")

FACTS: list[tuple[str, str | None, bytes | None]] = [
    (source, key, value)
    for source, facts in (("activities", ACTIVITIES), ("contact-merges", MERGES), ("contacts", CONTACTS))
    for key, value in facts
]


class Stream(threading.Thread):
    """Sends facts in a seeded order while the test goes on, an erasure among them."""

    def __init__(self, group: Group, seed: int, count: int, seconds: float) -> None:
        super().__init__(daemon=True)
        r = random.Random(seed)
        self.facts = r.sample(FACTS, min(count, len(FACTS)))
        self.facts.insert(len(self.facts) // 2, ("contacts", "user_0031", None))
        self.group, self.seconds = group, seconds
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            began, n = time.monotonic(), len(self.facts)
            for i in range(0, n, 50):
                for source, key, value in self.facts[i : i + 50]:
                    self.group.send(source, [(key, value)], flush=False)
                time.sleep(max(0.0, began + self.seconds * i / n - time.monotonic()))
            self.group.send("activities", [])
        except BaseException as error:
            self.failed = error

    def done(self) -> None:
        self.join()
        if self.failed is not None:
            raise self.failed


@pytest.fixture
def group(kafka: str, prefix: str, tmp_path: Path) -> Iterator[Group]:
    with Group(kafka, prefix, tmp_path, session_timeout_seconds=SESSION_SECONDS, heartbeat_seconds=1) as group:
        group.start("a")
        group.open_console()
        for journey in (JOURNEY, journey_json(NESTED), journey_json(WORDS)):
            group.apply(journey)
        yield group


def serving(group: Group) -> None:
    group.until(lambda: group.http.get("/api/health").json()["status"] == "ok", "for all partitions to be served")


def test_a_worker_killed_again_and_again_every_third_time_with_its_directory_lost(group: Group) -> None:
    stream = Stream(group, seed=1, count=len(FACTS), seconds=KILLS * 2.0)
    stream.start()
    r = random.Random(1)
    for n in range(1, KILLS + 1):
        before = group.processed()
        time.sleep(r.uniform(0.2, 1.0))
        group.kill("a")
        group.start("a", wipe=n % 3 == 0)
        group.until(lambda before=before: group.processed() > before or not stream.is_alive(), f"for progress after kill {n}")  # type: ignore[misc]
    stream.done()
    group.verify()
    group.kill("a")
    group.start("a", wipe=True)
    serving(group)
    group.verify()


def test_two_workers_one_killed_one_stopped_past_its_session_and_one_joining(group: Group) -> None:
    group.start("b")
    stream = Stream(group, seed=2, count=20_000, seconds=45)
    stream.start()
    time.sleep(5)
    group.kill("b")
    time.sleep(SESSION_SECONDS + 4)
    group.start("b")
    time.sleep(6)
    group.workers["a"].signal(signal.SIGSTOP)  # its partitions go to the other, it does not know
    time.sleep(SESSION_SECONDS + 5)
    group.workers["a"].signal(signal.SIGCONT)
    time.sleep(3)
    group.start("c")
    stream.done()
    for name in ("a", "b", "c"):
        if not group.workers[name].alive:  # a worker that finds its place taken ends, and is started again
            group.start(name)
    serving(group)
    group.verify()
    for name in ("a", "b", "c"):
        group.kill(name)
    for name in ("a", "b", "c"):
        group.start(name, wipe=True)
    serving(group)
    group.verify()


def test_a_worker_killed_between_every_two_steps_of_a_batch(group: Group) -> None:
    stream = Stream(group, seed=3, count=15_000, seconds=40)
    stream.start()
    r = random.Random(3)
    for n, step in enumerate(STEPS * 2):
        group.workers["a"].kill()
        worker = group.start("a", step=step, nth=r.randint(1, 12), wipe=n % 4 == 3)
        group.until(lambda worker=worker: not worker.alive or not stream.is_alive(), f"to be killed after {step}")  # type: ignore[misc]
        assert worker.exit_code in (None, -signal.SIGKILL), worker.tail()
    stream.done()
    group.workers["a"].kill()
    group.start("a")
    serving(group)
    group.verify()


@pytest.mark.embedded
def test_kills_on_the_embedded_broker(embedded: str, prefix: str, tmp_path: Path) -> None:
    with Group(embedded, prefix, tmp_path, embedded=True, session_timeout_seconds=SESSION_SECONDS, heartbeat_seconds=1) as group:
        group.start("a")
        group.open_console()
        group.apply(JOURNEY)
        stream = Stream(group, seed=4, count=6000, seconds=20)
        stream.start()
        for wipe in (False, True):
            time.sleep(3)
            group.kill("a")
            group.start("a", wipe=wipe)
        stream.done()
        serving(group)
        group.verify()

