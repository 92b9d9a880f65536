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
import logging
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

log = logging.getLogger(__name__)

ROLES = ("viewer", "editor", "operator")
"""Each may do what those before it may. viewer: look; editor: journeys and recalculations; operator: facts, erasures, rejected records."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
LOOK_SECONDS = 2.0
MIN_PASSWORD = 12  # characters (OWASP ASVS 2.1.1)
MAX_PASSWORD = 128
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
    """The users and tokens of a file; nobody without one. Raises PeopleError at the start; later, a file that is broken leaves what was there.

    `on_change` is called with each name whose role or password is another now, and the row's mark, None for a user taken out. Not thread-safe.
    """

    def __init__(self, path: Path | None, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._users, self._tokens = ({}, {}) if path is None else read(path)
        self._stamp, self._looked = _stamp(path), now()
        self.on_change: Callable[[str, str | None], None] = lambda name, mark: None

    def check(self, name: str, password: str) -> Person | None:
        """The user with this password; None when there is none, which takes as long. Slow on purpose: about 50 ms of a core."""
        return self.named(name) if verify(self.users.get(name), password) else None

    def by_token(self, token: str) -> Person | None:
        self.look()
        return self._tokens.get(digest(token))

    def named(self, name: str) -> Person | None:
        """The user as the file has it now."""
        found = self.users.get(name)
        return None if found is None else Person(name, found["role"])

    def mark(self, name: str) -> str | None:
        """What changes when the role or the password of a user does, and tells nothing of either; None when there is no such user."""
        return _mark(self.users.get(name))

    @property
    def users(self) -> Mapping[str, dict[str, str]]:
        self.look()
        return self._users

    def look(self) -> None:
        """Reads the file again if it changed, at most once in `LOOK_SECONDS`."""
        if self._now() - self._looked < LOOK_SECONDS:
            return
        self._looked, stamp = self._now(), _stamp(self._path)
        if stamp == self._stamp or self._path is None:
            return
        before = self._users
        try:
            self._users, self._tokens = read(self._path)
        except PeopleError as error:
            log.error("the file of users cannot be used; who was in it before stays: %s", error)
            self._stamp = stamp
            return
        self._stamp = stamp
        for name, row in before.items():
            if _mark(self._users.get(name)) != _mark(row):
                self.on_change(name, _mark(self._users.get(name)))


def verify(row: Mapping[str, str] | None, password: str) -> bool:
    """Whether *password* is that of the user whose row this is. As slow without a row, so that nobody learns who there is."""
    try:
        _hasher.verify(_nobody if row is None else row["password"], password)
    except (VerificationError, InvalidHashError):
        return False
    return row is not None


def _mark(row: Mapping[str, str] | None) -> str | None:
    return None if row is None else digest(f"{row['role']} {row['password']}")[:16]


def digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


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
