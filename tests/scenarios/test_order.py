"""Stories about time: what counts is when things happened, never when we heard of them."""

from __future__ import annotations

from .shop import Shop, moved, reached


def test_one_stage_after_the_other(shop: Shop) -> None:
    ada = shop.contact("ada")
    ada.visits("/campaign/smb", at="10:00")
    assert shop.results() == [1, 0]
    ada.submits("loan-smb", at="10:05")
    assert shop.results() == [1, 1]
    assert shop.who(2) == ["ada"]
    assert shop.changes(ada) == [reached(1, "10:00"), reached(2, "10:05")]


def test_a_late_activity_moves_the_stage_back_and_everything_after_it(shop: Shop) -> None:
    ada = shop.contact("ada")
    ada.visits("/campaign/smb", at="10:00")
    ada.submits("loan-smb", at="09:59")  # before the visit: does not count
    assert shop.results() == [1, 0]
    ada.visits("/campaign/smb", at="09:30")  # arrives late
    assert shop.results() == [1, 1]
    assert shop.changes(ada) == [reached(1, "10:00"), moved(1, "09:30", was="10:00"), reached(2, "09:59")]


def test_the_form_first_and_the_visit_never_is_no_journey(shop: Shop) -> None:
    ada = shop.contact("ada")
    ada.submits("loan-smb", at="10:00")
    assert shop.results() == [0, 0]
    assert shop.changes(ada) == []


def test_equal_times_count_as_in_order(shop: Shop) -> None:
    ada = shop.contact("ada")
    ada.submits("loan-smb", at="10:00")
    ada.visits("/campaign/smb", at="10:00")
    assert shop.results() == [1, 1], "sources with one-second clocks are common"


def test_reached_once_is_reached(shop: Shop) -> None:
    ada = shop.contact("ada")
    for at in ("10:00", "11:00", "12:00"):
        ada.visits("/campaign/smb", at=at)
    assert shop.results() == [1, 0]
    assert shop.changes(ada) == [reached(1, "10:00")]


def test_the_same_activity_twice_is_one(shop: Shop) -> None:
    ada = shop.contact("ada")
    ada.visits("/campaign/smb", at="10:00", id="v-1")
    ada.visits("/campaign/smb", at="10:00", id="v-1")
    assert shop.changes(ada) == [reached(1, "10:00")]


def test_one_activity_never_meets_two_stages() -> None:
    visit = {"any": [{"rule": "visited_page", "page": "/price"}]}
    shop = Shop({"name": "Saw the price", "condition": visit}, {"name": "Came back to it", "condition": visit})
    ada = shop.contact("ada")
    ada.visits("/price", at="10:00")
    assert shop.results() == [1, 0]
    ada.visits("/price", at="10:00")  # another visit, within the same second
    assert shop.results() == [1, 1]


def test_within_a_stage_one_activity_may_meet_several_rules() -> None:
    both = {
        "all": [
            {"rule": "visited_page", "page": "/price"},
            {"rule": "visited_url", "url": {"contains": "shop.example"}},
        ]
    }
    shop = Shop({"name": "Saw the price here", "condition": both})
    shop.contact("ada").visits("/price", at="10:00")
    assert shop.results() == [1]


def test_the_whole_campaign(bank: Shop) -> None:
    ada, bob = bank.contact("ada"), bank.contact("bob")
    ada.visits("/Campaign/SMB", at="09:00")  # comparison ignores case
    ada.submits("loan-smb", at="09:10")
    ada.clicks("https://bank.example/case-study?x=1", at="09:20", email="smb-jumpstart")
    ada.downloads("the-case-study.zip", at="09:30")
    bob.visits("/campaign/smb", at="09:00")
    bob.submits("loan-smb", at="09:10")
    bob.clicks("https://bank.example/case-study", at="09:20", email="another-email")
    assert bank.results() == [2, 2, 1, 1]
    assert bank.who(2, dropped_off=True) == ["bob"]
    bob.clicks("https://bank.example/case-study", at="09:25", email="SMB-JUMPSTART")
    bob.registers(at="09:30")
    assert bank.results() == [2, 2, 2, 1], "a member who read no PDF"
    bob.visits("/case-study.pdf", at="09:28")
    assert bank.results() == [2, 2, 2, 2]
    assert bank.stages_of(bob) == ["09:00", "09:10", "09:25", "09:30"], "all: the later of the two"


def test_the_screen_explains_where_a_contact_stands(bank: Shop) -> None:
    ada = bank.contact("ada")
    ada.visits("/campaign/smb", at="09:00")
    standing = bank.knows(ada)["journeys"][0]
    assert [stage["name"] for stage in standing["stages"]] == ["Visited campaign page"]
    assert [met["rule"] for met in standing["stages"][0]["met_by"]] == ['visited page "/campaign/smb"']
    assert standing["missing"]["name"] == "Requested case study"
    assert standing["missing"]["rules"] == ['submitted form "loan-smb"']
