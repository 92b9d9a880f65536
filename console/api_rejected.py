"""API of rejected records: list them, send them again (contract, section 4). Parses requests; `rejected` reads, `resending` sends."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request

from schemas.errors import Refused, shown
from schemas.times import parse_ms

from . import models
from .backend import Backend
from .bodies import decode_json, read_body
from .errors import ApiError
from .openapi import errors, request_body
from .rejected import ID, Filter, parse_id
from .resending import UNTOUCHED, Mend, content
from .results import MAX_LIMIT

MAX_RECORDS = 1000
FIELDS = ("id", "key", "key_base64", "value", "value_base64")
TEXT = {"anyOf": [{"type": "string"}, {"type": "null"}]}
BASE64 = {"anyOf": [{"type": "string", "contentEncoding": "base64"}, {"type": "null"}]}
BODY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["records"],
    "properties": {
        "records": {
            "description": "which to send, each with what is to be mended in it",
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_RECORDS,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["id"],
                "properties": {
                    "id": {"description": "as the list gave it", "type": "string", "pattern": f"^{ID.pattern}$"},
                    "key": {"description": "the key mended; left out: as it was, or the contact of a mended value", **TEXT},
                    "key_base64": {"description": "the same where the bytes are not text", **BASE64},
                    "value": {"description": "the value mended; left out: as it was", **TEXT},
                    "value_base64": {"description": "the same where the bytes are not text", **BASE64},
                },
            },
        }
    },
}
TIME = "^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,3})?Z$"
Topic = Literal["activities", "contact-merges", "contacts", "journeys", "handoffs", "rebuilt-evidence"]
Text = Annotated[str | None, Query(min_length=1, max_length=200, description="only those whose reason contains this; case is ignored")]
Cursor = Annotated[str | None, Query(min_length=1, max_length=4000, description="as the page before gave it")]


def _time(what: str) -> Any:
    return Query(description=f"only those rejected {what} this time (RFC 3339)", json_schema_extra={"pattern": TIME})


def install(app: FastAPI, backend: Backend) -> None:
    """Adds the routes to *app*."""

    @app.get("/api/rejected", response_model=models.Rejected, responses=errors(404, 422, 503))
    async def rejected(
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 100,
        cursor: Cursor = None,
        topic: Annotated[Topic | None, Query(description="only those that came from this topic, named without prefix")] = None,
        error: Text = None,
        since: Annotated[str | None, _time("at or after")] = None,
        until: Annotated[str | None, _time("before")] = None,
    ) -> Any:
        """What was rejected and why, newest first. A page may be shorter than the limit, or empty, when records are large or few are meant: only a
        cursor of null says that it was the last."""
        wanted = Filter(
            None if topic is None else backend.settings.topic_prefix + topic, None if error is None else error.lower(),
            _parsed(since, "since"), _parsed(until, "until"),
        )  # fmt: skip
        return (await backend.rejected.page(limit, cursor, wanted))._asdict()

    @app.post(
        "/api/rejected/resend",
        status_code=202,
        response_model=models.Resent,
        responses=errors(413, 415, 422, 503),
        openapi_extra=request_body(BODY),
    )
    async def resend(request: Request) -> Any:
        """Sends rejected records to the topics they came from once more: as they were, in the same partition, without the headers of the rejection,
        or mended. What is mended is judged like what is sent to `/api/activities`, and gets the key of the contact that it names unless one is
        given. What is sent is on its topic before the answer, and may be repeated: a fact that is there twice counts once. What is bad as it was
        is rejected again."""
        return await backend.resender.resend(_read(await read_body(request)))


def _parsed(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    try:
        return parse_ms(text)
    except Refused as refused:
        raise ApiError(422, "bad_time", f"{name}: {refused.message}", name) from None


def _read(body: bytes) -> list[Mend | Refused]:
    """What is to be sent; what cannot be is `Refused` in its place. Raises `ApiError` for a body that is none."""
    said = decode_json(body, "an object with records")
    if not isinstance(said, dict):
        raise ApiError(422, "wrong_type", f'{shown(said)} is not an object; send {{"records": [{{"id": "0-1"}}]}}')
    for name in said:
        if name != "records":
            raise ApiError(422, "unknown_field", f"{shown(name)} is not a field here; there is records", str(name)[:100])
    records = said.get("records")
    if not isinstance(records, list) or not 1 <= len(records) <= MAX_RECORDS:
        raise ApiError(422, "bad_value", f"records is not a list of 1 to {MAX_RECORDS} records; send more in several requests", "records")
    return [_mend(one, f"records[{index}]") for index, one in enumerate(records)]


def _mend(said: Any, path: str) -> Mend | Refused:
    if not isinstance(said, dict):
        raise ApiError(422, "wrong_type", f'{path}: {shown(said)} is not an object; send {{"id": "0-1"}}', path)
    for name, value in said.items():
        if name not in FIELDS:
            raise ApiError(422, "unknown_field", f"{path}: {shown(name)} is not a field here; there are {', '.join(FIELDS)}", f"{path}.{name[:100]}")
        if not isinstance(value, str) and (value is not None or name == "id"):
            raise ApiError(422, "wrong_type", f"{path}: {name}: {shown(value)} is not a text; give one", f"{path}.{name}")
    id_ = parse_id(said.get("id", ""))
    if id_ is None:
        what = shown(said.get("id"))
        raise ApiError(422, "bad_value", f"{path}: id: {what} is not the id of a rejected record; give one as the list shows it", f"{path}.id")
    mended = {}
    try:
        for name in ("key", "value"):
            if name in said or f"{name}_base64" in said:
                mended[name] = content(said.get(name), said.get(f"{name}_base64"), name)
    except Refused as refused:
        return refused
    return Mend(id_, mended.get("key", UNTOUCHED), mended.get("value", UNTOUCHED))
