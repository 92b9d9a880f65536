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
_live, _background = map(metrics.WORK_SECONDS.labels, ("live", "background"))
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
    last: bool = True  # of a chunk
    size_bytes: int = 0  # about what it takes in memory
    behind: bool = False  # background work
    by_turn: bool = False  # background work that began although live work was there


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


class UnderWay:
    """The memory that the decisions of all partitions take while they are on their way. None begins while they take *limit* bytes."""

    def __init__(self, limit: int = 1 << 62) -> None:
        self.bytes = 0
        self._limit = limit
        self._waiting: set[asyncio.Event] = set()

    @property
    def full(self) -> bool:
        return self.bytes >= self._limit

    def wait(self, freed: asyncio.Event) -> None:
        """Set *freed* whenever there is less of it, from now on."""
        self._waiting.add(freed)

    def forget(self, freed: asyncio.Event) -> None:
        self._waiting.discard(freed)

    def free(self, size: int) -> None:
        self.bytes -= size
        for freed in self._waiting:
            freed.set()


class Turns:
    """Whose turn it is, background work's or that of what arrives (live), so that background work gets *share* of the time at least.

    While background work waits, each second of live work gives it a credit; background work that begins on its credit uses it up. What it gets while
    nothing arrives costs nothing.
    """

    def __init__(self, share: float) -> None:
        self._rate = share / (1 - share)
        self._credit_seconds = 0.0

    @property
    def owed(self) -> bool:
        """Whether background work is next."""
        return self._credit_seconds > 0

    def live(self, seconds: float) -> None:
        """Account for live work that was done while background work waited."""
        self._credit_seconds += self._rate * seconds

    def background(self, seconds: float) -> None:
        """Account for background work that was done although live work waited."""
        self._credit_seconds -= seconds

    def may_begin(self, behind: bool, live_waits: int, behind_waits: int, taken: int, depth: int) -> bool:
        """Return whether a decision may begin while *taken* of *depth* are on their way and so many wait to begin, itself included. *behind*: it is
        background work, which may always begin when nothing is on its way and no live work waits."""
        if behind:
            return (taken == 0 and not live_waits) or (self.owed and taken < depth)
        return taken < depth and not (self.owed and behind_waits)


class Pipeline:
    """The steps of one partition, a task each. `put` waits while *depth* decisions are on their way; *failed* is called with what went wrong.

    *turns* decides between background and live work; *under_way* is shared with other partitions.
    """

    def __init__(
        self,
        partition: int,
        topics: dict[str, str],
        outward: Outward,
        changelog: Changelog,
        failed: Callable[[BaseException], None],
        step_done: Callable[[str, int], None] | None = None,
        depth: int = 6,
        turns: Turns | None = None,
        under_way: UnderWay | None = None,
    ) -> None:
        self._partition = partition
        self._topics = topics
        self._outward = outward
        self._changelog = changelog
        self._failed = failed
        self._step_done = step_done
        self._depth = depth
        self._turns = turns or Turns(0.0)
        self._under_way = under_way or UnderWay()
        self._size_bytes = 0  # of those on their way
        self._taken = 0
        self._waiting = {False: 0, True: 0}  # by whether it is background work
        self._began = 0.0, False, False  # when room was last given, whether to background work, and whether that was because it was its turn
        self._on_their_way = 0
        self._moved_at = monotonic()
        self._freed = asyncio.Event()
        self._under_way.wait(self._freed)
        self._closed = False
        self._doubted: tuple[Work, asyncio.Future[None]] | None = None  # whose changes the broker may get too late, and their sending
        self._sent: deque[Work] = deque()  # in the changelog, not yet in RocksDB
        self._queues: list[asyncio.Queue[tuple[Work, Any]]] = [asyncio.Queue() for _ in range(4)]
        steps = (self._send_changes, self._send_handoffs, self._send_changelog, self._write)
        self._tasks = [asyncio.create_task(self._run(i, step)) for i, step in enumerate(steps)]

    async def room(self, behind: bool = False) -> bool:
        """Waits until a decision may be added; the caller must `add` one or give the room back with `spare`. False when closed meanwhile.

        *behind*: for background work, which begins when nothing is on its way and nobody waits, or when it is its turn.
        """
        self._waiting[behind] += 1
        try:
            await self._until(lambda: self._may_begin(behind))
        finally:
            self._waiting[behind] -= 1
        if self._closed:
            return False
        self._began = perf_counter(), behind, behind and bool(self._taken or self._waiting[False])
        self._taken += 1
        if behind:
            self._freed.set()  # live work may have waited for its turn
        return True

    def _may_begin(self, behind: bool) -> bool:
        waiting = self._waiting
        return not self._under_way.full and self._turns.may_begin(behind, waiting[False], waiting[True], self._taken, self._depth)

    def _account(self, work: Work, seconds: float) -> None:
        """Note that *work* took *seconds* of the loop."""
        (_background if work.behind else _live).inc(seconds)
        if not work.behind and self._waiting[True]:
            self._turns.live(seconds)
            if self._turns.owed:
                self._freed.set()
        elif work.by_turn:
            self._turns.background(seconds)

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
        self._size_bytes += work.size_bytes
        self._under_way.bytes += work.size_bytes
        if work.took_room:
            began, work.behind, work.by_turn = self._began
            self._account(work, perf_counter() - began)
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
        self._under_way.forget(self._freed)
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._under_way.free(self._size_bytes)
        self._size_bytes = 0
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
        began = perf_counter()
        work.commit(offset)
        self._account(work, perf_counter() - began)
        if work.records:
            self._sent.popleft()
        if self._step_done is not None:
            self._step_done("committed", self._partition)
        work.done()
        self._on_their_way -= 1
        self._size_bytes -= work.size_bytes
        if work.took_room:
            self._taken -= 1
        self._freed.set()
        self._under_way.free(work.size_bytes)
