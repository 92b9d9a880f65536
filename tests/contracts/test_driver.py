"""What drives recalculations and reports on them waits for a broker that does not answer, instead of ending the worker."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from agents import driver, reporter
from agents.catalog import Catalog
from agents.driver import Driver
from agents.reporter import Reporter
from streams import supervision
from streams.supervision import supervise
from tests.support import PATIENCE_SECONDS


class Reader:
    """A reader of control topics whose broker is gone at first."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self.asked = 0
        self.answered = asyncio.Event()

    async def caught_up(self) -> None:
        self.asked += 1
        if self.asked < 3:
            raise KafkaConnectionError("gone")
        self.answered.set()


class Outward:
    """A producer whose broker is gone at first."""

    def __init__(self) -> None:
        self.sent = 0
        self.taken = asyncio.Event()

    async def send(self, topic: str, records: list[Any]) -> Any:
        self.sent += 1
        if self.sent < 3:
            raise KafkaConnectionError("gone")
        self.taken.set()
        return asyncio.sleep(0)


def partitions(outward: Any) -> Any:
    view = SimpleNamespace(journey=SimpleNamespace(id="j"), id=b"v", order=(1, 2), source=SimpleNamespace(recalculation=None))
    building = SimpleNamespace(readable=lambda view: True, turns=1)
    context = SimpleNamespace(
        now_ms=lambda: 1, topics={"recalculations": "r", "recalculation-reports": "p"}, outward=outward, partitions=1,
        recalculations=Catalog().recalculations,
    )  # fmt: skip
    partition = SimpleNamespace(building=building, views=SimpleNamespace(all=(view,)), context=context)
    return SimpleNamespace(context=context, active=lambda: {0: partition})


async def reached(moment: asyncio.Event, running: asyncio.Task[None]) -> None:
    """Waits for *moment*; what ended *running* before is raised."""
    waiting = asyncio.create_task(moment.wait())
    await asyncio.wait((waiting, running), timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    assert moment.is_set()
    assert not running.done()
    running.cancel()


async def test_the_driver_waits_for_its_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(driver, "IDLE_SECONDS", 0.01)
    reader = Reader()
    one = Driver(partitions(Outward()), reader, lambda: True, keep_ms=1)  # type: ignore[arg-type]
    running = asyncio.create_task(supervise("driver", one.run))
    await reached(reader.answered, running)


async def test_what_was_not_reported_is_reported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(reporter, "IDLE_SECONDS", 0.01)
    outward = Outward()
    one = Reporter(partitions(outward), Reader(), lambda: True)  # type: ignore[arg-type]
    running = asyncio.create_task(supervise("reporter", one.run))
    await reached(outward.taken, running)
