"""Partition: what one partition of the worker group does, from a fetched chunk to RocksDB, and what it answers. Acts; `state` decides.

Between deciding a batch and writing it to RocksDB, an overlay in memory serves reads, so batches follow each other without waiting. Questions are
answered from what is written: index, totals and positions of one WriteBatch, so that a number equals its list.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from schemas import changes as change_codec
from schemas.errors import Refused
from schemas.journey import Journey
from state import records
from state.announcement import doubted
from state.arrivals import NO_ARRIVALS, Arrivals, hits_alone, join_of
from state.batch import Batch
from state.decision import UNBOUNDED, Decision
from state.ledger import Damaged, Ledger, Memory
from state.matching import Matcher
from state.messages import Message
from state.plain import FEW
from state.recalculation import Table
from state.totals import Cell
from state.views import TOTAL, Views, cell_key, cell_value, split_cell
from streams.partitioner import partition_of, partitions_of

from . import handoffs, intake, metrics
from .building import Building
from .comparing import Comparing
from .contacts import Contacts
from .entries import refusal
from .pipeline import Changelog, OutRecord, Outward, Pipeline, Turns, UnderWay, Work
from .succession import CHANGELOG_POSITION, POSITION, Succession

log = logging.getLogger(__name__)

IN_FLIGHT = 3  # decisions of a partition on their way to the broker and to RocksDB
BEHIND_RECORDS = 250  # of a decision that the living may have to wait for
MOST_DECISION_BYTES = 8 << 20  # more would block the loop for too long
MOST_CONTACTS = 1 << 16
AHEAD_KEYS = 512  # are read at once
SOURCES = ("activities", "contact-merges", "contacts", "handoffs", "rebuilt-evidence")


@dataclass(slots=True)
class Context:
    """What the partitions of a worker share."""

    partitions: int
    data_dir: Path
    memory: Memory
    topics: dict[str, str]  # short name -> topic
    outward: Outward
    changelog: Changelog
    now_ms: Callable[[], int]
    failed: Callable[[BaseException], None]
    ahead_ms: int
    max_merges: int
    matcher: Matcher
    catalog: dict[str, Journey]
    recalculations: Table = field(default_factory=Table)
    common: Callable[[str], tuple[int, int] | None] = lambda journey: None  # the newest of its views that all partitions have
    few: int = FEW  # see `state.plain.FEW`
    chunk_records: int = 2000  # of one decision: bounds how long the loop is blocked
    decision_bytes: int = MOST_DECISION_BYTES  # what one decision may take in memory, about: see `state.decision.Room`
    under_way: UnderWay = field(default_factory=UnderWay)
    background_share: float = 0.2  # see `agents.pipeline.Turns`
    step_done: Callable[[str, int], None] | None = None
    damaged: Callable[[int, Damaged], None] = lambda partition, damage: None
    reflected: Callable[[str, int], int | None] = lambda topic, partition: (
        None
    )  # next offset of a source that is not done


class Partition:
    """One partition: its ledger, the views over it, and, once active, its pipeline.

    `totals`: view id -> group ("" is everyone) -> cell -> count. `overlay`: records of decisions that are not in RocksDB yet, the oldest
    first.
    """

    def __init__(self, number: int, context: Context) -> None:
        self.number = number
        self.context = context
        self.path = context.data_dir / f"partition-{number}"
        self.damage: str | None = None  # why it is to be closed; the exception would keep iterators
        self.ledger = Ledger(self.path, context.memory)
        self.ledger.on_damage = self._on_damage
        if self.ledger.emptied is not None:
            log.warning("partition %d: its state was of format %r; it is read again from the changelog", number, self.ledger.emptied.decode())
        self.contacts = Contacts(self)
        self.building = Building(self)
        self.comparing = Comparing(self)
        self.succession = Succession(self)
        self.totals: dict[bytes, dict[str, dict[Cell, int]]] = {}
        self.positions: dict[str, int] = {}  # source -> next offset not yet in RocksDB
        self.changed: set[bytes] = set()  # views whose totals changed since they were last published
        self.overlay: deque[dict[bytes, bytes | None]] = deque()
        self._contacts = MOST_CONTACTS  # that a decision begins with
        self.pipeline: Pipeline | None = None
        try:
            self._load()
            self.succession.resume()
        except BaseException:
            self.ledger.close()
            raise

    @property
    def views(self) -> Views:
        """The views over this partition."""
        return self.building.kept

    @property
    def active(self) -> bool:
        return self.pipeline is not None and self.damage is None

    def _on_damage(self, damage: Damaged) -> None:
        """From now on nothing is read or answered here; the partition is to be closed."""
        if self.damage is None:
            self.damage = str(damage)
            self.context.damaged(self.number, damage)

    # ------------------------------------------------------------------ life

    def _load(self) -> None:
        """Views, totals and positions as they were last written."""
        self.building.load()
        self.totals, self.positions = {}, {}
        for key, value in self.ledger.scan(TOTAL):
            id_, group, cell, count = split_cell(key, value)
            self.totals.setdefault(id_, {}).setdefault(group, {})[cell] = count
        self.succession.load()
        for key, value in self.ledger.scan(POSITION):
            if key != CHANGELOG_POSITION:
                self.positions[key[1:].decode()] = int(value)

    def changelog_offset(self) -> int | None:
        """The last changelog offset whose effect is in RocksDB."""
        value = self.ledger.get(CHANGELOG_POSITION)
        return None if value is None else int(value)

    def recover(self, changes: Sequence[Any], last_offset: int) -> None:
        """Joins changelog records into RocksDB, views following silently (design, section 5)."""
        self.succession.recover(changes, last_offset)

    def activate(self, ends: Mapping[str, int]) -> None:
        """Recovery is over and this worker owns the partition. *ends*: source -> where its log ends now."""
        c = self.context
        self._load()  # recovery may have brought some
        # as many as are on their way, and a decision's worth that had no effect and was not written down
        self.succession.begin(ends, (IN_FLIGHT + 1) * c.chunk_records)
        turns = Turns(c.background_share)
        self.pipeline = Pipeline(self.number, c.topics, c.outward, c.changelog, c.failed, c.step_done, IN_FLIGHT, turns, c.under_way)
        self.succession.hand_on(ends)
        self.reconcile()
        self.changed = {view.id for view in self.views.all}  # whatever the owner before has published

    def reconcile(self) -> None:
        """The catalogue says something new of journeys or recalculations."""
        self.building.reconcile()
        self.comparing.reconcile()

    async def close(self) -> None:
        """Drops what is on its way and closes RocksDB."""
        await self.building.close()
        await self.comparing.close()
        if self.pipeline is not None:
            await self.pipeline.close()
            self.pipeline = None
        self.ledger.close()

    async def drain(self) -> None:
        """Waits until everything on its way is in RocksDB."""
        if self.pipeline is not None:
            await self.pipeline.drain()

    # ------------------------------------------------------------------ batches

    async def submit(self, source: str, chunk: Sequence[Any], done: Callable[[], None]) -> None:
        """One chunk of one source topic; *done* is called once when everything of it is durable. Waits while the pipeline is full."""
        pipeline = self.pipeline
        assert pipeline is not None, f"partition {self.number} takes batches only while active"
        metrics.RECORDS.labels(source).inc(len(chunk))
        if self.succession.beginning:
            await pipeline.drain()
            self.succession.beginning = False
        behind = source == "rebuilt-evidence"
        size = min(BEHIND_RECORDS, self.context.chunk_records) if behind else self.context.chunk_records
        for at in range(0, len(chunk), size):
            last = at + size >= len(chunk)
            if not await self._submit(source, chunk[at : at + size], done if last else lambda: None, behind):
                return

    async def _submit(self, source: str, records: Sequence[Any], done: Callable[[], None], behind: bool) -> bool:
        """Put what *records* come to on its way, as many decisions as that takes. Return False when the partition was closed meanwhile."""
        pipeline = self.pipeline
        assert pipeline is not None, f"partition {self.number} takes batches only while active"
        works: Iterator[Work] | None = None
        while await pipeline.room(behind):
            try:
                works = works or self._works(source, records, done)
                work = next(works)
            except Exception:
                about = {"topic": self.context.topics[source], "partition": self.number, "offset": records[0].offset}
                log.error("a batch cannot be decided", extra={**about, "last_offset": records[-1].offset})
                raise
            pipeline.add(work)
            await asyncio.sleep(0)  # answers questions and heartbeats between two batches
            if work.last:
                return True
        return False

    def _works(self, source: str, chunk: Sequence[Any], done: Callable[[], None]) -> Iterator[Work]:
        """Decide about *chunk*, one decision after the other; the last of them says so."""
        while chunk:
            began = perf_counter()
            taken = self._take(source, chunk)
            count = len(chunk) if taken.records is None else taken.records
            piece, chunk = chunk[:count], chunk[count:]
            for work in self._works_of(source, piece, taken, (lambda: None) if chunk else done):
                work.last = work.last and not chunk
                metrics.STEP_SECONDS.labels("decide").observe(perf_counter() - began)
                yield work
                began = perf_counter()

    def _take(self, source: str, chunk: Sequence[Any]) -> intake.Taken:
        c = self.context
        now_ms, topic = c.now_ms(), c.topics[source]
        if source == "activities":
            return intake.activities(chunk, c.matcher, now_ms, c.ahead_ms, c.few)
        if source == "contact-merges":
            return intake.merges(chunk, topic, self.number, now_ms, c.ahead_ms)
        if source == "contacts":
            return intake.profiles(chunk, now_ms, c.ahead_ms)
        return intake.handed_over(chunk)

    def _works_of(self, source: str, chunk: Sequence[Any], taken: intake.Taken, done: Callable[[], None]) -> Iterator[Work]:
        """Decide about what *chunk* comes to; the last decision carries the position behind it.

        Should the worker end between two, all of the chunk comes again, and what is known already is without effect, as ever.
        """
        now_ms, topic = self.context.now_ms(), self.context.topics[source]
        noted = self.succession.note(source, chunk[0].offset, taken)
        decided = self.succession.decided
        decided[source] = max(decided.get(source, 0), chunk[-1].offset + 1)
        rejected = [intake.rejected(topic, self.number, record, error, now_ms) for record, error in taken.refused]
        if rejected and log.isEnabledFor(logging.DEBUG):
            for record, error in taken.refused:
                about = {"topic": topic, "partition": self.number, "offset": record.offset, "code": error.code}
                whom = {} if record.key is None else {"contact": blake2b(record.key, digest_size=8).hexdigest()}
                log.debug("rejected: %s", error.code, extra={**about, **whom})
        for number, (decision, last) in enumerate(self._decisions(taken, source == "rebuilt-evidence")):
            for origin, reason in decision.refused:
                rejected.append(intake.rejected(origin.topic, origin.partition, origin, Refused("too_many_merges", reason), now_ms))
            behind_noted = decision._replace(records={**noted, **decision.records}) if noted else decision  # before their effect
            if last:
                work = self.work(behind_noted, rejected, (source, chunk[-1].offset + 1), done, logged=number > 0)
            else:
                work = self.work(behind_noted, rejected)
            work.last = last
            noted, rejected = {}, []
            yield work

    def _decisions(self, taken: intake.Taken, rebuilt: bool) -> Iterator[tuple[Decision, bool]]:
        """Decide about what was taken in; yield each decision as large as there is room for, and whether it is the last."""
        arrived, here, foreign = self._sorted(taken, rebuilt)
        waiting, room, last = [arrived], self.context.decision_bytes, False
        while not last:
            arrived = waiting.pop() if waiting else NO_ARRIVALS
            load, known = self.reader_within([*arrived.keys, *(records.EVIDENCE + m.to.encode() for m in here)][: self._contacts], room)
            first, _ = arrived.split(known)
            batch = Batch(self.views, load, self.is_here, self.context.max_merges, few=self.context.few, room=room)
            count, rest = batch.activities(first)
            messages = here[: known - len(first)]
            left = [*(batch.gather(messages) if rebuilt else batch.deliver_all(messages))]
            here[: len(messages)] = left
            waiting += [one for one in (arrived.split(count)[1], *rest) if one]
            # as many at most as there is likely to be room for: what is read and not decided is read again
            self._contacts = min(MOST_CONTACTS, 2 * (count + len(messages) - len(left)) if batch.full else 2 * self._contacts)
            decision = batch.decide()
            decision.handoffs[:0] = foreign
            foreign = []
            last = not waiting and not here
            yield decision, last

    def _sorted(self, taken: intake.Taken, rebuilt: bool) -> tuple[Arrivals, list[Message], list[Message]]:
        """Return what was taken in as hits of contacts that are here, messages to contacts that are here, and messages to others."""
        foreign: list[Message] = []
        arrived = taken.arrived
        if arrived:
            here_too = partitions_of(arrived.contacts, self.context.partitions) == self.number
            foreign += [join_of(arrived.contact(n), arrived.of(n), arrived.ids_of(n)) for n in np.flatnonzero(~here_too).tolist()]
            arrived = arrived.only(here_too)
        here: list[Message] = []
        for message in taken.messages:
            (here if self.is_here(message.to) else foreign).append(message)
        if not arrived and not rebuilt:
            arrived, here = hits_alone(here)
        return arrived, here, foreign

    def reader(self, ahead: Iterable[bytes] = (), known: Mapping[bytes, bytes | None] = {}) -> Callable[[bytes], bytes | None]:
        """A function that reads a record, until the next decision: from the overlay, *known*, or RocksDB. Those under *ahead* are read at once."""
        return self.reader_within([*ahead], UNBOUNDED, known)[0]

    def reader_within(
        self, ahead: Sequence[bytes], room: int, known: Mapping[bytes, bytes | None] = {}
    ) -> tuple[Callable[[bytes], bytes | None], int]:
        """The same, and how many of the keys *ahead* were read, one at least, before the records took *room* bytes."""
        overlay, get = list(self.overlay)[::-1], self.ledger.get
        read: dict[bytes, bytes | None] = {}
        count = size = 0
        while count < len(ahead) and size < room:
            keys = dict.fromkeys(ahead[count : count + AHEAD_KEYS])
            count = min(len(ahead), count + AHEAD_KEYS)
            for decided in overlay:
                for key in decided.keys() & keys.keys():
                    read.setdefault(key, decided[key])
            absent = [key for key in keys if key not in read]
            if absent:
                values = self.ledger.get_many(absent)
                read.update(zip(absent, values, strict=True))
                size += sum(map(len, filter(None, values)))

        def load(key: bytes) -> bytes | None:
            if key in read:
                return read[key]
            for decided in overlay:
                if key in decided:
                    return decided[key]
            return known[key] if key in known else get(key)

        return load, count

    def is_here(self, contact: str) -> bool:
        """Whether *contact* belongs to this partition."""
        return partition_of(contact, self.context.partitions) == self.number

    def work(
        self,
        decision: Decision,
        rejected: list[OutRecord] | None = None,
        position: tuple[str, int] | None = None,
        done: Callable[[], None] = lambda: None,
        also: Sequence[tuple[bytes, bytes | None]] = (),
        drop: Sequence[tuple[bytes, bytes]] = (),
        logged: bool = False,
    ) -> Work:
        """What has to be done of *decision* (and *also*, *drop*: see `Ledger.write`); from now on the overlay shows its records.
        *logged*: the position goes to the changelog, whatever the decision comes to."""
        now_ms, n = self.context.now_ms(), self.context.partitions
        overlay = self.overlay
        overlay.append(decision.records)
        # a view that is dropped meanwhile takes its totals with it: what is on its way then counts in vain
        totals = [(id_, self.totals.setdefault(id_, {}), groups) for id_, groups in decision.totals.items()]
        changes: list[OutRecord] = []
        if decision.changes:
            encoded = [change_codec.encode(change, now_ms) for change in decision.changes]
            numbers = partitions_of([key for key, _, _ in encoded], n).tolist()
            changes = [
                (p, key, value, headers, now_ms) for p, (key, value, headers) in zip(numbers, encoded, strict=True)
            ]
            for kind, count in Counter((change.change, change.cause) for change in decision.changes).items():
                metrics.STAGE_CHANGES.labels(*kind).inc(count)
        handed = self._handed(decision.handoffs)
        for what, count in decision.truncated.items():
            metrics.TRUNCATED.labels(what).inc(count)
            log.warning("partition %d: %s of %d persons were too many for one record; some were cut", self.number, what, count)

        def commit(offset: int | None) -> None:
            written: list[tuple[bytes, bytes | None]] = [*decision.entries.items(), *also]
            written.extend(self.add_totals(totals))
            if position is not None:
                source, following = position
                if following > self.positions.get(source, -1):
                    self.positions[source] = following
                    written.append((POSITION + source.encode(), str(following).encode()))
            if offset is not None and not self.context.changelog.frozen(self.number):
                written.append((CHANGELOG_POSITION, str(offset).encode()))
            self.ledger.write(written, drop, decision.records)
            assert overlay[0] is decision.records, "decisions reach RocksDB in the order in which they were made"
            overlay.popleft()
            if position is not None:
                self.succession.followed[position[0]] = position[1]
            self.building.settle()

        entries = list(decision.records.items())
        if position is not None:
            source, following = position
            known = self.succession.logged
            # what has no effect is not written down one by one, but never more than a decision's worth goes without: see `activate`
            if logged or entries or changes or handed or following - known.get(source, 0) >= self.context.chunk_records:
                # last of the batch: all that follows from the records before it is in the changelog
                entries.append((POSITION + source.encode(), str(following).encode()))
                known[source] = following
        size = decision.size_bytes() + sum(len(value) for _, value in entries if value) + sum(len(record[2] or b"") for record in handed)
        return Work(changes, rejected or [], lambda: self._handed(doubted(decision.changes)), handed, entries, commit, done, size_bytes=size)

    def _handed(self, messages: Sequence[Message]) -> list[OutRecord]:
        now_ms, out = self.context.now_ms(), list[OutRecord]()
        for message in messages:
            number, key = partition_of(message.to, self.context.partitions), message.to.encode()
            out += [(number, key, value, [], now_ms) for value in handoffs.encode_all(message)]
        for kind, count in Counter(map(type, messages)).items():
            metrics.HANDOFFS.labels(kind.__name__.lower()).inc(count)
        return out

    def add_aside(
        self,
        decision: Decision,
        also: Sequence[tuple[bytes, bytes | None]] = (),
        drop: Sequence[tuple[bytes, bytes]] = (),
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Puts a decision on its way that belongs to no chunk, is rare, and must not wait for room."""
        assert self.pipeline is not None, f"partition {self.number} decides only while active"
        work = self.work(decision, also=also, drop=drop, done=done)
        work.took_room = False
        self.pipeline.add(work)

    def add_totals(
        self, differences: Iterable[tuple[bytes, dict[str, dict[Cell, int]], dict[str, dict[Cell, int]]]]
    ) -> list[tuple[bytes, bytes | None]]:
        """Adds differences, `(view id, its totals, difference)`, to the totals; returns what RocksDB has to hold of them."""
        written: list[tuple[bytes, bytes | None]] = []
        for id_, totals, groups in differences:
            self.changed.add(id_)
            for group, cells in groups.items():
                mine = totals.setdefault(group, {})
                for cell, difference in cells.items():
                    if not difference:
                        continue
                    count = mine.get(cell, 0) + difference
                    assert count >= 0, f"a total counts persons: {cell} of view {id_.hex()} would be {count}"
                    if count:
                        mine[cell] = count
                        written.append((cell_key(id_, group, cell), cell_value(count, group)))
                    else:
                        del mine[cell]
                        written.append((cell_key(id_, group, cell), None))
        return written

    def values(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes | None]]:
        """The records under *keys* as the changelog was last told: what is decided and not announced yet is not in it.

        What this owner does not know is told to be gone: it has read the changelog to its end, so that a stale writer wrote it since, and the facts
        behind it come to the owner too. Left there, an alias would outlive the identity that was written with it.
        """
        assert self.pipeline is not None, f"partition {self.number} answers for its changelog only while active"
        found: list[tuple[bytes, bytes | None]] = []
        for key in keys:
            value = self._told(key) if refusal(key, None) is None else None
            if value is None and key[:1] == records.IDENTITY:
                evidence = self._told(records.EVIDENCE + key[1:])
                if evidence is not None and records.pointer_of(evidence) is None:
                    continue  # recovery joins: a holder's evidence goes on saying that there is an identity
            found.append((key, value))
        return found

    def _told(self, key: bytes) -> bytes | None:
        on_its_way, value = self.pipeline.sent(key) if self.pipeline is not None else (False, None)
        return value if on_its_way else self.ledger.get(key)
