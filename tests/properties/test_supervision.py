"""Supervision and followers: a failure is tried again, waiting is logged, a stop is heeded at once."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError

from agents import refusals as refusals_module
from agents.catalog import Catalog
from agents.partitions import Partitions
from agents.recalculator import Recalculator
from agents.refusals import Refusals
from console import backend as backend_module
from console.backend import Backend
from console.server import serve
from streams import compacted, supervision
from streams.compacted import Follower
from streams.settings import Settings
from streams.supervision import in_daemon_thread, supervise, unless_stopped
from tests.support import PATIENCE_SECONDS, until


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(supervision, "LONGEST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(compacted, "WAITING_SECONDS", 0.05)


@pytest.mark.parametrize(
    "error", [KafkaConnectionError("gone"), TimeoutError(), OverflowError("inf")]
)
async def test_what_fails_is_run_again_and_counted(error: Exception) -> None:
    runs, failures = 0, 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise error

    def failed() -> None:
        nonlocal failures
        failures += 1

    await supervise("work", run, failed)
    assert (runs, failures) == (4, 3)


async def test_a_stop_ends_what_waits() -> None:
    stop, cancelled = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    running = asyncio.create_task(unless_stopped(waits(), stop))
    await asyncio.sleep(0)
    stop.set()
    assert not await running
    assert cancelled.is_set()

    async def fails() -> None:
        raise KafkaConnectionError("gone")

    with pytest.raises(KafkaConnectionError):
        await unless_stopped(fails(), asyncio.Event())
    assert await unless_stopped(asyncio.sleep(0), asyncio.Event())


# -- followers


class Consumer:
    """A consumer of one topic with five records. `broken`: what fetching raises, one a call."""

    broken: ClassVar[list[Exception]] = []
    end = 5
    made = 0
    _client = None

    def __init__(self, **_: Any) -> None:
        type(self).made += 1
        self._at = 0

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def assign(self, tps: list[TopicPartition]) -> None:
        self._tps = tps

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._at = offset

    async def seek_to_beginning(self, *tps: TopicPartition) -> None:
        self._at = 0

    async def position(self, tp: TopicPartition) -> int:
        return self._at

    async def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, self.end)

    async def getmany(self, *tps: TopicPartition, timeout_ms: int) -> dict[TopicPartition, Any]:
        await asyncio.sleep(0)
        if self.broken:
            raise self.broken.pop()
        if self._at >= 5:
            await asyncio.sleep(0.005)
            return {}
        self._at += 1
        return {self._tps[0]: [SimpleNamespace(offset=self._at - 1)]}


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> type[Consumer]:
    class Fresh(Consumer):
        broken: ClassVar[list[Exception]] = []

    monkeypatch.setattr(compacted, "AIOKafkaConsumer", Fresh)
    return Fresh


async def test_a_follower_goes_on_after_errors_where_it_was(consumer: type[Consumer]) -> None:
    consumer.broken = [KafkaConnectionError("gone"), ValueError("bad batch"), OverflowError("inf")]
    taken: list[int] = []

    def take(fetched: compacted.Fetched) -> None:
        taken.extend(record.offset for record in fetched["t"])
        if len(taken) == 2:
            consumer.broken = [KafkaConnectionError("gone again")]
        if len(taken) == 3:
            raise OverflowError("a fault of whoever takes")

    follower = Follower(["t"], {}, take)
    await follower.start()
    assert taken == [0, 1, 2, 3, 4]
    assert consumer.made == 5
    await follower.stop()


async def test_a_follower_says_what_it_waits_for_and_ends_when_told(
    consumer: type[Consumer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    consumer.end = 7  # never reached

    async def holds_nothing(*_: Any) -> bool:
        return False

    monkeypatch.setattr(compacted, "holds_nothing", holds_nothing)
    follower = Follower(["waypost.recalculations"], {}, lambda _: None)
    stop = asyncio.Event()
    with caplog.at_level(logging.WARNING):
        starting = asyncio.create_task(unless_stopped(follower.start(), stop))
        await until(
            lambda: "waiting for topic waypost.recalculations: read to offset 5 of 7" in caplog.text
        )
    stop.set()
    assert not await starting
    await follower.stop()


async def test_a_console_that_waits_ends_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, stopped = asyncio.Event(), asyncio.Event()

    async def start(_: Backend) -> None:
        waits.set()
        await asyncio.Event().wait()

    async def stop_backend(_: Backend) -> None:
        stopped.set()

    monkeypatch.setattr(Backend, "start", start)
    monkeypatch.setattr(Backend, "stop", stop_backend)
    stop = asyncio.Event()
    settings = Settings.load({"broker": "127.0.0.1:9", "console_port": 0}, environ={})
    serving = asyncio.create_task(serve(settings, stop))
    await waits.wait()
    stop.set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await serving
    assert stopped.is_set()


class Part:
    """A part of the console that cannot be stopped, or takes for ever."""

    def __init__(self, ends: Callable[[], Any]) -> None:
        self._ends = ends
        self.asked = False

    async def stop(self) -> None:
        self.asked = True
        await self._ends()


async def test_one_error_while_the_console_stops_leaves_nothing_else_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fails() -> None:
        raise KafkaConnectionError("gone")  # not an OSError

    async def fine() -> None:
        pass

    monkeypatch.setattr(backend_module, "STOP_SECONDS", 0.05)
    backend = Backend(Settings.load({"broker": "127.0.0.1:9"}, environ={}))
    names = ("watch", "store", "recalculations", "offsets", "writer", "workers", "_directory")
    parts = {}
    for number, name in enumerate(names):
        parts[name] = Part((fails, asyncio.Event().wait, fine)[number % 3])
        setattr(backend, name, parts[name])
    await backend.stop()
    assert [name for name, part in parts.items() if not part.asked] == []


async def test_a_call_that_blocks_does_not_delay_the_end() -> None:
    blocked, stop = threading.Event(), asyncio.Event()

    async def blocks() -> None:
        await in_daemon_thread(blocked.wait)

    running = asyncio.create_task(unless_stopped(blocks(), stop))
    await asyncio.sleep(0)
    stop.set()
    assert not await running
    names = [thread.name for thread in threading.enumerate() if not thread.daemon]
    assert not [name for name in names if name.startswith("asyncio")], "asyncio.run joins these"
    blocked.set()

    def fails() -> None:
        raise KafkaConnectionError("gone")

    with pytest.raises(KafkaConnectionError):
        await in_daemon_thread(fails)
    assert await in_daemon_thread(lambda: 7) == 7


# -- workers


def test_a_recalculator_goes_on_after_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.recalculator.FAULT_SECONDS", 0.0)
    monkeypatch.setattr("agents.recalculator.RETRY_SECONDS", 0.0)
    rounds: list[int] = []
    faults: list[Exception] = [OverflowError("inf"), ValueError("none"), KeyError("x")]

    class Stop:
        def is_set(self) -> bool:
            return len(rounds) == 5

        def wait(self, seconds: float) -> None:
            pass

    def work(_: Recalculator) -> None:
        rounds.append(1)
        if faults:
            raise faults.pop()

    job: Any = object.__new__(Recalculator)
    job._stop = Stop()
    job._producer = SimpleNamespace(flush=lambda seconds: 0)
    job._membership = job._control = job._delay = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(Recalculator, "_work", work)
    job.run()
    assert len(rounds) == 5


class Outward:
    """A producer whose broker is gone at first."""

    def __init__(self) -> None:
        self.calls = 0
        self.sent: list[Any] = []

    async def send(self, topic: str, records: list[Any]) -> Any:
        self.calls += 1
        if self.calls < 3:
            raise KafkaConnectionError("gone")
        self.sent += records
        return asyncio.sleep(0)


async def test_totals_that_could_not_be_published_are_published_later() -> None:
    outward = Outward()
    view = SimpleNamespace(
        id=b"v", journey=SimpleNamespace(id="j", version=1), order=(1, 2), source=SimpleNamespace(generation=0, keys={}),
    )  # fmt: skip
    partition = SimpleNamespace(
        changed={b"v"}, views=SimpleNamespace(all=(view,)), positions={}, active=True,
        building=SimpleNamespace(complete={b"v"}), totals={b"v": {"": {("r", 1, 0): 3}}},
    )  # fmt: skip
    clock = [1]
    context: Any = SimpleNamespace(
        now_ms=lambda: clock[0], outward=outward, topics={"totals": "t"}, recalculations=Catalog().recalculations,
    )  # fmt: skip
    partitions = Partitions(context, SimpleNamespace(), lambda *_: None)  # type: ignore[arg-type]
    partitions._open = {0: partition}  # type: ignore[dict-item]
    partitions._totals_again_ms = 10**9

    async def publish() -> None:
        await partitions.publish_totals()

    await supervise("totals", publish)
    assert [key for _, key, *_ in outward.sent] == [b"j/1/0"]
    assert partition.changed == set()


async def test_rejecting_bad_records_goes_on_when_the_broker_was_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refusals_module, "LOOK_SECONDS", 0.01)
    catalog, attempts, sent = Catalog(), [0], asyncio.Event()
    for source in ("journeys", "recalculations", "recalculation-reports"):
        catalog.take(source, b"x", b"{", 4)
    partition = SimpleNamespace(positions={"journeys": 5})  # its bad record is sent already
    partitions: Any = SimpleNamespace(active=lambda: {0: partition})
    one = Refusals(partitions, SimpleNamespace(catalog=catalog), {}, lambda: True)  # type: ignore[arg-type]
    sources: list[str] = []

    async def send(_: Any, source: str, refused: Any) -> None:
        attempts[0] += 1
        if attempts[0] < 3:
            raise KafkaConnectionError("gone")
        assert [*refused] == [4]
        sources.append(source)
        partition.positions[source] = 5
        if len(sources) == 2:
            sent.set()

    monkeypatch.setattr(one, "_send", send)
    running = asyncio.create_task(supervise("rejections", one.run))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await sent.wait()
    running.cancel()
    assert sources == ["recalculations", "recalculation-reports"]
