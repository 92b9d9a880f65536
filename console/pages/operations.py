"""Operations page: workers, recalculations, rejected records. Reads only; its buttons call the HTTP API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from console.api_recalculations import schedule_of
from console.backend import Backend
from console.rejected import Filter

from . import views
from .page import SLOW_SECONDS, Cursor, Words, fill, page, stream

RECALCULATIONS = 12  # shown
REJECTED_A_PAGE = 50
Topic = Literal["", "activities", "contact-merges", "contacts", "journeys", "handoffs", "rebuilt-evidence"]


def install(router: APIRouter, backend: Backend) -> None:
    """Adds the routes."""

    async def state() -> dict[str, Any]:
        health = await backend.health()
        history = backend.watch.history()
        rows = backend.recalculations.all()
        names = {journey.id: journey.name for journey in backend.store.all()}
        return {
            "health": health, "strip": views.strip(health, history), "schedule": schedule_of(backend), "names": names,
            "recalculations": [views.recalculation_line(one, names) for one in rows[:RECALCULATIONS]], "more": max(0, len(rows) - RECALCULATIONS),
            "running": sum(one["state"] in ("filling", "switching") for one in rows), "partitions": backend.partition_count,
            "now_ms": views.now_ms(),
        }  # fmt: skip

    async def rejected(error: str, topic: str, cursor: str | None) -> dict[str, Any]:
        wanted = Filter(backend.settings.topic_prefix + topic if topic else None, error.lower() or None, None, None)
        found = (await backend.rejected.page(REJECTED_A_PAGE, cursor, wanted))._asdict()
        prefix = backend.settings.topic_prefix
        return {"rejected": found["rejected"], "cursor": found["cursor"], "error_text": error, "topic": topic, "prefix": prefix}

    @router.get("/operations")
    async def operations(error: Words = "", topic: Annotated[Topic, Query()] = "", cursor: Cursor = None) -> Response:
        return page("operations.html", **await state(), **await rejected(error, topic, cursor))

    @router.get("/stream/operations")
    async def live(request: Request) -> Response:
        async def render() -> str:
            return fill("_operations.html", **await state())

        return stream(backend, "operations", request, render, SLOW_SECONDS)

    @router.get("/operations/behind")
    async def behind() -> Response:
        """The lag, for the rail of every page."""
        return page("_behind.html", lag=backend.watch.lag(), known=backend.watch.known())
