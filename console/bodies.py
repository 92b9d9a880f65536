"""Bodies: reads what a request carries, as bytes, within a limit, and decodes JSON. Knows no route."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Request
from starlette.requests import ClientDisconnect

from schemas.errors import shown

from .errors import ApiError

MAX_BODY_BYTES = 32 * 1024 * 1024


async def read_body(request: Request, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The body of *request*. Raises `ApiError`: 415 for another content type than JSON, 413 past *limit_bytes*, 400 when it breaks off."""
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(415, "unsupported_media_type", f"the content type is {shown(kind)}; send JSON as application/json")
    said = request.headers.get("content-length", "")
    if said.isdigit() and len(said) < 20 and int(said) > limit_bytes:
        raise _too_large(limit_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit_bytes:
                raise _too_large(limit_bytes)
            parts.append(part)
    except ClientDisconnect:
        raise ApiError(400, "bad_request", "the request broke off before all of it was here") from None
    return b"".join(parts)


def decode_json(body: bytes, expected: str) -> Any:
    """Decode a JSON *body*; *expected* says in the error what to send. Raises `ApiError` (422)."""
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise ApiError(422, "too_deep", "objects and lists are nested too deep; flatten them") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(422, "not_json", f"the body is not JSON ({error}); send {expected}") from None


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError(413, "too_large", f"the body has more than {limit_bytes // 1024 // 1024} MiB; send less at once", headers={"Connection": "close"})
