"""A soak: a Waypost under mixed load for hours, a fault every minute; in the end everything is compared with the oracle, and memory is as it was.

One worker is left alone, so that its memory tells; what is done to everything else is drawn from a seed.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
import psutil

from tests.support.group import Group
from tests.support.kafka import KafkaBroker

CONTACTS = 5000
FAULT_SECONDS = 60.0
SESSION_SECONDS = 6
PAGES = ("/start", "/pricing", "/docs", "/trial", "/thanks")
BASE_MS = 1_790_000_000_000


class Outcome(NamedTuple):
    """What came of it. `memory_mib`: (minutes, of the worker that was left alone)."""

    sent: Counter[str]
    faults: Counter[str]
    memory_mib: list[tuple[float, float]]
    compared: int
    slowest_seconds: float
    """The longest that it took, after a fault, until everything sent before was in the numbers."""

    def growth(self) -> float:
        """Memory in the last quarter for that in the second one: by then caches are as full as they get."""
        quarter = max(1, len(self.memory_mib) // 4)
        mib = [used for _, used in self.memory_mib]
        return median(mib[-quarter:]) / median(mib[quarter : 2 * quarter] or mib)


class Load(threading.Thread):
    """Sends activities, merges and profiles at *rate* a second, edits and recalculates now and then, and asks as dashboards do."""

    def __init__(self, group: Group, seed: int, rate: float) -> None:
        super().__init__(daemon=True)
        self.group, self.rate, self.random = group, rate, random.Random(seed)
        self.sent: Counter[str] = Counter()
        self.over = threading.Event()
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            began, facts, acted = time.monotonic(), 0, 0
            while not self.over.is_set():
                due = (time.monotonic() - began) * self.rate - facts
                for _ in range(int(due)):
                    self.fact(facts)
                    facts += 1
                if time.monotonic() - began > 20.0 * (acted + 1):
                    acted += 1
                    self.act(acted)
                time.sleep(0.02)
            self.group.send("activities", [])
        except BaseException as error:
            self.failed = error

    def fact(self, number: int) -> None:
        r = self.random
        contact = f"s{int(r.random() ** 2 * CONTACTS)}"
        at_ms = BASE_MS + number * 10 - int(r.random() ** 8 * 86_400_000)
        kind = r.random()
        if kind < 0.02:
            into = f"s{int(contact[1:]) // 10 * 10 + int(r.random() * 10)}"  # of the same ten: else all were one person in the end
            if into == contact:
                return
            source, said = "contact-merges", {"from": contact, "into": into, "at": at_ms}
        elif kind < 0.04:
            source, said = "contacts", {"contact_id": contact, "groups": r.sample(["a", "b", "c"], r.randint(0, 2)), "at": at_ms}
        elif kind < 0.041:
            self.sent["erasures"] += 1
            self.group.send("contacts", [(contact, None)], flush=False)
            return
        elif kind < 0.05:
            self.sent["bad"] += 1
            self.group.send("activities", [(contact, b'{"contact_id": 7, ' + str(number).encode())], flush=False)
            return
        else:
            source, said = "activities", {"id": f"n{number}", "contact_id": contact, "type": "pagevisit", "page": r.choice(PAGES), "at": at_ms}
            if r.random() < 0.05:
                self.group.send(source, [(contact, json.dumps(said).encode())], flush=False)  # sent twice
        self.sent[source] += 1
        self.group.send(source, [(contact, json.dumps(said).encode())], flush=False)

    def act(self, number: int) -> None:
        """An edit, a recalculation or a look; what fails because something is just being restarted is done another time."""
        r = self.random
        try:
            if number % 4 == 0:
                self.sent["edits"] += 1
                self.group.http.put("/api/journeys/soak", json=journey(r.randint(2, 4), r.choice(["/docs", "/pricing", f"/new-{number}"])))
            elif number % 9 == 0:
                self.sent["recalculations"] += 1
                self.group.http.post("/api/recalculations", json={"journeys": ["soak"]})
            else:
                self.sent["looks"] += 1
                self.group.http.get("/api/journeys/soak/results")
                self.group.http.get("/api/journeys/soak/stages/1/contacts?who=converted&limit=100")
        except httpx.HTTPError:
            self.sent["asked in vain"] += 1


def journey(stages: int, second: str) -> dict[str, Any]:
    pages = ["/start", second, "/trial", "/thanks"]
    rows = [{"name": page, "condition": {"any": [{"rule": "visited_page", "page": page}]}} for page in pages[:stages]]
    return {"id": "soak", "name": "Soak", "stages": rows}


class Faults:
    """What is done to a Waypost; each leaves everything running again."""

    def __init__(self, group: Group, broker: KafkaBroker, rng: random.Random) -> None:
        self.group, self.broker, self.random = group, broker, rng

    def worker_killed(self) -> None:
        self.group.kill("b")
        self.group.start("b", wipe=self.random.random() < 0.3)

    def worker_stopped(self) -> None:
        """Past its session: the other takes over, then gives back."""
        self.group.workers["b"].signal(signal.SIGSTOP)
        time.sleep(SESSION_SECONDS + 2)
        self.group.workers["b"].signal(signal.SIGCONT)

    def broker_restarted(self) -> None:
        self.broker.restart()

    def broker_killed(self) -> None:
        self.broker.kill()
        self.broker.start()

    def broker_stopped(self) -> None:
        self.broker.pause()
        time.sleep(4)
        self.broker.resume()

    def job_killed(self) -> None:
        self.group.jobs["a"].kill()
        self.group.recalculate("a")

    def console_killed(self) -> None:
        assert self.group.console is not None
        self.group.console.kill()
        self.group.open_console()

    def all(self) -> list[Callable[[], None]]:
        broker = [self.broker_restarted, self.broker_killed, self.broker_stopped]
        return [self.worker_killed, self.worker_stopped, *broker, self.job_killed, self.console_killed]


def soak(directory: Path, minutes: float, rate: float, seed: int, say: Callable[[str], None]) -> Outcome:
    """Runs for *minutes*. Raises AssertionError when anything is wrong in the end, or does not come back after a fault."""
    rng = random.Random(seed)
    broker = KafkaBroker(directory / "kafka", heap_mb=512, session_ms=9000, lasting=True)  # as Kafka has it: one that is alone and slow is not fenced
    try:
        settings = {"session_timeout_seconds": SESSION_SECONDS, "heartbeat_seconds": 1, "partitions": 8, "memory_mb": 64}  # which is full soon
        with Group(broker.start(), "soak.", directory / "group", **settings) as group:
            group.start("a")
            group.start("b")
            group.open_console()
            group.apply(journey(3, "/pricing"))
            load, faults, done = Load(group, seed, rate), Faults(group, broker, rng), Counter[str]()
            load.start()
            memory: list[tuple[float, float]] = []
            began, slowest = time.monotonic(), 0.0
            end = began + minutes * 60
            while time.monotonic() < end:
                until = min(end, began + FAULT_SECONDS * (sum(done.values()) + 1))
                while time.monotonic() < until:
                    memory.append(((time.monotonic() - began) / 60, psutil.Process(group.workers["a"].pid).memory_info().rss / (1 << 20)))
                    time.sleep(min(5.0, max(0.1, until - time.monotonic())))
                if time.monotonic() >= end:
                    break
                fault = rng.choice(faults.all())
                fault()
                slowest = max(slowest, _back(group))
                done[fault.__name__] += 1
                say(f"{(time.monotonic() - began) / 60:.0f} min: {fault.__name__.replace('_', ' ')}; {sum(load.sent.values()):,} facts; "
                    f"the worker left alone has {memory[-1][1]:.0f} MiB")
                if load.failed is not None:
                    raise load.failed
            load.over.set()
            load.join()
            if load.failed is not None:
                raise load.failed
            _back(group)
            say("comparing everything with the oracle")
            report = group.verify()
            return Outcome(load.sent, done, memory, report.compared, slowest)
    finally:
        broker.kill()


def _back(group: Group) -> float:
    """Starts what has ended, and waits until everything is served and current; for how long that was."""
    began = time.monotonic()

    def holds() -> bool:
        for name, worker in group.workers.items():
            if not worker.alive:
                group.start(name)
        health = group.http.get("/api/health").json()
        return health["status"] == "ok" and health["lag"] is not None and health["lag"] < 1000

    group.until(holds, "for everything to be served and current")
    return time.monotonic() - began
