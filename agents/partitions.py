"""Partitions: the partitions that this worker has, standby or active, and what they share. Opens and closes them; a partition does the work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import msgspec

from schemas.rules import Rule
from schemas.times import format_ms
from state.ledger import Damaged, set_aside, wipe
from state.matching import Matcher
from state.totals import Cell
from state.views import View
from streams.seam import Fenced

from . import metrics
from .catalog import CatalogReader
from .partition import SOURCES, Context, Partition
from .pipeline import OutRecord

log = logging.getLogger(__name__)

MOST_DAMAGES = 3
"""A worker of which the same partition is damaged more often ends: its disk cannot be trusted."""

STUCK_SECONDS = 300.0
"""So long a broker may be away before a worker that waits for it is said to be stuck: starting it again may help, and harms nothing."""

TOTALS_AGAIN_MS = 60_000
"""So often all totals are said again: what an owner before had on its way may have come behind ours."""

MAX_TOTALS_BYTES = 8 << 20
"""Of the groups in one record of the totals topic."""
PIECE_CELLS = 100_000
"""Of a group that stay together."""


class Partitions:
    """What the Faust side of the worker calls (see `streams.table`), all in one event loop."""

    def __init__(self, context: Context, catalog: CatalogReader, reflected: Callable[[str, int], int | None]) -> None:
        self.context = context
        self.catalog = catalog
        self._reflected = context.reflected = reflected
        context.damaged = self._on_damage
        self.rejoin: Callable[[], None] = lambda: None
        """Makes the group assign this worker's partitions again: all are closed and opened anew."""
        self._damages: Counter[int] = Counter()
        self._open: dict[int, Partition] = {}
        self._rules: frozenset[bytes] = frozenset()
        self._over: set[str] = set()
        self._totals_again_ms = 0
        self._pieces: dict[str, int] = {}  # of the totals of `journey/version/partition`, as they were last sent

    # ------------------------------------------------------------------ life of a partition

    def open(self, partition: int) -> None:
        """Opens the RocksDB of *partition*, unless it is open. A damaged one is set aside."""
        if partition in self._open:
            return
        try:
            self._open[partition] = Partition(partition, self.context)
        except Damaged as damage:
            self._count_damage(partition, damage)
            self._set_aside(partition)
            self._open[partition] = Partition(partition, self.context)
        self._count()

    def changelog_offset(self, partition: int) -> int | None:
        try:
            return self._open[partition].changelog_offset()
        except Damaged:
            return None

    def recover(self, partition: int, records: Sequence[Any], last_offset: int) -> None:
        found = self._open[partition]
        if found.damage is None:
            with contextlib.suppress(Damaged):  # it is assigned again, and recovers from the beginning
                found.recover(records, last_offset)

    # ------------------------------------------------------------------ damage

    def _on_damage(self, partition: int, damage: Damaged) -> None:
        """RocksDB found damage in *partition*, which is open: have it closed and recovered."""
        if partition in self._open:
            self._count_damage(partition, damage)
            self._count()
            self.rejoin()

    def _count_damage(self, partition: int, damage: Damaged) -> None:
        metrics.DAMAGED.inc()
        self._damages[partition] += 1
        log.error("partition %d: %s; its state is read again from the changelog", partition, damage)
        if self._damages[partition] > MOST_DAMAGES:
            often = f"partition {partition} was damaged {self._damages[partition]} times"
            self.context.failed(RuntimeError(f"{often} since this worker started; check its disk"))

    def _set_aside(self, partition: int) -> None:
        path = self.context.data_dir / f"partition-{partition}"
        place, removed = set_aside(path, str(self.context.now_ms()))
        log.error(
            "partition %d: the damaged directory is kept as %s; it is not used any more, delete it with: "
            "rm -r %s", partition, place, shlex.quote(str(place)),
        )  # fmt: skip
        for one in removed:
            log.warning("removed %s, which was damaged earlier", one)

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
        await self.catalog.caught_up()
        ends = await self._ends(partition)
        found = self._open.get(partition)
        if found is not None and not found.active and found.damage is None:
            with contextlib.suppress(Damaged):  # it is assigned again
                found.activate(ends)
            self.match()
            self._count()

    async def _ends(self, partition: int) -> dict[str, int]:
        topics = self.context.topics
        ends = await self.catalog.ends([topics[source] for source in SOURCES], partition)
        return {source: ends[topics[source]] for source in SOURCES}

    async def close(self, partition: int) -> None:
        """Ends *partition* here; what is on its way is dropped and comes again where it goes."""
        found = self._open.pop(partition, None)
        if found is not None:
            await found.close()
            if found.damage is not None:
                self._set_aside(partition)
            self._count()

    def stuck(self) -> dict[int, float]:
        """Partitions on which nothing has moved for `STUCK_SECONDS` although something is on its way, and for how long, in seconds."""
        waited = {number: found.pipeline.stuck_seconds() for number, found in self._open.items() if found.pipeline is not None}
        return {number: seconds for number, seconds in waited.items() if seconds > STUCK_SECONDS}

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
        await self.catalog.caught_up()
        found = self._open.get(partition)
        if found is not None and found.active:
            source = next(short for short, name in self.context.topics.items() if name == topic)
            try:
                await found.submit(source, records, done if source != "activities" else self._timed(records[0].timestamp, done))
            except Damaged as damage:
                raise Fenced(str(damage)) from None

    def _timed(self, at_ms: int, done: Callable[[], None]) -> Callable[[], None]:
        def timed() -> None:
            metrics.VISIBLE_SECONDS.observe(max(0, self.context.now_ms() - at_ms) / 1000)
            done()

        return timed

    async def keep_foreign(self, partition: int, items: Sequence[tuple[bytes, bytes | None]]) -> None:
        """What somebody else wrote to the changelog of *partition*, which this worker has (see `Succession.keep`)."""
        ends = await self._ends(partition)
        found = self._open.get(partition)
        if found is not None and found.active:
            try:
                found.succession.keep(items, ends)
            except Damaged as damage:
                raise Fenced(str(damage)) from None

    def changelog_values(self, partition: int, keys: Sequence[bytes]) -> list[tuple[bytes, bytes | None]]:
        """What the changelog was last told of *keys*, for it to hear again."""
        try:
            return self._open[partition].values(keys)
        except Damaged as damage:
            raise Fenced(str(damage)) from None

    def apply(self) -> None:
        """The catalogue says something new of journeys or recalculations."""
        catalog = self.catalog.catalog
        self.context.catalog, self.context.recalculations = dict(catalog.journeys), catalog.recalculations
        over = {one.id for one in catalog.recalculations.records.values() if one.over}
        for partition in self.active().values():
            partition.reconcile()
            partition.changed |= {view.id for view in partition.views.all if view.source.recalculation in over - self._over}  # they show now
        self._over = over
        self.match()

    def match(self) -> None:
        """Makes the matcher for all evidence that is to be recorded, and for all views that are kept."""
        rules = recorded(self.context, self.active().values())
        if frozenset(rules) != self._rules:
            self._rules = frozenset(rules)
            self.context.matcher = Matcher(rules)

    # ------------------------------------------------------------------ totals

    def positions(self, partition: int) -> dict[str, int | None]:
        """The next offset of each source topic that the numbers do not reflect yet; None when it is not known."""
        topics = self.context.topics
        return {source: self._reflected(topics[source], partition) for source in SOURCES}

    def settle(self) -> None:
        """Lets complete views take over where nothing else wakes them (see `Building.settle`)."""
        for partition in self.active().values():
            partition.building.settle()

    def _published(self, partition: Partition, ids: Set[bytes]) -> Iterable[View]:
        """Those of the views *ids* whose totals are out: of a journey's version the newest, but none that is to be switched to before all partitions
        have it."""
        settled, complete = self.context.recalculations.settled, partition.building.complete
        versions = {(view.journey.id, view.journey.version) for view in partition.views.all if view.id in ids}
        found: dict[tuple[str, int | None], View] = {}
        for view in partition.views.all:
            version = view.journey.id, view.journey.version
            if version in versions and view.id in complete and view.source.generation <= settled(view.source.keys):
                known = found.get(version)
                if known is None or view.order > known.order:
                    found[version] = view
        return (view for view in found.values() if view.id in ids)

    async def publish_totals(self) -> None:
        """Sends the absolute totals of views that changed since the last time, and now and then of all (design, section 6, totals)."""
        now_ms = self.context.now_ms()
        again = now_ms >= self._totals_again_ms
        if again:
            self._totals_again_ms = now_ms + TOTALS_AGAIN_MS
        out = list[OutRecord]()
        taken: list[tuple[Partition, set[bytes]]] = []
        for number, partition in self.active().items():
            changed, partition.changed = partition.changed, set()
            taken.append((partition, changed))
            for view in self._published(partition, {view.id for view in partition.views.all} if again else changed):
                out += self._totals_records(number, partition, view, now_ms)
        if not out:
            return
        try:
            sent: Awaitable[Any] = await self.context.outward.send(self.context.topics["totals"], out)
            await sent
        except BaseException:  # they go with the next ones
            for partition, changed in taken:
                partition.changed |= changed
            if again:
                self._totals_again_ms = now_ms
            raise

    def _totals_records(self, number: int, partition: Partition, view: View, now_ms: int) -> list[OutRecord]:
        """The totals of *view*: one record as a rule, more where there are very many groups. Of pieces that there were before and are no more,
        a tombstone."""
        version = view.journey.version or 0
        value = {
            "journey": view.journey.id, "version": version, "partition": number, "as_of": format_ms(now_ms),
            "positions": partition.positions, "generation": view.source.generation,
        }  # fmt: skip
        key = f"{view.journey.id}/{version}/{number}"
        pieces = split_totals(partition.totals.get(view.id, {}))
        if len(pieces) > 1:
            value["pieces"] = len(pieces)
        out: list[OutRecord] = []
        for piece, groups in enumerate(pieces):
            said = value if not piece else {**value, "piece": piece}
            out.append((None, totals_key(key, piece), msgspec.json.encode({**said, "groups": groups}), [], now_ms))
        before = self._pieces.get(key, 1)
        out += [(None, totals_key(key, piece), None, [], now_ms) for piece in range(len(pieces), before)]
        self._pieces[key] = len(pieces)
        return out


