"""Worker: puts the parts of one worker together and runs them: the Faust app, its partitions, the journeys, the internal HTTP interface.

Wires only. It decides nothing, and it goes on with nothing that failed: a worker that cannot go on ends, and is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from agents import intake, internal, metrics
from agents.catalog import RECALCULATIONS, REPORTS, CatalogReader
from agents.driver import Driver
from agents.partition import MOST_DECISION_BYTES, SOURCES, Context
from agents.partitions import Partitions
from agents.pipeline import UnderWay
from agents.refusals import Refusals
from agents.reporter import Reporter
from schemas import grouping
from schemas.compiled import let_go, worth_preparing
from state import bulk, joining
from state.comparison import Tolerance
from state.ledger import Damaged, Memory
from state.matching import Matcher
from streams import blocks
from streams.app import App, WorkerCrashed, build_app, run_app
from streams.connections import CannotListen, bound
from streams.guarded import GuardedProcess
from streams.seam import Fenced
from streams.settings import Settings, aiokafka_kwargs
from streams.supervision import supervise, unless_stopped
from streams.topics import Presence, TopicsError, limits

log = logging.getLogger(__name__)

PUBLISHING_SHARE = 0.1
"""Of the time, at most, goes to publishing totals, the broker's answer included."""
STOP_SECONDS = 10.0
"""A worker that was told to end is gone after so long, whatever still holds it."""
COUNT_SECONDS = 1.0
LOOK_SECONDS = 10.0
"""So often it looks whether its topics are there."""
TOPICS = (*SOURCES, "journeys", RECALCULATIONS, REPORTS, "stage-changes", "totals", "rejected")
CHANGELOG = "evidence-changelog"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(settings: Settings) -> tuple[socket.socket, str]:
    """The socket of the internal interface, bound, and the URL under which others reach it."""
    family = socket.AF_INET6 if ":" in settings.worker_host else socket.AF_INET
    listener = bound(settings.worker_host, settings.worker_port, "worker")
    host = f"[{settings.worker_host}]" if family == socket.AF_INET6 else settings.worker_host
    url = settings.worker_advertised_url or f"http://{host}:{listener.getsockname()[1]}"
    return listener, url.rstrip("/")


