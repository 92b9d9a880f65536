"""Client: how commands ask the HTTP API. Prints nothing; every failure is a sentence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import quote

import click
import httpx

from streams.settings import Settings

from .options import Failed, connectable, load

F = TypeVar("F", bound=Callable[..., Any])
TIMEOUT_SECONDS = 30.0
ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}



class ApiFailed(Failed):
    """The API answered with an error. `status`, and `error` as the contract shapes it."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message", "the API gave no reason")))
        self.status = status
        self.error = error


class Client:
    """Asks the API at *url* (without `/api`)."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/api")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT_SECONDS, headers=headers)

    def call(self, method: str, path: str, *, query: dict[str, Any] | None = None, json: Any = None, headers: dict[str, str] | None = None) -> Any:
        """The JSON of an answer; None for an empty one. Raises `Failed`, `ApiFailed`."""
        query = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            answer = self._http.request(method, path, params=query, json=json, headers=headers)
        except httpx.HTTPError as error:
            raise Failed(
                f"the API at {self.url} does not answer ({error or type(error).__name__}); start it with `waypost up` or `waypost console`, "
                "or name another with --api"
            ) from None
        try:
            found = answer.json() if answer.content else None
        except ValueError:
            found = None
        if answer.is_success and (found is not None or not answer.content):
            return found
        if isinstance(found, dict) and isinstance(found.get("error"), dict):
            raise ApiFailed(answer.status_code, found["error"])
        raise Failed(f"{self.url}{path} answered with status {answer.status_code}, not as Waypost does; see that --api names its console")

    def pages(self, path: str, name: str, query: dict[str, Any], limit: int | None = None, sized: bool = True) -> Iterator[dict[str, Any]]:
        """Every page of a list, at most *limit* rows of *name* in all; *sized*: the route takes a limit."""
        left = limit
        cursor = None
        while True:
            size = {"limit": min(1000, left) if left is not None else 1000} if sized else {}
            page = self.call("GET", path, query={**query, **size, "cursor": cursor})
            yield page
            cursor = page["cursor"]
            if left is not None:
                left -= len(page[name])
            if cursor is None or (left is not None and left <= 0):
                return


def segment(text: str) -> str:
    """*text* as one part of a path."""
    return quote(text, safe="")


def api_address(settings: Settings) -> str:
    """Where the console of these settings answers."""
    host = ANY_HOST.get(settings.console_host, settings.console_host)
    return f"http://[{host}]:{settings.console_port}" if ":" in host else f"http://{host}:{settings.console_port}"


def client_of(settings: Settings, url: str | None = None) -> Client:
    """A client for the console of *settings*, or the one at *url*, with their token."""
    token = settings.api_token
    return Client(url or api_address(settings), None if token is None else token.get_secret_value())


def with_broker(settings: Settings, api: Client | None = None) -> Settings:
    """*settings* with the broker that the console uses, where they name none: the embedded broker's address is known to nobody else.

    Raises `Misused` when there is neither.
    """
    if settings.broker:
        return settings
    try:
        bootstrap = (api or client_of(settings)).call("GET", "/api/health")["broker"]["bootstrap"]
    except Failed:
        return connectable(settings)
    return settings.replaced("console", broker=bootstrap)


def with_api(command: F) -> F:
    """A decorator: the flag `--api`; the command gets `api`, a `Client`."""

    @functools.wraps(command)
    def run(*args: Any, api: str | None, **kwargs: Any) -> Any:
        return command(*args, api=client_of(load({}), api), **kwargs)

    return click.option("--api", metavar="URL", help="Where the console answers.  [default: made of console_host and console_port]")(run)  # type: ignore[return-value]
