"""Loopback: the real partitions of a worker over logs in memory, without a broker. For tests of what agents do with a chunk."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka.errors import MessageSizeTooLargeError

from agents import questions
from agents.partition import SOURCES, Context, Partition
from schemas.journey import Journey, parse_journey
from state.ledger import Memory
from state.matching import Matcher
from streams.partitioner import partition_of
from streams.topics import BY_NAME
from tests.support import PATIENCE_SECONDS
from tests.support.recalculating import Recalculating

CHANGELOG = "changelog"
TOPICS = {name: f"waypost.{name}" for name in (*SOURCES, "stage-changes", "rejected", "totals")}

RECORD_BYTES = 1000
"""That a record of a few short headers takes in a batch of its own, beside what it says, at most."""


@dataclass
class Record:
    """A record in a log."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)


class Logs:
    """Topics in memory; acknowledges at once, in order. Takes no larger records than the topics do."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.logs: dict[tuple[str, int], list[Record]] = {}
        self._round = itertools.count()

    def log(self, topic: str, partition: int) -> list[Record]:
        return self.logs.setdefault((topic, partition), [])

    def append(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any = (), at_ms: int = 0
    ) -> int:
        log = self.log(topic, partition)
        limit_bytes = BY_NAME["evidence-changelog" if topic == CHANGELOG else topic.removeprefix("waypost.")].max_message_bytes
        if sum(len(part or b"") for part in (key, value, *(said for _, said in headers))) > limit_bytes - RECORD_BYTES:
            raise MessageSizeTooLargeError(f"{topic}: {len(value or b'')} bytes")  # as Kafka says
        log.append(Record(len(log), at_ms, key, value, list(headers)))
        return len(log) - 1

    def all(self, topic: str) -> list[Record]:
        return [record for p in range(self.partitions) for record in self.log(topic, p)]

    async def _acknowledged(self, result: Any = None) -> Any:
        await asyncio.sleep(0)
        return result


class Outward(Logs):
    """What leaves partitions, and what is sent to them."""

    async def send(self, topic: str, records: list[Any]) -> Any:
        for partition, key, value, headers, at_ms in records:
            by_key = next(self._round) % self.partitions if key is None else partition_of(key, self.partitions)
            self.append(topic, by_key if partition is None else partition, key, value, headers, at_ms)
        return self._acknowledged()

    def beside(self, run: Coroutine[Any, Any, None]) -> None:
        self.last = asyncio.ensure_future(run)


class Changelog(Logs):
    """The changelog of all partitions."""

    def frozen(self, partition: int) -> bool:
        return False

    async def owned(self, partition: int) -> None:
        return None

    async def send(self, partition: int, items: list[tuple[bytes, bytes | None]]) -> Any:
        offset = None
        for key, value in items:
            offset = self.append(CHANGELOG, partition, key, value)
        return self._acknowledged(offset)


class Loopback:
    """Partitions 0..n-1 with their ledgers in *data_dir*; `settle` processes all logs to their ends, handoffs included."""

    def __init__(self, data_dir: Path, partitions: int = 3, now_ms: int = 4_000_000_000_000, chunk: int = 50) -> None:
        self.out, self.changelog = Outward(partitions), Changelog(partitions)
        self.chunk = chunk
        self.failures: list[BaseException] = []
        self.context = Context(
            partitions=partitions, data_dir=data_dir, memory=Memory(16), topics=TOPICS, outward=self.out, changelog=self.changelog,
            now_ms=lambda: now_ms, failed=self.failures.append, ahead_ms=0, max_merges=10_000, matcher=Matcher({}), catalog={},
            reflected=lambda topic, partition: self.done.get((topic, partition), 0),
        )  # fmt: skip
        self.partitions: dict[int, Partition] = {}
        self.recalculating = Recalculating(
            self.context, lambda: self.partitions, lambda source, p: self.out.log(TOPICS[source], p),
            lambda p, key, value: self.send("rebuilt-evidence", value, key.decode(), partition=p), self._reconcile,
        )  # fmt: skip
        self.done: dict[tuple[str, int], int] = {}  # (topic, partition) -> committed offset

    def open(self) -> None:
        for number in range(self.context.partitions):
            self.recover(number)
        self.recalculating.apply()

    def recover(self, number: int) -> None:
        """Opens a partition, joins what the changelog has beyond it, activates it."""
        partition = self.partitions[number] = Partition(number, self.context)
        have = partition.changelog_offset()
        rest = self.changelog.log("changelog", number)[0 if have is None else have + 1 :]
        for i in range(0, len(rest), 7):
            partition.recover(rest[i : i + 7], rest[i : i + 7][-1].offset)
        partition.activate({source: len(self.out.log(TOPICS[source], number)) for source in SOURCES})

    def _reconcile(self) -> None:
        for partition in self.partitions.values():
            partition.reconcile()

    def apply(self, journey: dict[str, Any] | Journey) -> None:
        """A journey on the topic; its rules are collected as the next `settle` goes on."""
        parsed = journey if isinstance(journey, Journey) else parse_journey(journey)
        self.context.catalog[parsed.id] = parsed
        self.recalculating.apply()

    def send(
        self,
        source: str,
        fact: dict[str, Any] | bytes | None,
        key: str | None = None,
        at_ms: int = 0,
        partition: int | None = None,
    ) -> None:
        """Puts a fact on a source topic, in the partition of its key unless told otherwise."""
        value = json.dumps(fact).encode() if isinstance(fact, dict) else fact
        if key is None and isinstance(fact, dict):
            key = fact.get("from") or fact.get("contact_id")
        where = partition_of(key or "", self.context.partitions) if partition is None else partition
        self.out.append(TOPICS[source], where, None if key is None else key.encode(), value, at_ms=at_ms)

    async def step(self, source: str, number: int) -> bool:
        """Submits the next chunk of one source partition; whether there was one."""
        topic = TOPICS[source]
        log, at = self.out.log(topic, number), self.done.get((topic, number), 0)
        chunk = log[at : at + self.chunk]
        if not chunk:
            return False
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self.partitions[number].submit(source, chunk, lambda: finished.set_result(None))
        await asyncio.wait_for(finished, PATIENCE_SECONDS)
        self.done[topic, number] = at + len(chunk)
        return True

    async def settle(self, order: Callable[[list[tuple[str, int]]], None] = lambda _: None) -> None:
        """Processes until nothing is left, recalculations included; *order* may shuffle which source partition comes next."""
        await self._settle(order)
        for _ in self.recalculating.steps():
            await self._settle(order)

    async def _settle(self, order: Callable[[list[tuple[str, int]]], None]) -> None:
        moved = True
        while moved:
            places = [(source, number) for source in SOURCES for number in self.partitions]
            order(places)
            moved = any([await self.step(*place) for place in places])
            for partition in self.partitions.values():
                await partition.drain()  # a view begins once the changelog knows of it
                for scan in [*partition.building.scans.values(), *partition.comparing.tasks.values()]:
                    await scan
                await partition.drain()
        if self.failures:
            raise self.failures[0]

    async def close(self) -> None:
        for partition in self.partitions.values():
            await partition.close()
        self.partitions.clear()

    def counts(self, journey: str, group: str | None = None, version: int | None = None) -> list[int]:
        """Converted, a number a stage."""
        stages = len(self.context.catalog[journey].stages)
        found = [questions.results(p, journey, version, None, group)["cells"] for p in self.partitions.values()]
        return [
            sum(n for cells in found for kind, s, _, n in cells if kind == "r" and s == k) for k in range(1, stages + 1)
        ]

    def listed(
        self, journey: str, stage: int, who: str, group: str | None = None, page: int = 3
    ) -> tuple[int, list[tuple[str, int]]]:
        """Total and all rows `(contact, reached_at_ms)` of a list, read in small pages."""
        total, rows = 0, []
        for partition in self.partitions.values():
            after = None
            while True:
                answer = questions.listed(partition, journey, None, None, stage, who, group, page, after)
                if not answer["rows"]:
                    break
                rows += [(row["contact_id"], row["reached_at_ms"]) for row in answer["rows"]]
                after = bytes.fromhex(answer["rows"][-1]["key"])
            total += answer["total"]
        return total, sorted(rows)
