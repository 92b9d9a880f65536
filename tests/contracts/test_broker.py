"""What Waypost asks of a broker. One suite, on every broker we claim to run on: the embedded one and Apache Kafka."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from confluent_kafka.admin import AdminClient

from streams.partitioner import partition_of
from streams.reader import ReaderError, begin_offsets, broker_kind, end_offsets, partitions_of_topics, read_log
from streams.replay import read_blocks
from streams.settings import Settings, aiokafka_kwargs, librdkafka_config
from streams.topics import Presence, TopicsError, check, names, provision, topic_name
from tests.support import PATIENCE_SECONDS, until
from tests.support.records import whole, write


@pytest.fixture
def topics(settings):
    provision(settings)
    return names(settings)


# ---------------------------------------------------------------- topics


def test_missing_topics_are_made_once_and_fit(settings):
    assert check(settings)[0] == f"topic {settings.topic_prefix}activities is missing; make it with `waypost topics`"
    made = provision(settings)
    assert made == list(names(settings).values())
    assert check(settings) == []
    assert provision(settings) == []


def test_several_may_make_the_topics_at_once(settings):
    with ThreadPoolExecutor(4) as pool:
        made = [name for names_made in pool.map(provision, [settings] * 4) for name in names_made]
    assert sorted(made) == sorted(names(settings).values())
    assert check(settings) == []


def test_another_number_of_partitions_is_said_before_anything_is_made(settings, topics):
    other = settings.replaced("test", partitions=5)
    with pytest.raises(TopicsError, match="activities has 4 partitions, the setting `partitions` says 5"):
        provision(other)
    assert len(check(other)) == 7, "one sentence for each topic keyed by contact"


def test_how_topics_are_cleaned_can_be_asked_for(settings, topics):
    """A broker that keeps the configuration of a topic to itself could not be checked."""
    forever = settings.replaced("test", activities_retention_ms=-1)
    said = check(forever)
    assert any("retention.ms=31536000000, it should be -1" in sentence for sentence in said)
    assert all("kafka-configs.sh" in sentence for sentence in said)


def test_an_unreachable_broker_is_an_error_with_a_way_out(settings, monkeypatch):
    monkeypatch.setattr("streams.topics.REQUEST_SECONDS", 0.5)
    with pytest.raises(TopicsError, match=r"the broker at 127\.0\.0\.1:1 does not answer"):
        provision(settings.replaced("test", broker="127.0.0.1:1"))

def test_a_topic_that_goes_while_it_is_used_is_noticed(settings):
    provision(settings)
    presence = Presence(settings)
    assert presence.look() == []
    assert presence.look() == []
    admin = AdminClient(librdkafka_config(settings))
    name = settings.topic_prefix + "handoffs"
    admin.delete_topics([name])[name].result(PATIENCE_SECONDS)
    said: list[str] = []
    for _ in range(100):  # a broker goes on listing for a moment what it deletes
        if said := presence.look():
            break
        time.sleep(0.1)
    assert said == [f"topic {name} is missing; what was on it is lost. Make it with `waypost topics`, and recalculate"]


def test_a_topic_that_is_made_anew_while_it_is_used_is_noticed(kafka, prefix):
    settings = Settings.load({"broker": kafka, "topic_prefix": prefix}, environ={})
    provision(settings)
    presence = Presence(settings)
    assert presence.look() == []
    admin = AdminClient(librdkafka_config(settings))
    name = prefix + "handoffs"
    admin.delete_topics([name])[name].result(PATIENCE_SECONDS)
    provision(settings)
    [said] = presence.look()
    assert said.startswith(f"topic {name} was made anew while it was used")


def test_a_broker_that_does_not_answer_has_lost_nothing(prefix, monkeypatch):
    monkeypatch.setattr("streams.topics.REQUEST_SECONDS", 0.5)
    presence = Presence(Settings.load({"broker": "127.0.0.1:1", "topic_prefix": prefix}, environ={}))
    assert presence.look() == presence.look() == []


# ---------------------------------------------------------------- records


async def test_a_record_comes_back_as_it_was_sent(settings, topics):
    topic = topics["activities"]
    sent = [
        (b"key", b"value", [("a", b"1"), ("a", b"2"), ("empty", b"")], 1_234),
        (b"key", None, [], 1_700_000_000_000),  # a tombstone
        (None, b"", [("n\xc3\xa4me", b"\x00\xff")], 0),
        (b"", b"\xed\xa0\x80 not UTF-8", [], 1),
    ]
    producer = AIOKafkaProducer(**aiokafka_kwargs(settings))
    await producer.start()
    try:
        for key, value, headers, at_ms in sent:
            await producer.send_and_wait(topic, value, key=key, headers=headers, timestamp_ms=at_ms, partition=2)
    finally:
        await producer.stop()
    [(partition, records)] = whole(settings, topic).items()
    assert partition == 2
    assert [record.offset() for record in records] == [0, 1, 2, 3]
    assert [(r.key(), r.value(), r.headers() or [], r.timestamp()[1]) for r in records] == sent
    consumer = AIOKafkaConsumer(**aiokafka_kwargs(settings))
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 2)])
        await consumer.seek_to_beginning()
        got = [await asyncio.wait_for(consumer.getone(), PATIENCE_SECONDS) for _ in sent]
    finally:
        await consumer.stop()
    assert [(r.key, r.value, list(r.headers), r.timestamp) for r in got] == sent


async def test_a_batch_made_by_hand_keeps_its_order(settings, topics):
    """Stage changes, handoffs and the changelog are sent so."""
    producer = AIOKafkaProducer(**aiokafka_kwargs(settings))
    await producer.start()
    try:
        batch = producer.create_batch()
        for number in range(100):
            assert batch.append(key=b"%d" % number, value=None if number % 7 == 0 else b"v%d" % number, timestamp=number) is not None
        written = await (await producer.send_batch(batch, topics["evidence-changelog"], partition=1))
    finally:
        await producer.stop()
    assert written.offset == 0
    [records] = whole(settings, topics["evidence-changelog"]).values()
    assert [(r.key(), r.value()) for r in records] == [
        (b"%d" % number, None if number % 7 == 0 else b"v%d" % number) for number in range(100)]


@pytest.mark.parametrize(("topic", "mib"), [("activities", 3), ("rejected", 5), ("handoffs", 15), ("evidence-changelog", 15)])
def test_large_records_fit_where_they_must(settings, topics, topic, mib, read):
    big = bytes(1 << 20) * mib
    write(settings, topics[topic], [{"key": b"k", "value": big}])
    [[record]] = read(settings, topics[topic]).values()
    assert record == (0, big)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_records_are_read(settings, topics, codec, read):
    write(settings, topics["activities"], [{"key": b"k", "value": b"v" * 1000, "partition": 0}] * 10, **{"compression.type": codec})
    assert read(settings, topics["activities"]) == {0: [(offset, b"v" * 1000) for offset in range(10)]}


async def test_both_libraries_send_a_key_where_our_partitioner_says(settings, topics):
    keys = [f"contact-{number}é".encode() for number in range(200)]
    places = write(settings, topics["activities"], [{"key": key, "value": b"1"} for key in keys])
    assert [partition for partition, _ in places] == [partition_of(key, 4) for key in keys]
    producer = AIOKafkaProducer(**aiokafka_kwargs(settings))
    await producer.start()
    try:
        sent = await asyncio.gather(*[await producer.send(topics["activities"], b"2", key=key) for key in keys])
    finally:
        await producer.stop()
    assert [metadata.partition for metadata in sent] == [partition_of(key, 4) for key in keys]


# ---------------------------------------------------------------- offsets and the reader


def test_ends_count_every_record_of_the_last_batch(settings, topics):
    topic = topics["activities"]
    write(settings, topic, [{"key": b"k", "value": b"v", "partition": 1}] * 1000, **{"linger.ms": 100})
    write(settings, topic, [{"key": b"k", "value": b"v", "partition": 3}])
    asked = partitions_of_topics(settings, [topic, topics["journeys"]])
    assert asked == [(topic, 0), (topic, 1), (topic, 2), (topic, 3), (topics["journeys"], 0)]
    assert list(end_offsets(settings, asked).values()) == [0, 1000, 0, 1, 0]
    assert list(begin_offsets(settings, asked).values()) == [0, 0, 0, 0, 0]


def test_the_reader_reads_all_partitions_and_tells_how_far_it_is(settings, topics, read):
    topic = topics["activities"]
    write(settings, topic, [{"key": b"%d" % n, "value": b"%d" % n, "partition": n % 3} for n in range(30_000)])  # partition 3 stays empty
    told = []
    found = read(settings, topic, progress=lambda done, total: told.append((done, total)))
    assert {partition: len(records) for partition, records in found.items()} == {0: 10_000, 1: 10_000, 2: 10_000}
    for partition, records in found.items():
        assert [offset for offset, _ in records] == list(range(10_000))
        assert [int(value or b"") for _, value in records] == list(range(partition, 30_000, 3))
    assert told[0] == (0, 30_000)
    assert told[-1] == (30_000, 30_000)
    assert told == sorted(told)


def test_the_reader_begins_and_ends_where_it_is_told(settings, topics, read):
    topic = topics["activities"]
    write(settings, topic, [{"key": b"k", "value": b"%d" % n, "partition": n % 2} for n in range(200)])
    found = read(settings, topic, partitions=[1], start={1: 40}, ends={1: 60})
    assert [offset for offset, _ in found.pop(1)] == list(range(40, 60))
    assert found == {}
    assert read(settings, topic, start={0: 100, 1: 7_000}) == {}, "from the end on there is nothing, and past it neither"


@pytest.mark.parametrize("reader", [
    lambda *of: ([record.value() for record in records] for _, records in read_log(*of, chunk_records=100)),
    lambda *of: (list(block.values()) for _, block in read_blocks(*of)),
], ids=["one by one", "in bulk"])
def test_the_reader_does_not_run_after_a_writer(settings, topics, reader):
    """It ends where the log ended when it began, however much is written meanwhile."""
    topic = topics["activities"]
    write(settings, topic, [{"key": b"k", "value": b"before" * 5_000, "partition": 0}] * 500)  # more than one fetch
    seen = []
    for found in reader(settings, topic):
        seen += found
        write(settings, topic, [{"key": b"k", "value": b"after", "partition": 0}] * 200)
    assert seen == [b"before" * 5_000] * 500


def test_reading_an_empty_topic_ends_at_once(settings, topics, read):
    assert read(settings, topics["activities"]) == {}


def test_reading_what_is_not_there_is_an_error_with_a_way_out(settings, topics, read):
    with pytest.raises(ReaderError, match="is missing; make it with `waypost topics`"):
        read(settings, "nowhere")
    with pytest.raises(ReaderError, match="has 4 partitions, and no partition 9"):
        read(settings, topics["activities"], partitions=[0, 9])
    assert "nowhere" not in {topic for topic, _ in partitions_of_topics(settings, [topics["activities"]])}


def test_the_kind_of_broker_can_be_told(settings, broker):
    assert broker_kind(settings) == broker.kind


# ---------------------------------------------------------------- groups


class Member:
    """A member of a consumer group that keeps polling."""

    def __init__(self, settings, topic):
        self.consumer = AIOKafkaConsumer(topic, group_id=settings.group, auto_offset_reset="earliest", enable_auto_commit=False,
                                         session_timeout_ms=8000, heartbeat_interval_ms=1000, **aiokafka_kwargs(settings))
        self.task = None

    async def __aenter__(self):
        await self.consumer.start()
        self.task = asyncio.create_task(self._poll())
        return self

    async def _poll(self):
        while True:
            await self.consumer.getmany(timeout_ms=100)

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.consumer.stop()

    def owned(self):
        return {tp.partition for tp in self.consumer.assignment()}


async def test_members_share_the_partitions_and_take_over(settings, topics):
    async with Member(settings, topics["activities"]) as first:
        await until(lambda: first.owned() == {0, 1, 2, 3})
        async with Member(settings, topics["activities"]) as second:
            await until(lambda: len(first.owned()) == len(second.owned()) == 2)
            assert first.owned() | second.owned() == {0, 1, 2, 3}
        await until(lambda: first.owned() == {0, 1, 2, 3})


async def test_committed_offsets_outlive_the_member(settings, topics):
    topic = topics["activities"]
    write(settings, topic, [{"key": b"k", "value": b"v", "partition": 1}] * 10)
    async with Member(settings, topic) as member:
        await until(lambda: member.owned() == {0, 1, 2, 3})
        await member.consumer.commit({TopicPartition(topic, 1): 7})
    async with Member(settings, topic) as member:
        await until(lambda: member.owned() == {0, 1, 2, 3})
        assert await member.consumer.committed(TopicPartition(topic, 1)) == 7
        assert await member.consumer.committed(TopicPartition(topic, 0)) is None


async def test_a_member_of_another_generation_cannot_commit(settings, topics):
    async with Member(settings, topics["activities"]) as member:
        await until(lambda: member.owned() == {0, 1, 2, 3})
        coordinator = member.consumer._coordinator
        right, coordinator.generation = coordinator.generation, 99
        try:
            with pytest.raises(KafkaError):
                await asyncio.wait_for(member.consumer.commit({TopicPartition(topics["activities"], 0): 5}), PATIENCE_SECONDS)
        finally:
            coordinator.generation = right


def test_prefixes_keep_topics_apart(settings, topics):
    assert topic_name(settings, "activities") == settings.topic_prefix + "activities"
