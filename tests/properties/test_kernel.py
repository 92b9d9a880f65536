"""Compiled code decides as the way written in Python does: the same records, announcements, index and totals, byte for byte."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.journey import Condition, Journey, Stage
from schemas.rules import PerformedActivity, Rule, rule_key
from state import bulk, plain, records
from state.arrivals import Arrivals, hits_alone, join_of, packed
from state.batch import Batch
from state.bulk import Plan
from state.decision import Decision
from state.evidence import LIMIT_HITS, Evidence, hit
from state.identity import Identity, Merge, Profile
from state.kernel import JOINED, LEFT, SAME
from state.messages import Join, Message
from state.progress import Projection
from state.records import ALIAS, HAS_IDENTITY, decode_evidence, encode_alias, encode_evidence, encode_identity
from state.views import Source, View, Views

bulk.loops.warm()
RULES = [PerformedActivity(activity=f"a{n}") for n in range(5)]
KEYS = [rule_key(rule) for rule in RULES]
UNWATCHED = b"nobody's"
ERASED_AT_MS = 2

rules = st.sampled_from(RULES)


def condition(op: str, members: list[Condition | Rule]) -> Condition:
    return Condition(op=op, members=tuple(members))


def stages_of(made: list[Condition | Rule]) -> tuple[Stage, ...]:
    return tuple(Stage(name=f"s{n}", condition=one if isinstance(one, Condition) else condition("any", [one])) for n, one in enumerate(made))


conditions = st.recursive(
    rules, lambda inner: st.builds(condition, st.sampled_from(["any", "all"]), st.lists(inner, min_size=1, max_size=3)), max_leaves=6
)
stages = st.lists(conditions, min_size=1, max_size=4).map(stages_of)
sources = st.sampled_from([Source(), Source({KEYS[0]: b"rebuilt0"}, 1, "r")])
journeys = st.lists(st.tuples(stages, sources), min_size=1, max_size=4)
moments = st.integers(0, 6) | st.sampled_from([-(1 << 40), 1 << 41])
hits = st.builds(lambda at_ms, n: hit(at_ms, bytes(7) + bytes([n])), moments, st.integers(0, 3))
facts = st.tuples(st.sampled_from([*KEYS, b"rebuilt0", UNWATCHED]), hits)
kinds = st.sampled_from(["plain"] * 6 + ["identified"] * 4 + ["none", "alias", "marked", "erased"])
contacts = st.lists(st.tuples(st.lists(facts, max_size=12), st.lists(facts, min_size=1, max_size=5), kinds), min_size=1, max_size=6)


def views_of(made: list[tuple[tuple[Stage, ...], Source]], **more: Any) -> Views:
    return Views(View(Journey(id=f"j{n}", name="J", version=1, stages=of_one), source=source, **more) for n, (of_one, source) in enumerate(made))


def record_of(known: list[tuple[bytes, bytes]], kind: str) -> bytes | None:
    if kind == "none":
        return None
    if kind == "alias":
        return encode_alias("elsewhere")
    evidence = Evidence()
    for rule, one in known:
        evidence.add(rule, one)
    if kind == "erased":
        evidence.forget(ERASED_AT_MS)
    if kind == "marked" and evidence.hits:
        evidence.marked = frozenset([next(iter(evidence.hits))])
    return encode_evidence(evidence, has_identity=kind in ("identified", "erased"))


def keep_of(made: dict[str, tuple[list[tuple[bytes, bytes]], str]]) -> dict[bytes, bytes | None]:
    """The records of contacts of whom this is known, by their kind."""
    keep: dict[bytes, bytes | None] = {}
    for contact, (known, kind) in made.items():
        keep[records.EVIDENCE + contact.encode()] = record_of(known, kind)
        if kind in ("identified", "erased"):
            identity, name = Identity(contact), f"{contact}-too"
            profiles = {name: Profile(5, "{}", ("red", "blue"))}
            identity.join([name], [Merge(1, bytes(8), contact, name)], profiles, erased_at_ms=ERASED_AT_MS if kind == "erased" else None)
            keep[records.IDENTITY + contact.encode()] = encode_identity(identity)
    return keep


def facts_known(keep: dict[bytes, bytes | None]) -> dict[bytes, Any]:
    """Return *keep* with the evidence of persons decoded: where an erasure removed hits, rules may stand in another order."""
    found: dict[bytes, Any] = dict(keep)
    for key, record in keep.items():
        if key.startswith(records.EVIDENCE) and record and record[1] & HAS_IDENTITY and not record[1] & ALIAS:
            evidence, _ = decode_evidence(record)
            found[key] = evidence.hits, evidence.marked, evidence.halvings
    return found


def decided(views: Views, keep: dict[bytes, bytes | None], new: dict[str, list[tuple[bytes, bytes]]], few: int) -> Decision:
    batch = Batch(views, keep.get, lambda contact: contact != "elsewhere", few=few)
    facts, ends = packed([*new.values()])
    ids = [f"id-{one.hex()}" for mine in new.values() for _, one in mine]
    batch.activities(Arrivals([contact.encode() for contact in new], ends, facts, np.arange(len(ids)), [id_.encode() for id_ in ids]))
    return batch.decide()


@settings(max_examples=800, deadline=None)
@given(journeys, contacts)
def test_both_ways_decide_the_same(made: list[tuple[tuple[Stage, ...], Source]], people: list[Any]) -> None:
    known = keep_of({f"c{n}": (before, kind) for n, (before, _, kind) in enumerate(people)})
    new = {f"c{n}": arrived for n, (_, arrived, _) in enumerate(people)}
    compiled, written = decided(views_of(made), known, new, 0), decided(views_of(made), known, new, 1 << 30)
    assert compiled.records == written.records
    assert compiled.entries == written.entries
    assert cells(compiled) == cells(written)
    assert sorted(map(repr, compiled.changes)) == sorted(map(repr, written.changes))
    assert compiled.handoffs == written.handoffs


@settings(max_examples=400)
@given(journeys, contacts, st.sets(st.integers(1, 5)), st.booleans())
def test_what_aliases_send_on_is_decided_the_same(made: list[Any], people: list[Any], aliases: set[int], handed_over: bool) -> None:
    """Some point to the contact before them, perhaps an alias as well. What is said on the way there may differ, the last word may not."""
    known = keep_of({f"c{n}": (before, kind) for n, (before, _, kind) in enumerate(people)})
    for n in aliases & {*range(1, len(people))}:
        known[records.EVIDENCE + f"c{n}".encode()] = encode_alias(f"c{n - 1}")
        known.pop(records.IDENTITY + f"c{n}".encode(), None)
    new = {f"c{n}".encode(): [(fact, f"id-{n}-{k}".encode()) for k, fact in enumerate(arrived)] for n, (_, arrived, _) in enumerate(people)}
    messages: list[Message] = [join_of(to.decode(), [fact for fact, _ in mine], [id_.decode() for _, id_ in mine]) for to, mine in new.items()]
    decisions = []
    for few in (0, 1 << 30):
        batch = Batch(views_of(made), known.get, lambda contact: contact != "elsewhere", few=few)
        if few and handed_over:
            for message in messages:
                batch.deliver(message)
        else:
            arrived, others = hits_alone(messages) if handed_over else (Arrivals.of_lists(new), [])
            assert not others
            batch.activities(arrived)
        decisions.append(batch.decide())
    compiled, written = decisions
    assert facts_known({**known, **compiled.records}) == facts_known({**known, **written.records})
    assert index_behind(made, known, compiled) == index_behind(made, known, written)
    assert cells(compiled) == cells(written)
    before, now = truth(made, known), truth(made, {**known, **compiled.records})
    for one in decisions:
        said = {(c.journey, c.contact_id, c.stage): c.reached_at for c in one.changes}
        assert {where: now.get(where) for where in said} == said
        assert {where for where in before.keys() | now.keys() if before.get(where) != now.get(where)} <= said.keys()
    handed, over = (sorted((m.to, sorted(m.hits.items())) for m in decision.handoffs if isinstance(m, Join)) for decision in decisions)
    assert handed == over


def truth(made: list[Any], known: dict[bytes, bytes | None]) -> dict[tuple[str, str, int], int | None]:
    """When each name reached each stage."""
    views = views_of(made, cursor=b"")
    batch = Batch(views, known.get, lambda contact: contact != "elsewhere", few=1 << 30)
    batch.scan(views.all, [key[1:] for key in known if key[:1] == records.EVIDENCE])
    return {(c.journey, c.contact_id, c.stage): c.reached_at for c in batch.decide().changes}


def index_behind(made: list[Any], known: dict[bytes, bytes | None], decision: Decision) -> set[bytes]:
    """The index keys there are when a decision is done."""
    batch = Batch(views_of(made), {}.get, lambda contact: contact != "elsewhere", silent=True)
    contacts = {key[1:] for key in known}
    batch.restore({key.decode(): (known.get(records.EVIDENCE + key), known.get(records.IDENTITY + key)) for key in contacts})
    index: dict[bytes, bytes | None] = {**batch.decide().entries, **decision.entries}
    return {key for key, value in index.items() if value is not None}


@settings(max_examples=500)
@given(journeys, contacts, st.lists(st.integers(0, 7), max_size=10), st.booleans())
def test_both_ways_gather_the_same(made: list[tuple[tuple[Stage, ...], Source]], people: list[Any], again: list[int], many: bool) -> None:
    """Rebuilt evidence: what a view reads already and what nobody reads yet, of contacts of every kind, some with more than one message."""
    known = keep_of({f"c{n}": (before, kind) for n, (before, _, kind) in enumerate(people)})
    messages: list[Message] = []
    for n in [*range(len(people)), *again]:
        evidence = Evidence()
        for rule, one in people[n % len(people)][1]:
            evidence.add(rule, one)
        if many:
            evidence.add(UNWATCHED, b"".join(hit(at, bytes(8)) for at in range(80)))
        marked = frozenset([UNWATCHED]) if n == 3 else frozenset[bytes]()
        messages.append(Join(f"c{n % len(people)}", evidence.hits, marked))
    decisions = []
    for few in (0, 1 << 30):
        batch = Batch(views_of(made), known.get, lambda contact: contact != "elsewhere", few=few)
        batch.gather(messages)
        decisions.append(batch.decide())
    compiled, written = decisions
    assert compiled.records == written.records
    assert compiled.entries == written.entries
    assert cells(compiled) == cells(written)
    assert sorted(map(repr, compiled.changes)) == sorted(map(repr, written.changes))
    assert compiled.handoffs == written.handoffs


befores = st.lists(st.tuples(stages, sources, st.booleans()), max_size=2)


@settings(max_examples=400)
@given(st.lists(st.tuples(stages, sources, st.booleans(), befores), min_size=1, max_size=3), contacts, st.sampled_from([1, 1 << 17]))
def test_both_ways_scan_the_same(made: list[Any], people: list[Any], room: int) -> None:
    """Views that are being built, with and without versions before them that have said something else, the same, or perhaps nothing."""
    known = keep_of({f"c{n}": (before, kind) for n, (before, _, kind) in enumerate(people)})
    decisions = []
    for few in (0, 1 << 30):
        views, built = [], []
        for n, (now, source, told, before) in enumerate(made):
            earlier = []
            for version, (then, of, was_told) in enumerate(before, 1):
                earlier.append(View(Journey(id=f"j{n}", name="J", version=version, stages=then), told=was_told, source=of))
                earlier[-1].speaks = False
            version = len(before) + (not before or source.generation == 0)
            view = View(Journey(id=f"j{n}", name="J", version=version, stages=now), cursor=b"", told=told, source=source)
            view.follow(earlier)
            views += [*earlier, view]
            built.append(view)
        batch = Batch(Views(views), known.get, lambda contact: contact != "elsewhere", few=few)
        with patch.object(plain, "BULK_STAGES", room):
            changed = batch.scan(built, [f"c{n}".encode() for n in range(len(people))])
        decisions.append((batch.decide(), changed))
    (compiled, some), (written, same) = decisions
    assert (compiled.records, compiled.entries, some) == (written.records, written.entries, same)
    assert cells(compiled) == cells(written)
    assert sorted(map(repr, compiled.changes)) == sorted(map(repr, written.changes))


def cells(decision: Decision) -> dict[tuple[bytes, str], dict[Any, int]]:
    """What totals change by, without zeros."""
    counted = {(id_, group): {cell: n for cell, n in mine.items() if n} for id_, groups in decision.totals.items() for group, mine in groups.items()}
    return {where: mine for where, mine in counted.items() if mine}


@settings(max_examples=300, deadline=None)
@given(journeys, contacts)
def test_a_view_that_is_being_built_is_left_to_python(made: list[tuple[tuple[Stage, ...], Source]], people: list[Any]) -> None:
    known = keep_of({f"c{n}": (before, "plain") for n, (before, _, _) in enumerate(people)})
    new = {f"c{n}": arrived for n, (_, arrived, _) in enumerate(people)}
    compiled, written = decided(views_of(made, cursor=b"c2"), known, new, 0), decided(views_of(made, cursor=b"c2"), known, new, 1 << 30)
    assert compiled == written


def plan_of(condition: Condition) -> tuple[Plan, View]:
    views = views_of([((Stage(name="s", condition=condition), Stage(name="t", condition=Condition(op="any", members=(RULES[1],)))), Source())])
    return Plan(views), views.all[0]


ONE = Condition(op="any", members=(RULES[0],))


def test_what_it_does_not_know_is_left() -> None:
    plan, _ = plan_of(ONE)
    new = [(KEYS[0], hit(5, b"12345678"))]
    full = Evidence({KEYS[0]: b"".join(hit(n, bytes(8)) for n in range(10, 10 + LIMIT_HITS))})
    with_identity = bytes((1, HAS_IDENTITY)) + encode_evidence(Evidence(), False)[2:]
    olds = [b"", encode_alias("x"), with_identity, bytes((2,)) + encode_evidence(Evidence(), False)[1:], encode_evidence(full, False)]
    assert plan.join(olds, *packed([new] * 5)).states.tolist() == [JOINED, LEFT, LEFT, LEFT, LEFT]
    assert olds[1][1] == ALIAS


def test_the_limit_is_reached_and_not_passed() -> None:
    plan, view = plan_of(ONE)
    evidence = Evidence({KEYS[0]: b"".join(hit(n, bytes(8)) for n in range(10, 9 + LIMIT_HITS))})
    result = plan.join([encode_evidence(evidence, False)], *packed([[(KEYS[0], hit(9, bytes(8)))]]))
    assert result.states.tolist() == [JOINED]
    joined, _ = decode_evidence(result.records[0])
    assert len(joined.hits[KEYS[0]]) == 16 * LIMIT_HITS
    assert not joined.marked
    [move] = result.moves
    assert (move.before, move.after) == (view.project(evidence.hits), view.project(joined.hits))


def test_nothing_new_is_told_from_something() -> None:
    plan, _ = plan_of(ONE)
    old = encode_evidence(Evidence({KEYS[0]: hit(1, bytes(8))}), False)
    new = [[(KEYS[0], hit(1, bytes(8)))] * 3, [(KEYS[0], hit(2, bytes(8)))] * 2, [(UNWATCHED, hit(1, bytes(8)))]]
    result = plan.join([old, old, old], *packed(new))
    assert result.states.tolist() == [SAME, JOINED, JOINED]
    assert result.taken == b"\0\0\0\1\0\1"
    assert result.moves == []
    assert len(result.onward.rows) == 0


def test_moves_that_find_no_room_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes them over; nothing is said twice."""
    monkeypatch.setattr(bulk, "MOVES_A_CONTACT", 0)
    made = [(views_of([((Stage(name="s", condition=ONE),), Source())]).all[0].journey.stages, Source())] * 2
    new = {f"c{n}": [(KEYS[0], hit(n, bytes(8)))] for n in range(20)}
    compiled, written = decided(views_of(made), {}, new, 0), decided(views_of(made), {}, new, 1 << 30)
    assert compiled.records == written.records
    assert sorted(map(repr, compiled.changes)) == sorted(map(repr, written.changes))
    assert len(compiled.changes) == 40


