"""Connections: limits of an HTTP server: how many it has at once, in all and by address, and who gives way. Knows no HTTP.

A connection that waits for its client (idle, or with a request that is not complete) gives way to a new one; one that is being answered does not.
So strangers who hold connections keep nobody out. Where every connection is being answered, further ones are *restricted*: a few are accepted, and
the server answers them only what orchestrators ask.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from .settings import Settings

log = logging.getLogger(__name__)

WORKER_CONNECTIONS = 128
"""At most so many at a worker, which only consoles, Prometheus and orchestrators ask."""
OTHER_DESCRIPTORS = 192
"""Open files that a process needs beside the connections: the broker, workers, logs, a worker's RocksDB."""
FEWEST = 16
LOG_SECONDS = 1.0
RETRY_SECONDS = 0.05
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
IN_ALL, ADDRESS = "connections", "connections_per_address"
"""Why a connection is restricted, and why one had to give way."""


class Limits(NamedTuple):
    """What an HTTP server allows. `reserve`: restricted connections at once. `write_seconds`: how long a client may not read its answer."""

    connections: int
    per_address: int
    header_seconds: float
    body_seconds: float
    reserve: int = 16
    write_seconds: float = 60.0


class Shedable(Protocol):
    """A connection, as its server's protocol implements it."""

    def shed(self) -> None:
        """Close at once, whatever is under way."""


class Connections:
    """All connections of one server. *trusted*: networks without a limit by address. *closed* is called with the reason of each early close."""

    def __init__(
        self, limits: Limits, trusted: Iterable[str] = (), closed: Callable[[str], None] = lambda _: None
    ) -> None:
        self.limits = limits
        self.closed = closed
        self._trusted = [ipaddress.ip_network(one) for one in trusted]
        self._open: dict[Shedable, str] = {}
        self._restricted: dict[Shedable, None] = {}
        self._waiting: dict[str, dict[Shedable, None]] = {}  # by address, who waits for longest first
        self._counts: Counter[str] = Counter()
        self._logged_at = float("-inf")
        self._suppressed = 0

    def __len__(self) -> int:
        return len(self._open) + len(self._restricted)

    def admit(self, connection: Shedable, address: str) -> str | None:
        """Register *connection*, which waits for its first request. Return None, or why it is restricted."""
        reason, trusted = None, self._is_trusted(address)
        address = shared(address)
        if self._counts[address] >= self.limits.per_address and not trusted:
            reason = None if self._give_way(address, ADDRESS) else ADDRESS
        if reason is None and len(self._open) >= self.limits.connections:
            reason = None if self._give_way(self._largest(), IN_ALL) else IN_ALL
        if reason is None:
            self._open[connection] = address
            self._counts[address] += 1
            self.waits(connection)
        else:
            while len(self._restricted) >= self.limits.reserve:
                oldest = next(iter(self._restricted))
                self.leave(oldest)
                self.closed(reason)
                oldest.shed()
            self._restricted[connection] = None
        return reason

    def waits(self, connection: Shedable) -> None:
        """Note that *connection* waits for its client: it may have to give way."""
        address = self._open.get(connection)
        if address is not None:
            self._waiting.setdefault(address, {})[connection] = None

    def works(self, connection: Shedable) -> None:
        """Note that *connection* has a request that is being answered: it does not give way."""
        address = self._open.get(connection)
        if address is not None and connection in (waiting := self._waiting.get(address, {})):
            del waiting[connection]
            if not waiting:
                del self._waiting[address]

    def leave(self, connection: Shedable) -> None:
        """Forget *connection*, which is closed. Doing so again changes nothing."""
        self.works(connection)
        self._restricted.pop(connection, None)
        address = self._open.pop(connection, None)
        if address is not None:
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]

    def not_accepted(self, error: OSError) -> None:
        """Handle an error of accept: where descriptors or memory lack, one connection gives way. Logs once a second."""
        if error.errno in EXHAUSTED:
            self._give_way(self._largest(), IN_ALL)
        self.closed("accept")
        now = asyncio.get_running_loop().time()
        if now - self._logged_at < LOG_SECONDS:
            self._suppressed += 1
            return
        more = f"; {self._suppressed} more such errors since the last line" if self._suppressed else ""
        log.error("a connection cannot be accepted: %s; %d are open%s", error, len(self), more)
        self._logged_at, self._suppressed = now, 0

    def _largest(self) -> str | None:
        """Return the address with the most connections that wait."""
        return max(self._waiting, key=lambda address: len(self._waiting[address]), default=None)

    def _give_way(self, address: str | None, reason: str) -> bool:
        """Close the connection of *address* that waits for longest. Return False when none waits."""
        waiting = self._waiting.get(address) if address is not None else None
        if not waiting:
            return False
        oldest = next(iter(waiting))
        self.leave(oldest)
        self.closed(reason)
        oldest.shed()
        return True

    def _is_trusted(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._trusted)


class Acceptor:
    """Accepts the connections of *listener*, one after the other, each with a protocol of *factory*.

    asyncio's own server accepts as many as its backlog at once, before any of them can be refused; without descriptors left it logs a stack
    trace for each.
    """

    def __init__(
        self, listener: socket.socket, factory: Callable[[], asyncio.Protocol], connections: Connections
    ) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._factory = factory
        self._connections = connections
        self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Stop accepting, close the listener."""
        self._task.cancel()
        self._listener.close()

    async def wait_closed(self) -> None:
        """Wait until nothing is accepted any more."""
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if self._listener.fileno() < 0:
                    return
                self._connections.not_accepted(error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                await loop.connect_accepted_socket(self._factory, accepted)
            except Exception:
                accepted.close()
                log.exception("a connection could not be taken")


class CannotListen(RuntimeError):
    """An address cannot be listened on; the message says which, why, and what to change."""


def bound(host: str, port: int, name: str) -> socket.socket:
    """Return a socket that listens on *host* and *port*, of the settings `<name>_host` and `<name>_port`. Raises `CannotListen`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, UnicodeError) as error:  # a name with empty or long labels is a UnicodeError
        number = (error.errno or 0) if isinstance(error, OSError) else 0  # negative: of name resolution
        taken = number in (errno.EADDRINUSE, errno.EACCES)
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or "it is not a host name"
        flag = "--port" if name == "console" else f"--{name}-port"
        change = f"choose another with {flag}" if taken else f"set {name}_host to an address of this machine"
        raise CannotListen(f"the {name} cannot listen on {host} port {port} ({reason}); {change}") from None


def limits(settings: Settings, most: int | None = None) -> Limits:
    """Return what *settings* allow, at most *most* connections, and as many as this process may have open files."""
    wanted = settings.http_connections if most is None else min(settings.http_connections, most)
    return Limits(
        fitting(wanted), settings.http_connections_per_address, settings.http_header_seconds, settings.http_body_seconds
    )


def fitting(wanted: int) -> int:
    """Raise this process's soft limit of open files as *wanted* connections need it; return how many fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fits = wanted if soft == resource.RLIM_INFINITY else max(FEWEST, min(wanted, soft - OTHER_DESCRIPTORS))
    if fits < wanted:
        log.warning("%d connections at most, not %d: this process may have %d open files", fits, wanted, soft)
    return fits


def shared(address: str) -> str:
    """Return what connections are counted by: an IPv4 address, or the /64 of an IPv6 address, which one host has to itself."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))


def peer(transport: Any) -> str:
    """Return the address of the other end of *transport*; empty where there is none."""
    name = transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) and name else ""
