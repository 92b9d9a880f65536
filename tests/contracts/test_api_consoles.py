"""Several consoles on one Kafka, workers that do not answer, the rejected topic: what one running Waypost does not show."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError
from confluent_kafka import Producer

from console.errors import ApiError
from console.journeys import JourneyStore
from console.kafka import Offsets, Writer, now_ms
from console.recalculations import RecalculationStore
from console.server import serve
from schemas.journey import Journey, journey_json, parse_journey
from schemas.recalculation import decode
from streams import topics
from streams.settings import Settings, aiokafka_kwargs
from tests.support import PATIENCE_SECONDS
from tests.support.corpus import AT, BAD, recalculation
from tests.support.kafka import KafkaBroker


def journey(id_: str, says: str) -> Journey:
    return parse_journey({"id": id_, "name": says, "stages": [{"name": "a", "condition": {"any": [{"rule": "became_member"}]}}]})


@pytest.fixture
def made(settings: Settings) -> Settings:
    topics.provision(settings)
    return settings


@asynccontextmanager
async def store(settings: Settings) -> AsyncIterator[JourneyStore]:
    """The journeys of one console."""
    kafka = aiokafka_kwargs(settings)
    writer = Writer(kafka, settings.partitions)
    topic = topics.topic_name(settings, "journeys")

    async def send(key: bytes, value: bytes | None, headers: list[tuple[str, bytes]]) -> int:
        return await writer.control(topic, key, value, headers)

    await writer.start()
    found = JourneyStore(topic, kafka, send, now_ms)
    await found.start()
    try:
        yield found
    finally:
        await found.stop()
        await writer.stop()


async def eventually(*stores: JourneyStore) -> list[Journey | None]:
    """What all of them know of journey x, once they agree."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len({repr(one.get("x")) for one in stores}) > 1:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
    return [one.get("x") for one in stores]


async def test_two_consoles_that_write_at_once_lose_no_confirmed_edit(made: Settings) -> None:
    async with store(made) as first, store(made) as second:
        for round_ in range(8):
            says = [f"{round_} of the first", f"{round_} of the second"]
            base = first.get("x")
            expected = base.version if base else None
            answers = await asyncio.gather(
                first.put(journey("x", says[0]), expected), second.put(journey("x", says[1]), expected), return_exceptions=True
            )
            confirmed = [words for words, answer in zip(says, answers, strict=True) if not isinstance(answer, ApiError)]
            assert all(answer.status == 412 for answer in answers if isinstance(answer, ApiError))
            assert len(confirmed) == 1, answers
            now = await eventually(first, second)
            assert now[0] is not None
            assert now[0].name == confirmed[0]
            assert now[0].version is not None
            assert expected is None or now[0].version > expected


async def test_what_one_console_wrote_the_other_reads_and_a_third_finds(made: Settings) -> None:
    async with store(made) as first, store(made) as second:
        await first.put(journey("x", "one"), None)
        await second.put(journey("y", "other"), None)
        await first.put(journey("x", "two"), None)
        await first.delete("x", None)
        async with store(made) as third:
            assert [one.id for one in third.all()] == ["y"]
            saved, created = await third.put(journey("x", "anew"), None)
            assert (saved.version, created) == (3, True)
        assert (await eventually(first, second))[0] == saved


async def test_records_that_are_no_journeys_are_passed_over(made: Settings) -> None:
    producer = Producer({"bootstrap.servers": made.bootstrap})
    for key, value in ((b"x", b"{"), (b"x", b"null"), (None, b"{}"), (b"\xff", None), (b"z", json.dumps({"id": "other"}).encode())):
        producer.produce(topics.topic_name(made, "journeys"), value, key)
    producer.flush()
    async with store(made) as one:
        assert one.all() == []
        assert (await one.put(journey("x", "good"), None))[0].version == 1


# -- one console, in this process -----------------------------------------------------------------------------------------


