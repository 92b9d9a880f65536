"""Fuzzing over HTTP: every route, method and header of a running Waypost, by every role. No 5xx but 503, no stack trace in answers or logs.

The routes are those of the applications themselves, so that a new one is fuzzed without a change here. First each route is asked by everybody with
what is right for it, then at random with what is not.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import MagicMock
from urllib.parse import quote, quote_from_bytes, urlencode

import psutil

from agents import internal
from console.api import build
from console.handlers import every_route
from console.people import ROLES, digest, hashed, write
from tests.support import PATIENCE_SECONDS
from tests.support.running import Waypost

from .fuzz import JOURNEY, PIECES, Found, mutated

SECRET, NAME, PASSWORD = "between us", "eve", "a long enough password"
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "M" * 40)
GOOD = {
    "journey_id": "fuzz", "stage": "1", "version": "1", "contact_id": "c1", "name": "console.css",
    "recalculation_id": "none", "id": "fuzz",
    "list": "1.converted", "seen": "0", "cursor": "", "journey": "fuzz", "field": "page",
    "rule": "visited_page", "partition": "0", "share": "1", "after": "",
}  # fmt: skip
"""A value for a parameter that fits; others get "1"."""
HERE = {("/stream/contacts", "id"): "c1", ("/contacts", "id"): "c1", ("/internal/contact", "id"): "c1"}
TEXTS = [
    "", "0", "-1", "1", "9" * 30, "1e999", "NaN", "null", "true", "é", "\u202e", "\x00", "\n",
    "..", "../..", "%", "%zz", "' or 1=1", "<b>", "a" * 3000,
    "fuzz", "c1", "[", "]", "{}", "a,b", '"1"', "*", "W/\"1\"", "2026-01-02T03:04:05Z",
    "9999-12-31T23:59:59Z", "0001-01-01", "1.converted", "10.x", "😀",
    "W10", "W1sxZTk5OSwwXV0", "AA", "converted", "activities", "//evil", "https://evil.example",
    "\\", "desc", "days", "groups", "waits",
]  # fmt: skip
HEADERS = (
    "Host", "Origin", "Referer", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Accept", "Accept-Encoding",
    "Accept-Language", "Cookie", "Authorization",
    "If-Match", "If-None-Match", "If-Modified-Since", "If-Range", "Range", "Content-Type",
    "Content-Encoding", "Content-Length", "Transfer-Encoding",
    "Expect", "Upgrade", "Connection", "Keep-Alive", "X-Forwarded-For", "X-Forwarded-Proto",
    "X-Forwarded-Host", "X-Forwarded-Port", "Forwarded",
    "X-Real-IP", "X-HTTP-Method-Override", "Last-Event-ID", "HX-Request", "HX-Target", "TE",
    "Trailer", "Via", "Date", "User-Agent", "Max-Forwards",
    "Cache-Control", "Priority", "Content-Disposition", "Proxy-Authorization", "Early-Data",
    "X-Request-Id", "traceparent",
)  # fmt: skip
HEADER_VALUES = [
    b"", b"[", b"]", b"[::1", b"[zz]:80", b"http://[", b"https://[::1", b"null", b"://", b"//",
    b"a" * 5000, b"\xff\xfe", b"\xe9", b"*", b"*/*", b"text/html",
    b"application/json", b"application/json; charset=\xe9", b"text/event-stream",
    b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=",
    b"multipart/form-data", b"text/csv", b"application/x-ndjson", b"application/vnd.x+json", b";",
    b",", b"=", b'"', b'"1"', b'W/"1", "2"', b"1", b"-1", b"9" * 40,
    b"1e9", b"bytes=0-", b"bytes=9-1,-5", b"gzip", b"chunked", b"gzip, chunked", b"identity",
    b"100-continue", b"websocket", b"h2c", b"close", b"keep-alive",
    b"cross-site", b"same-origin", b"none", b"Bearer", b"Bearer ", b"Bearer \xff",
    b"Basic ZTplOmU=", b"Bearer " + b"x" * 4000, b"waypost_session=",
    b"waypost_session=x; waypost_session=y", b'waypost_session="', b"a=b; =; ;;; \\",
    b"$Version=1; waypost_session=\x80", b"waypost_openid=x.y.z",
    b"127.0.0.1", b"10.0.0.1, [::1], x", b"for=\"[\"", b"javascript", b"https",
    b"Thu, 99 Abc 0000 99:99:99 GMT", b"\t", b"%00", b"/", b"../..", b"\x7f",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**30, 1e308, "", "x", "\ud800", "\x00", "a" * 5000, [], {}, [[]],
    [None], {"": None}, {"any": [{}]}, "2026-13-99", "fuzz",
    {"rule": "visited_page", "page": {"matches": "("}}, {"contains": ""}, [[[[[[[[[[[[]]]]]]]]]]]],
]  # fmt: skip
LINES = (b"*", b"//", b"/" * 300, b"http://[/", b"/%", b"/\xff", b"/" + b"a" * 9000, b"?", b"[", b"a b")
YAML = "id: fuzz\nname: &n Fuzz\nstages:\n- name: *n\n  condition: {any: [{rule: visited_page, page: /start}]}\n"
DRAFT = {"draft": JOURNEY, "id": "fuzz", "base": 1, "selected": 0}
SEEDS: dict[str, Any] = {
    "/api/journeys/{journey_id}": JOURNEY, "/api/journeys/{journey_id}/preview": JOURNEY,
    "/builder/show": DRAFT, "/builder/compare": DRAFT,
    "/builder/import": {"name": "x.yaml", "text": YAML}, "/api/activities": [{"contact_id": "c1",
    "type": "pagevisit", "page": "/start", "at": 1_790_000_000_000}],
    "/api/merges": [{"from": "c1", "into": "c2", "at": 1_790_000_000_000}],
    "/api/contacts": [{"contact_id": "c1", "groups": ["a"]}],
    "/api/recalculations": {"journeys": ["fuzz"], "events_per_second": None},
    "/api/rejected/resend": {"records": [{"id": "0-0", "value": "{}"}]},
    "/login": {"name": "ada", "password": "wrong", "next": "/journeys"},
}  # fmt: skip
"""Bodies that are right, by route; a route without one gets those of the others."""


class Target(NamedTuple):
    """A route: its method, its path with `{parameters}`, the names of its query parameters and headers."""

    method: str
    path: str
    query: tuple[str, ...]
    headers: tuple[str, ...]


class Call(NamedTuple):
    """A request as bytes. `framed`: whether a server can know where it ends, so that there has to be an answer."""

    target: Target | None
    method: str
    raw: bytes
    framed: bool


class Answer(NamedTuple):
    """What came back; `status` 0 when nothing did."""

    status: int
    text: str
    kind: str
    code: str | None


def users(directory: Path) -> dict[str, Any]:
    """Settings of a console with somebody of each role, all within few seconds of each deadline."""
    path = directory / "users.toml"
    write(path, "users", NAME, {"role": "operator", "password": hashed(PASSWORD)})
    for role in ROLES:
        write(path, "tokens", f"{role}-token", {"role": role, "sha256": digest(role)})
    provider = {"oidc_issuer": "http://127.0.0.1:1", "oidc_client_id": "waypost", "oidc_client_secret": "x"}
    return {"users_file": path, "internal_secret": SECRET, "http_header_seconds": 1.0, "http_body_seconds": 1.0, **provider}


def console_routes(waypost: Waypost) -> list[Target]:
    """All routes of the console's application, those by which one logs in too."""
    found = []
    for route in every_route(build(MagicMock(settings=waypost.settings)).routes):
        dependant = getattr(route, "dependant", None)
        query = () if dependant is None else tuple(field.alias for field in dependant.query_params)
        headers = () if dependant is None else tuple(field.alias for field in dependant.header_params)
        found += [Target(method, route.path.replace(":path}", "}"), query, headers) for method in sorted(route.methods or ())]
    return found


