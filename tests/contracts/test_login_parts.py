"""What logging in is made of, without a broker: throttle, check of passwords, outbox, audit, the provider's keys, the sessions topic."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwk, jwt
from msgspec import MsgspecError

from console import outbox, throttle
from console.audit import MAX_ADDRESSES, Audit
from console.errors import ApiError
from console.openid import AGAIN_SECONDS, OpenId, OpenIdError
from console.outbox import Outbox
from console.people import People, hashed, write
from console.sessions import (
    AHEAD_MS,
    CLOCKS_MS,
    KEY_MS,
    LONGEST_MS,
    MAX_TIDIED,
    SESSION,
    Sessions,
    Table,
    new_key,
    revocation,
)
from console.throttle import BY_ADDRESS, BY_NAME, TOGETHER, Passwords, Throttle, TooMany
from streams.settings import Settings
from tests.support import PATIENCE_SECONDS

# -- the throttle ---------------------------------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def tries(limit: Throttle, name: str | None, address: str, device: str | None = None, most: int = 1000) -> int:
    """How many tries there are at once, at most *most*."""
    for count in range(most):
        try:
            limit.attempt(name, address, device)
        except TooMany:
            return count
    return most


def test_a_name_is_locked_for_one_address_alone() -> None:
    limit = Throttle(Clock())
    assert tries(limit, "ada", "203.0.113.1") == TOGETHER.burst
    assert tries(limit, "ada", "203.0.113.2", most=1) == 1, "somebody else's guesses lock nobody out"
    assert tries(limit, "bob", "203.0.113.1", most=1) == 1


def test_an_address_is_slowed_down_whatever_it_guesses() -> None:
    clock = Clock()
    limit = Throttle(clock)
    assert sum(tries(limit, f"name {k}", "203.0.113.1", most=1) for k in range(200)) == BY_ADDRESS.burst
    clock.now += BY_ADDRESS.seconds
    assert tries(limit, "another", "203.0.113.1") == 1
    assert tries(limit, None, "203.0.113.1") == 0, "and so it is at the provider of identities"


def test_a_guess_from_many_addresses_is_slowed_down_and_does_not_lock_out_a_known_browser() -> None:
    clock = Clock()
    limit = Throttle(clock)
    assert sum(tries(limit, "ada", f"10.0.{k}.1", most=1) for k in range(200)) == BY_NAME.burst
    with pytest.raises(TooMany) as refused:
        limit.attempt("ada", "10.1.0.1")
    assert 0 < refused.value.wait_seconds <= BY_NAME.seconds
    assert tries(limit, "ada", "10.1.0.1", device="known") == TOGETHER.burst
    assert tries(limit, "ada", "10.1.0.1", device="stolen", most=100) == TOGETHER.burst, "a stolen cookie gives no more than an address"


def test_an_address_of_ipv6_is_what_one_customer_has() -> None:
    limit = Throttle(Clock())
    assert sum(tries(limit, "ada", f"2001:db8::{k:x}", most=1) for k in range(20)) == TOGETHER.burst
    assert tries(limit, "ada", "2001:db8:0:1::1", most=1) == 1


def test_a_right_password_is_not_counted() -> None:
    limit = Throttle(Clock())
    for _ in range(100):
        limit.attempt("ada", "203.0.113.1").taken_back()
    assert tries(limit, "ada", "203.0.113.1") == TOGETHER.burst


def test_what_is_remembered_of_guesses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "MAX_KEYS", 100)
    limit = Throttle(Clock())
    for k in range(1000):
        tries(limit, f"name {k}", f"10.0.{k // 250}.{k % 250}", most=1)
    kept = [len(counts._full_at) for counts in (limit._together, limit._by_address, limit._by_name)]
    assert kept == [100, 100, 100]


@pytest.fixture
def people(tmp_path: Path) -> People:
    write(tmp_path / "users.toml", "users", "ada", {"role": "editor", "password": hashed("a long enough password")})
    return People(tmp_path / "users.toml")


async def test_two_passwords_are_checked_at_once_and_only_so_many_wait(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most, lock, go = 0, 0, threading.Lock(), threading.Event()

    def verify(row: Any, password: str) -> bool:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        go.wait(PATIENCE_SECONDS)
        with lock:
            at_once -= 1
        return True

    monkeypatch.setattr(throttle, "verify", verify)
    passwords = Passwords(people)
    asking = [asyncio.create_task(passwords.check("ada", "x")) for _ in range(300)]
    await asyncio.sleep(0)
    asking[0].cancel()  # who goes away does not make room for a further hash
    go.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert most <= throttle.HASHES_AT_ONCE
    assert sum(isinstance(answer, ApiError) and answer.status == 503 for answer in answers) == 300 - throttle.MAX_WAITING
    assert answers[1] == ("ada", "editor")


async def test_who_is_taken_out_while_the_password_is_checked_is_not_let_in(people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "verify", lambda row, password: people._users.clear() or True)
    assert await Passwords(people).check("ada", "a long enough password") is None


# -- the outbox and the audit ---------------------------------------------------------------------------------------------


class Broker:
    """Takes records, once `answers` is set; fails or refuses as `faults` say."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.records: list[tuple[bytes, bytes | None]] = []
        self.faults: list[Exception] = []

    async def send(self, topic: str, key: bytes, value: bytes | None, headers: Any) -> int:
        await self.answers.wait()
        if self.faults:
            raise self.faults.pop(0)
        self.records.append((key, value))
        return len(self.records) - 1

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(value or b"") for _, value in self.records]


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not there():
            await asyncio.sleep(0.01)


