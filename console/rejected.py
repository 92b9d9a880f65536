"""Rejected: reads the rejected topic: newest records first, page by page, or named ones. Sends nothing and mends nothing."""

from __future__ import annotations

import base64
import json
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas.errors import Refused
from schemas.times import parse_ms
from streams.replay import holds_nothing

from .errors import ApiError
from .kafka import broker, ends_by_fetching
from .results import encode_cursor

READ_SECONDS = 10.0
PAGE_BYTES = 8 * 1024 * 1024  # of keys and values: records may have a mebibyte each
FILTER_SECONDS = 3.0  # a page that filters ends after so long, with what it found and a cursor
NEAR = 200  # records that are read over sooner than fetched anew
READ_AT_LEAST = 50  # records of a partition at once
OURS = ("waypost_error", "waypost_topic", "waypost_partition", "waypost_offset", "waypost_rejected_at")
TRUNCATED = "waypost_truncated"
"""Stands before them where the record was too large to be kept whole."""
ID = re.compile(r"(0|[1-9][0-9]{0,5})-(0|[1-9][0-9]{0,17})")
Uppers = dict[int, int]
"""partition -> the offset below which the next page begins"""


class Id(NamedTuple):
    """Which rejected record is meant: where it stands on the rejected topic. As text `partition-offset`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"


def parse_id(text: str) -> Id | None:
    """The id that *text* says; None when it is none."""
    found = ID.fullmatch(text)
    return Id(int(found[1]), int(found[2])) if found else None


class Filter(NamedTuple):
    """Which records are meant; None: any. `topic`: its full name; `error`: a part of the reason, in lower case; times in milliseconds."""

    topic: str | None = None
    error: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    def takes(self, record: Any) -> bool:
        """Whether *record* is meant."""
        if self == EVERYTHING:
            return True
        headers = dict(record.headers or ())
        if self.topic is not None and _said(headers, "waypost_topic") != self.topic:
            return False
        if self.error is not None and self.error not in _said(headers, "waypost_error").lower():
            return False
        if self.since_ms is None and self.until_ms is None:
            return True
        at_ms = rejected_at_ms(record)
        return at_ms is not None and (self.since_ms is None or at_ms >= self.since_ms) and (self.until_ms is None or at_ms < self.until_ms)


EVERYTHING = Filter()


class Page(NamedTuple):
    rejected: list[dict[str, Any]]
    cursor: str | None


class RejectedReader:
    """Reads without a group; a consumer of its own for every page."""

    def __init__(self, topic: str, kafka: Mapping[str, Any]) -> None:
        self._topic = topic
        self._kafka = dict(kafka)
        self.exact_ends = True

    async def page(self, limit: int, cursor: str | None, wanted: Filter = EVERYTHING) -> Page:
        """At most *limit* records that are *wanted*, newest first. Raises `ApiError`: 404 for a cursor that we never gave, 503 when the broker does
        not answer."""
        uppers = None if cursor is None else decode(cursor)
        async with self._consumer() as (consumer, partitions, begins, ends):
            upper = {tp: ends[tp] if uppers is None else min(ends[tp], uppers.get(tp.partition, ends[tp])) for tp in partitions}
            return await _page(consumer, begins, upper, limit, wanted)

    async def records(self, ids: Iterable[Id]) -> dict[Id, Any]:
        """The records that *ids* name, None for one that is not there; those of the first `PAGE_BYTES`, at least one. Raises `ApiError` (503)."""
        found: dict[Id, Any] = {}
        size = 0
        async with self._consumer() as (consumer, partitions, begins, ends):
            by_number = {tp.partition: tp for tp in partitions}
            held = None
            for id_ in sorted(set(ids)):
                tp = by_number.get(id_.partition)
                if tp is None or not begins[tp] <= id_.offset < ends[tp]:
                    found[id_] = None
                    continue
                if size > PAGE_BYTES:
                    break
                if held is None or held.partition != tp.partition or id_.offset - held.offset > NEAR:
                    consumer.assign([tp])
                    consumer.seek(tp, id_.offset)
                    held = None
                while held is None or held.offset < id_.offset:
                    held = await consumer.getone(tp)
                found[id_] = held if held.offset == id_.offset else None
                size += len(held.value or b"")
        return found

    @asynccontextmanager
    async def _consumer(self) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition], dict[TopicPartition, int], dict[TopicPartition, int]]]:
        """A consumer, all partitions of the topic, where they begin and where they end."""
        async with broker(READ_SECONDS):
            consumer = AIOKafkaConsumer(self._topic, enable_auto_commit=False, auto_offset_reset="earliest", **self._kafka)
            await consumer.start()  # without a group it has all partitions at once
            try:
                partitions = sorted(consumer.assignment())
                consumer.unsubscribe()
                ends = await consumer.end_offsets(partitions)
                if not self.exact_ends:
                    ends = await ends_by_fetching(consumer, ends)
                yield consumer, partitions, await consumer.beginning_offsets(partitions), ends
            finally:
                await consumer.stop()


async def _page(
    consumer: AIOKafkaConsumer, begins: Mapping[TopicPartition, int], upper: dict[TopicPartition, int], limit: int, wanted: Filter
) -> Page:
    shown: list[Any] = []
    size, enough_at = 0, time.monotonic() + FILTER_SECONDS
    while True:
        found = [await _below(consumer, tp, begins[tp], upper[tp], max(limit - len(shown), READ_AT_LEAST)) for tp in upper]
        looked = newest_first(found)
        for record in looked:
            takes = wanted.takes(record)
            size += len(record.key or b"") + len(record.value or b"") if takes else 0
            if shown and size > PAGE_BYTES:
                break
            upper[TopicPartition(record.topic, record.partition)] = record.offset
            if takes:
                shown.append(record)
            if len(shown) == limit:
                break
        more = bool(looked) and any(upper[tp] > begins[tp] for tp in upper)
        if not more or len(shown) == limit or size > PAGE_BYTES or time.monotonic() > enough_at:
            following = {tp.partition: offset for tp, offset in upper.items()}
            return Page([row(record) for record in shown], encode(following) if more else None)


def newest_first(partitions: list[list[Any]]) -> list[Any]:
    """Records, newest first, never one before a later one of its own partition, and none beyond what was read of a partition."""
    left = [list(records) for records in partitions if records]
    found: list[Any] = []
    while left:
        records = max(left, key=lambda one: one[-1].timestamp)
        found.append(records.pop())
        if not records:
            break  # older ones of this partition may be newer than what is left of the others
    return found


async def _below(consumer: AIOKafkaConsumer, tp: TopicPartition, begin: int, upper: int, limit: int) -> list[Any]:
    """The last *limit* records of *tp* below *upper*, at most about `PAGE_BYTES` of them."""
    records: list[Any] = []
    stop, reach, size = upper, limit, 0
    while stop > begin and len(records) < limit and size < PAGE_BYTES:
        start = max(begin, stop - reach)
        older, cut = await _between(consumer, tp, start, stop)
        records = older + records
        if cut:
            break
        size = sum(len(record.value or b"") for record in records)
        stop, reach = start, reach * 2  # offsets without records: look further
    return records[-limit:]


async def _between(consumer: AIOKafkaConsumer, tp: TopicPartition, start: int, stop: int) -> tuple[list[Any], bool]:
    """The records of *tp* from *start* to below *stop*, of many bytes the last `PAGE_BYTES`; and whether some were left out."""
    consumer.assign([tp])
    consumer.seek(tp, start)
    records: deque[Any] = deque()
    size, cut = 0, False
    while await consumer.position(tp) < stop:
        fetched = await consumer.getmany(tp, timeout_ms=500)
        if not fetched and await holds_nothing(consumer._client, tp, await consumer.position(tp), stop):
            break
        for record in fetched.get(tp, ()):
            if record.offset < stop:
                records.append(record)
                size += len(record.value or b"")
        while len(records) > 1 and size > PAGE_BYTES:
            size, cut = size - len(records.popleft().value or b""), True
    return list(records), cut


def row(record: Any) -> dict[str, Any]:
    """A record as the API shows it."""
    headers = dict(record.headers or ())  # of a name that comes twice the last: ours stand behind the record's own

    def number(name: str) -> int | None:
        value = headers.get(name) or b""
        return int(value) if value.isdigit() and len(value) < 20 else None

    key, key64 = _text(record.key)
    value, value64 = _text(record.value)
    return {
        "id": str(Id(record.partition, record.offset)),
        "topic": _said(headers, "waypost_topic") or None,
        "partition": number("waypost_partition"),
        "offset": number("waypost_offset"),
        "rejected_at": _said(headers, "waypost_rejected_at") or None,
        "error": _said(headers, "waypost_error"),
        "key": key,
        "key_base64": key64,
        "value": value,
        "value_base64": value64,
        "headers": [{"name": name, "value": None if v is None else v.decode(errors="replace")} for name, v in own_headers(record)],
    }


def own_headers(record: Any) -> list[tuple[str, bytes | None]]:
    """The headers with which *record* came: all but those that its last rejection added."""
    headers = list(record.headers or ())
    if truncated_bytes(record) is not None:
        del headers[-len(OURS) - 1]
    for name in OURS:
        places = [i for i, (one, _) in enumerate(headers) if one == name]
        if places:
            del headers[places[-1]]
    return headers


def truncated_bytes(record: Any) -> int | None:
    """How many bytes *record* had when it came, where less is kept of it; None where it is whole."""
    name, value = ("", None) if len(record.headers or ()) <= len(OURS) else record.headers[-len(OURS) - 1]
    return int(value) if name == TRUNCATED and value is not None and value.isdigit() and len(value) < 20 else None


def rejected_at_ms(record: Any) -> int | None:
    """When *record* was rejected; None when it does not say."""
    try:
        return parse_ms(_said(dict(record.headers or ()), "waypost_rejected_at"))
    except Refused:
        return None


def _said(headers: Mapping[str, bytes | None], name: str) -> str:
    return (headers.get(name) or b"").decode(errors="replace")


def _text(raw: bytes | None) -> tuple[str | None, str | None]:
    if raw is None:
        return None, None
    try:
        return raw.decode(), None
    except UnicodeDecodeError:
        return None, base64.b64encode(raw).decode()


def encode(uppers: Uppers) -> str:
    return encode_cursor(json.dumps(sorted(uppers.items())).encode())


def decode(cursor: str) -> Uppers:
    try:
        found = {int(p): int(o) for p, o in json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))}
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise ApiError(404, "unknown_cursor", "there is no such page: give back the cursor of the page before as it is, or none", "cursor") from None
    return found
