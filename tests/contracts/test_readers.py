"""Every reader brings exactly the records that the log holds: one suite for the readers of whole topics, for a worker's sources and for its recovery.

Each partition of the two topics here is a log of another shape. Apache Kafka answers with at most 1 MiB (`fetch.max.bytes`), so that most answers
are full and leave partitions out; the embedded broker does so by itself.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as Place
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from console import rejected
from streams import blocks, compacted, fetch, reader
from streams.app import build_app, run_app
from streams.reader import end_offsets
from streams.replay import read_blocks
from streams.settings import Settings, aiokafka_kwargs, librdkafka_config
from tests.support import PATIENCE_SECONDS, eventually, until
from tests.support.kafka import KafkaBroker
from tests.support.records import values, values_in_bulk, write

MIB = 1 << 20
PARTITIONS = 40  # more than one request of the replay asks for
SOURCE, CHANGELOG = "source", "changelog"
COMPACTED = {
    "cleanup.policy": "compact,delete", "retention.ms": "-1", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01",
    "delete.retention.ms": "0", "max.compaction.lag.ms": "100", "max.message.bytes": str(16 * MIB),
}  # fmt: skip

Content = dict[int, list[tuple[int, int, int]]]
"""Partition -> [(offset, bytes of the value, their checksum)]."""


def seen(offset: int, value: bytes | None) -> tuple[int, int, int]:
    return offset, -1 if value is None else len(value), zlib.crc32(value or b"")


def make(settings: Settings, topics: list[str], partitions: int, config: dict[str, str]) -> None:
    admin = AdminClient(librdkafka_config(settings))
    for made in admin.create_topics(
        [NewTopic(topic, partitions, 1, config=config) for topic in topics]
    ).values():
        made.result(PATIENCE_SECONDS)


# ---------------------------------------------------------------- what is on the log


class Log:
    """Writes the shapes to both topics, and keeps what a reader has to bring."""

    def __init__(self, settings: Settings, kind: str) -> None:
        self.settings, self.kind = settings, kind
        self.topics = {name: settings.topic_prefix + name for name in (SOURCE, CHANGELOG)}
        self.expected: Content = {}
        self.open: list[Producer] = []
        make(settings, list(self.topics.values()), PARTITIONS, COMPACTED if kind == "kafka" else {})

    def plain(self, partition: int, sent: list[bytes], **config: Any) -> None:
        """Records, of which nothing goes away."""
        for topic in self.topics.values():
            records = [
                {"key": b"%d-%d" % (partition, n), "value": value, "partition": partition}
                for n, value in enumerate(sent)
            ]
            places = write(self.settings, topic, records, **config)
        mine = self.expected.setdefault(partition, [])
        mine += [seen(offset, value) for (_, offset), value in zip(places, sent, strict=True)]

    async def long_batches(self, partition: int, sizes: list[int]) -> None:
        """Batches of many records, each as large as told."""
        producer = AIOKafkaProducer(
            **aiokafka_kwargs(self.settings), max_batch_size=16 * MIB, max_request_size=17 * MIB
        )
        await producer.start()
        try:
            for topic in self.topics.values():
                mine = self.expected[partition] = []
                for size in sizes:
                    batch = producer.create_batch()
                    for n in range(size // 100_000):
                        value = b"%d" % (len(mine) + n) + b"v" * 99_900
                        assert (
                            batch.append(
                                key=b"%d-%d" % (partition, len(mine) + n),
                                value=value,
                                timestamp=None,
                            )
                            is not None
                        )
                    base = (
                        await (await producer.send_batch(batch, topic, partition=partition))
                    ).offset
                    mine += [
                        seen(base + n, b"%d" % (base + n) + b"v" * 99_900)
                        for n in range(size // 100_000)
                    ]
        finally:
            await producer.stop()

    def transaction(
        self, partition: int, sent: list[bytes], end: Callable[[Producer], None] | None
    ) -> None:
        """Records of a transaction; with no *end* it stays open."""
        for name, topic in self.topics.items():
            id_ = f"{self.settings.topic_prefix}{name}-{partition}"
            producer = Producer(
                librdkafka_config(self.settings)
                | {"transactional.id": id_, "transaction.timeout.ms": 600_000}
            )
            producer.init_transactions(PATIENCE_SECONDS)
            producer.begin_transaction()
            for n, value in enumerate(sent):
                producer.produce(topic, value, b"%d-%d" % (partition, n), partition)
            assert producer.flush(PATIENCE_SECONDS) == 0
            self.open.append(producer)
            if end is not None:
                end(producer)

    def delete_before(self, partition: int, offset: int) -> None:
        admin = AdminClient(librdkafka_config(self.settings))
        wanted = [TopicPartition(topic, partition, offset) for topic in self.topics.values()]
        for deleted in admin.delete_records(wanted).values():
            deleted.result(PATIENCE_SECONDS)
        self.expected[partition] = [one for one in self.expected[partition] if one[0] >= offset]

    def compacted(self, partition: int) -> None:
        """Rounds over the same keys, until compaction has left gaps in both topics: which, the topics say."""
        for round_ in range(4):
            for topic in self.topics.values():
                write(
                    self.settings,
                    topic,
                    [
                        {"key": b"c%d" % key, "value": b"%d" % round_, "partition": partition}
                        for key in range(20)
                    ],
                )
            time.sleep(0.15)  # so that each round is a segment of its own

        def gaps() -> bool:
            for topic in self.topics.values():
                write(
                    self.settings, topic, [{"key": b"last", "value": b"", "partition": partition}]
                )
            return all(
                len(values(self.settings, topic, partitions=[partition])[partition]) <= 50
                for topic in self.topics.values()
            )

        eventually(gaps, "compaction")


async def written(settings: Settings, kind: str) -> Log:
    log = Log(settings, kind)
    log.plain(0, [b"%d" % n for n in range(20_000)])
    await log.long_batches(1, [3 * MIB, 3 * MIB, 15 * MIB])
    log.expected[2] = []  # empty
    log.plain(3, [b"v" * (15 * MIB), b"behind it"])
    for partition, codec in enumerate(("gzip", "snappy", "lz4", "zstd"), 4):
        log.plain(partition, [b"v" * 1000] * 2000, **{"compression.type": codec})
    if kind == "kafka":
        log.transaction(8, [b"committed"] * 3, Producer.commit_transaction)
        log.expected[8] = [seen(n, b"committed") for n in range(3)]  # and a marker at the end
        log.plain(9, [b"before"])
        log.transaction(
            9, [b"aborted" * 50_000] * 10, Producer.abort_transaction
        )  # several answers of nothing
        log.transaction(10, [b"aborted"] * 3, Producer.abort_transaction)
        log.expected[10] = []
        log.plain(11, [b"before"])
        log.transaction(11, [b"open"] * 3, None)
        log.plain(12, [b"%d" % n for n in range(1000)])
        log.delete_before(12, 333)
        log.plain(13, [b"%d" % n for n in range(1000)])
        log.delete_before(13, 1000)
        log.compacted(14)
    for partition in range(15, PARTITIONS):
        log.plain(partition, [b"%d" % partition * 100] * 1000)
    return log


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("embedded", marks=pytest.mark.embedded),
        pytest.param("kafka", marks=pytest.mark.kafka),
    ],
)
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    bootstrap = request.getfixturevalue(request.param)
    prefix = f"readers-{time.time_ns()}."
    settings = Settings.load(
        {"broker": bootstrap, "topic_prefix": prefix, "group": prefix + "g"}, environ={}
    )
    log = asyncio.run(written(settings, request.param))
    yield log
    log.open.clear()


# ---------------------------------------------------------------- the readers


class Collecting:
    """The partitions of a worker: keeps what comes, by changelog and by source."""

    def __init__(self) -> None:
        self.recovered: Content = {}
        self.delivered: Content = {}
        self.active: set[int] = set()

    def open(self, partition: int) -> None: ...

    def changelog_offset(self, partition: int) -> int | None:
        return None

    def recover(self, partition: int, records: Any, last_offset: int) -> None:
        self.recovered.setdefault(partition, []).extend(
            seen(record.offset, record.value) for record in records
        )

    def wipe(self, partition: int) -> None:
        raise AssertionError("nothing is ahead of its changelog")

    async def activate(self, partition: int) -> None:
        self.active.add(partition)

    async def close(self, partition: int) -> None: ...

    async def submit(
        self, partition: int, topic: str, records: Any, done: Callable[[], None]
    ) -> None:
        self.delivered.setdefault(partition, []).extend(
            seen(record.offset, record.value) for record in records
        )
        done()


async def worked(settings: Settings, data_dir: Path, partitions: int) -> tuple[Content, Content]:
    """What a worker reads until it reflects all of its source: (from its source, from its changelog)."""
    source, changelog = (settings.topic_prefix + name for name in (SOURCE, CHANGELOG))
    app = build_app(
        kafka_options=aiokafka_kwargs(settings), group=settings.group, sources=[source], changelog=changelog, partition_count=partitions,
        url="http://127.0.0.1:1", data_dir=data_dir,
    )  # fmt: skip
    app.partitions = collecting = Collecting()  # type: ignore[assignment]
    ends = await asyncio.to_thread(end_offsets, settings, [(source, p) for p in range(partitions)])
    stop = asyncio.Event()
    running = asyncio.ensure_future(run_app(app, stop, asyncio.get_running_loop().create_future()))
    try:
        await until(lambda: app.serving or running.done())
        assert collecting.active == set(range(partitions))
        await until(
            lambda: (
                running.done()
                or all(app.reflected(source, p) == end for (_, p), end in ends.items())
            )
        )
    finally:
        stop.set()
        await running
    return collecting.delivered, collecting.recovered


def read_by(
    settings: Settings, directory: Path, partitions: int = PARTITIONS
) -> dict[str, Content]:
    """What each reader brings."""
    found: dict[str, Content] = {}
    source = settings.topic_prefix + SOURCE
    for name, read in (("one by one", values), ("in bulk", values_in_bulk)):
        found[name] = {
            p: [seen(*record) for record in records]
            for p, records in read(settings, source).items()
        }
    blocks.loops.warm()
    found["worker"], found["recovery"] = asyncio.run(worked(settings, directory, partitions))
    found["follower"] = asyncio.run(followed(settings))
    return found


async def followed(settings: Settings) -> Content:
    """What a follower of a control topic reads to the end: of the first partition, all that such a topic has."""
    topic, found = settings.topic_prefix + SOURCE, Content()

    def take(fetched: Any) -> None:
        found.setdefault(0, []).extend(
            seen(record.offset, record.value) for record in fetched[topic]
        )

    follower = compacted.Follower([topic], aiokafka_kwargs(settings), take)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await follower.start()
        await follower.stop()
    return found


READERS = ("one by one", "in bulk", "worker", "recovery", "follower")


@pytest.fixture(scope="module")
def found(log: Log, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Content]:
    return read_by(log.settings, tmp_path_factory.mktemp("readers"))


@pytest.mark.parametrize("by", READERS)
def test_every_record_is_read_and_nothing_else(
    log: Log, found: dict[str, Content], by: str
) -> None:
    expected = {
        p: records
        for p, records in log.expected.items()
        if records and (by != "follower" or p == 0)
    }
    content = {
        partition: records for partition, records in found[by].items() if partition in log.expected
    }
    assert {p: len(records) for p, records in content.items()} == {
        p: len(records) for p, records in expected.items()
    }
    for partition, records in content.items():
        assert records == expected[partition], f"partition {partition}"


@pytest.mark.parametrize("by", READERS[:-1])
def test_what_compaction_leaves_is_read(log: Log, found: dict[str, Content], by: str) -> None:
    """Compaction goes on meanwhile: every key's last record has to be there, offsets rise."""
    if log.kind == "embedded":
        assert 14 not in found[by]
        return
    offsets = [offset for offset, *_ in found[by][14]]
    assert offsets == sorted(set(offsets))
    assert set(range(60, 80)) <= set(offsets)
    assert offsets[0] > 0