async def test_records_wait_for_the_broker_and_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(outbox, "MAX_RECORDS", 5)
    broker, lost = Broker(), []
    box = Outbox("t", broker.send, lambda key, value, reason: lost.append((key, reason)))
    box.start()
    broker.faults = [KafkaConnectionError(), TimeoutError(), OSError(), MessageSizeTooLargeError(), RuntimeError("a fault of ours")]
    futures = [box.put(bytes([k]), b"") for k in range(7)]
    await asyncio.sleep(0)
    assert [key for key, _ in lost] == [b"\5", b"\6"], "more than it may hold are lost at once, and said to be"
    broker.answers.set()
    await asyncio.wait(futures)
    assert [key for key, _ in broker.records] == [b"\2", b"\3", b"\4"]
    assert [key for key, _ in lost] == [b"\5", b"\6", b"\0", b"\1"], "one that the broker refuses, one that cannot be sent: the others go on"
    await box.stop()


async def test_what_is_left_when_the_console_ends_is_said_to_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "STOP_SECONDS", 0.01)
    broker, lost = Broker(), []
    box = Outbox("t", broker.send, lambda key, value, reason: lost.append(key))
    box.start()
    box.put(b"a", b""), box.put(b"b", b"")
    await box.stop()
    assert (lost, broker.records) == ([b"a", b"b"], [])


async def test_refused_requests_are_counted_by_address_and_what_is_written_is_short() -> None:
    broker = Broker()
    broker.answers.set()
    audit = Audit("audit", broker.send, lambda: 1_767_323_045_678)
    audit.start()
    for k in range(5000):
        audit.refused(f"10.{k % 250}.0.1")
    audit.refused("no address" * 1000)
    await audit.write("\ud800" + "n" * 40_000, None, None, "m" * 40_000, "t" * 40_000, 401)
    await audit.stop()
    refused = [row for row in broker.rows() if row["action"] == "refused"]
    assert len(refused) == MAX_ADDRESSES + 1
    assert sum(row["count"] for row in refused) == 5001
    assert refused[0] == {
        "at": "2026-01-02T03:04:05.678Z", "who": None, "role": None, "address": "10.0.0.1", "action": "refused", "target": None, "status": 401,
        "count": 20,
    }  # fmt: skip
    assert all(len(value or b"") < 2000 for _, value in broker.records)


