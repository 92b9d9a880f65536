"""Building: the views of a partition, from the day a journey asks for one to the day nothing does. A scan builds them beside the live ones.

Never announces what was told before, and never lets a reader see half a view: a version shows when it is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from schemas.journey import Journey, journey_json, parse_journey
from state import records
from state.decision import Batch, Decision
from state.ledger import prefix_end
from state.views import INDEX, TOTAL, View, Views, view_id

from . import metrics
from .pipeline import Pipeline

if TYPE_CHECKING:
    from .partition import Partition

log = logging.getLogger(__name__)

VIEW = b"v"
LIVE, BUILDING, OLD = "live", "building", "old"
SCAN_CONTACTS = 1000  # a step: bounds how long the loop is blocked
KEEP_OLD_VIEWS = 2  # of a journey
KEEP_OLD_VIEW_SECONDS = (
    600.0  # after an edit, so that partitions that are still building find the old numbers beside theirs
)


class Building:
    """The views of one partition. `kept` are those whose index is written; `state` says of each, by id, whether it is live, building or old."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.kept = Views()
        self.state: dict[bytes, str] = {}
        self.scans: dict[bytes, asyncio.Task[None]] = {}
        self._retirements: dict[bytes, asyncio.TimerHandle] = {}
        self._wanted: dict[bytes, Journey] = {}  # what the catalogue asks for, by view id
        self._beginning: list[View] = []  # in the changelog, about to be kept
        self._unsettled: list[
            tuple[View, list[View]]
        ] = []  # the newest of a journey, and the versions it has not taken over from

    def load(self) -> None:
        """The views as they were last written."""
        self.state = {}
        found: list[View] = []
        for key, value in self._partition.ledger.scan(VIEW):
            said = json.loads(value)
            cursor = None if said["cursor"] is None else bytes.fromhex(said["cursor"])
            view = View(parse_journey(said["journey"]), cursor, said["told"])
            assert view.id == key[1:], "a view is stored under its own id"
            self.state[view.id] = said["state"]
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
        for handle in self._retirements.values():
            handle.cancel()
        scans = list(self.scans.values())
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
            newest = max(found, key=lambda view: (view.id in self._wanted, view.journey.version or 0))
            others = [view for view in found if view is not newest]
            newest.speaks = True
            newest.follow(others)
            if others or not newest.told:
                self._unsettled.append((newest, others))
        self.kept = Views(views)

    def reconcile(self) -> None:
        """Brings the views to what the catalogue of journeys says: new versions are built beside the live ones, deleted journeys go."""
        pipeline = self._partition.pipeline
        if pipeline is None:
            return
        catalog = self._partition.context.catalog
        wanted = self._wanted = {view_id(journey): journey for journey in catalog.values()}
        again = [v for v in self.kept.all if v.id in wanted and self.state[v.id] == OLD]  # an edit was undone
        self._drop([v for v in self.kept.all if v.journey.id not in catalog or v in again])
        for id_, journey in wanted.items():
            if id_ not in self.state:
                view = View(journey, cursor=b"")
                self.state[id_] = BUILDING
                work = self._partition.work(Decision(dict([self._view_entry(view)]), [], [], [], {}, {}))
                work.commit = self._then_begin(work.commit, view)
                work.took_room = False
                pipeline.add(work)
        self._keep(self.kept.all)
        self._work_on()

    def _then_begin(self, commit: Callable[[int | None], None], view: View) -> Callable[[int | None], None]:
        """A view speaks only when the changelog knows of it, so that whoever comes after knows that something may have been said."""

        def then(offset: int | None) -> None:
            commit(offset)
            if not self._beginning:
                asyncio.get_running_loop().call_soon(self._begin)
            self._beginning.append(view)

        return then

    def _begin(self) -> None:
        if self._partition.pipeline is None:
            return  # closed meanwhile
        views, self._beginning = [view for view in self._beginning if view.id in self.state], []
        self._keep([*self.kept.all, *views])
        self._work_on()

    def _work_on(self) -> None:
        wanted = self._wanted
        for view in self.kept.all:
            state = self.state[view.id]
            if state == OLD:
                self._retire(view)
            elif state == BUILDING and view.id in wanted and view.id not in self.scans:
                self.scans[view.id] = asyncio.create_task(self._scan(view))
            elif view.id not in wanted and view.id in self.scans:
                self.scans.pop(view.id).cancel()  # an edit came before it was complete

    def scanned(self, view: View) -> float:
        """How much of a view that is being built is built, 0 to 1, judged by how far its cursor is between the first contact id and the last."""
        if view.cursor is None:
            return 1.0
        first = next((key for key, _ in self._partition.ledger.scan(records.EVIDENCE, None, 1)), None)
        last = self._partition.ledger.last(records.EVIDENCE)
        if first is None or last is None or not view.cursor:
            return 0.0
        low, high, here = (_fraction(key) for key in (first[1:], last[1:], view.cursor))
        return 0.99 if high <= low else max(0.0, min(0.99, (here - low) / (high - low)))

    def _drop(self, views: Sequence[View]) -> None:
        if not views:
            return
        drop: list[tuple[bytes, bytes]] = []
        for view in views:
            scan = self.scans.pop(view.id, None)
            if scan is not None and scan is not asyncio.current_task():
                scan.cancel()
            del self.state[view.id]
            self._partition.totals.pop(view.id, None)
            self._partition.changed.discard(view.id)
            drop += [(space + view.id, prefix_end(space + view.id)) for space in (INDEX, TOTAL)]
        ids = {view.id for view in views}
        self._keep([v for v in self.kept.all if v.id not in ids])
        pipeline = self._partition.pipeline
        assert pipeline is not None, "views go while the partition is active"
        work = self._partition.work(Decision({VIEW + id_: None for id_ in ids}, [], [], [], {}, {}), drop=drop)
        work.took_room = False
        pipeline.add(work)  # in its turn, behind everything on its way

    async def _scan(self, view: View) -> None:
        """Takes every contact into *view*, a step at a time, the cursor written with what it passed."""
        try:
            while view.cursor is not None:
                pipeline = self._partition.pipeline
                assert pipeline is not None
                if not await pipeline.room():
                    return
                if self.scans.get(view.id) is not asyncio.current_task():
                    pipeline.spare()
                    return
                self._scan_step(view, pipeline)
                await asyncio.sleep(0)
            log.info(
                "partition %s: %s version %s is complete", self._partition.number, view.journey.id, view.journey.version
            )
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._partition.context.failed(error)
        finally:
            if self.scans.get(view.id) is asyncio.current_task():
                del self.scans[view.id]

    def _scan_step(self, view: View, pipeline: Pipeline) -> None:
        prefix = records.EVIDENCE
        after = None if not view.cursor else prefix + view.cursor
        found = [key for key, _ in self._partition.ledger.scan(prefix, after, SCAN_CONTACTS)]
        last = found[-1] if len(found) == SCAN_CONTACTS else None
        low = after or prefix
        keys = {
            key for key in self._partition.overlay if key[:1] == prefix and key > low and (last is None or key <= last)
        }
        keys.update(found)
        contacts = [key[1:].decode() for key in sorted(keys)]
        metrics.SCAN_CONTACTS.inc(len(contacts))
        batch = Batch(
            self.kept, self._partition.reader(contacts), self._partition.is_here, self._partition.context.max_merges
        )
        batch.scan(view, contacts)
        decision = batch.decide()
        view.cursor = None if last is None else last[1:]
        if view.cursor is not None:
            pipeline.add(self._partition.work(decision, also=[self._view_entry(view)]))
            return
        self.state[view.id] = LIVE
        self._partition.changed.add(view.id)
        decision.records.update([self._view_entry(view)])  # the changelog keeps that it was live
        pipeline.add(self._partition.work(decision))
        self.settle()

    def settle(self) -> None:
        """Complete views take over from their predecessors, once everything is repeated that may have been announced before a crash."""
        pipeline = self._partition.pipeline
        if pipeline is None:
            return
        repeated = self._partition.repeated()
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
        work = self._partition.work(Decision(entries, [], [], [], {}, {}))
        work.took_room = False
        pipeline.add(work)
        self._keep(self.kept.all)
        self._drop([old for _, others in ready for old in others if self.state[old.id] == BUILDING])
        self._drop(self._surplus())
        self._work_on()

    def _surplus(self) -> list[View]:
        """Old views beyond the newest few of their journey: many edits in a short time must not cost more and more."""
        old: dict[str, list[View]] = {}
        for view in self.kept.all:
            if self.state[view.id] == OLD:
                old.setdefault(view.journey.id, []).append(view)
        return [
            view
            for found in old.values()
            for view in sorted(found, key=lambda v: v.journey.version or 0)[:-KEEP_OLD_VIEWS]
        ]

    def _retire(self, view: View) -> None:
        if view.id not in self._retirements:
            loop = asyncio.get_running_loop()
            self._retirements[view.id] = loop.call_later(KEEP_OLD_VIEW_SECONDS, self._retired, view)

    def _retired(self, view: View) -> None:
        self._retirements.pop(view.id, None)
        if self._partition.active and self.state.get(view.id) == OLD and view in self.kept.all:
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
