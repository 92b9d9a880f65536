"""Contact and operations pages in a real Chromium; a console that goes away and comes back; texts that would be markup."""

from __future__ import annotations

import json
import re
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import Producer
from playwright.sync_api import Page, expect

from schemas.journey import parse_journey
from streams.settings import librdkafka_config
from tests.contracts.test_api import journey, put, send, visit
from tests.contracts.test_pages import HOSTILE
from tests.support import PATIENCE_SECONDS
from tests.support.recalculating import plan_differing
from tests.support.running import Waypost, started

pytestmark = [pytest.mark.browser, pytest.mark.embedded]


def reject(waypost: Waypost, *values: bytes) -> None:
    """Sends activities that workers will reject, past the API."""

    producer = Producer(librdkafka_config(waypost.settings))
    for value in values:
        producer.produce(waypost.settings.topic_prefix + "activities", value, b"k")
    assert producer.flush(PATIENCE_SECONDS) == 0


def test_a_visitor_opens_the_person_that_it_belongs_to(page: Page) -> None:
    page.goto("/contacts")
    page.keyboard.press("/")
    page.keyboard.type("loan-visitor")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Ada Novak")
    expect(page.get_by_text("loan-visitor was merged")).to_be_visible()


def test_what_is_missing_is_told_with_what_does_not_count_and_why(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("why", "a", "b"))
    send(waypost, "activities", visit("why", "x", "b", "09:00:00"), visit("why", "x", "a", "10:00:00"))
    waypost.settled("why")
    page.goto("/contacts?id=why-x")
    missing = page.locator("#missing-why")
    expect(missing).to_contain_text("There is one at")
    expect(missing).to_contain_text("it came before stage 1 was reached")
    expect(page.locator("#timeline tbody tr")).to_have_count(2)
    expect(page.locator("#timeline tbody tr").last).to_contain_text("None: it came before its turn")
    send(waypost, "activities", visit("why", "x", "b", "11:00:00"))
    expect(page.locator("#reached-why-2")).to_contain_text("11:00:00")  # it fills in while one looks


def test_a_contact_is_erased_when_its_id_is_typed(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("erased", "a"))
    odd = "erased/../?x=1&y=é <b>"
    send(waypost, "activities", {**visit("erased", "", "a", "10:00:00"), "contact_id": odd})
    waypost.settled("erased")
    page.goto("/journeys/erased?list=1.converted")
    page.locator("#drawer [data-row]").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(odd)
    page.get_by_role("button", name="Erase contact…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("textbox").fill("another")
    dialog.get_by_role("button", name="Erase").click()
    expect(dialog.get_by_role("alert")).to_contain_text("not the id")
    assert waypost.settled("erased")["stages"][0]["converted"] == 1
    dialog.get_by_role("textbox").fill(odd)
    dialog.get_by_role("button", name="Erase").click()
    expect(page.get_by_text("This contact was erased on")).to_be_visible()
    assert waypost.settled("erased")["stages"][0]["converted"] == 0


def test_rejected_records_are_mended_and_sent_again(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("mends", "a"))
    waypost.settled("mends")
    fact = {**visit("mends", "x", "a", "10:00:00"), "id": "m1"}
    reject(waypost, json.dumps({**fact, "at": "soon"}).encode(), b"not json at all, mends")
    page.goto("/operations")
    expect(page.locator("#workers tbody tr")).to_have_count(1)
    page.locator("#error-text").fill("soon")
    page.get_by_role("button", name="Filter").click()
    row = page.locator("#rejected tbody tr")
    expect(row).to_have_count(1)
    row.get_by_role("button").click()
    field = page.locator("#bytes")
    expect(field).to_be_focused()
    assert '"at": "soon"' in field.input_value()
    field.fill(json.dumps({**fact, "at": "later"}))
    page.get_by_role("button", name="Check and resend").click()
    expect(page.locator("#mend-error")).to_contain_text("later")  # judged as the worker does, and not sent
    field.fill(json.dumps(fact))
    page.get_by_role("button", name="Check and resend").click()
    expect(page.locator("#mend-said")).to_contain_text("is on its topic again")
    expect(row).to_contain_text("Sent again")
    assert waypost.settled("mends")["stages"][0]["converted"] == 1
    page.goto("/operations?error=mends")
    page.goto("/operations")
    page.get_by_label("Select all").check()
    expect(page.locator("#resend")).to_be_enabled()


def test_operations_shows_recalculations_throttled_and_cancels_them(page: Page, waypost: Waypost) -> None:
    page.goto("/operations")
    page.locator("#throttle").fill("1")
    page.get_by_role("button", name="Recalculate all…").click()
    page.get_by_role("button", name="Results stay live. Recalculate all?").click()
    row = page.locator("#recalculations tbody tr").filter(has_text="at most 1 a second").filter(has_not_text="Cancelled").first
    try:
        expect(row).to_contain_text("Filling")
        id_ = row.locator("th").inner_text()
        row.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="The results stay. Cancel it?").click()
        expect(page.locator(f"#rec-{id_}")).to_contain_text("Cancelled")
    finally:
        for one in waypost.http.get("/api/recalculations").json()["recalculations"]:
            if one["throttle"] is not None:  # others wait for it
                waypost.http.post(f"/api/recalculations/{one['id']}/cancel")


