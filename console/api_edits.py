"""API for editing journeys: their versions, what an edit would change and cost, values to offer (contract, section 4, extended)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args

from fastapi import FastAPI, Path, Query, Request

from schemas.activity import FIELDS
from schemas.journey import Journey, journey_json
from schemas.times import format_ms

from . import edits, models
from .backend import Backend
from .bodies import read_body
from .errors import ApiError
from .openapi import errors, request_body

Read = Callable[[str, bytes, bool], Journey]
"""`(journey id, body, flag where the body has none)` -> the journey; raises ApiError and Refused."""
JourneyId = Annotated[str, Path(json_schema_extra={"pattern": "^[a-z0-9-]{1,64}$"})]
Field = Literal["type", "page", "url", "channel", "form", "email", "value", "title", "utm_source", "utm_content", "language", "referrer"]
assert get_args(Field) == ("type", *FIELDS)
MAX_VALUES = 100


def install(app: FastAPI, backend: Backend, read: Read) -> None:
    """Adds the routes to *app*."""

    @app.get("/api/journeys/{journey_id}/versions", response_model=models.Versions, responses=errors(404, 422))
    async def versions(journey_id: JourneyId) -> Any:
        """The versions of a journey, the newest first, each with what it changed about the one before: those that the topic still has, at most 50."""
        backend.store.known(journey_id)
        kept = backend.store.versions(journey_id)
        return {
            "journey": journey_id,
            "versions": [
                {
                    "version": one.version,
                    "saved_at": None if one.saved_at is None else format_ms(one.saved_at),
                    "changes": edits.changes(kept[k - 1] if k else None, one) if k or one.version == 1 else [],
                }
                for k, one in reversed(list(enumerate(kept)))
            ],
        }

    @app.get(
        "/api/journeys/{journey_id}/versions/{version}",
        response_model=models.JourneyVersion,
        response_model_exclude_unset=True,
        responses=errors(404, 422),
    )
    async def version(journey_id: JourneyId, version: Annotated[int, Path(ge=1, le=2**53 - 1)]) -> Any:
        """A journey as a version of it said; saved again, it is the newest."""
        backend.store.known(journey_id)
        found = backend.store.version(journey_id, version)
        if found is None:
            raise ApiError(404, "unknown_version", f'the topic has no version {version} of journey "{journey_id}" any more', "version")
        return journey_json(found)

    @app.post(
        "/api/journeys/{journey_id}/preview",
        response_model=models.Preview,
        responses=errors(409, 413, 415, 422, 503),
        openapi_extra=request_body({"$ref": "#/components/schemas/Journey"}),
    )
    async def preview(journey_id: JourneyId, request: Request) -> Any:
        """What saving this body would change, and whether the log has to be read for it. Saves nothing."""
        before = backend.store.get(journey_id)
        after = read(journey_id, await read_body(request), before is None and bool(backend.settings.recalculation_schedule))
        return {
            "journey": journey_id,
            "version": backend.store.next_version(journey_id),
            "changes": edits.changes(before, after),
            **await backend.cost(after),
        }

    @app.get("/api/values", response_model=models.Values, responses=errors(422, 503))
    async def values(
        field: Annotated[Field, Query(description="of activities")],
        q: Annotated[str, Query(max_length=200, description="only values that contain this; case is ignored")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_VALUES)] = 20,
    ) -> Any:
        """Values that a field had in the newest activities, the most frequent first: to be offered where a rule asks for one."""
        return {"field": field, "values": await backend.seen.values(field, q, limit)}
