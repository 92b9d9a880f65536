"""Bulk log reader: everything on a topic from here to its end as of now, as fast as librdkafka goes. It joins no group and commits nothing."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from aiokafka.errors import KafkaError as AiokafkaError
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from streams.blocks import CorruptBatch
from streams.brokers import EMBEDDED_CLUSTER
from streams.settings import Settings, librdkafka_config

log = logging.getLogger(__name__)

REQUEST_SECONDS = 15.0
HOLE_SECONDS = 3.0  # without a record or an end for so long, what is left is asked whether it holds a record at all
STALL_SECONDS = 60.0  # without a record or an end for so long, the broker is taken for gone
WAIT_SECONDS = 0.05  # librdkafka fills a chunk for so long; more would only delay the last chunk
CHUNK_RECORDS = 10_000
BUFFER_KIB = 64 << 10  # what librdkafka may hold, of all partitions together

Partition = tuple[str, int]
"""(full name of the topic, number of the partition)"""


class Record(Protocol):
    """A message as librdkafka hands it out: what is asked of it is made when it is asked."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> list[tuple[str, bytes | None]] | None: ...
    def timestamp(self) -> tuple[int, int]: ...  # (kind, milliseconds since 1970)
    def error(self) -> KafkaError | None: ...


class ReaderError(RuntimeError):
    """The log cannot be read; the message names the topic and the way out."""


# ---------------------------------------------------------------- where a log begins and ends


def partitions_of_topics(settings: Settings, topics: Iterable[str]) -> list[Partition]:
    """All partitions of *topics* (full names), in order. Raises ReaderError when one is missing."""
    return _partitions(AdminClient(librdkafka_config(settings), logger=log), settings, topics)


def begin_offsets(settings: Settings, partitions: Iterable[Partition]) -> dict[Partition, int]:
    """The first offset that is still there, by partition; the end where a partition is empty. Raises ReaderError."""
    admin = AdminClient(librdkafka_config(settings), logger=log)
    return _list_offsets(admin, settings, list(partitions), OffsetSpec.earliest())


def end_offsets(settings: Settings, partitions: Iterable[Partition]) -> dict[Partition, int]:
    """The offset after the last committed record, by partition, right on every broker we run on. Raises ReaderError."""
    admin = AdminClient(librdkafka_config(settings), logger=log)
    wanted = list(partitions)
    ends = _list_offsets(admin, settings, wanted, OffsetSpec.latest())
    if broker_kind(settings, admin) == "embedded":
        ends |= _ends_by_fetching(settings, ends)
    return ends


def broker_kind(settings: Settings, admin: AdminClient | None = None) -> str:
    """"embedded" or "kafka". Raises ReaderError when the broker does not answer."""
    admin = admin or AdminClient(librdkafka_config(settings), logger=log)
    return "embedded" if str(_metadata(admin, settings).cluster_id).startswith(EMBEDDED_CLUSTER) else "kafka"


def _metadata(admin: AdminClient, settings: Settings) -> Any:  # confluent_kafka does not export the type
    try:
        return admin.list_topics(timeout=REQUEST_SECONDS)  # of all topics: to ask for one may create it
    except KafkaException as error:
        raise _unreachable(settings, error) from None


def _unreachable(settings: Settings, error: KafkaException) -> ReaderError:
    return ReaderError(f"the broker at {settings.bootstrap} does not answer: {error.args[0].str()}; see that it runs and that `broker` "
                       "and the login settings are right")


def _partitions(admin: AdminClient, settings: Settings, topics: Iterable[str]) -> list[Partition]:
    listed = _metadata(admin, settings).topics
    wanted = list(topics)
    if absent := [topic for topic in wanted if topic not in listed]:
        raise ReaderError(f"topic {absent[0]} is missing; make it with `waypost topics`")
    return [(topic, number) for topic in wanted for number in sorted(listed[topic].partitions)]


