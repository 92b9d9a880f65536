"""Protocol: HTTP/1.1 of the console as uvicorn speaks it, with deadlines for headers, bodies and readers, and a place in `Connections`.

uvicorn limits how long a connection may be idle between requests, and nothing else.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from agents import metrics
from streams.connections import ADDRESS, Connections, peer

from .errors import ApiError
from .handlers import Json, answer, error_body

MIN_BYTES_A_SECOND = 4096
"""A body may take `body_seconds`, and a second more for each so many bytes that are there."""
RESERVED = ("/healthz", "/readyz", "/metrics")
"""What orchestrators ask is answered on restricted connections too."""


class LimitedProtocol(H11Protocol):
    """One connection. Arguments beside *connections* are those that uvicorn gives its protocols."""

    def __init__(self, connections: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._connections = connections
        self._limits = connections.limits
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._phase: Any = None
        self._began = 0.0
        self._received = 0

    # ------------------------------------------------------------------ what asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        reason = self._connections.admit(self, peer(transport))
        metrics.HTTP_CONNECTIONS.set(len(self._connections))
        if reason is not None:
            self.app = restricted(self.app, reason)  # type: ignore[assignment]
        self._enter(h11.IDLE)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._stalled is not None:
            self._stalled.cancel()
        self._connections.leave(self)
        metrics.HTTP_CONNECTIONS.set(len(self._connections))
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        super().data_received(data)
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()
        self._connections.waits(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        if self.transport.is_closing():  # what is left of the last answer has to be read as well
            self._wait_for_reader()
        elif self._phase is h11.DONE:
            self._connections.works(self)

    # ------------------------------------------------------------------ what uvicorn calls

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._wait_for_reader()
        else:
            self._look()

    def send_400_response(self, msg: str) -> None:
        self._connections.closed("malformed")
        self._refuse(ApiError(400, "bad_request", "this is not a request of HTTP/1.1"))

    # ------------------------------------------------------------------ phases of a request

    def shed(self) -> None:
        self.transport.abort()

    def _look(self) -> None:
        """Follow the client's side of the connection: what is it that it has not sent completely?"""
        if self.transport.is_closing():
            self._disarm()
            return
        theirs = self.conn.their_state
        idle = self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
        if theirs is h11.IDLE and idle:
            self._phase = None  # between two requests: uvicorn's own deadline
            self._disarm()
            self._connections.waits(self)
        elif theirs is not self._phase:
            self._enter(theirs)

    def _enter(self, phase: Any) -> None:
        self._disarm()
        self._phase = phase
        self._began, self._received = self.loop.time(), 0
        if phase is h11.IDLE:
            self._connections.waits(self)
            self._deadline = self.loop.call_later(self._limits.header_seconds, self._headers_late)
        elif phase is h11.SEND_BODY:
            self._connections.waits(self)
            self._deadline = self.loop.call_later(self._limits.body_seconds, self._body_late)
        else:
            self._phase = h11.DONE
            self._connections.works(self)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _headers_late(self) -> None:
        self._connections.closed("headers")
        seconds = f"{self._limits.header_seconds:g} s"
        self._refuse(ApiError(408, "request_timeout", f"the headers of a request were not complete after {seconds}"))

    def _body_late(self) -> None:
        if self.flow.read_paused:  # what is here has not been read by us
            self._began += self._limits.body_seconds
        allowed = self._limits.body_seconds + self._received / MIN_BYTES_A_SECOND
        left = self._began + allowed - self.loop.time()
        if left > 0:
            self._deadline = self.loop.call_later(left, self._body_late)
            return
        self._connections.closed("body")
        error = ApiError(408, "request_timeout", "the body of the request came too slowly, or did not come")
        if self.cycle.response_started:
            self.transport.abort()
        else:
            self._refuse(error)

    def _wait_for_reader(self) -> None:
        """Give the client time to read what was written, if anything of it is still here."""
        if self._stalled is None and self.transport.get_write_buffer_size():
            self._stalled = self.loop.call_later(self._limits.write_seconds, self._stalled_for_long)

    def _stalled_for_long(self) -> None:
        self._connections.closed("answer")
        self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answer *error*, outside of the application, and close."""
        self._disarm()
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever reads the body learns that no more comes; what they answer is dropped
            self.cycle.message_event.set()
        body = Json(error_body(error.code, error.message)).body
        headers = [
            ("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close"),
        ]  # fmt: skip
        events = (h11.Response(status_code=error.status, headers=headers), h11.Data(bytes(body)), h11.EndOfMessage())
        try:
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # in the middle of an answer
            self.transport.abort()
            return
        self.transport.close()
        self._wait_for_reader()


def restricted(app: ASGIApp, reason: str) -> ASGIApp:
    """Return *app* as a restricted connection sees it: only `RESERVED` is answered, and each answer closes the connection."""
    if reason == ADDRESS:
        message = "this address has as many connections as it may have; close some, or try again"
        error = ApiError(429, "too_many_connections", message, headers={"Retry-After": "5"})
    else:
        message = "the console answers as many requests as it can; try again"
        error = ApiError(503, "too_many_connections", message, headers={"Retry-After": "5"})

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        async def closing(sent: Message) -> None:
            if sent["type"] == "http.response.start":
                sent = {**sent, "headers": [*sent.get("headers", ()), (b"connection", b"close")]}
            await send(sent)

        reserved = scope["method"] in ("GET", "HEAD") and scope["path"] in RESERVED
        await (app if reserved else answer(error))(scope, receive, closing)

    return limited
