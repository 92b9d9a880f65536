"""Nothing is lost and nothing wrong stays in the changelog, whatever happens to workers. On Apache Kafka, with workers that count
(tests/support/counting.py)."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support import PATIENCE_SECONDS, eventually
from tests.support.counting import CHANGELOG
from tests.support.kafka import KafkaBroker
from tests.support.workers import (
    CountingWorker,
    Feed,
    changelog_counts,
    ends,
    make_topics,
    reflects,
)


def settled(workers: list[CountingWorker], feed: Feed) -> dict[str, int]:
    """Waits for a lag of exactly 0, then gives what the workers count together."""
    feed.rest.set()
    feed.join(PATIENCE_SECONDS)
    eventually(lambda: reflects(workers, feed.bootstrap, feed.prefix), "lag 0")
    counted: dict[str, int] = {}
    for worker in workers:
        counted |= worker.ask("counts")
    return counted


@pytest.mark.parametrize("wiped", [False, True], ids=["data-kept", "data-wiped"])
def test_killed_three_times_mid_stream_a_worker_counts_every_record_once(kafka: str, prefix: str, tmp_path: Path, wiped: bool) -> None:
    make_topics(kafka, prefix)
    feed = Feed(kafka, prefix, count=300_000, per_second=25_000, kept_back=30_000)
    worker = CountingWorker(kafka, prefix, tmp_path / "one", instance_id="one").start()  # a quick restart needs no rebalance
    try:
        eventually(worker.serves)
        feed.start()
        for _ in range(3):
            eventually(lambda: worker.ask()["seen"] > 10_000, "mid-stream")
            worker.kill()
            if wiped:
                shutil.rmtree(worker.data_dir)
            worker.start()
            eventually(worker.serves, "serving after a kill")
        assert feed.sent < feed.count, "killed in the middle"
        assert settled([worker], feed) == feed.written
        assert changelog_counts(kafka, prefix) == feed.written
        worker.kill()
        shutil.rmtree(worker.data_dir)
        worker.start()
        eventually(worker.serves)
        assert worker.ask("counts") == feed.written, "recovered from the changelog alone"
    finally:
        worker.kill()


def test_a_second_worker_takes_half_and_gives_it_back(kafka: str, prefix: str, tmp_path: Path) -> None:
    make_topics(kafka, prefix)
    feed = Feed(kafka, prefix, count=250_000, per_second=20_000)
    first, second = CountingWorker(kafka, prefix, tmp_path / "one"), CountingWorker(kafka, prefix, tmp_path / "two")
    try:
        first.start()
        eventually(lambda: first.serves(4))
        feed.start()
        time.sleep(1)
        second.start()
        eventually(lambda: first.serves(2) and second.serves(2), "two partitions each")
        time.sleep(1)
        assert second.stop() == 0
        eventually(lambda: first.serves(4), "all four back")
        time.sleep(1)
        second.start()
        eventually(lambda: first.serves(2) and second.serves(2), "two partitions each, again")
        second.kill()  # no goodbye: the session has to end
        eventually(lambda: first.serves(4), "taken over")
        assert settled([first], feed) == feed.written
        assert changelog_counts(kafka, prefix) == feed.written
        assert first.stop() == 0
    finally:
        first.kill()
        second.kill()


def test_a_worker_stopped_past_its_session_writes_nothing_stale_that_stays(kafka: str, prefix: str, tmp_path: Path) -> None:
    make_topics(kafka, prefix)
    feed = Feed(kafka, prefix, count=600_000, per_second=20_000, contacts=20_000)
    first, second = CountingWorker(kafka, prefix, tmp_path / "one"), CountingWorker(kafka, prefix, tmp_path / "two")
    try:
        first.start()
        second.start()
        eventually(lambda: first.serves(2) and second.serves(2))
        feed.start()
        time.sleep(2)
        for _ in range(2):
            first.signal(signal.SIGSTOP)
            eventually(lambda: second.serves(4), "taken over from the stopped one")
            time.sleep(1)
            first.signal(signal.SIGCONT)
            eventually(lambda: first.serves(2) and second.serves(2), "back in the group")
        counted = settled([first, second], feed)
        eventually(lambda: not first.ask()["frozen"] and not second.ask()["frozen"], "healed")
        assert counted == feed.written
        assert changelog_counts(kafka, prefix) == feed.written
    finally:
        first.kill()
        second.kill()


def test_a_foreign_record_in_the_changelog_is_answered(kafka: str, prefix: str, tmp_path: Path) -> None:
    from confluent_kafka import Producer

    make_topics(kafka, prefix, partitions=1)
    feed = Feed(kafka, prefix, count=2000, per_second=20_000, contacts=50)
    worker = CountingWorker(kafka, prefix, tmp_path / "one", partitions=1).start()
    try:
        eventually(worker.serves)
        feed.start()
        feed.join()
        eventually(lambda: reflects([worker], kafka, prefix, 1))
        zombie = Producer({"bootstrap.servers": kafka})
        for contact in range(50):
            zombie.produce(prefix + CHANGELOG, key=f"activitie/c{contact}", value=bytes(16), partition=0)
        zombie.flush()
        assert changelog_counts(kafka, prefix, 1) != feed.written
        again = Feed(kafka, prefix, count=10, per_second=20_000, contacts=1)
        again.start()
        again.join()
        eventually(lambda: worker.ask()["foreign"] >= 50 and not worker.ask()["frozen"], "healed")
        assert changelog_counts(kafka, prefix, 1) == feed.written + again.written
        # and a stale record that only recovery sees
        worker.kill()
        zombie.produce(prefix + CHANGELOG, key="activitie/c7", value=bytes(16), partition=0)
        zombie.flush()
        shutil.rmtree(worker.data_dir)
        worker.start()
        eventually(worker.serves)
        assert worker.ask("counts") == feed.written + again.written
        eventually(lambda: changelog_counts(kafka, prefix, 1) == feed.written + again.written, "said again by the owner")
    finally:
        worker.kill()


def test_a_store_ahead_of_its_changelog_wipes_itself(kafka: str, prefix: str, tmp_path: Path) -> None:
    from confluent_kafka.admin import AdminClient, NewTopic

    make_topics(kafka, prefix)
    feed = Feed(kafka, prefix, count=5000, per_second=50_000, contacts=500)
    worker = CountingWorker(kafka, prefix, tmp_path / "one").start()
    try:
        eventually(worker.serves)
        feed.start()
        settled([worker], feed)
        assert worker.stop() == 0
        admin = AdminClient({"bootstrap.servers": kafka})
        admin.delete_topics([prefix + CHANGELOG])[prefix + CHANGELOG].result()
        time.sleep(1)
        admin.create_topics([NewTopic(prefix + CHANGELOG, 4, 1)])[prefix + CHANGELOG].result()
        worker.start()
        eventually(worker.serves)
        assert worker.ask()["wiped"] == 4
        assert worker.ask("counts") == {}
        assert worker.stop() == 0
    finally:
        worker.kill()


def test_a_standby_follows_and_takes_over_without_reading_it_all_again(kafka: str, prefix: str, tmp_path: Path) -> None:
    make_topics(kafka, prefix)
    feed = Feed(kafka, prefix, count=40_000, per_second=40_000)
    first = CountingWorker(kafka, prefix, tmp_path / "one", standby_replicas=1)
    second = CountingWorker(kafka, prefix, tmp_path / "two", standby_replicas=1)
    try:
        first.start()
        second.start()
        eventually(lambda: first.serves(2) and second.serves(2))
        assert first.ask()["open"] == second.ask()["open"] == [0, 1, 2, 3]
        feed.start()
        feed.join()
        eventually(lambda: reflects([first, second], kafka, prefix))
        total = sum(ends(kafka, prefix + CHANGELOG).values())
        eventually(lambda: first.ask("counts") == second.ask("counts") == feed.written, "the standby follows")
        before = first.ask()["recovered"]
        assert 0 < before < total
        second.kill()
        eventually(lambda: first.serves(4), "taken over")
        assert first.ask("counts") == feed.written
        assert first.ask()["recovered"] - before < total / 10, "what the standby had is not read again"
    finally:
        first.kill()
        second.kill()


def test_a_broker_that_goes_and_comes_again_costs_nothing(tmp_path: Path) -> None:
    broker = KafkaBroker(tmp_path / "kafka", heap_mb=256)
    broker.start()
    prefix = "t."
    make_topics(broker.bootstrap, prefix)
    feed = Feed(broker.bootstrap, prefix, count=200_000, per_second=10_000)
    worker = CountingWorker(broker.bootstrap, prefix, tmp_path / "one").start()
    try:
        eventually(worker.serves)
        feed.start()
        time.sleep(2)
        broker.restart()
        time.sleep(2)
        broker.kill()
        time.sleep(1)
        broker.start()
        assert settled([worker], feed) == feed.written
        assert changelog_counts(broker.bootstrap, prefix) == feed.written
        assert worker.stop() == 0, "the same process, all the time"
    finally:
        worker.kill()
        broker.kill()
