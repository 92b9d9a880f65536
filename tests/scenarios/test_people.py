"""Stories about groups, forgetting, and edits of the journey."""

from __future__ import annotations

from .conftest import CAMPAIGN, CLICK, REQUEST
from .shop import Shop, left, reached


def test_groups_break_results_down_and_overlap(shop: Shop) -> None:
    ada, bob, cy = shop.contact("ada"), shop.contact("bob"), shop.contact("cy")
    for one in (ada, bob, cy):
        one.visits("/campaign/smb", at="10:00")
    ada.submits("loan-smb", at="10:10")
    ada.is_in("smb-owner", "newsletter")
    bob.is_in("newsletter")
    assert shop.results() == [3, 1]
    assert shop.results("newsletter") == [2, 1]
    assert shop.results("smb-owner") == [1, 1]
    assert shop.who(1, "newsletter") == ["ada", "bob"]
    assert shop.results("nobody is in this") == [0, 0]


def test_the_newest_profile_wins_whenever_it_arrives(shop: Shop) -> None:
    ada = shop.contact("ada")
    ada.visits("/campaign/smb", at="10:00")
    ada.is_in("gold", at="12:00")
    ada.is_in("silver", at="11:00")  # older, arrives later
    assert (shop.results("gold"), shop.results("silver")) == ([1, 0], [0, 0])


def test_a_person_has_the_profile_of_its_survivor(shop: Shop) -> None:
    visitor, ada = shop.contact("visitor-1"), shop.contact("ada")
    visitor.is_in("anonymous", at="12:00")
    ada.is_in("customer", at="09:00")
    visitor.visits("/campaign/smb", at="10:00")
    assert shop.results("anonymous") == [1, 0]
    visitor.turns_out_to_be(ada, at="10:10")
    assert (shop.results("anonymous"), shop.results("customer")) == ([0, 0], [1, 0])


def test_who_asks_to_be_forgotten_is_gone_at_once(shop: Shop) -> None:
    ada, bob = shop.contact("ada"), shop.contact("bob")
    for one in (ada, bob):
        one.is_in("smb-owner")
        one.visits("/campaign/smb", at="10:00")
    ada.asks_to_be_forgotten(at="12:00")
    assert shop.results() == [1, 0]
    assert shop.results("smb-owner") == [1, 0]
    assert shop.who(1) == ["bob"]
    assert shop.changes(ada) == [reached(1, "10:00"), left(1, was="10:00")]
    assert shop.knows(ada)["profile"] is None


def test_what_was_forgotten_never_comes_back(shop: Shop) -> None:
    visitor, ada = shop.contact("visitor-1"), shop.contact("ada")
    visitor.visits("/campaign/smb", at="10:00")
    ada.asks_to_be_forgotten(at="12:00")
    ada.visits("/campaign/smb", at="11:00")  # late
    assert shop.who(1) == ["visitor-1"]
    visitor.turns_out_to_be(ada, at="12:30")  # they are one person: its erasure is hers
    assert shop.results() == [0, 0]
    ada.visits("/campaign/smb", at="12:00")  # not after
    assert shop.results() == [0, 0]
    ada.visits("/campaign/smb", at="12:00:01")  # a new life
    assert shop.who(1) == ["ada"]


def test_numbers_and_ratios(shop: Shop) -> None:
    assert shop.row(1)["converted_ratio"] is None, "0/0 is null"
    assert shop.row(1)["kpi_ratio"] == 0
    assert shop.row(2)["dropped_off"] is None, "nobody drops off the last stage"
    for n in range(4):
        shop.contact(f"c{n}").visits("/campaign/smb", at="10:00")
    for n, at in enumerate(("10:01", "10:03")):
        shop.contact(f"c{n}").submits("loan-smb", at=at)
    first, second = shop.rows()
    assert (first["converted"], first["converted_ratio"], first["dropped_off"], first["dropped_off_ratio"]) == (
        4,
        1.0,
        2,
        0.5,
    )
    assert (first["kpi"], first["kpi_ratio"]) == (2, 2.0), "a KPI may be exceeded"
    assert (second["converted"], second["converted_ratio"], second["kpi"], second["kpi_ratio"]) == (2, 0.5, None, None)
    assert (first["median_seconds_from_previous"], second["median_seconds_from_previous"]) == (None, 120.0)
    assert shop.who(1, dropped_off=True) == ["c2", "c3"]


