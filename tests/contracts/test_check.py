"""`waypost check` finds whatever is wrong: each value of each answer is made wrong once, and facts and rejections are taken away."""

from __future__ import annotations

import copy
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from console import check, history
from console.client import Client
from console.options import Failed
from console.shards import Shards
from state import oracle
from tests.support import PATIENCE_SECONDS
from tests.support.running import Waypost, started

pytestmark = pytest.mark.embedded

NOT_COMPARED = {
    "as_of", "lag", "progress", "status", "recalculated_at", "journey", "cursor", "generation", "p10_seconds", "p90_seconds",
    "intervals", "aliases", "merges", "profile", "erased_at", "activities", "missing", "bounded",
}  # fmt: skip
"""Fields of answers that are no numbers, lists and names of journeys, or that follow from others by a formula of the console."""


class Recorded(Client):
    """Answers as they were the first time, but for one value, which *wrong* changes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.answers: dict[str, Any] = {}
        self.wrong: tuple[str, tuple[Any, ...], Any] | None = None

    def call(self, method: str, path: str, **more: Any) -> Any:
        key = f"{path} {json.dumps(more, sort_keys=True)}"
        if key not in self.answers:
            self.answers[key] = super().call(method, path, **more)
        answer = copy.deepcopy(self.answers[key])
        if self.wrong is not None and self.wrong[0] == key:
            *way, last = self.wrong[1]
            at = answer
            for step in way:
                at = at[step]
            at[last] = self.wrong[2]
        return answer


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """`(way, value)` of each value of an answer that a check compares; of lists, the whole with its last entry gone as well."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in NOT_COMPARED:
                yield from places(inner, (*way, name))
    elif isinstance(value, list):
        if value and way:
            yield way, value
        for n, inner in enumerate(value):
            yield from places(inner, (*way, n))
    else:
        yield way, value


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, list):
        return value[:-1]
    if isinstance(value, bool) or value is None:
        return 7
    if isinstance(value, int | float):
        return value + 5000
    return value[:-1] + ("1" if value[-1:] != "1" else "2")


@pytest.fixture(scope="module")
def waypost(embedded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waypost]:
    """One of its own: each of a thousand checks asks the oracle of all contacts there are."""
    with started(embedded, f"t{uuid.uuid4().hex[:10]}.", tmp_path_factory.mktemp("checked")) as running:
        yield running


@pytest.fixture(scope="module")
def told(waypost: Waypost) -> tuple[Waypost, str]:
    """A journey over contacts that are merged, erased and in groups, and one that is rejected for being too far ahead."""
    name = "checked"
    pages = ["a", "b", "c"]
    rule = {"rule": "visited_page", "page": f"/{name}/c"}
    conditions = [
        {"any": [{"rule": "visited_page", "page": f"/{name}/{page}"}]} for page in pages[:2]
    ]
    stages = [
        {"name": page, "kpi": 10, "condition": condition}
        for page, condition in zip(pages, [*conditions, {"all": [rule]}], strict=True)
    ]
    saved = {"id": name, "name": name, "stages": stages}
    waypost.http.put(f"/api/journeys/{name}", json=saved).raise_for_status()
    waypost.settled(name)
    now_ms = time.time_ns() // 1_000_000
    facts = [
        (f"{name}-{i}", {"id": f"{name}-a{i}-{n}", "type": "pagevisit", "page": f"/{name}/{page}",
                         "at": now_ms - 900_000_000 + 86_400_000 * n + 7_000 * i})
        for i in range(14) for n, page in enumerate(pages[: 1 + i % 3])
    ]  # fmt: skip
    facts.append(
        (
            f"{name}-0",
            {"id": "far", "type": "pagevisit", "page": f"/{name}/b", "at": now_ms + 48 * 3_600_000},
        )
    )
    producer = Producer(
        {"bootstrap.servers": waypost.settings.bootstrap, "partitioner": "murmur2_random"}
    )
    for contact, fact in facts:
        value = json.dumps({"contact_id": contact, **fact})
        producer.produce(waypost.settings.topic_prefix + "activities", value, contact)
    assert producer.flush(PATIENCE_SECONDS) == 0
    merges = [
        {"from": f"{name}-{i}", "into": f"{name}-{i + 6}", "at": now_ms - 60_000 + i}
        for i in (0, 1, 2)
    ]
    waypost.http.post("/api/merges", json=merges).raise_for_status()
    profiles = [
        {
            "contact_id": f"{name}-{i}",
            "groups": [f"{name}-g", f"{name}-h"][: 1 + i % 2],
            "at": now_ms - 50_000,
        }
        for i in range(5, 12)
    ]
    waypost.http.post("/api/contacts", json=profiles).raise_for_status()
    waypost.http.delete(f"/api/contacts/{name}-13").raise_for_status()
    waypost.settled(name)
    return waypost, name


