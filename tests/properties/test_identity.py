"""Identity: one name for a person, in any order of arrival, and the oracle's."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.hashing import h, h8
from state import oracle
from state.identity import Identity, Merge, Profile, place, survivor
from tests.support.strategies import CONTACTS, merges, profiles, times

facts = st.lists(
    st.builds(lambda n, at_ms, pair: oracle.Merge(f"m-{n}", pair[0], pair[1], at_ms),
              st.integers(0, 20), times, st.lists(st.sampled_from(CONTACTS), min_size=2, max_size=2, unique=True)),
    max_size=12,
)  # fmt: skip


def as_merge(fact: oracle.Merge) -> Merge:
    return Merge(fact.at_ms, h8(fact.id), fact.from_, fact.into)


@settings(max_examples=400, deadline=None)
@given(facts)
def test_the_survivor_is_the_oracles(found: list[oracle.Merge]) -> None:
    for person in oracle.persons(oracle.History(merges=found)):
        theirs = [as_merge(m) for m in found if m.from_ in person.contacts]
        for contact in person.contacts:
            assert survivor(contact, theirs) == person.survivor
            assert survivor(contact, reversed(theirs), person.contacts) == person.survivor


@settings(max_examples=200, deadline=None)
@given(facts, st.randoms(use_true_random=False))
def test_order_of_arrival_is_nothing(found: list[oracle.Merge], random: object) -> None:
    before = {p.survivor: p.contacts for p in oracle.persons(oracle.History(merges=found))}
    again = [*found, *found[:3]]
    random.shuffle(again)  # type: ignore[attr-defined]
    assert {p.survivor: p.contacts for p in oracle.persons(oracle.History(merges=again))} == before


parts = st.tuples(
    st.sets(st.sampled_from(CONTACTS), max_size=4),
    st.sets(merges, max_size=4),
    st.dictionaries(st.sampled_from(CONTACTS), profiles, max_size=3),
    st.none() | times,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(parts, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_identities_join_in_any_order(
    found: list[tuple[set[str], set[Merge], dict[str, Profile], int | None]], random: object
) -> None:
    one = Identity(CONTACTS[0])
    for part in found:
        one.join(*part)
    shuffled = [*found, *found]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    other = Identity(CONTACTS[0])
    for part in shuffled:
        other.join(*part)
    assert one == other
    assert not other.join(*found[0]), "the same again is never new"


@settings(max_examples=300, deadline=None)
@given(
    facts,
    st.lists(st.tuples(st.sampled_from(CONTACTS), profiles), max_size=6),
    st.lists(st.tuples(st.sampled_from(CONTACTS), times), max_size=2),
)
def test_the_whole_identity_is_the_oracles(
    found: list[oracle.Merge], said: list[tuple[str, Profile]], erased: list[tuple[str, int]]
) -> None:
    history = oracle.History(
        merges=found,
        profiles=[oracle.Profile(who, p.groups, json.loads(p.attributes), p.at_ms) for who, p in said],
        erasures=[oracle.Erasure(who, at_ms) for who, at_ms in erased],
    )
    for person in oracle.persons(history):
        identity = Identity(min(person.contacts, key=place))
        for who, profile in said:
            if who in person.contacts:
                identity.join(profiles={who: profile})
        for who, at_ms in erased:
            if who in person.contacts:
                identity.join(erased_at_ms=at_ms)
        identity.join(person.contacts, [as_merge(m) for m in found if m.from_ in person.contacts])
        assert identity.name == person.survivor
        assert set(identity.groups) == set(person.groups)
        assert identity.erased_at_ms == person.erased_at_ms
        kept = identity.profiles.get(identity.name)
        assert (kept is None) == (person.profile is None)
        if kept is not None and person.profile is not None:
            assert (kept.at_ms, json.loads(kept.attributes)) == (person.profile.at_ms, person.profile.attributes)


@given(st.sets(st.text(max_size=20), min_size=2, max_size=8))
def test_place_orders_by_hash_then_id(contacts: set[str]) -> None:
    assert sorted(contacts, key=place) == sorted(contacts, key=lambda contact: (h(contact), contact))


@settings(max_examples=200, deadline=None)
@given(st.sets(merges, max_size=6), st.sets(st.sampled_from(CONTACTS), min_size=1))
def test_a_name_is_of_a_contact_that_is_here(found: set[Merge], members: set[str]) -> None:
    holder = min(members, key=place)
    assert survivor(holder, found, members) in members


def test_a_chain_of_ten_thousand_is_named_at_once() -> None:
    chain = [Merge(n, h8(str(n)), f"c{n}", f"c{n + 1}") for n in range(10_000)]
    assert survivor("c0", chain) == "c10000"
    assert survivor("c0", [Merge(-m.at_ms, m.h, m.from_, m.into) for m in chain]) == "c10000"