def _list_offsets(admin: AdminClient, settings: Settings, partitions: list[Partition], spec: OffsetSpec) -> dict[Partition, int]:
    until = time.monotonic() + REQUEST_SECONDS
    while partitions:
        try:
            futures = admin.list_offsets({TopicPartition(*partition): spec for partition in partitions},
                                         isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=REQUEST_SECONDS)
            return {(tp.topic, tp.partition): future.result().offset for tp, future in futures.items()}
        except KafkaException as error:
            # A partition that changes its leader, or is just made, says so for a moment.
            if time.monotonic() > until or not (error.args[0].retriable() or error.args[0].code() in _MOVING):
                raise _unreachable(settings, error) from None
            time.sleep(0.1)
    return {}


_MOVING = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART,
           KafkaError.FENCED_LEADER_EPOCH, KafkaError.UNKNOWN_LEADER_EPOCH)  # a leader that was just elected and does not know of it yet


def _ends_by_fetching(settings: Settings, listed: Mapping[Partition, int]) -> dict[Partition, int]:
    """The true ends on the embedded broker, which lists the *first* offset of the last batch plus one instead of the last.

    What it says when records are fetched is right: so fetch that batch, and take the end that comes with it.
    """
    ends: dict[Partition, int] = {}
    asked = {partition: end for partition, end in listed.items() if end > 0}
    if not asked:
        return ends
    consumer = _consumer(settings, len(asked))
    try:
        consumer.assign([TopicPartition(topic, number, end - 1) for (topic, number), end in asked.items()])
        for records, finished in _polled(consumer, settings, CHUNK_RECORDS):
            for record in records + finished:
                partition = (record.topic(), record.partition())
                _, high = consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
                seen = record.offset() + (record.error() is None)
                ends[partition] = max(ends.get(partition, 0), asked[partition], high, seen)
            if len(ends) == len(asked):
                break
    finally:
        consumer.close()
    return ends


# ---------------------------------------------------------------- reading


@dataclass
class Extent:
    """What there is to read of a topic, by partition: `begun` and `stop` are the first offset and the one after the last, `at` the next one."""

    begun: dict[int, int]
    stop: dict[int, int]

    def __post_init__(self) -> None:
        self.at = dict(self.begun)
        self.left = {number for number, offset in self.begun.items() if offset < self.stop[number]}
        self.total = sum(self.stop[number] - self.begun[number] for number in self.left)

    def passed(self) -> int:
        """Offsets passed."""
        return sum(offset - self.begun[number] for number, offset in self.at.items())

    def reached(self, number: int, offset: int) -> None:
        """Everything before *offset* is read; a partition that is at its end is not `left` any more."""
        self.at[number] = max(self.at[number], min(offset, self.stop[number]))
        if self.at[number] >= self.stop[number]:
            self.left.discard(number)


def extent(
    settings: Settings, topic: str, partitions: Collection[int] | None, start: Mapping[int, int] | None, ends: Mapping[int, int] | None
) -> Extent:
    """What `read_log` reads with these arguments. Raises ReaderError."""
    known = partitions_of_topics(settings, [topic])
    wanted = known if partitions is None else [(topic, number) for number in partitions]
    if strange := set(wanted) - set(known):
        raise ReaderError(f"topic {topic} has {len(known)} partitions, and no partition {min(strange)[1]}")
    begun = {number: max(offset, (start or {}).get(number, 0)) for (_, number), offset in begin_offsets(settings, wanted).items()}
    return Extent(begun, {number: (ends or {}).get(number, end) for (_, number), end in end_offsets(settings, wanted).items()})


