"""However a chunk is cut into decisions, it comes to the same; and no decision takes more than its room and what one contact comes to."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.changes import StageChange
from schemas.journey import Journey
from state import bulk, records
from state.announcement import perhaps_said
from state.arrivals import Arrivals
from state.batch import Batch
from state.decision import CHANGE_BYTES, ENTRY_BYTES, UNBOUNDED, Decision
from state.evidence import Evidence
from state.identity import Identity, Merge, Profile
from state.messages import Join, Message, Unite
from state.records import encode_alias
from state.views import View, Views
from tests.properties.test_kernel import (
    KEYS,
    RULES,
    cells,
    condition,
    contacts,
    index_behind,
    journeys,
    keep_of,
    rules,
    stages_of,
    truth,
    views_of,
)

bulk.loops.warm()
rooms = st.sampled_from([1, 500, 3 * CHANGE_BYTES, 20 * CHANGE_BYTES])
fews = st.sampled_from([0, 2, 1 << 30])


def is_here(contact: str) -> bool:
    return contact != "elsewhere"


def decided(
    views: Views, known: dict[bytes, bytes | None], arrived: Arrivals, messages: list[Message], few: int, room: int, rebuilt: bool = False
) -> list[Decision]:
    """What they come to, each decision made on what is known after those before, as a partition makes them."""
    known, decisions, waiting = dict(known), list[Decision](), [arrived]
    while waiting or messages:
        arrived = waiting.pop() if waiting else Arrivals.of_lists({})
        batch = Batch(views, known.get, is_here, few=few, room=room)
        taken, rest = batch.activities(arrived)
        left = [*(batch.gather(messages) if rebuilt else batch.deliver_all(messages))]
        assert taken or len(left) < len(messages), "each decision takes one contact at least"
        waiting += [one for one in (arrived.split(taken)[1], *rest) if one]
        messages = left
        decisions.append(batch.decide())
        known.update(decisions[-1].records)
    return decisions


def together(decisions: list[Decision]) -> Decision:
    """One decision that comes to what these come to, one after the other."""
    whole = Decision({}, [], [], [], {}, {})
    for decision in decisions:
        for mine, theirs in zip(whole, decision, strict=True):
            if isinstance(mine, list):
                mine.extend(theirs)
            elif mine is not whole.totals:
                mine.update(theirs)
        for id_, groups in decision.totals.items():
            for group, counted in groups.items():
                mine = whole.totals.setdefault(id_, {}).setdefault(group, {})
                for cell, count in counted.items():
                    mine[cell] = mine.get(cell, 0) + count
    return whole


def last_said(changes: list[StageChange]) -> dict[tuple[str, str, int], int | None]:
    return {(c.journey, c.contact_id, c.stage): c.reached_at for c in changes}


def same(made: list[Any], known: dict[bytes, bytes | None], pieces: list[Decision], whole: Decision) -> None:
    cut = together(pieces)
    assert {**known, **cut.records} == {**known, **whole.records}
    assert index_behind(made, known, cut) == index_behind(made, known, whole)
    assert cells(cut) == cells(whole)
    before, now = truth(made, known), truth(made, {**known, **cut.records})
    for one in (cut, whole):
        said = last_said(one.changes)
        assert {where: now.get(where) for where in said} == said
        assert {where for where in before.keys() | now.keys() if before.get(where) != now.get(where)} <= said.keys()
    handed, over = (Counter((m.to, rule) for m in one.handoffs if isinstance(m, Join) for rule in m.hits) for one in (cut, whole))
    assert handed.keys() == over.keys()


@settings(max_examples=150, deadline=None)
@given(journeys, contacts, st.sets(st.integers(1, 5)), rooms, fews)
def test_hits_cut_into_pieces_come_to_the_same(made: list[Any], people: list[Any], aliases: set[int], room: int, few: int) -> None:
    known = keep_of({f"c{n}": (before, kind) for n, (before, _, kind) in enumerate(people)})
    for n in aliases & {*range(1, len(people))}:
        known[records.EVIDENCE + f"c{n}".encode()] = encode_alias(f"c{n - 1}")
        known.pop(records.IDENTITY + f"c{n}".encode(), None)
    new = {f"c{n}".encode(): [(fact, f"id-{n}-{k}".encode()) for k, fact in enumerate(arrived)] for n, (_, arrived, _) in enumerate(people)}
    arrived = Arrivals.of_lists(new)
    [whole] = decided(views_of(made), known, arrived, [], few, UNBOUNDED)
    same(made, known, decided(views_of(made), known, arrived, [], few, room), whole)


@settings(max_examples=120, deadline=None)
@given(journeys, contacts, st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=4), rooms, fews, st.booleans())
def test_messages_cut_into_pieces_come_to_the_same(
    made: list[Any], people: list[Any], merged: list[tuple[int, int]], room: int, few: int, rebuilt: bool
) -> None:
    known = keep_of({f"c{n}": (before, kind) for n, (before, _, kind) in enumerate(people)})
    messages: list[Message] = []
    for n, (_, arrived, _) in enumerate(people):
        evidence = Evidence()
        for rule, one in arrived:
            evidence.add(rule, one)
        messages.append(Join(f"c{n}", evidence.hits, profiles={} if rebuilt else {f"c{n}": Profile(n, "{}", ("red",))}))
    if not rebuilt:
        for number, (one, other) in enumerate(merged):
            if one != other:
                messages.append(Unite(f"c{one}", f"c{other}", (Merge(1, bytes([number] * 8), f"c{one}", f"c{other}"),), f"m{number}", ORIGIN))
    nothing = Arrivals.of_lists({})
    [whole] = decided(views_of(made), known, nothing, messages, few, UNBOUNDED, rebuilt)
    pieces = decided(views_of(made), known, nothing, messages, few, room, rebuilt)
    cut = together(pieces)
    assert {**known, **cut.records} == {**known, **whole.records}
    assert index_behind(made, known, cut) == index_behind(made, known, whole)
    assert cells(cut) == cells(whole)


ORIGIN: Any = object()


@settings(max_examples=80, deadline=None)
@given(journeys, contacts, rooms, fews)
def test_a_scan_in_steps_comes_to_the_same(made: list[Any], people: list[Any], room: int, few: int) -> None:
    known = keep_of({f"c{n}": (before, kind) for n, (before, _, kind) in enumerate(people)})
    holders = [f"c{n}".encode() for n in range(len(people))]

    def scanned(room: int) -> list[Decision]:
        views, decisions, at = views_of(made, cursor=b""), list[Decision](), 0
        while at < len(holders):
            batch = Batch(views, known.get, is_here, few=few, room=room)
            _, taken = batch.scan(views.all, holders[at:])
            assert taken
            at += taken
            decisions.append(batch.decide())
        return decisions

    [whole], cut = scanned(UNBOUNDED), together(scanned(room))
    assert (cut.records, cut.entries) == (whole.records, whole.entries)
    assert cells(cut) == cells(whole)
    assert sorted(map(repr, cut.changes)) == sorted(map(repr, whole.changes))


@settings(max_examples=40, deadline=None)
@given(st.lists(rules, min_size=1, max_size=3), st.integers(1, 60), st.integers(1, 40), rooms, fews)
def test_a_decision_takes_its_room_and_one_contact_at_most(asked: list[Any], many: int, people: int, room: int, few: int) -> None:
    """Many journeys on the same rules, and contacts that reach all stages of all of them at once."""
    stages = stages_of([condition("any", [rule]) for rule in asked])
    views = Views(View(Journey(id=f"j{n}", name="J", version=1, stages=stages)) for n in range(many))
    at = [moment.to_bytes(8, "big") + bytes([moment]) * 8 for moment in range(1, 4)]
    new = {f"c{n:03}".encode(): [((rule, hit), b"id") for rule in KEYS for hit in at] for n in range(people)}
    decisions = decided(views, {}, Arrivals.of_lists(new), [], few, room)
    assert sum(len(decision.changes) for decision in decisions) == people * many * len(asked)
    one = many * (len(asked) * CHANGE_BYTES + ENTRY_BYTES) + 2000
    assert max(decision.size_bytes() for decision in decisions) <= room + one


def test_a_person_of_many_contacts_that_is_announced_again_takes_room_for_each_name() -> None:
    stages = stages_of([condition("any", [rule]) for rule in RULES])
    views = Views(View(Journey(id=f"j{n}", name="J", version=1, stages=stages)) for n in range(10))
    evidence, known = Evidence({KEYS[0]: bytes(7) + b"\1" + bytes(8)}), dict[bytes, bytes | None]()
    persons, members = [f"p{n}" for n in range(6)], 20
    for person in persons:
        identity = Identity(person)
        identity.join([person, *(f"{person}-{n}" for n in range(members - 1))])
        known[records.EVIDENCE + person.encode()] = records.encode_evidence(evidence, True)
        known[records.IDENTITY + person.encode()] = records.encode_identity(identity)
    said = perhaps_said(views.all)
    messages: list[Message] = [Join(person, said=said, again=True) for person in persons]
    decisions = decided(views, known, Arrivals.of_lists({}), messages, 0, members * 10 * len(RULES) * CHANGE_BYTES)
    assert len(decisions) == len(persons)
    assert all(len(decision.changes) == members * 10 * len(RULES) for decision in decisions)
