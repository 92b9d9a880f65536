"""The pages in a real Chromium: live while one looks, whole again after the console was away, usable by everybody, asking no foreign host."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.contracts.test_api import journey, put, send, visit
from tests.support.running import Waypost, started

pytestmark = [pytest.mark.browser, pytest.mark.embedded]

CHROMIUM = "/usr/bin/chromium"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
AXE: dict[str, Any] = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}
LIVE_MS = 2000


@pytest.fixture(scope="module")
def waypost(embedded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waypost]:
    with started(embedded, f"t{uuid.uuid4().hex[:10]}.", tmp_path_factory.mktemp("browser")) as running:
        put(running, {**journey("loan", "campaign", "case-study", "request"), "name": "Small business loan"})
        reached = {"campaign": (40, 10), "case-study": (17, 11), "request": (6, 12)}
        send(running, "activities", *(visit("loan", f"{k}", p, f"{hour}:{k:02}:00") for p, (many, hour) in reached.items() for k in range(many)))
        running.settled("loan")
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, waypost: Waypost) -> Iterator[Page]:
    """A page whose every request must go to the console."""
    context = browser.new_context(base_url=waypost.url, viewport={"width": 1280, "height": 800})
    found = context.new_page()
    foreign: list[str] = []
    found.on("request", lambda request: foreign.append(request.url) if not request.url.startswith(waypost.url) else None)
    yield found
    context.close()
    assert not foreign


def test_a_number_follows_an_activity_within_two_seconds_and_focus_stays(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("live", "a", "b"))
    waypost.settled("live")
    page.goto("/journeys/live")
    number = page.locator("#converted-1")
    expect(number).to_have_text("0")
    number.focus()
    send(waypost, "activities", visit("live", "ada", "a", "10:00:00"))
    expect(number).to_have_text("1", timeout=LIVE_MS)
    expect(number).to_be_focused()


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
    page.get_by_role("link", name="17", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("17 contacts reached the stage: case-study")
    expect(page.locator("#contacts tbody tr")).to_have_count(17)


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("path", ["/journeys", "/journeys?q=nowhere", "/journeys/loan", "/journeys/loan/stages/1/contacts", "/journeys/nowhere"])
def test_axe_finds_nothing(page: Page, path: str, colours: Any) -> None:
    page.emulate_media(color_scheme=colours)
    page.goto(path)
    violations = Axe().run(page, options=AXE).response["violations"]
    assert not violations, [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in violations]


def test_the_theme_is_chosen_and_kept(page: Page) -> None:
    page.goto("/journeys")
    button = page.get_by_role("button", name="Theme: system")
    button.click()
    page.get_by_role("button", name="Theme: light").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_a_page_says_that_the_console_is_away_keeps_its_numbers_and_goes_on(page: Page) -> None:
    page.goto("/journeys/loan")
    expect(page.get_by_text("Connection lost")).to_be_hidden()
    page.route("**/journeys/loan", lambda route: route.abort())
    expect(page.get_by_text("Connection lost")).to_be_visible(timeout=6000)
    expect(page.locator("#converted-1")).to_have_text("40")
    page.unroute("**/journeys/loan")
    expect(page.get_by_text("Connection lost")).to_be_hidden(timeout=3000)


def test_pages_are_there_within_a_second(page: Page) -> None:
    page.goto("/journeys")  # what is read once has been read
    for path, id_ in (("/journeys", "#open-loan"), ("/journeys/loan", "#converted-3")):
        began = time.monotonic()
        page.goto(path, wait_until="commit")
        expect(page.locator(id_)).to_be_visible()
        assert time.monotonic() - began < 1.0
