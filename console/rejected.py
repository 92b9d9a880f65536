"""Rejected: reads the rejected topic, newest records first, page by page. Sends nothing and mends nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from .errors import ApiError
from .kafka import broker, ends_by_fetching
from .results import encode_cursor

READ_SECONDS = 10.0
PAGE_BYTES = 8 * 1024 * 1024  # of keys and values: records may have a mebibyte each
OURS = {"waypost_error", "waypost_topic", "waypost_partition", "waypost_offset", "waypost_rejected_at"}
Uppers = dict[int, int]
"""partition -> the offset below which the next page begins"""


class Page(NamedTuple):
    rejected: list[dict[str, Any]]
    cursor: str | None


class RejectedReader:
    """Reads without a group; a consumer of its own for every page."""

    def __init__(self, topic: str, kafka: Mapping[str, Any]) -> None:
        self._topic = topic
        self._kafka = dict(kafka)
        self.exact_ends = True

    async def page(self, limit: int, cursor: str | None) -> Page:
        """At most *limit* records, newest first. Raises `ApiError`: 404 for a cursor that we never gave, 503 when the broker does not answer."""
        uppers = None if cursor is None else decode(cursor)
        async with broker(READ_SECONDS):
            consumer = AIOKafkaConsumer(self._topic, enable_auto_commit=False, auto_offset_reset="earliest", **self._kafka)
            await consumer.start()  # without a group it has all partitions at once
            try:
                partitions = sorted(consumer.assignment())
                consumer.unsubscribe()
                ends = await consumer.end_offsets(partitions)
                if not self.exact_ends:
                    ends = await ends_by_fetching(consumer, ends)
                return await _page(consumer, partitions, ends, limit, uppers)
            finally:
                await consumer.stop()


async def _page(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition], ends: dict[TopicPartition, int], limit: int, uppers: Uppers | None
) -> Page:
    begins = await consumer.beginning_offsets(partitions)
    upper = {tp: ends[tp] if uppers is None else min(ends[tp], uppers.get(tp.partition, ends[tp])) for tp in partitions}
    found = [await _below(consumer, tp, begins[tp], upper[tp], limit) for tp in partitions]
    shown = newest_first(found, limit)
    following = {tp.partition: min([upper[tp], *(r.offset for r in shown if r.partition == tp.partition)]) for tp in partitions}
    more = any(following[tp.partition] > begins[tp] for tp in partitions)
    return Page([row(record) for record in shown], encode(following) if shown and more else None)


def newest_first(partitions: list[list[Any]], limit: int) -> list[Any]:
    """At most *limit* records and `PAGE_BYTES`, newest first, never one before a later one of its own partition."""
    left = [list(records) for records in partitions if records]
    shown: list[Any] = []
    size = 0
    while left and len(shown) < limit:
        records = max(left, key=lambda one: one[-1].timestamp)
        size += len(records[-1].key or b"") + len(records[-1].value or b"")
        if shown and size > PAGE_BYTES:
            break
        shown.append(records.pop())
        left = [records for records in left if records]
    return shown


async def _below(consumer: AIOKafkaConsumer, tp: TopicPartition, begin: int, upper: int, limit: int) -> list[Any]:
    """The last *limit* records of *tp* below *upper*."""
    records: list[Any] = []
    stop, reach = upper, limit
    while stop > begin and len(records) < limit:
        start = max(begin, stop - reach)
        records = await _between(consumer, tp, start, stop) + records
        stop, reach = start, reach * 2  # offsets without records: look further
    return records[-limit:]


async def _between(consumer: AIOKafkaConsumer, tp: TopicPartition, start: int, stop: int) -> list[Any]:
    consumer.assign([tp])
    consumer.seek(tp, start)
    records: list[Any] = []
    while await consumer.position(tp) < stop:
        fetched = await consumer.getmany(tp, timeout_ms=500)
        records += [record for record in fetched.get(tp, ()) if record.offset < stop]
    return records


def row(record: Any) -> dict[str, Any]:
    """A record as the API shows it."""
    headers = dict(record.headers or ())

    def number(name: str) -> int | None:
        value = headers.get(name, b"")
        return int(value) if value.isdigit() else None

    key, key64 = _text(record.key)
    value, value64 = _text(record.value)
    at = headers.get("waypost_rejected_at")
    topic = headers.get("waypost_topic")
    return {
        "topic": None if topic is None else topic.decode(errors="replace"),
        "partition": number("waypost_partition"),
        "offset": number("waypost_offset"),
        "rejected_at": None if at is None else at.decode(errors="replace"),
        "error": headers.get("waypost_error", b"").decode(errors="replace"),
        "key": key,
        "key_base64": key64,
        "value": value,
        "value_base64": value64,
        "headers": [
            {"name": name, "value": None if v is None else v.decode(errors="replace")} for name, v in record.headers or () if name not in OURS
        ],
    }


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
    except (ValueError, TypeError, RecursionError):
        raise ApiError(404, "unknown_cursor", "there is no such page: give back the cursor of the page before as it is, or none", "cursor") from None
    return found
