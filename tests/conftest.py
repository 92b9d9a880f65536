"""Fixtures every test may use: the brokers. One of each kind a run, started on first use, ended with the run.

Whatever uses `kafka` (or is parametrised with it) carries the mark `kafka`; leave it out with `pytest -m "not kafka"`. Without Java and
Maven those tests fail, with a sentence: a test that is silently skipped proves nothing.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from streams.brokers import EmbeddedBroker
from streams.settings import Settings
from tests.support.kafka import KafkaBroker, KafkaUnavailable

hypothesis.settings.register_profile("waypost", deadline=None)  # on a busy machine an example takes as long as it takes
hypothesis.settings.load_profile("waypost")
os.environ.pop("COLUMNS", None)  # a worker of pytest-xdist has 80, and what commands print would be folded

WAITING = ("broker", "soak")
"""Their tests wait most of the time, for sessions that end and workers that come back: three processes share them, in parts that take as long."""
PARTS = {"test_kills.py": 1, "test_recalculation.py": 1, "test_transport.py": 1, "test_faults.py": 2, "test_table.py": 2}
"""All others are the third."""
BUSY = ("bench", "browser", "contracts", "docs", "fuzz", "scale")
"""They share a Waypost and keep the machine busy; the other rooms only compute."""
ALONE = ("contracts", "docs")
"""Of these, each module has its own."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of four processes, three run what waits, the fourth first what only computes, test by test, and then what is busy; there they help it."""
    from xdist.scheduler import LoadScopeScheduling

    class Apart(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            room, module = nodeid.split("::", maxsplit=1)[0].split("/")[1:3]
            if room in WAITING:
                return f"waiting, part {PARTS.get(module, 3)}"
            return nodeid if room not in BUSY else f"{room}/{module}" if room in ALONE else room

    config.option.loadscopereorder = False  # in the order in which they are collected
    return Apart(config, log)


@pytest.hookimpl(tryfirst=True)  # before pytest applies `-m`
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # of pytest-xdist
        rooms = [item.nodeid.split("/")[1] for item in items]
        ranks = {id(item): 0 if room in WAITING else 2 if room in BUSY else 1 for item, room in zip(items, rooms, strict=True)}
        items.sort(key=lambda item: ranks[id(item)])
    for item in items:
        names = getattr(item, "fixturenames", ())
        for mark, fixtures in (("kafka", {"kafka", "kafka_broker", "secure_kafka"}), ("embedded", {"embedded", "embedded_broker"})):
            if fixtures.intersection(names):
                item.add_marker(mark)


@dataclass(frozen=True)
class Broker:
    """A running broker: `kind` is "embedded" or "kafka"."""

    kind: str
    bootstrap: str


def _started(broker: KafkaBroker) -> KafkaBroker:
    try:
        broker.start()
    except KafkaUnavailable as reason:
        pytest.fail(str(reason), pytrace=False)
    return broker


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """Apache Kafka, shared by the run: do not stop it. Tests that kill brokers make a KafkaBroker of their own.

    Its answers hold 1 MiB at most, so that they are full where a log is long, and leave partitions out.
    """
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka"), properties={"fetch.max.bytes": str(1 << 20)})
    try:
        yield _started(broker)
    finally:
        broker.kill()
        shutil.rmtree(broker.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def kafka(kafka_broker: KafkaBroker) -> str:
    """Bootstrap string of the shared Apache Kafka."""
    return kafka_broker.bootstrap


@pytest.fixture(scope="module")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """Apache Kafka with a listener that wants TLS and SASL."""
    broker = KafkaBroker(tmp_path_factory.mktemp("secure-kafka"), heap_mb=256, secure=True)
    try:
        yield _started(broker)
    finally:
        broker.kill()
        shutil.rmtree(broker.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """The embedded broker, shared by the run: do not stop it."""
    with EmbeddedBroker(tmp_path_factory.mktemp("embedded")) as broker:
        yield broker


@pytest.fixture(scope="session")
def embedded(embedded_broker: EmbeddedBroker) -> str:
    """Bootstrap string of the shared embedded broker."""
    return embedded_broker.bootstrap


@pytest.fixture(params=[pytest.param("embedded", marks=pytest.mark.embedded), pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Every broker we claim to run on, one after the other."""
    return Broker(request.param, request.getfixturevalue(request.param))


@pytest.fixture
def prefix() -> str:
    """A topic prefix (or group name) nobody else uses."""
    return f"t{uuid.uuid4().hex[:10]}."


@pytest.fixture
def settings(broker: Broker, prefix: str, tmp_path: Path) -> Settings:
    """Settings for `broker` with topics, group and data directory of this test alone."""
    return Settings.load({"broker": broker.bootstrap, "topic_prefix": prefix, "group": prefix + "workers", "data_dir": tmp_path},
                         environ={})
