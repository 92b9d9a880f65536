"""What the transport promises: chunks whole and in order, nothing committed that is not done, positions that are exact, large messages, a clean
end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

from streams import blocks, transport
from streams.app import App, WorkerCrashed, run_app
from streams.partitioner import partition_of
from streams.seam import Fenced
from streams.transport import HELD_CHUNKS
from tests.conftest import Broker
from tests.support import PATIENCE_SECONDS, eventually, until
from tests.support.counting import CHANGELOG, SOURCES, Counting, make
from tests.support.workers import CountingWorker, Feed, ends, make_topics


class Collecting(Counting):
    """Keeps every chunk and its `done`; calls it at once unless *hold*."""

    hold = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.chunks: list[tuple[int, str, list[Any], Callable[[], None]]] = []

    async def submit(self, partition: int, topic: str, records: list[Any], done: Callable[[], None]) -> None:
        self.chunks.append((partition, topic, records, done))
        if not self.hold:
            done()

    def records(self) -> list[Any]:
        return [record for _, _, records, _ in self.chunks for record in records]


@contextlib.asynccontextmanager
async def running(bootstrap: str, prefix: str, data_dir: Path, hold: bool = False, **options: Any) -> AsyncIterator[tuple[App, Collecting]]:
    """A serving worker in this process."""
    app = make({"bootstrap": bootstrap, "prefix": prefix, "data_dir": str(data_dir), **options})
    app.partitions = collecting = Collecting(app, data_dir)
    collecting.hold = hold
    stop = asyncio.Event()
    task = asyncio.ensure_future(run_app(app, stop, asyncio.get_running_loop().create_future()))
    try:
        await until(lambda: app.serving or task.done())
        yield app, collecting
    finally:
        stop.set()
        await task


async def write(bootstrap: str, topic: str, values: list[bytes], partition: int = 0, **options: Any) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, **options)
    await producer.start()
    try:
        for value in values:
            await producer.send(topic, value, key=b"k", partition=partition, headers=[("h", b"1")])
        await producer.flush()
    finally:
        await producer.stop()


async def committed(bootstrap: str, prefix: str, topic: str, partition: int = 0) -> int | None:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=prefix + "workers", enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, partition)])
        return await consumer.committed(TopicPartition(topic, partition))
    finally:
        await consumer.stop()


async def committed_is(bootstrap: str, prefix: str, topic: str, offset: int) -> None:
    """Waits for the commit, which comes once a second."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await committed(bootstrap, prefix, topic) != offset:
            await asyncio.sleep(0.1)


