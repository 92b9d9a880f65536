"""Contact pages: find one by any of its ids; who it is, where it stands on each journey and why. Reads only; the API erases."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from console.backend import Backend
from schemas.times import parse_ms

from . import views
from .page import SLOW_SECONDS, Words, fill, page, stream


def install(router: APIRouter, backend: Backend) -> None:
    """Adds the routes. A contact is named in the query: its id may hold anything, dots and slashes too."""

    @router.get("/contacts")
    async def contacts(id: Words = "") -> Response:
        if not id.strip():
            return page("contact_search.html")
        return page("contact.html", **await shown(backend, id))

    @router.get("/stream/contacts")
    async def live(request: Request, id: Words) -> Response:
        async def render() -> str:
            return fill("_contact.html", **await shown(backend, id))

        await backend.contact(id)
        return stream(backend, ("contact", id), request, render, SLOW_SECONDS)


async def shown(backend: Backend, id_: str) -> dict[str, Any]:
    """What the page of a contact shows. Raises `ApiError`: 404, 503."""
    found = await backend.contact(id_)
    names = {journey.id: journey.name for journey in backend.store.all()}
    stages = {journey.id: [stage.name for stage in journey.stages] for journey in backend.store.all()}
    attributes = {} if found["profile"] is None else found["profile"]["attributes"]
    name = attributes.get("name")
    entered = [one for one in found["journeys"] if one["stages"] and one["journey"] in names]
    return {
        "asked": id_, "found": found, "title": name if isinstance(name, str) and name else found["survivor"], "names": names,
        "attributes": {key: value if isinstance(value, str) else views.as_text(value) for key, value in attributes.items()},
        "tracks": [track(one, stages[one["journey"]]) for one in entered],
        "not_entered": [one for one in found["journeys"] if not one["stages"] and one["journey"] in names],
    }  # fmt: skip


def track(standing: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """A journey as the stages reached, with the time between them, and those to come."""
    done = []
    before = None
    for row in standing["stages"]:
        at_ms = parse_ms(row["reached_at"])
        done.append({**row, "since": None if before is None else views.duration((at_ms - before) // 1000)})
        before = at_ms
    rest = [{"stage": k, "name": name} for k, name in enumerate(names[len(done) :], len(done) + 1)]
    return {**standing, "done": done, "rest": rest, "of": len(names)}
