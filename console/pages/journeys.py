"""Journeys page: all journeys with their numbers, to be found, sorted, opened. Reads only."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from console.backend import Backend
from console.errors import ApiError
from console.live import directly
from schemas.journey import Journey

from . import views
from .journey import Ask
from .page import SLOW_SECONDS, Number, Words, fill, page, stream

JOURNEYS_A_PAGE = 25
Sort = Literal["name", "entered", "last", "overall", "kpi", "drop", "recalculated"]
COLUMNS = {
    "name": "Journey", "entered": "Entered", "last": "Reached the last stage", "overall": "Overall", "kpi": "KPI of the last stage",
    "drop": "Largest drop-off", "recalculated": "Recalculated",
}  # fmt: skip


def install(router: APIRouter, backend: Backend) -> None:
    """Adds the routes."""

    async def line(journey: Journey, ask: Ask) -> dict[str, Any]:
        try:
            given_up = backend.recalculations.table.given_up(journey)
            answer, _ = await ask(("summary", journey.id, None, None), lambda: backend.summary(journey.id))
            return {"error": None, "given_up": given_up, **views.line(journey, answer)}
        except ApiError as error:
            return {
                "error": error.message, "id": journey.id, "name": journey.name, "stages": len(journey.stages), "version": journey.version,
                "order": dict.fromkeys(COLUMNS, -1) | {"name": journey.name.casefold()},
            }  # fmt: skip

    async def lines(q: str, number: int, sort: str, down: bool, ask: Ask = directly) -> dict[str, Any]:
        every = backend.store.all()
        found = [journey for journey in every if views.matches(journey, q)]
        last = max(1, -(-len(found) // JOURNEYS_A_PAGE))
        number = min(number, last)
        a_page = slice((number - 1) * JOURNEYS_A_PAGE, number * JOURNEYS_A_PAGE)
        if sort == "name":  # else the numbers of all have to be known
            found = sorted(found, key=lambda journey: journey.name.casefold(), reverse=down)[a_page]
        rows = await asyncio.gather(*(line(journey, ask) for journey in found))
        if sort != "name":
            rows = sorted(rows, key=lambda one: one["order"][sort], reverse=down)[a_page]
        fresh = [one for one in rows if one["error"] is None]
        return {
            "q": q, "every": len(every), "found": len([j for j in every if views.matches(j, q)]), "lines": rows, "number": number, "last": last,
            "sort": sort, "down": down, "columns": COLUMNS, "oldest": min(fresh, key=lambda one: str(one["as_of"]), default=None),
            "calculating": sum(not one["live"] and one["given_up"] is None for one in fresh), "unanswered": len(rows) - len(fresh),
        }  # fmt: skip

    @router.get("/")
    async def home() -> Response:
        return RedirectResponse("/journeys", 307)

    @router.get("/favicon.ico")
    async def icon() -> Response:
        return Response(status_code=204)

    @router.get("/journeys")
    async def journeys(q: Words = "", number: Number = 1, sort: Sort = "name", down: bool = False) -> Response:
        return page("journeys.html", **await lines(q, number, sort, down))

    @router.get("/stream/journeys")
    async def live(request: Request, q: Words = "", number: Number = 1, sort: Sort = "name", down: bool = False) -> Response:
        async def render() -> str:
            return fill("_lines.html", **await lines(q, number, sort, down, backend.live.shared))

        return stream(backend, ("journeys", q, number, sort, down), request, render, SLOW_SECONDS)
