"""Case of the console in a browser: how soon pages are there with a million contacts behind them, and what fifty open pages cost."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import httpx
import psutil
from confluent_kafka import Producer
from playwright.sync_api import sync_playwright

from streams.brokers import free_port
from streams.guarded import GuardedProcess
from streams.settings import librdkafka_config
from tests.bench import cases, data
from tests.bench.cases import Bench
from tests.bench.ground import ROOT, Ground, WrongAnswer
from tests.bench.report import Row
from tests.browser.conftest import CHROMIUM, FLAGS
from tests.support import PATIENCE_SECONDS

TEN = "ten"
OPEN_PAGES, UPDATES_A_SECOND, SECONDS = 50, 10, 20.0
TRIES = 7


@contextmanager
def console(ground: Ground, worker_url: str) -> Iterator[tuple[str, psutil.Process]]:
    """`waypost console` beside the worker: its address and its process."""
    port = free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WAYPOST_")}
    here = ground.settings.replaced("bench", console_port=port, workers=(worker_url,), live_streams_per_session=1000)
    environ = {**clean, **here.environment()}
    process = GuardedProcess([sys.executable, "-m", "console", "console"], log=ground.directory / "console.log", cwd=ROOT, env=environ)
    url = f"http://127.0.0.1:{port}"
    try:
        ground.until(lambda: _ready(url), "the console answers")
        yield url, psutil.Process(process.pid)
    finally:
        process.stop(20.0)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/journeys/{TEN}/results", timeout=5).json().get("status") == "live"
    except (httpx.TransportError, ValueError):
        return False


def pages(bench: Bench) -> list[Row]:
    """Pages in Chromium over a million contacts, the first page of a list, and fifty streams of a journey that changes ten times a second."""
    ground = bench.ground("memory")
    if not ground.played:
        cases.memory(bench)
    contacts = len(ground.expected.hits)
    stages = [{**stage, "name": f"{k} {stage['name']}"} for k, stage in enumerate(data.journey()["stages"] * 2, 1)]
    producer = Producer(librdkafka_config(ground.settings))
    ten = {**data.journey(), "id": TEN, "stages": stages, "saved_at": 0}
    producer.produce(ground.topic("journeys"), json.dumps(ten).encode(), TEN, partition=0)
    producer.flush(30)
    with ground.worker() as worker:
        ground.until(lambda: worker.built(2, ground.settings.partitions), "both journeys are complete")
        with console(ground, f"http://127.0.0.1:{worker.settings.worker_port}") as (url, process):
            rows = [*_timed(bench, url, contacts), _followed(bench, ground, url)]
            rows += [asyncio.run(_open(bench, ground, url, process, distinct)) for distinct in (False, True)]
    return rows


def _timed(bench: Bench, url: str, contacts: int) -> list[Row]:
    said = f"{contacts:,} contacts; the median of {TRIES}, Chromium on the same cores"
    listed = f"/api/journeys/{TEN}/stages/1/contacts"
    looks = (
        ("the first page", "/journeys", f"#open-{TEN}", 1000), ("a journey of 10 stages", f"/journeys/{TEN}", "#converted-10", 1000),
        ("a journey with its list", f"/journeys/{TEN}?list=1.converted", "#drawer [data-row]", 1000),
    )  # fmt: skip
    rows = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        page = browser.new_page()
        for what, path, there, most in looks:
            took = []
            for k in range(TRIES):
                bench.progress(f"pages: {what}", k, TRIES)
                began = time.monotonic()
                page.goto(url + path, wait_until="commit")
                page.locator(there).first.wait_for()
                took.append(time.monotonic() - began)
                page.goto("about:blank")
            rows.append(Row("pages", f"{what} is usable", sorted(took)[TRIES // 2] * 1000, "ms", said, at_most=most))
        browser.close()
    for order in ("newest", "oldest"):
        took = []
        for _ in range(TRIES):
            began = time.monotonic()
            answer = httpx.get(url + listed, params={"limit": 100, "order": order}, timeout=30).json()
            took.append(time.monotonic() - began)
            if len(answer["contacts"]) != min(100, answer["total"]):
                raise WrongAnswer(f"pages: a list of {answer['total']} shows {len(answer['contacts'])}")
        what = f"the first page of a list of {answer['total']:,}, {order} first, is answered"
        rows.append(Row("pages", what, sorted(took)[TRIES // 2] * 1000, "ms", said, at_most=300))
    return rows


def _followed(bench: Bench, ground: Ground, url: str) -> Row:
    """From an activity on its topic to the number on an open page."""
    producer = Producer(librdkafka_config(ground.settings))
    took = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        page = browser.new_page()
        page.goto(f"{url}/journeys/{TEN}")
        number = page.locator("#converted-1")
        for k in range(TRIES):
            bench.progress("pages: a number follows", k, TRIES)
            page.wait_for_timeout(700)
            before = number.inner_text()
            value = {"id": f"follow-{k}", "contact_id": f"follow-{k}", "at": time.time_ns() // 10**6, **_first_stage()}
            began = time.monotonic()
            producer.produce(ground.topic("activities"), json.dumps(value).encode(), f"follow-{k}")
            producer.flush(10)
            while number.inner_text() == before:
                if time.monotonic() - began > PATIENCE_SECONDS:
                    raise WrongAnswer("pages: an activity does not show on an open page")
                time.sleep(0.01)
            took.append(time.monotonic() - began)
        browser.close()
    return Row("pages", "an activity shows on an open page", max(took) * 1000, "ms", f"the slowest of {TRIES}", at_most=2000)


async def _open(bench: Bench, ground: Ground, url: str, process: psutil.Process, distinct: bool) -> Row:
    """Cores that the console takes with fifty pages open of a journey that moves ten times a second: one page, or one of each of fifty groups."""
    producer = Producer(librdkafka_config(ground.settings))
    heard = [0] * OPEN_PAGES
    seconds = max(5.0, SECONDS * min(1.0, bench.scale * 2))

    async def listen(session: aiohttp.ClientSession, k: int) -> None:
        async with session.get(f"{url}/journeys/{TEN}/stream", params={"group": f"group-{k}"} if distinct else {}) as answer:
            async for line in answer.content:
                heard[k] += line == b"\n"

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0), read_bufsize=1 << 20) as session:
        listeners = [asyncio.create_task(listen(session, k)) for k in range(OPEN_PAGES)]
        await asyncio.sleep(2)
        before, began, first = sum(process.cpu_times()[:2]), time.monotonic(), list(heard)
        moves = data.activities("dense", int(seconds * UPDATES_A_SECOND), 10**6)
        for k, made in enumerate(moves):
            bench.progress("pages: fifty are open", k, seconds * UPDATES_A_SECOND)
            contact = f"open-{distinct}-{k}"
            value = json.dumps({**json.loads(made.value), "id": contact, "contact_id": contact, **_first_stage()}).encode()
            producer.produce(ground.topic("activities"), value, contact)
            producer.poll(0)
            await asyncio.sleep(max(0.0, began + (k + 1) / UPDATES_A_SECOND - time.monotonic()))
        took = time.monotonic() - began
        cores = (sum(process.cpu_times()[:2]) - before) / took
        updates = [now - then for now, then in zip(heard, first, strict=True)]
        for listener in listeners:
            listener.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)
    producer.flush(30)
    if not min(updates):
        raise WrongAnswer(f"pages: a page heard nothing in {seconds:.0f} s")
    said = f"{UPDATES_A_SECOND} activities a second that change it; each page was sent {min(updates) / took:.1f} updates a second (at most 4)"
    return Row("pages", f"the console with {OPEN_PAGES} {'different ' if distinct else ''}pages open", cores, "cores", said, at_most=1.0)


def _first_stage() -> dict[str, str]:
    """What makes an activity of the bench meet the first stage."""
    kind, page, url, _ = data.FORMS[0]
    return {"type": kind, "page": page, "url": url}


CASES = {"pages": pages}
