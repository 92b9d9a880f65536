"""A worker that sends itself a signal after a named step of a batch: `python -m tests.support.stepping STEP NTH [KILL|STOP]`.

STEP "none": an ordinary worker. Settings come from the environment. It tests nothing itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

from agents.worker import run_worker
from streams.app import WorkerCrashed
from streams.settings import Settings


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
        await run_worker(Settings.load(), stop, step_done=step_done)
    except WorkerCrashed as crash:
        logging.critical("%s", crash)
        return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=os.environ.get("WAYPOST_TEST_LOG", "WARNING"))
    sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]), signal.Signals[f"SIG{sys.argv[3]}"] if sys.argv[3:] else signal.SIGKILL)))
