"""Bad input on Apache Kafka: broken records of every kind among good ones, workers killed in between. What is bad is on the rejected topic as it
came, with its reason and its place; what is good is counted, wherever it was put; nothing stops a worker but our signals."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from console.shop import JOURNEY, shop
from schemas.times import parse_ms
from streams.partitioner import partition_of
from streams.settings import librdkafka_config
from tests.support import PATIENCE_SECONDS
from tests.support.corpus import AT_MS, BAD, GOOD, Bad, Sent
from tests.support.group import Group

SEED = 7
OURS = ("waypost_error", "waypost_topic", "waypost_partition", "waypost_offset", "waypost_rejected_at")
COMPACTED = ("contacts", "journeys", "recalculations", "recalculation-reports")
"""Kafka itself takes no record without a key there."""
STRANGE = {
    "id": "strange",
    "name": "Whoever did anything that the corpus does",
    "stages": [
        {
            "name": "Came by",
            "condition": {
                "any": [
                    {"rule": "visited_page", "page": {"not_equals": "nothing"}},
                    {"rule": "performed_activity", "activity": "sample file/download 🙂"},
                    {"rule": "performed_activity", "activity": "t" * 250},
                ]
            },
        },
        {"name": "Searched", "condition": {"any": [{"rule": "performed_activity", "activity": "search"}]}},
    ],
}


class Where(NamedTuple):
    topic: str
    partition: int
    offset: int


def facts() -> list[Sent]:
    """A part of the shop's facts, and the odd ones of the corpus."""
    r, data = random.Random(SEED), shop()
    found: list[Sent] = list(GOOD)
    keyed = (("activities", data.activities, "contact_id"), ("contact-merges", data.merges, "from"), ("contacts", data.contacts, "contact_id"))
    for source, lines, field in keyed:
        for line in r.sample(lines, min(2500, len(lines))):
            found.append(Sent("of the shop", source, str(json.loads(line)[field]).encode(), line))
    return found


def kafka_takes(sent: Sent) -> bool:
    return sent.key is not None or sent.topic not in COMPACTED


class Sender:
    """Sends records where they belong, in a wrong partition, or without a key, and knows where each one went."""

    def __init__(self, group: Group) -> None:
        self.group, self.r = group, random.Random(SEED)
        self.places: dict[Where, Sent] = {}
        self.refused: list[tuple[Sent, int]] = []
        self.moved = 0
        self.producer = Producer({**librdkafka_config(group.settings), "partitioner": "murmur2_random", "message.max.bytes": 8 << 20, "log_level": 0})

    def send(self, records: Iterable[Sent]) -> None:
        for sent in records:
            alone = not kafka_takes(sent)  # Kafka refuses the whole batch with it
            if alone:
                self.producer.flush(PATIENCE_SECONDS)
            self._one(sent)
            self.producer.flush(PATIENCE_SECONDS) if alone else self.producer.poll(0)
        assert self.producer.flush(PATIENCE_SECONDS) == 0

    def _one(self, sent: Sent) -> None:
        key, more = sent.key, {}
        if sent.topic in ("activities", "contact-merges", "contacts"):
            way = self.r.randrange(3)
            if way == 0:
                own = partition_of(key or b"", self.group.settings.partitions)
                more["partition"] = (own + self.r.randrange(1, self.group.settings.partitions)) % self.group.settings.partitions
                self.moved += 1
            elif way == 1 and sent.topic not in COMPACTED and not isinstance(sent, Bad):
                key = None
                self.moved += 1
        if sent.timestamp_ms is not None:
            more["timestamp"] = sent.timestamp_ms

        def delivered(error: Any, message: Any) -> None:
            if error is None:
                self.places[Where(message.topic(), message.partition(), message.offset())] = sent
            else:
                self.refused.append((sent, error.code()))

        topic = self.group.settings.topic_prefix + sent.topic
        self.producer.produce(topic, sent.value, key, headers=list(sent.headers), on_delivery=delivered, **more)


def any_record_time(group: Group, source: str) -> None:
    """Kafka refuses records of the future from version 4 on, not before."""
    resource = ConfigResource(ResourceType.TOPIC, group.settings.topic_prefix + source)
    resource.add_incremental_config(ConfigEntry("message.timestamp.after.max.ms", str(2**63 - 1), incremental_operation=AlterConfigOpType.SET))
    admin = AdminClient({"bootstrap.servers": group.settings.bootstrap})
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(PATIENCE_SECONDS)


