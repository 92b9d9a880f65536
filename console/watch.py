"""Watch: looks at the workers every few seconds and remembers an hour: lag, rates, how soon activities are visible. In memory; it decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from schemas.times import format_ms

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
KEPT_SECONDS = 3600.0
LOST_SECONDS = 600.0  # a worker that went away stays listed
COUNTED = ("activities", "stage_changes", "rejected")


class Look(NamedTuple):
    """What was seen at `at` (seconds of a monotonic clock): records behind (None: unknown), and what each worker counted since it began."""

    at: float
    at_ms: int
    lag: int | None
    processes: Mapping[str, Mapping[str, Any]]


class Watch:
    """Looks while it runs. *look* gives the state of the whole as `Backend.state` does."""

    def __init__(self, look: Callable[[], Awaitable[tuple[int | None, dict[str, dict[str, Any] | None]]]]) -> None:
        self._look = look
        self._looks: deque[Look] = deque()
        self._last_seen: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            try:
                lag, told = await self._look()
                processes = {url: answer["process"] for url, answer in told.items() if answer and "process" in answer}
                self.take(Look(time.monotonic(), time.time_ns() // 1_000_000, lag, processes))
            except Exception as error:  # nobody depends on it; the next look may go well
                log.warning("the workers could not be looked at: %r", error)
            await asyncio.sleep(EVERY_SECONDS)

    def take(self, look: Look) -> None:
        """Remembers one look."""
        self._looks.append(look)
        self._last_seen |= dict.fromkeys(look.processes, look.at)
        while self._looks[0].at < look.at - KEPT_SECONDS:
            self._looks.popleft()
        self._last_seen = {url: at for url, at in self._last_seen.items() if at > look.at - LOST_SECONDS}

    # ------------------------------------------------------------------ what was seen

    def history(self) -> dict[str, Any]:
        """The points of the last hour, the earliest first: `at`, `lag`, and a second: `activities`, `stage_changes`, `rejected`."""
        points = []
        looks = list(self._looks)
        for before, now in pairwise(looks):
            points.append({"at": format_ms(now.at_ms), "lag": now.lag, **{name: _rate(before, now, name) for name in COUNTED}})
        return {"every_seconds": EVERY_SECONDS, "visible_seconds": self.visible_seconds(), "points": points}

    def rates(self) -> dict[str, float | None]:
        """Activities a second of each worker, over the last half minute."""
        looks = list(self._looks)
        if len(looks) < 2:
            return {}
        now = looks[-1]
        before = next((look for look in reversed(looks[:-1]) if look.at <= now.at - 30), looks[0])
        return {url: _of_one(before, now, url, "activities") for url in now.processes}

    def known(self) -> bool:
        """Whether anything was seen yet."""
        return bool(self._looks)

    def lag(self) -> int | None:
        """Records behind at the last look; None where it could not be known."""
        return self._looks[-1].lag if self._looks else None

    def lost(self) -> list[str]:
        """Workers that were there in the last ten minutes and are not now."""
        return sorted(self._last_seen.keys() - (self._looks[-1].processes.keys() if self._looks else set()))

    def visible_seconds(self) -> float | None:
        """Within how long 99 % of the batches of the last hour were in the numbers: the upper bound of a bucket of the histogram; None of none."""
        if not self._looks:
            return None
        first, now = self._looks[0], self._looks[-1]
        counts: dict[float, float] = {}
        for url, process in now.processes.items():
            began = first.processes.get(url, {})
            same = began.get("started_ms") == process["started_ms"]
            for bound, n in process["visible"].items():
                counts[float(bound)] = counts.get(float(bound), 0.0) + n - (began["visible"].get(bound, 0.0) if same else 0.0)
        whole = counts.get(float("inf"), 0.0)
        if not whole:
            return None
        found = min(bound for bound, n in counts.items() if n >= 0.99 * whole)
        return None if found == float("inf") else found


def _of_one(before: Look, now: Look, url: str, name: str) -> float | None:
    a, b = before.processes.get(url), now.processes[url]
    if a is None or a["started_ms"] != b["started_ms"] or now.at <= before.at:
        return None
    return max(0.0, b[name] - a[name]) / (now.at - before.at)


def _rate(before: Look, now: Look, name: str) -> float | None:
    found = [rate for url in now.processes if (rate := _of_one(before, now, url, name)) is not None]
    return sum(found) if found else None
