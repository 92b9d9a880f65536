"""Logging in at a provider of identities: the whole way against one of our own making, and each lie that it could tell."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from joserfc import jwk, jwt

from console.people import digest, write
from tests.support import PATIENCE_SECONDS
from tests.support.running import Waypost, started

pytestmark = pytest.mark.embedded

KEY, OTHER_KEY = jwk.RSAKey.generate_key(2048, {"kid": "k1", "use": "sig", "alg": "RS256"}), jwk.RSAKey.generate_key(2048, {"kid": "k1"})
NEXT_KEY = jwk.RSAKey.generate_key(2048, {"kid": "k2"})
CLIENT, SECRET = "waypost-console", "a secret of the provider's"


class Provider(http.server.BaseHTTPRequestHandler):
    """Lets everybody in at once. `claims` go into the ID token; `lie` says how that is not what it should be."""

    issuer: ClassVar[str] = ""
    claims: ClassVar[dict[str, Any]] = {}
    lie: ClassVar[str] = ""
    codes: ClassVar[dict[str, dict[str, str]]] = {}
    key: ClassVar[jwk.RSAKey] = KEY

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        if path == "/.well-known/openid-configuration":
            base = {"issuer": self.issuer, "authorization_endpoint": f"{self.issuer}/authorize", "token_endpoint": f"{self.issuer}/token"}
            self._say({**base, "jwks_uri": f"{self.issuer}/keys"})
        elif path == "/keys":
            self._say({"keys": [one.as_dict(private=False) for one in {KEY.kid: KEY, self.key.kid: self.key}.values()]})
        else:
            assert query["code_challenge_method"] == "S256"
            code = uuid.uuid4().hex
            self.codes[code] = query
            self.send_response(303)
            self.send_header("location", query["redirect_uri"] + "?" + urlencode({"code": code, "state": query["state"]}))
            self.end_headers()

    def do_POST(self) -> None:
        said = {name: values[0] for name, values in parse_qs(self.rfile.read(int(self.headers["content-length"])).decode()).items()}
        asked = self.codes.pop(said["code"])
        proof = base64.urlsafe_b64encode(hashlib.sha256(said["code_verifier"].encode()).digest()).decode().rstrip("=")
        assert proof == asked["code_challenge"], "PKCE"
        assert said["redirect_uri"] == asked["redirect_uri"]
        assert self.headers["authorization"].startswith("Basic ")
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT, "sub": "u-1", "iat": now, "exp": now + 300, "nonce": asked["nonce"], **self.claims}
        header = {"alg": "RS256", "kid": str(self.key.kid)}
        token = jwt.encode(header, claims, OTHER_KEY if self.lie == "key" else self.key)
        if self.lie == "unsigned":
            parts = [{"alg": "none", "kid": "k1"}, claims]
            token = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."
        self._say({"access_token": "x", "token_type": "bearer", "id_token": token})

    def _say(self, what: Any) -> None:
        value = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(value)))
        self.end_headers()
        self.wfile.write(value)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def console(embedded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waypost]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Provider.issuer = f"http://127.0.0.1:{server.server_port}"
        oidc = {"oidc_issuer": Provider.issuer, "oidc_client_id": CLIENT, "oidc_client_secret": SECRET, "internal_secret": "between us"}
        directory = tmp_path_factory.mktemp("openid")
        write(directory / "users.toml", "tokens", "tests", {"role": "operator", "sha256": digest("a token")})
        running = started(embedded, f"t{uuid.uuid4().hex[:10]}.", directory / "data", users_file=directory / "users.toml", **oidc)
        running.http.headers["Authorization"] = "Bearer a token"
        with running:
            yield running
        server.shutdown()


@pytest.fixture(autouse=True)
def _honest() -> None:
    Provider.claims, Provider.lie = {"preferred_username": "grace", "roles": ["waypost-editor", "something else"]}, ""


def through(console: Waypost, **query: str) -> tuple[httpx.Client, httpx.Response]:
    """A browser that logged in, and what it was shown in the end."""
    browser = httpx.Client(base_url=console.url, timeout=PATIENCE_SECONDS)
    sent = browser.get("/login/openid", params=query)
    assert sent.status_code == 303
    back = httpx.get(sent.headers["location"]).headers["location"]
    return browser, browser.get(back)


def test_somebody_logs_in_and_may_what_the_claim_says(console: Waypost) -> None:
    browser = httpx.Client(base_url=console.url, timeout=PATIENCE_SECONDS)
    assert browser.get("/journeys").headers["location"].startswith("/login?next=")
    assert "/login/openid" in browser.get("/login?next=/contacts").text
    assert 'name="password"' not in browser.get("/login").text, "nobody has a password here"
    browser, end = through(console, next="/contacts")
    assert (end.status_code, end.headers["location"]) == (303, "/contacts")
    assert "grace" in browser.get("/account").text
    assert browser.get("/api/journeys").status_code == 200
    assert browser.get("/builder").status_code == 200
    assert browser.get("/api/rejected").status_code == 403, "an editor is no operator"
    assert browser.post("/logout").status_code == 303
    assert browser.get("/api/journeys").status_code == 401


def test_a_provider_may_change_its_key_at_any_time(console: Waypost, monkeypatch: pytest.MonkeyPatch) -> None:
    through(console)
    monkeypatch.setattr(Provider, "key", NEXT_KEY)
    until = time.monotonic() + PATIENCE_SECONDS
    while (found := through(console))[1].status_code != 303:  # keys were asked for within the last ten seconds, by another test
        assert time.monotonic() < until
        time.sleep(1)
    assert found[0].get("/api/journeys").status_code == 200


@pytest.mark.parametrize("roles", ["viewer other", ["viewer"]])
def test_roles_are_words_or_a_list(console: Waypost, roles: Any) -> None:
    Provider.claims = {"email": "hopper@example.com", "roles": roles}
    browser, _ = through(console)
    assert "hopper@example.com" in browser.get("/account").text
    assert browser.get("/builder").status_code == 403


@pytest.mark.parametrize("roles", [None, [], "administrator", {"operator": True}, ["operators"]])
def test_without_a_role_of_ours_nobody_gets_in(console: Waypost, roles: Any) -> None:
    Provider.claims = {"roles": roles}
    browser, end = through(console)
    assert end.status_code == 401
    assert "you have no role here" in end.text
    assert browser.get("/api/journeys").status_code == 401


@pytest.mark.parametrize(("claims", "lie"), [
    ({}, "key"), ({}, "unsigned"), ({"nonce": "another"}, ""), ({"aud": "another"}, ""), ({"iss": "http://another"}, ""),
    ({"exp": 1_000_000_000}, ""), ({"aud": [CLIENT, "another"]}, ""), ({"sub": None}, ""),
])  # fmt: skip
def test_a_word_that_is_not_for_us_now_is_not_believed(console: Waypost, claims: dict[str, Any], lie: str) -> None:
    Provider.claims, Provider.lie = {"roles": "operator", **claims}, lie
    browser, end = through(console)
    assert end.status_code == 401
    assert "the provider&#39;s word" in end.text
    assert browser.get("/api/journeys").status_code == 401


def test_a_login_that_was_begun_elsewhere_is_not_finished_here(console: Waypost) -> None:
    victim, attacker = (httpx.Client(base_url=console.url, timeout=PATIENCE_SECONDS) for _ in range(2))
    back = httpx.get(attacker.get("/login/openid").headers["location"]).headers["location"]
    assert victim.get(back).status_code == 401
    assert victim.get("/api/journeys").status_code == 401
    assert attacker.get(back).status_code == 303, "who began it finishes it"
    assert attacker.get(back).status_code == 401, "and not twice"
    for query in ("", "?code=x", "?code=x&state=y", "?error=access_denied&state=y"):
        assert victim.get(f"/login/openid/back{query}").status_code == 401


def test_nobody_is_sent_elsewhere(console: Waypost) -> None:
    for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example"):
        _, end = through(console, next=elsewhere)
        assert end.headers["location"] == "/journeys"


def test_the_secret_stands_nowhere(console: Waypost, tmp_path: Path) -> None:
    through(console)
    assert SECRET not in console.log.read_text()
