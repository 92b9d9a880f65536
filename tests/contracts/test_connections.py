"""Connections of strangers: half-sent requests, too many of them, answers that nobody reads, at the console's server and at a worker's."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from agents import internal
from agents.worker import main as run_worker
from console import server as servers
from console.bodies import read_body
from console.errors import ApiError
from console.handlers import Failsafe, install
from console.live import Live, session_key
from console.people import EVERYBODY, Person
from console.supervisor import Stack
from streams import connections as limits
from streams.connections import Connections, Limits, fitting
from streams.settings import Settings
from tests.support import PATIENCE_SECONDS, until

LONG = 3600.0
ROOMY = Limits(connections=1000, per_address=1000, header_seconds=LONG, body_seconds=LONG, write_seconds=LONG)
HALF = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
WHOLE = HALF + b"\r\n"
Reply = tuple[int, dict[str, str], bytes]


class Client:
    """One connection: sends bytes, reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> Reply:
        """The next answer. Raises IncompleteReadError when the connection was closed before it."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return int(first.split()[1]), headers, body

    async def ask(self, data: bytes) -> Reply:
        await self.send(data)
        return await self.reply()

    async def rest(self) -> bytes:
        """What comes until the other side closes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


class Site:
    """A server with clients. `held`: requests of /hold that are being answered; `release` answers them."""

    def __init__(self, port: int, connections: Connections | None, closed: list[str]) -> None:
        self.port, self.connections, self.closed = port, connections, closed
        self.held, self.release = 0, asyncio.Event()
        self.clients: list[Client] = []
        self.live = Live(most=8, per_session=5)
        self.asked = 0
        self.stop: Callable[[], Awaitable[None]]

    async def client(self, data: bytes = b"") -> Client:
        found = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(found)
        await found.send(data)
        return found

    async def hold(self, count: int) -> list[Client]:
        """Clients with a request each that is being answered."""
        wanted = self.held + count
        found = [await self.client(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(count)]
        await until(lambda: self.held == wanted)
        return found

    def close(self) -> None:
        self.release.set()
        for one in self.clients:
            one.writer.transport.abort()


def routes(site: Callable[[], Site]) -> FastAPI:
    app = FastAPI()
    install(app)
    app.add_middleware(Failsafe)

    @app.get("/healthz")
    async def healthz() -> Any:
        return {"status": "ok"}

    @app.get("/hold")
    async def hold() -> Any:
        site().held += 1
        await site().release.wait()
        return {}

    @app.post("/body")
    async def body(request: Request) -> Any:
        return {"bytes": len(await read_body(request))}

    @app.get("/fails")
    async def fails() -> Any:
        raise ZeroDivisionError

    @app.get("/large")
    async def large() -> Any:
        return Response(b"x" * (64 << 20))

    @app.get("/live/{key}")
    async def live(key: str, request: Request) -> Any:
        async def fetch() -> dict[str, Any]:
            site().asked += 1
            if key == "fails":
                raise ZeroDivisionError
            return {"n": site().asked, "text": "x" * (1 << 20) if key == "large" else ""}

        return site().live.respond(key, fetch, request, {}, interval_seconds=0.01)

    @app.get("/breaks-off")
    async def breaks_off() -> Any:
        async def parts() -> AsyncIterator[bytes]:
            yield b"a part"
            raise ApiError(503, "calculating", "no more of it at the moment")

        return StreamingResponse(parts())

    return app


@asynccontextmanager
async def console(limits: Limits = ROOMY, trusted: tuple[str, ...] = ()) -> AsyncIterator[Site]:
    """The console's server over an application of a few routes."""
    listener, closed = socket.create_server(("127.0.0.1", 0)), list[str]()
    connections = Connections(limits, trusted, closed.append)
    site = Site(listener.getsockname()[1], connections, closed)
    config = uvicorn.Config(
        routes(lambda: site), log_config=None, lifespan="off", http=servers.LimitedProtocol, ws="none",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = servers.Server(config, connections)
    serving = asyncio.create_task(server.serve([listener]))
    await until(lambda: server.started)

    async def stop() -> None:
        await site.live.end()
        server.should_exit = True
        await serving

    site.stop = stop
    try:
        yield site
    finally:
        site.close()
        await stop()


async def stream(site: Site, key: str = "a", cookie: str = "") -> Client:
    """A client that listens to live results, as whoever *cookie* says."""
    return await site.client(f"GET /live/{key} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n".encode())


async def status(client: Client) -> tuple[int, str]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        head = (await client.reader.readuntil(b"\r\n\r\n")).decode()
    return int(head.split()[1]), head.lower()


@asynccontextmanager
async def worker(**given: Any) -> AsyncIterator[Site]:
    """A worker's internal interface over no partitions."""
    listener = socket.create_server(("127.0.0.1", 0))
    site = Site(listener.getsockname()[1], None, [])

    async def wait() -> None:
        site.held += 1
        await site.release.wait()

    context = SimpleNamespace(now_ms=lambda: 1, partitions=4, topics={})
    partitions: Any = SimpleNamespace(
        context=context, active=dict, positions=dict, states=dict, stuck=dict
    )
    application = internal.application(partitions, lambda: True, lambda _topic, _partition: 0, None)

    async def hold(_: Any) -> Any:
        await wait()
        return internal.web.Response()

    application.router.add_get("/hold", hold)
    end = await internal.listen(application, listener, Settings.load(given, environ={}))
    try:
        yield site
    finally:
        site.close()
        await end()


Server = Callable[[], Any]
SHORT: dict[str, Server] = {
    "console": lambda: console(ROOMY._replace(header_seconds=0.05)),
    "worker": lambda: worker(http_header_seconds=0.05),
}


@pytest.mark.parametrize("server", SHORT.values(), ids=SHORT)
@pytest.mark.parametrize("sent", [b"", b"G", HALF, WHOLE + HALF], ids=["nothing", "a letter", "half", "a second half"])
async def test_a_request_whose_headers_do_not_come_is_closed(server: Server, sent: bytes) -> None:
    async with server() as site:
        for client in [await site.client(sent) for _ in range(50)]:
            if sent.startswith(WHOLE):
                assert (await client.reply())[0] == 200
            assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_does_not_come_is_closed_and_one_that_comes_is_waited_for() -> None:
    async with console(ROOMY._replace(body_seconds=0.05)) as site:
        head = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        for sent in (head % 10, head % 10 + b"12345", head.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") + b"5\r\n123"):
            client = await site.client(sent)
            status, headers, body = await client.reply()
            assert (status, headers["connection"], json.loads(body)["error"]["code"]) == (408, "close", "request_timeout")
            assert await client.rest() == b""
        assert site.closed == ["body"] * 3
        # 4 MiB are there, which may have taken a thousand seconds: the last byte is waited for far longer than the first
        patient = await site.client(head % ((4 << 20) + 1) + b" " * (4 << 20))
        impatient = await site.client(head % 10)
        assert (await impatient.reply())[0] == 408
        status, _, body = await patient.ask(b" ")
        assert (status, json.loads(body)) == (200, {"bytes": (4 << 20) + 1})


async def test_a_body_that_nobody_reads_ends_as_well() -> None:
    async with console(ROOMY._replace(body_seconds=0.05)) as site:
        client = await site.client(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert (await client.reply())[0] == 404
        assert await client.rest() == b""
        assert site.closed == ["body"]


async def test_an_answer_that_nobody_reads_ends() -> None:
    async with console(ROOMY._replace(write_seconds=0.05)) as site:
        client = await site.client(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        assert site.connections is not None
        await until(lambda: site.closed == ["answer"])
        assert len(await client.rest()) < 64 << 20
        await until(lambda: not len(site.connections))


FEW: dict[str, Server] = {
    "console": lambda: console(ROOMY._replace(connections=20)),
    "worker": lambda: worker(http_connections=20, http_connections_per_address=1000, http_header_seconds=600),
}


@pytest.mark.parametrize("server", FEW.values(), ids=FEW)
async def test_who_waits_gives_way_and_who_is_answered_does_not(server: Server) -> None:
    async with server() as site:
        (answered,) = await site.hold(1)
        strangers = [await site.client(HALF) for _ in range(100)]
        for _ in range(30):
            assert (await (await site.client()).ask(WHOLE))[0] == 200
        assert [await one.rest() for one in strangers] == [b""] * len(strangers)
        site.release.set()
        assert (await answered.reply())[0] == 200


@pytest.mark.parametrize("server", FEW.values(), ids=FEW)
async def test_at_the_limit_orchestrators_are_answered(server: Server) -> None:
    async with server() as site:
        await site.hold(20)
        strangers = [await site.client(HALF) for _ in range(100)]
        for path in (b"/healthz", b"/healthz", b"/hold", b"/hold"):
            client = await site.client()
            status, headers, _ = await client.ask(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (status, headers["connection"]) == ((200, "close") if path == b"/healthz" else (503, "close"))
            assert path == b"/healthz" or int(headers["retry-after"]) > 0
            assert await client.rest() == b""
        assert [await one.rest() for one in strangers[:80]] == [b""] * 80  # who waits longest on the few further ones


ADDRESS: dict[str, Server] = {
    "console": lambda: console(ROOMY._replace(per_address=5)),
    "worker": lambda: worker(http_connections_per_address=5, http_header_seconds=600),
}


@pytest.mark.parametrize("server", ADDRESS.values(), ids=ADDRESS)
async def test_one_address_has_a_limit_of_its_own(server: Server) -> None:
    async with server() as site:
        await site.hold(4)
        strangers = [await site.client(HALF) for _ in range(10)]
        await site.hold(1)
        assert [await one.rest() for one in strangers] == [b""] * 10
        status, headers, _ = await (await site.client()).ask(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, int(headers["retry-after"]) > 0) == (429, True)
        assert (await (await site.client()).ask(WHOLE))[0] == 200


async def test_a_proxy_that_is_trusted_has_no_limit_of_its_own() -> None:
    async with console(ROOMY._replace(per_address=5), trusted=("127.0.0.0/8",)) as site:
        await site.hold(8)
        assert (await (await site.client()).ask(WHOLE))[0] == 200


@pytest.mark.parametrize(("address", "other", "same"), [("10.0.0.1", "10.0.0.2", False), ("2001:db8::1", "2001:db8::2", True),
                                                        ("2001:db8::1", "2001:db8:0:1::1", False), ("::ffff:10.0.0.1", "10.0.0.1", True)])
def test_addresses_that_one_host_has_count_together(address: str, other: str, same: bool) -> None:
    assert (limits.shared(address) == limits.shared(other)) is same


async def test_without_descriptors_one_gives_way_and_the_log_says_so_once_a_second(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(limits, "LOG_SECONDS", LONG)
    async with console() as site:
        strangers = [await site.client(HALF) for _ in range(3)]
        loop, errors = asyncio.get_running_loop(), [OSError(errno.EMFILE, "Too many open files")] * 200
        accept = loop.sock_accept

        async def failing(listener: socket.socket) -> Any:
            if errors:
                raise errors.pop()
            return await accept(listener)

        monkeypatch.setattr(loop, "sock_accept", failing)
        await site.client()  # the accept that is under way
        assert (await (await site.client()).ask(WHOLE))[0] == 200
        assert [await one.rest() for one in strangers] == [b""] * 3
        assert site.closed.count("accept") == 200
        lines = [one for one in caplog.records if "cannot be accepted" in one.message]
        assert len(lines) == 1
        assert not lines[0].exc_info


@pytest.mark.parametrize(
    ("soft", "hard", "fits", "raised"),
    [(1024, 1024, 832, 1024), (1024, 4096, 1000, 1192), (100_000, 100_000, 1000, 100_000), (64, 64, 16, 64),
     (1024, resource.RLIM_INFINITY, 1000, 1192), (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1000, resource.RLIM_INFINITY)],
)  # fmt: skip
def test_as_many_connections_as_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, fits: int, raised: int
) -> None:
    now = [soft, hard]
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: tuple(now))
    monkeypatch.setattr(limits.resource, "setrlimit", lambda _, values: now.__setitem__(slice(None), values))
    assert (fitting(1000), now) == (fits, [raised, hard])


async def test_a_500_has_the_one_shape_is_logged_once_and_keeps_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with console() as site:
        client = await site.client()
        for _ in range(2):
            status, headers, body = await client.ask(b"GET /fails HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (status, "connection" in headers, json.loads(body)["error"]["code"]) == (500, False, "internal_error")
        assert (await client.ask(WHOLE))[0] == 200
        assert len([one for one in caplog.records if one.exc_info]) == 2


async def test_streams_are_limited_by_session_and_in_all() -> None:
    async with console() as site:
        first = await asyncio.gather(*(stream(site, str(k)) for k in range(20)))
        answers = [await status(one) for one in first]
        assert Counter(code for code, _ in answers) == {200: 5, 429: 15}, "though all of them came at once"
        assert all("retry-after: 5" in head for code, head in answers if code == 429)
        for _ in range(3):
            site.live.enter("another session")
        with pytest.raises(ApiError) as refused:
            site.live.enter("a third session")
        assert (refused.value.status, refused.value.code) == (503, "too_many_streams")
        for one, (code, _) in zip(first, answers, strict=True):
            if code == 200:
                one.writer.transport.abort()
        await until(lambda: site.live.streams == 3)
        assert (await status(await stream(site)))[0] == 200


@pytest.mark.parametrize(
    ("person", "headers", "key"),
    [
        (None, [], "address 10.0.0.1"),
        (EVERYBODY, [(b"cookie", b"waypost_session=mine")], "address 10.0.0.1"),
        (Person("ada", "viewer"), [(b"cookie", b"waypost_session=mine")], "session mine"),
        (Person("ci", "viewer"), [(b"authorization", b"Bearer x"), (b"cookie", b"waypost_session=mine")], "token ci"),
    ],
)
def test_what_a_stream_is_counted_by(person: Person | None, headers: list[tuple[bytes, bytes]], key: str) -> None:
    scope = {"type": "http", "headers": headers, "client": ("10.0.0.1", 1), "state": {"person": person, "session": "mine"}}
    assert session_key(Request(scope)) == key


async def test_streams_of_one_thing_share_its_answers_whoever_leaves() -> None:
    live, asked, release = Live(5, 5), 0, asyncio.Event()

    async def fetch() -> int:
        nonlocal asked
        asked += 1
        await release.wait()
        return 7

    waiting = [asyncio.create_task(live.shared("a", fetch)) for _ in range(5)]
    await until(lambda: asked == 1)
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    release.set()
    assert await asyncio.gather(*waiting[1:]) == [7] * 4
    assert asked == 1


def test_many_pollers_ask_less_often() -> None:
    live = Live(5, 5)
    assert live.pause_seconds(0.25) == 0.25
    live._feeds = dict.fromkeys(range(1000))  # type: ignore[arg-type]
    assert live.pause_seconds(0.25) == 5.0


async def test_a_stream_whose_question_fails_says_so_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with console() as site:
        client = await stream(site, "fails")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await client.reader.readuntil(b"event: unavailable")
            assert b"internal_error" in await client.reader.readuntil(b"\n\n")
        await until(lambda: site.asked > 5)
        assert len([one for one in caplog.records if one.exc_info]) == 1


async def test_a_stop_ends_streams_and_requests_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with console() as site:
        listening, idle, half = await stream(site), await site.client(), await site.client(HALF)
        assert (await status(listening))[0] == 200
        body = await site.client(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        (held,) = await site.hold(1)
        deaf = await stream(site, "large")  # nobody reads it
        await until(lambda: site.live.streams == 2)
        await site.stop()
        ends = [await one.rest() for one in (listening, idle, half, body, held, deaf)]
        assert ends[0].endswith(b"0\r\n\r\n"), "a stream ends as it should"
    assert not [one for one in caplog.records if one.exc_info], caplog.text
    assert "Traceback" not in caplog.text


async def test_an_answer_that_breaks_off_is_seen_to_and_leaves_no_trace(caplog: pytest.LogCaptureFixture) -> None:
    async with console() as site:
        client = await site.client(b"GET /breaks-off HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not (await client.rest()).endswith(b"0\r\n\r\n"), "an end would say that this was all"
        assert not [one for one in caplog.records if one.exc_info]
        assert "no more of it at the moment" in caplog.text


async def test_what_is_no_request_is_answered_in_the_one_shape() -> None:
    async with console() as site:
        wrong = (
            b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", WHOLE[:-2] + b"a" * 70_000,
            HALF + b"Host: y\r\n\r\n", HALF + b"Content-Length: x\r\n\r\n", HALF + b"a\x00b: c\r\n\r\n",
        )  # fmt: skip
        for sent in wrong:
            status, headers, body = await (await site.client(sent)).reply()
            assert (status, headers["connection"], json.loads(body)["error"]["code"]) == (400, "close", "bad_request")


NOWHERE = ("203.0.113.7", "no-such-host.invalid", "a..b", "x" * 70, "[", "256.1.1.1", "2001:db8::1")


@pytest.mark.parametrize("host", NOWHERE)
def test_a_host_that_is_not_of_this_machine_is_named(host: str) -> None:
    with pytest.raises(limits.CannotListen, match=r"the console cannot listen on .*; set console_host to an address of this"):
        limits.bound(host, 0, "console")


def test_a_worker_whose_port_is_taken_ends_with_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_worker(Settings.load({"worker_port": port, "broker": "127.0.0.1:1"}, environ={})) == 1
    (line,) = [one for one in caplog.records if one.levelno == logging.CRITICAL]
    assert f"port {port} (Address already in use); choose another with --worker-port" in line.message
    assert not line.exc_info


async def test_up_says_at_once_which_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name, flag in (("console", "--port"), ("worker", "--worker-port")):  # before anything else: there is no broker
            given = {f"{name}_port": port, "broker": "127.0.0.1:1", "data_dir": tmp_path}
            if name == "worker":
                given["console_port"] = 0
            with pytest.raises(servers.CannotStart, match=f"the {name} cannot .* {port} .*{flag}"):
                await Stack(Settings.load(given, environ={}), lambda _: None).__aenter__()


async def test_up_does_not_start_a_worker_that_everybody_could_ask(tmp_path: Path) -> None:
    given = {"worker_host": "0.0.0.0", "console_port": 0, "broker": "127.0.0.1:1", "data_dir": tmp_path}
    with pytest.raises(servers.CannotStart, match="internal_secret"):
        await Stack(Settings.load(given, environ={}), lambda _: None).__aenter__()


async def test_questions_to_a_worker_that_are_none_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with worker() as site:
        for query in ("results", "results?journey=x&version=y", "groups", "list?journey=x&limit=-", "list?journey=x&after=zz", "list",
                      "contact", "checksums", "checksums?partition=x"):
            client = await site.client(f"GET /internal/{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await client.reply())[0] == 400
        for sent in (b"x\r\n\r\n", HALF + b"Transfer-Encoding: x\r\n\r\n", b"GET / x\r\n\r\n", WHOLE + b"[\x00]\r\n\r\n",
                     HALF + b"Expect: \x80\r\n\r\n", b"GET /internal/contact?id=%ed%a0%80 HTTP/1.1\r\nHost: x\r\nExpect: \xff\r\n\r\n"):
            answers = await (await site.client(sent)).rest()
            assert b" 400 Bad Request" in answers
    assert not caplog.records, "nor do strangers fill the log with traces"