def test_an_edit_needs_no_replay_for_rules_that_are_known(bank: Shop) -> None:
    ada, bob = bank.contact("ada"), bank.contact("bob")
    ada.visits("/campaign/smb", at="10:00")
    ada.clicks("https://bank.example/case-study", at="10:05", email="smb-jumpstart")
    bob.visits("/campaign/smb", at="10:00")
    bob.submits("loan-smb", at="10:05")
    assert bank.results() == [2, 1, 0, 0]
    bank.edit(CAMPAIGN, CLICK, REQUEST)  # the email goes before the form
    assert bank.results() == [2, 1, 0]
    assert bank.who(2) == ["ada"]
    assert bank.changes(bob) == [reached(1, "10:00"), reached(2, "10:05"), left(2, was="10:05")]
    assert bank.changes(ada) == [reached(1, "10:00"), reached(2, "10:05")]


def test_an_edit_to_fewer_stages_takes_back_what_is_no_more(bank: Shop) -> None:
    ada = bank.contact("ada")
    ada.visits("/campaign/smb", at="10:00")
    ada.submits("loan-smb", at="10:05")
    bank.edit(CAMPAIGN)
    assert bank.results() == [1]
    assert bank.changes(ada)[-1] == left(2, was="10:05")


def test_a_kpi_changes_no_contact(shop: Shop) -> None:
    ada = shop.contact("ada")
    ada.visits("/campaign/smb", at="10:00")
    shop.edit({**CAMPAIGN, "kpi": 10}, REQUEST)
    assert shop.row(1)["kpi_ratio"] == 0.1
    assert shop.changes(ada) == [reached(1, "10:00")]


def test_a_record_in_the_wrong_place_is_moved_not_lost(shop: Shop) -> None:
    for partition in range(3):
        for key in (None, b"", b"somebody else", b"\xff\xfe"):
            fact = b'{"id": "a%d%d", "contact_id": "ada", "type": "pagevisit", "at": "2026-01-02T10:00:00Z", "page": "/campaign/smb"}'
            shop.send_raw("activities", key, fact % (partition, len(key or b"")), 0, partition)
    shop.contact("ada").submits("loan-smb", at="10:05")
    assert shop.results() == [1, 1]


def test_a_bad_record_is_told_and_the_good_ones_go_on(shop: Shop) -> None:
    ada = shop.contact("ada")
    shop.send_raw("activities", b"ada", b"this is not JSON", 0)
    shop.send_raw("activities", b"ada", b'{"contact_id": "ada", "type": "pagevisit"}', 0)
    shop.send_raw("activities", b"ada", b'{"contact_id": "ada", "type": "pagevisit", "at": "2999-01-01T00:00:00Z"}', 0)
    ada.visits("/campaign/smb", at="10:00")
    assert shop.results() == [1, 0]
    reasons = [rejected["waypost_error"] for rejected in shop.rejected]
    assert len(reasons) == 3
    assert "JSON" in reasons[0]
    assert reasons[1].startswith("at")
    assert "ahead" in reasons[2]
    assert shop.rejected[0]["value"] == b"this is not JSON"


def test_a_stage_change_is_what_the_contract_shows(shop: Shop) -> None:
    shop.contact("c-42").visits("/campaign/smb", at="03:04:05", id="a-81")
    assert shop.last_change() == {
        "journey": "loan", "version": 1, "contact_id": "c-42", "stage": 1, "stage_name": "Visited campaign page", "change": "reached",
        "reached_at": "2026-01-02T03:04:05.000Z", "previous_reached_at": None, "cause": "activity", "cause_id": "a-81",
    }  # fmt: skip
