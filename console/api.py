"""API: the routes of the HTTP API (contract, section 4). Parses requests and names answers; `backend` finds them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from prometheus_client import generate_latest

from agents import metrics
from schemas.journey import ADDED, Journey, journey_json, parse_journey
from schemas.recalculation import CANCELLED, FAILED, FILLING, LIVE, PLANNED, SWITCHING
from schemas.rules import catalogue_data
from schemas.wire import MAX_ID

from . import api_edits, api_recalculations, api_rejected, models
from .backend import Backend
from .bodies import read_body
from .errors import ApiError
from .facts import KINDS, array, check, taken
from .guard import Guard
from .handlers import Failsafe, install
from .journeys import ABSENT, PRESENT
from .kafka import now_ms
from .measure import Measured
from .openapi import describe, errors, request_body
from .openid import OpenId
from .pages import account
from .pages import routes as page_routes
from .people import People
from .results import MAX_LIMIT
from .written import from_json

JourneyId = Annotated[str, Path(description="1 to 64 of a-z, 0-9 and -", json_schema_extra={"pattern": "^[a-z0-9-]{1,64}$"})]
ContactId = Annotated[str, Path(min_length=1, max_length=MAX_ID)]
StageNumber = Annotated[int, Path(ge=1, le=10, description="counts from 1")]
Group = Annotated[str | None, Query(min_length=1, max_length=MAX_ID, description="only contacts of this group")]
Version = Annotated[int | None, Query(ge=1, le=2**53 - 1, description="of this version; as a rule the newest that is complete")]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
Cursor = Annotated[str | None, Query(min_length=1, max_length=4000, description="as the page before gave it")]
# A precondition is HTTP's (RFC 9110), and its answer, 412, depends on the state: so it is told in words, not as a parameter with good and bad values.
IfMatch = Annotated[str | None, Header(alias="If-Match", include_in_schema=False)]
IfNoneMatch = Annotated[str | None, Header(alias="If-None-Match", include_in_schema=False)]
STATES = (PLANNED, FILLING, SWITCHING, LIVE, CANCELLED, FAILED)
GUARD = """

