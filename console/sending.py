"""Sending: brings files of facts (JSON lines) to their topics, the bad lines told with their reasons. Speaks Kafka, not the HTTP API."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from confluent_kafka import KafkaException, Producer

from schemas import codec
from schemas.errors import Refused
from schemas.wire import MAX_BYTES
from streams.partitioner import partition_of
from streams.settings import Settings, librdkafka_config
from streams.topics import topic_name

from .facts import Kind
from .kafka import now_ms

POLL_EVERY = 500  # lines
LONGEST_LINE = 8 * MAX_BYTES


class CannotSend(RuntimeError):
    """The broker does not take what is sent; the message says why."""


class Bad(NamedTuple):
    line: int  # from 1
    error: Refused


def lines(source: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """`(line number from 1, line without its end, bytes read)`; empty lines are left out. An endless line is cut, which makes it bad."""
    number = 0
    while line := source.readline(LONGEST_LINE):
        number += 1
        read = len(line)
        while not line.endswith(b"\n") and (rest := source.readline(LONGEST_LINE)):
            read += len(rest)
            if rest.endswith(b"\n"):
                break
        stripped = line.strip()
        if stripped:
            yield number, stripped, read


class Sender:
    """Sends facts of one kind. `bad` collects what was refused, here or by the broker."""

    def __init__(self, settings: Settings, kind: Kind, partition_count: int) -> None:
        self._kind = kind
        self._topic = settings.topic_prefix + kind.source
        self._ahead_ms = settings.max_future_ms
        self._partition_count = partition_count
        self.sent = 0
        self.bad: list[Bad] = []
        self._lock = threading.Lock()
        config: dict[str, Any] = {
            **librdkafka_config(settings),
            "acks": "all",
            "linger.ms": 20,
            "batch.size": 512 * 1024,
            "message.max.bytes": 4 * MAX_BYTES,
            "queue.buffering.max.messages": 100_000,
            "message.timeout.ms": 60_000,
            "log_level": 2,
        }
        self._producer = Producer(config)

    def line(self, number: int, raw: bytes) -> None:
        """Checks one line and hands it to the producer. Raises `CannotSend`."""
        try:
            key = self._kind.read(raw)
            codec.refuse_future(key.at_ms, now_ms(), self._ahead_ms)
        except Refused as error:
            self.bad.append(Bad(number, error))
            return
        contact = key.contact.encode()

        def delivered(error: Any, _: Any) -> None:
            with self._lock:
                if error is None:
                    self.sent += 1
                else:
                    self.bad.append(Bad(number, Refused("not_sent", f"the broker did not take it: {error.str()}; send the line again")))

        while True:
            try:
                self._producer.produce(self._topic, raw, contact, partition_of(contact, self._partition_count), delivered)
                break
            except BufferError:
                self._producer.poll(0.5)
            except KafkaException as error:
                self.bad.append(Bad(number, Refused("not_sent", f"the broker did not take it: {error.args[0].str()}")))
                break
        if number % POLL_EVERY == 0:
            self._producer.poll(0)

    def finish(self, waiting: Callable[[int], None]) -> None:
        """Waits until the broker has everything; *waiting* hears how many are on their way."""
        while left := self._producer.flush(0.5):
            waiting(left)
        self.bad.sort(key=lambda bad: bad.line)


def partition_count(settings: Settings, kind: Kind) -> int:
    """How many partitions the topic of *kind* has. Raises `CannotSend` when the broker does not answer or there is no such topic."""
    topic = settings.topic_prefix + kind.source
    producer = Producer({**librdkafka_config(settings), "log_level": 2})
    try:
        found = producer.list_topics(timeout=15.0).topics.get(topic)
    except KafkaException as error:
        raise CannotSend(
            f"the broker at {settings.bootstrap} does not answer: {error.args[0].str()}; see that it runs and that --broker is right"
        ) from None
    if found is None or not found.partitions:
        raise CannotSend(f"there is no topic {topic} at {settings.bootstrap}; make it with `waypost topics`")
    return len(found.partitions)


def write_record(settings: Settings, topic: str, key: bytes, value: bytes) -> None:
    """Writes one record to partition 0 of a topic of ours. Raises `CannotSend` unless the broker has it."""
    failed: list[str] = []
    config = {**librdkafka_config(settings), "acks": "all", "message.timeout.ms": 15_000, "log_level": 2}
    try:
        producer = Producer(config)
        producer.produce(
            topic_name(settings, topic), value, key, 0,
            lambda error, _: failed.append(error.str()) if error is not None else None,
        )  # fmt: skip
        producer.flush()
    except KafkaException as error:
        failed.append(error.args[0].str())
    if failed:
        raise CannotSend(f"the broker did not take the record: {failed[0]}; try again")
