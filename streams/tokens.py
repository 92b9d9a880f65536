"""Tokens: logging in at a broker with OAuth 2.0 (SASL OAUTHBEARER), by client credentials. librdkafka brings its own; this is aiokafka's.

RFC 6749, section 4.4: https://www.rfc-editor.org/rfc/rfc6749#section-4.4
"""

from __future__ import annotations

import asyncio
import ssl
import time

import httpx
from aiokafka.abc import AbstractTokenProvider

REQUEST_SECONDS = 10.0
MARGIN_SECONDS = 30.0
"""So long before it ends a token is not used any more."""
SHORTEST_SECONDS = 60.0
"""For how long a token is taken to be good whose end is not said."""


class TokenError(RuntimeError):
    """No token could be had; the message names the endpoint and what it answered, no secret."""


class Tokens(AbstractTokenProvider):  # type: ignore[misc]
    """Fetches a token at *url* and uses it until shortly before it ends."""

    def __init__(self, url: str, client_id: str, client_secret: str, scope: str | None, cafile: str | None = None) -> None:
        self._url, self._login, self._scope = url, (client_id, client_secret), scope
        self._verify = ssl.create_default_context(cafile=cafile)
        self._token, self._until = "", 0.0

    async def token(self) -> str:
        """A token that is good for a while. Raises TokenError."""
        if time.monotonic() >= self._until:
            self._token, self._until = await asyncio.to_thread(self._fetch)
        return self._token

    def _fetch(self) -> tuple[str, float]:
        asked = {"grant_type": "client_credentials", **({} if self._scope is None else {"scope": self._scope})}
        try:
            answer = httpx.post(self._url, data=asked, auth=self._login, timeout=REQUEST_SECONDS, verify=self._verify)
            answer.raise_for_status()
            said = answer.json()
            seconds = float(said.get("expires_in", SHORTEST_SECONDS + MARGIN_SECONDS))
            return str(said["access_token"]), time.monotonic() + max(1.0, seconds - MARGIN_SECONDS)
        except httpx.HTTPStatusError as error:
            raise TokenError(f"{self._url} answered {error.response.status_code}; see to sasl_username, sasl_password and sasl_oauth_scope") from None
        except (httpx.HTTPError, ValueError, KeyError, AttributeError) as error:
            raise TokenError(f"{self._url} gave no token ({type(error).__name__}); see that it is the token endpoint and that it runs") from None