@asynccontextmanager
async def console(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    stop = asyncio.Event()
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(settings.replaced("test", console_port=0), stop, started=url.set_result))
    await asyncio.wait({serving, url}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    try:
        async with httpx.AsyncClient(base_url=await url, timeout=PATIENCE_SECONDS) as client:
            yield client
    finally:
        stop.set()
        await serving


@pytest.fixture
def nobody_there(made: Settings) -> Settings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return made.replaced("test", workers=(f"http://127.0.0.1:{port}",))


@pytest.mark.embedded
@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_a_sum_of_some_partitions_is_never_shown(nobody_there: Settings) -> None:
    async with console(nobody_there) as client:
        body = {"name": "x", "stages": [{"name": "a", "condition": {"any": [{"rule": "became_member"}]}}]}
        saved = await client.put("/api/journeys/x", json=body)
        assert (saved.status_code, saved.json()["status"]) == (201, "calculating"), "its rule is to be rebuilt first, whatever the workers say"
        for path in ("/api/journeys/x/results", "/api/journeys/x/stages/1/contacts", "/api/journeys/x/live", "/api/contacts/ada"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "partitions_unavailable"), path
            assert answer.headers["retry-after"] == "1"
        health = (await client.get("/api/health")).json()
        assert (health["status"], health["lag"], [w["state"] for w in health["workers"]]) == ("degraded", None, ["silent"])
        taken = await client.post("/api/activities", json=[{"contact_id": "ada", "type": "x", "at": 1_700_000_000_001}])
        assert (taken.status_code, taken.json()["taken"]) == (202, 1)  # what comes in is safe, whoever is away
        assert (await client.get("/readyz")).status_code == 200


@pytest.mark.kafka
async def test_a_broker_that_is_away_is_told_and_its_return_noticed(tmp_path: Path, prefix: str) -> None:
    broker = KafkaBroker(tmp_path / "kafka", heap_mb=256)
    bootstrap = await asyncio.to_thread(broker.start)
    settings = Settings.load({"broker": bootstrap, "topic_prefix": prefix, "workers": "http://127.0.0.1:9"}, environ={})
    body = {"name": "x", "stages": [{"name": "a", "condition": {"any": [{"rule": "became_member"}]}}]}
    try:
        await asyncio.to_thread(topics.provision, settings)
        async with console(settings) as client:
            assert (await client.put("/api/journeys/x", json=body)).status_code == 201
            await asyncio.to_thread(broker.kill)
            assert (await client.get("/readyz")).status_code == 503
            answer = await client.get("/api/journeys/x/results")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
            assert (await client.get("/api/journeys")).json()["journeys"][0]["id"] == "x"  # what it knows, it knows
            await asyncio.to_thread(broker.start)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (await client.get("/readyz")).status_code != 200:
                    await asyncio.sleep(0.2)
            assert (await client.put("/api/journeys/x", json={**body, "name": "y"})).json()["version"] == 2
    finally:
        await asyncio.to_thread(broker.kill)


@pytest.mark.embedded
@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_an_unexpected_fault_has_the_shape_too(nobody_there: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from console import api

    def broken() -> Any:
        raise RuntimeError("secret details")

    monkeypatch.setattr(api, "catalogue_data", broken)
    async with console(nobody_there) as client:
        answer = await client.get("/api/rules")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


async def test_rejected_records_are_listed_newest_first(made: Settings) -> None:
    settings = made.replaced("test", workers=("http://127.0.0.1:9",))
    producer = Producer({"bootstrap.servers": made.bootstrap})
    topic = topics.topic_name(made, "rejected")
    for i in range(25):
        headers = [
            ("waypost_error", f"broken rule {i}".encode()), ("waypost_topic", b"t.activities"), ("waypost_partition", b"3"),
            ("waypost_offset", str(i).encode()), ("waypost_rejected_at", b"2026-01-02T03:04:05.678Z"), ("theirs", b"kept"),
        ]  # fmt: skip
        producer.produce(topic, b"\xff\x00" if i % 2 else f"value {i}".encode(), None if i % 3 else b"key", headers=headers)
        if i % 4 == 0:
            producer.flush()
    producer.produce(topic, None, None)  # not by a worker: shown as it is
    producer.flush()
    async with console(settings) as client:
        seen: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = (await client.get("/api/rejected", params={"limit": 7, **({"cursor": cursor} if cursor else {})})).json()
            seen += page["rejected"]
            cursor = page["cursor"]
            if cursor is None:
                break
    assert [row["error"] for row in seen] == ["", *(f"broken rule {i}" for i in reversed(range(25)))]
    assert len({row["id"] for row in seen}) == 26
    nothing = dict.fromkeys(("topic", "partition", "offset", "rejected_at", "key", "key_base64", "value", "value_base64"))
    assert seen[0] == {"id": seen[0]["id"], "error": "", "headers": [], **nothing}
    assert seen[1]["value"] == "value 24"
    assert (seen[1]["key"], seen[1]["headers"], seen[1]["partition"], seen[1]["offset"]) == ("key", [{"name": "theirs", "value": "kept"}], 3, 24)
    assert (seen[2]["value"], seen[2]["value_base64"]) == (None, "/wA=")


# -- whatever lies on the topics


def send_hostile(settings: Settings) -> None:
    """Write to the control topics what nobody should, and what is allowed at its extremes."""
    producer = Producer({"bootstrap.servers": settings.bootstrap, "message.max.bytes": 8 << 20})

    def send(topic: str, key: bytes | None, value: bytes | None, **more: Any) -> None:
        producer.produce(topics.topic_name(settings, topic), value, key, **more)

    for bad in BAD:
        if bad.topic in ("journeys", "recalculations", "recalculation-reports"):
            send(bad.topic, bad.key, bad.value, partition=0)
    newest = {**journey_json(journey("old", "o")), "version": 2**31 - 1, "saved_at": AT}
    send("journeys", b"old", json.dumps(newest).encode())
    send("journeys", b"gone", None, headers=[("waypost_version", b"9" * 5000)])
    send("journeys", b"gone", None, headers=[("waypost_version", b"\xff")])
    last, high = "9998-12-30T23:59:59.999Z", 2**53 - 1
    extreme = {
        "cause": "schedule", "epoch": 2**31 - 1, "planned_at": last, "started_at": 0, "switched_at": 1,
        "finished_at": last, "log_from": last, "throttle": 1e12, "events_read": high, "eta_seconds": 1e12,
        "events_total": high, "events_per_second": 1e12, "changed": high, "reason": "<b>" * 30_000,
    }  # fmt: skip
    for state in ("planned", "filling", "switching", "live", "cancelled", "failed"):
        value = json.dumps(recalculation(f"x-{state}", **extreme, state=state)).encode()
        send("recalculations", f"x-{state}".encode(), value)
    bare = {"journeys": [], "planned_at": None}
    for state in ("filling", "switching", "live", "failed"):
        value = json.dumps(recalculation(f"y-{state}", **bare, state=state)).encode()
        send("recalculations", f"y-{state}".encode(), value)
    act = {"contact_id": "c", "type": "click", "at": AT}
    send("activities", b"c", json.dumps(act).encode(), timestamp=2**62)
    assert producer.flush(PATIENCE_SECONDS) == 0


@pytest.mark.embedded
@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_no_record_of_a_control_topic_breaks_an_answer(nobody_there: Settings) -> None:
    send_hostile(nobody_there)
    async with console(nobody_there) as client:
        for path in (
            "/api/journeys", "/api/recalculations", "/api/schedule", "/api/recalculations/x-live",
            "/api/journeys/old", "/api/journeys/old/versions", "/operations", "/journeys", "/metrics",
        ):  # fmt: skip
            answer = await client.get(path, follow_redirects=True)
            assert answer.status_code == 200, (path, answer.text[:500])
        assert [one["id"] for one in (await client.get("/api/journeys")).json()["journeys"]] == ["old"]
        shown = (await client.get("/api/recalculations")).json()
        assert len(shown["recalculations"]) == 10
        body = {"name": "n", "stages": [{"name": "a", "condition": {"any": [{"rule": "became_member"}]}}]}
        refused = await client.put("/api/journeys/old", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "versions_exhausted")
        assert (await client.delete("/api/journeys/old")).status_code == 204
        anew = await client.put("/api/journeys/old", json=body)
        assert (anew.status_code, anew.json()["version"]) == (201, 1)
        assert (await client.put("/api/journeys/gone", json=body)).json()["version"] == 1
        planned = await client.post("/api/recalculations", json={"journeys": ["gone"]})
        assert planned.status_code == 202


async def test_a_record_time_outside_of_the_calendar_is_no_beginning_of_the_log() -> None:
    async def found(times: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        return dict(zip(times, [SimpleNamespace(timestamp=at) for at in (2**62, -1)], strict=True))

    offsets = Offsets({"activities": "activities"}, {"bootstrap_servers": "127.0.0.1:9"}, 2)
    offsets._consumer = SimpleNamespace(offsets_for_times=found)
    assert await offsets.first_ms("activities") is None
    written: list[bytes | None] = []

    async def send(topic: str, key: bytes, value: bytes | None, headers: Any) -> int:
        written.append(value)
        raise KafkaConnectionError("enough")

    async def beyond() -> int:
        return 2**62

    store = RecalculationStore("r", {"bootstrap_servers": "127.0.0.1:9"}, send, now_ms)
    with pytest.raises(ApiError):
        await store.plan([journey("x", "x")], None, beyond)
    assert written[0] is not None
    said = json.loads(written[0])
    assert decode(said["id"].encode(), written[0]).log_from is None