def listed(group: Group) -> list[dict[str, Any]]:
    """What the API lists as rejected, all pages."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = group.http.get("/api/rejected", params={"limit": 500, **({"cursor": cursor} if cursor else {})}, timeout=PATIENCE_SECONDS).json()
        found += page["rejected"]
        cursor = page["cursor"]
        if cursor is None:
            return found


def counted(group: Group, journey: str) -> set[str]:
    """The contacts of the first stage."""
    found: set[str] = set()
    cursor: str | None = None
    while True:
        page = group.http.get(f"/api/journeys/{journey}/stages/1/contacts", params={"limit": 1000, **({"cursor": cursor} if cursor else {})}).json()
        found |= {row["contact_id"] for row in page["contacts"]}
        cursor = page["cursor"]
        if cursor is None:
            return found


@pytest.mark.parametrize("killed", [False, True], ids=["in one go", "killed meanwhile"])
def test_every_bad_one_is_rejected_as_it_came_and_every_good_one_counted(kafka: str, prefix: str, tmp_path: Path, killed: bool) -> None:
    began_ms = int(time.time() * 1000)
    with Group(kafka, prefix, tmp_path, session_timeout_seconds=6, heartbeat_seconds=1) as group:
        any_record_time(group, "contacts")
        first = group.start(step="changes" if killed else "none", nth=40)  # dies behind the acknowledgement of what it rejected: that comes again
        group.open_console()
        for journey in (JOURNEY, STRANGE):
            group.apply(journey)
        mixed: list[Sent] = [*BAD, *facts()]
        random.Random(SEED).shuffle(mixed)
        sender, half = Sender(group), len(mixed) // 2
        for i in range(0, half, 200):
            sender.send(mixed[i : min(i + 200, half)])
        if killed:
            group.until(lambda: not first.alive, "for the first worker to end by its own hand")
            assert first.exit_code == -signal.SIGKILL, first.tail()
            second = group.start()
        for i in range(half, len(mixed), 400):
            sender.send(mixed[i : i + 400])
            if killed and i > half + len(mixed) // 4 and second is group.workers["a"]:
                group.kill()
                group.start(wipe=True)
        group.settled()
        bad = {where: sent for where, sent in sender.places.items() if isinstance(sent, Bad)}
        group.until(lambda: len({where(one) for one in group.read("rejected")}) >= len(bad), "for all bad ones on the rejected topic")

        assert {(sent.name, code) for sent, code in sender.refused} == {
            (sent.name, KafkaError.INVALID_RECORD) for sent in mixed if not kafka_takes(sent)
        }, "Kafka takes everything else"
        assert len(bad) >= 200
        assert sender.moved > 1000
        rejected = group.read("rejected")
        assert {where(one) for one in rejected} == set(bad)
        assert killed or len(rejected) == len(bad), "none is rejected twice without a reason"
        for one in rejected:
            as_it_came(one, bad[where(one)], began_ms)
        assert {(row["topic"], row["partition"], row["offset"]) for row in listed(group)} == set(bad)

        report = group.verify()  # numbers, lists, names, stage changes
        inputs = {where for where in bad if where.topic.removeprefix(prefix) in ("activities", "contact-merges", "contacts")}
        assert report.rejected == len(inputs)
        merged = {sent.contact_id for sent in GOOD if sent.topic == "contact-merges"}
        odd = {sent.contact_id for sent in GOOD if sent.topic == "activities"}
        assert odd - merged <= counted(group, "strange")
        assert group.workers["a"].alive
        assert "cannot go on" not in (tmp_path / "worker-a.log").read_text(errors="replace")
        metrics = httpx.get(f"http://127.0.0.1:{group.ports['a']}/metrics").text
        assert re.search(rf'waypost_rejected_total\{{code="not_json",topic="{re.escape(prefix)}activities"\}} [1-9]', metrics)
        for source in ("activities", "contact-merges", "contacts", "handoffs", "rebuilt-evidence"):
            assert f'waypost_source_lag_records{{partition="0",topic="{source}"}} 0.0' in metrics


def where(record: Any) -> Where:
    headers = dict(record.headers())
    return Where(headers["waypost_topic"].decode(), int(headers["waypost_partition"]), int(headers["waypost_offset"]))


def as_it_came(record: Any, sent: Bad, began_ms: int) -> None:
    """Whether *record*, of the rejected topic, is *sent* and says why."""
    headers = record.headers()
    own, ours = headers[: -len(OURS)], dict(headers[-len(OURS) :])
    assert (record.key(), record.value()) == (sent.key, sent.value), sent.name
    assert own == list(sent.headers), sent.name
    assert tuple(ours) == OURS
    assert re.search(sent.reason, ours["waypost_error"].decode(), re.IGNORECASE), (sent.name, ours["waypost_error"])
    assert len(ours["waypost_error"]) < 2000, sent.name
    assert began_ms <= parse_ms(ours["waypost_rejected_at"].decode()) <= time.time() * 1000


@pytest.mark.kafka
def test_what_was_rejected_is_mended_sent_again_and_counted(kafka: str, prefix: str, tmp_path: Path) -> None:
    """A type that is a number, a time that is a word, groups that are a text: mended, each twice, the worker killed meanwhile."""
    data, r = shop(), random.Random(SEED)
    spoilt = {"activities": ("type", 7), "contact-merges": ("at", "soon"), "contacts": ("groups", "none")}
    keyed = {"activities": data.activities, "contact-merges": data.merges, "contacts": data.contacts}
    with Group(kafka, prefix, tmp_path, session_timeout_seconds=6, heartbeat_seconds=1) as group:
        group.start()
        group.open_console()
        group.apply(JOURNEY)
        whole: dict[bytes, bytes] = {}
        sender, mixed = Sender(group), []
        for source, lines in keyed.items():
            for line in lines if source == "contact-merges" else r.sample(lines, min(1500, len(lines))):
                field, wrong = spoilt[source]
                fact = json.loads(line)
                key = str(fact.get("from") or fact["contact_id"]).encode()
                if r.random() < 0.3:
                    bad = json.dumps({**fact, field: wrong}).encode()
                    whole[bad] = line
                    mixed.append(Bad("spoilt", source, key, bad, (("trace", None), ("trace", b"\xff"))))
                else:
                    mixed.append(Sent("", source, key, line))
        r.shuffle(mixed)
        sender.send(mixed)
        group.settled()
        rows = {(row["topic"], row["partition"], row["offset"]): row for row in listed(group)}
        assert len(rows) == sum(isinstance(sent, Bad) for sent in mixed) > 500
        before = group.http.get(f"/api/journeys/{JOURNEY['id']}/results").json()["stages"][0]["converted"]
        mends = [{"id": row["id"], "value": whole[row["value"].encode()].decode()} for row in rows.values()]
        for start in range(0, len(mends), 300):
            for _ in range(2):
                answer = group.http.post("/api/rejected/resend", json={"records": mends[start : start + 300]}, timeout=PATIENCE_SECONDS)
                assert (answer.status_code, answer.json()["refused"]) == (202, []), answer.text[:500]
            if not start:
                group.kill()
                group.start()
        report = group.verify()
        assert report.rejected == len(rows), "nothing was rejected a second time"
        assert group.http.get(f"/api/journeys/{JOURNEY['id']}/results").json()["stages"][0]["converted"] != before
        sent = [one for one in group.read("activities") if one.headers()]
        assert {tuple(one.headers()) for one in sent} == {(("trace", None), ("trace", b"\xff"))}, "without those of the rejection"


class Name(str):
    """The name of a header that goes out as other bytes than UTF-8, as no client of Kafka's own would send it."""

    def encode(self, *_: Any) -> bytes:
        return b"\xff\xfe"


