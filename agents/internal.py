"""Internal: the HTTP interface by which the console asks a worker about its partitions. Only parses questions; `questions` answers them.

| call | answer |
|---|---|
| `GET /internal/partitions` | state and positions of each partition here, and what the process counted |
| `GET /internal/journeys?journey=` | version and generation that can be read of every journey, or one, in each active partition |
| `GET /internal/results?journey=&version=&generation=&group=` | versions, and the body and cells of one of them, of each active partition |
| `GET /internal/groups?journey=&version=&generation=` | versions, and how many of each group reached each stage |
| `GET /internal/list?journey=&version=&generation=&stage=&who=&group=&limit=&after=` | a page of persons of each active partition |
| `GET /internal/contact?id=` | one contact, if its partition is here |
| `GET /healthz`, `/readyz`, `/metrics` | for orchestrators and Prometheus |
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import generate_latest

from streams.partitioner import partition_of

from . import metrics, questions
from .partition import SOURCES, Partition
from .partitions import Partitions

MAX_ROWS = 1000
SIZES_SECONDS = 10.0  # so old may be what is said of the files; looking at each of them costs more than all else that is asked for often


def application(
    partitions: Partitions, ready: Callable[[], bool], behind: Callable[[str, int], int], secret: str | None = None
) -> web.Application:
    """The aiohttp application; with a *secret*, /internal answers only who says it. *ready* says whether every partition of this worker is live,
    *behind* how many records of a topic's partition are not done."""

    started_ms = partitions.context.now_ms()
    disk_bytes, sized_at = 0, 0.0

    def each(answer: Callable[[Partition], dict[str, Any]]) -> web.Response:
        found = {
            str(number): {**answer(partition), "positions": partitions.positions(number)}
            for number, partition in partitions.active().items()
        }
        return _json({"as_of_ms": partitions.context.now_ms(), "partitions": found})

    async def get_partitions(_: web.Request) -> web.Response:
        nonlocal disk_bytes, sized_at
        if not disk_bytes or time.monotonic() - sized_at >= SIZES_SECONDS:
            disk_bytes = sum(partition.ledger.size_bytes() for partition in partitions.active().values())
            sized_at = time.monotonic()
        process = {
            "started_ms": started_ms,
            "activities": metrics.total(metrics.ACTIVITIES),
            "stage_changes": metrics.total(metrics.STAGE_CHANGES),
            "rejected": metrics.total(metrics.REJECTED),
            "visible": metrics.buckets(metrics.VISIBLE_SECONDS),
            "disk_bytes": disk_bytes,
        }
        return _json({"as_of_ms": partitions.context.now_ms(), "partitions": partitions.states(), "process": process})

    async def get_journeys(request: web.Request) -> web.Response:
        return each(lambda p: questions.journeys(p, request.query.get("journey")))

    async def get_results(request: web.Request) -> web.Response:
        q = request.query
        version, generation = _integer(q, "version", None), _integer(q, "generation", None)
        return each(lambda p: questions.results(p, q["journey"], version, generation, q.get("group")))

    async def get_groups(request: web.Request) -> web.Response:
        q = request.query
        version, generation = _integer(q, "version", None), _integer(q, "generation", None)
        return each(lambda p: questions.grouped(p, q["journey"], version, generation))

    async def get_list(request: web.Request) -> web.Response:
        q = request.query
        version, generation, stage = _integer(q, "version", None), _integer(q, "generation", None), _integer(q, "stage", 1)
        limit = max(1, min(_integer(q, "limit", 100) or 100, MAX_ROWS))
        after = bytes.fromhex(q["after"]) if q.get("after") else None
        who, group, newest = q.get("who", questions.CONVERTED), q.get("group"), q.get("order") == "newest"
        return each(lambda p: questions.listed(p, q["journey"], version, generation, stage or 1, who, group, limit, after, newest))

    async def get_contact(request: web.Request) -> web.Response:
        contact = request.query["id"]
        number = partition_of(contact, partitions.context.partitions)
        found = partitions.active().get(number)
        if found is None:
            return _json({"partition": number, "state": "elsewhere"})
        return _json({**questions.contact(found, contact), "positions": partitions.positions(number)})

    async def get_health(_: web.Request) -> web.Response:
        stuck = {str(number): round(seconds) for number, seconds in partitions.stuck().items()}
        return _json({"status": "stuck", "partitions": stuck}, 503) if stuck else _json({"status": "ok"})

    async def get_ready(_: web.Request) -> web.Response:
        return _json({"ready": True}) if ready() else _json({"ready": False}, 503)

    async def get_metrics(_: web.Request) -> web.Response:
        metrics.LEDGER_BYTES.clear()  # what this worker has no more is told by whoever has it now
        metrics.SOURCE_LAG.clear()
        for number, partition in partitions.active().items():
            metrics.LEDGER_BYTES.labels(str(number)).set(partition.ledger.size_bytes())
            for source in SOURCES:
                metrics.SOURCE_LAG.labels(source, str(number)).set(behind(partitions.context.topics[source], number))
        return web.Response(
            body=generate_latest(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    @web.middleware
    async def known(request: web.Request, handler: Handler) -> web.StreamResponse:
        if secret is not None and request.path.startswith("/internal/"):
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), secret.encode()):
                return _json({"error": "not yours"}, 401)
        return await handler(request)

    app = web.Application(middlewares=[known])
    app.add_routes(
        [
            web.get("/internal/partitions", get_partitions),
            web.get("/internal/journeys", get_journeys),
            web.get("/internal/results", get_results),
            web.get("/internal/groups", get_groups),
            web.get("/internal/list", get_list),
            web.get("/internal/contact", get_contact),
            web.get("/healthz", get_health),
            web.get("/readyz", get_ready),
            web.get("/metrics", get_metrics),
        ]
    )
    return app


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), status=status, content_type="application/json")


def _integer(query: Any, name: str, default: int | None) -> int | None:
    return int(query[name]) if query.get(name) else default
