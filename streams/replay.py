"""Replay: a log read in whole record batches, as fast as the wire goes: no object is made of a record. It joins no group and commits nothing.

Fetches run in a thread of their own, one at a time to each broker, while what they brought is worked on; aiokafka's client knows the brokers.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiokafka import errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import TopicPartition

from streams.blocks import Absent, Block, CorruptBatch, unpack
from streams.reader import STALL_SECONDS, Extent, ReaderError, begin_offsets, extent
from streams.settings import Settings, aiokafka_kwargs

log = logging.getLogger(__name__)

PARTITION_BYTES = 1 << 20  # of one fetch; what is longer than that comes alone
WHOLE_BYTES = 64 << 20  # more than any batch that our topics take
REQUEST_PARTITIONS = 32
HELD_BYTES = 32 << 20  # fetched and not yet worked on
WAIT_MS = 100
IDLE_SECONDS = 0.5
RETRY_SECONDS = 0.1
PROOF_REQUESTS = 8
READ_COMMITTED = 1
MOVED = (
    errors.NotLeaderForPartitionError,
    errors.UnknownTopicOrPartitionError,
    errors.LeaderNotAvailableError,
)


class Answer(NamedTuple):
    """What a broker answered of one partition. `alone`: nothing else was asked for in that request."""

    raw: bytes
    aborted: list[tuple[int, int]]
    """(producer id, first offset) of transactions that were aborted."""
    committed: int
    """The offset up to which records are committed."""
    alone: bool
    throttled: bool


@dataclass(slots=True)
class Cursor:
    """Where reading of a partition stands, and how it is asked next. Pure: knows no broker.

    An empty answer proves nothing by itself: a broker leaves a partition out when the answer is full, when the client is over its quota, or
    when a batch is larger than what was asked for. That no record is left before `stop` (compaction removed the last ones) follows only from
    an empty answer to a request for this partition alone with room for every batch.
    """

    offset: int
    stop: int
    alone: bool = False
    max_bytes: int = PARTITION_BYTES

    def take(self, answer: Answer) -> bool:
        """Move behind what *answer* accounts for; False if that is nothing. Raises ReaderError for what no broker should send."""
        following = end_of(answer.raw)
        if following is not None and following > self.offset:
            self.offset, self.alone, self.max_bytes = following, False, PARTITION_BYTES
            return True
        if answer.raw:
            self._ask_for_more(answer)
        elif (
            answer.throttled or answer.committed < self.stop
        ):  # later, and not in the way of others
            self.alone, self.max_bytes = False, PARTITION_BYTES
        elif answer.alone and self.max_bytes >= WHOLE_BYTES:
            self.offset = self.stop
            return True
        else:
            self.alone, self.max_bytes = True, WHOLE_BYTES if answer.alone else PARTITION_BYTES
        return False

    def _ask_for_more(self, answer: Answer) -> None:
        """Bytes came, but no batch that ends behind `offset`: the first one was cut off, or all lie before it."""
        head = answer.raw[8:12]
        needed = 12 + int.from_bytes(head, "big") if len(head) == 4 else WHOLE_BYTES
        if answer.alone and self.max_bytes >= max(needed, WHOLE_BYTES):
            raise ReaderError(
                f"the broker answers a fetch at offset {self.offset} with {len(answer.raw)} bytes that hold no whole batch from there on"
            )
        self.alone, self.max_bytes = True, max(needed, WHOLE_BYTES)


def together(cursors: Mapping[int, Cursor], numbers: list[int]) -> list[int]:
    """Which of *numbers* the next request asks for: one that has to be asked for alone, else as many as fit."""
    alone = next((number for number in numbers if cursors[number].alone), None)
    return numbers[:REQUEST_PARTITIONS] if alone is None else [alone]


def request_for(topic: str, cursors: Mapping[int, Cursor]) -> FetchRequest:
    """The request that asks for what follows at each of *cursors*."""
    asked = [(number, cursor.offset, cursor.max_bytes) for number, cursor in cursors.items()]
    max_bytes = sum(cursor.max_bytes for cursor in cursors.values())
    return FetchRequest(WAIT_MS, 1, max_bytes, READ_COMMITTED, [(topic, asked)])


def answers(response: Any, alone: bool) -> Iterator[tuple[int, type[errors.KafkaError], Answer]]:
    """(partition, error, what came) of each partition that a response to `request_for` names."""
    throttled = response.throttle_time_ms > 0
    for _, parts in response.topics:
        for number, code, high, stable, *more, raw in parts:
            aborted = more[1 if response.API_VERSION >= 5 else 0] or []
            committed = high if stable < 0 else stable
            yield number, errors.for_code(code), Answer(raw, aborted, committed, alone, throttled)


async def holds_nothing(client: Any, tp: TopicPartition, begin: int, end: int) -> bool:
    """Return True if it is proven that the log holds no record from *begin* to before *end*, False if not.

    For consumers, which wait for a record where compaction has left none. *client* is aiokafka's and knows the topic. Raises KafkaError,
    CorruptBatch, ReaderError.
    """
    cursor = Cursor(begin, end)
    for _ in range(PROOF_REQUESTS):
        leader = client.cluster.leader_for_partition(tp)
        if leader is None or leader == -1:
            return False
        response = await client.send(leader, request_for(tp.topic, {tp.partition: cursor}))
        for _, trouble, answer in answers(response, alone=True):
            block = unpack(answer.raw, cursor.offset, answer.aborted)
            if trouble is not errors.NoError or len(block.before(end)):
                return False
            if cursor.take(answer) and cursor.offset >= end:
                return True
    return False


def without_records(
    settings: Settings, topic: str, ranges: Mapping[int, tuple[int, int]]
) -> set[int]:
    """Those of *ranges* (partition -> first offset, end) of which it is proven that they hold no record. Raises KafkaError, ReaderError."""

    async def ask() -> set[int]:
        client = AIOKafkaClient(**aiokafka_kwargs(settings), client_id="waypost-replay")
        try:
            await client.bootstrap()
            await client.set_topics([topic])
            return {
                n
                for n, (begin, end) in ranges.items()
                if await holds_nothing(client, TopicPartition(topic, n), begin, end)
            }
        finally:
            await client.close()

    with ThreadPoolExecutor(1) as apart:  # the caller's thread may run a loop
        return apart.submit(asyncio.run, ask()).result()


class Fetched(NamedTuple):
    partition: int
    from_offset: int
    to_offset: int
    """Everything from `from_offset` to before this is accounted for by `raw`."""
    raw: bytes = b""
    aborted: Sequence[tuple[int, int]] = ()


def read_blocks(
    settings: Settings,
    topic: str,
    partitions: Collection[int] | None = None,
    *,
    start: Mapping[int, int] | None = None,
    ends: Mapping[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Block]]:
    """Yields (partition, its next records) until every partition is read to its end as of the start; what `streams.reader.read_log` reads, in bulk.

    The blocks of a partition account for every offset from the first to the last: see `Block`. A block may be empty: where the log holds no
    records, and every `IDLE_SECONDS` while the broker sends nothing. One begins behind the end of the one before where retention took away
    what was not read yet. Raises ReaderError.
    """
    todo = extent(settings, topic, partitions, start, ends)
    if progress:
        progress(todo.passed(), todo.total)
    if not todo.left:
        return
    fetching, quiet_since = Fetching(settings, topic, todo), time.monotonic()
    fetching.start()
    try:
        while todo.left:
            fetched = fetching.take(IDLE_SECONDS)
            if fetched is None:
                if time.monotonic() - quiet_since > STALL_SECONDS:
                    raise ReaderError(
                        f"the broker at {settings.bootstrap} has sent nothing for {STALL_SECONDS:g} s, though there is more to read; "
                        "see that it runs, and try again"
                    )
                number = min(todo.left)
                yield number, unpack(b"", todo.at[number])
                continue
            number = fetched.partition
            try:
                block = unpack(fetched.raw, fetched.from_offset, fetched.aborted)
            except CorruptBatch as error:
                raise ReaderError(
                    f"partition {number} of {topic}: {error}; see the broker's log"
                ) from None
            if block.next < fetched.to_offset:  # proven to hold nothing
                block = nothing(block.next, fetched.to_offset)
            todo.reached(number, block.next)
            if progress:
                progress(todo.passed(), todo.total)
            yield number, block.before(todo.stop[number])
            quiet_since = time.monotonic()
    finally:
        fetching.end()


def nothing(begin: int, end: int) -> Block:
    """The block of offsets that hold no record."""
    empty = unpack(b"", begin)
    return Block(empty.data, empty.spans, end, begin, (Absent(begin, end, end - begin),))


class Unread(NamedTuple):
    """Offsets of a partition that brought no record, and nothing says why: `size` of those from `first` to before `end`."""

    partition: int
    first: int
    end: int
    size: int

    def __str__(self) -> str:
        return f"partition {self.partition} offsets {self.first:,} to {self.end - 1:,} ({self.size:,} records)"


class Coverage:
    """What of a log was read, offset by offset, to be compared with what the log holds. Pure.

    `read_to`: by partition, the offset before which every offset is accounted for. `records`: how many were read.
    """

    def __init__(self, starts: Mapping[int, int]) -> None:
        self.read_to = dict(starts)
        self.records = 0
        self._gaps: list[tuple[int, int, int]] = []
        self._absent: list[Unread] = []

    def take(self, number: int, block: Block) -> None:
        """Count a block of partition *number* as read."""
        at = self.read_to[number]
        if block.begin > at:
            self._gaps.append((number, at, block.begin))
        self._absent += [Unread(number, *absent) for absent in block.absent]
        self.read_to[number] = max(at, block.next)
        self.records += len(block)

    def doubtful(self, ends: Mapping[int, int]) -> bool:
        """Whether an offset before *ends* is not accounted for by a record or a transaction, so that `unread` has to be asked."""
        return bool(
            self._gaps or self._absent or any(self.read_to[n] < end for n, end in ends.items())
        )

    def unread(
        self, ends: Mapping[int, int], begins: Mapping[int, int], compacted: bool
    ) -> list[Unread]:
        """What is missing before *ends*; empty when the log was read completely.

        *begins*: where the partitions begin now: retention accounts for what was before. *compacted*: whether the topic is compacted, which
        accounts for offsets without a record.
        """
        gaps = self._gaps + [(number, self.read_to[number], end) for number, end in ends.items()]
        there = [(number, max(first, begins[number]), end) for number, first, end in gaps]
        missing = [
            Unread(number, first, end, end - first) for number, first, end in there if first < end
        ]
        return sorted(missing if compacted else missing + self._absent)


class Fetching(threading.Thread):
    """Fetches what *todo* says, and goes on until it is all there or `end()` is called."""

    def __init__(self, settings: Settings, topic: str, todo: Extent) -> None:
        super().__init__(name="replay", daemon=True)
        self._settings, self._topic = settings, topic
        self._cursors = {number: Cursor(todo.at[number], todo.stop[number]) for number in todo.left}
        self._arrived: queue.SimpleQueue[Fetched | BaseException] = queue.SimpleQueue()
        self._held = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def take(self, seconds: float) -> Fetched | None:
        """What was fetched next; waits for it, None after *seconds*. Raises ReaderError when nothing will come."""
        try:
            found = self._arrived.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(found, ReaderError):
            raise found
        if isinstance(found, BaseException):
            raise ReaderError(
                f"reading {self._topic} failed: {found!r}; see the broker's log"
            ) from found
        with self._lock:
            self._held -= len(found.raw)
        return found

    def end(self) -> None:
        """Ends the thread; what was fetched and not taken is dropped."""
        self._ended.set()
        self.join(5.0)

    def run(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            self._arrived.put(error)

    async def _run(self) -> None:
        client = AIOKafkaClient(**aiokafka_kwargs(self._settings), client_id="waypost-replay")
        asking: dict[int, asyncio.Task[None]] = {}
        try:
            await client.bootstrap()
            await client.set_topics([self._topic])
            while self._cursors and not self._ended.is_set():
                for node in [node for node, task in asking.items() if task.done()]:
                    asking.pop(node).result()
                if self._held < HELD_BYTES:
                    for node, numbers in self._by_leader(client).items():
                        if node not in asking:
                            asking[node] = asyncio.create_task(
                                self._fetch(client, node, together(self._cursors, numbers))
                            )
                if asking:
                    await asyncio.wait(
                        asking.values(), timeout=WAIT_MS / 1000, return_when=asyncio.FIRST_COMPLETED
                    )
                else:
                    await asyncio.sleep(0.002)
        finally:
            for task in asking.values():
                task.cancel()
            await client.close()

    def _by_leader(self, client: Any) -> dict[int, list[int]]:
        """Broker -> partitions that it leads and that have more to bring, those furthest behind first."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for number in sorted(self._cursors, key=lambda number: self._cursors[number].offset):
            leader = client.cluster.leader_for_partition(TopicPartition(self._topic, number))
            if leader is None or leader == -1:
                client.force_metadata_update()
            else:
                found[leader].append(number)
        return found

    async def _fetch(self, client: Any, node: int, numbers: list[int]) -> None:
        asked = {number: self._cursors[number] for number in numbers}
        offsets = {number: cursor.offset for number, cursor in asked.items()}
        try:
            response = await client.send(node, request_for(self._topic, asked))
        except (TimeoutError, errors.KafkaError, OSError) as error:
            log.warning("reading goes on after: %r", error)
            client.force_metadata_update()
            await asyncio.sleep(RETRY_SECONDS)
            return
        for number, trouble, answer in answers(response, alone=len(asked) == 1):
            cursor = self._cursors.get(number)
            if cursor is None or cursor.offset != offsets.get(number):
                continue  # another broker has brought it meanwhile
            if trouble is errors.NoError:
                self._arrive(number, cursor, answer)
            else:
                await self._mend(client, number, trouble)

    def _arrive(self, number: int, cursor: Cursor, answer: Answer) -> None:
        """Hands over what came, and asks for what is behind it next."""
        before = cursor.offset
        if not cursor.take(answer):
            return
        with self._lock:
            self._held += len(answer.raw)
        self._arrived.put(Fetched(number, before, cursor.offset, answer.raw, answer.aborted))
        if cursor.offset >= cursor.stop:
            del self._cursors[number]

    async def _mend(self, client: Any, number: int, trouble: type[errors.KafkaError]) -> None:
        if (
            trouble is errors.OffsetOutOfRangeError
        ):  # retention took it away meanwhile; the rest follows
            here, cursor = (self._topic, number), self._cursors[number]
            begin = (await asyncio.to_thread(begin_offsets, self._settings, [here]))[here]
            if begin <= cursor.offset:
                raise ReaderError(
                    f"partition {number} of {self._topic} has no offset {cursor.offset} any more; was the topic made anew?"
                )
            cursor.offset, cursor.alone, cursor.max_bytes = begin, False, PARTITION_BYTES
            if begin >= cursor.stop:  # all that was to be read is gone
                self._arrived.put(Fetched(number, begin, begin))
                del self._cursors[number]
        elif trouble in MOVED or trouble.retriable:
            log.info(
                "partition %d of %s: asking again after %s", number, self._topic, trouble.__name__
            )
            client.force_metadata_update()
            await asyncio.sleep(RETRY_SECONDS)
        else:
            raise ReaderError(
                f"reading {self._topic} failed: {trouble.__name__}: {trouble.description}; see the broker's log"
            )


def end_of(raw: bytes) -> int | None:
    """The offset after the last whole batch in *raw*; None when it holds none."""
    at, found = 0, None
    while at + 27 <= len(raw):
        end = at + 12 + int.from_bytes(raw[at + 8 : at + 12], "big")
        if end > len(raw) or end <= at:
            break
        found = (
            int.from_bytes(raw[at : at + 8], "big", signed=True)
            + int.from_bytes(raw[at + 23 : at + 27], "big")
            + 1
        )
        at = end
    return found
