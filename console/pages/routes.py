"""Routes of the pages: asks the functions that answer the HTTP API, and fills templates with what `views` makes of it. Changes nothing."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from console import handlers
from console.backend import Backend
from console.errors import ApiError
from console.results import MAX_LIMIT
from schemas.journey import ADDED, Journey, journey_json
from schemas.wire import MAX_ID

from . import views

TAG = "pages"
JOURNEYS_A_PAGE = 25
CONTACTS_A_PAGE = 100
STATIC = {"console.css": "text/css", "live.js": "text/javascript", "theme.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
WHO = {"converted": "reached the stage", "dropped_off": "reached the stage and not the next"}
Who = Literal["converted", "dropped_off"]
Group = Annotated[str, Query(max_length=MAX_ID)]
Words = Annotated[str, Query(max_length=200)]
Number = Annotated[int, Query(ge=1, le=1_000_000)]
Cursor = Annotated[str | None, Query(min_length=1, max_length=4000)]

templates = Environment(
    loader=PackageLoader("console.pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def page(template: str, status: int = 200, **values: Any) -> Response:
    """The filled template; everything in *values* is text, never markup."""
    return HTMLResponse(templates.get_template(template).render(**values), status, headers=HEADERS)


def install(app: FastAPI, backend: Backend) -> None:
    """Adds the pages to *app*, whose errors they show as pages."""
    router = APIRouter(tags=[TAG], include_in_schema=False)
    _journeys(router, backend)
    _journey(router, backend)
    _static(router)
    app.include_router(router)
    _errors(app)


def _errors(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError) -> Response:
        if TAG not in getattr(request.scope.get("route"), "tags", ()):
            return handlers.answer(error)
        found = page("error.html", error.status, error=error)
        found.headers.update(error.headers)
        return found

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return answer(request, error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer(request, handlers.parameter_error(error.errors()[0]))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, invalid)


def _journeys(router: APIRouter, backend: Backend) -> None:
    async def line(journey: Journey) -> dict[str, Any]:
        try:
            return {"error": None, **views.line(journey, await backend.results(journey.id))}
        except ApiError as error:
            return {"error": error.message, "id": journey.id, "name": journey.name, "stages": len(journey.stages), "version": journey.version}

    @router.get("/")
    async def home() -> Response:
        return RedirectResponse("/journeys", 307)

    @router.get("/journeys")
    async def journeys(q: Words = "", number: Number = 1) -> Response:
        every = backend.store.all()
        found = [journey for journey in every if views.matches(journey, q)]
        last = max(1, -(-len(found) // JOURNEYS_A_PAGE))
        number = min(number, last)
        shown = found[(number - 1) * JOURNEYS_A_PAGE : number * JOURNEYS_A_PAGE]
        lines = await asyncio.gather(*(line(journey) for journey in shown))
        fresh = [one for one in lines if one["error"] is None]
        return page(
            "journeys.html", q=q, every=len(every), found=len(found), lines=lines, number=number, last=last,
            oldest=min(fresh, key=lambda one: str(one["as_of"]), default=None), calculating=sum(not one["live"] for one in fresh),
            unanswered=len(lines) - len(fresh),
        )  # fmt: skip

    @router.get("/journeys/{journey_id}/export")
    async def export(journey_id: str) -> Response:
        saved = journey_json(backend.store.known(journey_id))
        body = json.dumps({k: v for k, v in saved.items() if k not in ADDED}, ensure_ascii=False, indent=2) + "\n"
        return Response(body, headers={**HEADERS, **_file(f"{journey_id}.json")}, media_type="application/json")


def _journey(router: APIRouter, backend: Backend) -> None:
    def stage_of(journey: Journey, stage: int) -> str:
        return journey.stages[stage - 1].name if 1 <= stage <= len(journey.stages) else f"stage {stage}"

    @router.get("/journeys/{journey_id}")
    async def journey(journey_id: str, group: Group = "") -> Response:
        found = backend.store.known(journey_id)
        results = await backend.results(journey_id, None, group or None)
        shown = found if results["version"] == found.version else backend.store.version(journey_id, results["version"])
        conditions = [None] * len(results["stages"]) if shown is None else [views.sentence(stage.condition) for stage in shown.stages]
        return page(
            "journey.html", journey=found, group=group, shows=results["version"], state=views.state(results), totals=views.totals(results),
            recalculated=results["recalculated_at"], unknown=results["stages"][0]["converted"] is None, conditions=conditions,
            nobody=results["stages"][0]["converted"] == 0, rows=views.funnel(results), width=views.WIDTH, height=views.HEIGHT,
        )  # fmt: skip

    @router.get("/journeys/{journey_id}/stages/{stage}/contacts")
    async def contacts(journey_id: str, stage: int, who: Who = "converted", group: Group = "", cursor: Cursor = None) -> Response:
        found = backend.store.known(journey_id)
        listed = await backend.listed(journey_id, stage, who, group or None, CONTACTS_A_PAGE, cursor)
        return page(
            "contacts.html", journey=found, stage=stage, name=stage_of(found, stage), who=who, words=WHO[who], group=group, listed=listed,
            first=cursor is None,
        )  # fmt: skip

    @router.get("/journeys/{journey_id}/stages/{stage}/contacts.csv")
    async def contacts_csv(journey_id: str, stage: int, who: Who = "converted", group: Group = "") -> Response:
        first = await backend.listed(journey_id, stage, who, group or None, MAX_LIMIT, None)
        if first["total"] is None:
            raise ApiError(503, "calculating", f'journey "{journey_id}" has no numbers yet; try again', headers={"Retry-After": "1"})

        async def parts() -> AsyncIterator[str]:
            yield _csv([("contact_id", "reached_at", "groups")])
            listed = first
            while True:
                yield _csv(views.csv_lines(listed["contacts"]))
                if listed["cursor"] is None:
                    return
                listed = await backend.listed(journey_id, stage, who, group or None, MAX_LIMIT, listed["cursor"])

        return StreamingResponse(parts(), headers={**HEADERS, **_file(f"{journey_id}.{stage}.{who}.csv")}, media_type="text/csv; charset=utf-8")


def _csv(rows: Any) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _file(name: str) -> dict[str, str]:
    """The header that makes an answer a file; names are of journey ids and numbers, which need no quoting."""
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _static(router: APIRouter) -> None:
    read = {name: (files("console.pages") / "static" / name).read_bytes() for name in STATIC}

    @router.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in read:
            raise ApiError(404, "not_found", f'there is no file "{name}" here')
        return Response(read[name], headers={**HEADERS, "Cache-Control": "no-cache"}, media_type=STATIC[name])
