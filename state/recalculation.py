"""Recalculation: the state machine of rebuilding evidence, and what it means for partitions. Pure; reads no topic, knows no clock.

Evidence of a rule is kept under one key an epoch, so that the new grows beside the old and neither is ever mixed. `Table` folds the recalculations
topic and says which keys partitions record and which a journey's view reads; `Reports` folds what workers and jobs say of it. The next step of one
under way is decided by `progression`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b
from typing import NamedTuple

from schemas.journey import Journey
from schemas.recalculation import (
    CANCELLED,
    CANCELLING,
    COMPARING,
    COMPARISON,
    EDIT,
    FAILED,
    FILLING,
    JOB,
    LIVE,
    MAX_EPOCH,
    OVER,
    PHASES,
    PLANNED,
    READING,
    SWITCHING,
    VIEWS,
    WORKER,
    ComparisonReport,
    JobReport,
    Recalculation,
    Report,
    ViewsReport,
    WorkerReport,
    rule_text,
)
from schemas.rules import Rule, rule_key

from .progress import rules_of
from .views import Source

MAX_RULES, MAX_RULES_BYTES = 50_000, 6 << 20  # of one recalculation, whose record names each of its rules up to twice
KEPT = 100  # recalculations that are over and whose evidence nobody needs
_RANK = {PLANNED: 0, FILLING: 1, SWITCHING: 2} | dict.fromkeys(OVER, 3)


def evidence_key(rule: bytes, recalculation: str) -> bytes:
    """8 bytes under which hits of the rule with the key *rule* are kept by the epoch of *recalculation*."""
    return blake2b(rule + recalculation.encode(), digest_size=8).digest()


def by_key(rules: Iterable[Rule]) -> dict[bytes, Rule]:
    """The rules by their keys, each once."""
    return {rule_key(rule): rule for rule in rules}


_asked: dict[int, tuple[Journey, dict[bytes, Rule]]] = {}  # by identity: journeys are frozen, and keys are dear


def rules_by_key(journey: Journey) -> dict[bytes, Rule]:
    """The rules of *journey* by their keys; remembered, so not to be changed."""
    found = _asked.get(id(journey))
    if found is None or found[0] is not journey:
        if len(_asked) > 10_000:
            _asked.clear()
        found = _asked[id(journey)] = journey, by_key(rules_of(journey))
    return found[1]


class Standing(NamedTuple):
    """How it stands with the evidence of a rule. `readable`: what can be read, the newest first, down to the newest that is live; `generation` counts
    up with each switch, forth and back; `settled`: the same without recalculations under way."""

    readable: tuple[Recalculation, ...] = ()
    generation: int = 0
    settled: int = 0


NEVER = Standing()


class Table:
    """The recalculations there are, as the topic has them. `stale`: ids whose last record on the topic is not what the table holds: say it again."""

    def __init__(self) -> None:
        self.records: dict[str, Recalculation] = {}
        self.stale: set[str] = set()
        self._keys: dict[str, dict[bytes, Rule]] = {}
        self._index: dict[bytes, Standing] | None = None
        self.turns = 0  # counts what changed for partitions

    def take(self, id_: str, record: Recalculation | None) -> bool:
        """One record of the topic; whether anything changed for partitions. States only go forward, and the first end stays."""
        before = self.records.get(id_)
        if record is None:
            self.stale.discard(id_)
            if before is None:
                return False
            del self.records[id_], self._keys[id_]
            self._index, self.turns = None, self.turns + 1
            return True
        after = record if before is None else _joined(before, record)
        if before is None or before.rules is not after.rules:
            self._keys[id_] = by_key(after.rules)
        (self.stale.discard if after == record else self.stale.add)(id_)
        self.records[id_] = after
        if before is not None and _concerns_partitions(before) == _concerns_partitions(after):
            return False
        self._index, self.turns = None, self.turns + 1
        return True

    # ------------------------------------------------------------------ what it means

    def all(self) -> list[Recalculation]:
        """All of them, the newest last."""
        return sorted(self.records.values(), key=lambda one: (one.planned_at, one.id))

    def active(self) -> list[Recalculation]:
        """Those under way, in order of their epochs; more than one only while two drivers act."""
        found = [one for one in self.records.values() if one.state in (FILLING, SWITCHING)]
        return sorted(found, key=lambda one: (one.epoch, one.id))

    def rules(self, id_: str) -> dict[bytes, Rule]:
        """The rules of a recalculation by their keys."""
        return self._keys[id_]

    def standing(self, rule: bytes) -> Standing:
        """How it stands with the evidence of the rule with the key *rule*."""
        return self._standing().get(rule, NEVER)

    def _standing(self) -> dict[bytes, Standing]:
        if self._index is not None:
            return self._index
        index: dict[bytes, Standing] = {}
        closed: set[bytes] = set()  # rules of which a newer recalculation is live: older evidence was not kept up, even if the newer was given up
        switched = [one for one in self.records.values() if one.switched_at is not None]
        for one in sorted(switched, key=lambda r: (r.epoch, r.id), reverse=True):
            generation = 2 * one.epoch + (one.state not in (SWITCHING, LIVE))
            for key in self._keys[one.id]:
                readable, newest, settled = index.get(key, NEVER)
                if one.state in (SWITCHING, LIVE) and key not in closed:
                    readable = readable if key.hex() in one.retired else (*readable, one)
                    if one.state == LIVE:
                        closed.add(key)
                index[key] = Standing(readable, max(newest, generation), max(settled, 0 if one.state == SWITCHING else generation))
        self._index = index
        return index

    def source(self, journey: Journey) -> Source | None:
        """Where the evidence of *journey*'s rules stands; None when some was never collected."""
        keys, generation = {}, 0
        newest: Recalculation | None = None
        for rule in rules_by_key(journey):
            readable, of_rule, _ = self.standing(rule)
            generation = max(generation, of_rule)
            if not readable:
                return None
            one = readable[0]
            keys[rule] = evidence_key(rule, one.id)
            if newest is None or one.epoch > newest.epoch:
                newest = one
        return Source(keys, generation, None if newest is None else newest.id)

    def visible(self, journey: Journey) -> int | None:
        """The generation from which on a view of *journey* shows what `source` says: views that a cancelled switch has built again show the same as
        those before it. None when some evidence was never collected."""
        readable = [self.standing(rule).readable for rule in rules_by_key(journey)]
        return max((2 * found[0].epoch for found in readable), default=0) if all(readable) else None

    def settled(self, rules: Iterable[bytes]) -> int:
        """The newest generation of a journey with *rules* (keys) that no recalculation under way has to do with."""
        return max((self.standing(rule).settled for rule in rules), default=0)

    def live(self) -> list[tuple[str, bytes]]:
        """`(recalculation, rule key)` of all evidence that is live."""
        return [(one.id, key) for key, found in self._standing().items() for one in found.readable if one.state == LIVE]

    def recorded(self) -> dict[bytes, Rule]:
        """Evidence key -> rule, of everything that is to be recorded of what arrives."""
        found = {
            evidence_key(key, one.id): self._keys[one.id][key]
            for key, standing in self._standing().items()
            for one in standing.readable
        }
        for one in self.active():
            if one.switched_at is None:
                found.update({evidence_key(key, one.id): rule for key, rule in self._keys[one.id].items()})
        return found

    def dead(self) -> frozenset[bytes]:
        """Evidence keys of recalculations that are over, which nothing records and nothing reads any more."""
        over = {evidence_key(key, one.id) for one in self.records.values() if one.over for key in self._keys[one.id]}
        return frozenset(over - self.recorded().keys())

    def covering(self, journey: Journey) -> Recalculation | None:
        """The recalculation under way, or else the next planned, that rebuilds any rule of *journey*; None when there is none.

        A rule that waits for evidence is rebuilt by the planned one of cause edit, which takes it along when it begins (`begin`).
        """
        mine = rules_by_key(journey)
        waiting = [one for one in self.all() if one.state == PLANNED]
        found = next((one for one in (*self.active(), *waiting) if not mine.keys().isdisjoint(self._keys[one.id])), None)
        if found is None and any(self._waits(journey, key) for key in mine):
            return next((one for one in waiting if one.cause == EDIT), None)
        return found

    def _waits(self, journey: Journey, rule: bytes) -> bool:
        """Return True if a recalculation of *rule* (key) is to begin by itself for *journey*: it has no evidence, and none was given up."""
        return not self.standing(rule).readable and self.gave_up(journey, rule) is None

    def given_up(self, journey: Journey) -> Recalculation | None:
        """The recalculation for want of which *journey* does not show its newest version: somebody cancelled it, or it failed, since that was saved,
        and none is to come. None when nothing is wanting."""
        wanting = [key for key in rules_by_key(journey) if not self.standing(key).readable]
        found = [one for key in wanting if (one := self.gave_up(journey, key)) is not None]
        return max(found, key=lambda one: one.planned_at) if found and self.covering(journey) is None else None

    def gave_up(self, journey: Journey, rule: bytes) -> Recalculation | None:
        """The newest recalculation of *rule* (key) for *journey* as it was saved last, if it ended without evidence."""
        saved_at = journey.saved_at or 0
        found = [
            one for one in self.records.values()
            if one.state in (CANCELLED, FAILED) and one.planned_at >= saved_at and journey.id in one.journeys and rule in self._keys[one.id]
        ]  # fmt: skip
        return max(found, key=lambda one: one.planned_at, default=None)

    def finished_at(self, journey: Journey) -> int | None:
        """When the evidence of *journey* was last rebuilt, in milliseconds; None when it never was."""
        mine = rules_by_key(journey)
        times = [one.finished_at for one in self.records.values() if one.state == LIVE and not mine.keys().isdisjoint(self._keys[one.id])]
        return max((at for at in times if at is not None), default=None)