# -- the provider's keys --------------------------------------------------------------------------------------------------


class Provider:
    """Answers requests of `OpenId._ask` itself; counts those for its keys."""

    def __init__(self) -> None:
        self.key = jwk.RSAKey.generate_key(2048, {"kid": "k1"})
        self.asked_for_keys, self.away, self.nonce = 0, False, ""

    async def ask(self, method: str, url: str, **more: Any) -> dict[str, Any]:
        if self.away:
            raise OpenIdError("away")
        if url.endswith("/keys"):
            self.asked_for_keys += 1
            return {"keys": [self.key.as_dict(private=False)]}
        if url.endswith("/token"):
            claims = {"iss": "https://id", "aud": "us", "sub": "u", "exp": 2**40, "nonce": self.nonce, "roles": "viewer"}
            return {"id_token": jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)}
        return {"issuer": "https://id", "authorization_endpoint": "https://id/a", "token_endpoint": "https://id/token", "jwks_uri": "https://id/keys"}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def openid(provider: Provider, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> OpenId:
    environ = {"WAYPOST_OIDC_ISSUER": "https://id", "WAYPOST_OIDC_CLIENT_ID": "us", "WAYPOST_OIDC_CLIENT_SECRET": "s"}
    found = OpenId(Settings.load(environ=environ), clock)
    monkeypatch.setattr(found, "_ask", provider.ask)
    return found


async def through(openid: OpenId, provider: Provider) -> str:
    _, begun = await openid.begin("https://us/back", "/journeys")
    provider.nonce = begun["nonce"]
    person, _ = await openid.finish({"code": "c", "state": begun["state"]}, begun, "https://us/back")
    return person.role


async def test_a_changed_key_is_asked_for_at_once_and_then_rarely(openid: OpenId, provider: Provider, clock: Clock) -> None:
    assert await through(openid, provider) == "viewer"
    provider.key = jwk.RSAKey.generate_key(2048, {"kid": "k2"})
    assert await through(openid, provider) == "viewer"
    assert provider.asked_for_keys == 2
    published, provider.key = provider.key, jwk.RSAKey.generate_key(2048, {"kid": "k3"})
    signing, provider.key = provider.key, published
    for _ in range(5):  # signed with a key that the provider does not publish, again and again
        _, begun = await openid.begin("https://us/back", "/journeys")
        provider.nonce, provider.key = begun["nonce"], signing
        with pytest.raises(OpenIdError):
            await openid.finish({"code": "c", "state": begun["state"]}, begun, "https://us/back")
        provider.key = published
    assert provider.asked_for_keys == 2, "within ten seconds of the last time"
    provider.key = signing
    clock.now += AGAIN_SECONDS
    assert await through(openid, provider) == "viewer"
    assert provider.asked_for_keys == 3


async def test_a_provider_that_is_away_is_asked_rarely_and_its_last_word_kept(openid: OpenId, provider: Provider, clock: Clock) -> None:
    assert await through(openid, provider) == "viewer"
    clock.now += 3601
    provider.away = True
    assert (await openid.begin("https://us/back", "/"))[0].startswith("https://id/a?")
    provider.away = False
    assert await through(openid, provider) == "viewer"
    assert provider.asked_for_keys == 1
    clock.now += AGAIN_SECONDS
    assert await through(openid, provider) == "viewer"
    assert provider.asked_for_keys == 2


async def test_logins_that_are_begun_and_not_finished_are_remembered_nowhere(openid: OpenId, provider: Provider) -> None:
    for _ in range(10_001):
        await openid.begin("https://us/back", "/journeys")
    assert await through(openid, provider) == "viewer"


# -- the sessions topic ---------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.one_of(st.none(), st.binary(), st.sampled_from([b"key/a", b"session/a", b"person/a", b"row/a"])), st.one_of(
    st.none(), st.binary(), st.recursive(st.one_of(st.floats(), st.integers(), st.text(), st.none(), st.booleans()), lambda inner: st.dictionaries(
        st.sampled_from(["secret", "made_at", "alone", "until", "at", "mark"]), inner), max_leaves=8).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b'{"until": 1e999}', b'{"at": -1}', b'{"made_at": 1e300, "secret": "x"}', b"[" * 100_000]),
)), max_size=5))  # fmt: skip
def test_no_record_on_the_sessions_topic_does_harm(records: list[tuple[bytes | None, bytes | None]]) -> None:
    table = Table()
    table.take(0, *new_key(0, alone=False))
    for offset, (key, value) in enumerate(records):
        with contextlib.suppress(ValueError, MsgspecError, RecursionError):
            table.take(offset + 1, key, value)
    assert table.signing(0) is not None
    table.wants_key(0)
    table.outlived(2**60)
    table.over({"sub": "a", "jti": "a", "position": 0, "role": None, "mark": None})


