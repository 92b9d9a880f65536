"""A person with as much evidence and as many large profiles as there may be, on Apache Kafka, whose topics take 16 MiB: the worker goes on, and
whoever takes over knows the same."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from agents import handoffs
from schemas.hashing import h8
from schemas.journey import parse_journey
from state.evidence import LIMIT_HITS, hit
from state.messages import Join
from state.recalculation import evidence_key, rules_by_key
from tests.support.group import Group

T0_MS = 1_767_323_045_000
RULES = 300
JOURNEY: dict[str, Any] = {
    "id": "wide", "name": "300 rules",
    "stages": [
        {"name": f"s{begin}", "condition": {"any": [{"rule": "performed_activity", "activity": f"a{n}"} for n in range(begin, begin + 50)]}}
        for begin in range(0, RULES, 50)
    ],
}  # fmt: skip
CONTACTS = [f"c{n}" for n in range(18)]


def evidence(recalculation: str, contact: str) -> list[tuple[str | None, bytes | None]]:
    """What 4,300 activities come to of which each meets all rules, as another partition hands it over: 20 MB."""
    hits = b"".join(hit(T0_MS + 1000 * n, h8(f"a{n}")) for n in range(LIMIT_HITS + 204))
    keys = [evidence_key(rule, recalculation) for rule in rules_by_key(parse_journey(JOURNEY))]
    return [(contact, handoffs.encode(Join(contact, dict.fromkeys(keys[begin : begin + 25], hits)))) for begin in range(0, RULES, 25)]


def profiles() -> list[tuple[str | None, bytes | None]]:
    """18 MB."""
    return [
        (contact, json.dumps({"contact_id": contact, "groups": [f"g{n}"], "attributes": {"n": n, "text": "x" * 1_000_000}, "at": T0_MS + n}).encode())
        for n, contact in enumerate(CONTACTS)
    ]


def merges() -> list[tuple[str | None, bytes | None]]:
    pairs = pairwise(CONTACTS)
    return [(one, json.dumps({"id": f"m-{one}", "from": one, "into": other, "at": T0_MS}).encode()) for one, other in pairs]


def shown(group: Group) -> tuple[list[int], list[int], Any]:
    """Converted, a number a stage, of all and of the survivor's group; and what is said of the person."""
    results = [group.http.get("/api/journeys/wide/results", params=params).json() for params in ({}, {"group": "g17"})]
    person = group.http.get("/api/contacts/c3").json()
    everybody, of_group = ([stage["converted"] for stage in one["stages"]] for one in results)
    return everybody, of_group, (person["survivor"], sorted(person["aliases"]), person["profile"]["attributes"].get("n"))


def test_a_person_as_large_as_may_be_ends_no_worker(kafka: str, prefix: str, tmp_path: Path) -> None:
    with Group(kafka, prefix, tmp_path, session_timeout_seconds=6) as group:
        group.start()
        group.open_console()
        group.apply(JOURNEY)
        group.settled()
        [one] = group.http.get("/api/recalculations").json()["recalculations"]
        group.send("handoffs", evidence(one["id"], "c3"))
        group.send("contacts", profiles())
        group.settled()
        group.send("contact-merges", merges())
        group.settled()
        expected = [1] * 6, [1] * 6, ("c17", sorted(CONTACTS[:-1]), 17)
        assert shown(group) == expected
        group.kill()
        group.start(wipe=True)
        group.settled()
        assert shown(group) == expected
        assert group.workers["a"].alive
        assert "is not sent" not in (tmp_path / "worker-a.log").read_text()
