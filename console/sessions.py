"""Sessions: who is logged in, in signed cookies, so that every console knows it and none has to remember it.

What consoles have in common is on the compacted topic `sessions`, which all of them follow:

    key/<id>       {"made_at": 1767323045678, "secret": "…", "alone": false}   signs cookies; `alone`: those of earlier keys are worth nothing
    session/<id>   {"until": 1767323045678}   this session was logged out
    person/<name>  {"at": 1767323045678}      sessions of this name that began before this record are over
    row/<name>     {"at": 1767323045678, "mark": "…"}   the same, but for those that began with the row of the file of users as it is now

A session carries the position up to which its console had read the topic when it began, so that "before" does not depend on clocks. The key that
signs is made of one on the topic and of the setting `session_secret`; with this set, whoever can read the topic cannot make a session.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
import secrets
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import msgspec
from aiokafka.errors import KafkaTimeoutError
from joserfc import jwk, jwt
from joserfc.errors import JoseError

from streams.compacted import Fetched, Follower
from streams.supervision import supervise

from .errors import ApiError
from .outbox import Outbox, Send

log = logging.getLogger(__name__)

HOUR_MS = 3_600_000
KEY_MS = 30 * 24 * HOUR_MS  # so long a key signs
AHEAD_MS = (
    24 * HOUR_MS
)  # so long before that its successor is made, so that all consoles have read it
LONGEST_MS = 31 * 24 * HOUR_MS  # no cookie lives longer (session_hours is 720 at most)
TICK_SECONDS = 2.0
TICKS = 30  # between two looks for keys to be made and records to be dropped
START_SECONDS = 15.0
CONFIRM_SECONDS = 2.0  # for the broker to have a logout; then it is delivered behind the answer
MAX_TOKEN = 4096  # characters
MAX_ID = 200
SESSION, OPENID, DEVICE = "session", "openid", "device"
"""What cookies are for; one of one kind is worth nothing as another."""
_Ms = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Key(msgspec.Struct, frozen=True):
    secret: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{43,200}$")]
    made_at: _Ms
    alone: bool = False


class Ended(msgspec.Struct, frozen=True):
    until: _Ms


MAX_TIDIED = 100
"""Records that are dropped at once: a logout that is written meanwhile waits behind them."""
CLOCKS_MS = 3_600_000
"""By how much the clocks of consoles may differ."""


class Revoked(msgspec.Struct, frozen=True):
    at: _Ms
    mark: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    before: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """The offset of the change before: sessions that began before that are over, whatever their mark."""


class Table:
    """What the sessions topic says. Pure."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}  # in the order of the log
        self.replaced: set[str] = (
            set()
        )  # ids of keys before one that is alone, while they are on the topic
        self.ended: dict[str, Ended] = {}
        self.people: dict[str, tuple[int, Revoked]] = {}  # name -> (offset, record)
        self.rows: dict[str, tuple[int, Revoked]] = {}

    def take(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        """One record. Raises ValueError or MsgspecError for what is none of ours."""
        kind, _, id_ = (key or b"").decode().partition("/")
        kept: dict[str, dict[str, Any]] = {
            "key": self.keys,
            "session": self.ended,
            "person": self.people,
            "row": self.rows,
        }
        if kind not in kept or not 0 < len(id_) <= MAX_ID:
            raise ValueError("its key is not key/…, session/…, person/… or row/…")
        if value is None:
            kept[kind].pop(id_, None)
            if kind == "key":
                self.replaced.discard(id_)
        elif kind == "key":
            self._key(id_, msgspec.json.decode(value, type=Key))
        elif kind == "session":
            self.ended[id_] = msgspec.json.decode(value, type=Ended)
        else:
            kept[kind][id_] = offset, msgspec.json.decode(value, type=Revoked)

    def over(self, claims: dict[str, Any]) -> bool:
        """Whether a session that a console signed was ended before its time."""
        name, position = claims["sub"], claims["position"]
        if claims["jti"] in self.ended or (
            name in self.people and position <= self.people[name][0]
        ):
            return True
        if (
            claims["role"] is not None or name not in self.rows
        ):  # a role that a provider gave has nothing to do with the file of users
            return False
        offset, row = self.rows[name]
        if row.before is not None and position <= row.before:
            return True
        return bool(position <= offset and claims["mark"] != row.mark)

    def _key(self, id_: str, key: Key) -> None:
        if key.alone:
            self.replaced |= self.keys.keys() - {id_}
            self.keys.clear()
        self.keys[id_] = key

    def signing(self, now_ms: int) -> str | None:
        """The id of the key that signs now: of those in their time the oldest, which all consoles have read; None when there is none at all."""
        return next(
            (id_ for id_, key in self.keys.items() if now_ms < key.made_at + KEY_MS),
            next(reversed(self.keys), None),
        )

    def wants_key(self, now_ms: int) -> bool:
        """Whether a further key is to be made."""
        return all(key.made_at + KEY_MS - AHEAD_MS <= now_ms for key in self.keys.values())

    def outlived(self, now_ms: int) -> list[str]:
        """Keys of records that say nothing any more: no cookie that they are about can be valid."""
        newest = next(reversed(self.keys), None)
        over = [
            id_
            for id_, key in self.keys.items()
            if id_ != newest and key.made_at + KEY_MS + LONGEST_MS <= now_ms
        ]
        return [
            *(f"key/{id_}" for id_ in (*self.replaced, *over)),
            *(f"session/{id_}" for id_, ended in self.ended.items() if ended.until + CLOCKS_MS <= now_ms),
            *(
                f"person/{name}"
                for name, (_, revoked) in self.people.items()
                if revoked.at + LONGEST_MS <= now_ms
            ),
            *(
                f"row/{name}"
                for name, (_, revoked) in self.rows.items()
                if revoked.at + LONGEST_MS <= now_ms
            ),
        ]


class Session(NamedTuple):
    """Somebody who is logged in. *role*: as a provider of identities said; None: as the file of users says, with *mark* as it was at the login."""

    id: str
    name: str
    role: str | None
    mark: str | None
    until_ms: int


class Sessions:
    """Follows the one partition of the sessions topic without a group. *seconds*: how long a session lasts, at most. *now_ms*: the clock."""

    def __init__(
        self,
        topic: str,
        kafka: dict[str, Any],
        send: Send,
        seconds: float,
        secret: str | None,
        now_ms: Callable[[], int],
    ) -> None:
        self.table = Table()
        self.seconds = seconds
        self.each_tick: Callable[[], None] = lambda: None
        self._secret = (secret or "").encode()
        self._now_ms = now_ms
        self._topic = topic
        self._follower = Follower([topic], kafka, self._take)
        self._outbox = Outbox(topic, send, _lost)
        self._position = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, read the topic to its end, make the first key if there is none. Raises KafkaError, TimeoutError."""
        await self._follower.start()
        self._outbox.start()
        if not self.table.keys:
            delivered = self._make_key()
            await asyncio.wait({delivered}, timeout=START_SECONDS)
            if not delivered.done() or delivered.cancelled():
                raise KafkaTimeoutError(f"topic {self._topic} cannot be written")
            async with asyncio.timeout(START_SECONDS):
                await self._follower.reach({self._topic: delivered.result() + 1})
        self._task = asyncio.create_task(supervise("looking after sessions", self._look_after))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._outbox.stop()
        await self._follower.stop()

    # ------------------------------------------------------------------ cookies

    def begin(self, name: str, role: str | None = None, mark: str | None = None) -> str:
        """The cookie of a new session: never one that came from outside."""
        claims = {
            "sub": name,
            "role": role,
            "mark": mark,
            "position": self._position,
            "jti": secrets.token_urlsafe(16),
        }
        return self.sign(SESSION, claims, self.seconds)

    def whose(self, token: str) -> Session | None:
        """The session of a cookie; None when there is none, or it is over."""
        claims = self.read(SESSION, token)
        if claims is None or self.table.over(claims):
            return None
        return Session(
            claims["jti"], claims["sub"], claims["role"], claims["mark"], int(claims["exp"]) * 1000
        )

    def sign(self, purpose: str, claims: dict[str, Any], seconds: float) -> str:
        """*claims* as a text that `read` of any console gives back for *seconds*, and that nobody else can make."""
        now_ms = self._now_ms()
        id_ = self.table.signing(now_ms)
        if id_ is None:  # somebody deleted the keys; `_tidy` makes one
            raise ApiError(
                503,
                "no_key",
                "there is no key for sessions just now; try again in a minute",
                headers={"Retry-After": "60"},
            )
        expires = {"exp": now_ms // 1000 + max(1, int(seconds))}
        return jwt.encode(
            {"alg": "HS256", "kid": id_},
            {**claims, **expires},
            self._key(id_, purpose),
            algorithms=["HS256"],
        )

    def read(self, purpose: str, token: str) -> dict[str, Any] | None:
        """What a console signed for *purpose*; None for anything else, and for what is too old."""
        if not 0 < len(token) <= MAX_TOKEN:
            return None
        try:
            claims = jwt.decode(
                token,
                lambda found: self._key(found.headers().get("kid"), purpose),
                algorithms=["HS256"],
            ).claims
        except (JoseError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return None
        return claims if claims["exp"] * 1000 > self._now_ms() else None

    def _key(self, id_: Any, purpose: str) -> jwk.OctKey:
        """The key for one purpose. Raises KeyError for an id that is not known."""
        if not isinstance(id_, str):
            raise KeyError(id_)
        material = self.table.keys[id_].secret.encode() + self._secret
        return jwk.OctKey.import_key(hmac.digest(material, f"waypost {purpose}".encode(), "sha256"))

    # ------------------------------------------------------------------ ends

    def end(self, token: str) -> asyncio.Future[int] | None:
        """Logs a session out: here at once, at other consoles when they have read it. None for what is no session, or is over already."""
        session = self.whose(token)
        if session is None:
            return None
        ended = Ended(session.until_ms)
        self.table.ended[session.id] = ended
        return self._outbox.put(f"session/{session.id}".encode(), msgspec.json.encode(ended))

    async def log_out(self, token: str) -> None:
        """The same, and waits until the broker has it, or for `CONFIRM_SECONDS`: then it is delivered behind the answer."""
        delivered = self.end(token)
        if delivered is not None:
            await asyncio.wait({delivered}, timeout=CONFIRM_SECONDS)

    async def log_out_everywhere(self, name: str) -> bool:
        """Ends all sessions of *name* that there are; whether that is certain now: else it is done when the broker answers again."""
        delivered = self._outbox.put(*revocation(name, self._now_ms()))
        await asyncio.wait({delivered}, timeout=CONFIRM_SECONDS)
        if not delivered.done() or delivered.cancelled():
            return False
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                await self._follower.reach({self._topic: delivered.result() + 1})
        except TimeoutError:
            return False
        return True

    def changed(self, name: str, mark: str | None) -> None:
        """Tells all consoles that the role or the password of *name* is another now: sessions of before are over. Once, whoever notices first."""
        known = self.table.rows.get(name)
        if known is None or mark is None or known[1].mark != mark:
            log.info(
                "%s is changed in the file of users: sessions that began before are over", name
            )
            before = None if known is None else known[0]
            revoked = Revoked(self._now_ms(), mark, before)
            self._outbox.put(f"row/{name}".encode(), msgspec.json.encode(revoked))

    # ------------------------------------------------------------------ the topic

    def _make_key(self) -> asyncio.Future[int]:
        return self._outbox.put(*new_key(self._now_ms(), alone=False))

    def _take(self, fetched: Fetched) -> None:
        for record in fetched[self._topic]:
            try:
                self.table.take(record.offset, record.key, record.value)
            except (ValueError, msgspec.MsgspecError, RecursionError) as error:
                log.error("topic %s, offset %s: bad record: %s", self._topic, record.offset, error)
            self._position = record.offset + 1

    async def _look_after(self) -> None:
        """Look for changes of the file of users; make the next key in time, drop records that say nothing any more."""
        for count in itertools.count():
            self.each_tick()
            if count % TICKS == 0:
                self._tidy()
            await asyncio.sleep(TICK_SECONDS)

    def _tidy(self) -> None:
        if self._outbox.waiting:  # what was put before is not on the topic yet, and would be put again
            return
        now_ms = self._now_ms()
        if self.table.wants_key(now_ms):
            self._make_key()
        for key in self.table.outlived(now_ms)[:MAX_TIDIED]:
            self._outbox.put(key.encode(), None)


def new_key(now_ms: int, *, alone: bool) -> tuple[bytes, bytes]:
    """The record of a new key. *alone*: nobody stays logged in."""
    made = Key(secrets.token_urlsafe(32), now_ms, alone)
    return f"key/{secrets.token_urlsafe(8)}".encode(), msgspec.json.encode(made)


def revocation(name: str, now_ms: int) -> tuple[bytes, bytes]:
    """The record that ends the sessions of *name*."""
    return f"person/{name}".encode(), msgspec.json.encode(Revoked(now_ms))


def _lost(key: bytes, value: bytes | None, reason: str) -> None:
    what = "a key" if key.startswith(b"key/") else key.decode(errors="replace")
    log.error("the sessions topic lacks %s: %s", what, reason)
