"""App: the Faust app of a worker: its topics, one agent each, the evidence table, and every setting of Faust that matters.

Builds and wires; holds no logic of its own. What a partition does with a chunk is behind `streams.seam.Partitions`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import faust
from mode import Service

from streams import transport
from streams.changelog import Changelog
from streams.outward import Outward
from streams.seam import Fenced, Partitions
from streams.table import EvidenceTable, TableManager

log = logging.getLogger(__name__)

REBALANCE_S = 15.0
"""How long the group waits for a worker to give up its partitions before it goes on without it."""


class App(faust.App):
    """Faust's app with our partitions, changelog and producer. `partitions` is set before the start."""

    partitions: Partitions
    changelog: Changelog
    outward: Outward
    recovery_bytes: int
    """What recovery may hold, read and not joined yet."""
    kafka_options: Mapping[str, Any]
    """Options for every aiokafka client: bootstrap_servers, security_protocol, TLS and SASL."""

    @property
    def serving(self) -> bool:
        """True while every partition assigned to this worker is recovered and takes chunks."""
        return self.tables.actives_ready and not self.rebalancing

    def reflected(self, topic: str, partition: int) -> int:
        """See `streams.transport.Consumer.reflected`."""
        return self.consumer.reflected(topic, partition)  # type: ignore[attr-defined,no-any-return]

    def rejoin(self) -> None:
        """Have the partitions of this worker closed, assigned and opened again."""
        self.consumer._thread.rejoin()  # type: ignore[attr-defined]

    def behind(self, topic: str, partition: int) -> int:
        """See `streams.transport.Consumer.behind`."""
        return self.consumer.behind(topic, partition)  # type: ignore[attr-defined,no-any-return]


def build_app(
    *,
    kafka_options: Mapping[str, Any],
    group: str,
    sources: Sequence[str],
    changelog: str,
    partition_count: int,
    url: str,
    data_dir: Path,
    instance_id: str | None = None,
    session_s: float = 8.0,
    heartbeat_s: float = 2.0,
    standby_replicas: int = 0,
    fetch_bytes: int = 1 << 20,
    recovery_bytes: int = 64 << 20,
    check_crcs: bool = True,
    limits: Mapping[str, int] = {},
) -> App:
    """A worker's app, not started. *sources* are the topics delivered in chunks, co-partitioned with *changelog*; *url* is where this worker
    answers; *limits*: topic -> the largest record batch that it takes, in bytes."""
    transport.install()
    host_and_port = kafka_options["bootstrap_servers"]
    first = host_and_port if isinstance(host_and_port, str) else host_and_port[0]
    app = App(
        group,
        broker=f"{transport.SCHEME}://{first.split(',')[0]}",  # names the transport; its clients take kafka_options
        TableManager=TableManager,
        broker_client_id=group,
        datadir=str(data_dir),
        canonical_url=url,
        web_enabled=False,
        autodiscover=False,
        topic_partitions=partition_count,
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_buffer_maxsize=100_000,  # chunks; what is in flight is bounded by Consumer, and a full queue would block all partitions
        stream_recovery_delay=0.0,
        stream_wait_empty=False,
        broker_commit_interval=1.0,
        broker_check_crcs=check_crcs,
        broker_session_timeout=session_s,
        broker_heartbeat_interval=heartbeat_s,
        broker_rebalance_timeout=max(REBALANCE_S, session_s),
        consumer_max_fetch_size=fetch_bytes,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=instance_id,
        table_standby_replicas=standby_replicas,
    )
    app.kafka_options, app.recovery_bytes = kafka_options, recovery_bytes
    app.changelog = Changelog(app, changelog, limits.get(changelog, transport.MAX_REQUEST_BYTES))
    app.outward = Outward(kafka_options, client_id=f"{group}-outward", limits=limits)
    app.tables.add(
        EvidenceTable(
            app, changelog=changelog, name="evidence", partitions=partition_count, schema=transport.ChunkSchema(),
            key_type=bytes, value_type=bytes,
        )
    )  # fmt: skip
    for name in sources:
        app.agent(app.topic(name, schema=transport.ChunkSchema()), name=f"feed-{name}", concurrency=1)(_feed)
    return app


async def _feed(stream: Any) -> None:
    """The agent of one source topic: hands each chunk to its partition, and lets Faust commit it once that is done with it.

    `noack`: Faust acknowledges an event whose agent raised. Concurrency 1: chunks of a partition arrive in order. An exception ends the worker,
    since Faust would restart the agent behind the chunk that failed.
    """
    app = stream.app
    consumer = app.consumer
    try:
        async for event in stream.noack().events():
            message = event.message
            if message.chunk.serial != consumer.serial:
                continue  # of an older assignment: read again by its owner
            message.chunk.taken = True
            try:
                await app.partitions.submit(message.partition, message.topic, message.value, event.ack)
            except Fenced:
                continue
    except asyncio.CancelledError:
        raise
    except Exception as exc:
        await app.crash(exc)
        raise


class WorkerCrashed(Exception):
    """The worker cannot go on: the reason is the cause. Start it again; what was not done is repeated."""


async def run_app(
    app: App, stop: asyncio.Event, broken: asyncio.Future[BaseException], ending: Callable[[], None] = lambda: None
) -> None:
    """Starts *app*, runs until *stop*, calls *ending* and stops it within 10 s. Raises `WorkerCrashed` when it, or what is named by *broken*, cannot
    go on."""
    await app.outward.start()
    starting = asyncio.ensure_future(app.start())
    stopping, crashing = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(app._crashed.wait())
    try:
        await asyncio.wait({starting, stopping, crashing, broken}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done() and starting.exception() is None:
            await asyncio.wait({stopping, crashing, broken}, return_when=asyncio.FIRST_COMPLETED)
        crash = app.crash_reason if crashing.done() else None
        crash = crash or (broken.result() if broken.done() else None) or (starting.exception() if starting.done() else None)
        if crash is not None:
            raise WorkerCrashed(str(crash) or repr(crash)) from crash
    finally:
        ending()
        for waiting in (starting, stopping, crashing):
            waiting.cancel()
        await _stop(app)


async def _stop(app: App) -> None:
    try:
        await asyncio.wait_for(Service.stop(app), 8.0)
    except TimeoutError:
        log.error("the worker did not stop within 8 s")
    await asyncio.wait([asyncio.ensure_future(app.outward.stop())], timeout=1.0)
