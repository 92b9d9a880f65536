"""Partitions: the partitions that this worker has, standby or active, and what they share. Opens and closes them; a partition does the work."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from schemas.journey import Journey
from schemas.rules import rule_key
from schemas.times import format_ms
from state.ledger import wipe
from state.matching import Matcher
from state.progress import rules_of

from . import metrics
from .building import LIVE
from .journeys import JourneysReader
from .partition import SOURCES, Context, Partition

log = logging.getLogger(__name__)


class Partitions:
    """What the Faust side of the worker calls (see `streams.table`), all in one event loop."""

    def __init__(self, context: Context, journeys: JourneysReader, reflected: Callable[[str, int], int | None]) -> None:
        self.context = context
        self.journeys = journeys
        self._reflected = context.reflected = reflected
        self._open: dict[int, Partition] = {}
        self._rules: frozenset[bytes] = frozenset()

    # ------------------------------------------------------------------ life of a partition

    def open(self, partition: int) -> None:
        """Opens the RocksDB of *partition*, unless it is open."""
        if partition not in self._open:
            self._open[partition] = Partition(partition, self.context)
            self._count()

    def changelog_offset(self, partition: int) -> int | None:
        return self._open[partition].changelog_offset()

    def recover(self, partition: int, records: Sequence[Any], last_offset: int) -> list[bytes]:
        return self._open[partition].recover(records, last_offset)

    def wipe(self, partition: int) -> None:
        """Empties *partition*, which is not active: everything is to come from the changelog again."""
        old = self._open.pop(partition, None)
        if old is not None:
            assert not old.active, f"partition {partition} is active and cannot be wiped"
            old.ledger.close()
        wipe(self.context.data_dir / f"partition-{partition}")
        self.open(partition)

    async def activate(self, partition: int) -> None:
        """Recovery is done and this worker owns *partition*."""
        await self.journeys.caught_up()
        topics = self.context.topics
        ends = await self.journeys.ends([topics[source] for source in SOURCES], partition)
        found = self._open.get(partition)
        if found is not None and not found.active:
            found.activate({source: ends[topics[source]] for source in SOURCES})
            self.match()
            self._count()

    async def close(self, partition: int) -> None:
        """Ends *partition* here; what is on its way is dropped and comes again where it goes."""
        found = self._open.pop(partition, None)
        if found is not None:
            await found.close()
            self._count()

    async def close_all(self) -> None:
        for partition in list(self._open):
            await self.close(partition)

    async def drain(self) -> None:
        """Waits until everything on its way is durable."""
        await asyncio.gather(*(partition.drain() for partition in self.active().values()))

    def active(self) -> dict[int, Partition]:
        """The partitions that take batches and answer questions."""
        return {number: p for number, p in sorted(self._open.items()) if p.active}

    def states(self) -> dict[str, dict[str, Any]]:
        """State and positions of every partition here, by number as text."""
        return {
            str(number): {
                "state": "live" if partition.active else "recovering",
                "positions": self.positions(number) if partition.active else {},
            }
            for number, partition in sorted(self._open.items())
        }

    def _count(self) -> None:
        live = len(self.active())
        metrics.PARTITIONS.labels("live").set(live)
        metrics.PARTITIONS.labels("recovering").set(len(self._open) - live)

    # ------------------------------------------------------------------ work

    async def submit(self, partition: int, topic: str, records: Sequence[Any], done: Callable[[], None]) -> None:
        """One chunk of a source topic (see `Partition.submit`)."""
        await self.journeys.caught_up()
        found = self._open.get(partition)
        if found is not None and found.active:
            source = next(short for short, name in self.context.topics.items() if name == topic)
            await found.submit(source, records, done)

    def changelog_values(self, partition: int, keys: Sequence[bytes]) -> list[tuple[bytes, bytes | None]]:
        """What the changelog was last told of *keys*, for it to hear again."""
        return self._open[partition].values(keys)

    def apply(self, catalog: dict[str, Journey]) -> None:
        """A new catalogue of journeys."""
        self.context.catalog = dict(catalog)
        for partition in self.active().values():
            partition.building.reconcile()
        self.match()

    def match(self) -> None:
        """Makes the matcher for the rules of all journeys, from the moment they are known, and of all views that are kept."""
        rules = {rule_key(rule): rule for journey in self.context.catalog.values() for rule in rules_of(journey)}
        for partition in self.active().values():
            for view in partition.views.all:
                rules.update(view.projection.rules)
        if frozenset(rules) != self._rules:
            self._rules = frozenset(rules)
            self.context.matcher = Matcher(rules.values())

    # ------------------------------------------------------------------ totals

    def positions(self, partition: int) -> dict[str, int | None]:
        """The next offset of each source topic that the numbers do not reflect yet; None when it is not known."""
        topics = self.context.topics
        return {source: self._reflected(topics[source], partition) for source in SOURCES}

    def settle(self) -> None:
        """Lets complete views take over where nothing else wakes them (see `Building.settle`)."""
        for partition in self.active().values():
            partition.building.settle()

    async def publish_totals(self) -> None:
        """Sends the absolute totals of views that changed since the last time (design, section 6, totals)."""
        now_ms = self.context.now_ms()
        out = []
        for number, partition in self.active().items():
            changed, partition.changed = partition.changed, set()
            for view in partition.views.all:
                if view.id not in changed or partition.building.state[view.id] != LIVE:
                    continue
                version = view.journey.version or 0
                groups = {
                    group: [[kind, stage, bucket, count] for (kind, stage, bucket), count in sorted(cells.items())]
                    for group, cells in partition.totals.get(view.id, {}).items()
                    if cells
                }
                value = {
                    "journey": view.journey.id, "version": version, "partition": number, "as_of": format_ms(now_ms),
                    "positions": partition.positions, "groups": groups,
                }  # fmt: skip
                key = f"{view.journey.id}/{version}/{number}".encode()
                out.append((None, key, json.dumps(value).encode(), [], now_ms))
        if out:
            sent: Awaitable[Any] = await self.context.outward.send(self.context.topics["totals"], out)
            await sent
