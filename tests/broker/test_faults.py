"""What goes wrong around a worker: brokers, disks, clocks and networks. Nothing is lost, nothing is wrong, and it is current again soon.

`WAYPOST_TEST_AWAY_SECONDS=120` says how long a broker or a network is away (8 without it). `pytest -rP` prints how long it took until everything
that was sent was in the numbers again; docs/reliability.md has the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from console.shop import JOURNEY
from schemas.journey import journey_json
from streams.settings import librdkafka_config
from tests.broker.test_kills import Stream, serving
from tests.support import PATIENCE_SECONDS
from tests.support.group import NESTED, WORDS, Group
from tests.support.kafka import KafkaBroker, KafkaCluster

pytestmark = pytest.mark.kafka

AWAY_SECONDS = float(os.environ.get("WAYPOST_TEST_AWAY_SECONDS", "8"))
SESSION_SECONDS = 6
TIMING = {"session_timeout_seconds": SESSION_SECONDS, "heartbeat_seconds": 1}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaBroker]:
    """A broker that may be made to fail."""
    broker = KafkaBroker(tmp_path / "kafka", heap_mb=256)
    broker.start()
    yield broker
    broker.kill()


def opened(group: Group, **more: str) -> None:
    """One worker, the console, the journeys of the shop, calculated: the job that did it runs, and nobody would start it again."""
    group.start("a", **more)
    group.open_console()
    for journey in (JOURNEY, journey_json(NESTED), journey_json(WORDS)):
        group.apply(journey)
    serving(group)
    group.settled()


def kept(group: Group) -> bool:
    """The worker, started again if it has ended, as whoever runs it would; true."""
    if not group.workers["a"].alive:
        group.start("a")
    return True


def current_again(group: Group, what: str, may_end: bool = False) -> None:
    """Waits until all that was sent is in the numbers; prints for how long that was. A worker that *may_end* meanwhile is started again."""
    began = time.monotonic()
    group.until(lambda: (not may_end or kept(group)) and group.http.get("/api/health").json()["lag"] == 0, "for everything to be in the numbers")
    print(f"{what}: current again after {time.monotonic() - began:.1f} s")


def test_a_broker_that_is_away_for_long(broker: KafkaBroker, prefix: str, tmp_path: Path) -> None:
    """The worker waits, or ends and is started again; facts sent meanwhile wait with their producers."""
    with Group(broker.bootstrap, prefix, tmp_path / "group", **TIMING) as group:
        opened(group)
        stream = Stream(group, seed=5, count=8000, seconds=10 + AWAY_SECONDS)
        stream.start()
        time.sleep(4)
        broker.kill()
        time.sleep(AWAY_SECONDS)
        broker.start()
        began = time.monotonic()
        while kept(group) and group.http.get("/api/health").json()["status"] != "ok":
            assert time.monotonic() - began < PATIENCE_SECONDS, group.workers["a"].tail()
            time.sleep(0.2)
        print(f"a broker away for {AWAY_SECONDS:g} s: served again after {time.monotonic() - began:.1f} s")
        stream.done()
        current_again(group, "what was sent meanwhile")
        group.verify()


def test_one_of_three_brokers_is_lost_under_load(prefix: str, tmp_path: Path) -> None:
    """Topics are kept three times and acknowledged by all in sync: nothing that was acknowledged is lost with a broker."""
    cluster = KafkaCluster(tmp_path / "kafka")
    try:
        with Group(cluster.start(), prefix, tmp_path / "group", replication_factor=3, **TIMING) as group:
            opened(group)
            stream = Stream(group, seed=6, count=8000, seconds=30)
            stream.start()
            time.sleep(6)
            cluster.nodes[0].kill()
            time.sleep(8)
            current = group.processed()
            group.until(lambda: kept(group) and group.processed() > current, "for it to go on with two")
            cluster.nodes[0].launch()
            stream.done()
            current_again(group, "one of three brokers lost", may_end=True)
            serving(group)
            group.verify()
    finally:
        cluster.kill()


def test_a_disk_that_is_full(kafka: str, prefix: str, tmp_path: Path) -> None:
    """The worker says so and ends; with room, it goes on from where it was."""
    with Group(kafka, prefix, tmp_path, **TIMING) as group:
        data = tmp_path / "data-a"
        data.mkdir()
        small = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=5m tmpfs {data} && exec "$@"', "sh"]
        group.start("a", within=small)
        group.open_console()
        for journey in (JOURNEY, journey_json(NESTED), journey_json(WORDS)):
            group.apply(journey)
        stream = Stream(group, seed=7, count=31_000, seconds=5)
        stream.start()
        group.until(lambda: not group.workers["a"].alive, "for the disk to be full")
        assert group.workers["a"].exit_code == 1
        assert "No space left on device" in group.workers["a"].log.read_text()
        stream.done()
        group.start("a")
        current_again(group, "a full disk, then a new one")
        group.verify()


def test_a_clock_that_jumps(kafka: str, prefix: str, tmp_path: Path) -> None:
    """Event times decide, not the worker's clock; sessions and leases are measured by a clock that does not jump. A clock so wrong that the broker
    refuses its records ends the worker, which is right again when the clock is."""
    faults = tmp_path / "faults.json"
    with Group(kafka, prefix, tmp_path / "group", **TIMING) as group:
        opened(group, WAYPOST_TEST_FAULTS=str(faults))
        stream = Stream(group, seed=8, count=8000, seconds=12)
        stream.start()
        for hours in (2, -2, 12, 0, -100):
            time.sleep(1.5)
            faults.write_text(json.dumps({"clock_seconds": hours * 3600.0}))
        time.sleep(1)
        assert group.workers["a"].alive
        faults.write_text(json.dumps({"clock_seconds": 40 * 86_400.0}))

        def ended() -> bool:
            group.send("activities", [("late", b'{"contact_id": "late", "type": "search", "at": 1700000000001}')])  # the stream may be over
            return not group.workers["a"].alive

        group.until(ended, "for the broker to refuse what the worker says")
        assert "InvalidTimestamp" in group.workers["a"].log.read_text()
        faults.write_text(json.dumps({"clock_seconds": 0.0}))
        group.start("a")
        stream.done()
        current_again(group, "a clock that jumped six times, the last time so far that the broker refused what was said")
        group.verify()


def test_a_disk_that_is_slow(kafka: str, prefix: str, tmp_path: Path) -> None:
    """Each write takes 200 ms more: it falls behind, stays a member, and catches up."""
    faults = tmp_path / "faults.json"
    with Group(kafka, prefix, tmp_path / "group", **TIMING) as group:
        opened(group, WAYPOST_TEST_FAULTS=str(faults))
        stream = Stream(group, seed=9, count=8000, seconds=12)
        stream.start()
        time.sleep(2)
        faults.write_text(json.dumps({"disk_seconds": 0.2}))
        stream.done()
        faults.write_text(json.dumps({"disk_seconds": 0.0}))
        current_again(group, "a disk slow for 10 s")
        assert group.workers["a"].alive
        group.verify()


def test_the_changelog_is_compacted_while_it_is_read(kafka: str, prefix: str, tmp_path: Path) -> None:
    with Group(kafka, prefix, tmp_path, **TIMING) as group:
        admin = AdminClient(librdkafka_config(group.settings))
        wanted = {"segment.ms": "200", "min.cleanable.dirty.ratio": "0.001", "max.compaction.lag.ms": "200", "delete.retention.ms": "0"}
        entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in wanted.items()]
        topic = ConfigResource(ResourceType.TOPIC, prefix + "evidence-changelog", incremental_configs=entries)
        for done in admin.incremental_alter_configs([topic]).values():
            done.result(PATIENCE_SECONDS)
        opened(group)
        stream = Stream(group, seed=10, count=8000, seconds=16)
        stream.start()
        for _ in range(4):
            time.sleep(3)
            group.kill("a")
            group.start("a", wipe=True)
        stream.done()
        serving(group)
        current_again(group, "a directory lost four times, the changelog compacted all the time")
        kept = len(group.read("evidence-changelog"))
        group.verify()
        assert kept < 30_000, f"{kept} records: nothing was compacted"


def test_partitions_without_records(kafka: str, prefix: str, tmp_path: Path) -> None:
    """All that there is is in one partition of four."""
    with Group(kafka, prefix, tmp_path, **TIMING) as group:
        opened(group)
        lonely = [{"contact_id": "lonely", "type": "search", "at": 1_700_000_000_000 + n} for n in range(50)]
        group.send("activities", [("lonely", json.dumps(fact).encode()) for fact in lonely])
        group.verify()
        group.kill("a")
        group.start("a", wipe=True)
        serving(group)
        group.verify()


@pytest.mark.parametrize("short", ["activities", "evidence-changelog"])
def test_a_topic_that_was_deleted_by_mistake(broker: KafkaBroker, prefix: str, tmp_path: Path, short: str) -> None:
    """Nobody goes on as if nothing had happened: the worker ends or is not ready, and does not start before the topic is there again."""
    with Group(broker.bootstrap, prefix, tmp_path / "group", **TIMING) as group:
        opened(group)
        searches = [{"contact_id": "c", "type": "search", "at": 1_700_000_000_000 + n} for n in range(50)]
        group.send("activities", [("c", json.dumps(fact).encode()) for fact in searches])
        group.settled()
        admin = AdminClient(librdkafka_config(group.settings))
        admin.delete_topics([prefix + short])[prefix + short].result(PATIENCE_SECONDS)

        def told() -> bool:
            health = group.http.get("/api/health").json()
            return health["status"] != "ok" or not group.workers["a"].alive

        group.until(told, f"for the loss of {short} to be told")
        group.kill("a")
        argv = [sys.executable, "-m", "console", "worker", "--data-dir", str(tmp_path / "again")]
        refused = subprocess.run(argv, env=group.environ(), capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        assert refused.returncode != 0
        assert f"{prefix}{short}" in refused.stderr
        assert "waypost topics" in refused.stderr


class Wire:
    """A network namespace joined to this machine by a wire that can be cut."""

    def __init__(self) -> None:
        self.name = f"wp{uuid.uuid4().hex[:8]}"
        number = int(self.name[2:], 16)
        self.net = f"10.{200 + number % 50}.{number // 50 % 250}"
        self.here, self.there = f"{self.net}.1", f"{self.net}.2"

    def __enter__(self) -> Wire:
        _ip("netns", "add", self.name)
        _ip("link", "add", f"{self.name}h", "type", "veth", "peer", "name", "there", "netns", self.name)
        _ip("addr", "add", f"{self.here}/30", "dev", f"{self.name}h")
        _ip("link", "set", f"{self.name}h", "up")
        for words in (("addr", "add", f"{self.there}/30", "dev", "there"), ("link", "set", "there", "up"), ("link", "set", "lo", "up")):
            _ip("-n", self.name, *words)
        return self

    def __exit__(self, *_: object) -> None:
        _ip("netns", "del", self.name)

    @property
    def within(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        _ip("link", "set", f"{self.name}h", "down")

    def mend(self) -> None:
        _ip("link", "set", f"{self.name}h", "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def test_a_network_that_is_cut_between_worker_and_broker(prefix: str, tmp_path: Path) -> None:
    """No connection is closed, nothing answers: the other worker takes over; the one that comes back does no harm."""
    with Wire() as wire:
        broker = KafkaBroker(tmp_path / "kafka", heap_mb=256, host=wire.here)
        try:
            with Group(broker.start(), prefix, tmp_path / "group", internal_secret="between-us", **TIMING) as group:
                group.start("b", within=wire.within, WAYPOST_WORKER_HOST=wire.there)
                opened(group)
                stream = Stream(group, seed=11, count=8000, seconds=12 + AWAY_SECONDS)
                stream.start()
                time.sleep(5)
                wire.cut()
                began = time.monotonic()
                time.sleep(1)
                serving(group)
                print(f"a network cut: the other worker serves everything after {time.monotonic() - began:.1f} s")
                time.sleep(max(0.0, AWAY_SECONDS - (time.monotonic() - began)))
                wire.mend()
                time.sleep(3)
                stream.done()
                if not group.workers["b"].alive:
                    group.start("b", within=wire.within, WAYPOST_WORKER_HOST=wire.there)
                current_again(group, f"a network cut for {AWAY_SECONDS:g} s, mended")
                serving(group)
                group.verify()
        finally:
            broker.kill()
