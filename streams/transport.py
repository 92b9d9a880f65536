"""Transport: Faust's consumer and producer with one message per fetched chunk, acknowledged chunk by chunk.

Never commits past a chunk that is not done, never claims a position that is not reached, and never drops a chunk without reading it again.
Register it with `install()`, then use a broker URL with the scheme `SCHEME`. Every topic of the app is delivered in chunks.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import aiokafka
from aiokafka import client
from aiokafka.errors import ClusterAuthorizationFailedError, MessageSizeTooLargeError, UnknownError
from aiokafka.producer import sender
from faust.serializers.schemas import Schema
from faust.transport import drivers
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from streams import batches
from streams.blocks import Records
from streams.fetch import Fetched, FetchThread, Position, RebalanceListener

log = logging.getLogger(__name__)

SCHEME = "waypost"
CHUNK_RECORDS = 4000
"""The most records of a chunk: bounds how long one chunk blocks the event loop."""
HELD_CHUNKS, RELEASED_CHUNKS = 10, 5
"""A partition with more chunks in flight than the first is not fetched until it is down to the second."""
HELD_BYTES = 4 << 20
"""The same in bytes fetched: a few large messages are as good as many chunks."""
TAKE_WAIT_S = 0.5
MAX_REQUEST_BYTES = 17 << 20
"""Internal messages are up to 16 MiB."""
MAX_BATCH_BYTES = 900_000


@dataclass(slots=True)
class Chunk:
    """Consecutive records of one partition on their way: done once all that follows from them is durable."""

    tp: TP
    first: int
    records: Records
    size_bytes: int
    serial: int
    """The consumer's `serial` when it was read: another one now means that the assignment is over."""
    taken: bool = False
    """Its agent works on it: nothing is added any more."""
    done: bool = False


class ChunkMessage(ConsumerMessage):
    """A Faust message whose value is a list of records."""

    chunk: Chunk


class ChunkSchema(Schema):
    """Hands the chunk through undecoded: keys and values are raw bytes everywhere."""

    def compile(self, app: Any, **kwargs: Any) -> Any:
        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return app.create_event(None, message.value, None, message)

        return decode