def read_log(
    settings: Settings,
    topic: str,
    partitions: Collection[int] | None = None,
    *,
    start: Mapping[int, int] | None = None,
    ends: Mapping[int, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
    chunk_records: int = CHUNK_RECORDS,
) -> Iterator[tuple[int, list[Record]]]:
    """Yields (partition, its next records in offset order) until every partition is read to its end as of the start.

    *topic* is the full name. *partitions*: None for all. *start*: first offset by partition, where it is not the beginning. *ends*: offset
    to stop before by partition, where it is not the end. Offsets may have gaps (compaction, transactions), records of aborted transactions
    are left out. *progress* is told (offsets passed, offsets in all) after each chunk. Raises ReaderError.
    """
    todo = extent(settings, topic, partitions, start, ends)

    def tell() -> None:
        if progress:
            progress(todo.passed(), todo.total)

    tell()
    if not todo.left:
        return
    consumer = _consumer(settings, len(todo.left))
    try:
        consumer.assign([TopicPartition(topic, number, todo.at[number]) for number in todo.left])
        for records, finished in _polled(consumer, settings, chunk_records):
            before = set(todo.left)
            for number, chunk in _by_partition(records, before):
                end, after = todo.stop[number], chunk[-1].offset() + 1
                todo.reached(number, after)
                yield number, chunk if after <= end else [record for record in chunk if record.offset() < end]
            for event in finished:
                if event.partition() in before:
                    todo.reached(event.partition(), event.offset())
            if not records and not finished:
                _pass_holes(settings, topic, todo)
            tell()
            for number in before - todo.left:
                consumer.pause([TopicPartition(topic, number)])
            if not todo.left:
                return
    finally:
        consumer.close()


def _pass_holes(settings: Settings, topic: str, todo: Extent) -> None:
    """librdkafka tells the end of a partition only where it has read up to it, and waits where compaction has left no record before it."""
    from streams.replay import without_records  # which reads by what stands above

    left = {number: (todo.at[number], todo.stop[number]) for number in todo.left}
    try:
        empty = without_records(settings, topic, left)
    except (TimeoutError, AiokafkaError, OSError, ReaderError, CorruptBatch) as error:
        log.warning("%s: whether there is more to read cannot be asked at the moment: %r", topic, error)
        return
    for number in empty:
        todo.reached(number, todo.stop[number])


def _by_partition(records: list[Record], left: set[int]) -> Iterable[tuple[int, list[Record]]]:
    """*records* of the partitions that are *left*, each partition's together."""
    grouped: defaultdict[int, list[Record]] = defaultdict(list)
    for record in records:
        grouped[record.partition()].append(record)
    return [(number, chunk) for number, chunk in grouped.items() if number in left]


def _polled(consumer: Consumer, settings: Settings, size: int) -> Iterator[tuple[list[Record], list[Record]]]:
    """What arrives: (records, end-of-partition events), both empty when nothing came for `HOLE_SECONDS`. Never ends by itself.

    Raises ReaderError.
    """
    quiet_since = told = time.monotonic()
    while True:
        records = cast("list[Record]", consumer.consume(size, WAIT_SECONDS))
        events = [record for record in records if record.error() is not None]
        if events:
            records = [record for record in records if record.error() is None]
        finished = [event for event in events if not _is_trouble(event)]
        if records or finished:
            yield records, finished
            quiet_since = told = time.monotonic()
        elif time.monotonic() - told > HOLE_SECONDS:
            yield [], []
            told = time.monotonic()
        if time.monotonic() - quiet_since > STALL_SECONDS:
            raise ReaderError(f"the broker at {settings.bootstrap} has sent nothing for {STALL_SECONDS:g} s, though there is more to "
                              "read; see that it runs, and try again")


_PASSING = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT, KafkaError._RESOLVE)


def _is_trouble(event: Record) -> bool:
    """False for the end of a partition; True for trouble after which librdkafka tries again by itself; else raises ReaderError."""
    error = event.error()
    assert error is not None
    if error.code() == KafkaError._PARTITION_EOF:
        return False
    if error.retriable() or error.code() in _PASSING:
        log.warning("reading goes on after: %s", error.str())
        return True
    raise ReaderError(f"reading {event.topic() or 'the log'} failed: {error.str()} ({error.name()}); see the broker's log")


def _consumer(settings: Settings, partitions: int) -> Consumer:
    return Consumer(librdkafka_config(settings) | {
        "group.id": settings.group,  # librdkafka wants one; nothing is subscribed or committed, so the group never hears of us
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",  # what retention took away meanwhile is gone; the rest follows
        "isolation.level": "read_committed",
        "enable.partition.eof": True,  # the only sign of the end where the last offsets hold no record
        "fetch.wait.max.ms": 50,
        "fetch.queue.backoff.ms": 5,  # its default of a second stops the flow each time the buffer is full
        "queued.max.messages.kbytes": max(1 << 10, BUFFER_KIB // partitions),
    }, logger=log)