def worker_routes() -> list[Target]:
    """All routes of a worker's internal interface. Their parameters stand in its documentation."""
    names = tuple(dict.fromkeys(re.findall(r"[?&](\w+)=", internal.__doc__ or "")))
    application = internal.application(MagicMock(), lambda: True, lambda _topic, _partition: 0, SECRET)
    return [Target(one.method, one.resource.canonical, names, ()) for one in application.router.routes() if one.resource is not None]


# ---------------------------------------------------------------------------------------- making requests


class Maker:
    """Requests to the routes *targets* of a server named *host*, seen from *r*. `cookie`: a session."""

    def __init__(self, r: Random, host: str, targets: list[Target], tokens: list[str]) -> None:
        self.r, self.host, self.targets = r, host, targets
        self.tokens = tokens
        self.cookie = ""
        self.names = sorted({name for one in targets for name in one.query})

    def right(self, target: Target, token: str | None) -> Call:
        """What is right for *target*."""
        path = re.sub(r"\{(\w+)\}", lambda found: quote(GOOD.get(found[1], "1"), safe=""), target.path)
        query = {}
        for name in target.query:
            value = HERE.get((target.path, name), GOOD.get(name, ""))
            if value:
                query[name] = value
        body, headers = b"", [(b"Host", self.host.encode())]
        if token:
            headers.append((b"Authorization", b"Bearer " + token.encode()))
        elif self.cookie:
            headers.append((b"Cookie", self.cookie.encode()))
        if target.method in ("POST", "PUT", "PATCH"):
            body, kind = encoded(target.path, SEEDS.get(target.path, {}))
            headers += [(b"Content-Type", kind), (b"Content-Length", b"%d" % len(body))]
        line = f"{path}?{urlencode(query)}" if query else path
        return Call(target, target.method, request(target.method, line.encode(), headers, body), True)

    def wrong(self) -> Call:
        """What is wrong somewhere, most likely."""
        r = self.r
        target = r.choice(self.targets)
        method = target.method if r.random() < 0.9 else r.choice(METHODS)
        line = self._path(target) + self._query(target)
        if r.random() < 0.02:
            line = r.choice((*LINES, b"http://" + self.host.encode() + line, line + b"#x"))
        headers = [(b"Host", self.host.encode())] if r.random() < 0.99 else []
        headers += self._identity()
        body, kind = b"", b""
        if method not in ("GET", "HEAD", "OPTIONS") or r.random() < 0.03:
            body, kind = self._body(target)
            if r.random() < 0.9:
                headers.append((b"Content-Type", kind))
        names = (*HEADERS, *(name for one in self.targets for name in one.headers))
        strange = [(r.choice(names).encode(), self._value()) for _ in range(r.choice((0, 0, 1, 1, 2, 5)))]
        framed = not {name.lower() for name, _ in strange} & {b"content-length", b"transfer-encoding", b"host", b"connection", b"upgrade"}
        chunked = r.random() < 0.1
        if body or method in ("POST", "PUT", "PATCH"):
            if chunked:
                headers.append((b"Transfer-Encoding", b"chunked"))
                body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]) if part) + b"0\r\n\r\n"
            else:
                headers.append((b"Content-Length", b"%d" % len(body)))
        r.shuffle(strange)
        version = b"HTTP/1.1" if r.random() < 0.99 else r.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"", b"x"))
        raw = request(method, line, headers + strange, body, version)
        if r.random() < 0.01:
            raw, framed = mutated(r, raw), False
        whole = framed and version == b"HTTP/1.1" and headers[:1] == [(b"Host", self.host.encode())]
        return Call(target, method, raw, whole)

    def _identity(self) -> list[tuple[bytes, bytes]]:
        choice = self.r.random()
        if choice < 0.75:
            return [(b"Authorization", b"Bearer " + self.r.choice(self.tokens).encode())]
        return [(b"Cookie", self.cookie.encode())] if choice < 0.85 else []

    def _path(self, target: Target) -> bytes:
        r = self.r

        def value(found: re.Match[str]) -> str:
            choice = r.random()
            if choice < 0.6:
                return quote(GOOD.get(found[1], "1"), safe="")
            if choice > 0.9:
                return quote_from_bytes(r.choice(PIECES)[:300], safe="")
            return quote(r.choice(TEXTS)[:400], safe="" if choice > 0.7 else "/")

        path = re.sub(r"\{(\w+)\}", value, target.path)
        return (path + r.choice(("/", "/x", "%00", ".json", "%2f..")) if r.random() < 0.03 else path).encode()

    def _query(self, target: Target) -> bytes:
        r = self.r
        pairs = []
        for name in target.query:
            if r.random() < 0.5:
                good = HERE.get((target.path, name), GOOD.get(name, "1"))
                pairs.append((name, good if r.random() < 0.4 else r.choice(TEXTS)))
        if r.random() < 0.05 and self.names:
            pairs.append((r.choice(self.names), r.choice(TEXTS)))
        raw = urlencode(pairs).encode()
        if r.random() < 0.03:
            raw += r.choice((b"&", b"=", b"&=%ff", b"&%ff=%80", b"&a=b=c", b"%", b"&id=%ed%a0%80", b"+" * 50, b"&x" * 500))
        return b"?" + raw if raw else b""

    def _value(self) -> bytes:
        r = self.r
        found = r.choice(HEADER_VALUES)
        if r.random() < 0.1:
            found = re.sub(rb"[\r\n\x00]", b"", mutated(r, found))[:6000]
        return found

    def _body(self, target: Target) -> tuple[bytes, bytes]:
        r = self.r
        path = target.path if target.path in SEEDS and r.random() < 0.7 else r.choice(list(SEEDS))
        choice = r.random()
        if choice < 0.1:
            return r.choice((b"", *PIECES, b"[" * 100_000, b'{"a":' * 5000, b"\xff" * 100)), b"application/json"
        if choice < 0.55:
            value = disturbed(r, SEEDS[path])
            if path == "/builder/import" and r.random() < 0.7:
                value = {"name": r.choice(("x.yaml", "x.json", "")), "text": mutated(r, YAML.encode())[:20_000].decode("utf-8", "replace")}
            return encoded(path, value)
        body, kind = encoded(path, SEEDS[path])
        return mutated(r, body), kind


