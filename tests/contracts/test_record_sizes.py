"""A record that is larger than its topic takes is left out, on every broker alike; the others arrive, and the sender goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from streams.changelog import Changelog
from streams.outward import Outward
from streams.reader import read_log
from streams.settings import Settings, aiokafka_kwargs
from streams.transport import install, start_producer
from tests.conftest import Broker

LIMIT_BYTES = 1 << 20
NOW_MS = 1_767_323_045_000


@pytest.fixture(autouse=True)
def our_transport() -> None:
    install()


@pytest.fixture
def topic(broker: Broker, prefix: str) -> str:
    """Of one partition, whose batches may have `LIMIT_BYTES`."""
    name = prefix + "sized"
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    [made] = admin.create_topics([NewTopic(name, 1, 1, config={"max.message.bytes": str(LIMIT_BYTES)})]).values()
    made.result()
    return name


def values(settings: Settings, topic: str) -> list[bytes]:
    return [record.value() for _, records in read_log(settings, topic) for record in records]


def limit(broker: Broker, topic: str, limit_bytes: int) -> None:
    """Changes the limit of a topic, as an operator may while workers run."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    resource.add_incremental_config(ConfigEntry("max.message.bytes", str(limit_bytes), incremental_operation=AlterConfigOpType.SET))
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    [changed] = admin.incremental_alter_configs([resource]).values()
    changed.result()


def out(*sizes: int) -> list[Any]:
    return [(0, b"key", bytes([65 + n]) * size, [], NOW_MS) for n, size in enumerate(sizes)]


def shapes(found: list[bytes]) -> list[tuple[int, int]]:
    return [(value[0] - 65, len(value)) for value in found]


async def outward(settings: Settings, limits: dict[str, int]) -> Outward:
    made = Outward(aiokafka_kwargs(settings), "test-outward", limits)
    await made.start()
    return made


async def test_every_broker_gets_no_larger_records_than_the_topic_takes(settings: Settings, topic: str) -> None:
    sender = await outward(settings, {topic: LIMIT_BYTES})
    try:
        await (await sender.send(topic, out(10, LIMIT_BYTES, 20, LIMIT_BYTES - 200, 5 * LIMIT_BYTES)))
        await (await sender.send(topic, out(30)))
    finally:
        await sender.stop()
    assert shapes(values(settings, topic)) == [(0, 10), (2, 20), (3, LIMIT_BYTES - 200), (0, 30)]
    assert sender.unsent == {topic: 2}


@pytest.mark.parametrize("broker", [pytest.param("kafka", marks=pytest.mark.kafka)], indirect=True)
async def test_a_limit_that_was_lowered_meanwhile_leaves_out_what_no_longer_fits(broker: Broker, settings: Settings, topic: str) -> None:
    """Apache Kafka alone looks: the embedded broker takes everything."""
    limit(broker, topic, 100_000)
    sender = await outward(settings, {topic: LIMIT_BYTES})
    try:
        await (await sender.send(topic, out(60_000, 60_000, 300_000, 10)))  # one batch
        await (await sender.send(topic, out(200_000)))
        await (await sender.send(topic, out(30)))
    finally:
        await sender.stop()
    assert shapes(values(settings, topic)) == [(0, 60_000), (1, 60_000), (3, 10), (0, 30)]
    assert sender.unsent == {topic: 2}


async def changelog(settings: Settings, topic: str, limit_bytes: int) -> Changelog:
    """Of a worker that owns partition 0."""
    app: Any = SimpleNamespace(
        producer=SimpleNamespace(_producer=await start_producer(aiokafka_kwargs(settings), "test-changelog")),
        consumer=SimpleNamespace(_thread=SimpleNamespace(member_until=float("inf"))), consumer_generation_id=1, rebalancing=False,
    )  # fmt: skip
    made = Changelog(app, topic, limit_bytes)
    made.begin(0, 1, 0)
    return made


async def test_a_changelog_goes_on_behind_a_record_that_is_too_large(settings: Settings, topic: str) -> None:
    log = await changelog(settings, topic, LIMIT_BYTES)
    try:
        offsets = [
            await (await log.send(0, [(b"key", value) for _, _, value, _, _ in out(*sizes)]))
            for sizes in ((10, LIMIT_BYTES, 20), (2 * LIMIT_BYTES,), (30,))
        ]
    finally:
        await log.app.producer._producer.stop()
    assert offsets == [1, None, 2]
    assert shapes(values(settings, topic)) == [(0, 10), (2, 20), (0, 30)]
    assert (log.unsent, log.foreign_records) == (2, 0)


@pytest.mark.parametrize("broker", [pytest.param("kafka", marks=pytest.mark.kafka)], indirect=True)
async def test_a_changelog_whose_limit_was_lowered_goes_on(broker: Broker, settings: Settings, topic: str, tmp_path: Path) -> None:
    limit(broker, topic, 100_000)
    log = await changelog(settings, topic, LIMIT_BYTES)
    try:
        offsets = [
            await (await log.send(0, [(b"key", value) for _, _, value, _, _ in out(*sizes)]))
            for sizes in ((60_000, 60_000, 300_000), (200_000,), (30,))
        ]
    finally:
        await log.app.producer._producer.stop()
    assert offsets == [1, None, 2]
    assert shapes(values(settings, topic)) == [(0, 60_000), (1, 60_000), (0, 30)]
    assert (log.unsent, log.foreign_records) == (2, 0)
