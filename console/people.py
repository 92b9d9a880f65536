"""People: who may use the console, from a file: names, roles, passwords as argon2 hashes, tokens as SHA-256. Knows no HTTP.

    [users.ada]
    role = "editor"
    password = "$argon2id$…"

    [tokens.ci]
    role = "operator"
    sha256 = "…"

`waypost user add` and `waypost user token` write it. A change is noticed within seconds.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
import tomllib
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

ROLES = ("viewer", "editor", "operator")
"""Each may do what those before it may. viewer: look; editor: journeys and recalculations; operator: facts, erasures, rejected records."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
LOOK_SECONDS = 2.0
MIN_PASSWORD = 12  # characters (OWASP ASVS 2.1.1)
MAX_PASSWORD = 128
FAILURES, WINDOW_SECONDS = 5, 900.0  # of a name; of an address ten times as many
MAX_REMEMBERED = 10_000
_hasher = PasswordHasher()
_nobody = _hasher.hash(secrets.token_hex(16))  # checked for names that do not exist, so that they take as long


class PeopleError(ValueError):
    """A file of users that cannot be used; the message says why."""


class Person(NamedTuple):
    name: str
    role: str

    def may(self, role: str) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


EVERYBODY = Person("everybody", "operator")
"""Whoever reaches a console without users, which listens on loopback alone."""


class People:
    """The users and tokens of a file; nobody without one. Raises PeopleError at the start; later, a file that is broken leaves what was there."""

    def __init__(self, path: Path | None, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._users, self._tokens = ({}, {}) if path is None else read(path)
        self._stamp, self._looked = _stamp(path), now()

    def check(self, name: str, password: str) -> Person | None:
        """The user with this password; None when there is none, which takes as long. Slow on purpose: about 50 ms of a core."""
        found = self.users.get(name)
        try:
            _hasher.verify(_nobody if found is None else found["password"], password)
        except (VerificationError, InvalidHashError):
            return None
        return None if found is None else Person(name, found["role"])

    def by_token(self, token: str) -> Person | None:
        self._look()
        return self._tokens.get(digest(token))

    def named(self, name: str) -> Person | None:
        """The user as the file has it now."""
        found = self.users.get(name)
        return None if found is None else Person(name, found["role"])

    @property
    def users(self) -> Mapping[str, dict[str, str]]:
        self._look()
        return self._users

    def _look(self) -> None:
        if self._now() - self._looked < LOOK_SECONDS:
            return
        self._looked, stamp = self._now(), _stamp(self._path)
        if stamp != self._stamp and self._path is not None:
            try:
                self._users, self._tokens = read(self._path)
                self._stamp = stamp
            except PeopleError:
                pass


def digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _stamp(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def read(path: Path) -> tuple[dict[str, dict[str, str]], dict[str, Person]]:
    """`(users by name, the owners of tokens by their SHA-256)`. Raises PeopleError."""
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise PeopleError(f"the file of users {path} cannot be read: {error}; make it with `waypost user add`") from None
    except tomllib.TOMLDecodeError as error:
        raise PeopleError(f"the file of users {path} is not TOML: {error}") from None
    users: dict[str, dict[str, str]] = {}
    tokens: dict[str, Person] = {}
    for kind, secret in (("users", "password"), ("tokens", "sha256")):
        rows = data.get(kind, {})
        for name, row in rows.items() if isinstance(rows, dict) else ():
            if not NAME.fullmatch(name) or not isinstance(row, dict) or row.get("role") not in ROLES or not isinstance(row.get(secret), str):
                raise PeopleError(f"{path}: [{kind}.{name}] needs a role ({', '.join(ROLES)}) and {secret}; write it with `waypost user`")
            if kind == "users":
                users[name] = row
            else:
                tokens[row[secret]] = Person(name, row["role"])
    return users, tokens


def write(path: Path, kind: str, name: str, row: Mapping[str, str]) -> None:
    """Puts [kind.name] into the file, which is made if it is not there, readable for its owner alone. Raises PeopleError."""
    data: dict[str, Any] = {}
    if path.exists():
        read(path)
        data = tomllib.loads(path.read_text())
    data.setdefault(kind, {})[name] = dict(row)
    lines = []
    for section in ("users", "tokens"):
        for each, values in sorted(data.get(section, {}).items()):
            lines += [f"[{section}.{json.dumps(each)}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]
    new = path.with_name(path.name + ".new")
    new.touch(mode=0o600)
    new.write_text("\n".join(lines))
    new.replace(path)


def hashed(password: str) -> str:
    """The argon2id hash of *password*. Raises PeopleError for one that is too short or too long."""
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise PeopleError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters, this has {len(password)}")
    return _hasher.hash(password)


class Sessions:
    """Who is logged in, in memory: a restart of the console logs everybody out. *seconds*: how long, at most."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._open: dict[str, tuple[str, float, str | None]] = {}

    def begin(self, name: str, role: str | None = None) -> str:
        """A new secret for *name*: never one that came from outside. *role*: as a provider of identities said; None: as the file says."""
        now = self._now()
        self._open = {key: one for key, one in self._open.items() if one[1] > now}
        token = secrets.token_urlsafe(32)
        self._open[digest(token)] = name, now + self._seconds, role
        return token

    def whose(self, token: str) -> tuple[str, str | None] | None:
        """`(name, role)`; the role is None where the file says it."""
        found = self._open.get(digest(token))
        return (found[0], found[2]) if found is not None and found[1] > self._now() else None

    def end(self, token: str) -> None:
        self._open.pop(digest(token), None)


class Failures:
    """How often logging in failed lately, by name and by address."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._times: dict[str, deque[float]] = {}

    def wait_seconds(self, name: str, address: str) -> float:
        """How long to wait before trying again; 0 when one may."""
        return max(self._wait("name " + name, FAILURES), self._wait("from " + address, FAILURES * 10))

    def failed(self, name: str, address: str) -> None:
        if len(self._times) > MAX_REMEMBERED:
            self._times = {key: times for key, times in self._times.items() if times and times[-1] > self._now() - WINDOW_SECONDS}
        for key in ("name " + name[:64], "from " + address):
            self._times.setdefault(key, deque(maxlen=FAILURES * 10)).append(self._now())

    def _wait(self, key: str, most: int) -> float:
        times = self._times.get(key, deque())
        while times and times[0] <= self._now() - WINDOW_SECONDS:
            times.popleft()
        return 0.0 if len(times) < most else times[-most] + WINDOW_SECONDS - self._now()
