"""Building: the views of a partition, from the day a journey asks for one to the day nothing does. A scan builds them beside the live ones.

Never announces what was told before, and never lets a reader see half a view: a version shows when it is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from schemas.errors import Refused
from schemas.journey import Journey, journey_json, parse_journey
from schemas.recalculation import CANCELLED, FAILED, Whole
from schemas.recalculation import LIVE as SWITCHED
from state import records
from state.batch import Batch
from state.decision import Decision
from state.ledger import prefix_end
from state.views import INDEX, TOTAL, Source, View, Views, view_id

from . import metrics
from .contacts import read_within
from .pipeline import Pipeline

if TYPE_CHECKING:
    from .partition import Partition

log = logging.getLogger(__name__)

VIEW, SWEPT = b"v", b"swept"
GIVEN_UP = (CANCELLED, FAILED)
LIVE, BUILDING, OLD = "live", "building", "old"
SCAN_CONTACTS = 1000  # a step: bounds how long the loop is blocked
KEEP_OLD_VIEWS = 8  # of a journey, however long other partitions take


class _Entry(msgspec.Struct):
    """What stands under the key of a view."""

    state: Literal["live", "building", "old"]
    told: bool
    cursor: str | None
    journey: dict[str, Any]
    keys: dict[str, str] = {}
    generation: Whole = 0
    recalculation: str | None = None
    changed: Whole = 0


_read_entry = msgspec.json.Decoder(_Entry).decode


def view_fault(key: bytes, value: bytes | None) -> str | None:
    """Return why *value* is no entry of the view with the key *key*, None when it is one.

    Raises what decoding raises. A rule type that is not installed is no fault of the entry.
    """
    if len(key) != 9:
        return "its key is that of no view"
    if value is None:
        return None
    entry = _read_entry(value)
    bytes.fromhex(entry.cursor or "")
    try:
        journey = parse_journey(entry.journey)
    except Refused as refused:
        return None if refused.code == "unknown_rule" else refused.message
    source = _source(json.loads(value))
    return None if view_id(journey, source) == key[1:] else "it is the entry of another view"


class Building:
    """The views of one partition. `kept` are those whose index is written; `state` says of each, by id, whether it is live, building or old."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.kept = Views()
        self.state: dict[bytes, str] = {}
        self.complete: set[bytes] = set()  # ids of views whose index is written to its end: these can be read
        self.scans: dict[bytes, asyncio.Task[None]] = {}
        self.turns = 0  # counts what became readable, and what went
        self._wanted: dict[bytes, tuple[Journey, Source]] = {}  # what the catalogue asks for, by view id
        self.sweep: asyncio.Task[None] | None = None
        self._swept = -1  # at which turn of the table it was last looked for evidence to give up
        self._fixed: dict[bytes, str] = {}  # by view id, what of its entry stays: each step of a scan writes the entries of all its views
        self._old: list[View] = []
        self._beginning: list[View] = []  # in the changelog, about to be kept
        self._unsettled: list[tuple[View, list[View]]] = []  # the newest of a journey, and the versions it has not taken over from

    def load(self) -> None:
        """The views as they were last written."""
        self.state, self.complete = {}, set()
        found: list[View] = []
        for key, value in self._partition.ledger.scan(VIEW):
            said = json.loads(value)
            cursor = None if said["cursor"] is None else bytes.fromhex(said["cursor"])
            view = View(parse_journey(said["journey"]), cursor, said["told"], _source(said), said.get("changed", 0))
            assert view.id == key[1:], "a view is stored under its own id"
            self.state[view.id] = said["state"]
            if view.cursor is None:
                self.complete.add(view.id)
            found.append(view)
        self._keep(found)

    def told(self, key: bytes, value: bytes | None) -> tuple[bytes, bytes | None] | None:
        """What becomes of a view's entry here when the changelog says *value*: another owner may have gone on meanwhile.

        Where there is no index of it, it is built, silently if it was live. One that went goes here too, after a while.
        """
        here = self._partition.ledger.get(key)
        said = {"state": OLD} if value is None else json.loads(value)
        if here is None:
            if said["state"] == OLD:
                return None
            entry = {**said, "cursor": "", "state": BUILDING, "told": said["told"]}
        else:
            entry = json.loads(here)
            if said["state"] == LIVE and said["told"]:
                entry["told"] = True
            elif said["state"] == OLD and entry["state"] == LIVE:
                entry["state"] = OLD
            elif said["state"] == OLD:
                return key, None
        return key, json.dumps(entry).encode()

    async def close(self) -> None:
        """Ends scans; their cursors stand in RocksDB."""
        scans = [*self.scans.values(), *([self.sweep] if self.sweep is not None else [])]
        for task in scans:
            task.cancel()
        for task in scans:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _keep(self, views: Iterable[View]) -> None:
        """These are the views from now on: of each journey the newest speaks, in place of those that did before."""
        views = tuple(views)
        versions: dict[str, list[View]] = {}
        for view in views:
            view.speaks = False
            if self.state[view.id] != OLD:
                versions.setdefault(view.journey.id, []).append(view)
        self._unsettled = []
        for found in versions.values():
            newest = max(found, key=lambda view: (view.id in self._wanted, view.order))
            others = [view for view in found if view is not newest]
            newest.speaks = True
            newest.follow(others)
            if others or not newest.told:
                self._unsettled.append((newest, others))
        self.kept = Views(views)
        self._old = [view for view in views if self.state[view.id] == OLD]

    def reconcile(self) -> None:
        """Brings the views to what the catalogue of journeys says: new versions are built beside the live ones, deleted journeys go."""
        pipeline = self._partition.pipeline
        if pipeline is None:
            return
        catalog, table = self._partition.context.catalog, self._partition.context.recalculations
        wanted: dict[bytes, tuple[Journey, Source]] = {}
        for journey in catalog.values():
            source = table.source(journey)
            if source is not None:  # else its evidence is still to be collected, and what there is stays
                wanted[view_id(journey, source)] = journey, source
        self._wanted = wanted
        again = [v for v in self.kept.all if v.id in wanted and self.state[v.id] == OLD]  # an edit was undone
        self._drop([v for v in self.kept.all if v.journey.id not in catalog or v in again])
        new = [View(journey, cursor=b"", source=source) for id_, (journey, source) in wanted.items() if id_ not in self.state]
        if new:
            self.state.update((view.id, BUILDING) for view in new)
            work = self._partition.work(Decision(dict(map(self._view_entry, new)), [], [], [], {}, {}))
            work.commit = self._then_begin(work.commit, new)
            work.took_room = False
            pipeline.add(work)
        self._keep(self.kept.all)
        self._work_on()

    def _then_begin(self, commit: Callable[[int | None], None], views: list[View]) -> Callable[[int | None], None]:
        """Views speak only when the changelog knows of them, so that whoever comes after knows that something may have been said."""

        def then(offset: int | None) -> None:
            commit(offset)
            if not self._beginning:
                asyncio.get_running_loop().call_soon(self._begin)
            self._beginning += views

        return then

    def _begin(self) -> None:
        if self._partition.pipeline is None:
            return  # closed meanwhile
        views, self._beginning = [view for view in self._beginning if view.id in self.state], []
        self._keep([*self.kept.all, *(view for view in views if view.id in self._wanted)])
        self._drop([view for view in views if view.id not in self._wanted])  # a cancel or an edit came first
        self._work_on()

    def _work_on(self) -> None:
        wanted = self._wanted
        begun: dict[bytes | None, list[View]] = {}
        for view in self.kept.all:
            state = self.state[view.id]
            if state == BUILDING and view.id in wanted and view.id not in self.scans:
                begun.setdefault(view.cursor, []).append(view)
            elif view.id not in wanted:
                self.scans.pop(view.id, None)  # an edit came before it was complete
        for views in begun.values():  # one walk for all that have come equally far
            task = asyncio.create_task(self._scan(views))
            self.scans.update(dict.fromkeys((view.id for view in views), task))

    def shown(self, recalculation: str) -> tuple[float, bool, int]:
        """How much of what the catalogue asks for is built, whether all of it is, and how many contacts *recalculation* changed."""
        ends = self._partition.contacts.ends()
        built = [self.scanned(v, ends) for v in self.kept.all if v.id in self._wanted]
        complete = self._wanted.keys() <= self.complete
        changed = sum(v.changed for v in self.kept.all if v.source.recalculation == recalculation)
        return sum(built) / max(1, len(self._wanted)), complete, changed

    def readable(self, view: View) -> bool:
        """Whether *view* is complete here, and of evidence to which everybody has switched."""
        if view.id not in self.complete:
            return False
        behind = view.source.recalculation
        one = None if behind is None else self._partition.context.recalculations.records.get(behind)
        return behind is None or (one is not None and one.state == SWITCHED)

    def visible(self) -> list[View]:
        """The views that are read: of each journey the newest that is readable here."""
        found: dict[str, View] = {}
        for view in self.kept.all:
            if self.readable(view):
                before = found.get(view.journey.id)
                found[view.journey.id] = view if before is None or view.order > before.order else before
        return list(found.values())

    def scanned(self, view: View, ends: tuple[bytes, bytes] | None = None) -> float:
        """Return how much of a view is built, 0 to 1. *ends*: see `Contacts.ends`."""
        if view.id in self.complete:
            return 1.0
        return 0.99 if view.cursor is None else self._partition.contacts.passed(view.cursor, ends)

    def _drop(self, views: Sequence[View]) -> None:
        if not views:
            return
        drop: list[tuple[bytes, bytes]] = []
        for view in views:
            self.scans.pop(view.id, None)
            del self.state[view.id]
            self._fixed.pop(view.id, None)
            self.complete.discard(view.id)
            self.turns += 1
            self._partition.totals.pop(view.id, None)
            self._partition.changed.discard(view.id)
            drop += [(space + view.id, prefix_end(space + view.id)) for space in (INDEX, TOTAL)]
        ids = {view.id for view in views}
        self._keep([v for v in self.kept.all if v.id not in ids])
        # in its turn, behind everything on its way
        self._partition.add_aside(Decision({VIEW + id_: None for id_ in ids}, [], [], [], {}, {}), drop=drop)

    async def _scan(self, views: list[View]) -> None:
        """Takes every contact into *views*, a step at a time, the cursor written with what it passed. Ends when none of them is wanted."""
        me = asyncio.current_task()
        try:
            while True:
                pipeline = self._partition.pipeline
                assert pipeline is not None
                if not await pipeline.room(behind=True):
                    return
                mine = [view for view in views if self.scans.get(view.id) is me]
                if not mine:
                    pipeline.spare()
                    return
                self._scan_step(mine, pipeline)
                if mine[0].cursor is None:
                    for view in mine:
                        log.info("partition %s: %s version %s is complete", self._partition.number, view.journey.id, view.journey.version)
                    return
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._partition.context.failed(error)
        finally:
            for view in views:
                if self.scans.get(view.id) is me:
                    del self.scans[view.id]

    def _scan_step(self, views: list[View], pipeline: Pipeline) -> None:
        partition = self._partition
        context = partition.context
        found, holders, cursor = partition.contacts.step(views[0].cursor or b"", SCAN_CONTACTS, context.decision_bytes)
        load = partition.reader(known=found)
        batch = Batch(self.kept, load, partition.is_here, context.max_merges, few=context.few, room=context.decision_bytes)
        changed, taken = batch.scan(views, holders)
        metrics.SCAN_CONTACTS.inc(taken)
        if taken < len(holders):
            cursor = holders[taken - 1]
        decision = batch.decide()
        for view in views:
            view.cursor = cursor
            view.changed += changed[view.id]
        if cursor is not None:
            pipeline.add(partition.work(decision, also=[self._view_entry(view) for view in views]))
            return
        for view in views:
            self.state[view.id] = LIVE
        decision.records.update(self._view_entry(view) for view in views)  # the changelog keeps that it was live
        work = partition.work(decision)
        work.commit = self._then_complete(work.commit, views)
        pipeline.add(work)
        self.settle()

    def _then_complete(self, commit: Callable[[int | None], None], views: list[View]) -> Callable[[int | None], None]:
        def then(offset: int | None) -> None:
            commit(offset)
            for view in views:
                if view.id in self.state:  # not dropped meanwhile
                    self.complete.add(view.id)
                    self.turns += 1
                    self._partition.changed.add(view.id)
            self._partition.comparing.reconcile()  # a comparison may have waited for it

        return then

    def settle(self) -> None:
        """Complete views take over from their predecessors, once everything is repeated that may have been announced before a crash."""
        pipeline = self._partition.pipeline
        if pipeline is None:
            return
        self._drop(self._unread())
        self._sweep()
        self._partition.succession.forget()
        repeated = self._partition.succession.repeated()
        ready = [
            (view, others)
            for view, others in self._unsettled
            if self.state.get(view.id) == LIVE and (view.told or repeated)
        ]
        if not ready:
            return
        entries: dict[bytes, bytes | None] = {}
        for view, others in ready:
            view.told = True
            entries.update([self._view_entry(view)])
            for old in others:
                if self.state[old.id] == LIVE:
                    self.state[old.id] = OLD
                    entries.update([self._view_entry(old)])
        self._partition.add_aside(Decision(entries, [], [], [], {}, {}))
        self._keep(self.kept.all)
        self._drop([old for _, others in ready for old in others if self.state[old.id] == BUILDING])
        self._work_on()

    def _sweep(self) -> None:
        """Begins to take evidence away that nothing reads any more, when a recalculation is over and its old views are gone."""
        table = self._partition.context.recalculations
        sweeping = self.sweep is not None and not self.sweep.done()
        if table.turns == self._swept or self._old or self.scans or len(self.state) > len(self.kept.all) or table.active() or sweeping:
            return
        self._swept = table.turns
        dead = table.dead().difference(*(view.rules for view in self.kept.all))
        mark = blake2b(b"".join(sorted(dead)), digest_size=8).digest()
        if dead and self._partition.ledger.get(SWEPT) != mark:
            self.sweep = asyncio.create_task(self._take_away(dead, mark))

    async def _take_away(self, dead: frozenset[bytes], mark: bytes) -> None:
        """Walks over all contacts and takes the keys *dead* out of their evidence. No epoch comes twice: nothing is lost by it, whatever happens."""
        partition, prefix = self._partition, records.EVIDENCE
        after: bytes | None = None
        try:
            while True:
                pipeline = partition.pipeline
                if pipeline is None or not await pipeline.room(behind=True):
                    return
                room = partition.context.decision_bytes  # an iterator that was kept would hold files of RocksDB
                found, done = read_within(partition.ledger.scan(prefix, after, SCAN_CONTACTS), SCAN_CONTACTS, room)
                load = partition.reader(known=dict(found))
                smaller: dict[bytes, bytes | None] = {}
                for key, _ in found:
                    record = load(key)
                    less = None if record is None else records.without(record, dead)
                    if less is not None:
                        smaller[key] = less
                pipeline.add(partition.work(Decision(smaller, [], [], [], {}, {}), also=[(SWEPT, mark)] if done else []))
                if done:
                    return
                after = found[-1][0]
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            partition.context.failed(error)

    def _unread(self) -> list[View]:
        """Old views that nobody reads: all partitions have a newer one, or their recalculation was given up, or they are too many."""
        context, found = self._partition.context, []
        old: dict[str, list[View]] = {}
        for view in self._old:
            behind = context.recalculations.records.get(view.source.recalculation or "")
            common = context.common(view.journey.id)
            # what all have may have been said of this partition by the owner before, who took it along; and what is newer here may not show yet
            passed = common is not None and view.order < common and any(
                other.journey.id == view.journey.id and other.order >= common and self.readable(other) for other in self.kept.all
            )
            if (behind is not None and behind.state in GIVEN_UP) or passed:
                found.append(view)
            else:
                old.setdefault(view.journey.id, []).append(view)
        for views in old.values():
            found += sorted(views, key=lambda v: v.order)[:-KEEP_OLD_VIEWS]
        return found

    def _view_entry(self, view: View) -> tuple[bytes, bytes]:
        fixed = self._fixed.get(view.id)
        if fixed is None:
            source = view.source
            keys = {rule.hex(): key.hex() for rule, key in source.keys.items()}
            same = {"journey": journey_json(view.journey), "keys": keys, "generation": source.generation, "recalculation": source.recalculation}
            fixed = self._fixed[view.id] = json.dumps(same)[:-1]
        moving = {
            "cursor": None if view.cursor is None else view.cursor.hex(), "state": self.state[view.id], "told": view.told, "changed": view.changed,
        }  # fmt: skip
        return VIEW + view.id, f"{fixed}, {json.dumps(moving)[1:]}".encode()


def _source(said: dict[str, Any]) -> Source:
    keys = {bytes.fromhex(rule): bytes.fromhex(key) for rule, key in said.get("keys", {}).items()}
    return Source(keys, said.get("generation", 0), said.get("recalculation"))
