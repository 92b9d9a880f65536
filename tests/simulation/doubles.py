"""Doubles of what surrounds the decision code: an event loop without clock, a ledger in memory. They decide nothing by chance; the cluster does."""

from __future__ import annotations

import asyncio
import contextvars
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from state.ledger import prefix_end


class Loop(asyncio.AbstractEventLoop):
    """Runs what is ready, in order, until nothing is. Timers wait until they are fired by hand."""

    def __init__(self) -> None:
        self._ready: deque[asyncio.Handle] = deque()
        self.timers: list[asyncio.TimerHandle] = []
        self.errors: list[dict[str, Any]] = []

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(delay, callback, args, self, context)
        self.timers.append(handle)
        return handle

    def time(self) -> float:
        return 0.0

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **kwargs: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if handle in self.timers:
            self.timers.remove(handle)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def run(self) -> None:
        """Runs until nothing is ready."""
        ready = self._ready
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            while ready:
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            asyncio._set_running_loop(before)

    def finish(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """The result of *coro*, which must need nothing from outside."""
        task = self.create_task(coro)
        self.run()
        assert task.done(), f"{coro} waits for something"
        return task.result()

    def fire(self, index: int) -> None:
        """Runs one timer."""
        self._ready.append(self.timers.pop(index))
        self.run()


class Disk:
    """What outlives processes: the content of each ledger by its path."""

    def __init__(self) -> None:
        self.ledgers: dict[str, dict[bytes, bytes]] = {}


class MemoryLedger:
    """As `state.ledger.Ledger`; *disk* stands where the memory budget does."""

    emptied = None

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self._data = disk.ledgers.setdefault(str(path), {})
        self._keys: list[bytes] | None = None  # sorted, made when needed

    def get(self, key: Any) -> Any:
        if isinstance(key, list):
            return self.get_many(key)
        return self._data.get(key)

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        return [self._data.get(key) for key in keys]

    def write(
        self, changes: Iterable[tuple[bytes, bytes | None]], drop: Iterable[tuple[bytes, bytes]] = (), records: Mapping[bytes, bytes | None] = {}
    ) -> None:
        for start, end in drop:
            for key in [k for k in self._data if start <= k < end]:
                del self._data[key]
        for key, value in (*records.items(), *changes):
            assert isinstance(key, bytes), "keys are bytes"
            assert value is None or isinstance(value, bytes), "values are bytes"
            if value is None:
                self._data.pop(key, None)
            else:
                self._data[key] = value
        self._keys = None

    def _sorted(self) -> list[bytes]:
        if self._keys is None:
            self._keys = sorted(self._data)
        return self._keys

    def scan(self, prefix: bytes, after: bytes | None = None, limit: int | None = None) -> Iterator[tuple[bytes, bytes]]:
        keys = self._sorted()
        start = bisect_left(keys, prefix)
        if after is not None:
            start = max(start, bisect_right(keys, after))
        end = bisect_left(keys, prefix_end(prefix))
        found = [(key, self._data[key]) for key in keys[start:end]]
        return iter(found if limit is None else found[: max(0, limit)])

    def scan_back(self, prefix: bytes, before: bytes | None, limit: int) -> Iterator[tuple[bytes, bytes]]:
        found = [entry for entry in self.scan(prefix) if before is None or entry[0] < before]
        return iter(found[::-1][:limit])

    def last(self, prefix: bytes) -> bytes | None:
        keys = self._sorted()
        i = bisect_left(keys, prefix_end(prefix)) - 1
        return keys[i] if i >= 0 and keys[i].startswith(prefix) else None

    def size_bytes(self) -> int:
        return sum(len(k) + len(v) for k, v in self._data.items())

    def close(self) -> None:
        self._keys = None
