"""Login and account pages: a session begins with a password, and ends. Knows no roles: see `console.guard`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from console.errors import ApiError
from console.guard import Audit, client_address, cookie, session_of
from console.kafka import now_ms
from console.openid import BEGUN_SECONDS, OpenId, OpenIdError
from console.people import MAX_PASSWORD, Failures, People, Sessions
from schemas.times import format_ms

from .page import page

MAX_FORM_BYTES = 4096
ANY_QUERY = "any query"  # providers of identities add parameters of their own
STATE_COOKIE = "waypost_openid"


def install(
    router: APIRouter, people: People | None, openid: OpenId | None, sessions: Sessions, session_seconds: float, audit: Audit
) -> None:
    """Adds the routes."""
    failures = Failures()
    if openid is not None:
        _at_a_provider(router, openid, sessions, session_seconds, audit)

    def login_page(status: int, following: str, wrong: str | None) -> Response:
        return page("login.html", status, next=following, wrong=wrong, openid=openid is not None, passwords=bool(people and people.users))

    @router.get("/login")
    async def form(next: Annotated[str, Query(max_length=500)] = "/journeys") -> Response:
        if people is None:
            return RedirectResponse("/journeys", 303)
        return login_page(200, next, None)

    @router.post("/login")
    async def login(request: Request) -> Response:
        if people is None:
            return RedirectResponse("/journeys", 303)
        said = await _form(request)
        name, password, following = said.get("name", ""), said.get("password", ""), said.get("next", "/journeys")
        address = client_address(request.scope) or ""
        wait = failures.wait_seconds(name, address)
        if wait > 0:
            minutes = int(wait // 60) + 1
            found = login_page(429, following, f"Too many attempts failed. Wait {minutes} minutes, then try again.")
            found.headers["Retry-After"] = str(int(wait) + 1)
            return found
        person = await asyncio.to_thread(people.check, name, password[:MAX_PASSWORD])
        await audit(
            {"at": format_ms(now_ms()), "who": name[:64], "role": None if person is None else person.role, "address": address or None,
             "action": "login", "target": None, "status": 401 if person is None else 303}
        )  # fmt: skip
        if person is None:
            failures.failed(name, address)
            return login_page(401, following, "This name with this password is not known.")
        sessions.end(session_of(request.headers) or "")
        found = RedirectResponse(_here(following), 303, headers={"Cache-Control": "no-store"})
        found.headers["Set-Cookie"] = cookie(sessions.begin(name), request.url.scheme == "https", session_seconds)
        return found

    @router.get("/account")
    async def account(request: Request) -> Response:
        return page("account.html", person=request.state.person, logs_in=people is not None)

    @router.post("/logout")
    async def logout(request: Request) -> Response:
        sessions.end(session_of(request.headers) or "")
        found = RedirectResponse("/login", 303, headers={"Cache-Control": "no-store", "Clear-Site-Data": '"cache"'})
        found.headers["Set-Cookie"] = cookie("", request.url.scheme == "https", 0)
        return found


def _here(following: str) -> str:
    """*following* where it is a path of this console, else the first page."""
    elsewhere = not following.startswith("/") or following.startswith(("//", "/\\")) or urlsplit(following).netloc
    return "/journeys" if elsewhere else following


def _at_a_provider(router: APIRouter, openid: OpenId, sessions: Sessions, session_seconds: float, audit: Audit) -> None:
    """Adds the routes by which one logs in at a provider of identities."""

    def back(request: Request) -> str:
        return f"{request.url.scheme}://{request.url.netloc}/login/openid/back"

    def refused(error: OpenIdError, status: int) -> Response:
        return page("login.html", status, next="/journeys", wrong=str(error), openid=True, passwords=False)

    @router.get("/login/openid")
    async def begin(request: Request, next: Annotated[str, Query(max_length=500)] = "/journeys") -> Response:
        try:
            url, state = await openid.begin(back(request), _here(next))
        except OpenIdError as error:
            return refused(error, 503)
        found = RedirectResponse(url, 303, headers={"Cache-Control": "no-store"})
        secure = request.url.scheme == "https"
        found.set_cookie(STATE_COOKIE, state, max_age=int(BEGUN_SECONDS), path="/login", httponly=True, samesite="lax", secure=secure)
        return found

    @router.get("/login/openid/back", tags=[ANY_QUERY])
    async def finish(request: Request) -> Response:
        address, person, status = client_address(request.scope) or "", None, 401
        try:
            person, following = await openid.finish(request.query_params, request.cookies.get(STATE_COOKIE), back(request))
            sessions.end(session_of(request.headers) or "")
            found: Response = RedirectResponse(_here(following), 303, headers={"Cache-Control": "no-store"})
            found.headers["Set-Cookie"] = cookie(sessions.begin(person.name, person.role), request.url.scheme == "https", session_seconds)
            status = 303
        except OpenIdError as error:
            found = refused(error, 401)
        found.delete_cookie(STATE_COOKIE, path="/login")
        who = {"who": "?" if person is None else person.name, "role": None if person is None else person.role}
        await audit({"at": format_ms(now_ms()), **who, "address": address or None, "action": "login", "target": None, "status": status})
        return found


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form. Raises `ApiError` (413, 415, 422)."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise ApiError(415, "unsupported_media_type", "log in with the form of the page")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            raise ApiError(413, "too_large", "this is no name and no password")
    try:
        fields: dict[str, Any] = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=10)
    except (ValueError, UnicodeDecodeError):
        raise ApiError(422, "bad_form", "this is no form") from None
    return {name: values[0] for name, values in fields.items()}
