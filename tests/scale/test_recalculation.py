"""Recalculation of a log that is longer than an answer of the broker: no number is lost, whether activities arrive meanwhile or not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from streams.settings import Settings, librdkafka_config
from tests.conftest import Broker
from tests.support import PATIENCE_SECONDS
from tests.support.running import Waypost, started

CONTACTS, LATE, STAGES = 40_000, 2_000, 3
BEGIN_MS, STAGE_MS = 1_700_000_000_000, 1_000


def journey(id_: str, operator: str) -> dict[str, Any]:
    """Three pages, one after the other. *operator* makes its rules others than those of another journey."""
    rules = [
        {"rule": "visited_page", "page": {operator: f"/page-{stage}"}} for stage in range(STAGES)
    ]
    return {
        "id": id_,
        "name": id_,
        "stages": [
            {"name": f"stage {n}", "condition": {"any": [rule]}} for n, rule in enumerate(rules)
        ],
    }


def activities(first: int, last: int) -> Iterator[tuple[str, bytes]]:
    """(key, value): each contact visits each page, all contacts the first, then all the second."""
    for stage in range(STAGES):
        for number in range(first, last):
            activity = {
                "id": f"a{stage}-{number}", "contact_id": f"c{number}", "type": "pagevisit", "page": f"/page-{stage}",
                "at": BEGIN_MS + stage * STAGE_MS + number,
            }  # fmt: skip
            yield f"c{number}", json.dumps(activity).encode()


def send(settings: Settings, first: int, last: int, pause: threading.Event | None = None) -> None:
    """Sends the activities of contacts *first* to before *last*. With *pause*, a hundred at a time, with a rest between."""
    config = {
        "partitioner": "murmur2_random",
        "linger.ms": 20,
        "queue.buffering.max.messages": 1_000_000,
    }
    producer = Producer(librdkafka_config(settings) | config)
    for count, (key, value) in enumerate(activities(first, last)):
        producer.produce(settings.topic_prefix + "activities", value, key)
        producer.poll(0)
        if pause is not None and count % 100 == 99:
            producer.flush(PATIENCE_SECONDS)
            pause.wait(0.05)
    assert producer.flush(PATIENCE_SECONDS) == 0


def begun(settings: Settings) -> Producer:
    """A transaction that has sent one activity of one more contact, and is still open: what it sent is on the log, and nobody may read it yet."""
    config = {
        "transactional.id": settings.topic_prefix + "tx",
        "transaction.timeout.ms": 600_000,
        "partitioner": "murmur2_random",
    }
    producer = Producer(librdkafka_config(settings) | config)
    producer.init_transactions(PATIENCE_SECONDS)
    producer.begin_transaction()
    key, value = next(activities(CONTACTS + LATE, CONTACTS + LATE + 1))
    producer.produce(settings.topic_prefix + "activities", value, key)
    assert producer.flush(PATIENCE_SECONDS) == 0
    return producer


def converted(waypost: Waypost, id_: str) -> list[int]:
    """How many reached each stage, by the results and by the lists."""
    results = [stage["converted"] for stage in waypost.settled(id_)["stages"]]
    for stage, count in enumerate(results, 1):
        listed = waypost.http.get(
            f"/api/journeys/{id_}/stages/{stage}/contacts", params={"who": "converted", "limit": 1}
        ).json()
        assert listed["total"] == count
    return results


def recalculated(waypost: Waypost) -> dict[str, Any]:
    """A recalculation of everything, once it is over."""
    answer = waypost.http.post("/api/recalculations", json={"journeys": "all"})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = {}

    def over() -> bool:
        found.update(waypost.http.get(f"/api/recalculations/{answer.json()['id']}").json())
        return found["state"] in ("live", "failed", "cancelled")

    waypost.until(over, "for the recalculation")
    return found


def test_no_number_is_lost_by_a_recalculation_and_by_a_new_rule(
    broker: Broker, prefix: str, tmp_path: Path
) -> None:
    with started(broker.bootstrap, prefix, tmp_path) as waypost:
        sending = threading.Thread(target=send, args=(waypost.settings, 0, CONTACTS))
        sending.start()
        waypost.http.put("/api/journeys/first", json=journey("first", "equals")).raise_for_status()
        sending.join()
        assert converted(waypost, "first") == [CONTACTS] * STAGES, (
            "of a journey made while activities came in"
        )

        transaction = begun(waypost.settings) if broker.kind == "kafka" else None
        one = recalculated(waypost)
        assert (one["state"], one["reason"], one["changed"]) == ("live", None, 0)
        assert one["events_read"] == one["events_total"] == CONTACTS * STAGES
        assert converted(waypost, "first") == [CONTACTS] * STAGES
        extra = [0] * STAGES
        if transaction is not None:
            transaction.commit_transaction(PATIENCE_SECONDS)
            extra = [1, 0, 0]

        ended = threading.Event()
        late = threading.Thread(
            target=send, args=(waypost.settings, CONTACTS, CONTACTS + LATE, ended)
        )
        late.start()
        try:
            waypost.http.put(
                "/api/journeys/second", json=journey("second", "starts_with")
            ).raise_for_status()
            assert recalculated(waypost)["state"] == "live"
        finally:
            ended.set()
            late.join()
        expected = [CONTACTS + LATE + more for more in extra]
        assert converted(waypost, "first") == expected
        assert converted(waypost, "second") == expected, "of a journey with a new rule"
