"""Journey page: the funnel, what is behind each number, groups, days and waits. Reads only."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from datetime import UTC, datetime
from typing import Any, Literal

import yaml
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from console.backend import Backend
from console.edits import sentence
from console.errors import ApiError
from console.live import directly
from console.recalculations import shown as recalculation_row
from console.results import MAX_LIMIT
from schemas.journey import ADDED, Journey, journey_json

from . import views
from .page import HEADERS, Cursor, Group, download, fill, page, stream

CONTACTS_A_PAGE = 100
MAX_GROUPS = 500  # offered
WHO = {"converted": "reached the stage", "dropped_off": "reached the stage and not the next"}
Who = Literal["converted", "dropped_off"]
Ask = Callable[[Hashable, Callable[[], Awaitable[Any]]], Awaitable[Any]]
Tab = Literal["stages", "groups", "days", "waits"]


def install(router: APIRouter, backend: Backend) -> None:
    """Adds the routes."""
    _overview(router, backend)
    _lists(router, backend)
    _files(router, backend)


async def results(backend: Backend, journey_id: str, group: str, tab: str, ask: Ask = directly) -> dict[str, Any]:
    """Return what the live part of the page shows. *ask*: `Live.shared` for streams, which take over each other's answers."""
    found = backend.store.known(journey_id)
    chosen = group or None
    answer, median = await ask(("summary", journey_id, None, chosen), lambda: backend.summary(journey_id, None, chosen))
    shown = found if answer["version"] == found.version else backend.store.version(journey_id, answer["version"])
    conditions = [None] * len(answer["stages"]) if shown is None else [sentence(stage.condition) for stage in shown.stages]
    names = [row["name"] for row in answer["stages"]]
    details: Any = None
    if tab == "groups":
        asked = await ask(("groups", journey_id), lambda: backend.groups(journey_id))
        details = views.groups(asked["groups"])
    elif tab == "days":
        asked = await ask(("days", journey_id, chosen), lambda: backend.days(journey_id, chosen))
        details = views.trend(names, asked["days"], datetime.now(UTC).date())
    elif tab == "waits":
        details = views.waits(await ask(("waits", journey_id, chosen), lambda: backend.waits(journey_id, chosen)))
    work = backend.recalculations.table.covering(found)
    return {
        "journey": found, "group": group, "tab": tab, "shows": answer["version"], "state": views.state(answer),
        "totals": views.totals(answer, median), "recalculated": answer["recalculated_at"],
        "unknown": answer["stages"][0]["converted"] is None, "conditions": conditions,
        "nobody": answer["stages"][0]["converted"] == 0, "rows": views.funnel(answer), "width": views.WIDTH, "height": views.HEIGHT,
        "details": details, "work": views.recalculation(None if work is None else recalculation_row(work)),
        "given_up": backend.recalculations.table.given_up(found),
    }  # fmt: skip


def _overview(router: APIRouter, backend: Backend) -> None:
    @router.get("/journeys/{journey_id}")
    async def journey(journey_id: str, group: Group = "", tab: Tab = "stages", list: str = "") -> Response:
        values = await results(backend, journey_id, group, tab)
        groups = [
            {"name": one["group"], "contacts": views.number(one["stages"][0]["converted"])}
            for one in (await backend.groups(journey_id))["groups"][1 : MAX_GROUPS + 1]
        ]
        drawer = await _listed(backend, journey_id, list, group) if list else {}

        def here(**changed: str) -> str:
            return _here(journey_id, **({"group": group, "tab": tab} | changed))

        versions = len(backend.store.versions(journey_id))
        return page("journey.html", **{**drawer, **values}, list=list, groups=groups, here=here, versions=versions)

    @router.get("/journeys/{journey_id}/stream")
    async def live(request: Request, journey_id: str, group: Group = "", tab: Tab = "stages") -> Response:
        async def render() -> str:
            return fill("_results.html", **await results(backend, journey_id, group, tab, backend.live.shared))

        backend.store.known(journey_id)
        return stream(backend, (journey_id, group, tab), request, render)


def _here(journey_id: str, group: str, tab: str) -> str:
    query = [f"{name}={value}" for name, value in (("group", group), ("tab", tab if tab != "stages" else "")) if value]
    return f"/journeys/{journey_id}" + ("?" + "&".join(query) if query else "")


