"""Supervisor: everything in one command: broker (unless there is one), topics, a worker, the console. Starts, watches, ends; plays no data.

Children end with this process, however it ends (streams.guarded). A worker that dies is started again, with growing waits.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TextIO

from rich.console import Console

from streams import topics
from streams.brokers import BrokerError, EmbeddedBroker
from streams.connections import CannotListen, bound
from streams.guarded import GuardedProcess
from streams.settings import Settings

from .guard import is_loopback
from .server import CannotStart, listen, serve

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
STEADY_SECONDS = 60.0  # a worker that lived so long starts again at once
START_SECONDS = 120.0
Say = Callable[[str], None]


class Stack:
    """A running Waypost, as an async context manager. `url`: of the API. `settings`: those in force, with the broker's address.

    Raises `CannotStart`, `BrokerError` and `TopicsError` with sentences that say why and the way out.
    """

    def __init__(self, settings: Settings, say: Say, *, any_port: bool = False) -> None:
        self.settings = settings
        self.url = ""
        self.broker_kind = "kafka" if settings.broker else "embedded"
        self._say = say
        self._any_port = any_port
        self._dir = settings.data_dir.absolute()
        self._lock: TextIO | None = None
        self._broker: EmbeddedBroker | None = None
        self._worker: GuardedProcess | None = None
        self._recalculator: GuardedProcess | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._stop = asyncio.Event()
        self.broken: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        """Resolves to a sentence when it cannot go on."""

    @property
    def worker_log(self) -> Path:
        return self._dir / "worker.log"

    @property
    def recalculator_log(self) -> Path:
        return self._dir / "recalculator.log"

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    # ------------------------------------------------------------------ start and end

    async def _start(self) -> None:
        self._take_directory()
        listener, self.url = self._listen()  # before anything is started: what cannot be listened on ends it at once
        port = self._worker_port()
        if self.broker_kind == "embedded":
            self._say("starting the embedded broker")
            self._dir = self._dir / "embedded"
            shutil.rmtree(self._dir, ignore_errors=True)  # of a broker whose memory is gone
            self._dir.mkdir(parents=True)
            self._broker = EmbeddedBroker(self._dir)
            bootstrap = await asyncio.to_thread(self._broker.start)
            self.settings = self.settings.replaced("embedded broker", broker=bootstrap, data_dir=self._dir)
        self._say("making the topics")
        await asyncio.to_thread(topics.provision, self.settings)
        host = f"[{self.settings.worker_host}]" if ":" in self.settings.worker_host else self.settings.worker_host
        worker_url = self.settings.worker_advertised_url or f"http://{host}:{port}"
        self.settings = self.settings.replaced("this command", worker_port=port, workers=(worker_url,), console_port=listener.getsockname()[1])
        self._worker = self._started("worker", self.worker_log)
        self._recalculator = self._started("recalculator", self.recalculator_log)
        self._tasks.append(asyncio.create_task(self._watch()))
        self._say("starting the console")
        answering = asyncio.Event()
        serving = asyncio.create_task(
            serve(self.settings, self._stop, listener=listener, started=lambda _: answering.set())
        )
        self._tasks.append(serving)
        while not answering.is_set() and not serving.done():
            await asyncio.sleep(0.02)
        if serving.done():
            serving.result()
        serving.add_done_callback(self._served)
        self._say("waiting for the worker to take its partitions")
        await self._ready(worker_url)

    def _listen(self) -> tuple[Any, str]:
        try:
            return listen(self.settings)
        except CannotStart:
            if not self._any_port or self.settings.origin_of("console_port") != "default":
                raise
            return listen(self.settings.replaced("this command", console_port=0))

    def _worker_port(self) -> int:
        """Return a port on which the worker will be able to listen. Raises `CannotStart`."""
        host = self.settings.worker_host
        if self.settings.internal_secret is None and not is_loopback(host):
            raise CannotStart(f"the worker would listen on {host}, for everybody: set internal_secret, or worker_host to 127.0.0.1")
        try:
            with bound(host, self.settings.worker_port, "worker") as probe:
                return int(probe.getsockname()[1])
        except CannotListen as error:
            raise CannotStart(str(error)) from None

    def _take_directory(self) -> None:
        self._dir.mkdir(parents=True, exist_ok=True)
        self._lock = (self._dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CannotStart(f"another waypost works in {self._dir}; end it, or choose another directory with --data") from None

    def _started(self, command: str, log_file: Path) -> GuardedProcess:
        environ = {**os.environ, **self.settings.environment()}
        environ.pop("WAYPOST_CONFIG", None)  # all it says is in the environment already
        return GuardedProcess([sys.executable, "-m", "console", command], log=log_file, env=environ)

    async def _ready(self, worker_url: str) -> None:
        import aiohttp

        until = time.monotonic() + START_SECONDS
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while time.monotonic() < until:
                if self.broken.done():
                    raise CannotStart(self.broken.result() or "")
                try:
                    async with session.get(worker_url + "/readyz") as response:
                        if response.status == 200:
                            return
                except (aiohttp.ClientError, TimeoutError, OSError):
                    pass  # not listening yet
                await asyncio.sleep(0.1)
        raise CannotStart(f"the worker did not take its partitions within {START_SECONDS:g} s; its log, {self.worker_log}, says why")

    async def _end(self) -> None:
        self._stop.set()
        for task in self._tasks[1:]:  # the console first: it asks the worker
            await asyncio.wait([task], timeout=10)
        for task in self._tasks[:1]:
            task.cancel()
            await asyncio.wait([task])
        for child in (self._recalculator, self._worker):
            if child is not None:
                await asyncio.to_thread(child.stop)
        if self._broker is not None:
            await asyncio.to_thread(self._broker.stop)
        if self._lock is not None:
            self._lock.close()

    # ------------------------------------------------------------------ watching

    def _served(self, serving: asyncio.Task[None]) -> None:
        if not self._stop.is_set() and not self.broken.done():
            error = None if serving.cancelled() else serving.exception()
            self.broken.set_result(f"the console ended: {error or 'without a reason'}")

    async def _watch(self) -> None:
        """Starts the worker and the recalculator again when they die; without its broker nothing can go on."""
        waits: dict[str, tuple[float, float]] = {}  # command -> (how long to wait next time, when it was started)
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._broker is not None and not self._broker.alive:
                if not self.broken.done():
                    self.broken.set_result(f"the embedded broker ended, and all it held with it; its log is {self._broker.log}")
                return
            for command, child in (("worker", self._worker), ("recalculator", self._recalculator)):
                assert child is not None
                wait, born = waits.setdefault(command, (FIRST_WAIT_SECONDS, time.monotonic()))
                if child.alive:
                    continue
                if time.monotonic() - born > STEADY_SECONDS:
                    wait = FIRST_WAIT_SECONDS
                ended = "the %s ended with exit code %s; starting it again in %g s. Its log ends:\n%s"
                log.error(ended, command, child.exit_code, wait, child.tail(5))
                await asyncio.to_thread(child.stop)
                await asyncio.sleep(wait)
                waits[command] = min(wait * 2, LONGEST_WAIT_SECONDS), time.monotonic()
                if command == "worker":
                    self._worker = self._started(command, self.worker_log)
                else:
                    self._recalculator = self._started(command, self.recalculator_log)


async def until_told(stack: Stack) -> str | None:
    """Waits for Ctrl-C or SIGTERM (None), or until the stack cannot go on (the reason)."""
    told: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def tell() -> None:
        if not told.done():
            told.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, tell)
    done, _ = await asyncio.wait((told, stack.broken), return_when=asyncio.FIRST_COMPLETED)
    return done.pop().result()


def run_up(settings: Settings, screen: Console) -> str | None:
    """`waypost up`: runs until told to end. Returns None, or the sentence that says why it could not go on."""

    async def main() -> str | None:
        told = asyncio.Event()
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def end_early() -> None:
            told.set()
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end_early)
        try:
            with screen.status("starting") as status:
                stack = Stack(settings, lambda text: status.update(text + " …"))
                await stack.__aenter__()
        except asyncio.CancelledError:
            if told.is_set():
                return None
            raise
        except (CannotStart, BrokerError, topics.TopicsError) as error:
            return str(error)
        try:
            announce(stack, screen)
            return await until_told(stack)
        finally:
            screen.print("ending …")
            await stack.__aexit__()

    return asyncio.run(main())


def announce(stack: Stack, screen: Console) -> None:
    """Says where everything is."""
    memory = " (embedded, in memory: what it holds goes when this ends)" if stack.broker_kind == "embedded" else ""
    screen.print("[bold]Waypost is up.[/bold]", soft_wrap=True)
    screen.print(f"  API     {stack.url}/api   (what it can do: {stack.url}/api/openapi.json)", soft_wrap=True)
    screen.print(f"  broker  {stack.settings.bootstrap}{memory}", soft_wrap=True)
    screen.print(f"  worker  {stack.settings.workers[0]}   log: {stack.worker_log}", soft_wrap=True)
    screen.print("Ctrl-C ends it.", soft_wrap=True)
