"""Journeys: the console's copy of the journeys topic, and the only place that writes to it. Decides no results.

The topic is the truth: an answer to a write is given when the write has come back from it. Two consoles that write the same journey at the same
moment both succeed as far as Kafka is concerned; the one whose record came second finds the other's in front of it, puts that back as a newer
version, and tells its own writer of the conflict. So no edit that was confirmed is ever lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiokafka.errors import KafkaError

from schemas.codec import decode_journey
from schemas.journey import MAX_VERSION, Journey, body_digest, journey_json
from streams.compacted import Fetched, Follower

from .errors import ApiError

log = logging.getLogger(__name__)

VERSION_HEADER = "waypost_version"  # of a tombstone: the last version, so that a journey made anew goes on counting
KEPT_VERSIONS = 50  # of a journey, for results of versions before the newest
WRITE_SECONDS = 15.0
ABSENT, PRESENT = -1, -2
"""In place of the version that a writer expects: there is no such journey (`If-None-Match: *`); there is one, of whatever version (`If-Match: *`)."""
Send = Callable[[bytes, bytes | None, list[tuple[str, bytes]]], Awaitable[int]]
"""Writes (key, value, headers) to the journeys topic and gives the record's offset when the broker has it."""


class Saved(NamedTuple):
    """One record of the topic. `journey` is None for a deletion."""

    offset: int
    version: int
    journey: Journey | None


