"""A user's day in its short form, on Apache Kafka with unusual settings and on the embedded broker.

`python -m tests.scale` plays the long one. Asserts no times; the campaign itself verifies every number.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from tests.scale.campaign import SIZES, Size, run
from tests.scale.traffic import ROUNDS, Traffic

SMALLER = replace(SIZES["short"], persons=3_000, activities=20_000, journeys=2, seconds=5)
SOME = ("load", "recalculation", "new rules", "end", "check")


def played(kind: str, directory: Path, size: Size, cases: Collection[str]) -> None:
    rows, wrong = run(kind, directory, size, print, cases)
    assert wrong is None
    assert {row.case for row in rows} >= {"load", "recalculation", "new rules", "numbers", "check"}
    assert all(row.value > 0 for row in rows)


@pytest.mark.kafka
def test_a_users_day_on_kafka(tmp_path: Path) -> None:
    played("kafka", tmp_path, SIZES["short"], (*SOME, "cancel"))


@pytest.mark.embedded
def test_a_users_day_on_the_embedded_broker(tmp_path: Path) -> None:
    played("embedded", tmp_path, SMALLER, SOME)


def test_the_traffic_comes_to_the_numbers_of_its_formula() -> None:
    """Counted from the records themselves, person by person, as the funnel's rules would."""
    traffic = Traffic(persons=3_000, activities=20_000, begins_ms=1_700_000_000_000)
    hits: dict[str, set[tuple[int, int]]] = {}
    merged: dict[str, str] = {}
    activities: list[str] = []
    erased: set[str] = set()
    for sent in traffic.records():
        if sent.value is None:
            erased.add(sent.key)
            continue
        fact = json.loads(sent.value)
        if sent.source == "contact-merges":
            merged[fact["from"]] = fact["into"]
        elif sent.source == "activities":
            activities.append(fact["id"])
            if fact["page"].startswith("/funnel/"):
                hits.setdefault(fact["contact_id"], set()).add((fact["at"], int(fact["page"][-1])))
    persons: dict[str, set[tuple[int, int]]] = {}
    for contact, mine in hits.items():
        persons.setdefault(merged.get(contact, contact), set()).update(mine)
    reached = [0] * ROUNDS
    for person, mine in persons.items():
        stage = 0
        for _, page in sorted(mine) if person not in erased else ():
            if page == stage:
                reached[stage] += 1
                stage += 1
    assert reached == traffic.reached()
    assert len(set(activities)) == traffic.activities < len(activities)
    assert len(merged) == 1_000
    assert erased
    assert traffic.contacts == 4_000