def _joined(before: Recalculation, after: Recalculation) -> Recalculation:
    """What is true when *after* comes behind *before*: whoever wrote it may not have known of *before*."""
    if before.state in OVER and after.state != before.state:
        return before
    if _place(after) < _place(before):
        return before
    # a planned one has the rules of its last record: what began says with which (see `begin`); from then on they stay
    begun = before.state != PLANNED
    switched_at = before.switched_at or after.switched_at
    phase = after.phase
    if after.state == CANCELLED != before.state:
        phase = CANCELLING if switched_at is not None else None
    return after.but(
        phase=phase,
        rules=before.rules if begun or before.rules == after.rules else after.rules,
        journeys=before.journeys if begun else after.journeys,
        epoch=max(before.epoch, after.epoch),
        started_at=before.started_at or after.started_at,
        switched_at=switched_at,
        confirmed_at=before.confirmed_at or after.confirmed_at,
        finished_at=before.finished_at or after.finished_at,
        retired=before.retired | after.retired,
    )


def _place(one: Recalculation) -> tuple[int, int]:
    """How far *one* is: by state, and while it is under way by phase."""
    phase = PHASES.index(one.phase) if not one.over and one.phase in PHASES else -1
    return _RANK[one.state], phase


def _concerns_partitions(one: Recalculation) -> tuple[object, ...]:
    """What partitions have to know of *one*."""
    return one.state, one.epoch, one.retired, one.switched_at is None, one.phase == COMPARING