class JourneyStore:
    """Follows the one partition of the journeys topic without a group; `put` and `delete` write to it."""

    def __init__(self, topic: str, kafka: dict[str, Any], send: Send, now_ms: Callable[[], int]) -> None:
        self._topic = topic
        self._follower = Follower([topic], kafka, self._take)
        self._send = send
        self._now_ms = now_ms
        self._last: dict[str, Saved] = {}
        self._recent: dict[str, list[Saved]] = defaultdict(list)
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.loaded = False

    async def start(self) -> None:
        """Connects, reads the topic to its end, then follows it. Raises KafkaError."""
        await self._follower.start()
        self.loaded = True

    async def stop(self) -> None:
        await self._follower.stop()

    # ------------------------------------------------------------------ reading

    def all(self) -> list[Journey]:
        """All journeys there are, by id."""
        return [saved.journey for _, saved in sorted(self._last.items()) if saved.journey is not None]

    def get(self, id_: str) -> Journey | None:
        saved = self._last.get(id_)
        return None if saved is None else saved.journey

    def known(self, id_: str) -> Journey:
        """The journey *id_*. Raises `ApiError` (404)."""
        journey = self.get(id_)
        if journey is None:
            raise ApiError(404, "unknown_journey", f'there is no journey "{id_}"; GET /api/journeys lists those there are')
        return journey

    def version(self, id_: str, version: int) -> Journey | None:
        """The journey as that version said; None when the log does not hold it any more."""
        return next((s.journey for s in reversed(self._recent.get(id_, [])) if s.version == version and s.journey), None)

    def versions(self, id_: str) -> list[Journey]:
        """The versions since the journey was last made anew that the log still holds, at most `KEPT_VERSIONS`, the oldest first."""
        kept: list[Journey] = []
        for saved in self._recent.get(id_, []):
            if saved.journey is None:
                kept.clear()
            else:
                kept.append(saved.journey)
        return kept

    def next_version(self, id_: str) -> int:
        """The version that an edit saved now would be."""
        saved = self._last.get(id_)
        return 1 if saved is None else saved.version + 1

    def _take(self, fetched: Fetched) -> None:
        """Take records into the copy. A bad one is logged and passed over, as workers do."""
        for record in fetched[self._topic]:
            try:
                self._take_one(record)
            except Exception as error:  # workers bring it to the rejected topic
                log.error(
                    "topic %s, offset %s: bad record: %s", self._topic, record.offset, error
                )

    def _take_one(self, record: Any) -> None:
        id_, journey = decode_journey(record.key, record.value)
        before = self._last.get(id_)
        if before is not None and record.offset <= before.offset:
            return  # taken already
        if journey is None:
            said = _version_of(dict(record.headers or ()).get(VERSION_HEADER))
            saved = Saved(record.offset, max(said, before.version if before else 0), None)
        else:
            saved = Saved(record.offset, journey.version or 1, journey)
        self._last[id_] = saved
        recent = self._recent[id_]
        recent.append(saved)
        del recent[:-KEPT_VERSIONS]

    # ------------------------------------------------------------------ writing

    async def put(self, journey: Journey, expected: int | None) -> tuple[Journey, bool]:
        """Saves *journey* as the next version; `(the journey as it is now, whether it was created)`. An equal body changes nothing.

        *expected*: the version that the writer saw, `ABSENT`, `PRESENT`, or None for whatever is there. Raises `ApiError`: 412 when
        something else is there, 503 when the broker does not answer.
        """
        async with self._locks[journey.id]:
            base = self._last.get(journey.id)
            self._guard(journey.id, base, expected)
            current = base.journey if base is not None else None
            if current is not None and body_digest(current) == body_digest(journey):
                return current, False
            version = (base.version if base is not None else 0) + 1
            if version > MAX_VERSION:  # workers would refuse it
                if current is not None:
                    raise _versions_exhausted(journey.id)
                version = 1
            journey = journey.model_copy(update={"version": version, "saved_at": self._now_ms()})
            own, theirs = await self._write(journey.id, base, version, journey)
            equal = theirs is not None and theirs.journey is not None and body_digest(theirs.journey) == body_digest(journey)
            if theirs and not (equal and expected != ABSENT):
                await self._put_back(journey.id, own, theirs)
                raise self._conflict(journey.id)
            return journey, current is None

    async def delete(self, id_: str, expected: int | None) -> None:
        """Deletes the journey. Raises `ApiError`: 404, 412, 503."""
        self.known(id_)  # before the lock, which is kept for ever: any text can be an id here
        async with self._locks[id_]:
            self.known(id_)
            base = self._last[id_]
            self._guard(id_, base, expected)
            own, theirs = await self._write(id_, base, base.version, None)
            if theirs and theirs.journey is not None:
                await self._put_back(id_, own, theirs)
                raise self._conflict(id_)

    def _guard(self, id_: str, base: Saved | None, expected: int | None) -> None:
        if expected is None:
            return
        found = base.version if base is not None and base.journey is not None else None
        if expected == ABSENT:
            if found is not None:
                message = f'journey "{id_}" exists, at version {found}; give the new one another id, or read it and edit that version'
                raise ApiError(412, "version_conflict", message)
        elif found != expected and not (expected == PRESENT and found is not None):
            is_now = f"it is at version {found} now" if found is not None else "it does not exist"
            seen = f"version {expected}" if expected > 0 else "any version" if expected == PRESENT else "a version of this name"
            raise ApiError(412, "version_conflict", f'journey "{id_}" is not at {seen}: {is_now}; read it again and repeat your edit')

    @staticmethod
    def _conflict(id_: str) -> ApiError:
        message = f'journey "{id_}" was changed by somebody else at the same moment; read it again and repeat your edit'
        return ApiError(412, "version_conflict", message)

    async def _write(self, id_: str, base: Saved | None, version: int, journey: Journey | None) -> tuple[Saved, Saved | None]:
        """Writes and waits until it came back: our own record, and what another console wrote between *base* and it, if anything."""
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                if journey is None:
                    offset = await self._send(id_.encode(), None, [(VERSION_HEADER, str(version).encode())])
                else:
                    value = json.dumps(journey_json(journey), ensure_ascii=False).encode()
                    offset = await self._send(id_.encode(), value, [])
                await self._follower.reach({self._topic: offset + 1})
        except (TimeoutError, KafkaError) as error:
            log.warning("journey %s could not be written: %r", id_, error)
            raise ApiError(
                503, "broker_unavailable", "the broker did not confirm the write, which may have been made: read the journey again, then repeat"
            ) from error
        after = base.offset if base is not None else -1
        between = [saved for saved in self._recent[id_] if after < saved.offset < offset]
        return Saved(offset, version, journey), between[-1] if between else None

    async def _put_back(self, id_: str, own: Saved, theirs: Saved | None) -> None:
        """Makes *theirs*, which *own* came on top of, the newest again, under a higher version. Whoever came on top of *own* already, stays."""
        while theirs is not None and self._last[id_].offset == own.offset:
            version = min(max(own.version, theirs.version) + 1, MAX_VERSION)
            journey = theirs.journey
            if journey is not None:
                journey = journey.model_copy(update={"version": version, "saved_at": self._now_ms()})
            own, theirs = await self._write(id_, own, version, journey)


def _version_of(header: bytes | None) -> int:
    """Return the version that a tombstone names; 0 where it names none."""
    if header is None or not header.isdigit() or len(header) > 10:
        return 0
    return min(int(header), MAX_VERSION)


def _versions_exhausted(id_: str) -> ApiError:
    return ApiError(
        409,
        "versions_exhausted",
        f'journey "{id_}" has version {MAX_VERSION}, the highest there is; delete it and save it '
        "again, or save it under another id",
        "version",
    )
