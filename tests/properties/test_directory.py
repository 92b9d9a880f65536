"""The console's directory of workers: while the broker is away its last answer holds, and nobody waits for it."""

from __future__ import annotations

import asyncio
import json
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError

from console import workers
from console.errors import ApiError
from console.workers import GroupDirectory, Workers
from tests.support import PATIENCE_SECONDS


def described(*urls: str) -> list[Any]:
    """A description of a group whose members say *urls*."""
    members = []
    for url in urls:
        data = json.dumps({"url": url}).encode()
        metadata = struct.pack(">hi", 0, 0) + struct.pack(">i", len(data)) + data
        members.append(("id", "client", "host", metadata, b""))
    group = (0, "g", "Stable", "consumer", "p", members)
    return [SimpleNamespace(groups=[group])]


class Admin:
    """An admin client. `answers`: what a description comes to, one after the other; the last stays."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers
        self.made = 0
        self.closed = 0

    def __call__(self, **_: Any) -> Admin:
        self.made += 1
        return self

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self.closed += 1

    async def describe_consumer_groups(self, groups: list[str]) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await asyncio.Event().wait()
        return answer


def directory(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> tuple[GroupDirectory, Admin]:
    admin = Admin([*answers])
    monkeypatch.setattr(workers, "AIOKafkaAdminClient", admin)
    monkeypatch.setattr(workers, "FIND_SECONDS", 0.02)
    return GroupDirectory("g", {}), admin


@pytest.mark.parametrize(
    "error",
    [KafkaConnectionError("gone"), KafkaTimeoutError(), ValueError("of the client"), OSError()],
)
async def test_the_last_answer_holds_while_the_broker_is_away(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    found, admin = directory(
        monkeypatch, described("http://a", "http://b"), error, described("http://c")
    )
    assert await found.find() == ["http://a", "http://b"]
    assert await found.find() == ["http://a", "http://b"]
    assert admin.closed == 1
    assert await found.find() == ["http://c"]
    assert admin.made == 2, "with a connection of its own after each error"
    await found.stop()


async def test_nobody_waits_for_a_broker_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, admin = directory(monkeypatch, described("http://a"), None)
    assert await found.find() == ["http://a"]
    async with asyncio.timeout(PATIENCE_SECONDS):
        for _ in range(3):
            assert await found.find() == ["http://a"]
    assert admin.made == 1, "it is asked once at a time"
    await found.stop()
    assert admin.closed == 1


async def test_an_empty_group_has_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = directory(monkeypatch, described("http://a"), described())
    assert await found.find() == ["http://a"]
    assert await found.find() == []
    await found.stop()


async def test_a_reader_is_answered_by_the_workers_while_the_broker_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "FRESH_SECONDS", 0.0)

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"as_of_ms": 1, "partitions": {"0": {"positions": {}}}})

    app = web.Application()
    app.router.add_get("/internal/results", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    found, _ = directory(monkeypatch, described(url), KafkaConnectionError("gone"))
    asked = Workers(found.find, 1)
    await asked.start()
    try:
        for _ in range(5):
            answers = await asked.all_partitions("/internal/results", {})
            assert [*answers.partitions] == [0]
        await runner.cleanup()
        with pytest.raises(ApiError):
            await asked.all_partitions("/internal/results", {})
    finally:
        await asked.stop()
        await found.stop()
