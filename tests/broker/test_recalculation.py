"""Recalculation on Apache Kafka: jobs and workers are killed while it goes on, directories are damaged, and in the end all is as the oracle says."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from agents.recalculator import Membership
from console import check
from console.client import Client
from console.shop import JOURNEY, shop
from schemas.journey import journey_json
from state import records
from state.ledger import Ledger, Memory, prefix_end
from streams.reader import end_offsets
from streams.settings import Settings, librdkafka_config
from streams.topics import provision
from tests.support import PATIENCE_SECONDS
from tests.support.group import NESTED, WORDS, Group

SHOP = shop()
ACTIVITIES = [(json.loads(line)["contact_id"], line) for line in SHOP.activities[::2]]
MERGES = [(json.loads(line)["from"], line) for line in SHOP.merges]
CONTACTS = [(json.loads(line)["contact_id"], line) for line in SHOP.contacts]
OVER = ("live", "cancelled", "failed")


def begun(group: Group, journeys: Any = "all", **more: Any) -> str:
    answer = group.http.post("/api/recalculations", json={"journeys": journeys, **more})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def state(group: Group, id_: str) -> str:
    return str(group.http.get(f"/api/recalculations/{id_}").json()["state"])


def waits(group: Group, id_: str) -> bool:
    return bool(group.http.get(f"/api/recalculations/{id_}").json()["phase"] == "confirming")


def ended(group: Group, id_: str) -> dict[str, Any]:
    group.until(lambda: state(group, id_) in OVER, f"for {id_} to end")
    return dict(group.http.get(f"/api/recalculations/{id_}").json())


def converted(group: Group) -> list[int] | None:
    found = group.http.get(f"/api/journeys/{JOURNEY['id']}/results").json()
    return None if found["stages"][0]["converted"] is None else [row["converted"] for row in found["stages"]]


@pytest.fixture
def told(kafka: str, prefix: str, tmp_path: Path) -> Any:
    """A group of one worker, one job and a console; the shop's facts are there before the journeys."""
    with Group(kafka, prefix, tmp_path, session_timeout_seconds=6) as group:
        group.start()
        for source, facts in (("contacts", CONTACTS), ("activities", ACTIVITIES), ("contact-merges", MERGES)):
            group.send(source, facts)
        group.open_console()
        for journey in (JOURNEY, journey_json(NESTED), journey_json(WORDS)):
            group.apply(journey)
        yield group


def test_jobs_and_workers_are_killed_while_it_fills_and_switches(told: Group) -> None:
    """One of two jobs 10 times, the worker 5 times, one of them while partitions switch; what is visible stays as it was all the time."""
    told.verify()
    told.recalculate("b")
    shown = converted(told)
    rng = random.Random(4)
    killed = {"job": 0, "worker": 0, "switching": 0}

    def kill_job() -> None:
        told.jobs["a"].kill()
        told.recalculate()
        killed["job"] += 1

    def kill_worker() -> None:
        told.kill()
        told.start()
        killed["worker"] += 1
        told.until(lambda: told._health()["lag"] == 0, "for the worker to be back")

    for plan in ([kill_job] * 4 + [kill_worker], [kill_job] * 3 + [kill_worker] * 2, [kill_job] * 3):
        id_ = begun(told, events_per_second=3000)
        rng.shuffle(plan)
        for kill in plan:
            told.until(lambda i=id_: state(told, i) != "planned", "for it to begin")
            time.sleep(rng.uniform(0.2, 1.5))
            kill()
            assert converted(told) in (shown, None), "numbers changed while it goes on"
        assert ended(told, id_)["state"] == "live"
        assert converted(told) == shown
    for _ in range(6):
        id_ = begun(told)
        told.until(lambda i=id_: state(told, i) in ("switching", *OVER), "for it to switch")
        before = state(told, id_)
        kill_worker()
        killed["switching"] += before == "switching"
        assert ended(told, id_)["state"] == "live"
        if killed["switching"] and killed["worker"] >= 5:
            break
    assert killed["job"] == 10
    assert killed["worker"] >= 5
    assert killed["switching"] >= 1
    assert converted(told) == shown
    told.verify()


def test_a_directory_with_hits_lost_and_hits_made_up_is_found_and_mended(told: Group) -> None:
    told.verify()
    shown = converted(told)
    told.workers["a"].stop()
    damaged = sum(damage(told.directory / "data-a" / f"partition-{p}", seed=p) for p in range(told.settings.partitions))
    assert damaged > 50
    told.start()
    told.settled()
    found = differences(told)
    assert len(found) > 10, "the check does not find what was done"
    assert converted(told) != shown
    id_ = begun(told)
    told.until(lambda: waits(told, id_) or state(told, id_) in OVER, "for it to end, or to differ by so much that it waits")
    if waits(told, id_):
        assert told.http.post(f"/api/recalculations/{id_}/confirm").status_code == 200
    one = ended(told, id_)
    assert (one["state"], one["changed"] > 10) == ("live", True)
    assert converted(told) == shown
    told.verify()


def differences(group: Group) -> list[Any]:
    return list(check.run(group.settings, Client(f"http://127.0.0.1:{group.port}"), (), PATIENCE_SECONDS, lambda *_: None).differences)


