"""Routes of the pages: asks the functions that answer the HTTP API, and fills templates with what `views` makes of it. Errors are pages as well."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError

from console import handlers
from console.backend import Backend
from console.errors import ApiError

from . import builder, contacts, journey, journeys, operations
from .page import page, static

TAG = "pages"


def install(app: FastAPI, backend: Backend, login: Callable[[APIRouter], None] | None) -> None:
    """Adds the pages to *app*, whose errors they show as pages; *login* adds those by which one logs in."""
    router = APIRouter(tags=[TAG], include_in_schema=False)
    for part in (journeys, builder, journey, contacts, operations):
        part.install(router, backend)
    if login is not None:
        login(router)
    static(router)
    app.include_router(router)
    _errors(app)


def error_page(error: ApiError) -> Response:
    """*error* as a page."""
    found = page("error.html", error.status, error=error)
    found.headers.update(error.headers)
    return found


def _errors(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError) -> Response:
        shown = TAG in getattr(request.scope.get("route"), "tags", ())
        called = request.method == "POST" and "text/html" not in request.headers.get("accept", "")
        if not shown or called:  # a script reads the error and shows its sentence
            return handlers.answer(error)
        return error_page(error)

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return answer(request, error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer(request, handlers.parameter_error(error.errors()[0]))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, invalid)