@pytest.fixture(params=["blocks", "objects"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched is taken apart in bulk, or record by record until that is compiled."""
    blocks.loops.warm()
    monkeypatch.setattr(blocks.loops, "ready", request.param == "blocks")


async def test_chunks_come_whole_and_in_order_and_the_position_is_the_end(broker: Broker, prefix: str, tmp_path: Path, reading: None) -> None:
    make_topics(broker.bootstrap, prefix)
    topic = prefix + "activities"
    await write(broker.bootstrap, topic, [b"%d" % i for i in range(9000)])
    async with running(broker.bootstrap, prefix, tmp_path) as (app, partitions):
        await until(lambda: app.reflected(topic, 0) == 9000)
        assert [record.value for record in partitions.records()] == [b"%d" % i for i in range(9000)]
        assert [record.offset for record in partitions.records()] == list(range(9000))
        assert partitions.records()[0].key == b"k"
        assert list(partitions.records()[0].headers) == [("h", b"1")]
        assert max(len(records) for _, _, records, _ in partitions.chunks) <= 4000
        assert all(app.reflected(prefix + name, p) == 0 for name in SOURCES[1:] for p in range(4))
        await committed_is(broker.bootstrap, prefix, topic, 9000)
        assert app.behind(topic, 0) == 0


async def test_aborted_transactions_are_not_read_and_markers_do_not_keep_the_position_from_the_end(
    kafka: str, prefix: str, tmp_path: Path, reading: None
) -> None:
    make_topics(kafka, prefix)
    topic = prefix + "activities"
    async with running(kafka, prefix, tmp_path) as (app, partitions):
        producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=prefix + "tx")
        await producer.start()
        try:
            for number, keep in enumerate([True, False, True, False]):
                await producer.begin_transaction()
                await producer.send_and_wait(topic, b"%d" % number, partition=0)
                await (producer.commit_transaction() if keep else producer.abort_transaction())
        finally:
            await producer.stop()
        await until(lambda: ends(kafka, topic)[0] == 8)  # the marker follows the answer
        await until(lambda: app.reflected(topic, 0) == 8)
        assert [record.value for record in partitions.records()] == [b"0", b"2"]
        await committed_is(kafka, prefix, topic, 8)


async def test_a_commit_never_passes_a_chunk_in_flight(kafka: str, prefix: str, tmp_path: Path) -> None:
    make_topics(kafka, prefix)
    topic = prefix + "activities"
    async with running(kafka, prefix, tmp_path, hold=True) as (app, partitions):
        for n in range(3):
            await write(kafka, topic, [b"%d" % n] * 10)
            await until(lambda n=n: len(partitions.records()) == 10 * (n + 1))
        dones = [done for _, _, _, done in partitions.chunks]
        for done in dones[1:]:
            done()
        assert app.reflected(topic, 0) == 0
        await asyncio.sleep(3)
        assert await committed(kafka, prefix, topic) in (None, 0)
        dones[0]()
        dones[0]()  # twice does not count twice
        assert app.reflected(topic, 0) == 30
        await committed_is(kafka, prefix, topic, 30)


async def test_what_was_in_flight_comes_again_after_a_rebalance_even_when_nothing_is_committed(kafka: str, prefix: str, tmp_path: Path) -> None:
    make_topics(kafka, prefix)
    topic = prefix + "activities"
    for p in range(4):
        await write(kafka, topic, [b"%d" % n for n in range(100)], p)
    async with running(kafka, prefix, tmp_path / "a", hold=True) as (first, one):
        await until(lambda: len(one.records()) == 400)
        old = [done for _, _, _, done in one.chunks]
        one.chunks.clear()
        async with running(kafka, prefix, tmp_path / "b", hold=True) as (second, two):
            await until(lambda: len(one.active) == 2 and len(two.active) == 2 and first.serving)
            await until(lambda: len(one.records()) == 200 and len(two.records()) == 200)
            for done in old:
                done()  # of the old assignment: counts for nothing
            assert [first.reflected(topic, p) for p in one.active] == [0, 0]
            for _, _, _, done in [*one.chunks, *two.chunks]:
                done()
            assert [first.reflected(topic, p) for p in one.active] == [100, 100]
            assert [second.reflected(topic, p) for p in two.active] == [100, 100]
        await until(lambda: len(one.active) == 4 and first.serving)
        await until(lambda: [first.reflected(topic, p) for p in range(4)] == [100] * 4)


async def test_a_take_that_was_waiting_when_its_assignment_ended_takes_nothing_of_the_next_one(
    broker: Broker, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "TAKE_WAIT_S", 10.0)
    make_topics(broker.bootstrap, prefix)
    async with running(broker.bootstrap, prefix, tmp_path) as (app, partitions):
        app.consumer.serial += 1  # as at a rebalance; the consumer's thread still waits
        await write(broker.bootstrap, prefix + "activities", [b"1"])
        await until(lambda: [record.value for record in partitions.records()] == [b"1"])


async def test_a_partition_whose_work_stands_still_is_not_fetched_further_and_others_go_on(kafka: str, prefix: str, tmp_path: Path) -> None:
    make_topics(kafka, prefix)
    topic, size = prefix + "activities", 20_000
    async with running(kafka, prefix, tmp_path, hold=True) as (app, partitions):
        await write(kafka, topic, [bytes(size)] * 2000, 0, max_batch_size=500_000)
        await write(kafka, topic, [b"x"] * 10, 1)
        await until(lambda: {partition for partition, _, _, _ in partitions.chunks} >= {0, 1})
        await asyncio.sleep(1)
        held = [len(records) for partition, _, records, _ in partitions.chunks if partition == 0]
        assert 0 < sum(held) * size < 12 << 20, "about 8 MiB, of 40"
        assert len(held) < HELD_CHUNKS + 10
        partitions.hold = False
        for _, _, _, done in list(partitions.chunks):
            done()
        await until(lambda: app.reflected(topic, 0) == 2000)


async def test_messages_of_16_mib_pass(kafka: str, prefix: str, tmp_path: Path) -> None:
    make_topics(kafka, prefix)
    large = bytes(range(256)) * (16 << 12)
    assert len(large) == 16 << 20
    async with running(kafka, prefix, tmp_path) as (app, partitions):
        sent = await app.outward.send(prefix + "handoffs", [(p, b"k", large, [], 1) for p in range(4)] + [(0, b"k", b"small", [], 2)])
        await sent
        await (await app.outward.send(prefix + "activities", [(2, b"k", large[: 4 << 20], [], 1)]))
        offset = await (await app.changelog.send(3, [(b"small", b"1"), (b"large", large), (b"small", b"2")]))
        assert offset == 2
        await until(lambda: len(partitions.records()) == 6)
        assert sorted(len(record.value) for record in partitions.records()) == [5, 4 << 20, *[16 << 20] * 4]
        assert ends(kafka, prefix + CHANGELOG)[3] == 3
    recovered: list[int] = []
    async with running(kafka, prefix, tmp_path / "fresh") as (app, partitions):
        recovered = [len(value) for key, value in partitions.stores[3].items() if key == b"large"]
    assert recovered == [16 << 20]


async def test_outward_keeps_order_and_lets_the_key_choose_the_partition(broker: Broker, prefix: str, tmp_path: Path) -> None:
    make_topics(broker.bootstrap, prefix)
    topic = prefix + "handoffs"
    async with running(broker.bootstrap, prefix, tmp_path) as (app, partitions):
        sent = []
        for n in range(50):
            records = [(None, b"c%d" % c, b"%d" % n, [("n", b"%d" % n)], 1_700_000_000_000 + n) for c in range(40)]
            sent.append(await app.outward.send(topic, [*records, (n % 4, b"fixed", b"%d" % n, [], n), (None, None, b"keyless", [], n)]))
        await asyncio.gather(*sent)
        await until(lambda: len(partitions.records()) == 50 * 42)
        by_key: dict[tuple[int, bytes], list[int]] = {}
        for partition, _, records, _ in partitions.chunks:
            for record in records:
                if record.key is not None:
                    by_key.setdefault((partition, record.key), []).append(int(record.value))
                    assert record.key == b"fixed" or partition == partition_of(record.key, 4)
        assert all(values == sorted(values) for values in by_key.values())
        assert await (await app.outward.send(topic, [])) is None


@pytest.mark.parametrize("severable", [True, False], ids=["ours", "aiokafka"])
async def test_a_connection_that_is_given_up_sends_nothing_any_more(monkeypatch: pytest.MonkeyPatch, severable: bool) -> None:
    """Given more than the network takes, and closed: by itself, the rest would still be sent."""
    come: asyncio.Future[asyncio.StreamReader] = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(lambda reader, _: come.set_result(reader), "127.0.0.1", 0, limit=1 << 12)

    async def connect(*address: Any) -> Any:
        return SimpleNamespace(_writer=(await asyncio.open_connection(*address))[1])

    monkeypatch.setattr(transport, "_connect", connect)
    given = 32 << 20
    async with server:
        conn = await (transport.severable if severable else connect)(*server.sockets[0].getsockname())
        conn._writer.write(b"x" * given)
        conn._writer.close()
        reader, arrived = await come, 0
        with contextlib.suppress(ConnectionResetError):
            while some := await asyncio.wait_for(reader.read(1 << 20), PATIENCE_SECONDS):
                arrived += len(some)
    assert (arrived < given) is severable


async def test_a_changelog_send_is_fenced_when_the_assignment_is_over(kafka: str, prefix: str, tmp_path: Path) -> None:
    make_topics(kafka, prefix)
    async with running(kafka, prefix, tmp_path) as (app, _):
        assert await (await app.changelog.send(0, [])) is None
        assert await (await app.changelog.send(0, [(b"a", b"1")])) == 0
        thread = app.consumer._thread
        thread.member_until = 0.0  # as after a stop longer than the session: only a heartbeat brings the lease back
        began = time.monotonic()
        assert await (await app.changelog.send(0, [(b"a", b"2")])) == 1
        assert time.monotonic() - began > 0.05
        sent = await app.changelog.send(0, [(b"a", b"3")])
        app.changelog.end(0)
        with pytest.raises(Fenced):
            await sent
        with pytest.raises(Fenced):
            await app.changelog.send(0, [(b"a", b"4")])


async def test_the_group_names_the_url_and_the_partitions_of_every_worker(kafka: str, prefix: str, tmp_path: Path) -> None:
    make_topics(kafka, prefix)
    async with running(kafka, prefix, tmp_path, port=12345):
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await admin.start()
        try:
            (answer,) = await admin.describe_consumer_groups([prefix + "workers"])
        finally:
            await admin.close()
        _, _, state, _, _, ((*_, metadata, assignment),), *_ = answer.groups[0]
        assert state == "Stable"
        assert json.loads(ConsumerProtocolMemberMetadata.decode(metadata).user_data)["url"] == "http://127.0.0.1:12345"
        known = json.loads(zlib.decompress(ConsumerProtocolMemberAssignment.decode(assignment).user_data))
        assert known["external_topic_distribution"] == {"http://127.0.0.1:12345": {prefix + name: [0, 1, 2, 3] for name in SOURCES}}


async def test_an_exception_of_a_partition_ends_the_worker(kafka: str, prefix: str, tmp_path: Path) -> None:
    make_topics(kafka, prefix)
    await write(kafka, prefix + "activities", [b"1"] * 10)
    app = make({"bootstrap": kafka, "prefix": prefix, "data_dir": str(tmp_path), "counting": {"fail_at": 0}})
    with pytest.raises(WorkerCrashed, match="told to fail"):
        await asyncio.wait_for(run_app(app, asyncio.Event(), asyncio.get_running_loop().create_future()), PATIENCE_SECONDS)
    assert await committed(kafka, prefix, prefix + "activities") in (None, 0)


def test_a_worker_ends_by_itself_at_work_and_stalled_and_with_an_error_when_it_failed(kafka: str, prefix: str, tmp_path: Path) -> None:
    make_topics(kafka, prefix)
    feed = Feed(kafka, prefix, count=100_000, per_second=50_000)
    feed.start()
    worker = CountingWorker(kafka, prefix, tmp_path / "one").start()
    try:
        eventually(lambda: worker.serves() and worker.ask()["seen"] > 0)
        assert worker.stop() == 0, worker.log()
        stalled = CountingWorker(kafka, prefix, tmp_path / "two", counting={"stall": True})
        worker = stalled.start()
        eventually(lambda: worker.serves() and worker.ask()["seen"] > 0)
        assert worker.stop() == 0, worker.log()
        failing = CountingWorker(kafka, prefix, tmp_path / "three", counting={"fail_at": 100})
        worker = failing.start()
        assert worker.process is not None
        assert worker.process.wait(PATIENCE_SECONDS) == 1, worker.log()
    finally:
        worker.kill()