def test_what_differs_is_shown_with_both_numbers_and_confirmed_or_cancelled(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("differs", "a"))
    send(waypost, "activities", visit("differs", "x", "a", "10:00:00"))
    waypost.settled("differs")
    made = parse_journey(journey("differs", "a"))
    page.goto("/operations")
    for action, question, state, counted in (
        ("Cancel", "The results stay. Cancel it?", "Cancelled", 1),
        ("Confirm", "The rebuilt results become visible. Confirm?", "Live", 201),
    ):
        id_ = f"r-{action.lower()}"
        plan_differing(waypost.settings, waypost.health()["workers"][0]["url"], made, id_, 200)
        row = page.locator(f"#rec-{id_}")
        expect(row.locator(".tag")).to_have_text("Waits for a confirmation")
        expect(page.locator(f"#differences-{id_} tbody tr").first).to_contain_text(re.compile(r"differs\s*1\s*1\s*201"))
        row.get_by_role("button", name=action).click()
        page.get_by_role("button", name=question).click()
        expect(row.locator(".tag")).to_have_text(state)
        assert waypost.settled("differs")["stages"][0]["converted"] == counted


def test_the_console_restarts_under_an_open_page(embedded: str, tmp_path: Path, opened: Callable[..., Page]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    prefix = f"t{uuid.uuid4().hex[:10]}."
    first = started(embedded, prefix, tmp_path / "first", console_port=port)
    with first:
        put(first, journey("again", "a", "b"))
        send(first, "activities", *(visit("again", str(k), "a", "10:00:00") for k in range(3)))
        first.settled("again")
        page = opened(first.url)
        page.goto("/journeys/again?list=1.converted")
        page.locator("#drawer [data-row]").first.focus()
        builder = page.context.new_page()
        builder.goto("/builder?id=again")
        builder.locator("#at-stages-0-kpi").fill("7")
        expect(builder.locator("#bar")).to_contain_text("none → 7")
    expect(page.get_by_text("Connection lost")).to_be_visible()
    expect(page.locator("#converted-1")).to_have_text("3")
    builder.locator("#at-stages-0-kpi").fill("8")
    expect(builder.get_by_text("Connection lost. Your draft is kept")).to_be_visible()
    with started(embedded, prefix, tmp_path / "second", console_port=port) as second:
        expect(page.get_by_text("Connection lost")).to_be_hidden()
        expect(page.locator("#list-title")).to_have_text("3 converted")
        expect(page.locator("#drawer [data-row]").first).to_be_focused()
        send(second, "activities", visit("again", "new", "a", "11:00:00"))
        expect(page.locator("#converted-1")).to_have_text("4")
        expect(builder.locator("#bar")).to_contain_text("none → 8")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup_or_script(page: Page, waypost: Waypost, text: str) -> None:
    """Through every field that people fill: names of journeys and stages, rules, ids, groups, profiles, values seen, rejected records."""
    name = f"x{uuid.uuid4().hex[:8]}"
    ran: list[str] = []
    page.on("dialog", lambda dialog: ran.append(dialog.message) or dialog.dismiss())  # type: ignore[func-returns-value]
    contact = f"{name}{text}"
    hostile: dict[str, Any] = {**journey(name, "a", "b"), "name": f"{name}{text}"}
    for k, stage in enumerate(hostile["stages"]):
        stage["name"] = f"{text}{k}"
        stage["condition"]["any"].append({"rule": "visited_page", "page": text})
    assert put(waypost, hostile).status_code == 201
    put(waypost, {**hostile, "name": f"{name}{text}!"})
    profile = {"contact_id": contact, "groups": [text], "attributes": {"name": text, text: text}, "at": "2026-01-01T00:00:00Z"}
    send(waypost, "contacts", profile)
    send(waypost, "merges", {"from": f"v{contact}", "into": contact, "at": "2026-01-01T00:00:00Z", "id": text})
    send(waypost, "activities", {**visit(name, "", "a", "10:00:00"), "contact_id": contact}, {**visit(name, "y", "z", "10:00:00"), "page": text})
    reject(waypost, json.dumps({"contact_id": text, "type": "pagevisit", "at": text}).encode(), text.encode())
    waypost.settled(name)
    paths = ("", "?tab=groups", "?tab=days", "?tab=waits", "?list=1.converted")
    for path in (*(f"/journeys/{name}{query}" for query in paths), f"/builder?id={name}", f"/builder?copy={name}", "/journeys", "/operations"):
        page.goto(path)
        expect(page.locator("h1")).to_be_visible()
    page.goto(f"/journeys/{name}?list=1.converted")
    page.locator("#drawer [data-row]").filter(has_text=text).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(text)
    page.goto(f"/builder?id={name}")
    page.locator("#at-stages-0-condition-any-1-page").fill(text[:4])
    page.locator("#at-name").fill(text)
    expect(page.locator("#bar")).to_contain_text("unsaved")
    assert page.evaluate("document.querySelectorAll('img,iframe,body svg[onload],[onerror],[onmouseover]').length") == 0
    assert ran == []


def test_states_of_calculating_for_the_first_time_and_of_an_edit(page: Page, waypost: Waypost) -> None:
    put(waypost, journey("held", "a"))
    send(waypost, "activities", *(visit("held", str(k), "a", "10:00:00") for k in range(3)))
    waypost.settled("held")
    slow = waypost.http.post("/api/recalculations", json={"journeys": ["held"], "events_per_second": 1}).json()["id"]
    try:
        waypost.until(lambda: waypost.http.get(f"/api/recalculations/{slow}").json()["state"] == "filling", "for one that others wait for")
        put(waypost, journey("waits", "a"))
        page.goto("/journeys/waits")
        expect(page.locator("#calculating")).to_contain_text("for the first time")
        expect(page.locator("#calculating")).to_contain_text("It waits for another recalculation")
        expect(page.locator("#stage-1")).to_contain_text("–")
        expect(page.locator("#pale-1")).to_have_count(1)
        put(waypost, journey("held", "a", "new"))
        page.goto("/journeys/held")
        expect(page.locator("#calculating")).to_contain_text("Version 2 is being calculated")
        expect(page.locator("#calculating")).to_contain_text("These are the numbers of version 1")
        expect(page.locator("#converted-1")).to_have_text("3")
        expect(page.locator("#stages tbody tr")).to_have_count(1)
    finally:
        waypost.http.post(f"/api/recalculations/{slow}/cancel")
    expect(page.locator("#stages tbody tr")).to_have_count(2)  # the new version, as a whole
    expect(page.locator("#calculating")).to_have_count(0)


def test_partitions_that_do_not_answer_leave_the_last_complete_numbers(embedded: str, tmp_path: Path, opened: Callable[..., Page]) -> None:
    with started(embedded, f"t{uuid.uuid4().hex[:10]}.", tmp_path) as own:
        put(own, journey("whole", "a"))
        send(own, "activities", *(visit("whole", str(k), "a", "10:00:00") for k in range(3)))
        own.settled("whole")
        page = opened(own.url)
        page.goto("/journeys/whole")
        expect(page.locator("#converted-1")).to_have_text("3")
        (worker,) = [child for child in psutil.Process(own.process.pid).children() if "worker" in child.cmdline()]
        worker.suspend()
        try:
            expect(page.locator("#lost")).to_contain_text(re.compile("no worker answers|Connection lost"))
            expect(page.locator("#converted-1")).to_have_text("3")
        finally:
            worker.resume()
        expect(page.locator("#lost")).to_be_hidden()
