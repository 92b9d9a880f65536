"""Page: fills templates, streams parts of them as they change, serves the files beside them. Knows no journey."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Hashable
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from console.backend import Backend
from console.client import segment
from console.errors import ApiError
from console.live import INTERVAL_SECONDS
from schemas.times import parse_ms
from schemas.wire import MAX_ID

from . import views

SLOW_SECONDS = 1.0  # between two looks where a page asks for much
FILES = {
    "console.css": "text/css",
    "console.js": "text/javascript",
    "builder.js": "text/javascript",
    "import.js": "text/javascript",
    "operations.js": "text/javascript",
    "theme.js": "text/javascript",
    "vendor/htmx.min.js": "text/javascript",
    "vendor/hx-sse.min.js": "text/javascript",
    "vendor/Sortable.min.js": "text/javascript",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
Group = Annotated[str, Query(max_length=MAX_ID)]
Words = Annotated[str, Query(max_length=200)]
Number = Annotated[int, Query(ge=1, le=1_000_000)]
Cursor = Annotated[str | None, Query(min_length=1, max_length=4000)]

templates = Environment(
    loader=PackageLoader("console.pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
templates.filters["segment"] = segment
templates.filters["when"] = views.when
templates.filters["number"] = views.number
templates.filters["size"] = views.size
templates.filters["ms"] = parse_ms
templates.filters["duration"] = views.duration


def fill(template: str, **values: Any) -> str:
    """The filled template; everything in *values* is text, never markup."""
    return templates.get_template(template).render(**values)


def page(template: str, status: int = 200, **values: Any) -> Response:
    """The filled template as an answer."""
    return HTMLResponse(fill(template, **values), status, headers=HEADERS)


def download(name: str) -> dict[str, str]:
    """The header that makes an answer a file; names are of journey ids and numbers, which need no quoting."""
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def stream(
    backend: Backend, key: Hashable, request: Request, render: Callable[[], Awaitable[str]], interval_seconds: float = INTERVAL_SECONDS
) -> Response:
    """Server-sent events with the part of a page that *render* gives, each time it changes; all who look at the same *key* share it.

    What cannot be shown at the moment is an event `unavailable`, with the reason.
    """

    async def fetch() -> dict[str, Any]:
        return {"html": await render()}

    headers = {**HEADERS, "X-Accel-Buffering": "no"}
    return backend.live.respond(("page", key), fetch, request, headers, _event, interval_seconds)


def _event(found: dict[str, Any]) -> str:
    return "".join(f"data: {line}\n" for line in found["html"].splitlines() if line.strip()) + "\n"


def static(router: APIRouter) -> None:
    """Adds the route of the files."""
    read = {name: (files("console.pages") / "static" / name).read_bytes() for name in FILES}

    @router.get("/static/{name:path}")
    async def static(name: str) -> Response:
        if name not in read:
            raise ApiError(404, "not_found", f'there is no file "{name[:100]}" here')
        return Response(read[name], headers={**HEADERS, "Cache-Control": "no-cache"}, media_type=FILES[name])


def as_data(value: Any) -> str:
    """JSON that can stand inside a script element of type application/json."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


