"""A worker that sends itself a signal after a named step of a batch: `python -m tests.support.stepping STEP NTH [KILL|STOP]`.

STEP "none": an ordinary worker. Settings come from the environment. It tests nothing itself.

With WAYPOST_TEST_FAULTS naming a file, the worker's clock and disk are as that file says, from the moment it says so: JSON with `clock_seconds`, by
which its wall clock is wrong, and `disk_seconds`, by which each write takes longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from agents.worker import last_resort, run_worker
from state.ledger import Ledger
from streams.app import WorkerCrashed
from streams.settings import Settings


class Faults:
    """What the file says now; looked at four times a second at most."""

    def __init__(self, path: Path) -> None:
        self._path, self._looked, self._said = path, 0.0, dict[str, float]()

    def __getitem__(self, name: str) -> float:
        if time.monotonic() - self._looked > 0.25:
            self._looked = time.monotonic()
            with contextlib.suppress(OSError, ValueError):
                self._said = json.loads(self._path.read_text())
        return self._said.get(name, 0.0)

    def install(self) -> None:
        """Makes the wall clock wrong, for everybody in this process, and the disk slow."""
        now, now_ns, write = time.time, time.time_ns, Ledger.write
        time.time = lambda: now() + self["clock_seconds"]
        time.time_ns = lambda: now_ns() + int(self["clock_seconds"] * 1e9)

        def slow(ledger: Ledger, *of: Any) -> None:
            time.sleep(self["disk_seconds"])
            write(ledger, *of)

        Ledger.write = slow  # type: ignore[method-assign,assignment]


async def main(step: str, nth: int, number: int) -> int:
    seen = 0

    def step_done(name: str, partition: int) -> None:
        nonlocal seen
        if name == step:
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), number)

    stop = asyncio.Event()
    for end in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(end, stop.set)
    try:
        await run_worker(Settings.load(), stop, step_done=step_done, ending=last_resort)
    except WorkerCrashed as crash:
        logging.critical("%s", crash)
        return 1
    return 0


if __name__ == "__main__":
    if "WAYPOST_TEST_FAULTS" in os.environ:
        Faults(Path(os.environ["WAYPOST_TEST_FAULTS"])).install()
    logging.basicConfig(level=os.environ.get("WAYPOST_TEST_LOG", "WARNING"))
    sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]), signal.Signals[f"SIG{sys.argv[3]}"] if sys.argv[3:] else signal.SIGKILL)))