class Topic:
    """The keys and records of a topic in memory, as several consoles read it."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes | None]] = []
        self.now_ms = 1_767_323_045_678

    def console(self, secret: str | None = None) -> Sessions:
        async def send(*_: Any) -> int:
            raise AssertionError("not asked")

        made = Sessions.__new__(Sessions)
        made.table, made.seconds, made._secret, made._now_ms = Table(), 3600.0, (secret or "").encode(), lambda: self.now_ms
        self.read(made)
        return made

    def read(self, console: Sessions) -> Sessions:
        for offset, (key, value) in enumerate(self.records):
            console.table.take(offset, key, value)
        console._position = len(self.records)
        return console


def test_a_session_holds_at_every_console_and_ends_at_every_console() -> None:
    topic = Topic()
    topic.records.append(new_key(topic.now_ms, alone=False))
    a, b = topic.console(), topic.console()
    ada, eve, grace = a.begin("ada", None, "m1"), b.begin("eve", None, "m2"), a.begin("grace", "viewer")
    assert all(one.whose(token) is not None for one in (a, b) for token in (ada, eve, grace))
    topic.records.append((f"session/{a.whose(ada).id}".encode(), b'{"until": 1}'))  # type: ignore[union-attr]
    assert topic.read(b).whose(ada) is None
    topic.records.append(revocation("eve", topic.now_ms))
    late = a.begin("eve", None, "m2")  # this console has not read that yet
    assert all(topic.read(one).whose(token) is None for one in (a, b) for token in (eve, late))
    assert topic.read(b).whose(b.begin("eve", None, "m2")) is not None
    assert a.whose(grace) is not None
    topic.records.append(new_key(topic.now_ms, alone=True))
    assert topic.read(b).whose(grace) is None
    assert b.whose(b.begin("grace", "viewer")) is not None


def test_sessions_of_a_row_that_changed_are_over_and_those_of_the_new_row_stay() -> None:
    topic = Topic()
    topic.records.append(new_key(topic.now_ms, alone=False))
    a, b = topic.console(), topic.console()
    before, after, elsewhere = a.begin("ada", None, "m1"), a.begin("ada", None, "m2"), a.begin("ada", "viewer")
    topic.records.append((b"row/ada", json.dumps({"at": topic.now_ms, "mark": "m2"}).encode()))
    topic.read(b)
    assert [b.whose(token) is not None for token in (before, after, elsewhere)] == [False, True, True]


def test_a_row_that_is_changed_back_does_not_revive_the_sessions_that_the_change_ended() -> None:
    topic = Topic()
    topic.records.append(new_key(topic.now_ms, alone=False))
    a = topic.console()
    before = a.begin("ada", None, "m1")
    put: list[tuple[bytes, bytes]] = []
    a._outbox = SimpleNamespace(put=lambda key, value: put.append((key, value)))  # type: ignore[assignment]
    for mark in ("m2", "m1"):
        a.changed("ada", mark)
        topic.records.append(put.pop())
        topic.read(a)
    compacted = Topic()
    compacted.records = [topic.records[0], (b"row/eve", b'{"at": 1}'), topic.records[-1]]
    assert a.whose(before) is None
    assert compacted.console().whose(before) is None
    assert a.whose(a.begin("ada", None, "m1")) is not None


def test_records_are_dropped_once_a_hundred_at_a_time_and_later_than_clocks_differ() -> None:
    topic = Topic()
    topic.records.append(new_key(topic.now_ms, alone=False))
    topic.records += [(b"session/%d" % n, json.dumps({"until": topic.now_ms}).encode()) for n in range(250)]
    console, put = topic.console(), list[bytes]()
    console._outbox = SimpleNamespace(waiting=0, put=lambda key, value: put.append(key))  # type: ignore[assignment]
    console._tidy()
    assert put == [], "another console's clock may be behind"
    topic.now_ms += CLOCKS_MS
    console._tidy()
    assert len(put) == MAX_TIDIED
    console._outbox.waiting = len(put)  # type: ignore[misc]
    console._tidy()
    assert len(put) == MAX_TIDIED, "what is not on the topic yet is not put again"


def test_a_session_is_of_one_kind_for_its_time_and_cannot_be_made_with_what_is_on_the_topic() -> None:
    topic = Topic()
    topic.records.append(new_key(topic.now_ms, alone=False))
    console, without = topic.console("s" * 32), topic.console()
    token = console.begin("ada")
    assert console.whose(token) is not None
    assert without.whose(token) is None
    assert console.whose(without.begin("ada", "operator")) is None, "made by somebody who reads the topic and does not know the secret"
    assert console.whose(console.sign("device", {"sub": "ada", "jti": "x"}, 100)) is None
    head, body, signature = token.split(".")
    changed = f"{head}.{body}.{signature[:-2]}{'AA' if signature[-2:] != 'AA' else 'BB'}"
    for wrong in ("", "x", f"{head}.{body}.", changed, "e30.e30.e30", token * 100, "\xff", f"eyJhbGciOiJub25lIn0.{body}."):
        assert console.read(SESSION, wrong) is None
    topic.now_ms += 3_601_000
    assert console.whose(token) is None


def test_keys_are_made_in_time_and_kept_as_long_as_what_they_signed() -> None:
    topic = Topic()
    topic.records += [new_key(topic.now_ms, alone=False), new_key(topic.now_ms + 5, alone=False)]
    console = topic.console()
    first, second = console.table.keys
    assert console.table.signing(topic.now_ms) == first, "two consoles that began at once agree, whatever each of them wrote"
    assert not console.table.wants_key(topic.now_ms + KEY_MS - AHEAD_MS)
    due = topic.now_ms + 5 + KEY_MS - AHEAD_MS
    assert console.table.wants_key(due)
    topic.records.append(new_key(due, alone=False))
    topic.read(console)
    third = list(console.table.keys)[-1]
    assert not console.table.wants_key(due)
    assert console.table.signing(topic.now_ms + KEY_MS) == second
    assert console.table.signing(topic.now_ms + KEY_MS + 5) == third
    assert console.table.outlived(topic.now_ms + KEY_MS + LONGEST_MS - 1) == []
    assert console.table.outlived(topic.now_ms + KEY_MS + LONGEST_MS) == [f"key/{first}"]
    topic.records.append(new_key(due, alone=True))
    assert set(topic.read(console).table.outlived(due)) >= {f"key/{first}", f"key/{second}", f"key/{third}"}
    for key in console.table.outlived(due):
        console.table.take(9, key.encode(), None)
    assert console.table.outlived(due) == []
    assert len(console.table.keys) == 1
