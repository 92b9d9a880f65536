"""Logging in, as proxies, several consoles and those who guess make it hard: consoles in this process, on a broker without workers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from console import kafka, people
from console.cli import cli
from console.people import digest, hashed, write
from streams import topics
from streams.reader import read_log
from streams.settings import Settings
from tests.conftest import Broker
from tests.support import PATIENCE_SECONDS

from .test_api_consoles import console

pytestmark = pytest.mark.embedded

PASSWORD, ANOTHER = "a long enough password", "another long password"
TOKEN = "a token of the operator"


@pytest.fixture(scope="module")
def guarded(embedded: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of consoles with users: ada edits, and a token of an operator. The topics are there; no worker is."""
    prefix, users = f"t{uuid.uuid4().hex[:10]}.", tmp_path_factory.mktemp("logins") / "users.toml"
    write(users, "users", "ada", {"role": "editor", "password": hashed(PASSWORD)})
    write(users, "tokens", "ci", {"role": "operator", "sha256": digest(TOKEN)})
    flags = {"broker": embedded, "topic_prefix": prefix, "group": f"{prefix}workers", "users_file": users, "workers": "http://127.0.0.1:9"}
    settings = Settings.load({**flags, "internal_secret": "between us"}, environ={})
    topics.provision(settings)
    return settings


def audited(settings: Settings) -> list[dict[str, Any]]:
    """The rows of the audit topic."""
    found = [record.value() for _, records in read_log(settings, topics.topic_name(settings, "audit")) for record in records]
    return [json.loads(value or b"") for value in found]


async def log_in(client: httpx.AsyncClient, password: str = PASSWORD, name: str = "ada", **headers: str) -> httpx.Response:
    return await client.post("/login", data={"name": name, "password": password}, headers=headers)


FORWARDED = (
    ("203.0.113.9", "203.0.113.9"), ("198.51.100.1, 203.0.113.9, 10.1.2.3", "203.0.113.9"), ("203.0.113.9:1234, 10.9.9.9", "203.0.113.9"),
    ("2001:db8::9", "2001:db8::9"), ("nobody" * 1000, None),
)  # fmt: skip


async def test_a_trusted_proxy_says_who_the_client_is_and_whether_it_came_by_tls(guarded: Settings) -> None:
    async with console(guarded.replaced("test", trusted_proxies=("127.0.0.1", "10.0.0.0/8"))) as client:
        for forwarded, _ in FORWARDED:
            answer = await log_in(client, **{"X-Forwarded-For": forwarded, "X-Forwarded-Proto": "https"})
            assert answer.status_code == 303
            assert all("Secure" in said.split("; ") for said in answer.headers.get_list("set-cookie"))
    assert [row["address"] for row in audited(guarded)[-len(FORWARDED) :]] == [address for _, address in FORWARDED]


async def test_others_say_nothing_of_the_kind(guarded: Settings) -> None:
    async with console(guarded.replaced("test", trusted_proxies=("10.0.0.0/8",))) as client:
        answer = await log_in(client, **{"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"})
    assert answer.status_code == 303
    assert "Secure" not in answer.headers["set-cookie"]
    assert audited(guarded)[-1]["address"] == "127.0.0.1"


async def test_guesses_that_arrive_together_are_counted(guarded: Settings) -> None:
    async with console(guarded) as client:
        passwords = [f"guess {k}" for k in range(300)]
        passwords[290] = PASSWORD
        answers = await asyncio.gather(*(log_in(client, password) for password in passwords))
        assert sorted(answer.status_code for answer in answers) == [401] * 5 + [429] * 295
        assert 0 < int(answers[299].headers["retry-after"]) <= 181
        assert (await log_in(client, "x", name="bob")).status_code == 401, "another name"


async def test_a_browser_that_was_let_in_before_is_not_locked_out_by_guesses_of_others(guarded: Settings) -> None:
    async with console(guarded) as client:
        assert (await log_in(client)).status_code == 303
        async with httpx.AsyncClient(base_url=client.base_url, timeout=PATIENCE_SECONDS) as other:
            assert {(await log_in(other, "x")).status_code for _ in range(6)} == {401, 429}
            assert (await log_in(other)).status_code == 429
            other.cookies.set("waypost_device", client.cookies["waypost_device"][:-8] + "AAAAAAAA", path="/login")
            assert (await log_in(other)).status_code == 429
        await client.post("/logout")
        assert (await log_in(client)).status_code == 303


