"""Fetching: the consumer thread, which takes whole fetched chunks from the broker and knows whether this worker is still a member of its group.

It never decides what a record means, never commits on its own and never touches the state: all of that happens in the main loop.
Everything in `FetchThread` runs in the thread's own event loop, except where a docstring says otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any, NamedTuple

import aiokafka
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult
from aiokafka.errors import ConsumerStoppedError, CorruptRecordException, IllegalStateError, KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams import blocks
from streams.blocks import Records, Rows
from streams.reader import ReaderError
from streams.replay import holds_nothing

FETCH_WAIT_MS = 100
"""How long the broker may hold a fetch that finds nothing. A partition that starts to be read again waits as long in the worst case, because aiokafka
has one fetch at a time on its way to a broker."""

FRESH_WAIT_S = 0.02
"""How long to sleep between two looks at a partition that was not fetched yet."""

HOLE_S = 3.0
"""A partition that brings nothing for so long, although its log goes on, is asked whether there is a record at all."""

LEASE_MARGIN_S = 1.0
"""Taken off the session time: a worker stops believing in its membership before the broker does."""


class Fetched(NamedTuple):
    """What one partition brought: its records in order, about how many bytes they are, and how many seeks the partition had seen."""

    records: Records
    size_bytes: int
    seeks: int


class Position(NamedTuple):
    """Where reading stands: every record below `offset` was handed over. `highwater` is the end the broker named last, without records of
    transactions that are still open; None before the first fetch."""

    offset: int
    highwater: int | None
    seeks: int


class Take(NamedTuple):
    fetched: dict[TP, Fetched]
    positions: dict[TP, Position]


NOTHING = Take({}, {})


def unpack(part: Any) -> list[Any]:
    """All records of a fetched partition as aiokafka's C records (.offset .timestamp .key .value .headers), batch by batch.

    Does what `PartitionRecords._unpack_records` does one by one: checks CRCs when asked to, skips control batches and the batches of aborted
    transactions, and leaves `part.next_fetch_offset` after the last batch, so that a log whose last offsets hold no record (compaction, transaction
    markers) is read to its very end. Raises `CorruptRecordException`.
    """
    rows: list[Any] = []
    batches, offset, committed_only = part._records, part.next_fetch_offset, part._isolation_level == READ_COMMITTED
    while batches.has_next():
        batch = batches.next_batch()
        if part._check_crcs and not batch.validate_crc():
            raise CorruptRecordException(f"{part._tp}: a batch at offset {offset} fails its checksum")
        if committed_only and batch.producer_id is not None:
            part._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch and part._contains_abort_marker(batch):
                part._aborted_producers.discard(batch.producer_id)
            if batch.is_transactional and batch.producer_id in part._aborted_producers:
                offset = batch.next_offset
                continue
        if not batch.is_control_batch:
            got = list(batch)
            rows += got if not got or got[0].offset >= offset else [row for row in got if row.offset >= offset]
        offset = batch.next_offset
    part.next_fetch_offset = offset
    return rows


def rows_of(part: Any) -> Records:
    """The same as `Rows`, which make no object of a record before somebody asks. Raises `CorruptBatch`."""
    if not blocks.loops.ready:
        return unpack(part)
    aborted = part._aborted_transactions if part._isolation_level == READ_COMMITTED else ()
    try:
        block = blocks.unpack(part._records._buffer, part.next_fetch_offset, aborted)
    except blocks.OldFormat:
        return unpack(part)
    part.next_fetch_offset = block.next
    return Rows(block)


def readable_end(state: Any) -> int | None:
    """Where the records end that can be read of a partition, by aiokafka's *state* of it; None before the first fetch."""
    stable = state.lso
    return state.highwater if stable is None or stable < 0 else stable  # type: ignore[no-any-return]


def let_go(part: Any) -> None:
    """Breaks the circle between a fetched partition and its iterator, which would keep a megabyte until the garbage collector comes by."""
    part._records_iterator = None


