"""A whole Waypost for tests: `waypost up` as a process of its own, on a broker that is there. Ends with the tests; asserts nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from streams.brokers import free_port
from streams.guarded import GuardedProcess
from streams.settings import Settings
from tests.support import PATIENCE_SECONDS


class Waypost:
    """`url`: of the API. `http`: a client for it."""

    def __init__(self, settings: Settings) -> None:
        self.port = free_port() if settings.origin_of("console_port") == "default" else settings.console_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = settings
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS)
        self.log = settings.data_dir / "up.log"
        self._process: GuardedProcess | None = None

    @property
    def environ(self) -> dict[str, str]:
        """For other commands on the same topics."""
        clean = {name: value for name, value in os.environ.items() if name.startswith("WAYPOST_TEST_") or not name.startswith("WAYPOST_")}
        return {**clean, **self.settings.environment(), "WAYPOST_CONSOLE_PORT": str(self.port), "COLUMNS": "200"}

    def __enter__(self) -> Self:
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._process = GuardedProcess([sys.executable, "-m", "console", "up"], log=self.log, env=self.environ)
        self.until(lambda: self.health().get("status") == "ok", "to be up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process is not None
        self.http.close()
        self._process.stop(20.0)

    @property
    def process(self) -> GuardedProcess:
        assert self._process is not None
        return self._process

    def health(self) -> dict[str, Any]:
        try:
            return dict(self.http.get("/api/health").json())
        except (httpx.TransportError, ValueError):
            return {}

    def until(self, there: Callable[[], bool], what: str = "") -> None:
        """Waits until *there*; fails with the log's end."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not there():
            if time.monotonic() > end:
                raise AssertionError(f"waited {PATIENCE_SECONDS:g} s {what}; the log ends:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)

    def settled(self, journey: str, **query: Any) -> dict[str, Any]:
        """The results once everything sent is in them."""
        found: dict[str, Any] = {}

        def there() -> bool:
            nonlocal found
            answer = self.http.get(f"/api/journeys/{journey}/results", params=query)
            found = answer.json()
            return answer.status_code == 200 and found["lag"] == 0 and found["status"] == "live"

        try:
            self.until(there, what=f"for results of {journey}")
        except AssertionError as error:
            raise AssertionError(f"{found}\n{self.health()}\n{error}") from None
        return found


def started(bootstrap: str, prefix: str, directory: Path, **more: Any) -> Waypost:
    """Not entered yet."""
    flags = {"broker": bootstrap, "topic_prefix": prefix, "group": prefix + "workers", "data_dir": directory, **more}
    return Waypost(Settings.load(flags, environ={}))
