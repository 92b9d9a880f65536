"""OpenAPI: what the document says beyond what FastAPI finds by itself: request bodies, journeys, errors. Answers no request but its own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from schemas.journey import ADDED
from schemas.journey_schema import journey_schema

from . import models
from .facts import KINDS

REF = "#/components/schemas/{}"
REASONS = {
    404: "there is no such thing",
    409: "what was sent does not fit what is there: the body is another journey than the address, or nothing can be done with it",
    412: "another version is there than `If-Match` or `If-None-Match` says, or somebody else saved at the same moment",
    413: "the body is too large",
    415: "the body is not JSON",
    422: "what was sent breaks a rule",
    429: "there is too much of this at present: streams of the session, recalculations that are planned; try again later",
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
        journey["properties"] |= {name: {"description": "added by the API; ignored in what is sent"} for name in ADDED}
        schemas.update(definitions, Journey=journey)
        for kind in KINDS.values():
            model = kind.model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas[kind.model.__name__] = {**model, "additionalProperties": False}
        schemas["JourneyAnswer"]["properties"]["stages"]["items"] = {"$ref": REF.format("Stage")}
        _link(document["paths"])
        for operation in (o for path in document["paths"].values() for o in path.values()):
            for parameter in operation.get("parameters", []):
                parameter["schema"] = _not_null(parameter["schema"])
        for path, operations in document["paths"].items():
            for operation in operations.values() if path.startswith("/api/") else ():
                for status, why in (("401", "nobody is logged in, and no token was sent"), ("403", "the role does not reach so far")):
                    content = {"application/json": {"schema": {"$ref": REF.format("ErrorAnswer")}}}
                    operation["responses"].setdefault(status, {"description": why, "content": content})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = document
    return app.openapi_schema


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter: one that may be left out cannot be null, since there is no null in an address or a header."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    return {**{k: v for k, v in schema.items() if k != "anyOf"}, **kinds[0]} if len(kinds) == 1 else schema


def _link(paths: dict[str, Any]) -> None:
    """Says where a journey that was saved can be looked at."""
    one = "/api/journeys/{journey_id}"
    for answer in (paths[one]["put"]["responses"][status] for status in ("200", "201")):
        answer["links"] = {
            name: {"operationId": paths[path][method]["operationId"], "parameters": {"journey_id": "$response.body#/id", **more}}
            for name, path, method, more in (
                ("journey", one, "get", {}),
                ("results", f"{one}/results", "get", {}),
                ("contacts", f"{one}/stages/{{stage}}/contacts", "get", {"stage": 1}),
                ("delete", one, "delete", {}),
            )
        }