def _place(text: str) -> tuple[int, Who]:
    """The stage and which of its contacts *text* means, as addresses say it: `3.dropped_off`. Raises `ApiError` (404)."""
    found = re.fullmatch(r"([1-9][0-9]?)\.(converted|dropped_off)", text)
    if found is None:
        raise ApiError(404, "unknown_list", f'there is no list "{text[:100]}"', "list")
    return int(found[1]), found[2]  # type: ignore[return-value]


def stage_name(journey: Journey, stage: int) -> str | None:
    return journey.stages[stage - 1].name if 1 <= stage <= len(journey.stages) else None


async def _listed(backend: Backend, journey_id: str, place: str, group: str, cursor: str | None = None) -> dict[str, Any]:
    stage, who = _place(place)
    found = backend.store.known(journey_id)
    listed = await backend.listed(journey_id, stage, who, group or None, CONTACTS_A_PAGE, cursor, "newest")
    return {
        "journey": found, "stage": stage, "who": who, "group": group, "listed": listed, "name": stage_name(found, stage) or f"stage {stage}",
        "following": stage_name(found, stage + 1),
    }  # fmt: skip


def _lists(router: APIRouter, backend: Backend) -> None:
    @router.get("/journeys/{journey_id}/list")
    async def drawer(journey_id: str, list: str, group: Group = "", tab: Tab = "stages") -> Response:
        return page("_drawer.html", **await _listed(backend, journey_id, list, group), tab=tab)

    @router.get("/journeys/{journey_id}/list/rows")
    async def rows(journey_id: str, list: str, cursor: Cursor, group: Group = "") -> Response:
        return page("_rows.html", **await _listed(backend, journey_id, list, group, cursor))

    @router.get("/journeys/{journey_id}/list/fresh")
    async def fresh(journey_id: str, list: str, seen: int, group: Group = "", tab: Tab = "stages") -> Response:
        """What came since a list was shown, as a button that shows it; nothing while its number is the same."""
        stage, who = _place(list)
        total = (await backend.listed(journey_id, stage, who, group or None, 1, None))["total"]
        return page("_fresh.html", id=journey_id, list=list, group=group, tab=tab, more=None if total is None else total - seen)

    @router.get("/journeys/{journey_id}/stages/{stage}/contacts")
    async def contacts(journey_id: str, stage: int, who: Who = "converted", group: Group = "", cursor: Cursor = None) -> Response:
        found = backend.store.known(journey_id)
        listed = await backend.listed(journey_id, stage, who, group or None, CONTACTS_A_PAGE, cursor, "newest")
        return page(
            "contacts.html", journey=found, stage=stage, name=stage_name(found, stage) or f"stage {stage}", who=who, words=WHO[who], group=group,
            listed=listed, first=cursor is None,
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

        return StreamingResponse(parts(), headers={**HEADERS, **download(f"{journey_id}.{stage}.{who}.csv")}, media_type="text/csv; charset=utf-8")


def _files(router: APIRouter, backend: Backend) -> None:
    def saved(journey_id: str) -> dict[str, Any]:
        return {k: v for k, v in journey_json(backend.store.known(journey_id)).items() if k not in ADDED}

    @router.get("/journeys/{journey_id}/export")
    async def export(journey_id: str) -> Response:
        body = json.dumps(saved(journey_id), ensure_ascii=False, indent=2) + "\n"
        return Response(body, headers={**HEADERS, **download(f"{journey_id}.json")}, media_type="application/json")

    @router.get("/journeys/{journey_id}/export.yaml")
    async def export_yaml(journey_id: str) -> Response:
        body = yaml.safe_dump(saved(journey_id), sort_keys=False, allow_unicode=True)
        return Response(body, headers={**HEADERS, **download(f"{journey_id}.yaml")}, media_type="application/yaml")

    @router.get("/journeys/{journey_id}/results.csv")
    async def results_csv(journey_id: str, group: Group = "") -> Response:
        found = await backend.results(journey_id, None, group or None)
        ratios = ("converted", "converted_ratio", "dropped_off", "dropped_off_ratio", "kpi", "kpi_ratio")
        columns = ("stage", "name", *ratios, "median_seconds_from_previous")
        body = _csv([columns, *([row[name] for name in columns] for row in found["stages"])])
        return Response(body, headers={**HEADERS, **download(f"{journey_id}.csv")}, media_type="text/csv; charset=utf-8")


def _csv(rows: Any) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
