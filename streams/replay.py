"""Replay: a log read in whole record batches, as fast as the wire goes: no object is made of a record. It joins no group and commits nothing.

Fetches run in a thread of their own, one at a time to each broker, while what they brought is worked on; aiokafka's client knows the brokers.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from aiokafka import errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import TopicPartition

from streams.blocks import Block, CorruptBatch, unpack
from streams.reader import STALL_SECONDS, Extent, ReaderError, begin_offsets, extent
from streams.settings import Settings, aiokafka_kwargs

log = logging.getLogger(__name__)

PARTITION_BYTES = 1 << 20  # of one fetch; what is longer than that comes alone
REQUEST_PARTITIONS = 32  # so that no broker's limit for one answer leaves a partition out
HELD_BYTES = 32 << 20  # fetched and not yet worked on
WAIT_MS = 100
RETRY_SECONDS = 0.1
READ_COMMITTED = 1
MOVED = (errors.NotLeaderForPartitionError, errors.UnknownTopicOrPartitionError, errors.LeaderNotAvailableError)


class Fetched(NamedTuple):
    partition: int
    raw: bytes
    from_offset: int
    aborted: list[tuple[int, int]]
    """(producer id, first offset) of transactions that were aborted."""
    committed: int
    """The offset up to which records are committed."""


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

    A block may be empty where the log holds no records. Raises ReaderError.
    """
    todo = extent(settings, topic, partitions, start, ends)
    if progress:
        progress(todo.passed(), todo.total)
    if not todo.left:
        return
    fetching = Fetching(settings, topic, todo)
    fetching.start()
    try:
        while todo.left:
            fetched = fetching.take()
            number, end = fetched.partition, todo.stop[fetched.partition]
            try:
                block = unpack(fetched.raw, fetched.from_offset, fetched.aborted)
            except CorruptBatch as error:
                raise ReaderError(f"partition {number} of {topic}: {error}; see the broker's log") from None
            nothing_left = block.next == fetched.from_offset and fetched.committed >= end  # its last offsets hold no record
            todo.reached(number, end if nothing_left else block.next)
            if progress:
                progress(todo.passed(), todo.total)
            if block.next > fetched.from_offset:
                yield number, block.before(end)
    finally:
        fetching.end()


class Fetching(threading.Thread):
    """Fetches what *todo* says, and goes on until it is all there or `end()` is called."""

    def __init__(self, settings: Settings, topic: str, todo: Extent) -> None:
        super().__init__(name="replay", daemon=True)
        self._settings, self._topic = settings, topic
        self._offsets = {number: todo.at[number] for number in todo.left}
        self._stops = dict(todo.stop)
        self._arrived: queue.SimpleQueue[Fetched | BaseException] = queue.SimpleQueue()
        self._held = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def take(self) -> Fetched:
        """What was fetched next; waits for it. Raises ReaderError when nothing comes for long, or never will."""
        try:
            found = self._arrived.get(timeout=STALL_SECONDS)
        except queue.Empty:
            raise ReaderError(f"the broker at {self._settings.bootstrap} has sent nothing for {STALL_SECONDS:g} s, though there is more to read; "
                              "see that it runs, and try again") from None
        if isinstance(found, ReaderError):
            raise found
        if isinstance(found, BaseException):
            raise ReaderError(f"reading {self._topic} failed: {found!r}; see the broker's log") from found
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
            while self._offsets and not self._ended.is_set():
                for node in [node for node, task in asking.items() if task.done()]:
                    asking.pop(node).result()
                if self._held < HELD_BYTES:
                    for node, numbers in self._by_leader(client).items():
                        if node not in asking:
                            asking[node] = asyncio.create_task(self._fetch(client, node, numbers[:REQUEST_PARTITIONS]))
                if asking:
                    await asyncio.wait(asking.values(), timeout=WAIT_MS / 1000, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(0.002)
        finally:
            for task in asking.values():
                task.cancel()
            await client.close()

    def _by_leader(self, client: Any) -> dict[int, list[int]]:
        """Broker -> partitions that it leads and that have more to bring, those furthest behind first."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for number in sorted(self._offsets, key=lambda number: self._offsets[number]):
            leader = client.cluster.leader_for_partition(TopicPartition(self._topic, number))
            if leader is None or leader == -1:
                client.force_metadata_update()
            else:
                found[leader].append(number)
        return found

    async def _fetch(self, client: Any, node: int, numbers: list[int]) -> None:
        asked = [(number, self._offsets[number], PARTITION_BYTES) for number in numbers]
        request = FetchRequest(WAIT_MS, 1, PARTITION_BYTES * len(asked), READ_COMMITTED, [(self._topic, asked)])
        try:
            response = await client.send(node, request)
        except (TimeoutError, errors.KafkaError, OSError) as error:
            log.warning("reading goes on after: %r", error)
            client.force_metadata_update()
            await asyncio.sleep(RETRY_SECONDS)
            return
        offsets = {number: offset for number, offset, _ in asked}
        for _, parts in response.topics:
            for number, code, _, committed, *more, raw in parts:
                if self._offsets.get(number) != offsets[number]:
                    continue  # another broker has brought it meanwhile
                aborted = more[1 if response.API_VERSION >= 5 else 0] or []
                trouble = errors.for_code(code)
                if trouble is errors.NoError:
                    self._arrive(Fetched(number, raw, offsets[number], aborted, committed), response.throttle_time_ms > 0)
                else:
                    await self._mend(client, number, trouble)

    def _arrive(self, fetched: Fetched, throttled: bool) -> None:
        """Hands over what came, and asks for what is behind it next."""
        following = end_of(fetched.raw)
        if following is not None:
            self._offsets[fetched.partition] = following
        elif throttled or fetched.committed < self._stops[fetched.partition]:
            return  # nothing yet
        with self._lock:
            self._held += len(fetched.raw)
        self._arrived.put(fetched)
        if following is None or following >= self._stops[fetched.partition]:
            del self._offsets[fetched.partition]

    async def _mend(self, client: Any, number: int, trouble: type[errors.KafkaError]) -> None:
        if trouble is errors.OffsetOutOfRangeError:  # retention took it away meanwhile; the rest follows
            here = (self._topic, number)
            begin = (await asyncio.to_thread(begin_offsets, self._settings, [here]))[here]
            if begin <= self._offsets[number]:
                raise ReaderError(f"partition {number} of {self._topic} has no offset {self._offsets[number]} any more; was the topic made anew?")
            self._offsets[number] = begin
        elif trouble in MOVED or trouble.retriable:
            client.force_metadata_update()
            await asyncio.sleep(RETRY_SECONDS)
        else:
            raise ReaderError(f"reading {self._topic} failed: {trouble.__name__}: {trouble.description}; see the broker's log")


def end_of(raw: bytes) -> int | None:
    """The offset after the last whole batch in *raw*; None when it holds none."""
    at, found = 0, None
    while at + 27 <= len(raw):
        end = at + 12 + int.from_bytes(raw[at + 8 : at + 12], "big")
        if end > len(raw) or end <= at:
            break
        found = int.from_bytes(raw[at : at + 8], "big", signed=True) + int.from_bytes(raw[at + 23 : at + 27], "big") + 1
        at = end
    return found
