"""Demo: plays the bundled shop data through a running Waypost and shows what comes out. Every number on the screen was asked of the API."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka.admin import AdminClient
from rich.console import Console, Group
from rich.text import Text

from schemas.hashing import h8
from streams import topics
from streams.brokers import BrokerError
from streams.settings import Settings, librdkafka_config

from . import figures
from .cli_send import bar
from .client import Client, segment
from .facts import KINDS
from .options import Failed
from .sending import Sender
from .server import CannotStart
from .shop import JOURNEY, Shop, shop
from .supervisor import Stack, until_told

CAUGHT_UP_SECONDS = 120.0
TRIED_CONTACTS = 50
PREFIX = "waypost-demo-"


class Ended(Exception):
    """Told to end while playing."""


def run_demo(settings: Settings, screen: Console, exit_after: bool) -> str | None:
    """`waypost demo`. Returns None, or the sentence that says why it did not work."""
    with contextlib.ExitStack() as cleanup:
        if settings.origin_of("data_dir") == "default":
            directory = cleanup.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True))
            settings = settings.replaced("demo", data_dir=Path(directory))
        if settings.broker and settings.origin_of("topic_prefix") == "default":  # somebody's Kafka: keep to ourselves, and leave nothing
            name = f"{PREFIX}{datetime.now(UTC):%Y%m%d-%H%M%S}"
            settings = settings.replaced("demo", topic_prefix=f"{name}.", group=name)
            cleanup.callback(_delete_topics, settings)
        try:
            return asyncio.run(_demo(settings, screen, exit_after))
        except (CannotStart, BrokerError, topics.TopicsError, Failed) as error:
            return str(error)


async def _demo(settings: Settings, screen: Console, exit_after: bool) -> str | None:
    with screen.status("starting") as status:
        stack = Stack(settings, lambda text: status.update(text + " …"), any_port=True)
        await stack.__aenter__()
    try:
        ended = threading.Event()
        told = asyncio.create_task(until_told(stack))
        playing = asyncio.create_task(asyncio.to_thread(Play(stack.url, stack.settings, screen, ended).run))
        done, _ = await asyncio.wait({told, playing}, return_when=asyncio.FIRST_COMPLETED)
        if told in done:
            ended.set()
            with contextlib.suppress(Ended):
                await playing
            return told.result()
        playing.result()
        if exit_after:
            told.cancel()
            return None
        _goodbye(stack, screen)
        return await told
    finally:
        await stack.__aexit__()


def _goodbye(stack: Stack, screen: Console) -> None:
    where = f" --topic-prefix {stack.settings.topic_prefix}" if stack.settings.topic_prefix != "waypost." else ""
    lines = (
        "It stays up until you press Ctrl-C. Have a look:",
        f"  curl {stack.url}/api/journeys/shop/results",
        f"  waypost journey contacts shop --stage 5 --api {stack.url}",
        f"  waypost journey results shop --group organic --api {stack.url}",
        f"  waypost check --broker {stack.settings.bootstrap}{where} --api {stack.url}",
    )
    for line in lines:
        screen.print(line, soft_wrap=True)


class Play:
    """Plays the data, in a thread of its own; `ended` makes it raise `Ended` at the next step."""

    def __init__(self, url: str, settings: Settings, screen: Console, ended: threading.Event) -> None:
        self._api = Client(url)
        self._settings = settings
        self._screen = screen
        self._ended = ended

    def run(self) -> None:
        say = self._screen.print
        data = shop()
        self._api.call("PUT", f"/api/journeys/{JOURNEY['id']}", json=JOURNEY)
        self._caught_up()
        self._send("activities", data.activities)
        before = self._caught_up()
        say(figures.funnel(before, title="Every session is a visitor of its own"))
        say(figures.status(before), "\n", markup=False, soft_wrap=True)
        self._send("merges", data.merges)
        self._send("contacts", data.contacts)
        after = self._caught_up()
        say(figures.funnel(after, title="Every session was merged into its user when it ended"))
        say(figures.status(after), "\n", markup=False, soft_wrap=True)
        first, second = before["stages"][0]["converted"], after["stages"][0]["converted"]
        say(f"{figures.number(first)} visitors in stage 1 are {figures.number(second)} people.\n", soft_wrap=True)
        say(self._one_contact(data))
        say(f"\nThe API answers at {self._api.url}/api, its description is {self._api.url}/api/openapi.json", soft_wrap=True)

    def _send(self, kind: str, facts: list[bytes]) -> None:
        sender = Sender(self._settings, KINDS[kind], self._settings.partitions)
        with bar(counted=True) as progress:
            task = progress.add_task(f"playing {kind}", total=len(facts))
            for number, fact in enumerate(facts, 1):
                if self._ended.is_set():
                    raise Ended
                sender.line(number, fact)
                progress.advance(task)
            sender.finish(lambda left: progress.update(task, description=f"waiting for the broker, {left:,} on their way"))
        if sender.bad:
            raise Failed(f"{len(sender.bad)} {kind} were refused, the first because: {sender.bad[0].error.message}")

    def _caught_up(self) -> dict[str, Any]:
        """The results, once they reflect everything sent."""
        until = time.monotonic() + CAUGHT_UP_SECONDS
        with self._screen.status("waiting until the results have everything …"):
            while time.monotonic() < until:
                if self._ended.is_set():
                    raise Ended
                found: dict[str, Any] = self._api.call("GET", f"/api/journeys/{JOURNEY['id']}/results")
                if found["lag"] == 0 and found["status"] == "live":
                    return found
                time.sleep(0.05)
        raise Failed(f"the results were still {found['lag']} records behind after {CAUGHT_UP_SECONDS:g} s")

    def _one_contact(self, data: Shop) -> Group:
        """What one buyer did, one whose stages were reached in several sessions if there is one."""
        of_hash = {h8(id_).hex(): id_ for id_ in data.told}
        path = f"/api/journeys/{JOURNEY['id']}/stages/{len(JOURNEY['stages'])}/contacts"
        best, sessions = None, 0
        for row in self._api.call("GET", path, query={"limit": TRIED_CONTACTS})["contacts"]:
            found = self._api.call("GET", f"/api/contacts/{segment(row['contact_id'])}")
            used = len({of_hash[m["activity"]].rpartition("-")[0] for m in _met(found)})
            if used > sessions:
                best, sessions = found, used
        assert best is not None, "the shop has buyers"
        told = {hash_: data.told[id_] for hash_, id_ in of_hash.items()}
        return Group(*_story(best, lambda hash_: told[hash_]))


def _met(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for standing in found["journeys"]:
        for stage in standing["stages"]:
            yield from stage["met_by"]


def _story(found: dict[str, Any], told: Callable[[str], str]) -> Iterator[Text]:
    yield Text(f"What {found['survivor']} did, once known as {len(found['aliases'])} visitors", style="bold italic")
    for standing in found["journeys"]:
        for stage in standing["stages"]:
            yield Text(f"  {stage['stage']}  {stage['reached_at'][:19].replace('T', ' ')}  {stage['name']}")
            for met in stage["met_by"]:
                yield Text(f"        by {told(met['activity'])}: {met['rule']}", style="dim")


def _delete_topics(settings: Settings) -> None:
    """Leaves somebody's Kafka as it was."""
    admin = AdminClient({**librdkafka_config(settings), "log_level": 0})
    for future in admin.delete_topics(list(topics.names(settings).values()), request_timeout=15.0).values():
        future.exception()
    for future in admin.delete_consumer_groups([settings.group], request_timeout=15.0).values():
        future.exception()
