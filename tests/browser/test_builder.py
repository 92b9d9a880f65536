"""The builder in a real Chromium: from an empty system to a funnel with data by mouse and keyboard; drafts survive; nobody overwrites anybody."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.contracts.test_api import journey, put, send, visit
from tests.support.running import Waypost, started

from .conftest import violations

pytestmark = [pytest.mark.browser, pytest.mark.embedded]

DAY = "2026-03-02T"


def six_stages(contact: str, reached: int) -> list[dict[str, Any]]:
    """What a contact did that reached so many of the guide's six stages."""
    base = {"contact_id": contact}
    did: list[dict[str, Any]] = [
        {"type": "pagevisit", "page": "/campaign/smb"},
        {"type": "bizformsubmit", "form": "loan-smb"},
        {"type": "emailclick", "url": "https://bank.example/campaign/download-smb-case-study?utm=1", "email": "smb-jumpstart-loan"},
        {"type": "pagevisit", "page": "/campaign/download-smb-case-study"},
        {"type": "sample_file_download", "value": "download-smb-case-study.pdf"},
        {"type": "bizformsubmit", "form": "small-business-loan"},
    ]
    return [{**base, **one, "at": f"{DAY}10:0{k}:00Z"} for k, one in enumerate(did[:reached])]


def add_rule(page: Page, words: str, button: str = "#stage .grp >> text='+ Add rule'") -> None:
    """By the keyboard."""
    page.locator(button).last.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#picker-search")).to_be_focused()
    page.keyboard.type(words)
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_the_six_steps_of_the_guide_from_an_empty_system_to_a_funnel(
    embedded: str, tmp_path: Path, opened: Callable[..., Page]
) -> None:
    with started(embedded, f"t{uuid.uuid4().hex[:10]}.", tmp_path) as waypost:
        for k, reached in enumerate((1, 1, 2, 3, 3, 4, 5, 6, 6)):
            send(waypost, "activities", *six_stages(f"c-{k}", reached))
        page = opened(waypost.url)
        # 1: open the application; there is nothing yet
        page.goto("/")
        expect(page.get_by_text("No journeys yet")).to_be_visible()
        # 2: a new journey, with a name
        page.locator("#none").get_by_role("link", name="New journey").click()
        page.locator("#at-name").fill("Small business loan")
        expect(page.locator("#at-id")).to_have_value("small-business-loan")
        # 3 and 4: its stages, each with a target, and when a contact reaches it
        rules: list[tuple[str, str, str, dict[str, str]]] = [
            ("Visited campaign page", "5", "visited page", {"page": "/campaign/smb"}),
            ("Requested case study", "4", "form", {"form": "loan-smb"}),
            ("Clicked link in case study email", "3", "clicked", {"url": "download-smb-case-study", "email": "smb-jumpstart-loan"}),
            ("Visited download page", "2", "visited page", {"page": "/campaign/download-smb-case-study"}),
            ("Downloaded the case study", "2", "performed", {"activity": "sample_file_download", "value": "download-smb-case-study"}),
            ("Requested small business loan", "2", "form", {"form": "small-business-loan"}),
        ]
        for k, (name, kpi, words, fields) in enumerate(rules):
            if k:
                page.get_by_role("button", name="+ Stage").click()
            stage = page.locator(f"#at-stages-{k}-name")
            expect(stage).to_be_visible()
            stage.fill(name)
            page.locator(f"#at-stages-{k}-kpi").fill(kpi)
            add_rule(page, words)
            for field, value in fields.items():
                page.locator(f"#at-stages-{k}-condition-any-0-{field}").fill(value)
        expect(page.locator("#sentence")).to_contain_text('submitted form "small-business-loan"')
        expect(page.locator("#cost")).to_contain_text("6 rules are new, so saving starts a recalculation")
        # 5: save
        page.keyboard.press("Control+s")
        # 6: the funnel, with what happened before
        expect(page).to_have_url(re.compile("/journeys/small-business-loan$"))
        expect(page.locator("#converted-1")).to_have_text("9")
        counts = [page.locator(f"#converted-{k}").inner_text() for k in range(1, 7)]
        assert counts == ["9", "7", "6", "4", "3", "2"]
        expect(page.locator("#stage-6")).to_contain_text("100.0 %")
        page.locator("#dropped-1").click()
        expect(page.locator("#drawer h2")).to_have_text("2 dropped off")
        page.locator("#drawer [data-row]").first.click()
        expect(page.get_by_text("Missing for stage 2, Requested case study")).to_be_visible()
        assert waypost.http.get("/api/journeys/small-business-loan").json()["stages"][4]["kpi"] == 2


