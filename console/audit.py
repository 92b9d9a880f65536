"""Audit: writes down who changed what, on the audit topic. Bounds what is written: sizes, and how much strangers can cause to be written."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from agents import metrics
from schemas.times import format_ms
from streams.supervision import supervise

from .outbox import Outbox, Send
from .throttle import network_of

log = logging.getLogger(__name__)

WAIT_SECONDS = 1.0  # for the broker to have a record; then it is delivered behind the answer
REFUSED_SECONDS = 60.0  # between two records of the requests that an address was refused
MAX_ADDRESSES = (
    100  # of which refused requests are counted apart; those of others are counted together
)
MAX_TEXT = 200  # characters of a name, a target, an action


class Audit:
    """The audit topic. Each record is in the log at once, and on the topic as soon as the broker takes it."""

    def __init__(self, topic: str, send: Send, now_ms: Callable[[], int]) -> None:
        self._outbox = Outbox(topic, send, _lost)
        self._now_ms = now_ms
        self._refused: Counter[str] = Counter()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._outbox.start()
        self._task = asyncio.create_task(supervise("counting refused requests", self._count))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._write_refused()
        await self._outbox.stop()

    async def write(
        self,
        who: str | None,
        role: str | None,
        address: str | None,
        action: str,
        target: str | None,
        status: int,
    ) -> None:
        """Writes down what somebody did, or was refused. Returns when the broker has it, or after `WAIT_SECONDS`."""
        row = {
            "who": who,
            "role": role,
            "address": address,
            "action": action,
            "target": target,
            "status": status,
        }
        await asyncio.wait({self._put(row)}, timeout=WAIT_SECONDS)

    def refused(self, address: str | None) -> None:
        """Counts a request of somebody unknown that was refused: one record a minute and address says how many there were."""
        key = network_of(address or "")
        self._refused[
            key if key in self._refused or len(self._refused) < MAX_ADDRESSES else "others"
        ] += 1

    def _put(self, row: dict[str, Any]) -> asyncio.Future[int]:
        short = {
            name: value[:MAX_TEXT] if isinstance(value, str) else value
            for name, value in row.items()
        }
        value = json.dumps({"at": format_ms(self._now_ms()), **short}, ensure_ascii=False).encode(
            "utf-8", "backslashreplace"
        )
        log.info("audit: %s", value.decode())
        return self._outbox.put((short["who"] or "").encode("utf-8", "backslashreplace"), value)

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(REFUSED_SECONDS)
            self._write_refused()

    def _write_refused(self) -> None:
        for address, count in self._refused.items():
            self._put(
                {
                    "who": None,
                    "role": None,
                    "address": address,
                    "action": "refused",
                    "target": None,
                    "status": 401,
                    "count": count,
                }
            )
        self._refused.clear()


def _lost(_: bytes, value: bytes | None, reason: str) -> None:
    metrics.AUDIT_LOST.inc()
    log.error("this is not on the audit topic: %s (%s)", (value or b"").decode(), reason)
