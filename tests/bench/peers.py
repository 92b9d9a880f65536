"""Peers: what others do with the same topic, each in a process of its own: `python -m tests.bench.peers KIND BOOTSTRAP TOPIC COUNT DIRECTORY FILE`.

| kind | does |
|---|---|
| faust | a stock Faust agent, as its manual shows it: one table, one get and one set for each activity |
| aiokafka | `getmany`, nothing else |
| librdkafka | `consume`, nothing else |
| job | reads and matches as the recalculation job does, and forgets what it found |

FILE gets one line of JSON: records, seconds it took (for Faust from the first record on), CPU seconds in that time.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

KINDS = ("faust", "aiokafka", "librdkafka")  # job is no peer: it is ours


class Clock:
    """Runs from when it is made. The last records end the process, and say how it went."""

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, 0
        self._began, self._cpu_began = time.monotonic(), time.process_time()

    def done(self, records: int) -> bool:
        """Counts *records*; whether these were the last."""
        self.seen += records
        return self.seen >= self.count

    def tell(self, file: Path) -> None:
        said = {"records": self.seen, "seconds": time.monotonic() - self._began, "cpu_seconds": time.process_time() - self._cpu_began}
        file.write_text(json.dumps(said))
        os._exit(0)  # a table, a group and their threads would take longer to end than to work


def faust(bootstrap: str, topic: str, count: int, directory: Path, file: Path) -> None:
    import faust as stock

    name = f"peer-{topic}-{os.getpid()}"
    app = stock.App(
        name, broker=f"kafka://{bootstrap}", store="rocksdb://", topic_partitions=4, topic_replication_factor=1,
        datadir=str(directory / name), web_enabled=False, consumer_auto_offset_reset="earliest", stream_recovery_delay=0.0,
    )  # fmt: skip
    table = app.Table("contacts", partitions=4, options={"driver": "rocksdict"})
    sizes: dict[str, int] = {}

    @app.agent(app.topic(topic, key_type=str, value_serializer="json"))
    async def count_activities(stream):  # type: ignore[no-untyped-def]
        clock: Clock | None = None
        async for contact, activity in stream.items():
            clock = clock or Clock(count)
            state = table.get(contact) or {"activities": 0, "pages": {}, "last": None}
            state["activities"] += 1
            page = activity["page"]
            state["pages"][page] = state["pages"].get(page, 0) + 1
            state["last"] = activity["at"]
            table[contact] = state
            sizes[contact] = state["activities"]
            if clock.done(1):
                assert sum(sizes.values()) == clock.seen, "the table counts what came"
                clock.tell(file)

    worker = stock.Worker(app, loglevel="warn", quiet=True)
    worker.execute_from_commandline()


def aiokafka(bootstrap: str, topic: str, count: int, _: Path, file: Path) -> None:
    from aiokafka import AIOKafkaConsumer

    async def read() -> None:
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
        await consumer.start()
        clock = Clock(count)
        while not clock.done(sum(map(len, (await consumer.getmany(timeout_ms=1000)).values()))):
            pass
        clock.tell(file)

    asyncio.run(read())


def librdkafka(bootstrap: str, topic: str, count: int, _: Path, file: Path) -> None:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "peer", "enable.auto.commit": False, "auto.offset.reset": "earliest",
                         "fetch.queue.backoff.ms": 5})  # fmt: skip
    partitions = consumer.list_topics(topic, timeout=15).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    clock = Clock(count)
    while not clock.done(len(consumer.consume(10_000, 0.1))):
        pass
    clock.tell(file)


def job(bootstrap: str, topic: str, count: int, _: Path, file: Path) -> None:
    from agents import rebuilding
    from schemas.journey import parse_journey
    from schemas.recalculation import FILLING, REQUEST, Recalculation
    from state.recalculation import rules_by_key
    from streams.replay import read_blocks
    from streams.settings import Settings
    from tests.bench.data import journey

    rules = rules_by_key(parse_journey(journey()))
    one = Recalculation(id="bench", state=FILLING, cause=REQUEST, journeys=("bench",), rules=tuple(rules.values()))
    finder = rebuilding.finder(one, rules)
    hits: rebuilding.Hits = {}
    clock = Clock(count)
    for _, block in read_blocks(Settings.load({"broker": bootstrap}, environ={}), topic):
        sum(rebuilding.hits(block, finder, 1 << 50, hits))
        if len(hits) > 100_000:
            hits.clear()
        if clock.done(len(block)):
            clock.tell(file)


if __name__ == "__main__":
    kind, bootstrap, topic, count, directory, file = sys.argv[1:]
    {"faust": faust, "aiokafka": aiokafka, "librdkafka": librdkafka, "job": job}[kind](bootstrap, topic, int(count), Path(directory), Path(file))