def request(method: str, line: bytes, headers: list[tuple[bytes, bytes]], body: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    """The bytes of a request."""
    return b"%s %s %s\r\n%s\r\n%s" % (method.encode(), line, version, b"".join(b"%s: %s\r\n" % one for one in headers), body)


def encoded(path: str, value: Any) -> tuple[bytes, bytes]:
    """*value* as a body of the route at *path*, and its content type."""
    if path == "/login":
        fields = value if isinstance(value, dict) else {"name": value}
        return urlencode({str(k): str(v).encode("utf-8", "replace") for k, v in fields.items()}).encode(), b"application/x-www-form-urlencoded"
    return json.dumps(value).encode(), b"application/json"


def disturbed(r: Random, value: Any) -> Any:
    """*value* with one thing in it another, taken away or added."""
    if isinstance(value, dict) and value and r.random() < 0.85:
        name = r.choice(list(value))
        choice = r.random()
        if choice < 0.1:
            return {k: v for k, v in value.items() if k != name}
        if choice < 0.2:
            return {**value, r.choice(TEXTS): r.choice(VALUES)}
        return {**value, name: disturbed(r, value[name])}
    if isinstance(value, list) and value and r.random() < 0.85:
        at = r.randrange(len(value))
        return [*value[:at], disturbed(r, value[at]), *value[at + 1 :]] if r.random() < 0.9 else value * r.choice((0, 2, 50))
    return r.choice(VALUES)


# ---------------------------------------------------------------------------------------- sending them


class Wire:
    """A connection to *address*, kept for as long as the server keeps it."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, call: Call) -> tuple[Answer, http.client.HTTPResponse | None]:
        """Send *call*, read the answer; a second time on a new connection, where the server closed the one that was kept."""
        kept = self._socket is not None
        found = self._once(call)
        if found[0].status == 0 and kept and call.framed:
            found = self._once(call)
        return found

    def _once(self, call: Call) -> tuple[Answer, http.client.HTTPResponse | None]:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, PATIENCE_SECONDS)
        with contextlib.suppress(OSError):  # refused while it was still being sent: there may be an answer
            self._socket.sendall(call.raw)
        response = http.client.HTTPResponse(self._socket, method=call.method)
        try:
            if not call.framed:
                self._socket.shutdown(socket.SHUT_WR)
            response.begin()
            kind = response.headers.get("content-type", "")
            streaming = "event-stream" in kind
            text = "" if streaming else response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            self.close()
            return Answer(0, "", "", None), None
        if streaming or response.will_close or not call.framed:
            self.close()
        return Answer(response.status, text, kind, code_of(text)), response


def code_of(text: str) -> str | None:
    """The code of an error in the one shape."""
    try:
        return str(json.loads(text)["error"]["code"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def judge(call: Call, answer: Answer, worker: bool) -> None:
    """AssertionError for an answer that no client should see."""
    what = f"{call.raw[:2000]!r}: {answer.status} {answer.text[:600]}"
    if answer.status == 0:
        assert not call.framed, f"no answer: {what}"
        return
    assert answer.status < 500 or answer.status == 503, what
    assert "Traceback (most" not in answer.text, what
    assert 'File "/' not in answer.text, what
    if answer.status >= 400 and call.method != "HEAD" and not worker:
        page = answer.kind.startswith("text/html") and "</html>" in answer.text
        assert page or (answer.kind.startswith("application/json") and answer.code), what


def fuzz_calls(waypost: Waypost, count: int, seed: int, say: Callable[[str], None]) -> Found:
    """Ask *waypost*, started with the settings of `users`. AssertionError for an answer or a log line that nobody should see."""
    r, said, memory, early = Random(seed), Counter[str](), psutil.Process(waypost.process.pid), 0
    waypost.http.headers["Authorization"] = f"Bearer {ROLES[-1]}"
    waypost.http.put("/api/journeys/fuzz", json=JOURNEY).raise_for_status()
    for kind in ("activities", "contacts"):
        waypost.http.post(f"/api/{kind}", json=SEEDS[f"/api/{kind}"]).raise_for_status()
    waypost.until(lambda: waypost.http.get("/api/contacts/c1").status_code == 200, "for a contact")
    (url,) = [one["url"] for one in waypost.http.get("/api/health").json()["workers"]]
    host, worker_host = waypost.url.removeprefix("http://"), url.removeprefix("http://")
    console = Maker(r, host, console_routes(waypost), list(ROLES))
    worker = Maker(r, worker_host, worker_routes(), [SECRET])
    wires = {id(console): Wire(("127.0.0.1", waypost.port)), id(worker): Wire(("127.0.0.1", int(worker_host.rsplit(":", 1)[1])))}
    reached: set[Target] = set()
    calls = planned(console, worker, r)
    for number in range(count):
        if number % 5000 == 0:
            console.cookie = session(waypost)
        maker, call = next(calls)
        answer, _ = wires[id(maker)].ask(call)
        judge(call, answer, maker is worker)
        said[str(answer.status)] += 1
        if answer.status == 503:
            said[f"503 {answer.code or 'page'} {call.target.path if call.target else ''}"] += 1
        if call.target is not None and call.method == call.target.method and was_reached(answer):
            reached.add(call.target)
        if number <= count // 10:
            early = memory.memory_info().rss
        if number % 10_000 == 9_999:
            say(f"{number + 1:,} requests: " + ", ".join(f"{what} {times:,}" for what, times in said.most_common(30)))
    for wire in wires.values():
        wire.close()
    missed = [f"{one.method} {one.path}" for one in (*console.targets, *worker.targets) if one not in reached]
    assert not missed, f"no request came to these routes: {missed}"
    unhurt(waypost)
    return Found(said, memory.memory_info().rss / early)


def planned(console: Maker, worker: Maker, r: Random) -> Iterator[tuple[Maker, Call]]:
    """Each route by everybody with what is right for it, what changes nothing first; then anything, for ever."""
    safe = sorted(console.targets, key=lambda one: one.method not in ("GET", "HEAD"))
    for target in safe:
        for token in (*console.tokens[::-1], None, ""):
            yield console, console.right(target, token)
    for target in worker.targets:
        for token in (SECRET, "wrong"):
            yield worker, worker.right(target, token)
    while True:
        maker = worker if r.random() < 0.05 else console
        yield maker, maker.wrong()


def was_reached(answer: Answer) -> bool:
    """Whether a route answered, and neither the guard before it nor the router, which knows none."""
    return answer.status not in (0, 405) and answer.code not in ("not_found", "not_logged_in", "not_allowed", "cross_site", "bad_host")


def session(waypost: Waypost) -> str:
    """A new session, as a cookie."""
    headers = {"Authorization": "", "X-Forwarded-For": "192.0.2.9"}  # guesses of others come from another address
    answer = waypost.http.post("/login", data={"name": NAME, "password": PASSWORD}, headers=headers)
    assert answer.status_code == 303, answer.text
    waypost.http.cookies.clear()
    return answer.headers["set-cookie"].split(";")[0]


def unhurt(waypost: Waypost) -> None:
    """AssertionError where a process was hurt or left a stack trace in its log."""
    assert waypost.http.get("/healthz").status_code == 200
    waypost.until(lambda: waypost.health().get("status") == "ok", "to be well at the end")
    for log in (waypost.log, *waypost.settings.data_dir.glob("*.log")):
        text = log.read_text(errors="replace")
        at = text.find("Traceback (most recent")
        assert at < 0, f"{log.name}: {text[max(0, at - 1000) : at + 4000]}"
        assert "starting it again" not in text, f"{log.name}: {text[-3000:]}"
