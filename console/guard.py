"""Guard: lets requests pass to those who may: sessions, tokens, roles, no writes from other sites; and writes down who changed what.

ASGI middleware around the whole console. Without a file of users, everybody who reaches it may do everything: such a console listens on loopback
alone, and answers only to names of loopback, so that no page of another site can reach it through a name of its own (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.hashing import h8
from streams.settings import Settings

from .audit import Audit
from .errors import ApiError
from .handlers import answer
from .measure import METHODS
from .people import EVERYBODY, People, Person
from .sessions import Session, Sessions

COOKIE = "waypost_session"
SAFE = ("GET", "HEAD", "OPTIONS")
MAX_NEXT = 500  # characters of the path that a login leads to
PUBLIC = re.compile(r"/(healthz|readyz|metrics|login(/openid(/back)?)?|favicon\.ico|static/.*)")
PAGES = re.compile(r"/($|journeys$|contacts$|operations$|builder$|account$)")

NEEDS: tuple[tuple[str, str, str], ...] = (
    # methods, path, role; the first that fits counts
    ("GET", r"/api/rejected|/operations|/stream/operations", "operator"),
    ("GET", r"/builder", "editor"),
    ("GET", r"/.*", "viewer"),
    ("POST", r"/logout(/everywhere)?", "viewer"),
    ("POST", r"/builder/.*|/api/journeys/[^/]*/preview", "editor"),
    ("PUT DELETE", r"/api/journeys/[^/]*", "editor"),
    ("POST", r"/api/recalculations(/[^/]*/(cancel|confirm))?", "editor"),
    ("PUT POST DELETE PATCH", r"/.*", "operator"),
)
AUDITED = re.compile(r"/api/(journeys/[^/]+|recalculations(/[^/]+/(cancel|confirm))?|contacts/.+|rejected/resend)", re.DOTALL)
HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._~-]*))(?::(?P<port>[0-9]{0,5}))?")
WITHOUT = re.compile(r"/operations/behind")  # every page asks for it


def needed(method: str, path: str) -> str:
    """The role that a request needs."""
    method = "GET" if method in SAFE else method
    if WITHOUT.fullmatch(path):
        return "viewer"
    return next((role for methods, pattern, role in NEEDS if method in methods.split() and re.fullmatch(pattern, path, re.DOTALL)), "operator")


class Guard:
    """*people* and *sessions*: None for a console without users. *audit* is given each change as it is done, or refused. *page* shows an error."""

    def __init__(
        self, app: ASGIApp, settings: Settings, people: People | None, sessions: Sessions | None, audit: Audit, page: Callable[[ApiError], Response]
    ) -> None:
        self._app = app
        self._page = page
        self._people = people
        self._sessions = sessions
        self._audit = audit
        self._host = settings.console_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method, path = scope["method"], scope["path"]
        person, by_token = self._person(headers)
        session = self._session(headers)
        scope.setdefault("state", {}).update(person=person, session=None if session is None else session.id)
        # a stream asks again: it outlasts sessions, and the word of whoever keeps the file of users
        scope["state"]["refused"] = lambda: self._refused(method, path, headers, *self._person(headers)) is not None
        refused = self._refused(method, path, headers, person, by_token)
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await (self._app if refused is None else refused)(scope, receive, watch)
        finally:
            if method not in SAFE and AUDITED.fullmatch(path):
                await self._write_down(scope, person, method, path, status, passed=refused is None)

    def _person(self, headers: Headers) -> tuple[Person | None, bool]:
        """`(who asks, whether a token says so)`."""
        if self._people is None:
            return EVERYBODY, False
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._people.by_token(token.strip()), True
        session = self._session(headers)
        if session is None:
            return None, False
        if session.role is not None:
            return Person(session.name, session.role), False
        return (self._people.named(session.name) if self._people.mark(session.name) == session.mark else None), False

    def _session(self, headers: Headers) -> Session | None:
        return None if self._sessions is None else self._sessions.whose(session_of(headers) or "")

    def _refused(self, method: str, path: str, headers: Headers, person: Person | None, by_token: bool) -> Response | None:
        """What is answered instead; None for a request that may pass."""
        name = host_name(headers.get("host", ""))
        if name is None:
            return answer(ApiError(400, "bad_host", "the header Host is not a host with an optional port; send the address of this console"))
        if self._people is None and not _of_loopback(name, self._host):
            return answer(ApiError(403, "foreign_host", "this console answers to names of this machine alone; open it by its address"))
        if method not in SAFE and not by_token and _from_elsewhere(headers):
            return answer(ApiError(403, "cross_site", "a page of another site sent this request: nothing was changed"))
        if PUBLIC.fullmatch(path):
            return None
        if person is None:
            if method in SAFE and (PAGES.match(path) or "text/html" in headers.get("accept", "")):
                following = quote(path) if len(path) <= MAX_NEXT else "/journeys"
                return RedirectResponse(f"/login?next={following}", 303, headers={"Cache-Control": "no-store"})
            message = "log in, or send a token: Authorization: Bearer …"
            return answer(ApiError(401, "not_logged_in", message, headers={"WWW-Authenticate": "Bearer"}))
        role = needed(method, path)
        if not person.may(role):
            error = ApiError(403, "not_allowed", f"{person.name} is {person.role}; this needs {role}: ask whoever keeps the file of users")
            return self._page(error) if method in SAFE and "text/html" in headers.get("accept", "") else answer(error)
        return None

    async def _write_down(self, scope: Scope, person: Person | None, method: str, path: str, status: int, passed: bool) -> None:
        address = client_address(scope)
        if not passed and person in (None, EVERYBODY):
            self._audit.refused(address)
            return
        kind, _, target = path.removeprefix("/api/").partition("/")
        if kind == "contacts":
            target = h8(target).hex()  # who was erased is not to be found here
        action = f"{method if method in METHODS else 'other'} {kind}"
        who, role = (None, None) if person is None else person
        await self._audit.write(who, role, address, action, target or None, status)


def client_address(scope: Scope) -> str | None:
    """The address that a request comes from; None when it is none: a trusted proxy passes on whatever its client wrote into `X-Forwarded-For`."""
    client = scope.get("client")
    try:
        return None if client is None else str(ipaddress.ip_address(client[0]))
    except ValueError:
        return None


def session_of(headers: Headers, name: str = COOKIE) -> str | None:
    """The cookie of the session that a request carries, or another of our cookies."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return None
    return None if found is None else found.value


def cookie(token: str, secure: bool, seconds: float, name: str = COOKIE, path: str = "/") -> str:
    """The header that sets the session, or ends it with an empty *token*."""
    value = f"{name}={token}; Path={path}; HttpOnly; SameSite=Lax; Max-Age={int(seconds) if token else 0}"
    return value + ("; Secure" if secure else "")


def _from_elsewhere(headers: Headers) -> bool:
    """Whether a browser says that a page of another site sent it."""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    if origin is None:
        return False
    _, found, authority = origin.partition("://")
    return not found or authority.lower() != headers.get("host", "").lower()


def host_name(host: str) -> str | None:
    """Return the name or address in a `Host` header, in lower case; None for a value that is none. No library of URLs sees such a value:
    `urlsplit` raises on some, and so does each `request.url`."""
    found = HOST.fullmatch(host)
    if found is None or int(found["port"] or 0) > 65535:
        return None
    address = found["address"]
    if address is not None:
        try:
            return ipaddress.IPv6Address(address).compressed
        except ValueError:
            return None
    return found["name"].lower()


def _of_loopback(name: str, configured: str) -> bool:
    if not name or name in ("localhost", configured.lower()) or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine reach *host*."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
