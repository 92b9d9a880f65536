"""OpenID Connect: lets people log in at a provider of identities instead of with a password here. Knows no sessions and no pages.

The authorization code flow with PKCE, state and nonce (https://openid.net/specs/openid-connect-core-1_0.html#CodeFlowAuth). A role comes from a
claim of the ID token; without one of ours in it, nobody gets in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import httpx
from authlib.common.security import generate_token
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwk, jwt
from joserfc.errors import JoseError

from streams.settings import Settings

from .people import NAME, ROLES, Person

REQUEST_SECONDS = 10.0
KNOWN_SECONDS = 3600.0  # what a provider says of itself, and its keys
BEGUN_SECONDS = 600.0  # so long somebody may take to log in there
MAX_BEGUN = 10_000
LEEWAY_SECONDS = 60
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]  # signed with a key pair, nothing else


class OpenIdError(RuntimeError):
    """Nobody is logged in; the message is for whoever tried."""


class _Begun(NamedTuple):
    verifier: str
    nonce: str
    following: str
    until: float


class OpenId:
    """One provider. *now*: seconds that only grow."""

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        assert settings.oidc_issuer is not None
        self.issuer = settings.oidc_issuer.rstrip("/")
        self._client_id = settings.oidc_client_id or ""
        self._secret = "" if settings.oidc_client_secret is None else settings.oidc_client_secret.get_secret_value()
        self._claim = settings.oidc_role_claim
        self._now = now
        self._begun: dict[str, _Begun] = {}
        self._known: tuple[float, dict[str, Any], Any] | None = None

    async def begin(self, redirect_uri: str, following: str) -> tuple[str, str]:
        """`(where to send the browser, the state it must come back with)`. Raises OpenIdError."""
        said, _ = await self._provider()
        self._begun = {state: one for state, one in self._begun.items() if one.until > self._now()}
        if len(self._begun) >= MAX_BEGUN:
            raise OpenIdError("too many people are logging in just now; try again in a few minutes")
        state, nonce, verifier = generate_token(32), generate_token(32), generate_token(64)
        self._begun[state] = _Begun(verifier, nonce, following, self._now() + BEGUN_SECONDS)
        url = prepare_grant_uri(
            said["authorization_endpoint"], client_id=self._client_id, response_type="code", redirect_uri=redirect_uri, scope="openid profile email",
            state=state, nonce=nonce, code_challenge=create_s256_code_challenge(verifier), code_challenge_method="S256",
        )  # fmt: skip
        return str(url), state

    async def finish(self, query: Mapping[str, str], state: str | None, redirect_uri: str) -> tuple[Person, str]:
        """`(who it is, where to go on)`. *query*: what the browser came back with; *state*: what it went away with. Raises OpenIdError."""
        begun = self._begun.pop(query.get("state", ""), None)
        if begun is None or begun.until <= self._now() or state != query.get("state"):
            raise OpenIdError("this login was not begun in this browser, or too long ago; begin again")
        if "error" in query or "code" not in query:
            raise OpenIdError("the provider let nobody in; begin again, or ask whoever keeps it")
        said, keys = await self._provider()
        asked = {"grant_type": "authorization_code", "code": query["code"], "redirect_uri": redirect_uri, "code_verifier": begun.verifier}
        answer = await self._ask("POST", said["token_endpoint"], data=asked, auth=(self._client_id, self._secret))
        try:
            token = jwt.decode(str(answer["id_token"]), keys, algorithms=ALGORITHMS)
            claims: dict[str, Any] = token.claims
            jwt.JWTClaimsRegistry(
                leeway=LEEWAY_SECONDS, iss={"essential": True, "value": said["issuer"]}, aud={"essential": True, "value": self._client_id},
                exp={"essential": True}, nonce={"essential": True, "value": begun.nonce}, sub={"essential": True},
            ).validate(claims)  # fmt: skip
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise OpenIdError(f"the provider's word cannot be trusted ({type(error).__name__}); tell whoever keeps this console") from None
        if isinstance(claims["aud"], list) and len(claims["aud"]) > 1 and claims.get("azp") != self._client_id:
            raise OpenIdError("the provider's word is for somebody else; tell whoever keeps this console")
        return self._person(claims), begun.following

    def _person(self, claims: Mapping[str, Any]) -> Person:
        given = claims.get(self._claim)
        words = set(given.split() if isinstance(given, str) else map(str, given) if isinstance(given, list) else ())
        role = next((role for role in reversed(ROLES) if {role, f"waypost-{role}"} & words), None)
        if role is None:
            raise OpenIdError(f"you have no role here: the claim {self._claim} names none of {', '.join(ROLES)}; ask whoever keeps the provider")
        names = (str(claims.get(name, "")) for name in ("preferred_username", "email", "sub"))
        name = next((name for name in names if NAME.fullmatch(name)), "somebody")
        return Person(name, role)

    async def _provider(self) -> tuple[dict[str, Any], Any]:
        """What the provider says of itself, and its keys."""
        if self._known is None or self._known[0] <= self._now():
            said = await self._ask("GET", f"{self.issuer}/.well-known/openid-configuration")
            if str(said.get("issuer", "")).rstrip("/") != self.issuer or not {"authorization_endpoint", "token_endpoint", "jwks_uri"} <= said.keys():
                raise OpenIdError("the provider says that it is another; see to oidc_issuer")
            keys = await self._ask("GET", str(said["jwks_uri"]))
            try:
                self._known = self._now() + KNOWN_SECONDS, said, jwk.KeySet.import_key_set(keys)  # type: ignore[arg-type]
            except (JoseError, ValueError, KeyError, TypeError):
                raise OpenIdError("the provider's keys cannot be read; see to oidc_issuer") from None
        return self._known[1], self._known[2]

    async def _ask(self, method: str, url: str, **more: Any) -> dict[str, Any]:
        try:
            async with httpx.AsyncClient(timeout=REQUEST_SECONDS) as client:
                answer = await client.request(method, url, **more)
                answer.raise_for_status()
                said = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            self._known = None
            raise OpenIdError(f"the provider does not answer as it should ({type(error).__name__}); try again later") from None
        if not isinstance(said, dict):
            raise OpenIdError("the provider does not answer as it should; see to oidc_issuer")
        return said
