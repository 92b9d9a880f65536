"""Builder: the page on which journeys are written. It shows drafts and judges them; what saves is the HTTP API, called by the page."""

from __future__ import annotations

import json
from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from console import edits
from console.api_recalculations import schedule_of
from console.backend import Backend
from console.bodies import decode_json, read_body
from console.errors import ApiError
from console.shop import JOURNEY as SAMPLE
from console.written import from_text
from schemas.errors import Refused
from schemas.journey import ADDED, Journey, journey_json
from schemas.rules import catalogue_data
from schemas.times import format_ms

from . import drafts
from .page import as_data, page

MAX_DRAFT_BYTES = 4 << 20
Id = Annotated[str, Query(max_length=64)]
FILE = '{"name": "journey.yaml", "text": "its content"}'
EMPTY: dict[str, Any] = {"id": "", "name": "", "stages": [{"name": "", "condition": {"any": []}}]}


def install(router: APIRouter, backend: Backend) -> None:
    """Adds the routes."""

    @router.get("/builder")
    async def builder(id: Id = "", copy: Id = "", sample: bool = False) -> Response:
        saved = backend.store.known(id) if id else None
        if saved is not None:
            draft = _body(saved)
        elif copy:
            other = backend.store.known(copy)
            draft = {**_body(other), "id": "", "name": f"{other.name} (copy)"[:200]}
        elif sample:
            draft = dict(SAMPLE)
        else:
            draft = {**EMPTY, "scheduled_recalculation": bool(backend.settings.recalculation_schedule)}
        data = {
            "id": id, "version": None if saved is None else saved.version, "draft": draft, "changed": saved is None and (bool(copy) or sample),
            "rules": [{**rule, "title": drafts.title(rule["sentence"])} for rule in catalogue_data()], "ops": drafts.WORDS,
        }  # fmt: skip
        return page(
            "builder.html", journey=saved, data=as_data(data), schedule=schedule_of(backend), versions=_versions(backend, saved),
            categories=sorted({rule["category"] for rule in catalogue_data()}),
        )  # fmt: skip

    @router.post("/builder/show")
    async def show(request: Request) -> Response:
        """The editor for a draft: `{"draft": …, "id": of what is saved or "", "base": its version, "selected": place of a stage}`."""
        said = _read(await read_body(request, MAX_DRAFT_BYTES))
        draft, base = said["draft"], backend.store.get(said["id"])
        found, errors = drafts.judged(draft)
        if not said["id"] and found is not None and backend.store.get(found.id) is not None:
            errors = [Refused("taken", f'there is a journey "{found.id}" already; give this one another id', "id")]
            found = None
        seen = None if base is None else backend.store.version(base.id, said["base"]) or base
        cost = await backend.cost(found) if found is not None else None
        changes = edits.changes(seen, found) if found is not None else None
        new = _new(backend, draft)
        return page(
            "_editor.html", draft=draft, is_new=not said["id"], saved=base, cost=cost, changes=changes, version=_next(backend, said["id"], found),
            overtaken=base if base is not None and base.version != said["base"] else None,
            overtaken_at=None if base is None or base.saved_at is None else format_ms(base.saved_at),
            **drafts.shape(draft, said["selected"], errors, new),
        )  # fmt: skip

    @router.post("/builder/compare")
    async def compare(request: Request, id: Id, version: Annotated[int, Query(ge=1)]) -> Response:
        """What a draft changes about a version: a list."""
        said = _read(await read_body(request, MAX_DRAFT_BYTES))
        before = backend.store.version(id, version)
        if before is None:
            raise ApiError(404, "unknown_version", f"version {version} is not kept any more")
        found, errors = drafts.judged(said["draft"])
        return page("_changes.html", version=version, changes=None if found is None else edits.changes(before, found), errors=errors)

    @router.post("/builder/import")
    async def bring_in(request: Request) -> Any:
        """The journey in a file, `{"name": …, "text": …}`, as a draft, and whether there is one of its id."""
        file = decode_json(await read_body(request, MAX_DRAFT_BYTES), FILE)
        if not (isinstance(file, dict) and isinstance(file.get("name"), str) and isinstance(file.get("text"), str)):
            raise ApiError(422, "wrong_type", f"the body is not a file; send {FILE}")
        try:
            rows = from_text(file["text"], file["name"])
        except Refused as refused:
            raise ApiError(422, refused.code, refused.message) from None
        if len(rows) != 1 or not isinstance(rows[0], dict):
            raise ApiError(422, "bad_value", f"the file holds {len(rows)} journeys; the builder takes one, `waypost journey apply` takes all")
        draft = {k: v for k, v in rows[0].items() if k not in ADDED}
        known = backend.store.get(str(draft.get("id"))) is not None
        try:
            body = json.dumps({"draft": draft, "known": known}, ensure_ascii=False, allow_nan=False, default=_date)
            return Response(body.encode(), media_type="application/json")
        except (TypeError, ValueError, RecursionError) as error:
            raise ApiError(422, "bad_value", f"the file holds a value that JSON does not have ({error}); write texts and numbers") from None


def _date(value: object) -> str:
    """Return a date of YAML as text. Raises TypeError for other values that JSON does not have."""
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__}")


def _body(journey: Journey) -> dict[str, Any]:
    return {k: v for k, v in journey_json(journey).items() if k not in ADDED}


def _read(body: bytes) -> dict[str, Any]:
    """What the page says. Raises `ApiError` (422)."""
    said = decode_json(body, "an object with draft")
    if not isinstance(said, dict) or not isinstance(said.get("draft"), dict):
        raise ApiError(422, "wrong_type", "this is no draft")
    base, selected = said.get("base"), said.get("selected")
    return {
        "draft": said["draft"], "id": said["id"] if isinstance(said.get("id"), str) else "", "base": base if isinstance(base, int) else 0,
        "selected": selected if isinstance(selected, int) else 0,
    }  # fmt: skip


def _new(backend: Backend, draft: dict[str, Any]) -> frozenset[bytes]:
    """Keys of the rules, of those stages of a draft that can be read, which no evidence was ever collected for."""
    found: set[bytes] = set()
    stages = draft.get("stages")
    for stage in stages[:10] if isinstance(stages, list) else ():
        if isinstance(stage, dict):
            read, _ = drafts.judged({"id": "x", "name": "x", "stages": [{**stage, "name": "x"}]})
            if read is not None:
                found |= edits.new_rules(backend.recalculations.table, read).keys()
    return frozenset(found)


def _next(backend: Backend, id_: str, found: Journey | None) -> int:
    return backend.store.next_version(id_ or (found.id if found is not None else ""))


def _versions(backend: Backend, saved: Journey | None) -> list[dict[str, Any]]:
    kept = [] if saved is None else backend.store.versions(saved.id)
    rows = [
        {
            "version": one.version, "at": None if one.saved_at is None else format_ms(one.saved_at),
            "changes": edits.changes(kept[k - 1] if k else None, one) if k or one.version == 1 else ["What it changed is not kept any more"],
        }
        for k, one in enumerate(kept)
    ]  # fmt: skip
    return rows[::-1]