class Reports:
    """What workers and jobs said last, by recalculation, and which views of a journey a partition has. An offset once reached stays reached, whoever
    comes after."""

    def __init__(self) -> None:
        self._said: dict[str, dict[tuple[str, int], Report]] = {}
        self._views: dict[str, dict[int, frozenset[tuple[int, int]]]] = {}  # journey -> partition -> views that can be read there

    def take(self, recalculation: str, who: str, partition: int, report: Report | None) -> None:
        """One record of the topic of reports; None takes one back."""
        if who == VIEWS:
            self._views.setdefault(recalculation, {})[partition] = frozenset(report.views if isinstance(report, ViewsReport) else ())
            return
        mine = self._said.setdefault(recalculation, {})
        if report is None:
            mine.pop((who, partition), None)
            if not mine:
                del self._said[recalculation]
            return
        before = mine.get((who, partition))
        if isinstance(before, WorkerReport) and isinstance(report, WorkerReport):
            report = WorkerReport(
                min(before.recording_from, report.recording_from), report.log_begin,
                max(before.joined, report.joined), max(before.handed, report.handed), report.scanned,
                before.shown or report.shown, max(before.changed, report.changed), report.compared,
            )  # fmt: skip
        elif isinstance(before, JobReport) and isinstance(report, JobReport):
            written = {p: max(before.written.get(p, 0), report.written.get(p, 0)) for p in {*before.written, *report.written}}
            report = replace(
                report, begin=min(before.begin, report.begin), read=max(before.read, report.read), written=written
            )
        mine[who, partition] = report

    def common(self, journey: str, partitions: int) -> tuple[int, int] | None:
        """The newest view of a journey that can be read in all partitions: nobody reads an older one."""
        found = self._views.get(journey, {})
        if any(p not in found for p in range(partitions)):
            return None
        return max(frozenset.intersection(*(found[p] for p in range(partitions))), default=None)

    def worker(self, recalculation: str, partition: int) -> WorkerReport | None:
        """What the owner of *partition* said."""
        found = self._said.get(recalculation, {}).get((WORKER, partition))
        return found if isinstance(found, WorkerReport) else None

    def job(self, recalculation: str, partition: int) -> JobReport | None:
        """What the job said of the log's *partition*."""
        found = self._said.get(recalculation, {}).get((JOB, partition))
        return found if isinstance(found, JobReport) else None

    def written(self, recalculation: str) -> dict[int, int]:
        """Before which offset, by partition, the evidence of a recalculation ends that jobs wrote so far."""
        found: dict[int, int] = {}
        for report in self._said.get(recalculation, {}).values():
            for p, end in report.written.items() if isinstance(report, JobReport) else ():
                found[p] = max(found.get(p, 0), end)
        return found

    def comparison(self, recalculation: str, partition: int) -> ComparisonReport | None:
        """What *partition* found when it compared."""
        found = self._said.get(recalculation, {}).get((COMPARISON, partition))
        return found if isinstance(found, ComparisonReport) else None

    def of(self, recalculation: str) -> list[tuple[str, int]]:
        """`(who, partition)` of all reports there are of a recalculation."""
        return sorted(self._said.get(recalculation, {}))

    def known(self) -> list[str]:
        """The recalculations of which there are reports."""
        return sorted(self._said)


