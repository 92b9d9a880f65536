"""One worker of the cluster in memory, and what it has sent: stands in for what partitions are given of the Faust side. Decides nothing by chance."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from agents import intake
from agents.partition import SOURCES, Context, Partition
from schemas.journey import parse_journey
from state import bulk, joining
from state.matching import Matcher
from state.plain import FEW
from state.progress import rules_of
from state.recalculation import by_key
from streams import blocks
from streams.partitioner import partition_of

from .history import RULES

if TYPE_CHECKING:
    from .cluster import Cluster

DECISION_BYTES = (8 << 20, 1, 3000)  # as large as they come, a contact each, a few contacts
NOW_MS = 1_900_000_000_000
TOPICS = {name: name for name in (*SOURCES, "stage-changes", "rejected", "totals")}

_all_rules = parse_journey(
    {"id": "all", "name": "all", "stages": [{"name": "s", "condition": {"any": list(RULES)}}]}
)
ALL_RULES = tuple(rules_of(_all_rules.stages[0].condition))
MATCHER = Matcher(by_key(ALL_RULES))
bulk.loops.warm()  # every second history is decided by compiled code, however few contacts a batch has
intake.loops.warm()  # and of every two of each kind one takes activities in by it
joining.loops.warm()  # and every second one reads changelogs by it
blocks.loops.warm()


class Pending:
    """Something sent and not acknowledged: `records` by destination partition, in order. `asks`: for the truth of what came late."""

    __slots__ = ("asks", "by_partition", "future", "owner", "topic")

    def __init__(self, owner: Worker, topic: str, by_partition: dict[int, list[Any]], future: asyncio.Future[Any]) -> None:
        self.owner, self.topic, self.by_partition, self.future = owner, topic, by_partition, future
        self.asks = asyncio.current_task() in owner.asking


class Worker:
    """One worker process, over all its lives; its disk outlives it. Stands in for what partitions are given of the Faust side."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster, self.number = cluster, number
        self.catalog_version = 0
        self.open: dict[int, Partition] = {}
        self.start()

    def start(self) -> None:
        cluster = self.cluster
        self.pending: list[Pending] = []
        self.busy: dict[tuple[int, str], asyncio.Task[None]] = {}
        self.read_to: dict[tuple[int, str], int] = {}
        self.asking: list[asyncio.Task[None]] = []  # for the truth of what it said too late
        self.context = Context(
            partitions=cluster.plan.partitions, data_dir=Path(f"/w{self.number}"), memory=cluster.disk, topics=TOPICS,
            outward=self, changelog=SimpleNamespace(send=self.send_changelog, frozen=cluster.frozen, owned=self.owned),
            now_ms=lambda: NOW_MS, failed=cluster.failed, ahead_ms=86_400_000, max_merges=10_000,
            matcher=MATCHER, catalog={}, chunk_records=cluster.chunk_records, few=cluster.plan.seed % 2 * FEW,
            decision_bytes=DECISION_BYTES[cluster.plan.seed % len(DECISION_BYTES)], background_share=cluster.plan.seed % 3 / 3,
            reflected=lambda topic, p: cluster.acked[topic, p],
            common=lambda journey: cluster.recalculating.reports.common(journey, cluster.plan.partitions),
        )  # fmt: skip
        cluster.recalculating.fold(self, self.catalog_version + 1)

    async def send(self, topic: str, records: list[Any]) -> asyncio.Future[Any]:
        """Outward: stage changes, rejected records, handoffs."""
        by_partition: dict[int, list[Any]] = {}
        for record in records:
            number = record[0]
            if number is None:
                number = 0 if record[1] is None else partition_of(record[1], self.cluster.plan.partitions)
            by_partition.setdefault(number, []).append(record)
        return self._sent(topic, by_partition)

    def beside(self, run: Coroutine[Any, Any, None]) -> None:
        self.asking.append(self.cluster.loop.create_task(run))

    async def owned(self, partition: int) -> None:
        """Always: what a worker sends after it lost a partition is what `zombie` is about."""

    async def send_changelog(self, partition: int, items: list[tuple[bytes, bytes | None]]) -> asyncio.Future[Any]:
        return self._sent("changelog", {partition: list(items)})

    def _sent(self, topic: str, by_partition: dict[int, list[Any]]) -> asyncio.Future[Any]:
        future = self.cluster.loop.create_future()
        self.pending.append(Pending(self, topic, by_partition, future))
        return future