async def test_a_broker_that_does_not_answer_holds_up_no_login_and_loses_no_audit(guarded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, control = asyncio.Event(), kafka.Writer.control

    async def frozen(self: kafka.Writer, *record: Any) -> int:
        await answers.wait()
        return await control(self, *record)

    answers.set()
    monkeypatch.setattr(kafka.Writer, "control", frozen)
    before = len(audited(guarded))
    async with console(guarded) as client:
        answers.clear()
        assert (await log_in(client)).status_code == 303
        assert (await client.get("/api/journeys")).status_code == 200
        assert (await client.post("/logout")).status_code == 303
        assert (await client.post("/logout")).status_code == 401
        assert len(audited(guarded)) == before
        answers.set()
    assert [(row["action"], row["status"]) for row in audited(guarded)[before:]] == [("login", 303)]


async def test_what_nobody_known_asks_for_is_one_record_a_minute(guarded: Settings) -> None:
    before = len(audited(guarded))
    async with console(guarded) as client:
        for k in range(30):
            method = "PUT" if k % 2 else "M" * 30_000
            answer = await client.request(method, "/api/journeys/" + "x" * 30_000, json={})
            assert answer.status_code == 401
    (row,) = audited(guarded)[before:]
    assert (row["action"], row["address"], row["count"], row["who"]) == ("refused", "127.0.0.1", 30, None)


async def test_what_somebody_known_does_is_written_down_shortly_and_under_any_name(guarded: Settings) -> None:
    before = len(audited(guarded))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with console(guarded) as client:
        assert (await client.put("/api/journeys/preview", content=b"{", headers=headers)).status_code in (415, 422)
        assert (await client.delete("/api/contacts/a%2Fpreview", headers=headers)).status_code == 204
        await client.request("M" * 30_000, "/api/journeys/" + "x" * 30_000, headers=headers)
    rows = audited(guarded)[before:]
    assert [row["action"] for row in rows] == ["PUT journeys", "DELETE contacts", "other journeys"]
    assert (rows[0]["target"], len(rows[2]["target"])) == ("preview", 200)


# -- several consoles -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def balanced(*consoles: httpx.AsyncClient) -> AsyncIterator[str]:
    """A balancer before *consoles*: each connection goes to the next of them."""
    turn, pipes = itertools.cycle(consoles), set[asyncio.Task[None]]()

    async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await source.read(65536):
                sink.write(chunk)
                await sink.drain()
        sink.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        url = next(turn).base_url
        there, back = await asyncio.open_connection(url.host, url.port)
        pipes.update({asyncio.create_task(pipe(reader, back)), asyncio.create_task(pipe(there, writer))})

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in pipes:
            task.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)


def browser(url: str) -> httpx.AsyncClient:
    """A browser that makes a connection for each request, so that the next console answers each."""
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS, limits=httpx.Limits(max_keepalive_connections=0))