# -- what comes next --------------------------------------------------------------------------------------------------------


def missing(table: Table, journeys: Iterable[Journey], now_ms: int) -> Recalculation | None:
    """Return a recalculation of the rules that no evidence was ever collected for, to be planned; None when there are none.

    What somebody cancelled, or what failed, is not begun again by itself, unless the journey was saved since. Where one of this kind is
    planned already, no other is: it takes along what is missing when it begins.
    """
    if any(one.state == PLANNED and one.cause == EDIT for one in table.records.values()):
        return None
    rules, asking = _without_evidence(table, journeys)
    if not rules:
        return None
    text = repr((sorted(asking.items()), sorted(rules))).encode()
    id_ = "edit-" + blake2b(text, digest_size=6).hexdigest()
    while id_ in table.records:
        id_ = "edit-" + blake2b(id_.encode(), digest_size=6).hexdigest()
    return Recalculation(id=id_, state=PLANNED, cause=EDIT, journeys=tuple(sorted(asking)), rules=tuple(rules.values()), planned_at=now_ms)


def _without_evidence(table: Table, journeys: Iterable[Journey]) -> tuple[dict[bytes, Rule], dict[str, int]]:
    """Return the rules by key that have no evidence and that no recalculation is to rebuild, and for which journeys, with their versions."""
    coming = {key for one in table.records.values() if one.state in (PLANNED, FILLING, SWITCHING) for key in table.rules(one.id)}
    rules: dict[bytes, Rule] = {}
    asking: dict[str, int] = {}
    for journey in journeys:
        for key, rule in rules_by_key(journey).items():
            if key in coming or table.standing(key).readable or table.gave_up(journey, key) is not None:
                continue
            rules[key] = rule
            asking[journey.id] = journey.version or 0
    return rules, asking


