"""The main job on a real broker: the shop's facts in adverse orders give the oracle's numbers, lists, names and stage changes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Producer

from console.shop import JOURNEY, shop
from schemas.journey import journey_json
from tests.conftest import Broker
from tests.support import PATIENCE_SECONDS
from tests.support.group import NESTED, WORDS, Group

SHOP = shop()
ERASED = "user_0031"


def keyed(lines: list[bytes], field: str = "contact_id") -> list[tuple[str | None, bytes | None]]:
    return [(json.loads(line)[field], line) for line in lines]


ACTIVITIES, MERGES, CONTACTS = keyed(SHOP.activities), keyed(SHOP.merges, "from"), keyed(SHOP.contacts)


Order = Callable[[Group], None]


@contextmanager
def running(bootstrap: str, prefix: str, directory: Path, embedded: bool = False) -> Iterator[Group]:
    """A worker and a console with three journeys."""
    with Group(bootstrap, prefix, directory, embedded=embedded, session_timeout_seconds=6) as group:
        group.start()
        group.open_console()
        for journey in (JOURNEY, journey_json(NESTED), journey_json(WORDS)):
            group.apply(journey)
        yield group


def converted(group: Group) -> int:
    """How many reached the first stage of the shop's journey."""
    return int(group.http.get(f"/api/journeys/{JOURNEY['id']}/results").json()["stages"][0]["converted"])


def in_order(group: Group) -> None:
    for source, facts in (("contacts", CONTACTS), ("activities", ACTIVITIES), ("contact-merges", MERGES)):
        group.send(source, facts)


def merges_first_and_activities_backwards(group: Group) -> None:
    for source, facts in (("contact-merges", MERGES), ("activities", ACTIVITIES[::-1]), ("contacts", CONTACTS[::-1])):
        group.send(source, facts)


def everything_twice(group: Group) -> None:
    r = random.Random(2)
    for source, facts in (("activities", ACTIVITIES), ("contact-merges", MERGES), ("contacts", CONTACTS)):
        group.send(source, r.sample(facts * 2, 2 * len(facts)))


def all_of_one_contact_last(group: Group) -> None:
    last = MERGES[0][0]
    for source, facts in (("activities", ACTIVITIES), ("contact-merges", MERGES), ("contacts", CONTACTS)):
        group.send(source, [fact for fact in facts if fact[0] != last])
    for source, facts in (("contact-merges", MERGES), ("activities", ACTIVITIES)):
        group.send(source, [fact for fact in facts if fact[0] == last])


@pytest.mark.parametrize("order", [merges_first_and_activities_backwards, everything_twice, all_of_one_contact_last])
@pytest.mark.kafka
def test_facts_in_adverse_orders_give_what_the_oracle_says(kafka: str, prefix: str, tmp_path: Path, order: Order) -> None:
    with running(kafka, prefix, tmp_path) as group:
        order(group)
        group.verify()
        assert converted(group) == 586


def test_a_person_is_erased_and_what_came_before_stays_gone(broker: Broker, prefix: str, tmp_path: Path) -> None:
    with running(broker.bootstrap, prefix, tmp_path, embedded=broker.kind == "embedded") as group:
        in_order(group)
        group.settled()
        assert converted(group) == 586
        group.send("contacts", [(ERASED, None)])
        sessions = {key for key, value in MERGES if json.loads(value or b"")["into"] == ERASED}
        assert sessions
        group.send("activities", [fact for fact in ACTIVITIES if fact[0] in sessions])
        group.verify()
        assert converted(group) == 585


@pytest.mark.kafka
def test_facts_in_batches_compressed_in_every_way_are_read(kafka: str, prefix: str, tmp_path: Path) -> None:
    with running(kafka, prefix, tmp_path) as group:
        for n, codec in enumerate(("none", "gzip", "snappy", "lz4", "zstd")):
            producer = Producer({"bootstrap.servers": kafka, "compression.type": codec, "partitioner": "murmur2_random", "linger.ms": 50})
            for key, value in ACTIVITIES[n::5]:
                producer.produce(prefix + "activities", value, key)
                producer.poll(0)
            assert producer.flush(PATIENCE_SECONDS) == 0
        group.verify()


@pytest.mark.kafka
def test_an_edit_that_reuses_known_rules_is_built_beside_the_old_version_and_equals_the_oracle(kafka: str, prefix: str, tmp_path: Path) -> None:
    with Group(kafka, prefix, tmp_path, session_timeout_seconds=6) as group:
        group.start()
        group.open_console()
        group.apply(JOURNEY)
        in_order(group)
        group.verify()
        edited = {**JOURNEY, "stages": [JOURNEY["stages"][0], JOURNEY["stages"][2], JOURNEY["stages"][1]]}
        group.apply(edited)
        report = group.verify()
        assert report.journeys == [JOURNEY["id"]]
        assert group.http.get(f"/api/journeys/{JOURNEY['id']}").json()["version"] == 2