def damage(path: Path, seed: int) -> int:
    """Takes hits away from some contacts and gives some to others, and lets what is shown follow; how many contacts it changed."""
    rng, ledger, changed = random.Random(seed), Ledger(path, Memory(16)), 0
    try:
        for key, value in list(ledger.scan(records.EVIDENCE)):
            if records.pointer_of(value) is not None:
                continue
            evidence, has_identity = records.decode_evidence(value)
            if not evidence.hits or rng.random() > 0.3:
                continue
            rule = rng.choice(sorted(evidence.hits))
            if rng.random() < 0.5:
                del evidence.hits[rule]
            else:
                evidence.add(rule, (1 << 63).to_bytes(8, "big") + rng.randbytes(8))  # long before everything else
            ledger.write([(key, records.encode_evidence(evidence, has_identity))])
            changed += 1
        ledger.write([], [(space, prefix_end(space)) for space in (b"v", b"x", b"t")])  # views are built again, of what there is now
    finally:
        ledger.close()
    return changed


def test_results_that_fall_by_three_quarters_are_not_shown_before_somebody_confirms(kafka: str, prefix: str, tmp_path: Path) -> None:
    """Of 20,000 contacts the log loses three quarters, which are not older than what it still holds."""
    contacts, now_ms = 20_000, time.time_ns() // 1_000_000
    visits = {"id": "visits", "name": "Visits", "stages": [{"name": "Visited", "condition": {"any": [{"rule": "visited_page", "page": "/a"}]}}]}
    with Group(kafka, prefix, tmp_path) as group:
        group.start()
        group.open_console()
        group.apply(visits)
        producer = Producer({**librdkafka_config(group.settings), "partitioner": "murmur2_random"})
        topic = prefix + "activities"
        for n in range(contacts):
            value = {"id": f"a-{n}", "contact_id": f"c-{n}", "type": "pagevisit", "at": now_ms, "page": "/a"}
            producer.produce(topic, json.dumps(value).encode(), f"c-{n}", timestamp=now_ms - 3_600_000)
        assert producer.flush(PATIENCE_SECONDS) == 0
        group.settled()
        admin = AdminClient(librdkafka_config(group.settings))
        ends = end_offsets(group.settings, [(topic, p) for p in range(group.settings.partitions)])
        lost = [TopicPartition(topic, p, end * 3 // 4) for (_, p), end in ends.items()]
        for deleted in admin.delete_records(lost).values():
            deleted.result(PATIENCE_SECONDS)
        left = contacts - sum(tp.offset for tp in lost)

        def reached() -> int:
            return int(group.http.get("/api/journeys/visits/results").json()["stages"][0]["converted"])

        for action, end, counted in (("cancel", "cancelled", contacts), ("confirm", "live", left)):
            id_ = begun(group)
            path = f"/api/recalculations/{id_}"
            group.until(lambda i=id_: waits(group, i), "for it to wait")
            (stage,) = group.http.get(path).json()["differences"]
            assert stage == {"journey": "visits", "version": 1, "stage": 1, "visible": contacts, "expected": contacts, "rebuilt": left}
            assert reached() == contacts
            announced = [json.loads(change.value())["cause"] for change in group.read("stage-changes")]
            assert (len(announced), announced.count("recalculation")) == (contacts, 0), "nothing is announced of it"
            assert group.http.post(f"{path}/{action}").status_code == 200
            assert ended(group, id_)["state"] == end
            group.settled()
            assert reached() == counted


def test_an_edit_and_a_cancel_while_it_goes_on(told: Group) -> None:
    told.verify()
    first = begun(told, events_per_second=2000)
    told.until(lambda: state(told, first) == "filling", "for it to begin")
    edited = {**JOURNEY, "stages": [JOURNEY["stages"][0], *JOURNEY["stages"][2:]]}  # all of its rules have evidence
    told.apply(edited)
    shows = _shown(told)
    told.until(lambda: shows()["version"] == 2, "for the edit to show beside the recalculation")
    assert told.http.post(f"/api/recalculations/{first}/cancel").json()["state"] == "cancelled"
    tightened = {**edited, "stages": [{**edited["stages"][0], "condition": {"all": [
        {"rule": "visited_page", "page": "/home"}, {"rule": "visited_url", "url": {"contains": "home"}}]}}, *edited["stages"][1:]]}  # fmt: skip
    told.apply(tightened)
    told.verify()
    assert shows()["version"] == 3


def _shown(group: Group) -> Callable[[], dict[str, Any]]:
    return lambda: dict(group.http.get(f"/api/journeys/{JOURNEY['id']}/results").json())


def test_a_job_that_another_of_its_name_pushed_out_becomes_a_member_again(kafka: str, prefix: str) -> None:
    """librdkafka gives such a member up for good; a broker that takes over a group of a lost one may do the same to the only one there is."""
    settings = Settings.load({"broker": kafka, "topic_prefix": prefix, "group_instance_id": "job", "session_timeout_seconds": 6}, environ={})
    provision(settings)
    every = set(range(settings.partitions))

    def polled(*members: Membership) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while members[-1].mine != every:
            assert time.monotonic() < end, [member.mine for member in members]
            for member in members:
                member.poll()
            time.sleep(0.05)

    first = Membership(settings)
    polled(first)
    second = Membership(settings)
    end = time.monotonic() + PATIENCE_SECONDS
    while first.mine:  # pushed out
        assert time.monotonic() < end
        second.poll()
        first.poll()
        time.sleep(0.05)
    second.close()
    polled(first)
    first.close()