def parts(one: Recalculation) -> list[Recalculation]:
    """*one*, which is to be planned, as recalculations whose records are not too large; the first has its id, and they come in this order."""
    found: list[list[Rule]] = [[]]
    size = 0
    for rule in one.rules:
        more = len(rule_text(rule))
        if found[-1] and (size + more > MAX_RULES_BYTES or len(found[-1]) == MAX_RULES):
            found.append([])
            size = 0
        found[-1].append(rule)
        size += more
    return [one.but(rules=tuple(found[0]))] + [
        one.but(id=f"{one.id}-{number}", rules=tuple(rules), planned_at=one.planned_at + number)
        for number, rules in enumerate(found[1:], 1)
    ]


def unneeded(table: Table, journeys: Iterable[Journey], now_ms: int, keep_ms: int) -> list[Recalculation]:
    """Recalculations with what changed about rules that no journey needs: noticed, needed again, or given up after *keep_ms*."""
    needed = {key for journey in journeys for key in rules_by_key(journey)}
    changed: dict[str, Recalculation] = {}
    for id_, key in table.live():
        one, name = changed.get(id_, table.records[id_]), key.hex()
        since = one.unneeded.get(name)
        if key in needed:
            if since is not None:
                changed[id_] = one.but(unneeded={k: at for k, at in one.unneeded.items() if k != name})
        elif since is None:
            changed[id_] = one.but(unneeded={**one.unneeded, name: now_ms})
        elif now_ms - since >= keep_ms:
            left = {k: at for k, at in one.unneeded.items() if k != name}
            changed[id_] = one.but(unneeded=left, retired=one.retired | {name})
    return list(changed.values())


def forgotten(table: Table) -> list[str]:
    """Ids of recalculations that are over, of which nothing is read any more, beyond the newest `KEPT`."""


    def counts(one: Recalculation) -> bool:
        """Whether a rule's evidence or generation is still of this one."""
        found = [table.standing(key) for key in table.rules(one.id)]
        return any(one in s.readable for s in found) or (one.switched_at is not None and any(s.generation <= 2 * one.epoch + 1 for s in found))

    gone = [one for one in table.all() if one.over and not counts(one)]
    return [one.id for one in gone[: max(0, len(gone) - KEPT)]]


def begin(table: Table, journeys: Iterable[Journey], now_ms: int) -> Recalculation | None:
    """Return the next planned recalculation, filling; None when one is under way or none is planned.

    One that an edit made takes along all rules of *journeys* that have no evidence by then: a thousand journeys saved while another
    recalculation was under way are rebuilt by one reading of the log. What does not fit into its record waits for the next.
    """
    if table.active():
        return None
    planned = next((one for one in table.all() if one.state == PLANNED), None)
    if planned is None:
        return None
    epoch = 1 + max((one.epoch for one in table.records.values()), default=0)
    if epoch > MAX_EPOCH:  # nobody could read it
        return planned.but(
            state=FAILED,
            finished_at=now_ms,
            reason=f"a recalculation has the highest epoch there is, {MAX_EPOCH}",
        )
    if planned.cause == EDIT:
        rules, asking = _without_evidence(table, journeys)
        journeys_asking = tuple(sorted({*planned.journeys, *asking}))
        planned = parts(planned.but(rules=(*planned.rules, *rules.values()), journeys=journeys_asking))[0]
    return planned.but(state=FILLING, phase=READING, epoch=epoch, started_at=now_ms)
