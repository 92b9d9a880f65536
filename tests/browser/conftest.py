"""Fixtures of the tests in a browser: a real Chromium, pages that may ask nobody but the console, a Waypost with a journey in it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.contracts.test_api import journey, put, send, visit
from tests.support import PATIENCE_SECONDS
from tests.support.running import Waypost, started

expect.set_options(timeout=1000 * PATIENCE_SECONDS)  # milliseconds; how soon pages follow is measured by tests/bench/pages.py
CHROMIUM = "/usr/bin/chromium"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
AXE: dict[str, Any] = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}


@pytest.fixture(scope="package")
def waypost(embedded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waypost]:
    """With the journey `loan`: 40 entered, 17 and 6 went on; l-1 has a profile, and is known as a visitor too."""
    with started(embedded, f"t{uuid.uuid4().hex[:10]}.", tmp_path_factory.mktemp("browser")) as running:
        loan = {**journey("loan", "campaign", "case-study", "request"), "name": "Small business loan"}
        for stage, kpi in zip(loan["stages"], (30, 20, 5), strict=True):
            stage["kpi"] = kpi
        put(running, loan)
        reached = {"campaign": (40, 10), "case-study": (17, 11), "request": (6, 12)}
        for page, (many, hour) in reached.items():
            send(running, "activities", *(visit("loan", f"{k}", page, f"{hour}:{k:02}:00") for k in range(many)))
        groups = [{"contact_id": f"loan-{k}", "groups": ["owner"] if k % 2 else ["owner", "news"], "at": "2026-01-01T00:00:00Z"} for k in range(30)]
        profile = {"name": "Ada Novak", "email": "ada@novak.example", "company": "Novak Joinery"}
        send(running, "contacts", *groups, {"contact_id": "loan-1", "groups": ["owner"], "attributes": profile, "at": "2026-01-02T00:00:00Z"})
        send(running, "merges", {"from": "loan-visitor", "into": "loan-1", "at": "2026-01-03T00:00:00Z", "id": "m-1"})
        running.settled("loan")
        yield running


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield found
        found.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages of a console; every request must go there, and no script may fail."""
    contexts, wrong = [], []

    def opens(url: str, **options: Any) -> Page:
        context = browser.new_context(base_url=url, **({"viewport": {"width": 1280, "height": 800}} | options))
        contexts.append(context)
        page = context.new_page()

        def told(message: ConsoleMessage) -> None:
            # a request that fails is told by the browser itself, and the page says it in its own way
            if message.type == "error" and "Failed to load resource" not in message.text and "htmx:" not in message.text:
                wrong.append(message.text)

        page.on("request", lambda request: None if request.url.startswith(url) else wrong.append(f"asks {request.url}"))
        page.on("console", told)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        return page

    yield opens
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def page(opened: Callable[..., Page], waypost: Waypost) -> Page:
    return opened(waypost.url)


def violations(page: Page) -> list[Any]:
    """What axe-core finds against WCAG 2.2 AA."""
    found = Axe().run(page, options=AXE).response["violations"]
    return [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found]
