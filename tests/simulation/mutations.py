"""Faults put into the engine on purpose, one at a time: what the simulation is for. Each is a context in which the engine is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import state.identity
import state.progress
import state.progression
import state.recalculation
import state.records
import tests.simulation.recalculating
from agents.building import Building
from agents.partition import Partition
from agents.pipeline import Pipeline, Work
from agents.succession import Succession
from schemas.recalculation import FILLING, WorkerReport
from state.batch import Batch
from state.decision import Decision
from state.evidence import Evidence
from state.identity import Identity
from state.messages import Join, Unite
from state.progress import Reached
from state.recalculation import Table, evidence_key

from .cluster import _projection

Mutation = Callable[[], AbstractContextManager[Any]]
MUTATIONS: dict[str, Mutation] = {}
FIRST = {
    "handoffs before stage changes": 1013,
    "recovery lets a holder replace an alias": 1101,
    "nothing may have been said before a crash": 2231,
    "recovery takes the last record instead of joining": 627,
    "the truth of what came late is not asked for": 2231,
}
"""From which history on rare faults are looked for: one soon after is known to meet them. Where the engine changes, others do: see `HISTORIES`."""


def mutation(make: Callable[[], Iterator[None]]) -> Mutation:
    """Registers a fault under its name."""

    @contextmanager
    def found() -> Iterator[None]:
        _projection.cache_clear()  # made by the engine as it was
        with contextmanager(make)():
            yield
        _projection.cache_clear()

    MUTATIONS[make.__name__.replace("_", " ")] = found
    return found


# -- the order of a batch's steps -------------------------------------------------------------------------------------------


@mutation
def rocksdb_before_the_broker() -> Iterator[None]:
    original = Pipeline._send_changes

    async def send_changes(self: Pipeline, work: Work, carried: Any) -> Any:
        work.commit(None)
        work.commit = lambda _: None
        return await original(self, work, carried)

    with patch.object(Pipeline, "_send_changes", send_changes):
        yield


@mutation
def changelog_before_handoffs() -> Iterator[None]:
    handoffs, changelog = Pipeline._send_handoffs, Pipeline._send_changelog
    with patch.object(Pipeline, "_send_handoffs", changelog):
        offsets: dict[int, Any] = {}

        async def first(self: Pipeline, work: Work, carried: Any) -> Any:
            offsets[id(work)] = await changelog(self, work, carried)

        async def then(self: Pipeline, work: Work, carried: Any) -> Any:
            await handoffs(self, work, carried)
            return offsets.pop(id(work))

        with patch.object(Pipeline, "_send_handoffs", first), patch.object(Pipeline, "_send_changelog", then):
            yield


@mutation
def handoffs_before_stage_changes() -> Iterator[None]:
    changes, handoffs = Pipeline._send_changes, Pipeline._send_handoffs
    with patch.object(Pipeline, "_send_changes", handoffs), patch.object(Pipeline, "_send_handoffs", changes):
        yield


@mutation
def what_a_decision_has_no_room_for_is_lost() -> Iterator[None]:
    original = Partition._decisions

    def first_alone(self: Partition, *of: Any) -> Iterator[Any]:
        decision, _ = next(original(self, *of))
        yield decision, True

    with patch.object(Partition, "_decisions", first_alone):
        yield


@mutation
def acknowledged_before_it_is_durable() -> Iterator[None]:
    original = Partition.submit

    async def submit(self: Partition, source: str, chunk: Any, done: Callable[[], None]) -> None:
        done()
        await original(self, source, chunk, done)

    with patch.object(Partition, "submit", submit):
        yield


@mutation
def stage_changes_not_waited_for() -> Iterator[None]:
    async def send_changes(self: Pipeline, work: Work, _: Any) -> None:
        if work.changes:
            await self._outward.send(self._topics["stage-changes"], work.changes)

    with patch.object(Pipeline, "_send_changes", send_changes):
        yield


@mutation
def the_truth_of_what_came_late_is_not_asked_for() -> Iterator[None]:
    async def ask_again(self: Pipeline, work: Work, sent: asyncio.Future[None]) -> None:
        await sent

    with patch.object(Pipeline, "_ask_again", ask_again):
        yield


# -- recovery ---------------------------------------------------------------------------------------------------------------


@mutation
def recovery_takes_the_last_record_instead_of_joining() -> Iterator[None]:
    with patch.object(state.joining, "join", lambda key, old, new: new):
        yield


@mutation
def recovery_lets_a_holder_replace_an_alias() -> Iterator[None]:
    original = state.joining.join

    def join(key: bytes, old: bytes | None, new: bytes | None) -> bytes | None:
        evidence = key[:1] == state.records.EVIDENCE and old is not None and new is not None
        return new if evidence and state.records.pointer_of(new or b"") is None else original(key, old, new)

    with patch.object(state.joining, "join", join):
        yield


@mutation
def views_do_not_follow_recovery() -> Iterator[None]:
    with patch.object(Succession, "_restore_views", lambda self, joined: []):
        yield


@mutation
def nothing_may_have_been_said_before_a_crash() -> Iterator[None]:
    original = Partition.activate

    def activate(self: Partition, ends: Any) -> None:
        original(self, dict.fromkeys(ends, 0))

    with patch.object(Partition, "activate", activate):
        yield


# -- what is decided --------------------------------------------------------------------------------------------------------


@mutation
def erasure_forgets_nothing() -> Iterator[None]:
    with patch.object(Evidence, "forget", lambda self, erased_at_ms: False):
        yield


@mutation
def late_activities_after_an_erasure_come_back() -> Iterator[None]:
    original = Identity.join

    def join(
        self: Identity, members: Any = (), merges: Any = (), profiles: Any = None, erased_at_ms: Any = None
    ) -> bool:
        changed = original(self, members, merges, profiles, erased_at_ms)
        self.erased_at_ms = None
        return changed

    with patch.object(Identity, "join", join):
        yield


@mutation
def a_hit_replaces_the_ones_before() -> Iterator[None]:
    def add(self: Evidence, rule: bytes, blob: bytes) -> bool:
        changed = self.hits.get(rule) != blob
        self.hits[rule] = blob
        return changed

    with patch.object(Evidence, "add", add):
        yield


@mutation
def merges_count_in_order_of_arrival() -> Iterator[None]:
    original = state.identity.survivor

    def survivor(contact: str, merges: Any, members: Any = None) -> str:
        return original(contact, [m._replace(at_ms=n) for n, m in enumerate(merges)], members)

    with patch.object(state.identity, "survivor", survivor):
        yield


@mutation
def an_alias_keeps_what_is_for_its_holder() -> Iterator[None]:
    original = Batch._send

    def send(self: Batch, message: Join | Unite) -> None:
        if isinstance(message, Unite) or message.members:
            original(self, message)

    with patch.object(Batch, "_send", send):
        yield


@mutation
def a_unite_is_not_answered() -> Iterator[None]:
    original = Batch._send

    def send(self: Batch, message: Join | Unite) -> None:
        if isinstance(message, Join) or message.merges:
            original(self, message)

    with patch.object(Batch, "_send", send):
        yield


@mutation
def a_name_that_goes_is_not_left() -> Iterator[None]:
    original = Batch._hand_over

    def hand_over(self: Batch, *args: Any) -> None:
        sent = self._send

        def without_part(message: Any) -> None:
            sent(message._replace(part=None) if isinstance(message, Join) else message)

        with patch.object(self, "_send", without_part):
            original(self, *args)

    with patch.object(Batch, "_hand_over", hand_over):
        yield


@mutation
def groups_of_the_first_profile_stay() -> Iterator[None]:
    original = Identity._derive

    def derive(self: Identity, named: bool) -> None:
        before = self.groups
        original(self, named)
        self.groups = before or self.groups

    with patch.object(Identity, "_derive", derive):
        yield


@mutation
def one_activity_meets_two_stages() -> Iterator[None]:
    original = state.progress._rule

    def rule(key: bytes) -> Any:
        met = original(key)
        return lambda hits, after, spent: met(hits, after, ())

    with patch.object(state.progress, "_rule", rule):
        yield


@mutation
def any_takes_the_last_listed_of_equal_ones() -> Iterator[None]:
    original = state.progress._any
    with patch.object(state.progress, "_any", lambda members: original(members[::-1])):
        yield


@mutation
def all_takes_the_earliest() -> Iterator[None]:
    def all_of(members: Any) -> Any:
        def met(hits: Any, after: bytes, spent: Any) -> Reached | None:
            found = [member(hits, after, spent) for member in members]
            if None in found:
                return None
            return Reached(min(f.at for f in found), tuple(h for f in found for h in f.met_by))

        return met

    with patch.object(state.progress, "_all", all_of):
        yield


@mutation
def contribution_of_the_old_groups_stays() -> Iterator[None]:
    original = Decision.place

    def place(self: Decision, view: Any, holder: str, at: Any, count: int, since: int = 0) -> None:
        original(self, view, holder, at if count > 0 else (at[0], (), *at[2:]), count, since)

    with patch.object(Decision, "place", place):
        yield


# -- recalculation ----------------------------------------------------------------------------------------------------------


@mutation
def rebuilt_evidence_is_not_waited_for() -> Iterator[None]:
    original = tests.simulation.recalculating.report_of

    def report_of(*args: Any) -> WorkerReport:
        return replace(original(*args), joined=1 << 60)

    with patch.object(tests.simulation.recalculating, "report_of", report_of):
        yield


@mutation
def what_aliases_send_on_is_not_waited_for() -> Iterator[None]:
    with patch.object(state.progression, "MAX_HOPS", 0):
        yield


@mutation
def live_hits_are_not_recorded_under_the_new_epoch() -> Iterator[None]:
    original = Table.recorded

    def recorded(self: Table) -> dict[bytes, Any]:
        filling = {evidence_key(key, one.id) for one in self.active() if one.state == FILLING for key in self.rules(one.id)}
        return {key: rule for key, rule in original(self).items() if key not in filling}

    with patch.object(Table, "recorded", recorded):
        yield


@mutation
def a_view_is_shown_before_it_is_written() -> Iterator[None]:
    with patch.object(Building, "readable", lambda building, view: building.state.get(view.id, "building") != "building"):
        yield


@mutation
def old_views_go_at_once() -> Iterator[None]:
    with patch.object(Building, "_unread", lambda building: [*building._old]):
        yield
