"""Comparison: what is counted is what the oracle of projection says, and what it means is a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.comparing import Comparing
from schemas.hashing import h8
from schemas.journey import Journey, parse_journey
from schemas.recalculation import (
    COMPARING,
    FILLING,
    REQUEST,
    Compared,
    ComparisonReport,
    Difference,
    Recalculation,
)
from schemas.rules import rule_key
from state import bulk, comparison, records
from state.comparison import MAX_DIFFERENCES, Counting, Tolerance, pairs, reason, unexplained
from state.evidence import Evidence, hit
from state.identity import Identity
from state.progress import project
from state.recalculation import evidence_key, rules_by_key
from state.views import Source, View

PAGES = ("/a", "/b", "/c")
LOG_BEGIN_MS = 50


def journey(*pages: str, id_: str = "j", version: int = 1) -> Journey:
    stages = [
        {"name": page, "condition": {"any": [{"rule": "visited_page", "page": page}]}}
        for page in pages
    ]
    return parse_journey({"id": id_, "name": id_, "version": version, "stages": stages})


def view(of: Journey, recalculation: str = "old") -> View:
    keys = {rule: evidence_key(rule, recalculation) for rule in rules_by_key(of)}
    return View(of, source=Source(keys, 2, recalculation))


Hits = list[tuple[int, int]]  # (page, when)


@st.composite
def contacts(draw: st.DrawFn) -> list[tuple[Hits, Hits, str]]:
    """What each contact did, as the old evidence has it, as the new one, and what kind it is."""
    hits = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 100)), max_size=5)
    kinds = st.sampled_from(("holder", "holder", "named", "erased", "alias"))
    found = []
    for _ in range(draw(st.integers(0, 40))):
        old = draw(hits)
        found.append((old, draw(st.sampled_from((old, old[1:])) | hits), draw(kinds)))
    return found


def ledger(
    people: Sequence[tuple[Hits, Hits, str]],
) -> tuple[list[bytes], Callable[[bytes], bytes | None]]:
    """Contacts as bytes, and what is written of them."""
    rules = [rule_key(rule) for page in PAGES for rule in rules_of(page)]
    written: dict[bytes, bytes] = {}
    holders = []
    for n, (old, new, kind) in enumerate(people):
        holder = f"c{n:03}"
        holders.append(holder.encode())
        evidence = Evidence()
        for epoch, hits in (("old", old), ("new", new)):
            for page, at in hits:
                evidence.add(evidence_key(rules[page], epoch), hit(at, h8(f"{page} {at}")))
        if kind == "alias":
            written[records.EVIDENCE + holder.encode()] = records.encode_alias("somebody")
            continue
        identity = Identity(holder)
        if kind == "erased":
            identity.join(erased_at_ms=30)
        named = kind != "holder"
        written[records.EVIDENCE + holder.encode()] = records.encode_evidence(evidence, named)
        if named:
            written[records.IDENTITY + holder.encode()] = records.encode_identity(identity)
    return holders, written.get


def rules_of(page: str) -> list[object]:
    return list(journey(page).stages[0].condition.members)


def reached(people: Sequence[tuple[Hits, Hits, str]], side: int, since: int) -> tuple[int, ...]:
    """How many reached each stage, by the plain projection of what happened."""
    counts = [0, 0, 0]
    for old, new, kind in people:
        if kind == "alias":
            continue
        kept = [
            (page, at)
            for page, at in (old, new)[side]
            if at >= since and not (kind == "erased" and at <= 30)
        ]
        evidence = Evidence()
        for page, at in kept:
            evidence.add(rule_key(rules_of(PAGES[page])[0]), hit(at, h8(f"{page} {at}")))
        for stage in range(len(project(journey(*PAGES), evidence.hits))):
            counts[stage] += 1
    return tuple(counts)


@pytest.mark.parametrize("few", [0, 10**9])
@given(contacts())
def test_both_sides_are_counted_as_projection_says(
    few: int, people: list[tuple[Hits, Hits, str]]
) -> None:
    bulk.loops.warm()
    holders, load = ledger(people)
    compared = pairs([view(journey(*PAGES))], rules_by_key(journey(*PAGES)), "new")
    counting = Counting(compared, None, few)
    for at in range(0, len(holders), 7):
        counting.add(holders[at : at + 7], load)
    (found,) = counting.report().journeys
    assert counting.report().contacts == len(holders)
    assert (found.visible, found.rebuilt) == (reached(people, 0, 0), reached(people, 1, 0))
    assert found.expected == found.visible


@given(contacts())
def test_what_is_expected_is_between_what_the_log_holds_and_what_is_visible(
    people: list[tuple[Hits, Hits, str]],
) -> None:
    holders, load = ledger(people)
    compared = pairs([view(journey(*PAGES))], rules_by_key(journey(*PAGES)), "new")
    counting = Counting(compared, LOG_BEGIN_MS, 0)
    counting.add(holders, load)
    (found,) = counting.report().journeys
    held = reached(people, 0, LOG_BEGIN_MS)
    for low, expected, high in zip(held, found.expected, found.visible, strict=True):
        assert low <= expected <= high


@given(contacts())
def test_a_log_that_lost_its_beginning_and_nothing_else_is_explained(
    people: list[tuple[Hits, Hits, str]],
) -> None:
    kept = [
        (old, [(p, at) for p, at in old if at >= LOG_BEGIN_MS], kind) for old, _, kind in people
    ]
    holders, load = ledger(kept)
    compared = pairs([view(journey(*PAGES))], rules_by_key(journey(*PAGES)), "new")
    counting = Counting(compared, LOG_BEGIN_MS, 0)
    counting.add(holders, load)
    assert unexplained([counting.report()], Tolerance(0.0, 1)) == ()


def test_only_journeys_whose_evidence_is_another_are_compared() -> None:
    mine, other = view(journey("/a", "/b")), view(journey("/c", id_="k"))
    rules = [*rules_by_key(journey("/b"))]
    (found,) = pairs([mine, other], rules, "new")
    (first, second) = rules_by_key(journey("/a", "/b"))
    assert found.visible.source.keys == mine.source.keys
    assert found.rebuilt.source.keys == {
        first: evidence_key(first, "old"),
        second: evidence_key(second, "new"),
    }
    assert pairs([mine, other], rules, "old") == [], "it is read already"


def said(*stages: tuple[int, int, int], id_: str = "j", version: int = 1) -> ComparisonReport:
    visible, expected, rebuilt = zip(*stages, strict=True)
    return ComparisonReport(0, (Compared(id_, version, visible, expected, rebuilt),))


@pytest.mark.parametrize(
    ("why", "stages", "stops"),
    [
        ("nothing differs", [(40_000, 40_000, 40_000)], False),
        ("three quarters are gone", [(40_000, 40_000, 9_956)], True),
        ("a fifth is gone", [(1000, 1000, 800)], False),
        ("more than a fifth is gone", [(1000, 1000, 799)], True),
        ("more than a fifth came", [(1000, 1000, 1201)], True),
        ("99 of 100 are gone", [(100, 100, 1)], False),
        ("100 of 100 are gone", [(100, 100, 0)], True),
        ("100 came where nobody was", [(0, 0, 100)], True),
        ("the log no longer holds them", [(1000, 100, 100)], False),
        ("it holds less than that", [(1000, 600, 350)], True),
        ("a later stage only", [(1000, 1000, 1000), (500, 500, 300)], True),
    ],
)
def test_what_needs_a_confirmation(
    why: str, stages: list[tuple[int, int, int]], stops: bool
) -> None:
    found = unexplained([said(*stages)], Tolerance())
    assert bool(found) == stops, why
    if stops:
        assert [(one.visible, one.expected, one.rebuilt) for one in found] == stages
        assert f"{found[-1].rebuilt:,} were rebuilt" in reason(found[-1:])


def test_partitions_are_summed_and_the_journey_that_differs_most_comes_first() -> None:
    parts = [
        said((60, 60, 0)),
        said((60, 60, 0)),
        said((900, 900, 0), id_="k"),
        said((300, 300, 300), id_="l"),
    ]
    found = unexplained(parts, Tolerance())
    assert found == (Difference("k", 1, 1, 900, 900, 0), Difference("j", 1, 1, 120, 120, 0))
    assert unexplained(parts[:1], Tolerance()) == (), "one partition alone differs by too few"
    assert reason(found).endswith(", and one more journey")


def test_what_a_partition_reports_is_bounded_and_names_what_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "MAX_REPORT_BYTES", 350)
    monkeypatch.setattr(comparison, "BULK_STAGES", 5)
    bulk.loops.warm()
    views = [view(journey(*PAGES, id_=f"j{n}")) for n in range(3)]
    views.append(view(journey("/a", id_="j3")))
    rules = rules_by_key(journey("/a"))
    holders, load = ledger([([(0, 60)], [], "holder")] * 40)
    counting = Counting(pairs(views, rules, "new"), None, 0)
    counting.add(holders, load)
    found = counting.report().journeys
    assert [one.journey for one in found] == ["j0", "j1"]
    assert {(one.visible[0], one.rebuilt[0]) for one in found} == {(40, 0)}


def test_versions_are_not_mixed_and_a_record_stays_small() -> None:
    assert unexplained([said((90, 90, 0)), said((90, 90, 0), version=2)], Tolerance()) == ()
    many = [said(*[(900, 900, 0)] * 50, id_=f"j{n}") for n in range(100)]
    found = unexplained(many, Tolerance())
    assert len(found) == MAX_DIFFERENCES
    assert len({one.journey for one in found}) == 4, "journeys are named whole"


async def test_nothing_is_compared_before_all_that_is_visible_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who takes a partition over without its state has no visible view at first: no difference would be found."""
    one = Recalculation(
        id="r-1", state=FILLING, phase=COMPARING, cause=REQUEST, journeys=("a",), rules=(), epoch=1
    )
    built = False
    building = SimpleNamespace(shown=lambda _: (0.5, built, 0))
    context = SimpleNamespace(recalculations=SimpleNamespace(active=lambda: [one]))
    partition: Any = SimpleNamespace(pipeline=object(), context=context, building=building)
    walked: list[str] = []

    async def walk(_: Comparing, what: Recalculation) -> None:
        walked.append(what.id)

    monkeypatch.setattr(Comparing, "_walk", walk)
    comparing = Comparing(partition)
    comparing.reconcile()
    assert not comparing.tasks
    built = True
    comparing.reconcile()
    await comparing.close()
    assert [*comparing.tasks] == ["r-1"]
