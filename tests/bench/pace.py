"""Pace: a process that sends activities at a steady rate and notes when each was sent, when the broker had it, and where.

`python -m tests.bench.pace BOOTSTRAP TOPIC KIND RATE SECONDS CONTACTS FILE`. Times are `time.monotonic()`, which all processes of a machine share.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from tests.bench.data import activities

TICK_S = 0.002


def main(bootstrap: str, topic: str, kind: str, rate: int, seconds: float, contacts: int, file: Path) -> None:
    count = int(rate * seconds)
    made = list(activities(kind, count, contacts))  # so that making them costs nothing while they are sent
    sent: list[float] = [0.0] * count
    taken: list[tuple[float, int, int]] = [(0.0, -1, -1)] * count

    def note(i: int) -> Any:
        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                raise RuntimeError(f"the broker refused an activity: {error}")
            taken[i] = (time.monotonic(), message.partition(), message.offset())

        return delivered

    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random", "linger.ms": 1, "acks": "all", "enable.idempotence": True})
    producer.list_topics(topic, timeout=15)
    began = time.monotonic()
    i = 0
    while i < count:
        due = min(count, int((time.monotonic() - began) * rate) + 1)
        while i < due:
            sent[i] = time.monotonic()
            producer.produce(topic, made[i].value, made[i].contact, on_delivery=note(i))
            i += 1
        producer.poll(TICK_S)
    took = time.monotonic() - began
    producer.flush(60)
    file.write_text(json.dumps({"seconds": took, "sent": sent, "taken": taken}))


if __name__ == "__main__":
    bootstrap, topic, kind, rate, seconds, contacts, file = sys.argv[1:]
    main(bootstrap, topic, kind, int(rate), float(seconds), int(contacts), Path(file))
