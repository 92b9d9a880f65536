"""OpenID Connect: lets people log in at a provider of identities instead of with a password here. Knows no sessions and no pages.

The authorization code flow with PKCE, state and nonce (https://openid.net/specs/openid-connect-core-1_0.html#CodeFlowAuth). A role comes from a
claim of the ID token; without one of ours in it, nobody gets in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
from authlib.common.security import generate_token
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwk, jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError

from streams.settings import Settings

from .people import NAME, ROLES, Person

log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
KNOWN_SECONDS = 3600.0  # what a provider says of itself, and its keys
BEGUN_SECONDS = 600.0  # so long somebody may take to log in there
AGAIN_SECONDS = 10.0  # between two requests for keys that are not known, or to a provider that did not answer
MAX_FOLLOWING = 1000  # characters; what people sent goes into a cookie
LEEWAY_SECONDS = 60
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]  # signed with a key pair, nothing else


class OpenIdError(RuntimeError):
    """Nobody is logged in; the message is for whoever tried."""


class _Known(NamedTuple):
    """What the provider said, and when it was asked."""

    at: float
    about: dict[str, Any]
    keys: jwk.KeySet


class OpenId:
    """One provider. Keeps nothing of a login that has begun: that is in a signed cookie. *now*: seconds that only grow."""

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        assert settings.oidc_issuer is not None
        self.issuer = settings.oidc_issuer.rstrip("/")
        self._client_id = settings.oidc_client_id or ""
        self._secret = "" if settings.oidc_client_secret is None else settings.oidc_client_secret.get_secret_value()
        self._claim = settings.oidc_role_claim
        self._now = now
        self._asking = asyncio.Lock()
        self._known: _Known | None = None
        self._not_before = float("-inf")  # when the provider may be asked again

    async def begin(self, redirect_uri: str, following: str) -> tuple[str, dict[str, str]]:
        """`(where to send the browser, what it must come back with, signed)`. Raises OpenIdError."""
        known = await self._provider()
        state, nonce, verifier = generate_token(32), generate_token(32), generate_token(64)
        url = prepare_grant_uri(
            known.about["authorization_endpoint"], client_id=self._client_id, response_type="code", redirect_uri=redirect_uri,
            scope="openid profile email", state=state, nonce=nonce, code_challenge=create_s256_code_challenge(verifier),
            code_challenge_method="S256",
        )  # fmt: skip
        following = following if len(quote(following)) <= MAX_FOLLOWING else "/journeys"
        return str(url), {"state": state, "nonce": nonce, "verifier": verifier, "following": following}

    async def finish(self, query: Mapping[str, str], begun: Mapping[str, str] | None, redirect_uri: str) -> tuple[Person, str]:
        """`(who it is, where to go on)`. *query*: what the browser came back with; *begun*: what it went away with. Raises OpenIdError."""
        if begun is None or begun["state"] != query.get("state"):
            raise OpenIdError("this login was not begun in this browser, or too long ago; begin again")
        if "error" in query or "code" not in query:
            raise OpenIdError("the provider let nobody in; begin again, or ask whoever keeps it")
        known = await self._provider()
        asked = {"grant_type": "authorization_code", "code": query["code"], "redirect_uri": redirect_uri, "code_verifier": begun["verifier"]}
        answer = await self._ask("POST", known.about["token_endpoint"], data=asked, auth=(self._client_id, self._secret))
        claims = await self._claims(str(answer.get("id_token", "")), known, begun["nonce"])
        if isinstance(claims["aud"], list) and len(claims["aud"]) > 1 and claims.get("azp") != self._client_id:
            raise OpenIdError("the provider's word is for somebody else; tell whoever keeps this console")
        return self._person(claims), begun["following"]

    async def _claims(self, token: str, known: _Known, nonce: str) -> dict[str, Any]:
        """What the token says, which the provider signed for us just now. With a key that is not known, its keys are asked for again."""
        try:
            try:
                claims = jwt.decode(token, known.keys, algorithms=ALGORITHMS).claims
            except (InvalidKeyIdError, BadSignatureError, ValueError):
                known = await self._provider(other_than=known)
                claims = jwt.decode(token, known.keys, algorithms=ALGORITHMS).claims
            jwt.JWTClaimsRegistry(
                leeway=LEEWAY_SECONDS, iss={"essential": True, "value": known.about["issuer"]}, aud={"essential": True, "value": self._client_id},
                exp={"essential": True}, nonce={"essential": True, "value": nonce}, sub={"essential": True},
            ).validate(claims)  # fmt: skip
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise OpenIdError(f"the provider's word cannot be trusted ({type(error).__name__}); tell whoever keeps this console") from None
        return claims

    def _person(self, claims: Mapping[str, Any]) -> Person:
        given = claims.get(self._claim)
        words = set(given.split() if isinstance(given, str) else map(str, given) if isinstance(given, list) else ())
        role = next((role for role in reversed(ROLES) if {role, f"waypost-{role}"} & words), None)
        if role is None:
            raise OpenIdError(f"you have no role here: the claim {self._claim} names none of {', '.join(ROLES)}; ask whoever keeps the provider")
        names = (str(claims.get(name, "")) for name in ("preferred_username", "email", "sub"))
        name = next((name for name in names if NAME.fullmatch(name)), "somebody")
        return Person(name, role)

    async def _provider(self, other_than: _Known | None = None) -> _Known:
        """What the provider says of itself, and its keys, as of the last hour. *other_than*: what is known and did not do. Raises OpenIdError.

        Keys that did not do are asked for again at most once in `AGAIN_SECONDS`, and so is a provider that did not answer.
        """
        async with self._asking:  # whoever waited finds what the first was told
            now, known = self._now(), self._known
            fresh = known is not None and now < known.at + KNOWN_SECONDS and known is not other_than
            if known is not None and (fresh or now < self._not_before):
                return known
            if now < self._not_before:
                raise OpenIdError("the provider did not answer as it should a moment ago; try again in some seconds")
            if other_than is not None:
                self._not_before = now + AGAIN_SECONDS
            try:
                self._known = found = await self._asked(now)
            except OpenIdError as error:
                self._not_before = now + AGAIN_SECONDS
                if known is None:
                    raise
                log.warning("%s cannot be asked again for its keys, going on with those that are known: %s", self.issuer, error)
                return known
            return found

    async def _asked(self, now: float) -> _Known:
        about = await self._ask("GET", f"{self.issuer}/.well-known/openid-configuration")
        if str(about.get("issuer", "")).rstrip("/") != self.issuer or not {"authorization_endpoint", "token_endpoint", "jwks_uri"} <= about.keys():
            raise OpenIdError("the provider says that it is another; see to oidc_issuer")
        keys = await self._ask("GET", str(about["jwks_uri"]))
        try:
            return _Known(now, about, jwk.KeySet.import_key_set(keys))  # type: ignore[arg-type]
        except (JoseError, ValueError, KeyError, TypeError):
            raise OpenIdError("the provider's keys cannot be read; see to oidc_issuer") from None

    async def _ask(self, method: str, url: str, **more: Any) -> dict[str, Any]:
        try:
            async with httpx.AsyncClient(timeout=REQUEST_SECONDS) as client:
                answer = await client.request(method, url, **more)
                answer.raise_for_status()
                said = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise OpenIdError(f"the provider does not answer as it should ({type(error).__name__}); try again later") from None
        if not isinstance(said, dict):
            raise OpenIdError("the provider does not answer as it should; see to oidc_issuer")
        return said