async def run_worker(
    settings: Settings,
    stop: asyncio.Event,
    *,
    started: Callable[[str], None] | None = None,
    step_done: Callable[[str, int], None] | None = None,
    ending: Callable[[], None] = lambda: None,
) -> None:
    """Runs a worker until *stop* is set. Topics must exist (`waypost topics`).

    *started* is called with the worker's URL once it answers there; its partitions may still recover. *step_done* is the hook of the crash tests.
    *ending* is called when it stops, for whatever reason, before it closes what it holds.
    Raises `CannotListen`, `WorkerCrashed`, and what the broker answers when it cannot be reached at the start.
    """
    secret = None if settings.internal_secret is None else settings.internal_secret.get_secret_value()
    listener, url = _listen(settings)
    kafka = aiokafka_kwargs(settings)
    topics = {short: settings.topic_prefix + short for short in (*TOPICS, CHANGELOG)}
    memory = Memory(settings.memory_mb)
    app = build_app(
        kafka_options=kafka,
        group=settings.group,
        sources=[topics[short] for short in SOURCES],
        changelog=settings.topic_prefix + CHANGELOG,
        partition_count=settings.partitions,
        url=url,
        data_dir=settings.data_dir,
        instance_id=settings.group_instance_id,
        session_s=settings.session_timeout_seconds,
        heartbeat_s=settings.heartbeat_seconds,
        standby_replicas=settings.standby_replicas,
        recovery_bytes=memory.beside_bytes,
        limits=limits(settings),
    )
    broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def failed(error: BaseException) -> None:
        if isinstance(error, Fenced | Damaged):
            log.info("dropped what was on its way: %s", error)
        elif not isinstance(error, asyncio.CancelledError) and not broken.done():
            log.error("cannot go on: %r", error, exc_info=error)
            broken.set_result(error)

    context = Context(
        partitions=settings.partitions,
        data_dir=settings.data_dir,
        memory=memory,
        topics=topics,
        outward=app.outward,
        changelog=app.changelog,
        now_ms=lambda: time.time_ns() // 1_000_000,
        failed=failed,
        ahead_ms=settings.max_future_ms,
        max_merges=settings.max_merges,
        matcher=Matcher({}),
        catalog={},
        decision_bytes=min(MOST_DECISION_BYTES, memory.beside_bytes // 8),
        under_way=UnderWay(memory.beside_bytes),
        background_share=settings.background_share,
        step_done=step_done,
    )

    def moved() -> None:
        reporter.moved()
        driver.moved()

    catalog = CatalogReader(topics, kafka, lambda: partitions.apply(), moved, failed)  # noqa: PLW0108 made below
    partitions = Partitions(context, catalog, app.reflected)
    partitions.rejoin = app.rejoin
    context.common = lambda journey: catalog.catalog.reports.common(journey, settings.partitions)
    reporter = Reporter(partitions, catalog, lambda: app.serving)
    driver = Driver(
        partitions, catalog, lambda: app.serving, cron=settings.recalculation_schedule, zone=settings.recalculation_time_zone,
        keep_ms=settings.evidence_retention_ms,
        tolerance=Tolerance(settings.recalculation_tolerance_share, settings.recalculation_tolerance_contacts),
    )  # fmt: skip
    refusals = Refusals(partitions, catalog, kafka, lambda: app.serving)
    app.partitions = partitions
    interface = internal.application(partitions, lambda: app.serving, app.behind, secret)
    end_interface = await internal.listen(interface, listener, settings)
    try:
        if not await unless_stopped(catalog.start(), stop):
            return
        if started is not None:
            started(url)
        # What was made so far stays: the garbage collector need not look at it again and again while batches come and go.
        gc.collect()
        gc.freeze()
        gc.set_threshold(200_000, 20, 100)
        threading.Thread(target=compile_loops, name="compiling", daemon=True).start()
        background = {
            "totals": lambda: _publish_totals(settings, app, partitions),
            "reports": reporter.run,
            "recalculations": driver.run,
            "rejections": refusals.run,
            "topics": lambda: _watch_topics(settings, failed),
        }
        beside = [
            *(asyncio.create_task(_supervised(work, run)) for work, run in background.items()),
            asyncio.create_task(_count_foreign(app)),
            asyncio.create_task(_count_unsent(app, settings.topic_prefix)),
        ]
        try:
            await run_app(app, stop, broken, ending)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
    finally:
        await catalog.stop()
        await end_interface()


def compile_loops() -> None:
    """Makes compiled code ready. Until it is, every activity is decoded, and batches are decided in Python."""
    if worth_preparing():
        GuardedProcess([sys.executable, "-P", "-c", "from agents import worker; worker.load_loops()"], log=Path(os.devnull)).wait()
    load_loops()
    let_go()


def load_loops() -> None:
    """Loads what was compiled, and compiles what was not."""
    for loops in (grouping.loops, bulk.loops, joining.loops, intake.loops, blocks.loops):
        loops.warm()


async def _supervised(work: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run *run* beside the partitions, again after each failure."""
    await supervise(work, run, metrics.BACKGROUND_FAILURES.labels(work).inc)


async def _publish_totals(settings: Settings, app: App, partitions: Partitions) -> None:
    """Publish changed totals, and let complete views take over. With very many journeys that takes long: then it is done less often."""
    took = 0.0
    while True:
        await asyncio.sleep(max(settings.totals_interval_seconds, took / PUBLISHING_SHARE))
        began = time.monotonic()
        if app.serving:
            partitions.settle()
            await partitions.publish_totals()
        took = time.monotonic() - began


async def _count_foreign(app: App) -> None:
    """Count what others wrote to changelogs of this worker."""
    counted = 0
    while True:
        await asyncio.sleep(COUNT_SECONDS)
        found = app.changelog.foreign_records
        metrics.FOREIGN_RECORDS.inc(found - counted)
        counted = found


async def _count_unsent(app: App, prefix: str) -> None:
    """Count records that were too large for their topic."""
    counted = Counter[str]()
    while True:
        await asyncio.sleep(COUNT_SECONDS)
        found = app.outward.unsent + Counter({app.changelog.topic: app.changelog.unsent})
        for topic, count in (found - counted).items():
            metrics.UNSENT_RECORDS.labels(topic.removeprefix(prefix)).inc(count)
        counted = found


async def _watch_topics(settings: Settings, failed: Callable[[BaseException], None]) -> None:
    """Ends the worker when a topic is gone: what it goes on to say would contradict what is lost."""
    presence = Presence(settings)
    while True:
        said = await asyncio.to_thread(presence.look)
        if said:
            failed(TopicsError(said))
        await asyncio.sleep(LOOK_SECONDS)


def main(settings: Settings) -> int:
    """`waypost worker`: runs until SIGTERM or SIGINT. Returns the exit code: 0 ended, 1 could not go on (start it again)."""

    if settings.internal_secret is None and not _is_loopback(settings.worker_host):
        log.critical("the worker would listen on %s and has no internal_secret: set the same one for workers and console", settings.worker_host)
        return 1

    async def run() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def told() -> None:
            stop.set()
            last_resort()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told)
        try:
            await run_worker(settings, stop, started=lambda url: log.info("answering at %s", url), ending=last_resort)
        except CannotListen as error:
            log.critical("%s", error)
            return 1
        except WorkerCrashed as crash:
            log.critical("the worker ends: %s", crash)
            return 1
        return 0

    return asyncio.run(run())


def last_resort() -> None:
    """Ends the process after STOP_SECONDS, should a thread or a connection hold it."""

    def end() -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody may be reading any more
            print("the worker did not end by itself", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(STOP_SECONDS, end)
    timer.daemon = True
    timer.start()
