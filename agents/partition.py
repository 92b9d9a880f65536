"""Partition: what one partition of the worker group does, from a fetched chunk to RocksDB, and what it answers. Acts; `state` decides.

Between deciding a batch and writing it to RocksDB, an overlay in memory serves reads, so batches follow each other without waiting. Questions are
answered from what is written: index, totals and positions of one WriteBatch, so that a number equals its list.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from schemas import changes as change_codec
from schemas.journey import Journey, journey_json, parse_journey
from schemas.times import format_ms
from state import records
from state.decision import Batch, Decision
from state.ledger import Ledger, Memory, prefix_end
from state.matching import Matcher
from state.messages import Join, Message
from state.totals import Cell
from state.views import INDEX, TOTAL, View, Views, cell_key, cell_value, split_cell, view_id
from streams.partitioner import partition_of, partitions_of

from . import handoffs, intake, metrics
from .pipeline import Changelog, OutRecord, Outward, Pipeline, Work

log = logging.getLogger(__name__)

VIEW, POSITION = b"v", b"p"
CHANGELOG_POSITION = POSITION + b"changelog"
SOURCES = ("activities", "contact-merges", "contacts", "handoffs")
LIVE, BUILDING, OLD = "live", "building", "old"
SCAN_CONTACTS = 1000  # a step: bounds how long the loop is blocked
KEEP_OLD_VIEW_SECONDS = (
    600.0  # after an edit, so that partitions that are still building find the old numbers beside theirs
)


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
    step_done: Callable[[str, int], None] | None = None


class Partition:
    """One partition: its ledger, the views over it, and, once active, its pipeline."""

    def __init__(self, number: int, context: Context) -> None:
        self.number = number
        self._context = context
        self.path = context.data_dir / f"partition-{number}"
        self.ledger = Ledger(self.path, context.memory)
        self.views = Views()
        self.state: dict[bytes, str] = {}  # view id -> live, building, old
        self.totals: dict[bytes, dict[str, dict[Cell, int]]] = {}
        self.positions: dict[str, int] = {}  # source -> next offset not yet in RocksDB
        self.changed: set[bytes] = set()  # views whose totals changed since they were last published
        self._overlay: dict[bytes, tuple[bytes | None, int]] = {}
        self._works = 0
        self._pipeline: Pipeline | None = None
        self._scans: dict[bytes, asyncio.Task[None]] = {}
        self._retirements: dict[bytes, asyncio.TimerHandle] = {}
        self._load_views()

    @property
    def active(self) -> bool:
        return self._pipeline is not None

    # ------------------------------------------------------------------ life

    def _load_views(self) -> None:
        """Views, totals and positions as they were last written."""
        found: list[View] = []
        self.state, self.totals, self.positions = {}, {}, {}
        for key, value in self.ledger.scan(VIEW):
            said = json.loads(value)
            view = View(
                parse_journey(said["journey"]), None if said["cursor"] is None else bytes.fromhex(said["cursor"])
            )
            assert view.id == key[1:], "a view is stored under its own id"
            self.state[view.id] = said["state"]
            found.append(view)
        for key, value in self.ledger.scan(TOTAL):
            id_, group, cell, count = split_cell(key, value)
            self.totals.setdefault(id_, {}).setdefault(group, {})[cell] = count
        for key, value in self.ledger.scan(POSITION):
            if key != CHANGELOG_POSITION:
                self.positions[key[1:].decode()] = int(value)
        self._set_views(found)

    def _set_views(self, views: Iterable[View]) -> None:
        self.views = Views(views)
        newest = {v.journey.id: v for v in self.views.all if self.state[v.id] == BUILDING}
        live = {v.journey.id: v for v in self.views.all if self.state[v.id] == LIVE}
        for view in self.views.all:
            state = self.state[view.id]
            following = {LIVE: newest, OLD: live}.get(state, {})
            view.successor = following.get(view.journey.id)

    def changelog_offset(self) -> int | None:
        """The last changelog offset whose effect is in RocksDB."""
        value = self.ledger.get(CHANGELOG_POSITION)
        return None if value is None else int(value)

    def recover(self, changes: Sequence[Any], last_offset: int) -> list[bytes]:
        """Joins changelog records into RocksDB, views following silently (design, section 5).

        Returns the keys whose state is now more than their last record says: a stale writer was last, the owner has to say it again.
        """
        last = {record.key: record.value for record in changes}
        told = [self._told(key, last.pop(key)) for key in list(last) if key[:1] == VIEW]
        keys = list(last)
        before = self.ledger.get_many(keys)
        joined = dict(zip(keys, before, strict=True))
        for record in changes:
            if record.key in joined:
                joined[record.key] = records.join(record.key, joined[record.key], record.value)
        metrics.RECOVERED_RECORDS.inc(len(changes))
        position = (CHANGELOG_POSITION, str(last_offset).encode())
        views = self._restore_views(joined) if self.views.all else []
        self.ledger.write([*joined.items(), *views, *(entry for entry in told if entry is not None), position])
        return [key for key in keys if joined[key] != last[key]]

    def _told(self, key: bytes, value: bytes | None) -> tuple[bytes, bytes | None] | None:
        """What becomes of a view's entry in the changelog, which says that it was live: where there is no index of it, it is built, silently."""
        if value is None or self.ledger.get(key) is not None:
            return None  # a deleted one goes when the catalogue is compared
        said = {**json.loads(value), "cursor": "", "state": BUILDING, "told": True}
        return key, json.dumps(said).encode()

    def _restore_views(self, joined: dict[bytes, bytes | None]) -> list[tuple[bytes, bytes | None]]:
        """What index and totals become with the records *joined*, which are not in RocksDB yet."""
        contacts: dict[str, tuple[bytes | None, bytes | None]] = {}
        for contact in {key[1:] for key in joined}:
            both = (records.EVIDENCE + contact, records.IDENTITY + contact)
            evidence, identity = (joined[k] if k in joined else self.ledger.get(k) for k in both)
            contacts[contact.decode()] = (evidence, identity)
        batch = Batch(self.views, self.ledger.get, lambda _: True, silent=True)
        batch.restore(contacts)
        decision = batch.decide()
        totals = [(id_, self.totals.setdefault(id_, {}), groups) for id_, groups in decision.totals.items()]
        return [*decision.entries.items(), *self._add_totals(totals)]

    def activate(self) -> None:
        """Recovery is over and this worker owns the partition."""
        c = self._context
        self._load_views()  # recovery may have brought some
        self._pipeline = Pipeline(self.number, c.topics, c.outward, c.changelog, c.failed, c.step_done)
        self.reconcile()

    async def close(self) -> None:
        """Drops what is on its way and closes RocksDB."""
        for handle in self._retirements.values():
            handle.cancel()
        for task in self._scans.values():
            task.cancel()
        for task in self._scans.values():
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._pipeline is not None:
            await self._pipeline.close()
            self._pipeline = None
        self.ledger.close()

    async def drain(self) -> None:
        """Waits until everything on its way is in RocksDB."""
        if self._pipeline is not None:
            await self._pipeline.drain()

    # ------------------------------------------------------------------ batches

    async def submit(self, source: str, chunk: Sequence[Any], done: Callable[[], None]) -> None:
        """One chunk of one source topic; *done* is called once when everything of it is durable. Waits while the pipeline is full."""
        pipeline = self._pipeline
        assert pipeline is not None, f"partition {self.number} takes batches only while active"
        if not await pipeline.room():
            return
        began = perf_counter()
        metrics.RECORDS.labels(source).inc(len(chunk))
        c = self._context
        now_ms = c.now_ms()
        topic = c.topics[source]
        if source == "activities":
            taken = intake.activities(chunk, c.matcher, now_ms, c.ahead_ms)
        elif source == "contact-merges":
            taken = intake.merges(chunk, topic, self.number, now_ms, c.ahead_ms)
        elif source == "contacts":
            taken = intake.profiles(chunk, now_ms, c.ahead_ms)
        else:
            taken = intake.handed_over(chunk)
        decision = self._decide(taken)
        rejected = [self._rejected(topic, record, error.code, error.message, now_ms) for record, error in taken.refused]
        for origin, reason in decision.refused:
            rejected.append(self._rejected(origin.topic, origin, "too_many_merges", reason, now_ms, origin.partition))
        position = (source, chunk[-1].offset + 1)
        pipeline.add(self._work(decision, rejected, position, done))
        metrics.STEP_SECONDS.labels("decide").observe(perf_counter() - began)

    def _decide(self, taken: intake.Taken) -> Decision:
        foreign: list[Message] = []
        hits = taken.hits
        if hits:
            contacts = list(hits)
            numbers = partitions_of([contact.encode() for contact in contacts], self._context.partitions)
            for i in (numbers != self.number).nonzero()[0]:
                contact = contacts[i]
                foreign.append(_as_join(contact, hits.pop(contact), taken.ids))
        here: list[Message] = []
        for message in taken.messages:
            (here if self._is_here(message.to) else foreign).append(message)
        batch = Batch(self.views, self._reader([*hits, *(m.to for m in here)]), self._is_here, self._context.max_merges)
        if hits:
            batch.activities(hits, taken.ids)
        for message in here:
            batch.deliver(message)
        decision = batch.decide()
        decision.handoffs[:0] = foreign
        return decision

    def _reader(self, contacts: Sequence[str]) -> Callable[[bytes], bytes | None]:
        """A function that reads a record: from the overlay, from what is read ahead here for *contacts*, or from RocksDB."""
        overlay, get = self._overlay, self.ledger.get
        ahead = [key for key in {records.EVIDENCE + contact.encode() for contact in contacts} if key not in overlay]
        read = dict(zip(ahead, self.ledger.get_many(ahead), strict=True)) if ahead else {}

        def load(key: bytes) -> bytes | None:
            entry = overlay.get(key)
            if entry is not None:
                return entry[0]
            return read[key] if key in read else get(key)

        return load

    def _is_here(self, contact: str) -> bool:
        return partition_of(contact, self._context.partitions) == self.number

    def _work(
        self,
        decision: Decision,
        rejected: list[OutRecord] | None = None,
        position: tuple[str, int] | None = None,
        done: Callable[[], None] = lambda: None,
        also: Sequence[tuple[bytes, bytes | None]] = (),
        drop: Sequence[tuple[bytes, bytes]] = (),
    ) -> Work:
        """What has to be done of *decision*; from now on the overlay shows its records."""
        now_ms, n = self._context.now_ms(), self._context.partitions
        self._works += 1
        number, overlay = self._works, self._overlay
        for key, value in decision.records.items():
            overlay[key] = (value, number)
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
        handed: list[OutRecord] = []
        for message in decision.handoffs:
            metrics.HANDOFFS.labels(type(message).__name__.lower()).inc()
            handed.append((partition_of(message.to, n), message.to.encode(), handoffs.encode(message), [], now_ms))

        def commit(offset: int | None) -> None:
            written: list[tuple[bytes, bytes | None]] = [*decision.records.items(), *decision.entries.items(), *also]
            written.extend(self._add_totals(totals))
            if position is not None:
                source, following = position
                if following > self.positions.get(source, -1):
                    self.positions[source] = following
                    written.append((POSITION + source.encode(), str(following).encode()))
            if offset is not None and not self._context.changelog.frozen(self.number):
                written.append((CHANGELOG_POSITION, str(offset).encode()))
            self.ledger.write(written, drop)
            for key in decision.records:
                if overlay[key][1] == number:
                    del overlay[key]

        return Work(changes, rejected or [], handed, list(decision.records.items()), commit, done)

    def _add_totals(
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

    def _rejected(
        self, topic: str, record: Any, code: str, message: str, now_ms: int, partition: int | None = None
    ) -> OutRecord:
        metrics.REJECTED.labels(topic, code).inc()
        headers = [(name, value) for name, value in (record.headers or ())]
        headers += [
            ("waypost_error", message.encode("utf-8", "backslashreplace")),
            ("waypost_topic", topic.encode()),
            ("waypost_partition", str(self.number if partition is None else partition).encode()),
            ("waypost_offset", str(record.offset).encode()),
            ("waypost_rejected_at", format_ms(now_ms).encode()),
        ]
        return None, record.key, record.value, headers, now_ms

    def values(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes | None]]:
        """The records under *keys* as the changelog was last told: what is decided and not announced yet is not in it."""
        assert self._pipeline is not None, f"partition {self.number} answers for its changelog only while active"
        found: list[tuple[bytes, bytes | None]] = []
        for key in keys:
            on_its_way, value = self._pipeline.sent(key)
            found.append((key, value if on_its_way else self.ledger.get(key)))
        return found

    # ------------------------------------------------------------------ views

    def reconcile(self) -> None:
        """Brings the views to what the catalogue of journeys says: new versions are built beside the live ones, deleted journeys go."""
        if self._pipeline is None:
            return
        wanted = {view_id(journey): journey for journey in self._context.catalog.values()}
        gone = [v for v in self.views.all if v.journey.id not in self._context.catalog]
        gone += [v for v in self.views.all if self.state[v.id] == BUILDING and v.id not in wanted and v not in gone]
        self._drop(gone)
        new: list[View] = []
        for id_, journey in wanted.items():
            if id_ not in self.state:
                new.append(View(journey, cursor=b""))
                self.state[id_] = BUILDING
            elif self.state[id_] == OLD:  # an edit was undone
                self._drop([v for v in self.views.all if v.id == id_])
                new.append(View(journey, cursor=b""))
                self.state[id_] = BUILDING
        if new:
            self._set_views([*self.views.all, *new])
        for view in self.views.all:
            if self.state[view.id] == BUILDING and view.id not in self._scans:
                self._scans[view.id] = asyncio.create_task(self._scan(view))
            elif self.state[view.id] == OLD:
                self._retire(view)

    def scanned(self, view: View) -> float:
        """How much of a view that is being built is built, 0 to 1, judged by how far its cursor is between the first contact id and the last."""
        if view.cursor is None:
            return 1.0
        first = next((key for key, _ in self.ledger.scan(records.EVIDENCE, None, 1)), None)
        last = self.ledger.last(records.EVIDENCE)
        if first is None or last is None or not view.cursor:
            return 0.0
        low, high, here = (_fraction(key) for key in (first[1:], last[1:], view.cursor))
        return 0.99 if high <= low else max(0.0, min(0.99, (here - low) / (high - low)))

    def _drop(self, views: Sequence[View]) -> None:
        if not views:
            return
        drop: list[tuple[bytes, bytes]] = []
        for view in views:
            scan = self._scans.pop(view.id, None)
            if scan is not None and scan is not asyncio.current_task():
                scan.cancel()
            del self.state[view.id]
            self.totals.pop(view.id, None)
            self.changed.discard(view.id)
            drop += [(space + view.id, prefix_end(space + view.id)) for space in (INDEX, TOTAL)]
        ids = {view.id for view in views}
        self._set_views([v for v in self.views.all if v.id not in ids])
        self._maintain([(VIEW + id_, None) for id_ in ids], drop)

    def _maintain(self, also: Sequence[tuple[bytes, bytes | None]], drop: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Writes *also* in its turn, behind everything on its way."""
        pipeline = self._pipeline
        assert pipeline is not None
        work = self._work(Decision({}, [], [], [], {}, {}), also=also, drop=drop)
        work.took_room = False
        pipeline.add(work)

    async def _scan(self, view: View) -> None:
        """Takes every contact into *view*, a step at a time, the cursor written with what it passed."""
        try:
            while view.cursor is not None:
                pipeline = self._pipeline
                assert pipeline is not None
                if not await pipeline.room():
                    return
                if self._scans.get(view.id) is not asyncio.current_task():
                    pipeline.spare()
                    return
                pipeline.add(self._scan_step(view))
                await asyncio.sleep(0)
            log.info("partition %s: %s version %s is complete", self.number, view.journey.id, view.journey.version)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._context.failed(error)
        finally:
            if self._scans.get(view.id) is asyncio.current_task():
                del self._scans[view.id]

    def _scan_step(self, view: View) -> Work:
        prefix = records.EVIDENCE
        after = None if not view.cursor else prefix + view.cursor
        found = [key for key, _ in self.ledger.scan(prefix, after, SCAN_CONTACTS)]
        last = found[-1] if len(found) == SCAN_CONTACTS else None
        low = after or prefix
        keys = {key for key in self._overlay if key[:1] == prefix and key > low and (last is None or key <= last)}
        keys.update(found)
        contacts = [key[1:].decode() for key in sorted(keys)]
        metrics.SCAN_CONTACTS.inc(len(contacts))
        predecessor = next(
            (v for v in self.views.all if v.journey.id == view.journey.id and self.state[v.id] == LIVE), None
        )
        batch = Batch(self.views, self._reader(contacts), self._is_here, self._context.max_merges)
        batch.scan(view, contacts, predecessor)
        decision = batch.decide()
        view.cursor = None if last is None else last[1:]
        if view.cursor is not None:
            return self._work(decision, also=[self._view_entry(view)])
        self.state[view.id], view.told = LIVE, True
        decision.records.update([self._view_entry(view)])  # the changelog keeps that it was live
        also: list[tuple[bytes, bytes | None]] = []
        if predecessor is not None:
            self.state[predecessor.id] = OLD
            also.append(self._view_entry(predecessor))
        self._set_views(list(self.views.all))
        self.changed.add(view.id)
        if predecessor is not None:
            self._retire(predecessor)
        return self._work(decision, also=also)

    def _retire(self, view: View) -> None:
        if view.id not in self._retirements:
            loop = asyncio.get_running_loop()
            self._retirements[view.id] = loop.call_later(KEEP_OLD_VIEW_SECONDS, self._retired, view)

    def _retired(self, view: View) -> None:
        self._retirements.pop(view.id, None)
        if self.active and self.state.get(view.id) == OLD and view in self.views.all:
            self._drop([view])

    def _view_entry(self, view: View) -> tuple[bytes, bytes]:
        said = {
            "journey": journey_json(view.journey),
            "cursor": None if view.cursor is None else view.cursor.hex(),
            "state": self.state[view.id],
            "told": view.told,
        }
        return VIEW + view.id, json.dumps(said).encode()


def _fraction(key: bytes) -> int:
    return int.from_bytes(key[:24].ljust(24, b"\0"), "big")


def _as_join(contact: str, hits: list[tuple[bytes, bytes]], ids: dict[bytes, str]) -> Join:
    """Hits of a contact of another partition as a message for it."""
    blobs: dict[bytes, set[bytes]] = {}
    for rule, hit in hits:
        blobs.setdefault(rule, set()).add(hit)
    joined = {rule: b"".join(sorted(blob)) for rule, blob in blobs.items()}
    return Join(contact, joined, cause_id=ids[hits[-1][1]], ids={hit: ids[hit] for _, hit in hits})
