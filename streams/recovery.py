"""Recovery: from an assignment to partitions that serve, by joining each changelog partition into its store.

Decides from positions, never from the offsets of records: a compacted log may end without a record. Never lets a partition serve before it has read
its changelog to the end, and never lets a partition of an older assignment go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from collections.abc import Awaitable
from time import monotonic
from typing import Any, TypeVar

from aiokafka.errors import IllegalStateError
from faust.tables import recovery as stock
from faust.types import TP
from mode import Service

from streams.blocks import Records, Rows

T = TypeVar("T")

RECORD_BYTES = 300
"""That a record takes beside its bytes, as an object."""
MANY_RECORDS = 20_000
"""Partitions with more to read are read one after the other: then more records of a key are joined together, and written once."""


class Recovery(stock.Recovery):
    """Faust's recovery, its two loops replaced.

    Faust waits for a record at the last offset (for ever, in a compacted log), applies a record of an unknown partition to the table seen before,
    swallows every exception of a table, and crashes when a store is ahead of its changelog.
    """

    opened: set[int]
    """Partitions that are open in this process: `Partitions.open` was called and `Partitions.close` was not."""

    def __init__(self, app: Any, tables: Any, **kwargs: Any) -> None:
        super().__init__(app, tables, **kwargs)
        self.opened = set()
        self.recovered_records = 0
        self._targets: dict[TP, int] = {}
        """Owned changelog partitions on the way to their end, and where that was."""
        self._in_turn: list[TP] = []
        """Those of them with many records that are not read yet, the last one now."""
        self._read: dict[TP, int] = {}
        """Owned changelog partitions that are recovered, and up to where."""
        self._waiting: dict[TP, Records] = {}
        """Records read and not yet joined; dropped when the assignment is over, since they are read again."""
        self._waiting_bytes: dict[TP, int] = {}
        self._caught_up = asyncio.Event()
        self._serial = -1
        self._step: asyncio.Future[Any] | None = None

    # -- the way from an assignment to serving

    async def on_rebalance(self, *args: Any, **kwargs: Any) -> None:
        self._serial = self.app.consumer.serial
        await super().on_rebalance(*args, **kwargs)

    @Service.task
    async def _restart_recovery(self) -> None:
        while not self.should_stop:
            if await self.wait_for_stopped(self.signal_recovery_start):
                return
            self.signal_recovery_start.clear()
            try:
                await self._take_over(self._generation_id)
            except (stock.RebalanceAgain, IllegalStateError) as exc:
                self.log.info("recovery is overtaken by another rebalance: %r", exc)
            except stock.ServiceStopped:
                return

    @Service.task
    async def _slurp_changelogs(self) -> None:
        """Nothing: records come by `on_records`."""

    @Service.task
    async def _publish_stats(self) -> None:
        """Nothing: `_take_over` logs what it does."""

    async def _take_over(self, generation: int) -> None:
        """One assignment: open, seek, read the owned changelogs to their end, activate, read the sources. Raises `RebalanceAgain` when it is over."""
        app, consumer, started = self.app, self.app.consumer, monotonic()
        if consumer.serial != self._serial:
            raise stock.RebalanceAgain
        self._set_recovery_started()
        active, standby = set(self.active_tps), set(self.standby_tps) - set(self.active_tps)
        for tp in sorted(active | standby):
            if tp.partition not in self.opened:
                self.opened.add(tp.partition)
                app.partitions.open(tp.partition)
        starts, ends = await self._bounds(active | standby)
        await self._unless_over(consumer.seek_wait(starts))
        self._waiting.clear()
        self._waiting_bytes.clear()
        self._targets, self._read = {tp: ends[tp] for tp in active}, {}
        self._caught_up.clear()
        before = self.recovered_records
        self._in_turn = sorted((tp for tp in active if ends[tp] - starts[tp] > MANY_RECORDS), reverse=True)
        consumer.resume_partitions({*active.difference(self._in_turn), *self._in_turn[-1:]})
        self._flow()
        await app._fetcher.maybe_start()
        if active:
            await self._unless_over(self._caught_up.wait())
        consumer.pause_partitions(active)
        records = self.recovered_records - before
        self.log.info("recovered %d partitions, %d changelog records, in %.1f s", len(active), records, monotonic() - started)
        for tp in sorted(active):
            app.changelog.begin(tp.partition, generation, self._read[tp])
            await self._unless_over(app.partitions.activate(tp.partition))
        await self._unless_over(consumer.perform_seek())
        await self._unless_over(app.on_rebalance_complete.send())
        _give_back()
        self._set_recovery_ended()
        consumer.resume_partitions({tp for tp in consumer.assignment() if tp not in active})
        self._flow()
        self.completed.set()
        self.tables.on_actives_ready()
        self.tables.on_standbys_ready()
        app.on_rebalance_end()
        self.log.info("serving partitions %s", sorted(tp.partition for tp in active))

    async def _bounds(self, tps: set[TP]) -> tuple[dict[TP, int], dict[TP, int]]:
        """Where to start reading each changelog partition, and its end. A store ahead of its changelog is wiped: the topic was made anew."""
        partitions, consumer = self.app.partitions, self.app.consumer
        earliest = await self._unless_over(consumer.earliest_offsets(*tps))
        ends = await self._unless_over(consumer.highwaters(*tps))
        starts = {}
        for tp in tps:
            have = partitions.changelog_offset(tp.partition)
            if have is not None and have >= ends[tp]:
                self.log.warning("%s: the store is at offset %d, the changelog ends at %d: wiping the store", tp, have, ends[tp])
                partitions.wipe(tp.partition)
                have = None
            starts[tp] = earliest[tp] if have is None else max(have + 1, earliest[tp])
        return starts, dict(ends)

    def _flow(self) -> None:
        self.app.flow_control.resume()
        self.app.consumer.resume_flow()

    async def _unless_over(self, coro: Awaitable[T]) -> T:
        """The result of *coro*. Raises `RebalanceAgain` when the assignment is over first (or meanwhile), `ServiceStopped` when the worker stops."""
        self._step = task = asyncio.ensure_future(coro)
        try:
            result = await self.wait_first(asyncio.wait([task]), self.signal_recovery_start)
        finally:
            task.cancel()
        if result.stopped:
            raise stock.ServiceStopped
        if self.app.consumer.serial != self._serial or not task.done() or task.cancelled():
            raise stock.RebalanceAgain
        return task.result()

    # -- called by the consumer

    def on_records(self, tp: TP, records: Records) -> None:
        """Records of a changelog partition, owned or standby, in order. Those of a partition that was taken away meanwhile are dropped."""
        if tp.partition not in self.opened or tp in self._read:
            return  # what comes behind the end of recovery was written by somebody else: the changelog finds it there
        waiting = self._waiting.get(tp)
        if waiting is not None and type(waiting) is not type(records):  # what reads them became ready
            self._join(tp)
            waiting = None
        if waiting is None:
            self._waiting[tp] = records
        else:
            waiting += records  # type: ignore[arg-type]
        self._waiting_bytes[tp] = self._waiting_bytes.get(tp, 0) + _size_bytes(records)
        while sum(self._waiting_bytes.values()) > self.app.recovery_bytes:
            self._join(max(self._waiting_bytes, key=self._waiting_bytes.__getitem__))

    def _join(self, tp: TP) -> None:
        """Joins what is waiting of a partition into its store: many records at once, since they have few keys."""
        self._waiting_bytes.pop(tp, None)
        records = self._waiting.pop(tp, None)
        if not records or tp.partition not in self.opened:
            return
        self.app.partitions.recover(tp.partition, records, records[-1].offset)
        self.recovered_records += len(records)

    def on_positions(self) -> None:
        """The consumer has handed over all it took. A partition is recovered when its changelog is read to its end: to the offset that the broker
        listed, and to the end that its last fetch named, since there are brokers (Tansu) that list an end too low."""
        for tp in [tp for tp in self._waiting if tp not in self._targets or self._caught_up.is_set()]:
            self._join(tp)  # of a standby: it need not wait for more
        if not self._targets or self._caught_up.is_set():
            return
        consumer = self.app.consumer
        for tp in self._targets.keys() - self._read.keys():
            position = consumer.read_to(tp)
            if position is not None and position.highwater is not None and position.offset >= max(self._targets[tp], position.highwater):
                self._join(tp)
                self._read[tp] = position.offset
                consumer.pause_partitions([tp])
                if tp in self._in_turn:
                    self._in_turn.remove(tp)
                    consumer.resume_partitions(self._in_turn[-1:])
        if len(self._read) == len(self._targets):
            self._caught_up.set()

    async def close_partitions(self) -> None:
        """Revoked, or the worker stops: closes every partition, so that its lock is free and nothing of it goes on."""
        self._targets, self._read = {}, {}
        self._waiting.clear()
        self._waiting_bytes.clear()
        if self._step is not None and not self._step.done():  # an `activate` may be under way
            self._step.cancel()
            await asyncio.wait([self._step])
        for partition in sorted(self.opened):
            self.app.changelog.end(partition)
        for partition in sorted(self.opened):
            await self.app.partitions.close(partition)
            self.opened.discard(partition)
        producer = self.app.producer._producer
        if producer is not None:  # what is sent already should lie before what the next owner reads
            await asyncio.wait([asyncio.ensure_future(producer.flush())], timeout=2.0)

    def flush_buffers(self) -> None:
        """Nothing is buffered."""


def _size_bytes(records: Records) -> int:
    if isinstance(records, Rows):
        return sum(len(block.data) + block.spans.nbytes for block in records.blocks)
    return sum(RECORD_BYTES + len(record.key or b"") + len(record.value or b"") for record in records)


def _give_back() -> None:
    """Gives back to the system what recovery took and the allocator keeps, where it can."""
    with contextlib.suppress(AttributeError):  # of glibc
        ctypes.CDLL(None).malloc_trim(0)
