"""Throttle: limits how often somebody may try to log in, and how many passwords are checked at once. Counts in the memory of one console.

A try is counted before the password is checked, and taken back when it was right: tries that arrive together cannot overtake the count. Counted are

- a name together with an address, so that nobody can lock others out from elsewhere;
- an address, whatever the names;
- a name, whatever the addresses, so that a guess spread over many addresses is slowed down;
- a browser in which this name logged in before, by its signed cookie alone: an attack on the name, or from a shared address, does not lock it out
  (https://owasp.org/www-community/Slow_Down_Online_Guessing_Attacks_with_Device_Cookies).
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from .errors import ApiError
from .people import MAX_PASSWORD, People, Person, verify

MAX_KEYS = 50_000  # of each kind of limit; those that were not used for longest are forgotten
HASHES_AT_ONCE = 2  # each takes 64 MiB and a core for 50 ms
MAX_WAITING = 40  # passwords that wait to be checked: about a second


class Limit(NamedTuple):
    """*burst* tries at once, then one more each *seconds*."""

    burst: int
    seconds: float


TOGETHER = Limit(
    5, 180.0
)  # of a name and an address, or of a browser in which somebody logged in before
BY_ADDRESS = Limit(50, 18.0)
BY_NAME = Limit(25, 36.0)


class Counts:
    """Tries by key, as the generic cell rate algorithm counts them: a key is remembered as the time at which all its tries are there again."""

    def __init__(self, limit: Limit, now: Callable[[], float]) -> None:
        self._limit = limit
        self._now = now
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def wait_seconds(self, key: str) -> float:
        """How long until the next try; 0 when there is one."""
        free_at = self._full_at.get(key, 0.0) - (self._limit.burst - 1) * self._limit.seconds
        return max(0.0, free_at - self._now())

    def take(self, key: str) -> None:
        self._full_at[key] = max(self._full_at.pop(key, 0.0), self._now()) + self._limit.seconds
        if len(self._full_at) > MAX_KEYS:
            self._full_at.popitem(last=False)

    def give_back(self, key: str) -> None:
        if key in self._full_at:
            self._full_at[key] -= self._limit.seconds


class Attempt:
    """One try to log in, already counted. `taken_back()` takes it out of the count again, for it was right."""

    def __init__(self, counted: list[tuple[Counts, str]]) -> None:
        self._counted = counted

    def taken_back(self) -> None:
        for counts, key in self._counted:
            counts.give_back(key)
        self._counted = []


class Throttle:
    """Tries to log in at this console. *now*: seconds that only grow."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._together, self._by_address, self._by_name = (
            Counts(limit, now) for limit in (TOGETHER, BY_ADDRESS, BY_NAME)
        )

    def attempt(self, name: str | None, address: str, device: str | None = None) -> Attempt:
        """Counts a try. Raises `TooMany`, which is not counted. *name*: None at a provider of identities; *device*: the browser, if it is known."""
        name, address = None if name is None else name[:64], network_of(address)
        if device is not None:
            wanted = [(self._together, f"device {device}")]
        elif name is None:
            wanted = [(self._by_address, address)]
        else:
            wanted = [
                (self._together, f"{address} {name}"),
                (self._by_address, address),
                (self._by_name, name),
            ]
        wait = max(counts.wait_seconds(key) for counts, key in wanted)
        if wait > 0:
            raise TooMany(wait)
        for counts, key in wanted:
            counts.take(key)
        return Attempt(wanted)


class TooMany(Exception):
    """Too many tries: the next is possible in `wait_seconds`."""

    def __init__(self, wait_seconds: float) -> None:
        super().__init__(f"wait {wait_seconds:g} s")
        self.wait_seconds = wait_seconds

    @property
    def message(self) -> str:
        """The sentence for whoever tries."""
        minutes = int(self.wait_seconds // 60) + 1
        return f"Too many attempts failed. Wait {minutes} minute{'s' if minutes > 1 else ''}, then try again."


def network_of(address: str) -> str:
    """What is counted as one address: of IPv6 the first 64 bits, which one customer has to himself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    return (
        str(parsed)
        if parsed.version == 4
        else str(ipaddress.ip_network((parsed, 64), strict=False))
    )


class Passwords:
    """Checks passwords in threads of its own, at most `HASHES_AT_ONCE` at a time, whatever becomes of those who asked."""

    def __init__(self, people: People) -> None:
        self._people = people
        self._threads = ThreadPoolExecutor(HASHES_AT_ONCE, "password")
        self._waiting = 0

    async def check(self, name: str, password: str) -> Person | None:
        """The user with this password, as the file has it when the check is done; None for none. Raises `ApiError` (503) when too many wait."""
        if self._waiting >= MAX_WAITING:
            raise ApiError(
                503,
                "busy",
                "too many people are logging in just now; try again",
                headers={"Retry-After": "2"},
            )
        row = self._people.users.get(name)
        self._waiting += 1
        try:
            right = await asyncio.get_running_loop().run_in_executor(
                self._threads, verify, row, password[:MAX_PASSWORD]
            )
        finally:
            self._waiting -= 1
        return self._people.named(name) if right and self._people.users.get(name) == row else None
