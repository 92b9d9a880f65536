"""Internal: the HTTP interface by which the console asks a worker about its partitions. Only parses questions; `questions` answers them.

| call | answer |
|---|---|
| `GET /internal/partitions` | state and positions of each partition here, and what the process counted |
| `GET /internal/journeys?journey=` | version and generation that can be read of every journey, or one, in each active partition |
| `GET /internal/results?journey=&version=&generation=&group=` | versions, and the body and cells of one of them, of each active partition |
| `GET /internal/groups?journey=&version=&generation=` | versions, and how many of each group reached each stage |
| `GET /internal/list?journey=&version=&generation=&stage=&who=&group=&limit=&after=` | a page of persons of each active partition |
| `GET /internal/checksums?partition=&journey=&version=&generation=&share=&after=` | counts and checksums of a page of a journey's index |
| `GET /internal/contact?id=` | one contact, if its partition is here |
| `GET /healthz`, `/readyz`, `/metrics` | for orchestrators and Prometheus |
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler as Handling
from prometheus_client import generate_latest

from state.ledger import Damaged
from streams.connections import ADDRESS, WORKER_CONNECTIONS, Acceptor, Connections, limits, peer
from streams.partitioner import partition_of
from streams.settings import Settings

from . import metrics, questions
from .partition import SOURCES, Partition
from .partitions import Partitions

MAX_ROWS = 1000
SIZES_SECONDS = 10.0  # so old may be what is said of the files; looking at each of them costs more than all else that is asked for often


IDLE_SECONDS = 75.0
RESERVED = ("/healthz", "/readyz", "/metrics")
"""What is answered on restricted connections too."""


class Handler(web.RequestHandler):  # type: ignore[type-arg]
    """One connection, with deadlines for the headers of a request and for reading an answer, which aiohttp lacks. Bodies it waits for 10 s."""

    def __init__(self, server: web.Server, connections: Connections) -> None:  # type: ignore[type-arg]
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, access_log=None, keepalive_timeout=IDLE_SECONDS)  # type: ignore[arg-type]
        self.reason: str | None = None
        self._connections = connections
        self._event_loop = loop
        self._busy = False
        self._whole = True  # no part of a further request is here
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.reason = self._connections.admit(self, peer(transport))
        self._arm()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        for timer in (self._deadline, self._stalled):
            if timer is not None:
                timer.cancel()
        self._connections.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._whole = data.endswith(b"\r\n\r\n")
        if not self._busy and self._deadline is None:
            self._arm()
        super().data_received(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self._event_loop.call_later(self._connections.limits.write_seconds, self._late, "answer")

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer an error; text that is no Unicode is the client's. aiohttp quotes headers in answers without a look at it."""
        if isinstance(exc, UnicodeError):
            status, message = 400, "the request holds text that is not Unicode"
        return super().handle_error(request, status, exc, message)

    def log_exception(self, *args: Any, **named: Any) -> None:
        """Log an error with its trace, but not that a request is none or its client has left: strangers would fill the log."""
        if isinstance(named.get("exc_info"), HttpProcessingError | ConnectionError | UnicodeError):
            self.logger.debug(*args)
        else:
            super().log_exception(*args, **named)

    def begin(self) -> None:
        """Note that a request is being answered: its headers are here."""
        self._busy = True
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._connections.works(self)

    def end(self) -> None:
        """Note that a request was answered."""
        self._busy = False
        self._connections.waits(self)
        if not self._whole:
            self._arm()

    def shed(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _arm(self) -> None:
        self._deadline = self._event_loop.call_later(self._connections.limits.header_seconds, self._late, "headers")

    def _late(self, reason: str) -> None:
        self._connections.closed(reason)
        if reason == "headers" and self.transport is not None:
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.force_close()
        self.shed()


async def listen(application: web.Application, listener: socket.socket, settings: Settings) -> Callable[[], Awaitable[None]]:
    """Serve *application* on *listener*, within the limits of *settings*. Return what ends it."""
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    assert runner.server is not None
    closed = metrics.INTERNAL_CLOSED.labels
    allowed = limits(settings, WORKER_CONNECTIONS)
    connections = Connections(allowed, closed=lambda reason: closed(reason).inc())
    acceptor = Acceptor(listener, functools.partial(Handler, runner.server, connections), connections)

    async def end() -> None:
        acceptor.close()
        await acceptor.wait_closed()
        await runner.cleanup()

    return end


def application(
    partitions: Partitions, ready: Callable[[], bool], behind: Callable[[str, int], int], secret: str | None = None
) -> web.Application:
    """The aiohttp application; with a *secret*, /internal answers only who says it. *ready* says whether every partition of this worker is live,
    *behind* how many records of a topic's partition are not done."""

    started_ms = partitions.context.now_ms()
    disk_bytes, sized_at = 0, 0.0

    def each(answer: Callable[[Partition], dict[str, Any]]) -> web.Response:
        found = {
            str(number): {**answer(partition), "positions": partitions.positions(number)}
            for number, partition in partitions.active().items()
        }
        return _json({"as_of_ms": partitions.context.now_ms(), "partitions": found})

    async def get_partitions(_: web.Request) -> web.Response:
        nonlocal disk_bytes, sized_at
        if not disk_bytes or time.monotonic() - sized_at >= SIZES_SECONDS:
            disk_bytes = sum(partition.ledger.size_bytes() for partition in partitions.active().values())
            sized_at = time.monotonic()
        process = {
            "started_ms": started_ms,
            "activities": metrics.total(metrics.ACTIVITIES),
            "stage_changes": metrics.total(metrics.STAGE_CHANGES),
            "rejected": metrics.total(metrics.REJECTED),
            "visible": metrics.buckets(metrics.VISIBLE_SECONDS),
            "disk_bytes": disk_bytes,
        }
        return _json({"as_of_ms": partitions.context.now_ms(), "partitions": partitions.states(), "process": process})

    async def get_journeys(request: web.Request) -> web.Response:
        return each(lambda p: questions.journeys(p, request.query.get("journey")))

    async def get_results(request: web.Request) -> web.Response:
        q = request.query
        version, generation = _integer(q, "version", None), _integer(q, "generation", None)
        journey = _text(q, "journey")
        return each(lambda p: questions.results(p, journey, version, generation, q.get("group")))

    async def get_groups(request: web.Request) -> web.Response:
        q = request.query
        version, generation = _integer(q, "version", None), _integer(q, "generation", None)
        journey = _text(q, "journey")
        return each(lambda p: questions.grouped(p, journey, version, generation))

    async def get_list(request: web.Request) -> web.Response:
        q = request.query
        version, generation, stage = _integer(q, "version", None), _integer(q, "generation", None), _integer(q, "stage", 1)
        limit = max(1, min(_integer(q, "limit", 100) or 100, MAX_ROWS))
        after, journey = _place(q, "after"), _text(q, "journey")
        who, group, newest = q.get("who", questions.CONVERTED), q.get("group"), q.get("order") == "newest"
        return each(lambda p: questions.listed(p, journey, version, generation, stage or 1, who, group, limit, after, newest))

    async def get_checksums(request: web.Request) -> web.Response:
        q = request.query
        number = _integer(q, "partition", None)
        if number is None:
            raise _bad("partition")
        found = partitions.active().get(number)
        if found is None:
            return _json({"partition": number, "state": "elsewhere"})
        version, generation = _integer(q, "version", None), _integer(q, "generation", None)
        journey, share, after = _text(q, "journey"), _share(q), _place(q, "after")
        answer = questions.summed(found, journey, version, generation, share, after)
        return _json({**answer, "positions": partitions.positions(found.number)})

    async def get_contact(request: web.Request) -> web.Response:
        contact = _text(request.query, "id")
        number = partition_of(contact, partitions.context.partitions)
        found = partitions.active().get(number)
        if found is None:
            return _json({"partition": number, "state": "elsewhere"})
        return _json({**questions.contact(found, contact), "positions": partitions.positions(number)})

    async def get_health(_: web.Request) -> web.Response:
        stuck = {str(number): round(seconds) for number, seconds in partitions.stuck().items()}
        return _json({"status": "stuck", "partitions": stuck}, 503) if stuck else _json({"status": "ok"})

    async def get_ready(_: web.Request) -> web.Response:
        return _json({"ready": True}) if ready() else _json({"ready": False}, 503)

    async def get_metrics(_: web.Request) -> web.Response:
        metrics.LEDGER_BYTES.clear()  # what this worker has no more is told by whoever has it now
        metrics.SOURCE_LAG.clear()
        for number, partition in partitions.active().items():
            metrics.LEDGER_BYTES.labels(str(number)).set(partition.ledger.size_bytes())
            for source in SOURCES:
                metrics.SOURCE_LAG.labels(source, str(number)).set(behind(partitions.context.topics[source], number))
        return web.Response(
            body=generate_latest(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    @web.middleware
    async def known(request: web.Request, handler: Handling) -> web.StreamResponse:
        if secret is not None and request.path.startswith("/internal/"):
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), secret.encode()):
                return _json({"error": "not yours"}, 401)
        try:
            return await handler(request)
        except Damaged as damage:
            return _json({"error": str(damage)}, 503)

    @web.middleware
    async def limited(request: web.Request, handler: Handling) -> web.StreamResponse:
        connection = request.protocol
        if not isinstance(connection, Handler):
            return await handler(request)
        connection.begin()
        try:
            if connection.reason is not None and request.path not in RESERVED:
                status = 429 if connection.reason == ADDRESS else 503
                response: web.StreamResponse = _json({"error": "too many connections"}, status)
                response.headers["Retry-After"] = "5"
            else:
                response = await handler(request)
            if connection.reason is not None:
                response.force_close()
            return response
        finally:
            connection.end()

    app = web.Application(middlewares=[limited, known])
    app.add_routes(
        [
            web.get("/internal/partitions", get_partitions),
            web.get("/internal/journeys", get_journeys),
            web.get("/internal/results", get_results),
            web.get("/internal/groups", get_groups),
            web.get("/internal/list", get_list),
            web.get("/internal/checksums", get_checksums),
            web.get("/internal/contact", get_contact),
            web.get("/healthz", get_health),
            web.get("/readyz", get_ready),
            web.get("/metrics", get_metrics),
        ]
    )
    return app


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), status=status, content_type="application/json")


def _integer(query: Any, name: str, default: int | None) -> int | None:
    if not query.get(name):
        return default
    try:
        return int(query[name])
    except ValueError:
        raise _bad(name) from None


def _place(query: Any, name: str) -> bytes | None:
    try:
        return bytes.fromhex(query[name]) if query.get(name) else None
    except ValueError:
        raise _bad(name) from None


def _share(query: Any) -> float:
    try:
        share = float(query.get("share", 1))
    except ValueError:
        raise _bad("share") from None
    if not 0 < share <= 1:
        raise _bad("share")
    return share


def _text(query: Any, name: str) -> str:
    if name not in query:
        raise _bad(name)
    return str(query[name])


def _bad(name: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=f"the parameter {name} is missing, or is not what it has to be")
