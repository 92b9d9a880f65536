"""A worker that ends itself with SIGKILL after a named step of a batch, for the tests of crashes: `python -m tests.support.stepping STEP NTH`.

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


async def main(step: str, nth: int) -> int:
    seen = 0

    def step_done(name: str, partition: int) -> None:
        nonlocal seen
        if name == step:
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await run_worker(Settings.load(), stop, step_done=step_done)
    except WorkerCrashed as crash:
        logging.critical("%s", crash)
        return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(level="WARNING")
    sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]))))
