"""Live: tells listeners of results each time they change, at most four times a second. One poller for all who listen to the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from typing import Any

from starlette.requests import Request

from agents import metrics

from .errors import ApiError, error_body

INTERVAL_SECONDS = 0.25
HEARTBEAT_SECONDS = 15.0
LOOK_SECONDS = 1.0  # how often a stream looks whether its listener is still there


class _Feed:
    def __init__(self) -> None:
        self.listeners = 0
        self.event: str | None = None
        self.said: Any = None  # what `event` says, without the time
        self.serial = 0
        self.changed = asyncio.Condition()
        self.task: asyncio.Task[None] | None = None


def as_json(found: dict[str, Any]) -> str:
    """An event with *found* as JSON."""
    return f"data: {json.dumps(found, ensure_ascii=False)}\n\n"


def unavailable(code: str, message: str, path: str | None = None) -> str:
    """An event named `unavailable` with an error in the API's shape."""
    return f"event: unavailable\ndata: {json.dumps(error_body(code, message, path), ensure_ascii=False)}\n\n"


class Live:
    """Streams of server-sent events. Unnamed events carry what was fetched; an event named `unavailable` carries an error in the API's shape."""

    def __init__(self) -> None:
        self._feeds: dict[Hashable, _Feed] = {}
        self._ended = False

    def end(self) -> None:
        """Ends all streams, since the server stops."""
        self._ended = True

    async def listen(
        self,
        key: Hashable,
        fetch: Callable[[], Awaitable[dict[str, Any]]],
        request: Request,
        encode: Callable[[dict[str, Any]], str] = as_json,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> AsyncIterator[bytes]:
        """Events of what *fetch* gives, encoded, as they change, until whoever sent *request* has left, or may listen no more. Listeners of one *key*
        share one poller."""
        feed = self._feeds.setdefault(key, _Feed())
        feed.listeners += 1
        metrics.LIVE_STREAMS.inc()
        if feed.task is None:
            feed.task = asyncio.create_task(_poll(feed, fetch, encode, interval_seconds))
        try:
            serial, quiet = 0, 0.0
            yield b"retry: 1000\n\n"
            while not (self._ended or feed.task.done() or await request.is_disconnected()):
                if "refused" in request.scope["state"] and request.state.refused():
                    yield unavailable("not_logged_in", "You are logged out, or may not see this any more").encode()
                    return
                if await _newer(feed, serial):
                    serial, quiet = feed.serial, 0.0
                    yield (feed.event or "").encode()
                else:
                    quiet += LOOK_SECONDS
                    if quiet >= HEARTBEAT_SECONDS:
                        quiet = 0.0
                        yield b": still here\n\n"
        finally:
            feed.listeners -= 1
            metrics.LIVE_STREAMS.dec()
            if feed.listeners == 0:
                self._feeds.pop(key, None)
                feed.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await feed.task


async def _newer(feed: _Feed, serial: int) -> bool:
    try:
        async with asyncio.timeout(LOOK_SECONDS), feed.changed:
            await feed.changed.wait_for(lambda: feed.serial > serial)
    except TimeoutError:
        return False
    return True


async def _poll(
    feed: _Feed, fetch: Callable[[], Awaitable[dict[str, Any]]], encode: Callable[[dict[str, Any]], str], interval_seconds: float
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        try:
            found = await fetch()
            said: Any = {name: value for name, value in found.items() if name != "as_of"}
            event = encode(found)
        except ApiError as error:
            said = event = unavailable(error.code, error.message, error.path)
        if said != feed.said:
            feed.said, feed.event = said, event
            async with feed.changed:
                feed.serial += 1
                feed.changed.notify_all()
        await asyncio.sleep(max(0.0, began + interval_seconds - loop.time()))
