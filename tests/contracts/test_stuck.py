"""A worker on which nothing moves although there is something to do says so to whoever may start it again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from aiohttp import web

from agents import internal, partitions
from agents.partitions import Partitions
from agents.pipeline import Pipeline, Work


class Nowhere:
    """A broker that answers when it is let."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()

    async def send(self, *_: Any) -> Any:
        return self.answer.wait()

    async def owned(self, _: int) -> None:
        return None

    def frozen(self, _: int) -> bool:
        return False


async def test_a_stuck_worker_is_not_healthy_until_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "STUCK_SECONDS", 0.0)
    broker = Nowhere()
    pipeline = Pipeline(3, {"stage-changes": "s", "rejected": "r", "handoffs": "h"}, broker, broker, lambda error: None)
    held = Partitions(SimpleNamespace(reflected=None, now_ms=lambda: 0), None, lambda topic, partition: 0)  # type: ignore[arg-type]
    held._open[3] = SimpleNamespace(pipeline=pipeline)  # type: ignore[assignment]
    server = web.AppRunner(internal.application(held, lambda: True, lambda topic, partition: 0, None))
    await server.setup()
    site = web.TCPSite(server, "127.0.0.1", 0)
    await site.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.addresses[0][1]}") as client:
            assert (await client.get("/healthz")).json() == {"status": "ok"}, "nothing to do is no trouble"
            assert await pipeline.room()
            pipeline.add(Work(handoffs=[(0, b"k", b"v", [], 0)]))
            monkeypatch.setattr(partitions, "STUCK_SECONDS", 1000.0)
            assert (await client.get("/healthz")).status_code == 200, "not for long yet"
            monkeypatch.setattr(partitions, "STUCK_SECONDS", 0.0)
            said = await client.get("/healthz")
            assert (said.status_code, said.json()["status"], list(said.json()["partitions"])) == (503, "stuck", ["3"])
            broker.answer.set()
            await pipeline.drain()
            assert (await client.get("/healthz")).status_code == 200
    finally:
        await pipeline.close()
        await server.cleanup()
