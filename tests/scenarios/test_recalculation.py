"""Stories about recalculation: the small-business-loan journey, built over what happened before, edited, doubted, and rebuilt by schedule."""

from __future__ import annotations

from agents.driver import next_run_ms, scheduled
from schemas.journey import Journey, parse_journey
from schemas.recalculation import (
    CANCELLED,
    CONFIRMING,
    FILLING,
    LIVE,
    PLANNED,
    SWITCHING,
    Recalculation,
    Schedule,
    decode,
    encode,
)
from schemas.times import parse_ms
from state.recalculation import Table, begin, missing, rules_by_key

from .conftest import CAMPAIGN, CLICK, DOWNLOAD, REQUEST
from .shop import Shop, left, ms, reached


def told(shop: Shop) -> None:
    """Four contacts, before anybody thought of a journey for them."""
    for name in ("ada", "bob", "eve", "kim"):
        shop.contact(name).visits("/campaign/smb", at="10:00")
    for name in ("ada", "bob", "eve"):
        shop.contact(name).submits("loan-smb", at="10:10")
    for name in ("ada", "bob"):
        shop.contact(name).clicks("https://bank.example/download-case-study", at="10:20", email="smb-jumpstart")
    shop.contact("ada").downloads("case-study", at="10:30")


def test_a_journey_is_built_stage_by_stage_over_what_happened_before() -> None:
    shop = Shop({"name": "Somebody", "condition": {"any": [{"rule": "became_member"}]}})
    told(shop)
    assert shop.results() == [0]
    shop.edit(CAMPAIGN)
    assert shop.results() == [4], "the log is replayed for a rule never seen"
    shop.edit(CAMPAIGN, REQUEST)
    assert shop.results() == [4, 3]
    shop.edit(CAMPAIGN, REQUEST, CLICK)
    shop.edit(CAMPAIGN, REQUEST, CLICK, DOWNLOAD)
    assert shop.results() == [4, 3, 2, 1]
    assert shop.who(4) == ["ada"]
    assert shop.changes(shop.contact("kim")) == [reached(1, "10:00")]


def test_a_stage_is_inserted_in_the_middle_and_taken_out_again() -> None:
    shop = Shop(CAMPAIGN, DOWNLOAD)
    told(shop)
    assert shop.results() == [4, 1]
    shop.edit(CAMPAIGN, CLICK, DOWNLOAD)
    assert shop.results() == [4, 2, 1]
    assert shop.changes(shop.contact("bob"))[-1] == reached(2, "10:20")
    assert shop.last_change()["cause"] == "edit"
    shop.edit(CAMPAIGN, DOWNLOAD)
    assert shop.results() == [4, 1]
    assert shop.changes(shop.contact("bob"))[-1] == left(2, was="10:20")


def test_a_condition_is_tightened_and_those_who_no_longer_match_are_gone(shop: Shop) -> None:
    for name, channel in (("ada", "business"), ("bob", None)):
        shop.contact(name).visits("/campaign/smb", at="10:00", channel=channel)
        shop.contact(name).submits("loan-smb", at="10:10")
    assert shop.results() == [2, 2]
    shop.edit({**CAMPAIGN, "condition": {"any": [{"rule": "visited_page", "page": "/campaign/smb", "channel": "business"}]}}, REQUEST)
    assert shop.results() == [1, 1]
    assert shop.who(1) == ["ada"]
    assert shop.changes(shop.contact("bob"))[-2:] == [left(1, was="10:00"), left(2, was="10:10")]
    assert shop.changes(shop.contact("ada")) == [reached(1, "10:00"), reached(2, "10:10")], "who still matches hears nothing"


def test_nothing_is_said_when_a_recalculation_changes_nothing(bank: Shop) -> None:
    told(bank)
    before = len(bank.changes(bank.contact("ada")))
    done = bank.recalculate()
    assert (done.state, done.changed) == (LIVE, 0)
    assert bank.results() == [4, 3, 2, 1]
    assert len(bank.changes(bank.contact("ada"))) == before


def test_a_merge_between_two_recalculations(bank: Shop) -> None:
    told(bank)
    assert bank.recalculate().changed == 0
    visitor, ada = bank.contact("visitor-9"), bank.contact("ada")
    visitor.visits("/campaign/smb", at="09:00")
    visitor.turns_out_to_be(ada, at="11:00")
    assert (bank.results(), bank.stages_of(ada)) == ([4, 3, 2, 1], ["09:00", "10:10", "10:20", "10:30"])
    assert bank.recalculate().changed == 0
    assert (bank.results(), bank.stages_of(ada)) == ([4, 3, 2, 1], ["09:00", "10:10", "10:20", "10:30"])


