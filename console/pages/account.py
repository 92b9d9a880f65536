"""Login and account pages: a session begins with a password, and ends. Knows no roles: see `console.guard`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from console.errors import ApiError
from console.guard import Audit, cookie, session_of
from console.kafka import now_ms
from console.people import MAX_PASSWORD, Failures, People, Sessions
from schemas.times import format_ms

from .page import page

MAX_FORM_BYTES = 4096


def install(router: APIRouter, people: People | None, sessions: Sessions, session_seconds: float, audit: Audit) -> None:
    """Adds the routes."""
    failures = Failures()

    @router.get("/login")
    async def form(next: Annotated[str, Query(max_length=500)] = "/journeys") -> Response:
        if people is None:
            return RedirectResponse("/journeys", 303)
        return page("login.html", next=next, wrong=None)

    @router.post("/login")
    async def login(request: Request) -> Response:
        if people is None:
            return RedirectResponse("/journeys", 303)
        said = await _form(request)
        name, password, following = said.get("name", ""), said.get("password", ""), said.get("next", "/journeys")
        address = request.client.host if request.client else ""
        wait = failures.wait_seconds(name, address)
        if wait > 0:
            minutes = int(wait // 60) + 1
            found = page("login.html", 429, next=following, wrong=f"Too many attempts failed. Wait {minutes} minutes, then try again.")
            found.headers["Retry-After"] = str(int(wait) + 1)
            return found
        person = await asyncio.to_thread(people.check, name, password[:MAX_PASSWORD])
        await audit(
            {"at": format_ms(now_ms()), "who": name[:64], "role": None if person is None else person.role, "address": address, "action": "login",
             "target": None, "status": 401 if person is None else 303}
        )  # fmt: skip
        if person is None:
            failures.failed(name, address)
            return page("login.html", 401, next=following, wrong="This name with this password is not known.")
        sessions.end(session_of(request.headers) or "")
        here = following if following.startswith("/") and not following.startswith(("//", "/\\")) and not urlsplit(following).netloc else "/journeys"
        found = RedirectResponse(here, 303, headers={"Cache-Control": "no-store"})
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