def totals_key(view: str, piece: int) -> bytes:
    """The key of a piece of the totals of `journey/version/partition`: the first has no number."""
    return view.encode() if not piece else f"{view}/{piece}".encode()


def split_totals(totals: Mapping[str, Mapping[Cell, int]]) -> list[dict[str, msgspec.Raw]]:
    """By group its cells as JSON, all persons first, in as many pieces as records are needed. One group may stand in several, with other cells."""
    pieces: list[dict[str, msgspec.Raw]] = [{}]
    size = 0
    for group in ("", *(group for group in totals if group)):
        cells = totals.get(group, {})
        listed = [(*cell, count) for cell, count in cells.items()]
        for begin in range(0, len(listed), PIECE_CELLS):
            part = msgspec.json.encode(listed[begin : begin + PIECE_CELLS])
            more = len(part) + len(msgspec.json.encode(group)) + 2
            if size and (size + more > MAX_TOTALS_BYTES or group in pieces[-1]):
                pieces.append({})
                size = 0
            pieces[-1][group] = msgspec.Raw(part)
            size += more
    return pieces


def recorded(context: Context, partitions: Iterable[Partition]) -> dict[bytes, Rule]:
    """Evidence key -> rule, of all that is to be recorded: what recalculations say, and what views read that are kept."""
    rules = context.recalculations.recorded()
    for partition in partitions:
        for view in partition.views.all:
            rules.update(view.projection.rules)
    return rules
