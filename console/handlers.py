"""Handlers: turn every exception of the HTTP API into an answer of the one shape (console.errors). Never shows a stack trace."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.errors import Refused, shown
from schemas.sentences import broken

from .errors import ApiError, error_body

log = logging.getLogger(__name__)

CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}


class Json(Response):
    """JSON as the API writes it: UTF-8, no escapes where none are needed."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def answer(error: ApiError) -> Response:
    """*error* as an answer."""
    return Json(error_body(error.code, error.message, error.path), error.status, headers=error.headers)


def install(app: FastAPI) -> None:
    """Makes every error of *app* have the shape."""

    async def api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return answer(error)

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return answer(ApiError(422, error.code, error.message, error.path))

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer(parameter_error(error.errors()[0]))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(http_error(request, error))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


class Failsafe:
    """ASGI middleware: answers what *app* fails on with a 500 in the one shape, or by *page* to a browser, and keeps the connection.

    Starlette's own handler raises again after its answer, so that the server logs the error twice and closes the connection.
    """

    def __init__(self, app: ASGIApp, page: Callable[[ApiError], Response] = answer) -> None:
        self._app = app
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except asyncio.CancelledError:  # the console stops, and the connection is cut off already
            log.info("%s %s was cut off", scope.get("method"), shown(scope.get("path")))
        except Exception as error:
            if scope["type"] != "http":
                raise
            what = f"{scope['method']} {shown(scope['path'])}"
            cause = error.__cause__ if isinstance(error, RuntimeError) else error  # of an answer that has begun, Starlette wraps it
            if started and isinstance(cause, ApiError):
                log.warning("%s broke off: %s", what, cause)
            else:
                log.error("%s failed", what, exc_info=error)
            if not started:  # else the server closes the connection, by which the client sees that the answer is not whole
                found = ApiError(500, "internal_error", "something went wrong here, not with what you sent; the log of the console says what")
                show = self._page if b"text/html" in dict(scope["headers"]).get(b"accept", b"") else answer
                await show(found)(scope, receive, send)


def parameter_error(details: Any) -> ApiError:
    """What FastAPI found wrong with a parameter of the path, the query or the headers, in our words."""
    where, *rest = details["loc"]
    name = str(rest[0]) if rest else str(where)
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "missing":
        return ApiError(422, "missing_parameter", f"{where} parameter {name} is missing; add it", name)
    if kind == "int_parsing":
        return ApiError(422, "wrong_type", f"{name}: {shown(value)} is not a whole number; give one", name)
    if kind in ("greater_than_equal", "less_than_equal"):
        limit, rule = (context["ge"], "least") if "ge" in context else (context["le"], "most")
        return ApiError(422, "out_of_range", f"{name}: {shown(value)} is out of range; give at {rule} {limit}", name)
    if kind in ("enum", "literal_error"):
        return ApiError(422, "bad_value", f"{name}: {shown(value)} is not known here; give {context['expected']}", name)
    if kind == "string_pattern_mismatch":
        return ApiError(422, "bad_value", f"{name}: {shown(value)} does not look like one; it must match {context['pattern']}", name)
    said = broken(details)
    return ApiError(422, said.code, f"{name}: {said.sentence}", name)


def http_error(request: Request, error: HTTPException) -> ApiError:
    """Errors that the framework raises: no such route, wrong method, and the like."""
    code = CODES.get(error.status_code, "error")
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return ApiError(404, code, f"there is nothing at {shown(request.url.path)}; /api/openapi.json lists what there is", headers=headers)
    if error.status_code == 405:
        allowed = ", ".join(sorted(methods_of(request)))
        message = f"{request.method} is not possible at {shown(request.url.path)}; use {allowed}"
        return ApiError(405, code, message, headers={**headers, "Allow": allowed})
    return ApiError(error.status_code, code, str(error.detail), headers=headers)


def methods_of(request: Request) -> set[str]:
    """The methods of all routes at the path of *request*; Starlette names those of the first one only."""
    found: set[str] = set()
    for route in every_route(request.app.routes):
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return found


def every_route(routes: Iterable[BaseRoute]) -> Iterator[Route]:
    """Yield all of *routes* and of the routers among them, which FastAPI keeps as they are."""
    for route in routes:
        if isinstance(route, Route):
            yield route
        else:
            router = getattr(route, "original_router", route)
            yield from every_route(getattr(router, "routes", ()))
