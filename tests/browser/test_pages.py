"""The pages in a real Chromium: live while one looks, usable by everybody, asking no foreign host; and their pictures in the docs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.contracts.test_api import journey, put, send, visit
from tests.support.running import Waypost

from .conftest import violations

pytestmark = [pytest.mark.browser, pytest.mark.embedded]

PICTURES = Path(__file__).parents[2] / "docs" / "screenshots"
PATHS = (
    "/journeys", "/journeys?q=nowhere", "/journeys/loan", "/journeys/loan?tab=groups", "/journeys/loan?tab=days", "/journeys/loan?tab=waits",
    "/journeys/loan?list=2.dropped_off", "/journeys/loan/stages/1/contacts", "/journeys/nowhere", "/builder", "/builder?id=loan", "/contacts",
    "/contacts?id=loan-1", "/contacts?id=loan-visitor", "/operations",
)  # fmt: skip


def test_a_number_follows_an_activity_and_focus_stays(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("live", "a", "b"))
    waypost.settled("live")
    page.goto("/journeys/live")
    number = page.locator("#converted-1")
    expect(number).to_have_text("0")
    number.focus()
    send(waypost, "activities", visit("live", "ada", "a", "10:00:00"))
    expect(number).to_have_text("1")
    expect(number).to_be_focused()
    expect(page.locator("#nobody")).to_have_count(0)


def test_a_page_becomes_live_however_late_a_script_comes(page: Page) -> None:
    def late(route: Route) -> None:
        page.wait_for_timeout(500)
        route.continue_()

    page.route("**/hx-sse.min.js", late)
    with page.expect_request("**/journeys/loan/stream?*"):
        page.goto("/journeys/loan")


def test_a_journey_is_found_and_its_lists_are_reached_with_the_keyboard_alone(page: Page) -> None:
    page.goto("/journeys")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("REQUEST")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("q=REQUEST"))
    page.locator("#open-loan").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Small business loan")
    page.wait_for_load_state()  # before its scripts have run, a number leads to a page of its own
    number = page.locator("#converted-2")
    expect(number).to_have_text("17")
    number.focus()
    page.keyboard.press("Enter")
    title = page.locator("#drawer h2")
    expect(title).to_have_text("17 converted")
    expect(title).to_be_focused()
    expect(page).to_have_url(re.compile(r"list=2\.converted"))
    expect(page.locator("#drawer tbody tr")).to_have_count(17)
    page.keyboard.press("Tab")
    page.locator("#drawer [data-row]").first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#drawer [data-row]").nth(1)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#drawer h2")).to_have_count(0)
    expect(number).to_be_focused()
    expect(page).to_have_url(re.compile(r"/journeys/loan$"))


def test_the_drawer_tells_what_came_and_shows_it_when_asked(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("drawn", "a"))
    send(waypost, "activities", *(visit("drawn", f"{k:03}", "a", f"10:{k // 60:02}:{k % 60:02}") for k in range(150)))
    waypost.settled("drawn")
    page.goto("/journeys/drawn?list=1.converted")
    expect(page.locator("#drawer h2")).to_have_text("150 converted")
    rows = page.locator("#drawer [data-row]")
    rows.last.scroll_into_view_if_needed()
    expect(rows).to_have_count(150)  # it goes on as one scrolls
    send(waypost, "activities", visit("drawn", "new", "a", "12:00:00"))
    page.get_by_role("button", name="1 new: show").click()
    expect(page.locator("#drawer h2")).to_have_text("151 converted")


def test_shortcuts_go_to_the_screens_and_can_be_turned_off(page: Page) -> None:
    page.goto("/journeys")
    for key, there in (("o", "/operations"), ("c", "/contacts"), ("j", "/journeys")):
        page.keyboard.press("g")
        page.keyboard.press(key)
        expect(page).to_have_url(re.compile(there + "$"))
        page.wait_for_load_state()
    page.keyboard.press("?")
    page.get_by_label("Single letters do this").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("o")
    expect(page).to_have_url(re.compile("/journeys$"))


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("path", PATHS)
def test_axe_finds_nothing(page: Page, path: str, colours: Any) -> None:
    page.emulate_media(color_scheme=colours)
    page.goto(path)
    if path.startswith("/builder"):
        expect(page.locator("#bar")).to_be_visible()
    assert not violations(page)


def test_pages_fit_a_phone(opened: Callable[..., Page], waypost: Waypost) -> None:
    page = opened(waypost.url, viewport={"width": 390, "height": 844})
    for path in PATHS:
        page.goto(path)
        width = page.evaluate("Math.max(document.documentElement.scrollWidth, document.querySelector('main').scrollWidth)")
        assert width <= 390, f"{path} is {width} wide"


def test_axe_finds_nothing_in_dialogs_and_menus(page: Page) -> None:
    page.goto("/journeys/loan")
    page.get_by_label("More actions").click()
    assert not violations(page)
    page.get_by_role("button", name="Delete…").click()
    assert not violations(page)
    page.keyboard.press("Escape")
    expect(page.get_by_label("More actions")).to_be_focused()
    page.goto("/builder?id=loan")
    page.locator("#at-stages-0-condition-rule").click()
    expect(page.locator("#picker-search")).to_be_focused()
    assert not violations(page)


def test_the_theme_is_chosen_and_kept(page: Page) -> None:
    page.goto("/journeys")
    button = page.get_by_role("button", name="Theme: system")
    button.click()
    page.get_by_role("button", name="Theme: light").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_a_journey_is_duplicated_recalculated_and_deleted(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("gone", "a"))
    waypost.settled("gone")
    page.goto("/journeys")
    page.get_by_label("More actions for Journey gone").click()
    page.locator("#menu-gone").get_by_role("link", name="Duplicate").click()
    expect(page.locator("#at-name")).to_have_value("Journey gone (copy)")
    page.locator("#at-id").fill("gone-copy")
    page.get_by_role("button", name="Save as version 1").click()
    expect(page).to_have_url(re.compile("/journeys/gone-copy$"))
    page.get_by_role("button", name="Recalculate").click()
    expect(page.locator("#said")).to_have_text("Recalculation planned")
    page.get_by_label("More actions").click()
    page.get_by_role("button", name="Delete…").click()
    dialog = page.get_by_role("dialog", name="Delete Journey gone (copy)?")
    dialog.get_by_role("textbox").fill("gone")
    dialog.get_by_role("button", name="Delete").click()
    expect(dialog.get_by_role("alert")).to_contain_text("This is not the id")
    dialog.get_by_role("textbox").fill("gone-copy")
    dialog.get_by_role("button", name="Delete").click()
    expect(page).to_have_url(re.compile("/journeys$"))
    assert waypost.http.get("/api/journeys/gone-copy").status_code == 404
    assert waypost.http.get("/api/journeys/gone").status_code == 200


def test_a_recalculation_is_watched_and_cancelled_where_its_journey_is(
    page: Page, waypost: Waypost, request: pytest.FixtureRequest
) -> None:
    put(waypost, journey("slow", "a"))
    send(waypost, "activities", visit("slow", "x", "a", "10:00:00"))
    waypost.settled("slow")
    page.goto("/journeys/slow")
    id_ = waypost.http.post("/api/recalculations", json={"journeys": ["slow"], "events_per_second": 1}).json()["id"]
    request.addfinalizer(lambda: waypost.http.post(f"/api/recalculations/{id_}/cancel"))  # others wait for it
    expect(page.locator("#calculating")).to_contain_text("These are the numbers from before it")
    expect(page.locator("#converted-1")).to_have_text("1")
    page.locator("#calculating button").click()
    page.wait_for_timeout(2500)  # what comes meanwhile does not take the question back
    page.get_by_role("button", name="The results stay as they are. Cancel it?").click()
    expect(page.locator("#calculating")).to_have_count(0)


def test_an_edit_whose_calculation_was_cancelled_says_so_and_is_run_again(page: Page, waypost: Waypost, request: pytest.FixtureRequest) -> None:
    put(waypost, journey("edited", "a"))
    send(waypost, "activities", visit("edited", "x", "a", "10:00:00"))
    waypost.settled("edited")
    slow = waypost.http.post("/api/recalculations", json={"journeys": ["edited"], "events_per_second": 1}).json()["id"]
    request.addfinalizer(lambda: waypost.http.post(f"/api/recalculations/{slow}/cancel"))  # others wait for it
    put(waypost, journey("edited", "a", "b"))

    def waiting() -> list[str]:
        found = waypost.http.get("/api/recalculations").json()["recalculations"]
        return [one["id"] for one in found if one["cause"] == "edit" and one["state"] == "planned" and one["journeys"] == ["edited"]]

    waypost.until(lambda: waiting() != [], "for the recalculation of what is new")
    for id_ in (*waiting(), slow):
        waypost.http.post(f"/api/recalculations/{id_}/cancel").raise_for_status()
    page.goto("/journeys/edited")
    expect(page.locator("#given-up")).to_contain_text("The calculation of version 2 was cancelled. These are the numbers of version 1.")
    expect(page.locator("#freshness")).to_contain_text("Not calculated")
    expect(page.locator("#calculating")).to_have_count(0)
    page.goto("/journeys?q=edited")
    expect(page.locator("#line-edited")).to_contain_text("Cancelled")
    page.goto("/journeys/edited")
    page.get_by_role("button", name="Run again").click()
    expect(page.locator("#stages tbody tr")).to_have_count(2)
    expect(page.locator("#given-up")).to_have_count(0)
    expect(page.locator("#freshness")).to_contain_text("Live")


def test_journeys_are_sorted_by_their_columns(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("aaa", "a"))
    waypost.settled("aaa")
    page.goto("/journeys")
    first = page.locator("tbody tr").first
    expect(first).to_contain_text("Journey aaa")
    page.locator("#sort-entered").click()
    expect(page.locator("[aria-sort=descending]")).to_contain_text("Entered")
    entered = [int(text.replace(",", "")) for text in page.locator("tbody tr td:nth-child(3) a").all_inner_texts()]
    assert entered == sorted(entered, reverse=True)
    assert len(entered) > 1


def test_states_of_no_journey_no_data_and_no_such_thing(page: Page) -> None:
    page.goto("/journeys?q=no-such")
    expect(page.get_by_text("No journey has “no-such”")).to_be_visible()
    page.goto("/journeys/nowhere")
    expect(page.get_by_role("alert").filter(has_text="there is no journey")).to_be_visible()
    page.goto("/contacts?id=nobody-at-all")
    expect(page.get_by_role("alert").filter(has_text="nothing is known")).to_be_visible()


@pytest.mark.parametrize(
    ("picture", "path", "dark"),
    [
        ("journeys", "/journeys", False), ("journey", "/journeys/loan?list=2.dropped_off", False), ("journey-dark", "/journeys/loan", True),
        ("groups", "/journeys/loan?tab=groups", False), ("waits", "/journeys/loan?tab=waits", False), ("builder", "/builder?id=loan", False),
        ("contact", "/contacts?id=loan-1", False), ("operations", "/operations", False),
    ],
)  # fmt: skip
def test_pictures_for_the_docs(opened: Callable[..., Page], waypost: Waypost, picture: str, path: str, dark: bool) -> None:
    """`WAYPOST_TEST_PICTURES=1` writes them to docs/screenshots; without it, they are only taken."""
    page = opened(waypost.url, viewport={"width": 1440, "height": 900}, color_scheme="dark" if dark else "light")
    page.goto(path)
    expect(page.locator("#behind")).to_contain_text("behind")
    if picture == "builder":
        expect(page.locator("#bar")).to_be_visible()
    taken = page.screenshot(path=PICTURES / f"{picture}.png" if os.environ.get("WAYPOST_TEST_PICTURES") else None)
    assert len(taken) > 20_000
    assert (PICTURES / f"{picture}.png").exists(), "WAYPOST_TEST_PICTURES=1 makes it"