The header `If-Match: "<version>"` guards against lost edits: when another version is there, nothing changes and the answer is 412."""
ETAG = {"ETag": {"description": "the version, in quotes", "schema": {"type": "string"}}}


async def only_known_parameters(request: Request) -> None:
    """A query parameter that does not exist is a typing mistake (contract, preamble), except where others than people write the query."""
    if account.ANY_QUERY in request.scope["route"].tags:
        return
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    for name in request.query_params:
        if name not in known:
            there = f"there are {', '.join(sorted(known))}" if known else "there are none here"
            raise ApiError(422, "unknown_parameter", f'unknown query parameter "{name[:100]}"; {there}', name[:100])


def build(backend: Backend, guarded: bool = True) -> FastAPI:
    """The application over *backend*, which is started and stopped by whoever runs it. Not *guarded*: to be described only.

    Raises PeopleError for a file of users that cannot be used.
    """
    app = FastAPI(
        title="Waypost",
        version="1",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(only_known_parameters)],
        redirect_slashes=False,
    )
    install(app)
    login = _guarded(app, backend) if guarded else None
    app.add_middleware(Failsafe, page=page_routes.error_page)
    app.add_middleware(Measured)
    _journeys(app, backend)
    _results(app, backend)
    _contacts(app, backend)
    _facts(app, backend)
    _operations(app, backend)
    api_recalculations.install(app, backend)
    api_rejected.install(app, backend)
    api_edits.install(app, backend, _journey)
    page_routes.install(app, backend, login)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app


def _guarded(app: FastAPI, backend: Backend) -> Callable[[APIRouter], None]:
    """Puts the guard before *app*; what adds the pages by which one logs in."""
    settings, sessions, audit = backend.settings, backend.sessions, backend.audit
    openid = None if settings.oidc_issuer is None else OpenId(settings)
    people = None if sessions is None else People(settings.users_file)
    if people is not None and sessions is not None:
        people.on_change, sessions.each_tick = sessions.changed, people.look
    app.add_middleware(Guard, settings=settings, people=people, sessions=sessions, audit=audit, page=page_routes.error_page)
    return lambda router: account.install(router, people, openid, sessions, audit)


# ---------------------------------------------------------------------------------------- journeys


def _expected(if_match: str | None, if_none_match: str | None = None) -> int | None:
    """Return the version that the writer saw; `ABSENT` or `PRESENT` for `*`; None without a precondition; 0, which no version has, for what is no
    version. Raises `ApiError` (422) for an `If-None-Match` with versions, which no writer can mean."""
    if if_none_match is not None:
        if if_none_match.strip() != "*" or if_match is not None:
            raise ApiError(422, "bad_precondition", "If-None-Match: give *, which creates only, and no If-Match beside it", "If-None-Match")
        return ABSENT
    if if_match is None:
        return None
    if if_match.strip() == "*":
        return PRESENT
    found = re.fullmatch(r'\s*"([1-9][0-9]{0,14})"\s*', if_match)
    return int(found[1]) if found else 0


def _journeys(app: FastAPI, backend: Backend) -> None:
    async def shown(journeys: list[Journey]) -> list[dict[str, Any]]:
        statuses = await backend.statuses(journeys)
        return [{**journey_json(j), "status": statuses[j.id]} for j in journeys]

    @app.get("/api/journeys", response_model=models.Journeys, response_model_exclude_unset=True, responses=errors(422))
    async def all_journeys() -> Any:
        """All journeys, by id."""
        return {"journeys": await shown(backend.store.all())}

    @app.get(
        "/api/journeys/{journey_id}",
        response_model=models.JourneyAnswer,
        response_model_exclude_unset=True,
        responses={200: {"headers": ETAG}, **errors(404, 422)},
    )
    async def one_journey(journey_id: JourneyId, response: Response) -> Any:
        """One journey."""
        (found,) = await shown([backend.store.known(journey_id)])
        response.headers["ETag"] = f'"{found["version"]}"'
        return found

    @app.put(
        "/api/journeys/{journey_id}",
        response_model=models.JourneyAnswer,
        response_model_exclude_unset=True,
        responses={
            200: {"headers": ETAG, "description": "a new version, or nothing changed because the body is equal"},
            201: {"headers": ETAG, "model": models.JourneyAnswer, "description": "created"},
            **errors(409, 412, 413, 415, 422, 503),
        },
        openapi_extra=request_body({"$ref": "#/components/schemas/Journey"}),
        description="Creates a journey, or makes a new version of it. An equal body changes nothing. `version`, `saved_at` and `status` are ignored."
        + GUARD
        + " `If-None-Match: *` creates only: when the journey exists, nothing changes and the answer is 412.",
    )
    async def save_journey(
        journey_id: JourneyId, request: Request, response: Response, if_match: IfMatch = None, if_none_match: IfNoneMatch = None
    ) -> Any:
        new = backend.store.get(journey_id) is None
        journey = _journey(journey_id, await read_body(request), scheduled=new and bool(backend.settings.recalculation_schedule))
        saved, created = await backend.store.put(journey, _expected(if_match, if_none_match))
        (found,) = await shown([saved])
        response.status_code = 201 if created else 200
        response.headers["ETag"] = f'"{saved.version}"'
        return found

    @app.delete(
        "/api/journeys/{journey_id}",
        status_code=204,
        responses=errors(404, 412, 422, 503),
        description="Deletes a journey and its results." + GUARD,
    )
    async def delete_journey(journey_id: JourneyId, if_match: IfMatch = None) -> None:
        await backend.store.delete(journey_id, _expected(if_match))


def _journey(id_: str, body: bytes, scheduled: bool) -> Journey:
    """The journey that *body* says; *scheduled*: its flag, where the body has none. Raises `ApiError`, `Refused`."""
    data = from_json(body)
    if isinstance(data, dict):
        given = data.setdefault("id", id_)
        if isinstance(given, str) and given != id_:
            raise ApiError(409, "other_id", f'the body is journey "{given[:100]}", the address is that of "{id_[:100]}"; make them the same', "id")
        if scheduled:
            data.setdefault("scheduled_recalculation", True)
        for name in ADDED:
            data.pop(name, None)
        for stage in data["stages"] if isinstance(data.get("stages"), list) else ():
            if isinstance(stage, dict) and isinstance(stage.get("kpi"), float) and stage["kpi"].is_integer():
                stage["kpi"] = int(stage["kpi"])  # to JSON, 75.0 and 75 are one number
    return parse_journey(data)


# ---------------------------------------------------------------------------------------- results


def _results(app: FastAPI, backend: Backend) -> None:
    @app.get("/api/journeys/{journey_id}/results", response_model=models.Results, responses=errors(404, 422, 503))
    async def get_results(journey_id: JourneyId, group: Group = None, version: Version = None) -> Any:
        """The numbers of every stage. Numbers are those of the last complete version; null while there is none."""
        return await backend.results(journey_id, version, group)

    @app.get("/api/journeys/{journey_id}/stages/{stage}/contacts", response_model=models.ContactList, responses=errors(404, 422, 503))
    async def get_stage_contacts(
        journey_id: JourneyId,
        stage: StageNumber,
        who: Literal["converted", "dropped_off"] = "converted",
        group: Group = None,
        limit: Limit = 100,
        cursor: Cursor = None,
        order: Literal["oldest", "newest"] = "oldest",
    ) -> Any:
        """The contacts behind a number of the results: those who reached the stage, or those who reached it and not the next.

        `order=newest`: who moved last comes first, and one who moves while pages are read goes to the head of the list. `oldest`: by the furthest
        stage and when it was reached; one who moves meanwhile comes (again) on a later page, so that nobody is missed."""
        return await backend.listed(journey_id, stage, who, group, limit, cursor, order)

    @app.get("/api/journeys/{journey_id}/checksums", response_model=models.Checksums, responses=errors(404, 422, 503))
    async def get_checksums(
        journey_id: JourneyId,
        share: Annotated[float, Query(gt=0, le=1, allow_inf_nan=False, description="of the contacts, by the hash of their ids")] = 1.0,
        cursor: Cursor = None,
    ) -> Any:
        """Counts and checksums of all lists of a journey, some thousand contacts at a time: `waypost check` compares these."""
        return await backend.checksums(journey_id, share, cursor)

    @app.get("/api/journeys/{journey_id}/groups", response_model=models.Groups, responses=errors(404, 422, 503))
    async def get_groups(journey_id: JourneyId) -> Any:
        """How each group does at each stage, all from one state."""
        return await backend.groups(journey_id)

    @app.get("/api/journeys/{journey_id}/days", response_model=models.Days, responses=errors(404, 422, 503))
    async def get_days(journey_id: JourneyId, group: Group = None) -> Any:
        """How many contacts reached each stage on which day (UTC): the trend."""
        return await backend.days(journey_id, group)

    @app.get("/api/journeys/{journey_id}/waits", response_model=models.Waits, responses=errors(404, 422, 503))
    async def get_waits(journey_id: JourneyId, group: Group = None) -> Any:
        """How long contacts took from the stage before: the time to convert."""
        return await backend.waits(journey_id, group)

    @app.get(
        "/api/journeys/{journey_id}/live",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **errors(404, 422, 429, 503)},
    )
    async def live(journey_id: JourneyId, request: Request, group: Group = None, version: Version = None) -> Any:
        """The results as server-sent events, each time they change, at most four a second. An event `unavailable` carries an error."""
        await backend.results(journey_id, version, group)  # what is wrong with the question is told before the stream begins

        async def fetch() -> dict[str, Any]:
            key = ("summary", journey_id, version, group)
            return (await backend.live.shared(key, lambda: backend.summary(journey_id, version, group)))[0]

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return backend.live.respond((journey_id, group, version), fetch, request, headers)


# ---------------------------------------------------------------------------------------- contacts and facts


def _contacts(app: FastAPI, backend: Backend) -> None:
    @app.get("/api/contacts/{contact_id:path}", response_model=models.ContactAnswer, responses=errors(404, 422, 503))
    async def one_contact(contact_id: ContactId) -> Any:
        """What is known of a contact: its person, and where it stands on every journey, by which activities, and what is missing."""
        return await backend.contact(contact_id)

    @app.delete("/api/contacts/{contact_id:path}", status_code=204, responses=errors(422, 503))
    async def erase_contact(contact_id: ContactId) -> None:
        """Erases the person of a contact: all that happened until now, of all its contacts."""
        await backend.erase(contact_id)


def _facts(app: FastAPI, backend: Backend) -> None:
    async def take(name: str, request: Request) -> dict[str, Any]:
        kind = KINDS[name]
        facts = array(await read_body(request))
        checked = check(kind, facts, now_ms(), backend.settings.max_future_ms, strict=True)
        answer = taken(checked, await backend.take(kind.source, checked))
        metrics.FACTS.labels(name, "taken").inc(answer["taken"])
        metrics.FACTS.labels(name, "refused").inc(len(answer["refused"]))
        return answer

    for name, kind in KINDS.items():
        schema = {"$ref": f"#/components/schemas/{kind.model.__name__}"}
        # elements are judged one by one, and the refused are listed in the answer: to the request as a whole any element will do
        items = {"type": "array", "maxItems": 10_000, "items": {"anyOf": [schema, {}]}}

        def route(name: str = name, items: dict[str, Any] = items) -> None:
            @app.post(
                f"/api/{name}",
                status_code=202,
                response_model=models.Taken,
                responses=errors(413, 415, 422, 503),
                openapi_extra=request_body(items),
                name=f"send_{name}",
                summary=f"Send {name}",
                description=f"Sends {name}. What is taken is on the topic before the answer; what is refused is listed with its index and reason.",
            )
            async def send(request: Request) -> Any:
                return await take(name, request)

        route()


# ---------------------------------------------------------------------------------------- the rest


def _operations(app: FastAPI, backend: Backend) -> None:
    @app.get("/api/rules", response_model=models.Rules, responses=errors(422))
    async def rules() -> Any:
        """The catalogue of rules, for builders."""
        return {"rules": catalogue_data()}

    @app.get("/api/health", response_model=models.Health, responses=errors(422))
    async def health() -> Any:
        """The state of the whole."""
        return await backend.health()

    @app.get("/api/health/history", response_model=models.HealthHistory, responses=errors(422))
    async def health_history() -> Any:
        """Lag and rates over the last hour, as this console saw them."""
        return backend.watch.history()

    @app.get("/healthz", response_model=models.Alive, responses=errors(422))
    async def alive() -> Any:
        """This process runs."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=models.Ready, responses={503: {"model": models.Ready}, **errors(422)})
    async def ready(response: Response) -> Any:
        """Whether this process can answer: it has read the journeys, and the broker answers."""
        found = await backend.ready()
        response.status_code = 200 if found else 503
        return {"ready": found}

    @app.get("/metrics", include_in_schema=False)
    async def get_metrics() -> Response:
        table = backend.recalculations.table
        metrics.PARTITIONS_CONFIGURED.set(backend.partition_count)
        for state in STATES:
            metrics.RECALCULATIONS.labels(state).set(sum(one.state == state for one in table.records.values()))
        metrics.RECALCULATION_PROGRESS.set(
            min((one.progress for one in table.active() if not one.waits), default=1.0)
        )
        metrics.RECALCULATIONS_UNCONFIRMED.set(sum(one.waits for one in table.records.values()))
        return Response(generate_latest(metrics.CONSOLE), media_type="text/plain; version=0.0.4; charset=utf-8")
