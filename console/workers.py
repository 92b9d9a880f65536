"""Workers: finds the workers and asks all of them over their internal HTTP interface. Never adds up some of the partitions: all, or none.

Where they are: the setting `workers`, or else the description of the consumer group, into which each worker puts its URL (Faust's assignor does so).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import struct
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple

import aiohttp
from aiokafka.admin import AIOKafkaAdminClient

from .errors import ApiError

log = logging.getLogger(__name__)

ASK_SECONDS = 4.0
FRESH_SECONDS = 5.0  # how long a list of workers found through the group is believed while all of them answer
RETRY_SECONDS = 0.3
FIND_SECONDS = 0.5  # that a newer list of workers is waited for where there is an older one
DESCRIBE_SECONDS = 10.0
Find = Callable[[], Coroutine[Any, Any, list[str]]]


class Answers(NamedTuple):
    """What the workers said of all partitions: `partitions` by number, `as_of_ms` the earliest of their clocks."""

    as_of_ms: int
    partitions: dict[int, dict[str, Any]]


class Workers:
    """Asks the workers that *find* names. *partition_count* is how many partitions must answer."""

    def __init__(self, find: Find, partition_count: int, secret: str | None = None) -> None:
        self._find = find
        self._headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        self.partition_count = partition_count
        self._urls: list[str] = []
        self._found_at = float("-inf")
        self._finding: asyncio.Task[list[str]] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._silent: set[str] = set()

    async def start(self) -> None:
        timeout = aiohttp.ClientTimeout(total=ASK_SECONDS, connect=1.0)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector, headers=self._headers)

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def urls(self, refresh: bool = False) -> list[str]:
        """Where the workers are. Callers at the same time share one search."""
        if refresh or time.monotonic() - self._found_at > FRESH_SECONDS:
            if self._finding is None or self._finding.done():
                self._finding = asyncio.create_task(self._find())
            self._urls = await asyncio.shield(self._finding)
            self._found_at = time.monotonic()
        return self._urls

    async def each(self, path: str, query: Mapping[str, str], refresh: bool = False) -> dict[str, dict[str, Any] | None]:
        """The answer of every worker, by URL; None for one that gave none."""
        urls = await self.urls(refresh)
        answers = await asyncio.gather(*(self._ask(url, path, query) for url in urls))
        return dict(zip(urls, answers, strict=True))

    async def all_partitions(self, path: str, query: Mapping[str, str]) -> Answers:
        """What the owners of all partitions answer. Raises `ApiError` (503) when one does not: a sum of some would be a wrong number."""
        missing: list[int] = []
        for refresh in (False, True):
            if refresh:
                await asyncio.sleep(RETRY_SECONDS)
            answers = joined(list((await self.each(path, query, refresh)).values()))
            missing = [n for n in range(self.partition_count) if n not in answers.partitions]
            if not missing:
                return answers
        named = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        raise ApiError(
            503,
            "partitions_unavailable",
            f"no worker answers for partition {named} at the moment; wait for the workers to take it over, or start one with `waypost worker`",
            headers={"Retry-After": "1"},
        )

    async def one(self, path: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """All answers there are, for a question that one partition can answer alone."""
        return [answer for answer in (await self.each(path, query)).values() if answer is not None]

    async def _ask(self, url: str, path: str, query: Mapping[str, str]) -> dict[str, Any] | None:
        assert self._session is not None, "started before it is asked"
        try:
            async with self._session.get(url.rstrip("/") + path, params=query) as response:
                body = await response.read()
                found = json.loads(body) if response.status == 200 else None
                why = f"status {response.status}"
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            found, why = None, str(error) or type(error).__name__
        if not isinstance(found, dict):
            if url not in self._silent:  # once, not with every question
                log.warning("worker %s does not answer %s: %s", url, path, why)
            self._silent.add(url)
            return None
        if url in self._silent:
            log.warning("worker %s answers", url)
            self._silent.discard(url)
        return found


def joined(answers: list[dict[str, Any] | None]) -> Answers:
    """The partitions of several answers. Where two workers have the same one, as in a rebalance, the one that is further counts."""
    partitions: dict[int, dict[str, Any]] = {}
    as_of_ms: int | None = None
    for answer in answers:
        if answer is None:
            continue
        as_of_ms = answer["as_of_ms"] if as_of_ms is None else min(as_of_ms, answer["as_of_ms"])
        for number, said in answer["partitions"].items():
            known = partitions.get(int(number))
            if known is None or _reach(said) > _reach(known):
                partitions[int(number)] = said
    return Answers(as_of_ms or 0, partitions)


def _reach(said: Mapping[str, Any]) -> int:
    return sum(position or 0 for position in said.get("positions", {}).values())


# ---------------------------------------------------------------------------------------- finding


def fixed(urls: tuple[str, ...]) -> Find:
    """The workers are where the setting says."""

    async def find() -> list[str]:
        return list(urls)

    return find


class GroupDirectory:
    """Finds the workers through the description of their consumer group."""

    def __init__(self, group: str, kafka: dict[str, Any]) -> None:
        self._group = group
        self._kafka = kafka
        self._admin: AIOKafkaAdminClient | None = None
        self._last: list[str] = []
        self._asking: asyncio.Task[None] | None = None

    async def find(self) -> list[str]:
        """The URLs of the members; those found last when the group cannot be described now.

        Workers answer without the broker. So it is asked in the background, and who asks waits at
        most `FIND_SECONDS` for a newer answer than the last.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._describe())
        await asyncio.wait({self._asking}, timeout=FIND_SECONDS if self._last else None)
        return self._last

    async def _describe(self) -> None:
        """Describe the group, and keep where its members are."""
        try:
            async with asyncio.timeout(DESCRIBE_SECONDS):
                if self._admin is None:
                    self._admin = AIOKafkaAdminClient(**self._kafka)
                    await self._admin.start()
                described = await self._admin.describe_consumer_groups([self._group])
        except Exception as error:  # whatever it is, the next one connects again
            log.warning("group %s cannot be described, keeping the last answer: %r", self._group, error)
            await self._disconnect()
            return
        self._take(described)

    def _take(self, described: Any) -> None:
        # the fields of a member depend on the version of the answer: of its two byte strings, metadata and assignment, only the first says a URL
        members = [member for answer in described for group in answer.groups for member in group[5]]
        urls = {url for member in members for part in member if isinstance(part, bytes) and (url := member_url(part))}
        if urls or not members:  # while the group rebalances, members are described without their URLs: the last ones are the best guess
            self._last = sorted(urls)

    async def _disconnect(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            with contextlib.suppress(Exception):  # it is of no use any more
                await admin.close()

    async def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})
        await self._disconnect()


def member_url(metadata: bytes) -> str | None:
    """The URL in a member's metadata, which is Kafka's consumer protocol: version i16, topics, user data; Faust's user data is JSON."""
    try:
        (count,) = struct.unpack_from(">i", metadata, 2)
        at = 6
        for _ in range(count):
            (length,) = struct.unpack_from(">h", metadata, at)
            at += 2 + length
        (length,) = struct.unpack_from(">i", metadata, at)
        url = json.loads(metadata[at + 4 : at + 4 + length])["url"]
    except (struct.error, ValueError, KeyError, TypeError):
        return None
    return url if isinstance(url, str) else None
