"""Live: tells listeners of results each time they change, at most four times a second. One poller for all who listen to the same.

What streams cost is bounded: their number by session and in all, and how often their pollers ask by how many pollers there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from agents import metrics

from .errors import ApiError, error_body
from .handlers import answer
from .people import EVERYBODY

log = logging.getLogger(__name__)
T = TypeVar("T")

INTERVAL_SECONDS = 0.25
HEARTBEAT_SECONDS = 15.0
FETCHES_A_SECOND = 200
"""What all pollers together ask at most: of 300, each asks every 1.5 s."""
SHARED_SECONDS = 0.2
"""So old an answer may be that one poller takes over from another."""
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
    """Streams of server-sent events. Unnamed events carry what was fetched; an event named `unavailable` carries an error in the API's shape.

    *most*: streams in all; *per_session*: of one session, one token, or, where nobody logs in, one address.
    """

    def __init__(self, most: int, per_session: int) -> None:
        self._feeds: dict[Hashable, _Feed] = {}
        self._answers: dict[Hashable, asyncio.Task[Any]] = {}
        self._most, self._per_session = most, per_session
        self._open: Counter[str] = Counter()
        self._ended = False

    async def end(self) -> None:
        """End all streams, since the server stops."""
        self._ended = True
        for feed in list(self._feeds.values()):
            async with feed.changed:
                feed.changed.notify_all()

    def enter(self, session: str) -> None:
        """Count a further stream of *session*. Raises `ApiError`: 429, 503. What is entered has to `leave`."""
        if self._ended:
            raise _busy(503, "stopping", "the console stops")
        if self._open[session] >= self._per_session:
            raise _busy(429, "too_many_streams", f"{self._per_session} streams are open in this session; close some")
        if self._open.total() >= self._most:
            raise _busy(503, "too_many_streams", f"{self._most} streams are open at this console; try again later")
        self._open[session] += 1

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._open.total()

    def leave(self, session: str) -> None:
        """Count a stream of *session* less."""
        self._open[session] -= 1
        if not self._open[session]:
            del self._open[session]

    async def shared(self, key: Hashable, fetch: Callable[[], Awaitable[T]]) -> T:
        """Return what *fetch* gives, or gave another stream for the same *key* just now."""
        task = self._answers.get(key)
        if task is None:
            loop = asyncio.get_running_loop()
            task = self._answers[key] = asyncio.ensure_future(_called(fetch))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # it is told to whoever waits
            task.add_done_callback(lambda _: loop.call_later(SHARED_SECONDS, self._answers.pop, key, None))
        found: T = await asyncio.shield(task)
        return found

    def respond(
        self,
        key: Hashable,
        fetch: Callable[[], Awaitable[dict[str, Any]]],
        request: Request,
        headers: Mapping[str, str],
        encode: Callable[[dict[str, Any]], str] = as_json,
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> Response:
        """Return the stream of `listen` as an answer to *request*, which is an error where there are too many."""
        events = self.listen(key, fetch, request, encode, interval_seconds)
        return _Stream(self, session_key(request), events, headers)

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
            feed.task = asyncio.create_task(self._poll(feed, fetch, encode, interval_seconds))
        try:
            serial, quiet = 0, 0.0
            yield b"retry: 1000\n\n"
            while not (self._ended or feed.task.done() or await request.is_disconnected()):
                if "refused" in request.scope["state"] and request.state.refused():
                    yield unavailable("not_logged_in", "You are logged out, or may not see this any more").encode()
                    return
                if await self._newer(feed, serial):
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

    async def _newer(self, feed: _Feed, serial: int) -> bool:
        try:
            async with asyncio.timeout(LOOK_SECONDS), feed.changed:
                await feed.changed.wait_for(lambda: feed.serial > serial or self._ended)
        except TimeoutError:
            return False
        return feed.serial > serial

    async def _poll(
        self,
        feed: _Feed,
        fetch: Callable[[], Awaitable[dict[str, Any]]],
        encode: Callable[[dict[str, Any]], str],
        interval_seconds: float,
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
            except Exception:
                said = event = unavailable("internal_error", "something went wrong here; the log of the console says what")
                if said != feed.said:
                    log.exception("a live stream cannot be fetched")
            if said != feed.said:
                feed.said, feed.event = said, event
                async with feed.changed:
                    feed.serial += 1
                    feed.changed.notify_all()
            await asyncio.sleep(max(0.0, began + self.pause_seconds(interval_seconds) - loop.time()))

    def pause_seconds(self, interval_seconds: float) -> float:
        """Return how long a poller waits between two questions: *interval_seconds*, and more when there are many pollers."""
        return max(interval_seconds, len(self._feeds) / FETCHES_A_SECOND)


class _Stream(StreamingResponse):
    """A stream that is counted from the moment at which it begins, and checked in the same one."""

    def __init__(self, live: Live, session: str, events: AsyncIterator[bytes], headers: Mapping[str, str]) -> None:
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._live = live
        self._session = session

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._live.enter(self._session)
        except ApiError as error:
            await answer(error)(scope, receive, send)
            return
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._live.leave(self._session)


def session_key(request: Request) -> str:
    """Return what streams of *request* are counted by: its session, its token's name, or its address where nobody logs in."""
    person = request.scope.get("state", {}).get("person")
    if person is None or person == EVERYBODY:
        return f"address {request.client.host if request.client else ''}"
    if "authorization" in request.headers:
        return f"token {person.name}"
    return f"session {request.state.session}"


async def _called(fetch: Callable[[], Awaitable[T]]) -> T:
    return await fetch()


async def directly(_: Hashable, fetch: Callable[[], Awaitable[T]]) -> T:
    """Return what *fetch* gives: in place of `Live.shared` where an answer has to be new."""
    return await fetch()


def _busy(status: int, code: str, message: str) -> ApiError:
    return ApiError(status, code, message, headers={"Retry-After": "5"})
