"""OpenAPI: what the document says beyond what FastAPI finds by itself: request bodies, journeys, errors. Answers no request but its own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from schemas.journey_schema import journey_schema

from . import models
from .facts import KINDS

REF = "#/components/schemas/{}"
REASONS = {
    404: "there is no such thing",
    409: "the body is another journey than the address",
    412: "another version is there than `If-Match` says, or somebody else saved at the same moment",
    413: "the body is too large",
    415: "the body is not JSON",
    422: "what was sent breaks a rule",
    503: "the broker or a worker does not answer; try again",
}
INTRODUCTION = """Customer journeys: where contacts stand. Every error has the same shape. Times are RFC 3339, UTC, with milliseconds."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for its `responses`."""
    found: dict[int | str, dict[str, Any]] = {s: {"model": models.ErrorAnswer, "description": REASONS[s]} for s in statuses}
    return {**found, "default": {"model": models.ErrorAnswer, "description": "any other error"}}


def request_body(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON body that the route reads itself, for its `openapi_extra`."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=INTRODUCTION, routes=app.routes)
        schemas = document["components"]["schemas"]
        journey, definitions = journey_schema(REF)
        # the address says the id; it may be left out of the body
        journey["required"] = [name for name in journey["required"] if name != "id"]
        schemas.update(definitions, Journey=journey)
        for kind in KINDS.values():
            model = kind.model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas[kind.model.__name__] = {**model, "additionalProperties": False}
        schemas["JourneyAnswer"]["properties"]["stages"]["items"] = {"$ref": REF.format("Stage")}
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = document
    return app.openapi_schema
