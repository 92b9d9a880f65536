"""Logging in, as proxies, several consoles and those who guess make it hard: consoles in this process, on a broker without workers."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest

from console.people import digest, hashed, write
from streams import topics
from streams.reader import read_log
from streams.settings import Settings

from .test_api_consoles import console

pytestmark = pytest.mark.embedded

PASSWORD = "a long enough password"
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