def test_values_that_were_seen_are_offered(page: Page, waypost: Waypost) -> None:
    send(waypost, "activities", {"contact_id": "offer", "type": "bizformsubmit", "form": "a-form-that-was-seen", "at": f"{DAY}10:00:00Z"})
    page.goto("/builder")
    page.locator("#at-name").fill("Offers")
    add_rule(page, "form")
    page.locator("#at-stages-0-condition-any-0-form").fill("that-was")
    expect(page.locator("#offers option[value='a-form-that-was-seen']")).to_have_count(1)


def test_mistakes_are_told_at_their_field_and_in_a_summary(page: Page) -> None:
    page.goto("/builder")
    page.locator("#at-name").fill("Mistakes")
    page.locator("#at-stages-0-kpi").fill("many")
    add_rule(page, "visited page")
    page.keyboard.press("Control+s")
    summary = page.locator("#summary")
    expect(summary).to_be_focused()
    expect(summary).to_contain_text("to be mended")
    expect(page.locator("#at-stages-0-kpi")).to_have_attribute("aria-invalid", "true")
    assert not violations(page)
    summary.get_by_role("button", name=re.compile("kpi")).click()
    expect(page.locator("#at-stages-0-kpi")).to_be_focused()


def test_stages_rules_and_groups_move_by_keyboard_and_by_mouse(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("moves", "a", "b", "c"))
    page.goto("/builder?id=moves")
    names = page.locator("#stage-cards .w5")
    expect(names).to_have_text(["a", "b", "c"])
    page.locator("#grip-0").focus()
    page.keyboard.press("Alt+ArrowDown")
    expect(names).to_have_text(["b", "a", "c"])
    expect(page.locator("#said")).to_have_text("Stage 1 moved to 2 of 3")
    expect(page.locator("#grip-1")).to_be_focused()
    page.locator("#grip-2").hover()
    page.mouse.down()
    over = page.locator("#grip-0").bounding_box()
    assert over is not None
    for _ in range(2):  # a hand moves on a little when it is there
        page.mouse.move(over["x"] + 8, over["y"] + 2, steps=12)
        page.mouse.move(over["x"] + 8, over["y"], steps=3)
    page.mouse.up()
    expect(names.first).to_have_text("c")
    page.locator("#stage-0").click()
    page.get_by_role("button", name="+ Add group").click()
    expect(page.locator("#at-stages-0-condition-any-1-rule")).to_be_focused()
    add_rule(page, "member", "#at-stages-0-condition-any-1-rule")
    page.locator("#at-stages-0-condition-any-1-all").click()
    expect(page.locator("#sentence")).to_contain_text("or (became a member)")
    page.locator("#at-stages-0-condition-any-1-all-0-grip").focus()
    page.keyboard.press("Alt+ArrowLeft")
    expect(page.locator("#at-stages-0-condition-any-2")).to_contain_text("Became a member")


def test_nothing_is_done_to_a_stage_where_it_stood_before(page: Page, waypost: Waypost) -> None:
    """Until the page shows what moved, its buttons are those of the places before."""
    put(waypost, journey("quick", "a", "b"))
    page.goto("/builder?id=quick")
    names = page.locator("#stage-cards .w5")
    expect(names).to_have_text(["a", "b"])
    held: list[Route] = []
    page.route("**/builder/show", lambda route: held.append(route))  # noqa: PLW0108
    page.locator("#grip-0").press("Alt+ArrowDown")
    page.get_by_role("button", name="+ Add group").dispatch_event("click")
    page.locator("#grip-0").press("Alt+ArrowDown")
    while not held:
        page.wait_for_timeout(20)
    for route in held:
        route.continue_()
    page.unroute("**/builder/show")
    expect(names).to_have_text(["b", "a"])
    expect(page.locator("#grip-1")).to_be_focused()
    kept = page.evaluate("JSON.parse(localStorage.getItem('waypost-draft:quick')).draft")
    assert [len(stage["condition"]["any"]) for stage in kept["stages"]] == [1, 1]
    page.get_by_role("button", name="+ Add group").click()
    expect(page.locator("#at-stages-1-condition-any-1-rule")).to_be_focused()


