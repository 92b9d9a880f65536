"""Bad records among good ones on Apache Kafka: each bad one is on the rejected topic as it came, with its reason; each good one is counted."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from console.shop import JOURNEY, shop
from schemas.journey import journey_json
from tests.support.corpus import BAD, GOOD, Bad, Sent
from tests.support.group import NESTED, WORDS, Group

SHOP = shop()
OWN = ("waypost_error", "waypost_topic", "waypost_partition", "waypost_offset", "waypost_rejected_at")
GARBAGE = (b"", b"\xff\xfe", b"{}", b"\x93\x02\xa4join\x90", b"\x93\x01\xa4jump\x90", b"\x93\x01\xa4join\x91\x01", b"\x00" * (2 << 20))


def shop_facts() -> list[Sent]:
    """The shop's facts; every tenth without a key, every tenth for the wrong partition (see `send`)."""
    facts = [Sent("", "activities", json.loads(line)["contact_id"].encode(), line) for line in SHOP.activities[:6000]]
    facts += [Sent("", "contact-merges", json.loads(line)["from"].encode(), line) for line in SHOP.merges]
    return facts + [Sent("", "contacts", json.loads(line)["contact_id"].encode(), line) for line in SHOP.contacts]


def send(group: Group, facts: list[Sent], rng: random.Random) -> None:
    lost: list[Any] = []
    for sent in facts:
        strange = rng.random() if not isinstance(sent, Bad) and not sent.name else 1.0
        key = None if strange < 0.1 and sent.topic != "contacts" else sent.key
        partition = rng.randrange(group.settings.partitions) if 0.1 <= strange < 0.2 else -1
        headers = [(name, value) for name, value in sent.headers]
        topic = group.settings.topic_prefix + sent.topic
        noted = {"headers": headers, "on_delivery": lambda error, _: lost.append(error) if error else None}
        group._producer.produce(topic, sent.value, key, partition, **noted)
        group._producer.poll(0)
    assert group._producer.flush(60) == 0
    assert not lost, lost


def sendable(sent: Sent) -> bool:
    """A compacted topic takes no record without a key, and the client sends an empty key as none."""
    return sent.topic != "contacts" or bool(sent.key)


def identity(key: bytes | None, value: bytes | None, headers: Any) -> tuple[Any, ...]:
    return key or None, value, tuple((name, bytes(said)) for name, said in headers or ())


def split(record: Any) -> tuple[tuple[Any, ...], dict[str, str]]:
    """What came, and what was added to it."""
    headers = list(record.headers() or ())
    assert tuple(name for name, _ in headers[-len(OWN) :]) == OWN
    return identity(record.key(), record.value(), headers[: -len(OWN)]), {name: said.decode() for name, said in headers[-len(OWN) :]}


@pytest.mark.parametrize("killed", [False, True], ids=["in one go", "killed meanwhile"])
def test_every_bad_one_is_rejected_as_it_came_and_every_good_one_counted(kafka: str, prefix: str, tmp_path: Path, killed: bool) -> None:
    rng = random.Random(7)
    bad = [*filter(sendable, BAD), *(Bad(f"garbage {i}", "handoffs", b"k", raw, (("h", b"\x00\xff"),), "handoff") for i, raw in enumerate(GARBAGE))]
    mixed = [*shop_facts(), *filter(sendable, GOOD), *bad]
    rng.shuffle(mixed)
    with Group(kafka, prefix, tmp_path, session_timeout_seconds=6) as group:
        worker = group.start()
        group.open_console()
        for journey in (JOURNEY, journey_json(NESTED), journey_json(WORDS)):
            group.apply(journey)
        for raw in (b"{", b"\xff", json.dumps({**JOURNEY, "id": "other"}).encode()):  # told in the log and passed over
            group._producer.produce(group.settings.topic_prefix + "journeys", raw, b"garbage")
        for at in range(0, len(mixed), 1000):
            send(group, mixed[at : at + 1000], rng)
            if killed and at in (2000, 5000):
                time.sleep(0.5)
                group.kill()
                worker = group.start()
        group.verify()
        assert worker.alive, "a worker never stops for a bad record"
        came: dict[tuple[Any, ...], list[dict[str, str]]] = {}
        for record in group.read("rejected"):
            what, said = split(record)
            came.setdefault((said["waypost_topic"], *what), []).append(said)

        def expected(one: Sent) -> tuple[Any, ...]:
            return (group.settings.topic_prefix + one.topic, *identity(one.key, one.value, one.headers))

        wanted = {expected(one): one for one in bad}
        assert came.keys() == wanted.keys()
        for what, one in wanted.items():
            places = {(said["waypost_topic"], said["waypost_partition"], said["waypost_offset"]) for said in came[what]}
            assert len(places) == sum(expected(b) == what for b in bad), one.name
            assert killed or len(came[what]) == len(places), f"{one.name} was rejected more than once"
            for said in came[what]:
                assert said["waypost_error"], one.name
                assert said["waypost_rejected_at"].endswith("Z")
        shown = group.http.get("/api/rejected", params={"limit": 5}).json()
        assert len(shown["rejected"]) == 5
