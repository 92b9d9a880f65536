"""Errors of the HTTP API: one shape for all of them (contract, section 4). Says nothing of how they are answered.

    {"error": {"code": "unknown_journey", "message": "…", "path": "stages[2].condition"}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """An answer that is an error: HTTP status, code for programs, sentence for people, place inside what was sent or None."""

    def __init__(
        self, status: int, code: str, message: str, path: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.path = path
        self.headers = dict(headers or {})


def error_body(code: str, message: str, path: str | None = None) -> dict[str, Any]:
    """The contract's shape."""
    return {"error": {"code": code, "message": message, "path": path}}