async def send_oddly_named(group: Group, records: list[Sent]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=group.settings.bootstrap)
    await producer.start()
    try:
        for sent in records:
            batch = producer.create_batch()
            batch._builder = _DefaultRecordBatchBuilderPy(
                magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1 << 20
            )
            batch.append(key=sent.key, value=sent.value, timestamp=AT_MS, headers=[(Name("?"), b"1"), ("trace", b"2")])
            await (await producer.send_batch(batch, group.settings.topic_prefix + sent.topic, partition=0))
    finally:
        await producer.stop()


@pytest.mark.kafka
async def test_a_header_whose_name_is_not_utf8_stops_neither_worker_nor_console(kafka: str, prefix: str, tmp_path: Path) -> None:
    visit = {"id": "a", "contact_id": "odd", "type": "pagevisit", "page": "/", "at": AT_MS}
    with Group(kafka, prefix, tmp_path, session_timeout_seconds=6) as group:
        worker = group.start()
        group.open_console()
        group.apply(STRANGE)
        bad = [Sent("", topic, b"k", b"?") for topic in ("activities", "contact-merges", "contacts", "journeys", "handoffs")]
        await send_oddly_named(group, [Sent("", "activities", b"odd", json.dumps(visit).encode()), *bad])
        group.send("activities", [("even", json.dumps({**visit, "id": "b", "contact_id": "even"}).encode())])
        group.apply({**JOURNEY, "name": "behind it"})
        group.until(lambda: len(group.read("rejected")) == len(bad), "for the bad ones on the rejected topic")
        group.verify()
        assert counted(group, "strange") == {"odd", "even"}
        for one in group.read("rejected"):
            assert one.headers()[:2] == [("\\xff\\xfe", b"1"), ("trace", b"2")]
        assert worker.alive
