"""What tests of several rooms need."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_SECONDS = 180.0
"""How long a test waits for what must come. No machine is that slow: how fast something is, the bench says, and no test fails for it."""


def eventually(holds: Callable[[], bool], what: str = "") -> None:
    """Waits until *holds*. Fails with *what* when patience is over."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < until, f"not within {PATIENCE_SECONDS:g} s: {what}"
        time.sleep(0.05)


async def until(holds: Callable[[], bool]) -> None:
    """The same on an event loop. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.02)
