"""Seen: which values activities had lately, to be offered where rules ask for one. Reads the end of the log when asked; keeps what it saw."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas import codec
from schemas.activity import FIELDS
from schemas.errors import Refused

from .kafka import ASK_SECONDS, broker

SAMPLED = 20_000  # activities, of all partitions, from the end of the log
FRESH_SECONDS = 30.0
MAX_VALUES = 5000  # of a field, remembered: those seen most often
READ_SECONDS = 3.0


class Seen:
    """Values of the newest activities, by field: `type` and the fields that rules test."""

    def __init__(self, topic: str, kafka: dict[str, Any], partition_count: int) -> None:
        self._tps = [TopicPartition(topic, p) for p in range(partition_count)]
        self._kafka = kafka
        self._counts: dict[str, Counter[str]] = {}
        self._read_at: float | None = None
        self._lock = asyncio.Lock()

    async def values(self, field: str, containing: str, limit: int) -> list[dict[str, Any]]:
        """`{value, activities}` of *field*, those with *containing* in it, whatever its case, the most frequent first. Raises `ApiError` (503)."""
        async with self._lock:
            if self._read_at is None or time.monotonic() - self._read_at > FRESH_SECONDS:
                async with broker(ASK_SECONDS + READ_SECONDS):
                    self._counts = await self._read()
                self._read_at = time.monotonic()
        folded = containing.casefold()
        found = [(value, n) for value, n in self._counts.get(field, Counter()).items() if folded in value.casefold()]
        found.sort(key=lambda item: (-item[1], item[0]))
        return [{"value": value, "activities": n} for value, n in found[:limit]]

    async def _read(self) -> dict[str, Counter[str]]:
        counts: dict[str, Counter[str]] = {name: Counter() for name in ("type", *FIELDS)}
        consumer = AIOKafkaConsumer(enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed", **self._kafka)
        await consumer.start()
        try:
            begins, ends = await consumer.beginning_offsets(self._tps), await consumer.end_offsets(self._tps)
            todo = {tp: end for tp, end in ends.items() if end > begins[tp]}
            if todo:
                consumer.assign(list(todo))
                each = SAMPLED // len(todo)
                for tp, end in todo.items():
                    consumer.seek(tp, max(begins[tp], end - each))
            until = time.monotonic() + READ_SECONDS
            while todo and time.monotonic() < until:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        _count(record.value, counts)
                # by positions: the last offsets may hold no record, but the marker of a transaction
                todo = {tp: end for tp, end in todo.items() if await consumer.position(tp) < end}
        finally:
            await consumer.stop()
        return {name: Counter(dict(found.most_common(MAX_VALUES))) for name, found in counts.items()}


def _count(value: bytes | None, counts: dict[str, Counter[str]]) -> None:
    try:
        activity = codec.decode_activity(value)
    except Refused:
        return
    for name, counter in counts.items():
        said = getattr(activity, name)
        if isinstance(said, str) and said:
            counter[said] += 1