# ---------------------------------------------------------------- a broker that was away, and a log that ends without a record


def without_its_end(settings: Settings) -> Content:
    """Three segments in each topic; what is left when `hollow` was there."""
    topics = [settings.topic_prefix + name for name in (SOURCE, CHANGELOG)]
    make(settings, topics, 1, {"segment.ms": "1000"})
    now_ms = time.time_ns() // 1_000_000 - 60_000
    for topic in topics:
        for count, later_ms in ((10, 0), (5, 10_000), (5, 10_000), (1, 20_000)):
            write(
                settings,
                topic,
                [
                    {"key": b"k%d" % n, "value": b"v", "timestamp": now_ms + later_ms}
                    for n in range(count)
                ],
                **{"linger.ms": 100},
            )
    return {0: [seen(offset, b"v") for offset in range(15)]}


def hollow(broker: KafkaBroker, settings: Settings) -> None:
    """Leaves what compaction leaves of last records that were deleted, and a power cut of the segment behind them: offsets 15 to 19 are gone."""
    for name in (SOURCE, CHANGELOG):
        directory = broker.directory / "data" / f"{settings.topic_prefix}{name}-0"
        middle, last = directory / f"{10:020d}.log", directory / f"{20:020d}.log"
        raw = middle.read_bytes()
        first = 12 + int.from_bytes(raw[8:12], "big")
        assert int.from_bytes(raw[first : first + 8], "big") == 15
        middle.write_bytes(raw[:first])
        last.write_bytes(b"")
        for index in (*directory.glob("*.index"), *directory.glob("*.timeindex")):
            index.unlink()