@pytest.mark.parametrize("size", [1, 500])
def test_many_rules_and_many_hits_at_once(size: int) -> None:
    """More rules than a record has room for are left; as many as that are joined."""
    plan, _ = plan_of(ONE)
    keys = [n.to_bytes(8, "big") for n in range(1, 1030)]
    result = plan.join([b"", b""], *packed([[(key, hit(1, bytes(8))) for key in keys[:1024]], [(key, hit(1, bytes(8))) for key in keys]]))
    assert result.states.tolist() == [JOINED, LEFT]
    joined, _ = decode_evidence(result.records[0])
    assert list(joined.hits) == keys[:1024]
    mixed = [(KEYS[0], hit(n * 7919 % 1000, bytes(8))) for n in range(size)]
    [record] = plan.join([b""], *packed([mixed])).records
    assert decode_evidence(record)[0].hits == {KEYS[0]: b"".join(sorted(one for _, one in mixed))}


def test_it_projects_as_projection_does_however_deep_conditions_are() -> None:
    deep: Condition | Rule = RULES[0]
    for n in range(6):
        deep = Condition(op="all" if n % 2 else "any", members=(deep, RULES[n % 5]))
    assert isinstance(deep, Condition)
    plan, view = plan_of(deep)
    new = [(key, hit(10 * n + k, bytes([k]) * 8)) for n, key in enumerate(KEYS) for k in range(8)]
    onward = plan.join([b""], *packed([new])).onward
    evidence = Evidence()
    for fact in new:
        evidence.add(*fact)
    after = Projection(view.journey).project(evidence.hits)
    assert after
    assert onward.rows.tolist() == [[0, 0, 0, len(after), 0]]
    assert onward.stages[:, 0].astype(">u8").tobytes() == b"".join(reached.at for reached in after)
    assert onward.stages[:, 1].tolist() == [len(reached.met_by) for reached in after]
    hits = b"".join(hit for reached in after for hit in reached.met_by)
    assert onward.met[: len(hits) // 16].astype(">u8").tobytes() == hits