def test_who_was_erased_stays_erased(bank: Shop) -> None:
    told(bank)
    bank.contact("ada").asks_to_be_forgotten(at="12:00")
    assert bank.results() == [3, 2, 1, 0]
    assert bank.recalculate().changed == 0
    assert bank.results() == [3, 2, 1, 0]


def test_what_retention_took_from_the_log_counts_no_longer_and_only_differences_are_told(bank: Shop) -> None:
    told(bank)
    kept = bank.forget_before("10:25")
    assert kept > 0
    assert bank.results() == [4, 3, 2, 1], "until somebody asks"
    done = bank.recalculate()
    assert done.changed == 4, "who stands elsewhere: all four had only older activities, but for ada's download"
    assert bank.results() == [0, 0, 0, 0]
    assert bank.changes(bank.contact("kim")) == [reached(1, "10:00"), left(1, was="10:00")]
    assert bank.last_change()["cause"] == "recalculation"
    assert bank.last_change()["cause_id"] == done.id


def fallen(bank: Shop) -> None:
    """Of eight who reached the first stage, six are missing when the log is read again."""
    bank.tolerate(contacts=3)
    names = ("ada", "bob", "eve", "kim", "leo", "mia", "ned", "ola")
    for name in names:
        bank.contact(name).visits("/campaign/smb", at="10:00")
    for name in names[:4]:
        bank.contact(name).submits("loan-smb", at="10:10")
    bank.lose(*map(bank.contact, names[2:]))


def test_results_that_fall_by_three_quarters_wait_for_a_confirmation_with_the_numbers_of_both(bank: Shop) -> None:
    fallen(bank)
    waiting = bank.recalculate()
    assert (waiting.state, waiting.phase, waiting.waits) == (SWITCHING, CONFIRMING, True)
    found = [(one.stage, one.visible, one.expected, one.rebuilt) for one in waiting.differences]
    assert found == [(1, 8, 8, 2), (2, 4, 4, 2), (3, 0, 0, 0), (4, 0, 0, 0)]
    assert waiting.reason is not None
    assert '"loan", stage 1: 8 contacts are visible, 2 were rebuilt' in waiting.reason
    assert bank.results() == [8, 4, 0, 0]
    assert bank.last_change()["cause"] == "activity", "nothing was announced"
    bank.contact("zoe").visits("/campaign/smb", at="11:00")
    assert bank.results() == [9, 4, 0, 0], "what arrives meanwhile counts"
    done = bank.confirm(waiting)
    assert (done.state, done.phase, done.reason, done.changed) == (LIVE, None, None, 6)
    assert bank.results() == [3, 2, 0, 0]
    assert bank.changes(bank.contact("kim")) == [reached(1, "10:00"), reached(2, "10:10"), left(1, was="10:00"), left(2, was="10:10")]
    assert bank.last_change()["cause_id"] == done.id


def test_cancelling_what_waits_keeps_the_results_and_says_nothing(bank: Shop) -> None:
    fallen(bank)
    waiting = bank.recalculate()
    before = bank.last_change()
    cancelled = bank.cancel(waiting)
    assert (cancelled.state, cancelled.phase, cancelled.switched_at) == (CANCELLED, None, None)
    assert bank.results() == [8, 4, 0, 0]
    assert bank.last_change() is before
    bank.contact("kim").clicks("https://bank.example/download-case-study", at="12:00", email="smb-jumpstart")
    assert bank.results() == [8, 4, 1, 0]
    assert bank.recalculate().waits, "the log has lost the same still"


def test_a_difference_that_retention_explains_needs_no_confirmation(bank: Shop) -> None:
    told(bank)
    bank.tolerate(contacts=1)
    bank.begin_log("10:25")
    assert bank.recalculate().state == LIVE
    assert bank.results() == [0, 0, 0, 0]


def test_retention_explains_no_more_than_it_took(bank: Shop) -> None:
    bank.tolerate(contacts=3)
    for n in range(4):
        bank.contact(f"old-{n}").visits("/campaign/smb", at="09:00")
    new = [bank.contact(f"new-{n}") for n in range(4)]
    for contact in new:
        contact.visits("/campaign/smb", at="12:00")
    bank.begin_log("11:00")
    bank.lose(*new[:3])
    waiting = bank.recalculate()
    first = waiting.differences[0]
    assert (waiting.waits, first.visible, first.expected, first.rebuilt) == (True, 8, 4, 1)