async def rejected_page(settings: Settings, end: int) -> list[Any]:
    """What a page of rejected records reads before *end*."""
    consumer = AIOKafkaConsumer(enable_auto_commit=False, **aiokafka_kwargs(settings))
    await consumer.start()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            records, _ = await rejected._between(
                consumer, Place(settings.topic_prefix + SOURCE, 0), 0, end
            )
    finally:
        await consumer.stop()
    return records


@pytest.mark.kafka
def test_reading_goes_on_when_the_broker_was_away_and_ends_where_the_log_ends_without_a_record(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = KafkaBroker(tmp_path / "kafka", heap_mb=256)
    try:
        settings = Settings.load(
            {"broker": broker.start(), "topic_prefix": prefix, "group": prefix + "g"}, environ={}
        )
        left = without_its_end(settings)
        long = prefix + "long"
        make(settings, [long], 1, {})
        write(
            settings,
            long,
            [{"key": b"k", "value": b"%d" % n + bytes(100_000)} for n in range(1_000)],
        )  # 100 MB: more than is held
        found, restarted = [], False
        for _, block in read_blocks(settings, long):
            found += [(value or b"").rstrip(b"\0") for value in block.values()]
            if not restarted:
                broker.stop()
                hollow(broker, settings)
                broker.start()
                restarted = True
        assert found == [b"%d" % n for n in range(1_000)]
        assert end_offsets(settings, [(prefix + SOURCE, 0)]) == {(prefix + SOURCE, 0): 20}
        monkeypatch.setattr(reader, "HOLE_SECONDS", 0.3)
        monkeypatch.setattr(fetch, "HOLE_S", 0.3)
        monkeypatch.setattr(compacted, "WAITING_SECONDS", 0.5)
        for name, content in read_by(settings, tmp_path / "worker", 1).items():
            assert content == left, name
        page = asyncio.run(rejected_page(settings, 20))
        assert [seen(record.offset, record.value) for record in page] == left[0]
    finally:
        broker.kill()
