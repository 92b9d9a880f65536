"""Supervision: keeps what has to go on going. It is run again after a failure, which is logged and counted.

The one way in which background work of workers and consoles meets a broker that does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

from aiokafka.errors import KafkaError

log = logging.getLogger(__name__)

T = TypeVar("T")

BROKER_ERRORS = (KafkaError, TimeoutError, OSError)
RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0  # between two runs that fail of something else than the broker
STEADY_SECONDS = 60.0  # what ran for so long is run again soon


async def supervise(
    what: str, run: Callable[[], Awaitable[None]], failed: Callable[[], None] = lambda: None
) -> None:
    """Run *run* until it returns, again after each failure. *what*: its name in the log.

    A broker that does not answer is asked again after `RETRY_SECONDS`. Any other failure is a fault
    of this program, and is logged with its trace and tried again with growing waits. *failed* is
    called after each.
    """
    wait = RETRY_SECONDS
    while True:
        began = time.monotonic()
        try:
            await run()
            return
        except BROKER_ERRORS as error:
            log.warning("%s: failed on the broker, trying again: %r", what, error)
            wait = RETRY_SECONDS
        except Exception:
            if time.monotonic() - began > STEADY_SECONDS:
                wait = RETRY_SECONDS
            log.exception("%s: failed, trying again in %g s", what, wait)
            failed()
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_RETRY_SECONDS)
            continue
        failed()
        await asyncio.sleep(wait)


async def in_daemon_thread(call: Callable[[], T]) -> T:
    """Return what *call*, which may block, returns. Its thread does not hold the end of the process."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def answered(value: T | None, error: BaseException | None) -> None:
        if answer.done():  # nobody waits any more
            return
        if error is None:
            answer.set_result(cast(T, value))
        else:
            answer.set_exception(error)

    def work() -> None:
        value, error = None, None
        try:
            value = call()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(answered, value, error)

    threading.Thread(target=work, daemon=True).start()
    return await answer


async def unless_stopped(run: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Run *run* and return True; cancel it and return False when *stop* is set before its end."""
    running, stopping = asyncio.ensure_future(run), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            return False
        running.result()
        return True
    finally:
        for task in (running, stopping):
            task.cancel()
        await asyncio.wait({running, stopping})
