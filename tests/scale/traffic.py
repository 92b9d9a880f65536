"""Traffic: what persons do on a site, the same for the same arguments, and the numbers that it must come to, by formula.

Persons come in three rounds, each with a session a round. Every third is an anonymous visitor in the first round, and is merged into a contact at
the beginning of the second. One activity in fifty comes late (some thousand records behind its place), one in a hundred twice. Half of the persons
look at the first page of the funnel in the first round, a quarter at the second in the second, an eighth at the third in the third; everything else
is noise on the pages of other sections. In the end some are erased.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any, NamedTuple

ROUNDS = 3
SECTIONS = 10
PAGES = 3
STEP_MS = 20
MONTH_MS = 30 * 86_400_000
GROUPS = ("customers", "newsletter", "partners")
LATE_SHARE, LATE_RECORDS = 0.02, 3000
TWICE_SHARE = 0.01
FUNNEL, BY_URL, UNDER_PRESSURE = FUNNELS = "funnel", "by-url", "under-pressure"
SITE = "https://shop.example"


class Sent(NamedTuple):
    """A record of a source topic."""

    source: str
    key: str
    value: bytes | None


@dataclass(frozen=True)
class Traffic:
    """So many *persons* with so many different *activities*, from *begins_ms* on: in the past, so that an erasure is later than all of them."""

    persons: int
    activities: int
    begins_ms: int
    seed: int = 1

    @property
    def contacts(self) -> int:
        return self.persons + len(range(0, self.persons, 3))

    def depth(self, person: int) -> int:
        """How many stages of the funnel a person comes to."""
        return 3 if person % 8 == 0 else 2 if person % 4 == 0 else 1 if person % 2 == 0 else 0

    def erased(self, person: int) -> bool:
        return person % 1000 == 998

    def reached(self) -> list[int]:
        """How many reach each stage of the funnel in the end, by formula."""
        there = [person for person in range(self.persons) if not self.erased(person)]
        return [
            sum(self.depth(person) >= stage for person in there) for stage in range(1, ROUNDS + 1)
        ]

    def records(self) -> Iterator[Sent]:
        """Everything, in the order in which it is sent."""
        late: list[tuple[int, int, Sent]] = []
        for n, (sent, may_wait) in enumerate(self._in_order(Random(self.seed))):
            while late and late[0][0] <= n:
                yield heappop(late)[2]
            if may_wait:
                heappush(late, (n + LATE_RECORDS, n, sent))
            else:
                yield sent
        while late:
            yield heappop(late)[2]
        for person in range(self.persons):
            if self.erased(person):
                yield Sent("contacts", f"c-{person:07d}", None)

    def _in_order(self, rnd: Random) -> Iterator[tuple[Sent, bool]]:
        """`(record, whether it is late)`."""
        sessions, made = ROUNDS * self.persons, 0
        stride = next(s for s in (7919, 7907, 7901) if self.persons % s)
        for session in range(sessions):
            round_, person = divmod(session, self.persons)
            person = person * stride % self.persons
            contact = f"v-{person:07d}" if round_ == 0 and person % 3 == 0 else f"c-{person:07d}"
            at_ms = self.begins_ms + session * STEP_MS * self.activities // sessions
            if round_ == 1:
                yield from ((sent, False) for sent in self._known(person, at_ms))
            quota = self.activities * (session + 1) // sessions - made
            pages = [
                f"/other/{rnd.randrange(SECTIONS)}/{rnd.randrange(PAGES)}" for _ in range(quota)
            ]
            if self.depth(person) > round_:
                pages = [f"/{FUNNEL}/{round_}", *pages[1:]]
            for page in pages:
                sent = Sent("activities", contact, _visit(made, contact, page, at_ms))
                made, at_ms = made + 1, at_ms + 1 + int(rnd.random() * 9000)
                yield sent, rnd.random() < LATE_SHARE
                if rnd.random() < TWICE_SHARE:
                    yield sent, rnd.random() < LATE_SHARE

    def _known(self, person: int, at_ms: int) -> Iterator[Sent]:
        """What becomes known of a person: groups, and, of a visitor, who it is."""
        contact = f"c-{person:07d}"
        groups = [group for n, group in enumerate(GROUPS) if person % (n + 2) == 0]
        yield Sent(
            "contacts",
            contact,
            json.dumps({"contact_id": contact, "groups": groups, "at": at_ms}).encode(),
        )
        if person % 3 == 0:
            visitor = f"v-{person:07d}"
            merge = {"id": f"m-{person}", "from": visitor, "into": contact, "at": at_ms}
            yield Sent("contact-merges", visitor, json.dumps(merge).encode())


def began_a_month_ago() -> int:
    """The time at which traffic of now begins."""
    return time.time_ns() // 1_000_000 - MONTH_MS


def _visit(number: int, contact: str, page: str, at_ms: int) -> bytes:
    return (
        f'{{"id":"a-{number:08d}","contact_id":"{contact}","type":"pagevisit","at":{at_ms},"page":"{page}",'
        f'"url":"{SITE}{page}?ref={number % 97}","channel":"web"}}'
    ).encode()


def funnel(id_: str = FUNNEL) -> dict[str, Any]:
    """The journey whose numbers are known by formula; under each id by rules of its own, which meet the same."""

    def rule(k: int) -> dict[str, Any]:
        page = f"/{FUNNEL}/{k}"
        if id_ == BY_URL:
            return {"rule": "visited_url", "url": {"contains": f"{page}?"}}
        return {
            "rule": "visited_page",
            "page": {"ends_with": page} if id_ == UNDER_PRESSURE else page,
        }

    return _journey(id_, [{"any": [rule(k)]} for k in range(ROUNDS)])


def section(number: int, id_: str | None = None) -> dict[str, Any]:
    """A journey over the pages of one section, and one of the next: its numbers are the oracle's to tell."""
    pages = [{"rule": "visited_page", "page": f"/other/{number}/{k}"} for k in range(PAGES)]
    other = {
        "rule": "visited_url",
        "url": {"contains": f"/other/{(number + 1) % SECTIONS}/"},
    }
    conditions = [{"any": pages[:2]}, {"any": [pages[2], other]}, {"all": [pages[0], other]}]
    return _journey(id_ or f"section-{number}", conditions)


def one_of_many(number: int, sections: int) -> dict[str, Any]:
    """Every tenth is one of the first *sections* under another name; nothing meets the rules of the others, which are
    over the same types and fields."""
    id_ = f"many-{number:04d}"
    if number % 10 == 0:
        return section(number // 10 % sections, id_)
    rules = [{"rule": "visited_page", "page": f"/never/{number}/{k}"} for k in range(2)]
    return _journey(id_, [{"any": [rule]} for rule in rules])


def flood(contacts: int) -> Iterator[Sent]:
    """Views of pages that no rule asks for, without end."""
    at_ms, number = began_a_month_ago(), 0
    while True:
        contact = f"c-{number * 7919 % contacts:07d}"
        visit = _visit(number, contact, "/flood", at_ms + number).replace(b'"a-', b'"f-', 1)
        yield Sent("activities", contact, visit)
        number += 1


def _journey(id_: str, conditions: list[dict[str, Any]]) -> dict[str, Any]:
    stages = [
        {"name": f"Stage {k}", "kpi": 1000, "condition": condition}
        for k, condition in enumerate(conditions, 1)
    ]
    return {"id": id_, "name": id_.capitalize(), "stages": stages}
