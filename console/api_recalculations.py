"""API of recalculations: start, list, watch, cancel (contract, section 4), and the schedule. Parses requests; `recalculations` plans and cancels."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request

from agents.driver import next_run_ms
from schemas.errors import shown
from schemas.journey import MAX_ID
from schemas.recalculation import SCHEDULE
from schemas.times import format_ms

from . import models
from .backend import Backend
from .bodies import decode_json, read_body
from .errors import ApiError
from .kafka import now_ms
from .openapi import errors, request_body
from .recalculations import shown as row
from .results import MAX_LIMIT

RecalculationId = Annotated[str, Path(min_length=1, max_length=100)]
MAX_JOURNEYS = 10_000
MIN_RATE, MAX_RATE = 1, 10**12  # slower than one a second is a recalculation that never ends, and those behind it wait
FIELDS = ("journeys", "events_per_second")
BODY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["journeys"],
    "properties": {
        "journeys": {
            "description": "ids of journeys, or all",
            "anyOf": [
                {"type": "array", "minItems": 1, "maxItems": MAX_JOURNEYS, "items": {"type": "string", "pattern": f"^[a-z0-9-]{{1,{MAX_ID}}}$"}},
                {"const": "all"},
            ],
        },
        "events_per_second": {
            "description": "activities a second to read at most; null for as fast as the living allows",
            "anyOf": [{"type": "number", "minimum": MIN_RATE, "maximum": MAX_RATE}, {"type": "null"}],
        },
    },
}


def install(app: FastAPI, backend: Backend) -> None:
    """Adds the routes to *app*."""

    @app.post(
        "/api/recalculations",
        status_code=202,
        response_model=models.Recalculation,
        responses=errors(404, 409, 413, 415, 422, 429, 503),
        openapi_extra=request_body(BODY),
    )
    async def start(request: Request) -> Any:
        """Plans a recalculation of the rules of journeys: their evidence is built anew from the log, beside the living. It begins when none is under
        way; an equal one that is planned already is the answer instead. Other journeys with the same rules follow. Activities older than `log_from`,
        which the log has no more, count no longer afterwards."""
        wanted, events_per_second = _read(await read_body(request))
        journeys = backend.store.all() if wanted is None else [backend.store.known(id_) for id_ in dict.fromkeys(wanted)]
        if not journeys:
            raise ApiError(409, "no_journeys", "there are no journeys to recalculate; apply one first", "journeys")
        return row(await backend.recalculations.plan(journeys, events_per_second, lambda: backend.offsets.first_ms("activities")))

    @app.get("/api/recalculations", response_model=models.Recalculations, responses=errors(404, 422, 503))
    async def all_of_them(
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 100,
        cursor: Annotated[str | None, Query(min_length=1, max_length=100, description="as the page before gave it")] = None,
    ) -> Any:
        """Recalculations, the newest first, and from which time on a new one would see the log."""
        rows = backend.recalculations.all()
        if cursor is not None:
            places = [i for i, one in enumerate(rows) if one["id"] == cursor]
            if not places:
                raise ApiError(404, "unknown_cursor", "the cursor is none that this list gave, or its recalculation is gone; begin anew", "cursor")
            rows = rows[places[0] + 1 :]
        from_ms = await backend.offsets.first_ms("activities")
        return {
            "recalculations": rows[:limit],
            "cursor": rows[limit - 1]["id"] if len(rows) > limit else None,
            "log_from": None if from_ms is None else format_ms(from_ms),
        }

    @app.get("/api/recalculations/{recalculation_id}", response_model=models.Recalculation, responses=errors(404, 422, 503))
    async def one(recalculation_id: RecalculationId) -> Any:
        """One recalculation, as far as it is."""
        return row(backend.recalculations.known(recalculation_id))

    @app.post("/api/recalculations/{recalculation_id}/cancel", response_model=models.Recalculation, responses=errors(404, 409, 422, 503))
    async def cancel(recalculation_id: RecalculationId) -> Any:
        """Cancels a recalculation that is not over; what is visible stays as it is. Cancelling a cancelled one changes nothing."""
        return row(await backend.recalculations.cancel(recalculation_id))

    @app.post(
        "/api/recalculations/{recalculation_id}/confirm",
        response_model=models.Recalculation,
        responses=errors(404, 409, 422, 503),
    )
    async def confirm(recalculation_id: RecalculationId) -> Any:
        """Confirms a recalculation whose phase is `confirming`: its results become visible. Cancelling it keeps the visible ones. Confirming a
        confirmed one changes nothing."""
        return row(await backend.recalculations.confirm(recalculation_id))

    @app.get("/api/schedule", response_model=models.Schedule, responses=errors(422))
    async def schedule() -> Any:
        """When journeys are recalculated by themselves, by the settings of this console; workers follow theirs."""
        return schedule_of(backend)


def schedule_of(backend: Backend) -> dict[str, Any]:
    """The schedule as the API shows it."""
    settings = backend.settings
    runs = [one.planned_at for one in backend.recalculations.table.all() if one.cause == SCHEDULE]
    cron = settings.recalculation_schedule
    following = next_run_ms(cron, settings.recalculation_time_zone, now_ms()) if cron else None
    return {
        "cron": cron or None,
        "time_zone": settings.recalculation_time_zone,
        "next_run": None if following is None else format_ms(following),
        "last_run": format_ms(max(runs)) if runs else None,
    }


def _read(body: bytes) -> tuple[list[str] | None, float | None]:
    """`(journey ids or None for all, events a second or None)`. Raises `ApiError`."""
    said = decode_json(body, "an object with journeys")
    if not isinstance(said, dict):
        raise ApiError(422, "wrong_type", f'{shown(said)} is not an object; send {{"journeys": ["an-id"]}} or {{"journeys": "all"}}')
    for name in said:
        if name not in FIELDS:
            raise ApiError(422, "unknown_field", f"{shown(name)} is not a field here; there are {', '.join(FIELDS)}", str(name)[:100])
    journeys, rate = said.get("journeys"), said.get("events_per_second")
    if journeys != "all" and not (isinstance(journeys, list) and 0 < len(journeys) <= MAX_JOURNEYS and all(isinstance(j, str) for j in journeys)):
        raise ApiError(422, "bad_journeys", f'journeys: {shown(journeys)} is neither a list of journey ids nor "all"; give one of them', "journeys")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not MIN_RATE <= rate <= MAX_RATE):
        what = f"events_per_second: {shown(rate)} is not a number from {MIN_RATE} to {MAX_RATE:,}"
        raise ApiError(422, "bad_rate", f"{what}; give one, or null", "events_per_second")
    return (None if journeys == "all" else journeys), (None if rate is None else float(rate))