@pytest.mark.parametrize(("lines", "share"), [(check.LINES, 1.0), (3, 1.0), (check.LINES, 0.5)])
def test_every_value_that_is_wrong_is_found(
    told: tuple[Waypost, str], tmp_path: Path, lines: int, share: float
) -> None:
    """*lines*: 3 of each list are read, as in a long history, and the rest is compared by checksums."""
    waypost, name = told
    api = Recorded(waypost.url)
    request = check.Request(waypost.settings, api, (name,), share=share, processes=1, lines=lines)
    log = history.read(
        waypost.settings, history.ends(waypost.settings), request.told, tmp_path, share
    )
    right = check.compare(log, request)
    assert right.differences == []
    assert right.compared > 30
    missed, tried = [], 0
    for key, answer in list(api.answers.items()):
        for way, value in places(answer):
            if not is_compared(key.split(" ")[0], answer, way, name, share):
                continue
            api.wrong = (key, way, other(value))
            tried += 1
            try:
                found: list[Any] = check.compare(log, request).differences
            except (
                Failed,
                LookupError,
                ValueError,
                AttributeError,
            ) as error:  # a shape that no console gives
                found = [error]
            if not found:
                missed.append((key, way, value))
    assert tried > (150 if share == 1 else 50)
    assert missed == [], "\n".join(map(str, missed))


def is_compared(path: str, answer: Any, way: tuple[Any, ...], name: str, share: float) -> bool:
    """Return True for a value that a check of the journey compares."""
    if path == "/api/journeys":
        return way[-1] == "version" and answer["journeys"][way[1]]["id"] == name
    if path.startswith("/api/contacts/"):
        if way[0] != "journeys":
            return way[0] == "survivor"
        of_journey = len(way) > 1 and answer["journeys"][way[1]]["journey"] == name
        return of_journey and way[-1] in ("reached_at", "activity")
    if "/stages/" in path and way[-1] == "name":
        return False  # of the profile: attributes are none of the oracle's answers
    return share == 1 or "median" not in str(
        way[-1]
    )  # the output says that a sample does not compare them


ACTIVITY, MERGE, PROFILE, ERASURE = oracle.Activity, oracle.Merge, oracle.Profile, oracle.Erasure


@pytest.mark.parametrize("kind", [ACTIVITY, MERGE, PROFILE, ERASURE])
def test_a_fact_that_the_workers_know_and_the_log_does_not_is_found(
    told: tuple[Waypost, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    waypost, name = told
    take, gone = Shards.take, list[Any]()

    def without(shards: Shards, fact: Any) -> None:
        contact = fact.into if isinstance(fact, MERGE) else fact.contact_id
        if isinstance(fact, kind) and contact.startswith(f"{name}-") and not gone:
            gone.append(fact)
        else:
            take(shards, fact)

    monkeypatch.setattr(Shards, "take", without)
    assert check.check(request_of(waypost, name)).differences
    assert gone


def test_what_is_rejected_for_the_clock_is_taken_from_the_rejected_topic_and_only_when_it_holds(
    told: tuple[Waypost, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waypost, name = told
    known, complete = history._rejections(waypost.settings, lambda *_: None)
    ahead = [place for place, rejection in known.items() if "ahead" in rejection.error]
    assert ahead
    without = {place: rejection for place, rejection in known.items() if place not in ahead}
    monkeypatch.setattr(history, "_rejections", lambda *_: (without, complete))
    assert check.check(request_of(waypost, name)).differences
    good = history.Place("activities", ahead[0].partition, ahead[0].offset - 1)
    more = {**known, good: history.Rejection("is ahead of the clock", time.time_ns() // 1_000_000)}
    monkeypatch.setattr(history, "_rejections", lambda *_: (more, complete))
    wheres = [one.found for one in check.check(request_of(waypost, name)).differences]
    assert "rejected: is ahead of the clock" in wheres


def request_of(waypost: Waypost, name: str) -> check.Request:
    return check.Request(
        waypost.settings, Client(waypost.url), (name,), PATIENCE_SECONDS, processes=1
    )


def test_several_processes_find_what_one_finds(
    told: tuple[Waypost, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waypost, name = told
    monkeypatch.setattr("console.shards.SHARD_FACTS", 10)
    request = request_of(waypost, name)
    assert check.check(replace(request, processes=2)).differences == []
    waypost.http.post(
        "/api/contacts", json=[{"contact_id": f"{name}-3", "groups": ["late"], "at": 1}]
    )
    alone = check.check(request)
    together = check.check(replace(request, processes=2))
    assert (together.differences, together.compared) == ([], alone.compared)