def test_who_was_erased_or_merged_since_is_no_difference(bank: Shop) -> None:
    bank.tolerate(contacts=1)
    told(bank)
    bank.contact("ada").asks_to_be_forgotten(at="12:00")
    bank.contact("kim").turns_out_to_be(bank.contact("eve"), at="12:00")
    assert bank.results() == [2, 2, 1, 0]
    assert bank.recalculate().state == LIVE
    assert bank.results() == [2, 2, 1, 0]


def test_a_version_with_a_new_rule_has_nothing_to_compare_with(bank: Shop) -> None:
    told(bank)
    bank.tolerate(contacts=1)
    bank.edit({"name": "Somebody", "condition": {"any": [{"rule": "became_member"}]}})
    assert bank.results() == [0]


def test_evidence_of_earlier_recalculations_goes(bank: Shop) -> None:
    told(bank)
    for _ in range(3):
        bank.recalculate()
    assert bank.evidence_keys() <= bank.keys_read()
    assert len(bank.evidence_keys()) == 4, "one key for each of the rules that somebody met"
    assert bank.results() == [4, 3, 2, 1]


def test_activities_go_on_counting_after_a_recalculation(bank: Shop) -> None:
    told(bank)
    bank.recalculate()
    bank.contact("kim").submits("loan-smb", at="11:00")
    assert bank.results() == [4, 4, 2, 1]
    assert bank.changes(bank.contact("kim"))[-1] == reached(2, "11:00")


def test_what_somebody_cancelled_is_not_begun_again_until_it_is_asked_for_or_saved(bank: Shop) -> None:
    table, journey = Table(), bank.journey.model_copy(update={"saved_at": ms("10:00")})
    run = missing(table, [journey], ms("10:01"))
    assert run is not None
    table.take(run.id, run)
    assert table.given_up(journey) is None, "it is on its way"
    cancelled = run.but(state=CANCELLED, finished_at=ms("10:02"))
    table.take(run.id, cancelled)
    assert missing(table, [journey], ms("10:03")) is None
    assert table.given_up(journey) == cancelled
    again = journey.model_copy(update={"saved_at": ms("10:04")})
    assert table.given_up(again) is None, "it begins by itself"
    assert missing(table, [again], ms("10:05")) is not None
    asked = run.but(id="asked", planned_at=ms("10:06"))
    table.take(asked.id, asked)
    assert table.given_up(journey) is None
    table.take(asked.id, asked.but(state=LIVE, epoch=1, switched_at=ms("10:07"), finished_at=ms("10:07")))
    assert table.given_up(journey) is None, "nothing is wanting"


# -- the schedule ---------------------------------------------------------------------------------------------------------

NIGHTLY = "0 2 * * *"


def visited(*pages: str) -> list[Journey]:
    """Return a journey for each of *pages*, with one stage: that the page was visited."""
    return [
        parse_journey({"id": page, "name": page, "stages": [{"name": "S", "condition": {"any": [{"rule": "visited_page", "page": page}]}}]})
        for page in pages
    ]


def planned(table: Table, journeys: list[Journey], now_ms: int) -> Recalculation:
    """Plan what is missing for *journeys*, as the driver does, and return it."""
    one = missing(table, journeys, now_ms)
    assert one is not None
    table.take(one.id, one)
    return one


def test_rules_that_wait_are_taken_together_into_the_next_recalculation() -> None:
    table, journeys = Table(), visited(*(f"p{n}" for n in range(1000)))
    first = planned(table, journeys[:1], 1)
    running = begin(table, journeys[:1], 2)
    assert running is not None
    table.take(first.id, running)
    second = planned(table, journeys[:2], 3)
    for count in range(3, 1001):
        assert missing(table, journeys[:count], count) is None, "they wait for the one that is planned"
        assert begin(table, journeys[:count], count) is None
    assert [table.covering(journey) for journey in (journeys[0], journeys[1], journeys[999])] == [running, second, second]
    table.take(first.id, running.but(state=LIVE, switched_at=1001, finished_at=1001))
    following = begin(table, journeys, 1002)
    assert following is not None
    assert (following.id, following.state) == (second.id, FILLING)
    assert following.journeys == tuple(sorted(journey.id for journey in journeys[1:]))
    table.take(following.id, following)
    assert len(table.rules(following.id)) == 999
    assert missing(table, journeys, 1003) is None
    assert not table.stale


