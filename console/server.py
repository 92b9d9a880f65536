"""Server: runs the HTTP API under uvicorn. Connects first, then listens; ends open streams before it ends itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable

import uvicorn
from aiokafka.errors import KafkaError
from uvicorn.server import ServerState

from agents import metrics
from streams.connections import Acceptor, CannotListen, Connections, bound, limits
from streams.reader import ReaderError
from streams.settings import Settings
from streams.supervision import unless_stopped

from .api import build
from .backend import Backend
from .errors import ApiError
from .guard import is_loopback
from .people import PeopleError
from .protocol import LimitedProtocol

log = logging.getLogger(__name__)

STOP_SECONDS = 3
IDLE_SECONDS = 75
"""So long a connection may rest: longer than clients and proxies keep one (most 60 s), else they ask on one that is being closed."""


class CannotStart(RuntimeError):
    """The console cannot run; the message says why."""


def listen(settings: Settings) -> tuple[socket.socket, str]:
    """The socket of the API, bound, and its URL. Raises `CannotStart`."""
    host = settings.console_host
    if settings.users_file is None and settings.oidc_issuer is None and not is_loopback(host):
        raise CannotStart(
            f"the console would listen on {host}, for everybody, and has no users: make a file of them with `waypost user add`, name it as "
            "users_file, set oidc_issuer, or listen on 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = bound(host, settings.console_port, "console")
    except CannotListen as error:
        raise CannotStart(str(error)) from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited; asyncio sets it only on sockets that it made itself
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    return listener, f"http://{shown}:{listener.getsockname()[1]}"


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    *,
    listener: socket.socket | None = None,
    started: Callable[[str], None] | None = None,
) -> None:
    """Serves until *stop*. *started* is called with the URL once it answers. Raises `CannotStart`."""
    if listener is None:
        listener, url = listen(settings)
    else:
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    backend = Backend(settings)
    try:
        try:
            if not await unless_stopped(backend.start(), stop):
                return
        except (KafkaError, ReaderError, ApiError, OSError) as error:
            raise CannotStart(f"the broker at {settings.bootstrap} cannot be used: {error}") from error
        try:
            app = build(backend)
        except PeopleError as error:
            raise CannotStart(str(error)) from None
        config = uvicorn.Config(
            app, log_config=None, lifespan="off", timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=STOP_SECONDS, server_header=False,
            http=LimitedProtocol, ws="none",
            access_log=False, proxy_headers=True, forwarded_allow_ips=list(settings.trusted_proxies),
        )
        closed = metrics.HTTP_CLOSED.labels
        connections = Connections(limits(settings), settings.trusted_proxies, lambda reason: closed(reason).inc())
        server = Server(config, connections)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        waiting = asyncio.create_task(stop.wait())
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if started is not None and server.started:
            started(url)
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        await backend.live.end()
        server.should_exit = True
        waiting.cancel()
        await serving
    finally:
        await backend.stop()


class Server(uvicorn.Server):
    """uvicorn's server within the limits of *connections*. Leaves signals to whoever runs it."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept from *sockets*, one connection after the other."""

        def protocol() -> LimitedProtocol:
            state = {"server_state": self.server_state, "app_state": {}}
            return LimitedProtocol(self._connections, config=self.config, **state)

        self.servers = [Acceptor(one, protocol, self._connections) for one in sockets or ()]  # type: ignore[misc]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests end for as long as the configuration says, then cut off those that are left.

        uvicorn's own cancels them with their connections open, and logs a stack trace for each.
        """
        for server in self.servers:
            server.close()
            await server.wait_closed()
        state = self.server_state
        for connection in list(state.connections):
            if not connection.transport.is_closing():
                connection.shutdown()
        await _emptied(state, self.config.timeout_graceful_shutdown or 0)
        if state.connections:
            log.info("%d requests are cut off", len(state.tasks))
        for connection in list(state.connections):
            connection.transport.abort()
        for task in list(state.tasks):
            task.cancel()
        await _emptied(state, 1.0)

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


async def _emptied(state: ServerState, seconds: float) -> None:
    """Wait until every request and connection of *state* has ended, at most *seconds*."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while state.connections or state.tasks:
                await asyncio.sleep(0.02)


def run(settings: Settings) -> int:
    """`waypost console`: serves until SIGTERM or SIGINT. Returns the exit code."""

    async def main() -> int:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            await serve(settings, stop, started=lambda url: log.info("the API answers at %s/api", url))
        except CannotStart as error:
            log.critical("%s", error)
            return 1
        return 0

    return asyncio.run(main())
