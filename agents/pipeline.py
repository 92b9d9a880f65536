"""Pipeline: brings the decisions of one partition to the broker and to RocksDB, in the one safe order (design, section 6). Decides nothing.

Stage changes (and rejected records) | handoffs | changelog | RocksDB | done. Each step waits for the broker's acknowledgement before the next
begins, so that a crash anywhere repeats work and loses none; handoffs wait for stage changes, since the partition that joins speaks after us.
Decisions follow each other through the steps, one behind the other and never past.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import Any, Protocol

from . import metrics

log = logging.getLogger(__name__)

OutRecord = tuple[
    int | None, bytes | None, bytes | None, list[tuple[str, bytes]], int
]  # partition, key, value, headers, timestamp in ms
STEPS = ("changes", "handoffs", "changelog", "rocksdb", "done")


@dataclass(slots=True)
class Work:
    """One decision on its way. `commit` writes RocksDB and everything in memory that mirrors it; it gets the changelog offset, if there is one."""

    changes: list[OutRecord] = field(default_factory=list)
    rejected: list[OutRecord] = field(default_factory=list)
    again: Callable[[], list[OutRecord]] = list  # handoffs that ask for the truth of all that the changes speak of
    handoffs: list[OutRecord] = field(default_factory=list)
    records: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    commit: Callable[[int | None], None] = lambda _: None
    done: Callable[[], None] = lambda: None
    took_room: bool = True  # False for maintenance, which is rare and must not wait


class Outward(Protocol):
    """Sends records to a topic; the future resolves when all are acknowledged, in order for each partition."""

    async def send(self, topic: str, records: list[OutRecord]) -> Awaitable[Any]: ...

    def beside(self, run: Coroutine[Any, Any, None]) -> None:
        """Runs *run* to its end, whatever becomes of the partition."""
        ...


class Changelog(Protocol):
    """Sends records to the changelog of a partition; the future resolves to the last offset (None for no records)."""

    async def send(self, partition: int, items: list[tuple[bytes, bytes | None]]) -> Awaitable[int | None]: ...

    async def owned(self, partition: int) -> None:
        """Returns while this worker owns *partition*; raises when it does not any more."""
        ...

    def frozen(self, partition: int) -> bool:
        """Whether somebody else's records are in between: the offset written to RocksDB must not pass them."""
        ...