def test_what_began_says_for_good_which_rules_it_rebuilds() -> None:
    """Whoever reads the compacted topic sees the last record alone: it must come to the same."""
    early, late, journeys = Table(), Table(), visited("a", "b", "c")
    one = planned(early, journeys[:1], 1)
    filling = begin(early, journeys[:2], 2)
    assert filling is not None
    early.take(one.id, filling)
    early.take(one.id, one)  # of a driver that did not know of it
    assert early.stale == {one.id}
    other = filling.but(rules=one.rules, journeys=one.journeys, progress=0.5)
    early.take(one.id, other)  # of a driver that began it with fewer rules
    late.take(one.id, decode(one.id.encode(), encode(early.records[one.id])))
    assert early.rules(one.id) == late.rules(one.id) == rules_by_key(journeys[0]) | rules_by_key(journeys[1])


def test_a_recalculation_that_somebody_asked_for_takes_nothing_along() -> None:
    table, journeys = Table(), visited("a", "b")
    table.take("r-1", Recalculation(id="r-1", state=PLANNED, cause="request", journeys=("a",), rules=tuple(rules_by_key(journeys[0]).values())))
    following = begin(table, journeys, 1)
    assert following is not None
    assert following.journeys == ("a",)
    table.take("r-1", following)
    assert planned(table, journeys, 2).journeys == ("b",)


def test_what_was_given_up_is_not_taken_along() -> None:
    table, journeys = Table(), visited("a", "b", "c")
    one = planned(table, journeys[:1], 1)
    table.take(one.id, one.but(state=CANCELLED, finished_at=2))
    other = planned(table, journeys[:2], 3)
    assert table.covering(journeys[0]) is None, "it does not begin by itself"
    assert table.covering(journeys[2]) == other
    following = begin(table, journeys, 4)
    assert following is not None
    assert following.journeys == ("b", "c")


def test_the_schedule_fires_when_due_once_and_makes_up_for_a_missed_run_once(bank: Shop) -> None:
    table, mine = Table(), [bank.journey.model_copy(update={"scheduled_recalculation": True})]
    since = parse_ms("2026-01-01T12:00:00Z")
    first, nothing = scheduled(table, mine, None, NIGHTLY, "UTC", since)
    assert (first, nothing) == (Schedule(NIGHTLY, "UTC", since), None), "it is written down since when"
    assert scheduled(table, mine, first, NIGHTLY, "UTC", parse_ms("2026-01-02T01:59:59Z")) == (None, None)
    late = parse_ms("2026-01-05T09:00:00Z")  # everything stood still for three nights
    _, run = scheduled(table, mine, first, NIGHTLY, "UTC", late)
    assert run is not None
    assert (run.cause, run.journeys) == ("schedule", ("loan",))
    table.take(run.id, run)
    assert scheduled(table, mine, first, NIGHTLY, "UTC", parse_ms("2026-01-06T02:00:01Z")) == (None, None), "runs do not overlap"
    table.take(run.id, run.but(state=LIVE, epoch=1, switched_at=late, finished_at=late))
    assert scheduled(table, mine, first, NIGHTLY, "UTC", parse_ms("2026-01-06T01:00:00Z")) == (None, None), "once"
    _, following = scheduled(table, mine, first, NIGHTLY, "UTC", parse_ms("2026-01-06T02:00:01Z"))
    assert following is not None
    assert following.id != run.id


def test_two_who_fire_the_same_run_fire_one(bank: Shop) -> None:
    mine = [bank.journey.model_copy(update={"scheduled_recalculation": True})]
    since, now = Schedule(NIGHTLY, "UTC", parse_ms("2026-01-01T12:00:00Z")), parse_ms("2026-01-02T02:00:05Z")
    runs = [scheduled(Table(), mine, since, NIGHTLY, "UTC", now + delay)[1] for delay in (0, 700)]
    assert len({run.id for run in runs if run is not None}) == 1


def test_no_journey_wants_it_and_nothing_runs(bank: Shop) -> None:
    since = Schedule(NIGHTLY, "UTC", parse_ms("2026-01-01T12:00:00Z"))
    assert scheduled(Table(), [bank.journey], since, NIGHTLY, "UTC", ms("23:00"))[1] is None
    assert scheduled(Table(), [bank.journey], since, "", "UTC", ms("23:00")) == (None, None)


def test_the_schedule_is_read_in_its_time_zone() -> None:
    winter = parse_ms("2026-01-01T12:00:00Z")
    assert next_run_ms(NIGHTLY, "Europe/Berlin", winter) == parse_ms("2026-01-02T01:00:00Z")
    assert next_run_ms(NIGHTLY, "Europe/Berlin", parse_ms("2026-07-01T12:00:00Z")) == parse_ms("2026-07-02T00:00:00Z")
