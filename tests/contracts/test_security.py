"""Who may do what: a console with users, attacked from outside. Each line of the checklist in docs/security.md names a test of this file."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from console import people
from console.guard import needed
from console.people import People, PeopleError, digest, hashed, write
from streams.reader import read_log
from tests.support import PATIENCE_SECONDS
from tests.support.running import Waypost, started
from tests.support.terminal import ROOT

from .test_api import journey, visit

pytestmark = pytest.mark.embedded

PASSWORD = "a long enough password"
TOKENS = {role: f"token of the {role}" for role in people.ROLES}


@pytest.fixture(scope="module")
def guarded(embedded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waypost]:
    """A Waypost with users: ada edits, and a token of each role."""
    directory = tmp_path_factory.mktemp("guarded")
    users = directory / "users.toml"
    write(users, "users", "ada", {"role": "editor", "password": hashed(PASSWORD)})
    for role, token in TOKENS.items():
        write(users, "tokens", f"{role}-token", {"role": role, "sha256": digest(token)})
    running = started(embedded, f"t{uuid.uuid4().hex[:10]}.", directory / "data", users_file=users, internal_secret="between us")
    running.http.headers["Authorization"] = f"Bearer {TOKENS['operator']}"
    with running:
        yield running


def as_(waypost: Waypost, role: str | None) -> httpx.Client:
    headers = {} if role is None else {"Authorization": f"Bearer {TOKENS[role]}"}
    return httpx.Client(base_url=waypost.url, headers=headers, timeout=PATIENCE_SECONDS)


def logged_in(waypost: Waypost) -> httpx.Client:
    client = as_(waypost, None)
    answer = client.post("/login", data={"name": "ada", "password": PASSWORD, "next": "/journeys"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/journeys")
    return client


ROUTES = (
    ("GET", "/api/journeys"), ("PUT", "/api/journeys/x"), ("DELETE", "/api/journeys/x"), ("GET", "/api/journeys/x/results"),
    ("GET", "/api/contacts/x"), ("DELETE", "/api/contacts/x"), ("POST", "/api/activities"), ("POST", "/api/recalculations"), ("GET", "/api/rejected"),
    ("POST", "/api/rejected/resend"), ("GET", "/api/health"), ("GET", "/api/openapi.json"), ("GET", "/journeys"), ("GET", "/journeys/x"),
    ("GET", "/builder"), ("POST", "/builder/show"), ("GET", "/contacts?id=x"), ("GET", "/operations"), ("GET", "/stream/operations"),
    ("GET", "/nowhere"),
)  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_login_nothing_is_answered(guarded: Waypost, method: str, path: str) -> None:
    answer = as_(guarded, None).request(method, path, json={} if method in ("PUT", "POST") else None)
    assert answer.status_code == 401 or (answer.status_code == 303 and answer.headers["location"].startswith("/login?next="))
    assert as_(guarded, None).request(method, path, headers={"Authorization": "Bearer wrong"}).status_code in (401, 303)


def test_what_orchestrators_ask_is_answered_to_everybody(guarded: Waypost) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/login", "/static/console.css"):
        assert as_(guarded, None).get(path).status_code == 200


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        (
            "viewer",
            [("GET", "/api/journeys"), ("GET", "/journeys")],
            [("PUT", "/api/journeys/y"), ("GET", "/api/rejected"), ("GET", "/builder"), ("DELETE", "/api/contacts/y")],
        ),
        (
            "editor",
            [("GET", "/builder"), ("DELETE", "/api/journeys/nowhere")],
            [("DELETE", "/api/contacts/y"), ("POST", "/api/activities"), ("GET", "/operations"), ("GET", "/stream/operations")],
        ),
        ("operator", [("GET", "/operations"), ("GET", "/api/rejected"), ("DELETE", "/api/contacts/y")], []),
    ],
)  # fmt: skip
def test_each_role_may_what_it_may(guarded: Waypost, role: str, may: list[Any], may_not: list[Any]) -> None:
    with as_(guarded, role) as client:
        assert all(client.request(method, path).status_code not in (401, 403, 303) for method, path in may)
        for method, path in may_not:
            answer = client.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_allowed")


def test_no_access_is_a_page_to_a_browser(guarded: Waypost) -> None:
    with as_(guarded, "viewer") as client:
        answer = client.get("/operations", headers={"Accept": "text/html"})
        assert (answer.status_code, "Not allowed" in answer.text, "/journeys" in answer.text) == (403, True, True)


def test_every_route_needs_a_role(guarded: Waypost) -> None:
    """No operation of the API is open to viewers by forgetting it: what changes something needs more."""
    paths = guarded.http.get("/api/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method in operations:
            role = needed(method.upper(), path.replace("{", "").replace("}", ""))
            assert role != "viewer" or method == "get", (method, path)
    assert needed("GET", "/api/contacts/a\nb") == "viewer"
    assert needed("DELETE", "/api/contacts/a\nb") == "operator"


def test_a_session_is_new_each_time_and_ends(guarded: Waypost) -> None:
    client = as_(guarded, None)
    client.cookies.set("waypost_session", "chosen-by-an-attacker")
    answer = client.post("/login", data={"name": "ada", "password": PASSWORD})
    said = answer.headers["set-cookie"]
    assert "chosen-by-an-attacker" not in said
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(said.split("; "))
    token = said.split(";")[0].partition("=")[2]
    mine = httpx.Client(base_url=guarded.url, cookies={"waypost_session": token})
    assert mine.get("/account").status_code == 200
    assert "ada" in mine.get("/account").text
    mine.post("/logout")
    again = httpx.Client(base_url=guarded.url, cookies={"waypost_session": token})
    assert again.get("/api/journeys").status_code == 401


def test_a_stream_ends_with_its_session(guarded: Waypost) -> None:
    client = logged_in(guarded)
    with client.stream("GET", "/stream/journeys", timeout=PATIENCE_SECONDS) as stream:
        lines = stream.iter_lines()
        assert any(line.startswith("data:") for line in lines)
        assert httpx.post(f"{guarded.url}/logout", cookies=dict(client.cookies)).status_code == 303
        rest = [*lines]
    assert "event: unavailable" in rest
    assert "not_logged_in" in rest[-2]


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}, {"Origin": "null"}],
)
def test_a_page_of_another_site_changes_nothing(guarded: Waypost, headers: dict[str, str]) -> None:
    client, id_ = logged_in(guarded), f"csrf-{uuid.uuid4().hex[:8]}"
    for method, path in (("PUT", f"/api/journeys/{id_}"), ("POST", "/api/recalculations"), ("POST", "/logout"), ("POST", "/login")):
        answer = client.request(method, path, content=json.dumps(journey(id_, "a")), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "cross_site")
    assert client.get(f"/api/journeys/{id_}").status_code == 404
    same = {"Sec-Fetch-Site": "same-origin", "Origin": guarded.url}
    assert client.put(f"/api/journeys/{id_}", json=journey(id_, "a"), headers=same).status_code == 201


@pytest.mark.parametrize("following", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "\r\nSet-Cookie: a=b"])
def test_a_login_leads_nowhere_else(guarded: Waypost, following: str) -> None:
    answer = as_(guarded, None).post("/login", data={"name": "ada", "password": PASSWORD, "next": following})
    assert (answer.status_code, answer.headers["location"]) == (303, "/journeys")
    assert [said.partition("=")[0] for said in answer.headers.get_list("set-cookie")] == ["waypost_session", "waypost_device"]


def test_guessing_is_slowed_down(guarded: Waypost) -> None:
    name = f"guessed-{uuid.uuid4().hex[:6]}"
    client = as_(guarded, None)
    codes = [client.post("/login", data={"name": name, "password": f"guess {k}"}).status_code for k in range(7)]
    assert codes == [401] * 5 + [429] * 2
    assert int(client.post("/login", data={"name": name, "password": PASSWORD}).headers["retry-after"]) > 60


def test_who_changed_what_is_on_the_audit_topic(guarded: Waypost) -> None:
    client = logged_in(guarded)
    client.put("/api/journeys/audited", json=journey("audited", "a"))
    with as_(guarded, "viewer") as viewer:
        viewer.delete("/api/contacts/somebody%0A")
    guarded.http.delete("/api/contacts/somebody")
    rows = []
    for _, records in read_log(guarded.settings, f"{guarded.settings.topic_prefix}audit"):
        rows += [json.loads(record.value() or b"") for record in records]
    said = {(row["who"], row["role"], row["action"], row["target"], row["status"]) for row in rows}
    assert ("ada", "editor", "PUT journeys", "audited", 201) in said
    assert ("ada", "editor", "login", None, 303) in said
    erased = [row for row in rows if row["action"] == "DELETE contacts"]
    assert {(row["who"], row["status"]) for row in erased} >= {("viewer-token", 403), ("operator-token", 204)}
    assert "somebody" not in json.dumps(erased), "who was erased is not to be found here"
    assert PASSWORD not in json.dumps(rows)


def test_workers_answer_the_console_alone(guarded: Waypost) -> None:
    (worker,) = guarded.http.get("/api/health").json()["workers"]
    assert worker["state"] == "live"
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert httpx.get(worker["url"] + "/internal/contact", params={"id": "x"}, headers=headers).status_code == 401
    assert httpx.get(worker["url"] + "/internal/partitions", headers={"Authorization": "Bearer between us"}).status_code == 200
    assert httpx.get(worker["url"] + "/healthz").status_code == 200


def test_secrets_are_in_no_log_and_no_config(guarded: Waypost) -> None:
    logged_in(guarded)
    text = guarded.log.read_text() + "".join(path.read_text(errors="replace") for path in guarded.settings.data_dir.rglob("*.log"))
    command = [sys.executable, "-m", "console", "config"]
    shown = subprocess.run(command, cwd=ROOT, env=guarded.environ, capture_output=True, text=True, check=True).stdout
    for secret in (PASSWORD, "between us", *TOKENS.values()):
        assert secret not in text
        assert secret not in shown


def test_commands_say_who_they_are(guarded: Waypost) -> None:
    command = [sys.executable, "-m", "console", "journey", "list", "--api", guarded.url]
    refused = subprocess.run(command, cwd=ROOT, env=guarded.environ, capture_output=True, text=True, check=False)
    assert (refused.returncode, "log in, or send a token" in refused.stderr) == (1, True)
    environ = {**guarded.environ, "WAYPOST_API_TOKEN": TOKENS["viewer"]}
    assert subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False).returncode == 0


def test_a_console_without_users_listens_here_alone(embedded: str, tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WAYPOST_") or k.startswith("WAYPOST_TEST_")}
    prefix = f"t{uuid.uuid4().hex[:10]}."
    for command, host in (("console", "WAYPOST_CONSOLE_HOST"), ("worker", "WAYPOST_WORKER_HOST")):
        environ = {**clean, "WAYPOST_BROKER": embedded, "WAYPOST_TOPIC_PREFIX": prefix, host: "0.0.0.0", "WAYPOST_DATA_DIR": str(tmp_path / command)}
        subprocess.run([sys.executable, "-m", "console", "topics"], cwd=ROOT, env=environ, check=True, capture_output=True)
        argv = [sys.executable, "-m", "console", command]
        done = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        assert done.returncode == 1
        assert "users_file" in done.stderr or "internal_secret" in done.stderr


def test_a_console_without_users_answers_to_its_own_names_alone(waypost: Waypost) -> None:
    assert waypost.http.get("/api/health", headers={"Host": "attacker.example"}).json()["error"]["code"] == "foreign_host"
    for host in ("localhost:8080", "127.0.0.1", "[::1]:8080"):
        assert waypost.http.get("/api/health", headers={"Host": host}).status_code == 200
    answer = waypost.http.put("/api/journeys/csrf", json=journey("csrf", "a"), headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/static/../api.py", "/static/%2e%2e/page.py", "/static//etc/passwd", "/static/vendor/../../page.py"])
def test_no_path_leads_out_of_the_files(guarded: Waypost, path: str) -> None:
    host, port = guarded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as sent:
        sent.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        said = b""
        while chunk := sent.recv(65536):
            said += chunk
    assert b" 404 " in said.split(b"\r\n")[0] or b" 401 " in said.split(b"\r\n")[0] or b" 303 " in said.split(b"\r\n")[0]
    assert b"import" not in said


def test_headers_cannot_be_put_in_by_what_people_write(guarded: Waypost) -> None:
    for query in ("a%0d%0aX-Evil:%201", "a%0aSet-Cookie:%20x=1"):
        answer = guarded.http.get(f"/contacts?id={query}")
        assert "x-evil" not in answer.headers
        assert "set-cookie" not in answer.headers
    assert "x-evil" not in as_(guarded, None).get("/journeys%0d%0aX-Evil:1", headers={"Accept": "text/html"}).headers


def test_a_slow_client_holds_up_nobody(guarded: Waypost) -> None:
    host, port = guarded.url.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port)), 10) for _ in range(30)]
    try:
        for one in slow:
            one.sendall(b"POST /api/activities HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKENS["operator"].encode())
        assert guarded.http.get("/api/journeys").status_code == 200, "while the slow ones are still there"
    finally:
        for one in slow:
            one.close()


def test_who_asks_again_after_a_rest_is_answered_on_the_same_connection(guarded: Waypost) -> None:
    """Clients and proxies keep connections for some time; a server that closes them earlier answers now and then nobody."""
    host, port = guarded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as one:
        for rest_s in (0, 7):
            time.sleep(rest_s)
            one.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += (some := one.recv(1 << 16))
                assert some, f"closed after {rest_s} s"
            assert answer.startswith(b"HTTP/1.1 "), f"after {rest_s} s"


BOMB = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12))


@pytest.mark.parametrize("text", [BOMB, "!!python/object/apply:os.system [id]", "[" * 5000])
def test_files_brought_in_hurt_nobody(guarded: Waypost, text: str) -> None:
    answer = logged_in(guarded).post("/builder/import", json={"name": "x.yaml", "text": text})
    assert answer.status_code == 422
    assert "Traceback" not in answer.text


def test_the_file_of_users_is_read_again_and_a_broken_one_leaves_what_was(tmp_path: Path) -> None:
    now = 0.0
    path = tmp_path / "users.toml"
    write(path, "users", "ada", {"role": "viewer", "password": hashed(PASSWORD)})
    assert oct(path.stat().st_mode)[-3:] == "600"
    found = People(path, lambda: now)
    assert found.check("ada", PASSWORD) == ("ada", "viewer")
    assert found.check("ada", PASSWORD + "x") is None
    assert found.check("eve", PASSWORD) is None
    write(path, "users", "ada", {"role": "editor", "password": hashed(PASSWORD)})
    now += 10
    assert found.named("ada") == ("ada", "editor")
    path.write_text("not toml [")
    now += 10
    assert found.named("ada") == ("ada", "editor")
    for text in ("not toml [", '[users.ada]\nrole = "king"\npassword = "x"', '[tokens.ci]\nrole = "viewer"'):
        path.write_text(text)
        with pytest.raises(PeopleError):
            People(path)
    with pytest.raises(PeopleError):
        hashed("short")


def test_users_and_tokens_by_command(tmp_path: Path) -> None:
    file = tmp_path / "users.toml"

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "console", "user", *arguments, "--file", str(file)]
        return subprocess.run(argv, cwd=ROOT, input=stdin, capture_output=True, text=True, check=False)

    assert run("add", "ada", "--role", "editor", stdin=PASSWORD + "\n").returncode == 0
    assert run("add", "bob", "--role", "viewer", stdin="short\n").returncode == 1
    assert run("add", "no/name", "--role", "viewer", stdin=PASSWORD + "\n").returncode == 2
    token = run("token", "ci", "--role", "operator").stdout.strip()
    assert People(file).by_token(token) == ("ci", "operator")
    listed = json.loads(run("list", "--json").stdout)
    assert [(row["kind"], row["name"], row["role"]) for row in listed] == [("user", "ada", "editor"), ("token", "ci", "operator")]


def test_a_visit_with_a_token_counts(guarded: Waypost) -> None:
    guarded.http.put("/api/journeys/counted", json=journey("counted", "a"))
    guarded.http.post("/api/activities", json=[visit("counted", "x", "a", "10:00:00")])
    assert guarded.settled("counted")["stages"][0]["converted"] == 1
