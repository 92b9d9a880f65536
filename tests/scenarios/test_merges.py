"""Stories about who is who: anonymous visitors turn out to be customers, before and after, in chains and in circles."""

from __future__ import annotations

import itertools

import pytest

from .shop import Shop, left, reached


def test_a_visitor_logs_in_and_the_two_are_counted_once(shop: Shop) -> None:
    visitor, ada = shop.contact("visitor-9"), shop.contact("ada")
    visitor.visits("/campaign/smb", at="10:00")
    ada.submits("loan-smb", at="10:30")
    assert shop.results() == [1, 0]
    visitor.turns_out_to_be(ada, at="10:31")
    assert shop.results() == [1, 1], "the visit was hers"
    assert shop.who(1) == ["ada"]
    assert shop.changes(visitor) == [reached(1, "10:00"), left(1)]
    assert shop.changes(ada) == [reached(1, "10:00"), reached(2, "10:30")]


def test_the_merge_may_come_first(shop: Shop) -> None:
    visitor, ada = shop.contact("visitor-9"), shop.contact("ada")
    visitor.turns_out_to_be(ada, at="10:31")
    visitor.visits("/campaign/smb", at="10:00")
    visitor.submits("loan-smb", at="10:30")
    assert shop.results() == [1, 1]
    assert shop.who(2) == ["ada"]
    assert shop.changes(visitor) == [], "it was never seen under the other name"


def test_two_who_did_the_same_become_one(shop: Shop) -> None:
    visitor, ada = shop.contact("visitor-9"), shop.contact("ada")
    visitor.visits("/campaign/smb", at="10:00")
    ada.visits("/campaign/smb", at="09:00")
    assert shop.results() == [2, 0]
    visitor.turns_out_to_be(ada, at="11:00")
    assert shop.results() == [1, 0]
    assert shop.stages_of(visitor) == shop.stages_of(ada) == ["09:00"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_chain_ends_with_its_last_name_in_any_order_of_arrival(shop: Shop, order: tuple[int, ...]) -> None:
    a, b, c = shop.contact("a"), shop.contact("b"), shop.contact("c")
    events = [
        lambda: a.turns_out_to_be(b, at="10:00", id="m1"),
        lambda: b.turns_out_to_be(c, at="11:00", id="m2"),
        lambda: a.visits("/campaign/smb", at="09:00"),
    ]
    for index in order:
        events[index]()
    assert shop.who(1) == ["c"]


def test_a_circle_changes_nothing(shop: Shop) -> None:
    a, b = shop.contact("a"), shop.contact("b")
    a.visits("/campaign/smb", at="09:00")
    a.turns_out_to_be(b, at="10:00")
    b.turns_out_to_be(a, at="11:00")
    assert shop.who(1) == ["b"]


def test_merged_again_elsewhere_it_is_who_it_was_by_then(shop: Shop) -> None:
    a, b, c = shop.contact("a"), shop.contact("b"), shop.contact("c")
    a.visits("/campaign/smb", at="09:00")
    a.turns_out_to_be(b, at="10:00")
    a.turns_out_to_be(c, at="11:00")
    assert shop.who(1) == ["c"], "A was B by then, so B became C"
    assert shop.knows(b)["survivor"] == "c"


def test_an_earlier_merge_that_arrives_late_renames(shop: Shop) -> None:
    a, b, c = shop.contact("a"), shop.contact("b"), shop.contact("c")
    a.visits("/campaign/smb", at="09:00")
    a.turns_out_to_be(b, at="10:00")
    assert shop.who(1) == ["b"]
    b.turns_out_to_be(c, at="09:30")  # before: so a became b, which was c already
    assert shop.who(1) == ["c"]
    assert shop.changes(b) == [reached(1, "09:00"), left(1)]


def test_the_same_merge_twice_is_one(shop: Shop) -> None:
    a, b = shop.contact("a"), shop.contact("b")
    a.visits("/campaign/smb", at="09:00")
    a.turns_out_to_be(b, at="10:00", id="m1")
    a.turns_out_to_be(b, at="10:00", id="m1")
    assert shop.results() == [1, 0]
    assert len(shop.changes(b)) == 1


def test_nobody_turns_out_to_be_themselves(shop: Shop) -> None:
    ada = shop.contact("ada")
    ada.turns_out_to_be(ada, at="10:00")
    (rejected,) = shop.rejected
    assert "cannot be merged into itself" in rejected["waypost_error"]


def test_a_customer_with_a_hundred_visits_from_a_hundred_browsers(shop: Shop) -> None:
    ada = shop.contact("ada")
    for n in range(100):
        browser = shop.contact(f"browser-{n}")
        browser.visits("/campaign/smb", at=f"{8 + n // 60:02d}:{n % 60:02d}")
    assert shop.results() == [100, 0]
    for n in range(100):
        shop.contact(f"browser-{n}").turns_out_to_be(ada, at="20:00")
    assert shop.results() == [1, 0]
    assert shop.stages_of(ada) == ["08:00"]
    assert len(shop.knows(ada)["aliases"]) == 100
