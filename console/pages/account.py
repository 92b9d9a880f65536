"""Login and account pages: a session begins with a password, and ends. Knows no roles: see `console.guard`."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from console.audit import Audit
from console.errors import ApiError
from console.guard import MAX_NEXT, client_address, cookie, session_of
from console.openid import BEGUN_SECONDS, OpenId, OpenIdError
from console.people import People, digest
from console.sessions import DEVICE, OPENID, Sessions
from console.throttle import Passwords, Throttle, TooMany

from .page import page

MAX_FORM_BYTES = 4096
ANY_QUERY = "any query"  # providers of identities add parameters of their own
STATE_COOKIE = "waypost_openid"
DEVICE_COOKIE = "waypost_device"
DEVICE_SECONDS = 30 * 24 * 3600.0
Following = Annotated[str, Query(max_length=MAX_NEXT)]


def install(
    router: APIRouter, people: People | None, openid: OpenId | None, sessions: Sessions | None, audit: Audit
) -> None:
    """Adds the routes. *people* and *sessions*: None for a console without users."""
    if people is None or sessions is None:
        _without_users(router)
        return
    throttle = Throttle()
    _with_a_password(router, people, openid is not None, Logins(sessions, throttle, audit))
    if openid is not None:
        _at_a_provider(router, openid, Logins(sessions, throttle, audit))
    _logged_in(router, sessions, audit)


class Logins(NamedTuple):
    """What both ways of logging in share."""

    sessions: Sessions
    throttle: Throttle
    audit: Audit

    def device(self, request: Request, name: str) -> str | None:
        """The browser that *request* comes from, if *name* logged in with it before."""
        known = self.sessions.read(DEVICE, session_of(request.headers, DEVICE_COOKIE) or "")
        return None if known is None or known["sub"] != digest(name) else str(known["jti"])

    def begin(self, request: Request, following: str, name: str, role: str | None, mark: str | None) -> Response:
        """The answer to a login that succeeded. The session that there was before is over."""
        secure = request.url.scheme == "https"
        self.sessions.end(session_of(request.headers) or "")
        found = RedirectResponse(_here(following), 303, headers={"Cache-Control": "no-store"})
        found.headers.append("Set-Cookie", cookie(self.sessions.begin(name, role, mark), secure, self.sessions.seconds))
        if role is None:
            device = self.sessions.sign(DEVICE, {"sub": digest(name), "jti": secrets.token_urlsafe(16)}, DEVICE_SECONDS)
            found.headers.append("Set-Cookie", cookie(device, secure, DEVICE_SECONDS, DEVICE_COOKIE, "/login"))
        return found


def _without_users(router: APIRouter) -> None:
    @router.get("/login")
    async def form(next: Following = "/journeys") -> Response:
        return RedirectResponse("/journeys", 303)

    @router.post("/login")
    async def login() -> Response:
        return RedirectResponse("/journeys", 303)

    @router.get("/account")
    async def account(request: Request) -> Response:
        return page("account.html", person=request.state.person, logs_in=False)

    @router.post("/logout")
    async def logout() -> Response:
        return RedirectResponse("/journeys", 303)


def _with_a_password(router: APIRouter, people: People, openid: bool, logins: Logins) -> None:
    passwords = Passwords(people)

    def login_page(status: int, following: str, wrong: str | None) -> Response:
        return page("login.html", status, next=following, wrong=wrong, openid=openid, passwords=bool(people.users))

    @router.get("/login")
    async def form(next: Following = "/journeys") -> Response:
        return login_page(200, next, None)

    @router.post("/login")
    async def login(request: Request) -> Response:
        given = await _form(request)
        name, password, following = given.get("name", ""), given.get("password", ""), given.get("next", "/journeys")
        address = client_address(request.scope)
        try:
            attempt = logins.throttle.attempt(name, address or "", logins.device(request, name))
        except TooMany as refused:
            logins.audit.refused(address)
            return _too_many(refused, login_page(429, following, refused.message))
        mark = people.mark(name)  # before the check: a row that changes meanwhile ends this session
        try:
            person = await passwords.check(name, password)
        except ApiError:
            attempt.taken_back()
            raise
        if person is None:
            await logins.audit.write(name[:64], None, address, "login", None, 401)
            return login_page(401, following, "This name with this password is not known.")
        attempt.taken_back()
        await logins.audit.write(name, person.role, address, "login", None, 303)
        return logins.begin(request, following, name, None, mark)


def _logged_in(router: APIRouter, sessions: Sessions, audit: Audit) -> None:
    """Adds the routes of those who are logged in."""

    @router.get("/account")
    async def account(request: Request) -> Response:
        return page("account.html", person=request.state.person, logs_in=True)

    def logged_out(request: Request) -> Response:
        found = RedirectResponse("/login", 303, headers={"Cache-Control": "no-store", "Clear-Site-Data": '"cache"'})
        found.headers["Set-Cookie"] = cookie("", request.url.scheme == "https", 0)
        return found

    @router.post("/logout")
    async def logout(request: Request) -> Response:
        await sessions.log_out(session_of(request.headers) or "")
        return logged_out(request)

    @router.post("/logout/everywhere")
    async def logout_everywhere(request: Request) -> Response:
        session = sessions.whose(session_of(request.headers) or "")
        if session is None:
            raise ApiError(409, "no_session", "a token has no sessions; log in with a name to end its sessions")
        everywhere = await sessions.log_out_everywhere(session.name)
        await sessions.log_out(session_of(request.headers) or "")
        address, role, status = client_address(request.scope), request.state.person.role, 303 if everywhere else 503
        await audit.write(session.name, role, address, "logout everywhere", None, status)
        if not everywhere:
            message = "the broker does not answer: you are logged out here at once, and everywhere else when it answers again"
            raise ApiError(503, "broker_unavailable", message)
        return logged_out(request)


def _too_many(refused: TooMany, found: Response) -> Response:
    found.headers["Retry-After"] = str(int(refused.wait_seconds) + 1)
    return found


def _here(following: str) -> str:
    """*following* where it is a path of this console, else the first page."""
    elsewhere = not following.startswith("/") or following.startswith(("//", "/\\")) or urlsplit(following).netloc
    return "/journeys" if elsewhere else following


def _at_a_provider(router: APIRouter, openid: OpenId, logins: Logins) -> None:
    """Adds the routes by which one logs in at a provider of identities."""

    def back(request: Request) -> str:
        return f"{request.url.scheme}://{request.url.netloc}/login/openid/back"

    def refused(message: str, status: int) -> Response:
        return page("login.html", status, next="/journeys", wrong=message, openid=True, passwords=False)

    @router.get("/login/openid")
    async def begin(request: Request, next: Following = "/journeys") -> Response:
        try:
            url, begun = await openid.begin(back(request), _here(next))
        except OpenIdError as error:
            return refused(str(error), 503)
        found = RedirectResponse(url, 303, headers={"Cache-Control": "no-store"})
        signed, secure = logins.sessions.sign(OPENID, begun, BEGUN_SECONDS), request.url.scheme == "https"
        found.headers["Set-Cookie"] = cookie(signed, secure, BEGUN_SECONDS, STATE_COOKIE, "/login")
        return found

    @router.get("/login/openid/back", tags=[ANY_QUERY])
    async def finish(request: Request) -> Response:
        address = client_address(request.scope)
        begun = logins.sessions.read(OPENID, session_of(request.headers, STATE_COOKIE) or "")
        if begun is None or begun.get("state") != request.query_params.get("state"):  # any page can ask for this address: no try is counted
            logins.audit.refused(address)
            return refused("this login was not begun in this browser, or too long ago; begin again", 401)
        try:
            attempt = logins.throttle.attempt(None, address or "")
        except TooMany as many:
            logins.audit.refused(address)
            return _too_many(many, refused(many.message, 429))
        try:
            person, following = await openid.finish(request.query_params, begun, back(request))
        except OpenIdError as error:
            found = refused(str(error), 401)
            logins.audit.refused(address)
        else:
            attempt.taken_back()
            await logins.audit.write(person.name, person.role, address, "login", None, 303)
            found = logins.begin(request, following, person.name, person.role, None)
        found.headers.append("Set-Cookie", cookie("", request.url.scheme == "https", 0, STATE_COOKIE, "/login"))
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