class Consumer(driver.Consumer):
    """Delivers chunks, keeps those in flight, and knows for every partition up to which offset everything is done.

    Faust's own bookkeeping is not used, since it commits past a message that is still in flight, counts a message just received as a gap, and takes
    `seek_to_committed` for a seek when nothing is committed.
    """

    RebalanceListener: ClassVar[type[RebalanceListener]] = RebalanceListener
    _thread: FetchThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.serial = 0
        """Counts the assignments seen: chunks of an older one are void."""
        self.uncommitted: set[TP] = set()
        self.received: Counter[str] = Counter()
        """Records delivered, by topic. Faust's sensors count chunks."""
        self._inflight: dict[TP, deque[Chunk]] = {}
        self._inflight_bytes: Counter[TP] = Counter()
        self._positions: dict[TP, Position] = {}
        self._held: set[TP] = set()
        self._wanted: frozenset[TP] | None = None
        """What the thread was told last."""
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> FetchThread:
        return FetchThread(self, loop=self.loop, beacon=self.beacon)

    # -- positions

    def reflected(self, topic: str, partition: int) -> int:
        """The next offset of a source partition whose effect is not yet durable. Everything below is done; 0 when the partition is not read here.

        The oldest chunk in flight decides; with none, the position of the consumer, sampled together with what it handed over. So it reaches the
        end of the log even where no record is left at the end, and never passes a chunk that is not done.
        """
        tp = TP(topic, partition)
        inflight = self._inflight.get(tp)
        if inflight:
            return inflight[0].first
        position = self._positions.get(tp)
        return 0 if position is None else position.offset

    def read_to(self, tp: TP) -> Position | None:
        """Where reading of a partition stands since it was sought last, None when nothing was handed over since."""
        position = self._positions.get(tp)
        return position if position is not None and position.seeks == self._thread.seeks.get(tp, 0) else None

    def behind(self, topic: str, partition: int) -> int:
        """Records (at most) between the end of the partition that the last fetch named and what is done. A figure for metrics."""
        position = self._positions.get(TP(topic, partition))
        if position is None or position.highwater is None:
            return 0
        return max(0, position.highwater - self.reflected(topic, partition))

    # -- delivery

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self.should_stop or fetcher.should_stop):
                if not self.flow_active:
                    await self.wait(self.can_resume_flow)
                    continue
                serial = self.serial
                taken = await self._thread.take(TAKE_WAIT_S)
                if serial == self.serial and self.flow_active:
                    await self._deliver(taken.fetched, taken.positions, serial)
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise

    async def _deliver(self, fetched: Mapping[TP, Fetched], positions: Mapping[TP, Position], serial: int) -> None:
        seeks, recovery = self._thread.seeks, self.app.tables.recovery
        # Positions move and chunks are entered in one step: nobody sees the one without the other.
        for tp, position in positions.items():
            if position.seeks == seeks.get(tp, 0):
                self._positions[TP(*tp)] = position
        fresh = {TP(*tp): took for tp, took in fetched.items() if took.seeks == seeks.get(tp, 0)}
        entered = [self._enter(tp, took, serial) for tp, took in fresh.items() if not self._is_changelog_tp(tp)]
        sources = [queue for queue in entered if queue]
        self._update_held()
        for tp, took in fresh.items():
            if serial == self.serial and self._is_changelog_tp(tp):
                recovery.on_records(tp, took.records)
                await asyncio.sleep(0)
        if serial == self.serial:
            recovery.on_positions()
        while sources:  # round robin: no partition waits for all of another
            for queue in list(sources):
                message = queue.popleft()
                if serial != self.serial or not self.flow_active:
                    return  # void: read again after the next assignment
                await self.wait_first(self.callback(message), self.suspend_flow.wait())
                if not queue:
                    sources.remove(queue)

    def _enter(self, tp: TP, took: Fetched, serial: int) -> deque[ChunkMessage]:
        """Notes what was fetched as chunks in flight; returns the messages for the new ones.

        A chunk costs an agent a few milliseconds however small it is, and a live topic is fetched a few records at a time: so what comes while a
        chunk still waits for its agent goes into that one.
        """
        records, queue = took.records, deque[ChunkMessage]()
        parts = -(-len(records) // CHUNK_RECORDS)
        step = -(-len(records) // parts)
        inflight = self._inflight.setdefault(tp, deque())
        for start in range(0, len(records), step):
            rows = records[start : start + step] if parts > 1 else records
            size_bytes = took.size_bytes // parts
            self._inflight_bytes[tp] += size_bytes
            last = inflight[-1] if inflight else None
            if last is not None and not last.taken and len(last.records) + len(rows) <= CHUNK_RECORDS and type(last.records) is type(rows):
                last.records += rows  # type: ignore[arg-type]
                last.size_bytes += size_bytes
                continue
            chunk = Chunk(tp, rows[0].offset, rows, size_bytes, serial)
            inflight.append(chunk)
            message = ChunkMessage(
                tp.topic, tp.partition, rows[-1].offset, rows[-1].timestamp / 1000.0, 0, None, None, rows, None, 0, 0, tp,
                generation_id=self.app.consumer_generation_id,
            )  # fmt: skip
            message.chunk = chunk
            queue.append(message)
        self.received[tp.topic] += len(records)
        if len(inflight) > HELD_CHUNKS or self._inflight_bytes[tp] > HELD_BYTES:
            self._held.add(tp)
        return queue

    def ack(self, message: Any) -> bool:
        """Everything of the chunk is durable. Chunks may end in any order; what is done counts from the oldest on."""
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        chunk = message.chunk
        if chunk.done:
            return False
        chunk.done = True
        tp, inflight = chunk.tp, self._inflight.get(chunk.tp)
        while inflight and inflight[0].done:
            self._inflight_bytes[tp] -= inflight.popleft().size_bytes
        if tp in self._held and (
            not inflight or (len(inflight) <= RELEASED_CHUNKS and self._inflight_bytes[tp] <= HELD_BYTES // 2)
        ):
            self._held.discard(tp)
            self._update_held()
        return True

    def _void(self) -> None:
        """Forgets what is in flight. It is read again, so positions go back to it first."""
        for tp, inflight in self._inflight.items():
            position = self._positions.get(tp)
            if inflight and position is not None and position.offset > inflight[0].first:
                self._positions[tp] = position._replace(offset=inflight[0].first)
        self._inflight.clear()
        self._inflight_bytes.clear()
        self._held.clear()
        self._update_held()

    # -- pausing

    def _update_held(self) -> None:
        wanted = frozenset((self._active_partitions or set()) - self._held)
        if wanted != self._wanted:
            self._wanted = wanted
            self._thread.want(wanted)

    def _set_active_tps(self, tps: set[TP]) -> set[TP]:
        self._wanted = None  # with an assignment the thread begins to want nothing
        active = super()._set_active_tps(tps)
        self._update_held()
        return active

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        super().pause_partitions(tps)
        self._update_held()

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        super().resume_partitions(tps)
        self._update_held()

    def on_buffer_full(self, tp: TP) -> None:
        """Nothing: partitions are held by what is in flight, see `_enter`. Faust looks again only once a second."""

    def on_buffer_drop(self, tp: TP) -> None:
        """Nothing, see `on_buffer_full`."""

    # -- committing

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (tp for tp in list(self._positions) if not self._is_changelog_tp(tp))

    def _new_offset(self, tp: TP) -> int | None:
        return self.reflected(tp.topic, tp.partition)

    def _should_commit(self, tp: TP, offset: int) -> bool:
        committed = self._committed_offset[tp]
        return committed is None or offset > committed

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        # Without Faust's flush of the producer: a chunk is done only once all that it sent is acknowledged.
        serial, assignment = self.serial, self.assignment()
        mine = {tp: offset for tp, offset in offsets.items() if tp in assignment}
        if not mine or not await self._commit(mine):
            return False
        if serial == self.serial:
            self._committed_offset.update(mine)
        return True

    async def perform_seek(self) -> None:
        """Seeks the sources to what is committed; whatever was in flight is read again."""
        self._void()
        targets = await self.seek_to_committed()
        self._committed_offset.clear()
        for tp, offset in targets.items():
            self._positions[tp] = Position(offset, None, self._thread.seeks.get(tp, 0))
            self._committed_offset[tp] = None if tp in self.uncommitted else offset

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Chunks of the old assignment are void from the first line on; the partitions are closed before the group goes on without us."""
        self.serial += 1
        try:
            await super().on_partitions_revoked(revoked)
            await self.app.tables.recovery.close_partitions()
            coordinator = self._thread._ensure_consumer()._coordinator
            if not self.app.should_stop and coordinator.generation == self.app.consumer_generation_id:
                await asyncio.wait([asyncio.ensure_future(self.commit())], timeout=2.0)
        except Exception as exc:  # aiokafka would log it and go on
            await self.crash(exc)
        finally:
            self._void()
            self._positions.clear()

    async def verify_all_partitions_active(self) -> None:
        """Nothing: Faust's watchdog reports fetches that were not sent on idle partitions. `behind` is the figure to watch."""

    async def create_topic(self, topic: str, *args: Any, **kwargs: Any) -> None:
        """Nothing: topics are provisioned by `streams.topics` before a worker starts."""


class Producer(driver.Producer):
    """Faust's producer, used for the changelog: idempotent, acknowledged by all replicas, with room for 16 MiB."""

    async def on_start(self) -> None:
        self._producer = await start_producer(self.app.kafka_options, client_id=self.client_id)


async def start_producer(kafka_options: Mapping[str, Any], client_id: str) -> aiokafka.AIOKafkaProducer:
    """A connected producer as every writer here uses it: acks of all replicas, no linger, idempotent where the broker knows how.

    A broker that cannot (the embedded one) or may not (an old ACL) gets a plain one: aiokafka has one request at a time on its way, so order is
    kept, and a record repeated by a retry changes nothing, since evidence is a join and events have deterministic ids.
    """
    options = {
        **kafka_options, "client_id": client_id, "acks": "all", "linger_ms": 0,
        "max_batch_size": MAX_BATCH_BYTES, "max_request_size": MAX_REQUEST_BYTES,
    }  # fmt: skip
    producer = aiokafka.AIOKafkaProducer(**options, enable_idempotence=True)
    sender_log = logging.getLogger("aiokafka.producer.sender")
    sender_log.disabled = True  # it calls the embedded broker's answer an error; whatever it is, it is raised
    try:
        await producer.start()
    except (UnknownError, ClusterAuthorizationFailedError) as exc:
        log.info("the broker gives no producer ids (%r): writing without", exc)
        await producer.stop()
        producer = aiokafka.AIOKafkaProducer(**options)
        await producer.start()
    finally:
        sender_log.disabled = False
    return producer


class SendProduceReqHandler(sender.SendProduceReqHandler):  # type: ignore[misc]
    """aiokafka's, which numbers what follows as if the broker had taken a batch that is too large: it would take nothing more."""

    def handle_response(self, response: Any) -> None:
        super().handle_response(response)
        numbers = self._sender._txn_manager
        for tp, batch in self._batches.items() if numbers is not None else ():
            done = batch.future.done() and not batch.future.cancelled()
            if done and isinstance(batch.future.exception(), MessageSizeTooLargeError):
                numbers.increment_sequence_number(tp, -batch.record_count)


_connect = client.create_conn


async def severable(*args: Any, **kwargs: Any) -> Any:
    """aiokafka's `create_conn`: a connection of which nothing arrives any more once it is closed or its process is dead.

    By itself, what it was given and the network did not take yet is sent for minutes, and could come behind what the next owner says.
    """
    conn = await _connect(*args, **kwargs)
    writer = conn._writer
    if writer is not None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close = writer.transport.abort
    return conn


class Transport(driver.Transport):
    Consumer: ClassVar[type[Consumer]] = Consumer
    Producer: ClassVar[type[Producer]] = Producer


def install() -> None:
    """Makes the scheme known to Faust, and gives aiokafka's clients our connections, our reading and our way with batches that are too large.
    Safe to call again."""
    drivers.TRANSPORTS.aliases[SCHEME] = "streams.transport:Transport"
    batches.install()
    client.create_conn = severable
    sender.SendProduceReqHandler = SendProduceReqHandler
