"""The oracle: the naive answer to every question, from the whole history at once; never optimised, never used by the engine.

Everything fast is compared with it (design, section 2). It reads like section 3 of the design, sentence by sentence, and
shares no code with evidence, identity, progress and totals. It knows no bound on hits or merges.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import re2

from schemas.activity import FIELDS
from schemas.hashing import h
from schemas.journey import Condition, Journey
from schemas.rules import FieldTest, Rule

BEGINNING = -(2**63)
DAY_MS = 86_400_000


@dataclass(frozen=True)
class Activity:
    """One thing a contact did. `fields`: what else it says, by the names of `schemas.activity.FIELDS`; a missing one and None are the same."""

    contact_id: str
    type: str
    at_ms: int
    id: str
    fields: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Merge:
    id: str
    from_: str
    into: str
    at_ms: int


@dataclass(frozen=True)
class Profile:
    contact_id: str
    groups: tuple[str, ...]
    attributes: Mapping[str, object]
    at_ms: int


@dataclass(frozen=True)
class Erasure:
    """A null profile; `at_ms` is the time of its record."""

    contact_id: str
    at_ms: int


@dataclass
class History:
    """All facts there are, in any order, repeated or not."""

    activities: list[Activity] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    profiles: list[Profile] = field(default_factory=list)
    erasures: list[Erasure] = field(default_factory=list)


Hit = tuple[int, int]  # (at_ms, h(activity id)): the identity and the order of an activity


@dataclass(frozen=True)
class Reached:
    """One stage reached: the moment, and the activities that met it, each with the rule that it met."""

    at_ms: int
    met_by: tuple[tuple[Hit, Rule], ...]


@dataclass
class Person:
    """All contacts joined by merges, under the name of the survivor."""

    survivor: str
    contacts: frozenset[str]
    activities: list[Activity]
    profile: Profile | None
    erased_at_ms: int | None

    @property
    def groups(self) -> frozenset[str]:
        return frozenset(self.profile.groups) if self.profile else frozenset()


@dataclass(frozen=True)
class Row:
    """A line of a list: who, and when the stage was reached."""

    contact_id: str
    reached_at_ms: int
    groups: frozenset[str]


@dataclass(frozen=True)
class StageResult:
    """What the results say of a stage (design, section 3; contract, section 4), unrounded. Waits are from the previous stage, and from the first."""

    stage: int
    name: str
    converted: int
    converted_ratio: float | None
    dropped_off: int | None
    dropped_off_ratio: float | None
    kpi: int | None
    kpi_ratio: float | None
    waits_ms: list[int]
    since_first_ms: list[int]
    days: dict[int, int]


# -- who is who -----------------------------------------------------------------------------------------------------------


def persons(history: History) -> list[Person]:
    """Every person that the history names, each contact in exactly one of them."""
    facts: dict[str, History] = {contact: History() for m in history.merges for contact in (m.from_, m.into)}
    for activity in history.activities:
        facts.setdefault(activity.contact_id, History()).activities.append(activity)
    for profile in history.profiles:
        facts.setdefault(profile.contact_id, History()).profiles.append(profile)
    for erasure in history.erasures:
        facts.setdefault(erasure.contact_id, History()).erasures.append(erasure)

    group = {contact: frozenset([contact]) for contact in facts}  # contact -> all contacts of its person, so far
    name = {contact: contact for contact in facts}  # contact -> the survivor of its person, so far
    for merge in sorted(set(history.merges), key=lambda m: (m.at_ms, h(m.id), m.from_, m.into)):
        if group[merge.from_] == group[merge.into]:
            continue  # the same person already: a circle changes nothing
        both, survivor = group[merge.from_] | group[merge.into], name[merge.into]
        for contact in both:
            group[contact], name[contact] = both, survivor
    return [_person(name[min(contacts)], contacts, facts) for contacts in sorted(set(group.values()), key=min)]


def _person(survivor: str, contacts: frozenset[str], facts: Mapping[str, History]) -> Person:
    mine = [facts[contact] for contact in sorted(contacts)]
    erased_at_ms = max((e.at_ms for one in mine for e in one.erasures), default=None)

    def kept(at_ms: int) -> bool:
        return erased_at_ms is None or at_ms > erased_at_ms

    return Person(
        survivor=survivor,
        contacts=contacts,
        activities=[a for one in mine for a in one.activities if kept(a.at_ms)],
        profile=max((p for p in facts[survivor].profiles if kept(p.at_ms)), key=newest, default=None),
        erased_at_ms=erased_at_ms,
    )


def newest(profile: Profile) -> tuple[int, str, tuple[str, ...]]:
    """Order of the profiles of one contact: the later; of equally late ones the larger canonical JSON of its attributes, then the larger groups."""
    attributes = json.dumps(profile.attributes, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return profile.at_ms, attributes, profile.groups


# -- rules ----------------------------------------------------------------------------------------------------------------


def meets(activity: Activity, rule: Rule) -> bool:
    """Whether *activity* is of the rule's type, passes every test, and what tests cannot say."""
    types = rule.activity_types()
    if types is not None and activity.type.lower() not in types:
        return False
    if not all(passes(test, activity.fields.get(test.field)) for test in rule.tests()):
        return False
    known: dict[str, object] = {
        "contact_id": activity.contact_id,
        "type": activity.type,
        "at": activity.at_ms,
        "id": activity.id,
    }
    return rule.accepts(SimpleNamespace(**(dict.fromkeys(FIELDS) | dict(activity.fields) | known)))