def test_a_draft_outlives_its_page_and_is_discarded_or_taken_back(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("draft", "a"))
    waypost.settled("draft")
    page.goto("/builder?id=draft")
    page.locator("#at-stages-0-kpi").fill("12")
    expect(page.locator("#bar")).to_contain_text("KPI of stage 1, a: none → 12")
    page.reload()
    expect(page.locator("#at-stages-0-kpi")).to_have_value("12")
    page.get_by_role("button", name="Discard").click()
    expect(page.locator("#bar")).to_contain_text("No changes")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#at-stages-0-kpi")).to_have_value("12")
    expect(page.locator("#cost")).to_contain_text("without a recalculation")
    page.get_by_role("button", name="Review changes").click()
    expect(page.get_by_role("dialog")).to_contain_text("none → 12")


def test_the_second_of_two_editors_is_told_and_nothing_is_overwritten(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("both", "a"))
    page.goto("/builder?id=both")
    page.locator("#at-stages-0-kpi").fill("5")
    expect(page.locator("#save")).to_be_enabled()
    put(waypost, {**journey("both", "a"), "name": "Theirs"})
    page.get_by_role("button", name="Save as version").click()
    expect(page.locator("#overtaken")).to_contain_text("Version 2 was saved")
    assert waypost.http.get("/api/journeys/both").json()["version"] == 2
    page.locator("#overtaken").get_by_role("button", name="Compare").click()
    expect(page.get_by_role("dialog")).to_contain_text("Renamed from “Theirs”")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Put mine on top").click()
    expect(page).to_have_url(re.compile("/journeys/both$"))
    saved = waypost.http.get("/api/journeys/both").json()
    assert (saved["version"], saved["stages"][0]["kpi"], saved["name"]) == (3, 5, "Journey both")


def test_versions_are_told_compared_and_brought_back(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("past", "a"))
    put(waypost, journey("past", "a", "b"))
    page.goto("/builder?id=past")
    expect(page.locator("#version-2")).to_contain_text("Added stage 2, b")
    page.locator("#version-1").get_by_role("button", name="Compare with draft").click()
    expect(page.get_by_role("dialog")).to_contain_text("Added stage 2, b")
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.locator("#version-1").get_by_role("button", name="Bring back as draft").click()
    expect(page.locator("#bar")).to_contain_text("Removed stage 2, b")
    page.get_by_role("button", name="Save as version 3").click()
    expect(page).to_have_url(re.compile("/journeys/past$"))
    assert len(waypost.http.get("/api/journeys/past").json()["stages"]) == 1


def test_a_file_is_brought_in_as_a_draft(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "brought.json"
    file.write_text(json.dumps(journey("brought", "a", "b")))
    page.goto("/journeys")
    page.locator("#file").set_input_files(file)
    expect(page.locator("#at-id")).to_have_value("brought")
    page.get_by_role("button", name="Save as version 1").click()
    expect(page).to_have_url(re.compile("/journeys/brought$"))
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    page.goto("/journeys")
    page.locator("#file").set_input_files(bad)
    expect(page.locator("#error")).to_contain_text("bad.json")


def test_an_id_that_is_taken_is_told(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("taken", "a"))
    page.goto("/builder?copy=taken")
    page.locator("#at-id").fill("taken")
    expect(page.locator("#summary")).to_contain_text('there is a journey "taken" already')


def test_a_rule_type_that_a_team_adds_has_a_form_by_itself(page: Page, waypost: Waypost) -> None:
    """What the catalogue says is all that the builder knows: every rule of it can be chosen and shows a field for each parameter."""
    rules = waypost.http.get("/api/rules").json()["rules"]
    page.goto("/builder")
    page.locator("#at-name").fill("All rules")
    for k, rule in enumerate(rules):
        add_rule(page, rule["name"])
        for parameter in rule["parameters"]["properties"]:
            expect(page.locator(f"#at-stages-0-condition-any-{k}-{parameter}")).to_be_visible()
    assert len(rules) >= 7


def test_visits_reach_a_stage_that_was_made_here(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("made", "a"))
    page.goto("/builder?id=made")
    page.locator("#add-stage").click()
    page.locator("#at-stages-1-name").fill("Any of many")
    add_rule(page, "visited page")
    page.locator("#at-stages-1-condition-any-0-page-op").select_option("one_of")
    page.locator("textarea#at-stages-1-condition-any-0-page").fill("/made/b\n/made/c")  # a field of one line until the page knows
    expect(page.locator("#sentence")).to_contain_text('one of "/made/b", "/made/c"')
    page.keyboard.press("Control+s")
    expect(page).to_have_url(re.compile("/journeys/made$"))
    send(waypost, "activities", visit("made", "x", "a", "10:00:00"), visit("made", "x", "c", "11:00:00"))
    expect(page.locator("#converted-2")).to_have_text("1")
