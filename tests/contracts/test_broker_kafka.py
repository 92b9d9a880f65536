"""What a real log has and the embedded broker has not: gaps by compaction and transactions, a forgotten beginning, restarts, freezing."""

import subprocess
import time

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from streams.reader import begin_offsets, end_offsets
from streams.settings import Settings, librdkafka_config
from tests.support import PATIENCE_SECONDS, eventually
from tests.support.kafka import KafkaBroker
from tests.support.records import values, values_in_bulk, write


@pytest.fixture
def settings(kafka, prefix):
    return Settings.load({"broker": kafka, "topic_prefix": prefix}, environ={})


def make(settings, name, **config):
    topic = settings.topic_prefix + name
    admin = AdminClient(librdkafka_config(settings))
    [made] = admin.create_topics([NewTopic(topic, 1, 1, config={key.replace("_", "."): value for key, value in config.items()})]).values()
    made.result(PATIENCE_SECONDS)
    return topic


def in_transaction(settings, topic, values, commit):
    producer = Producer(librdkafka_config(settings) | {"transactional.id": settings.topic_prefix + "tx"})
    producer.init_transactions(20)
    producer.begin_transaction()
    for value in values:
        producer.produce(topic, value, b"k", partition=0)
    producer.flush(PATIENCE_SECONDS)
    (producer.commit_transaction if commit else producer.abort_transaction)(20)


def test_transactions_leave_gaps_and_what_was_aborted_is_not_read(settings, read):
    topic = make(settings, "tx")
    in_transaction(settings, topic, [b"a", b"b"], commit=True)  # offsets 0, 1, marker 2
    in_transaction(settings, topic, [b"x", b"y"], commit=False)  # offsets 3, 4, marker 5
    write(settings, topic, [{"value": b"c", "key": b"k"}])
    in_transaction(settings, topic, [b"d"], commit=True)  # the log ends with a marker
    told = []
    found = read(settings, topic, progress=lambda done, total: told.append((done, total)))
    assert found == {0: [(0, b"a"), (1, b"b"), (6, b"c"), (7, b"d")]}
    assert end_offsets(settings, [(topic, 0)]) == {(topic, 0): 9}
    assert told[-1] == (9, 9)


def test_a_log_of_nothing_but_aborted_records_ends(settings, read):
    topic = make(settings, "aborted")
    in_transaction(settings, topic, [b"x"] * 10, commit=False)
    assert read(settings, topic) == {}


def test_compaction_leaves_gaps(settings):
    topic = make(settings, "compact", cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.01",
                 delete_retention_ms="0", max_compaction_lag_ms="100")
    for round_ in range(5):
        write(settings, topic, [{"key": b"%d" % key, "value": b"%d" % round_} for key in range(20)])
        time.sleep(0.15)  # so that each round is a segment of its own
    until = time.monotonic() + PATIENCE_SECONDS
    while len(found := values(settings, topic)[0]) > 50:
        assert time.monotonic() < until, f"still {len(found)} records"
        time.sleep(0.5)
        write(settings, topic, [{"key": b"more", "value": b""}])
    assert set(values_in_bulk(settings, topic)[0]) <= set(found), "compaction may have taken more meanwhile"
    offsets = [offset for offset, _ in found]
    assert offsets == sorted(set(offsets))
    assert offsets[0] > 0
    assert {value for offset, value in found if offset < 100} <= {b"3", b"4"}


def test_what_retention_took_is_passed_over(settings, read):
    topic = make(settings, "short")
    write(settings, topic, [{"key": b"k", "value": b"%d" % n} for n in range(100)])
    admin = AdminClient(librdkafka_config(settings))
    [gone] = admin.delete_records([TopicPartition(topic, 0, 60)]).values()
    gone.result(PATIENCE_SECONDS)
    assert begin_offsets(settings, [(topic, 0)]) == {(topic, 0): 60}
    told = []
    found = read(settings, topic, start={0: 10}, progress=lambda done, total: told.append((done, total)))
    assert [offset for offset, _ in found[0]] == list(range(60, 100))
    assert told[-1] == (40, 40)


def test_what_retention_takes_while_it_is_read_is_passed_over(settings, read, monkeypatch):
    topic = make(settings, "shorter")
    write(settings, topic, [{"key": b"k", "value": b"%d" % n} for n in range(100)])
    admin = AdminClient(librdkafka_config(settings))
    [gone] = admin.delete_records([TopicPartition(topic, 0, 60)]).values()
    gone.result(PATIENCE_SECONDS)
    monkeypatch.setattr("streams.reader.begin_offsets", lambda *_: {(topic, 0): 0})  # as it was a moment ago
    assert read(settings, topic) == {0: [(n, b"%d" % n) for n in range(60, 100)]}


@pytest.mark.kafka
def test_kafka_can_be_killed_frozen_and_started_again(tmp_path, prefix):
    """The harness that other tests use to make brokers fail."""
    broker = KafkaBroker(tmp_path, heap_mb=256)
    try:
        settings = Settings.load({"broker": broker.start(), "topic_prefix": prefix}, environ={})
        topic = make(settings, "kept")
        write(settings, topic, [{"key": b"k", "value": b"1"}])
        broker.kill()
        admin = AdminClient(librdkafka_config(settings))
        with pytest.raises(KafkaException):
            admin.list_topics(timeout=1)
        broker.start()
        assert values(settings, topic) == {0: [(0, b"1")]}
        broker.pause()  # a thread that waits for the disk stops when it has it

        def silent() -> bool:
            try:
                AdminClient(librdkafka_config(settings)).list_topics(timeout=1)
            except KafkaException:
                return True
            return False

        eventually(silent)
        broker.resume()
        assert values(settings, topic) == {0: [(0, b"1")]}
        broker.restart()
        assert values(settings, topic) == {0: [(0, b"1")]}
    finally:
        broker.kill()
    assert subprocess.run(["ps", "-p", str(broker.pid)], capture_output=True, check=False).returncode == 1