def passes(test: FieldTest, value: str | None) -> bool:
    """One field test, case ignored. A missing field fails positive operators and passes negative ones."""
    if value is None:
        return test.operator in ("not_contains", "not_equals")
    if test.operator == "matches":
        return re2.search(f"(?i){test.operand}", value) is not None
    text = value.casefold()
    if not isinstance(test.operand, str):
        return text in [one.casefold() for one in test.operand]  # one_of
    operand = test.operand.casefold()
    return {
        "contains": operand in text,
        "not_contains": operand not in text,
        "starts_with": text.startswith(operand),
        "ends_with": text.endswith(operand),
        "equals": text == operand,
        "not_equals": text != operand,
    }[test.operator]


# -- progress -------------------------------------------------------------------------------------------------------------


def walk(journey: Journey, activities: Iterable[Activity]) -> list[Reached]:
    """The stages that one person with these *activities* reached, in order; shorter than the journey when on the way."""
    activities = list(activities)
    reached: list[Reached] = []
    after_ms, spent = BEGINNING, set[Hit]()
    for stage in journey.stages:
        allowed = [a for a in activities if a.at_ms >= after_ms and hit(a) not in spent]
        met = earliest(stage.condition, allowed)
        if met is None:
            break
        reached.append(met)
        after_ms = met.at_ms
        spent |= {one for one, _ in met.met_by}
    return reached


def hit(activity: Activity) -> Hit:
    return activity.at_ms, h(activity.id)


def earliest(condition: Condition | Rule, allowed: list[Activity]) -> Reached | None:
    """When *allowed* activities meet *condition* first, and which ones do; None if they do not."""
    if not isinstance(condition, Condition):
        hits = [hit(a) for a in allowed if meets(a, condition)]
        return Reached(min(hits)[0], ((min(hits), condition),)) if hits else None
    members = [earliest(member, allowed) for member in condition.members]
    met = [m for m in members if m is not None]
    if condition.op == "any":
        return min(met, key=lambda m: m.at_ms, default=None)  # min() takes the first of equal ones
    if len(met) < len(members):
        return None
    return Reached(max(m.at_ms for m in met), tuple(one for m in met for one in m.met_by))


# -- results --------------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """All that Waypost says about one journey."""

    journey: Journey
    reached: dict[str, list[Reached]]  # survivor -> its stages; those who reached none are here too
    groups: dict[str, frozenset[str]]  # survivor -> groups

    def converted(self, stage: int, group: str | None = None) -> list[Row]:
        """Who reached *stage* (from 1), ordered by (time, contact)."""
        rows = [
            Row(name, stages[stage - 1].at_ms, self.groups[name])
            for name, stages in self.reached.items()
            if len(stages) >= stage and (group is None or group in self.groups[name])
        ]
        return sorted(rows, key=lambda row: (row.reached_at_ms, row.contact_id))

    def dropped_off(self, stage: int, group: str | None = None) -> list[Row]:
        """Who reached *stage* and not the next; nobody on the last stage."""
        if stage == len(self.journey.stages):
            return []
        further = {row.contact_id for row in self.converted(stage + 1, group)}
        return [row for row in self.converted(stage, group) if row.contact_id not in further]

    def results(self, group: str | None = None) -> list[StageResult]:
        r = [len(self.converted(k, group)) for k in range(1, len(self.journey.stages) + 1)]
        out = []
        for index, stage in enumerate(self.journey.stages):
            last, first = index == len(r) - 1, index == 0
            dropped = None if last else r[index] - r[index + 1]
            who = [self.reached[row.contact_id] for row in self.converted(index + 1, group)]
            out.append(
                StageResult(
                    stage=index + 1,
                    name=stage.name,
                    converted=r[index],
                    converted_ratio=ratio(r[index], r[index] if first else r[index - 1]),
                    dropped_off=dropped,
                    dropped_off_ratio=None if dropped is None else ratio(dropped, r[index]),
                    kpi=stage.kpi,
                    kpi_ratio=None if stage.kpi is None else r[index] / stage.kpi,
                    waits_ms=[] if first else sorted(s[index].at_ms - s[index - 1].at_ms for s in who),
                    since_first_ms=[] if first else sorted(s[index].at_ms - s[0].at_ms for s in who),
                    days=dict(Counter(s[index].at_ms // DAY_MS for s in who)),
                )
            )
        return out


def ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def answer(journey: Journey, history: History) -> Answer:
    """Walks every person through *journey*: the truth that every number, list and name is compared with."""
    people = persons(history)
    return Answer(
        journey=journey,
        reached={p.survivor: walk(journey, p.activities) for p in people},
        groups={p.survivor: p.groups for p in people},
    )