async def until(there: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await there():
            await asyncio.sleep(0.05)


@pytest.fixture
def files(guarded: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A copy of the file of users for each of two consoles, as pods have them; a change is noticed at the next look."""
    monkeypatch.setattr(people, "LOOK_SECONDS", 0.0)
    assert guarded.users_file is not None
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    shutil.copy(guarded.users_file, first), shutil.copy(guarded.users_file, second)
    return first, second


@pytest.mark.parametrize("broker", [pytest.param("embedded"), pytest.param("kafka", marks=pytest.mark.kafka)], indirect=True)
async def test_one_login_holds_at_two_consoles_and_one_logout_ends_it_at_both(guarded: Settings, broker: Broker, prefix: str) -> None:
    guarded = guarded.replaced("test", broker=broker.bootstrap, topic_prefix=prefix)
    topics.provision(guarded)
    async with console(guarded) as first, console(guarded) as second, balanced(first, second) as url, browser(url) as ada, browser(url) as too:
        for one in (ada, too):
            assert (await log_in(one)).status_code == 303
        for path in ("/api/journeys", "/account", "/builder"):
            assert [(await ada.get(path)).status_code for _ in range(6)] == [200] * 6, path
        cookies = {"waypost_session": ada.cookies["waypost_session"]}
        assert (await ada.post("/logout")).status_code == 303
        for one in (first, second):
            await until(lambda one=one: status(one, cookies, 401))  # type: ignore[misc]
        assert [(await too.get("/account")).status_code for _ in range(4)] == [200] * 4, "another session of hers goes on"
        cookies = {"waypost_session": too.cookies["waypost_session"]}
    async with console(guarded) as third:
        assert await status(third, cookies, 200), "a restart logs nobody out"


async def status(client: httpx.AsyncClient, cookies: dict[str, str], wanted: int) -> bool:
    header = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
    return (await client.get("/api/journeys", headers=header)).status_code == wanted


async def test_log_out_everywhere_ends_every_session_of_a_name(guarded: Settings) -> None:
    async with console(guarded) as first, console(guarded) as second, browser(str(first.base_url)) as one, browser(str(second.base_url)) as two:
        assert [(await log_in(each)).status_code for each in (one, two)] == [303, 303]
        cookies = [{"waypost_session": each.cookies["waypost_session"]} for each in (one, two)]
        assert "Log out everywhere" in (await one.get("/account")).text
        assert (await one.post("/logout/everywhere")).status_code == 303
        for each in (first, second):
            for found in cookies:
                await until(lambda each=each, found=found: status(each, found, 401))  # type: ignore[misc]
        assert (await log_in(one)).status_code == 303
        await until(lambda: status(second, {"waypost_session": one.cookies["waypost_session"]}, 200))
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert (await first.post("/logout/everywhere", headers=headers)).status_code == 409, "a token has no sessions"


async def test_a_change_of_the_file_that_one_console_has_ends_sessions_at_both(guarded: Settings, files: tuple[Path, Path]) -> None:
    rows = {"password": {"role": "editor", "password": hashed(ANOTHER)}, "role": {"role": "viewer", "password": hashed(ANOTHER)}, "removed": None}
    first, second = (guarded.replaced("test", users_file=file) for file in files)
    password = PASSWORD
    async with console(first) as one, console(second) as two:
        for change, row in rows.items():
            async with browser(str(two.base_url)) as ada:
                assert (await log_in(ada, password)).status_code == 303, change
                cookies = {"waypost_session": ada.cookies["waypost_session"]}
            await until(lambda cookies=cookies: status(one, cookies, 200))  # type: ignore[misc]
            if row is None:
                files[0].write_text("")
            else:
                write(files[0], "users", "ada", row)
            await until(lambda cookies=cookies: status(two, cookies, 401))  # type: ignore[misc]
            assert await status(one, cookies, 401), "the second console still has the old file"
            shutil.copy(files[0], files[1])
            password = ANOTHER


async def test_sessions_are_ended_by_command(guarded: Settings) -> None:
    def logout(*arguments: str) -> Any:
        return CliRunner().invoke(cli, ["user", "logout", *arguments], env=guarded.environment())

    async with console(guarded) as client:
        for arguments in (["ada"], ["--all"]):
            assert (await log_in(client)).status_code == 303
            cookies = {"waypost_session": client.cookies["waypost_session"]}
            assert await status(client, cookies, 200)
            done = await asyncio.to_thread(logout, *arguments)
            assert done.exit_code == 0, done.output
            await until(lambda cookies=cookies: status(client, cookies, 401))  # type: ignore[misc]
            client.cookies.clear()
    assert logout().exit_code == logout("ada", "--all").exit_code == 2


async def test_two_consoles_with_different_secrets_do_not_believe_each_other(guarded: Settings) -> None:
    secrets = ("a" * 32, "b" * 32)
    one, two = (guarded.replaced("test", session_secret=secret) for secret in secrets)
    async with console(one) as first, console(two) as second:
        assert (await log_in(first)).status_code == 303
        cookies = {"waypost_session": first.cookies["waypost_session"]}
        assert await status(first, cookies, 200)
        assert await status(second, cookies, 401)
