"""Random histories: what contacts did, who merged into whom, profiles, erasures, journeys and their edits. All from one seed; knows no cluster."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

from schemas.journey import Journey, parse_journey
from state.oracle import Activity, Erasure, History, Merge, Profile

GROUPS = ("smb", "news", "é")
RULES: tuple[dict[str, Any], ...] = (
    {"rule": "performed_activity", "activity": "a"},
    {"rule": "performed_activity", "activity": "A", "value": "1"},
    {"rule": "performed_activity", "activity": "a", "value": {"not_contains": "2"}},
    {"rule": "performed_activity", "activity": "b"},
    {"rule": "performed_activity", "activity": "b", "value": {"one_of": ["x", "12"]}},
    {"rule": "visited_page", "page": "/Loan"},
    {"rule": "visited_page", "page": {"starts_with": "/l"}, "channel": "web"},
    {"rule": "became_member"},
)
KINDS: tuple[dict[str, str], ...] = (
    {"type": "a"},
    {"type": "A", "value": "12"},
    {"type": "a", "value": "1"},
    {"type": "B", "value": "X"},
    {"type": "b"},
    {"type": "pagevisit", "page": "/LOAN", "channel": "web"},
    {"type": "PageVisit", "page": "/loan"},
    {"type": "memberregistration"},
    {"type": "click"},
)


@dataclass(frozen=True)
class Fact:
    """One record to send: to the topic `source`, by default to the partition of `contact`."""

    source: str
    contact: str
    value: bytes | None
    timestamp_ms: int
    said: Activity | Merge | Profile | Erasure


@dataclass
class Plan:
    """A whole history: `facts` in order of sending, `edits` as (how many facts are sent before, journey)."""

    seed: int
    partitions: int
    workers: int
    contacts: list[str]
    facts: list[Fact]
    edits: list[tuple[int, Journey | str]] = field(default_factory=list)
    recalculations: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)  # after how many facts somebody asks for which
    stops: list[int] = field(default_factory=list)  # after how many facts everything comes to rest and is compared

    def history(self, facts: int) -> History:
        """What the first *facts* facts say, for the oracle."""
        history = History()
        for fact in self.facts[:facts]:
            said = fact.said
            if isinstance(said, Activity):
                history.activities.append(said)
            elif isinstance(said, Merge):
                history.merges.append(said)
            elif isinstance(said, Profile):
                history.profiles.append(said)
            else:
                history.erasures.append(said)
        return history

    def journeys(self, facts: int) -> dict[str, Journey]:
        """The journeys that there are once *facts* facts are sent."""
        catalog: dict[str, Journey] = {}
        for after, edit in self.edits:
            if after <= facts:
                if isinstance(edit, str):
                    catalog.pop(edit, None)
                else:
                    catalog[edit.id] = edit
        return catalog


_parsed: dict[str, Journey] = {}


def journey(data: dict[str, Any]) -> Journey:
    """The journey of *data*; parsing is dear, and small journeys come again."""
    text = json.dumps(data)
    if text not in _parsed:
        if len(_parsed) > 5000:
            _parsed.clear()
        _parsed[text] = parse_journey(data)
    return _parsed[text]


def _condition(rng: Random, rules: list[dict[str, Any]], depth: int = 1) -> dict[str, Any]:
    members: list[Any] = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        deeper = depth < 3 and rng.random() < 0.25
        members.append(_condition(rng, rules, depth + 1) if deeper else rng.choice(rules))
    return {rng.choice(("any", "any", "all")): members}


def random_journey(rng: Random, id_: str, version: int) -> Journey:
    rules = rng.sample(RULES, rng.randint(2, len(RULES)))
    stages = [{"name": f"s{k}", "condition": _condition(rng, rules)} for k in range(rng.randint(1, 4))]
    return journey({"id": id_, "name": id_, "stages": stages, "version": version})


def _json(fact: dict[str, Any]) -> bytes:
    return json.dumps(fact, ensure_ascii=False).encode()


def plan(seed: int) -> Plan:
    """The history number *seed*."""
    rng = Random(seed)
    salt = f"{rng.getrandbits(32):x}"  # so that the order of hashes is another one in each history
    contacts = [f"{chr(97 + i)}-{salt}" for i in range(rng.randint(1, 9))]
    span = rng.choice((3, 12, 60, 5000))

    def at() -> int:
        return 1_700_000_000_000 + rng.randrange(span) * (1 if span < 100 else 40_000)

    facts: list[Fact] = []
    ids = [f"act-{salt}-{i}" for i in range(30)]
    for i in range(rng.randint(0, 26)):
        who, at_ms, kind = rng.choice(contacts), at(), rng.choice(KINDS)
        id_ = ids[i] if rng.random() < 0.95 else rng.choice(ids)
        fields = {k: v for k, v in kind.items() if k != "type"}
        said = Activity(who, kind["type"], at_ms, id_, fields)
        facts.append(Fact("activities", who, _json({"id": id_, "contact_id": who, "at": at_ms} | kind), at_ms, said))
    if len(contacts) > 1:
        for i in range(rng.randint(0, 11)):
            (one, other), at_ms, id_ = rng.sample(contacts, 2), at(), f"m-{salt}-{i}"
            if rng.random() < 0.3 and i:  # back to front, or the same again under another id
                last = facts[-1].said
                assert isinstance(last, Merge)
                one, other = rng.choice(((last.into, last.from_), (last.from_, last.into), (last.into, other)))
                if one == other:
                    continue
            body = _json({"id": id_, "from": one, "into": other, "at": at_ms})
            facts.append(Fact("contact-merges", one, body, at_ms, Merge(id_, one, other, at_ms)))
    for i in range(rng.randint(0, 6)):
        who, at_ms, groups = rng.choice(contacts), at(), rng.sample(GROUPS, rng.randint(0, 3))
        fact = {"contact_id": who, "groups": groups, "attributes": {"n": i % 3}, "at": at_ms}
        facts.append(Fact("contacts", who, _json(fact), at_ms, Profile(who, tuple(groups), {"n": i % 3}, at_ms)))
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        who, at_ms = rng.choice(contacts), at()
        facts.append(Fact("contacts", who, None, at_ms, Erasure(who, at_ms)))
    facts += [rng.choice(facts) for _ in range(rng.randint(0, 5)) if facts]  # sent twice
    rng.shuffle(facts)

    made = Plan(seed, rng.randint(1, 4), rng.randint(1, 3), contacts, facts)
    for j in range(rng.choice((1, 1, 2))):
        id_ = f"j{j}"
        made.edits.append((0 if rng.random() < 0.8 else rng.randint(0, len(facts)), random_journey(rng, id_, 1)))
        for version in range(2, 2 + rng.choice((0, 0, 0, 1, 2))):
            after = rng.randint(made.edits[-1][0], len(facts))
            gone = version > 2 and rng.random() < 0.3
            made.edits.append((after, id_ if gone else random_journey(rng, id_, version)))
    made.edits.sort(key=lambda edit: edit[0])
    ids_of = sorted({edit if isinstance(edit, str) else edit.id for _, edit in made.edits})
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        made.recalculations.append((rng.randint(0, len(facts)), tuple(rng.sample(ids_of, rng.randint(1, len(ids_of))))))
    made.recalculations.sort()
    made.stops = sorted({*(rng.randint(0, len(facts)) for _ in range(rng.choice((0, 0, 1, 2)))), len(facts)})
    return made