class Pipeline:
    """The steps of one partition, a task each. `put` waits while *depth* decisions are on their way; *failed* is called with what went wrong."""

    def __init__(
        self,
        partition: int,
        topics: dict[str, str],
        outward: Outward,
        changelog: Changelog,
        failed: Callable[[BaseException], None],
        step_done: Callable[[str, int], None] | None = None,
        depth: int = 6,
    ) -> None:
        self._partition = partition
        self._topics = topics
        self._outward = outward
        self._changelog = changelog
        self._failed = failed
        self._step_done = step_done
        self._depth = depth
        self._taken = 0
        self._waiting = 0
        self._on_their_way = 0
        self._moved_at = monotonic()
        self._freed = asyncio.Event()
        self._closed = False
        self._doubted: tuple[Work, asyncio.Future[None]] | None = None  # whose changes the broker may get too late, and their sending
        self._sent: deque[Work] = deque()  # in the changelog, not yet in RocksDB
        self._queues: list[asyncio.Queue[tuple[Work, Any]]] = [asyncio.Queue() for _ in range(4)]
        steps = (self._send_changes, self._send_handoffs, self._send_changelog, self._write)
        self._tasks = [asyncio.create_task(self._run(i, step)) for i, step in enumerate(steps)]

    async def room(self, behind: bool = False) -> bool:
        """Waits until a decision may be added; the caller must `add` one or give the room back with `spare`. False when closed meanwhile.

        *behind*: for work that lets the living pass: it begins when nothing is on its way and nobody waits.
        """
        if behind:
            await self._until(lambda: not self._waiting and self._taken == 0)
        else:
            self._waiting += 1
            try:
                await self._until(lambda: self._taken < self._depth)
            finally:
                self._waiting -= 1
        if self._closed:
            return False
        self._taken += 1
        return True

    def stuck_seconds(self) -> float:
        """For how long nothing has moved although something is on its way."""
        return monotonic() - self._moved_at if self._on_their_way else 0.0

    def spare(self) -> None:
        self._taken -= 1
        self._freed.set()

    def add(self, work: Work) -> None:
        """Puts a decision on its way. Its room was taken before, unless it says that it took none."""
        if not self._on_their_way:
            self._moved_at = monotonic()
        self._on_their_way += 1
        self._queues[0].put_nowait((work, None))

    def sent(self, key: bytes) -> tuple[bool, bytes | None]:
        """Whether *key* has a value that the changelog has and RocksDB has not yet, and that value."""
        for work in reversed(self._sent):
            for k, value in work.records:
                if k == key:
                    return True, value
        return False, None

    async def drain(self) -> None:
        """Waits until everything on its way is done."""
        await self._until(lambda: self._on_their_way == 0)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not self._closed and not holds():
            self._freed.clear()
            await self._freed.wait()

    async def close(self) -> None:
        """Drops what is on its way: it was not acknowledged, so it comes again."""
        self._closed = True
        self._freed.set()
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._doubted is not None:
            self._outward.beside(self._ask_again(*self._doubted))

    async def _run(self, i: int, step: Callable[[Work, Any], Awaitable[Any]]) -> None:
        queue, name = self._queues[i], STEPS[i]
        following = self._queues[i + 1] if i + 1 < len(self._queues) else None
        observe = metrics.STEP_SECONDS.labels(name).observe
        try:
            while True:
                work, carried = await queue.get()
                began = perf_counter()
                carried = await step(work, carried)
                self._moved_at = monotonic()
                observe(perf_counter() - began)
                if self._step_done is not None:
                    self._step_done(name, self._partition)
                if following is not None:
                    following.put_nowait((work, carried))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failed(error)

    async def _send_changes(self, work: Work, _: Any) -> None:
        if work.changes or work.rejected:
            await self._changelog.owned(self._partition)  # a worker that was stopped for long must not speak when it wakes
        if work.changes:
            sent = asyncio.ensure_future(self._say(work.changes))
            self._doubted = work, sent
            await asyncio.shield(sent)
            await self._changelog.owned(self._partition)  # or else the next owner may have spoken before
            self._doubted = None
        if work.rejected:
            await (await self._outward.send(self._topics["rejected"], work.rejected))

    async def _say(self, changes: list[OutRecord]) -> None:
        await (await self._outward.send(self._topics["stage-changes"], changes))

    async def _ask_again(self, work: Work, sent: asyncio.Future[None]) -> None:
        """The broker may get *work*'s changes behind what the next owner says: once it has them, it says the truth of their contacts again."""
        with contextlib.suppress(Exception):  # they may be there though no answer came
            await sent
        records = work.again()
        log.warning("partition %d: stage changes of %d contacts may have come late: their truth is asked for", self._partition, len(records))
        await (await self._outward.send(self._topics["handoffs"], records))

    async def _send_handoffs(self, work: Work, _: Any) -> None:
        if work.handoffs:
            await self._changelog.owned(self._partition)
            await (await self._outward.send(self._topics["handoffs"], work.handoffs))

    async def _send_changelog(self, work: Work, _: Any) -> int | None:
        if not work.records:
            return None
        offset = await (await self._changelog.send(self._partition, work.records))
        self._sent.append(work)
        return offset

    async def _write(self, work: Work, offset: int | None) -> None:
        work.commit(offset)
        if work.records:
            self._sent.popleft()
        if self._step_done is not None:
            self._step_done("committed", self._partition)
        work.done()
        self._on_their_way -= 1
        if work.took_room:
            self._taken -= 1
        self._freed.set()