class FetchThread(driver.AIOKafkaConsumerThread):
    """aiokafka's consumer in its thread. Differs from Faust's in what it hands over (chunks, positions), in how it pauses, seeks and proves
    membership."""

    _wanted: frozenset[TP] = frozenset()
    _waiter: asyncio.Future[None] | None = None
    member_until: float = 0.0
    """`time.monotonic()` until which the broker cannot have given our partitions to somebody else. Read from any thread."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seeks: dict[TP, int] = {}
        """How often each partition was sought. Records taken before a seek are void after it: the main loop compares. Written here, read there."""
        self._last: dict[TP, Position] = {}
        self._stuck: dict[TP, tuple[int, float]] = {}
        """Partitions that bring nothing before the end of their log: where they stand, and since when (`time.monotonic()`)."""
        self._looking: set[asyncio.Task[None]] = set()

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        """As Faust's, with a short fetch wait, aborted transactions left out, and the broker options of the project's settings (TLS, SASL)."""
        app, conf = self.app, self.app.conf
        self._assignor = app.assignor
        return aiokafka.AIOKafkaConsumer(
            **app.kafka_options,
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            partition_assignment_strategy=[self._assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_poll_interval_ms=int(conf.broker_max_poll_interval * 1000),
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            check_crcs=conf.broker_check_crcs,
            isolation_level="read_committed",
        )

    async def on_start(self) -> None:
        await super().on_start()
        coordinator = self._ensure_consumer()._coordinator
        beat = coordinator._do_heartbeat

        async def heartbeat() -> bool:
            sent = monotonic()
            alive = await beat()
            if alive:
                self.renew_lease(sent)
            return bool(alive)

        coordinator._do_heartbeat = heartbeat

    def renew_lease(self, at: float) -> None:
        """The broker has heard from us at *at* (monotonic) or later. A worker that was stopped (SIGSTOP) for longer finds its lease over when it
        wakes, and writes nothing until a heartbeat tells whether it still owns its partitions."""
        self.member_until = at + self.app.conf.broker_session_timeout - LEASE_MARGIN_S

    def rejoin(self) -> None:
        """Join the group again, as after a rebalance. Called from the main loop."""
        if not self.should_stop:
            self.thread_loop.call_soon_threadsafe(self._request_rejoin)

    def _request_rejoin(self) -> None:
        self._ensure_consumer()._coordinator.request_rejoin()

    # -- what is read

    def want(self, wanted: frozenset[TP]) -> None:
        """Read these partitions and no others. Called from the main loop."""
        if not self.should_stop:
            self.thread_loop.call_soon_threadsafe(self._want, wanted)

    def _want(self, wanted: frozenset[TP]) -> None:
        # Faust only leaves out the records of partitions that it paused, aiokafka goes on fetching them: pause them in aiokafka.
        self._wanted = wanted
        assignment = self._assignment()
        if assignment is None:
            return
        for tp in assignment.tps:
            state = assignment.state_value(tp)
            if tp in wanted:
                state.resume()
            else:
                state.pause()

    def _assignment(self) -> Any:
        """aiokafka's present assignment, None between two."""
        subscription = self._ensure_consumer()._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        return assignment if assignment is not None and assignment.active else None

    async def take(self, timeout_s: float) -> Take:
        """Everything fetched for the wanted partitions; waits for it up to *timeout_s*. Called from the main loop, runs in the thread.

        Returns as soon as there are records or a position moved without any. Raises what the broker answered (authorisation, a checksum).
        A take that was still waiting when its assignment ended takes nothing of the next one: nobody would deliver it, and the position would be
        behind it.
        """
        return await self.call_thread(self._take_or_wait, timeout_s, self.consumer.serial)  # type: ignore[no-any-return]

    async def _take_or_wait(self, timeout_s: float, serial: int) -> Take:
        consumer = self._ensure_consumer()
        fetcher, until = consumer._fetcher, monotonic() + timeout_s
        with fetcher._subscriptions.fetch_context():
            while True:
                if consumer._closed or fetcher._closed:
                    raise ConsumerStoppedError()
                if not self.consumer.flow_active or self.consumer.serial != serial:
                    return NOTHING
                taken = self._take(fetcher)
                left = until - monotonic()
                if taken.fetched or taken.positions != self._last or left <= 0:
                    self._last = taken.positions
                    return taken
                if any(position.highwater is None for position in taken.positions.values()):
                    left = min(left, FRESH_WAIT_S)  # a fetch that finds nothing wakes nobody, and recovery waits for its highwater
                waiter = fetcher._create_fetch_waiter()
                done, _ = await asyncio.wait([waiter], timeout=left)
                if done:
                    waiter.result()  # an authorisation error of the coordinator arrives here
                else:
                    waiter.cancel()

    def _take(self, fetcher: Any) -> Take:
        assignment = self._assignment()
        if assignment is None or fetcher._subscriptions.reassignment_in_progress:
            return NOTHING
        fetched: dict[TP, Fetched] = {}
        for tp in list(fetcher._records):
            result = fetcher._records[tp]
            if type(result) is not FetchResult:
                if not fetched:
                    del fetcher._records[tp]
                    result.check_raise()
                continue
            del fetcher._records[tp]
            state, part = assignment.state_value(tp), result._partition_records
            let_go(part)
            if (
                tp not in self._wanted
                or result._assignment is not assignment
                or not state.has_valid_position
                or state.position != part.next_fetch_offset
            ):
                continue  # not ours or not now: the position stays, it is fetched again
            size = part._records.size_in_bytes()
            rows = rows_of(part)
            state.consumed_to(part.next_fetch_offset)
            if isinstance(rows, Rows):
                size = rows.size_bytes()  # what was compressed takes more now
            if rows:
                fetched[tp] = Fetched(rows, size, self.seeks.get(tp, 0))
        fetcher._notify(fetcher._wait_consume_future)
        positions = {}
        for tp in self._wanted:
            state = assignment.state_value(tp)
            if state is not None and state.has_valid_position:
                positions[tp] = Position(state.position, readable_end(state), self.seeks.get(tp, 0))
        self._look_for_holes(assignment, positions)
        return Take(fetched, positions)

    # -- holes

    def _look_for_holes(self, assignment: Any, positions: Mapping[TP, Position]) -> None:
        """aiokafka waits at its position for a record, for ever where compaction has left none before the end of the log."""
        now, waiting = monotonic(), {}
        for tp, (offset, end, _) in positions.items():
            if end is None or offset >= end:
                continue
            since = self._stuck.get(tp)
            waiting[tp] = since if since is not None and since[0] == offset else (offset, now)
            if now - waiting[tp][1] > HOLE_S:
                waiting[tp] = (offset, now)
                task = asyncio.ensure_future(self._pass_hole(assignment, tp, offset, end))
                self._looking.add(task)
                task.add_done_callback(self._looking.discard)
        self._stuck = waiting

    async def _pass_hole(self, assignment: Any, tp: TP, begin: int, end: int) -> None:
        try:
            empty = await holds_nothing(self._ensure_consumer()._client, tp, begin, end)
        except (TimeoutError, KafkaError, OSError, ReaderError, blocks.CorruptBatch) as error:
            self.log.warning("%s: what follows at offset %d cannot be asked, trying again: %r", tp, begin, error)
            return
        state = assignment.state_value(tp) if assignment.active else None
        if empty and state is not None and state.has_valid_position and state.position == begin:
            self.log.info("%s: no records from offset %d to the end, %d", tp, begin, end)
            state.consumed_to(end)

    # -- seeking

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seeks every partition but the changelog's to its committed offset, or to its beginning when none is committed. Returns where to.

        Faust leaves a partition without a committed offset where it is, past records that were read and dropped again.
        """
        return await self.call_thread(self._seek_to_committed)  # type: ignore[no-any-return]

    async def _seek_to_committed(self) -> dict[TP, int]:
        consumer, assignment = self._ensure_consumer(), self._assignment()
        if assignment is None:
            raise IllegalStateError("no partitions are assigned")
        tps = [tp for tp in assignment.tps if not self.consumer._is_changelog_tp(tp)]
        found = await asyncio.gather(*(assignment.state_value(tp).fetch_committed() for tp in tps))
        targets = {tp: meta.offset for tp, meta in zip(tps, found, strict=True)}
        fresh = [tp for tp, offset in targets.items() if offset < 0]
        self.consumer.uncommitted = {TP(*tp) for tp in fresh}
        if fresh:
            targets.update(await consumer.beginning_offsets(fresh))
        if not assignment.active:
            raise IllegalStateError("the assignment is over")
        self._seek_all(targets)
        return {TP(*tp): offset for tp, offset in targets.items()}

    async def _seek_wait(self, consumer: aiokafka.AIOKafkaConsumer, partitions: Mapping[TP, int]) -> None:
        self._seek_all(partitions)

    def _seek_all(self, targets: Mapping[TP, int]) -> None:
        fetcher = self._ensure_consumer()._fetcher
        for tp, offset in targets.items():
            fetcher.seek_to(tp, offset)
            self.seeks[tp] = self.seeks.get(tp, 0) + 1

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return await super().earliest_offsets(*partitions) if partitions else {}

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return await super().highwaters(*partitions) if partitions else {}


class RebalanceListener(driver.ConsumerRebalanceListener):
    """Membership starts with an assignment, and our partitions are whatever it says."""

    async def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        thread = self._thread
        thread.renew_lease(monotonic())
        thread._want(frozenset())
        await super().on_partitions_assigned(assigned)
