"""A group of worker processes and a console on a broker, and what they say compared with the oracle. Starts, kills and asks; decides nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from confluent_kafka import Producer

from console import check
from console.client import Client
from schemas.journey import parse_journey
from schemas.times import parse_ms
from state import oracle
from streams import reader, topics
from streams.brokers import free_port
from streams.guarded import GuardedProcess
from streams.settings import Settings, librdkafka_config
from tests.support import PATIENCE_SECONDS


class Group:
    """Workers by name, each with a data directory of its own, and one console that finds them (on the embedded broker: is told of them)."""

    def __init__(self, bootstrap: str, prefix: str, directory: Path, embedded: bool = False, **more: Any) -> None:
        self.directory = directory
        self.embedded = embedded
        flags = {"broker": bootstrap, "topic_prefix": prefix, "group": prefix + "workers", "data_dir": directory, **more}
        self.settings = Settings.load(flags, environ={})
        self.workers: dict[str, GuardedProcess] = {}
        self.ports: dict[str, int] = {}
        self.console: GuardedProcess | None = None
        self.jobs: dict[str, GuardedProcess] = {}
        self.port = free_port()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_SECONDS)
        self.sent: list[tuple[str, str | None, bytes | None]] = []
        self._producer = Producer({**librdkafka_config(self.settings), "partitioner": "murmur2_random", "linger.ms": 5, "log_level": 0,
                                   "message.max.bytes": 4 << 20})  # fmt: skip

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        topics.provision(self.settings)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()
        for process in [*self.jobs.values(), *self.workers.values(), *([self.console] if self.console else [])]:
            if process.alive:
                process.stop()

    # ------------------------------------------------------------------ processes

    def environ(self, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WAYPOST_") or name.startswith("WAYPOST_TEST_")}
        return {**clean, **self.settings.environment(), **more}

    def start(
        self, name: str = "a", step: str = "none", nth: int = 0, sig: str = "KILL", wipe: bool = False, within: Sequence[str] = (), **more: str
    ) -> GuardedProcess:
        """Starts a worker; *wipe* takes its data directory away before. It sends itself a signal after the *nth* completion of *step*.

        *within*: a command that runs it (a namespace); *more*: variables of its environment.
        """
        data = self.directory / f"data-{name}"
        if wipe:
            shutil.rmtree(data, ignore_errors=True)
        port = self.ports.setdefault(name, free_port())
        fixed = {"WAYPOST_DATA_DIR": str(data), "WAYPOST_WORKER_PORT": str(port), "WAYPOST_GROUP_INSTANCE_ID": name}
        environ = self.environ(**fixed, **more)
        argv = [*within, sys.executable, "-m", "tests.support.stepping", step, str(nth), sig]
        self.workers[name] = GuardedProcess(argv, log=self.directory / f"worker-{name}.log", env=environ)
        return self.workers[name]

    def kill(self, name: str = "a") -> None:
        self.workers[name].kill()

    def recalculate(self, name: str = "a") -> GuardedProcess:
        """Starts a recalculation job, which other tests than those of recalculation need only for a moment: when journeys are applied."""
        argv = [sys.executable, "-m", "console", "recalculator"]
        environ = self.environ(WAYPOST_GROUP_INSTANCE_ID=f"job-{name}")
        self.jobs[name] = GuardedProcess(argv, log=self.directory / f"recalculator-{name}.log", env=environ)
        return self.jobs[name]

    def open_console(self) -> None:
        """The console, and a recalculation job; on the embedded broker the workers must have been started before, by their names."""
        more = {"WAYPOST_CONSOLE_PORT": str(self.port)}
        if self.embedded:
            more["WAYPOST_WORKERS"] = ",".join(f"http://127.0.0.1:{port}" for port in self.ports.values())
        argv = [sys.executable, "-m", "console", "console"]
        self.console = GuardedProcess(argv, log=self.directory / "console.log", env=self.environ(**more))
        self.until(lambda: self.http.get("/healthz").status_code == 200, "for the console")
        if not self.jobs:
            self.recalculate()

    def until(self, holds: Any, what: str) -> None:
        """Waits until *holds*; fails with the ends of the logs."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                if holds():
                    return
            except (httpx.HTTPError, ValueError, KeyError):
                pass
            if time.monotonic() > end:
                tails = "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in self.directory.glob("*.log"))
                raise AssertionError(f"waited {PATIENCE_SECONDS:g} s {what}\n{self._health()}\n{tails}")
            time.sleep(0.1)

    def _health(self) -> Any:
        try:
            return self.http.get("/api/health").json()
        except (httpx.HTTPError, ValueError) as error:
            return error

    # ------------------------------------------------------------------ facts

    def apply(self, journey: dict[str, Any]) -> None:
        answer = self.http.put(f"/api/journeys/{journey['id']}", json=journey)
        assert answer.status_code in (200, 201), answer.text

    def send(self, source: str, facts: Iterable[tuple[str | None, bytes | None]], flush: bool = True) -> None:
        """`(key, value)` records to a source topic, in this order."""
        topic = self.settings.topic_prefix + source
        for key, value in facts:
            self._producer.produce(topic, value, key)
            self._producer.poll(0)
        if flush:
            assert self._producer.flush(PATIENCE_SECONDS) == 0, "not everything was delivered"

    def processed(self) -> int:
        """Records of activities that the live partitions have done."""
        done = 0
        for port in self.ports.values():
            try:
                found = httpx.get(f"http://127.0.0.1:{port}/internal/partitions", timeout=2).json()["partitions"].values()
            except (httpx.HTTPError, ValueError):
                continue
            done += sum(p["positions"].get("activities") or 0 for p in found)
        return done

    # ------------------------------------------------------------------ what is said

    def settled(self) -> None:
        """Waits until everything sent is in the numbers, and no recalculation is about to change them."""
        self.until(lambda: self._health()["lag"] == 0, "for a lag of 0")
        self.until(self.live, "for all journeys to be live")
        self.until(lambda: self._health()["lag"] == 0, "for a lag of 0")

    def live(self) -> bool:
        """Whether all journeys show what they should."""
        return all(journey["status"] == "live" for journey in self.http.get("/api/journeys").json()["journeys"])

    def verify(self) -> check.Report:
        """Compares numbers, lists, names, and the last words of stage changes and totals with the oracle. Fails on any difference."""
        self.settled()
        answers: dict[str, oracle.Answer] = {}

        def judged(answer: oracle.Answer) -> None:
            answers.setdefault(answer.journey.id, answer).reached.update(answer.reached)

        report = check.run(self.settings, Client(f"http://127.0.0.1:{self.port}"), (), PATIENCE_SECONDS, lambda *_: None, judged)
        names = [one for one in report.differences if "contact" in one.where or ", " in one.where]
        assert report.differences == [], (len(report.differences), report.differences[:4], names[-12:], self._health())
        assert report.compared > 0
        said: dict[tuple[str, str, int], int | None] = {}
        told: dict[tuple[str, str, int], list[str]] = {}
        for change in self.read("stage-changes"):
            value = json.loads(change.value())
            key = value["journey"], value["contact_id"], value["stage"]
            said[key] = None if value["reached_at"] is None else parse_ms(value["reached_at"])
            place = f"{change.partition()}@{change.offset()} {change.timestamp()[1]}"
            told.setdefault(key, []).append(f"{place} {value['change']} {value['reached_at']} {value['cause']} {value['cause_id']}")
        truth = {
            (id_, name, stage): reached.at_ms
            for id_, answer in answers.items()
            for name, stages in answer.reached.items()
            for stage, reached in enumerate(stages, 1)
        }
        announced = {key: at for key, at in said.items() if at is not None}
        wrong = {key for key in {*announced, *truth} if announced.get(key) != truth.get(key)}
        lines = [f"{key}: {truth.get(key)}, announced {announced.get(key)}: {told.get(key)}" for key in sorted(wrong)[:10]]
        assert not wrong, f"{len(wrong)} last words are not the truth\n" + "\n".join(lines)
        self.until(self._totals_agree, "for the last totals of all partitions to add up to the results")
        return report

    def _totals_agree(self) -> bool:
        last = {record.key(): json.loads(record.value()) for record in self.read("totals")}
        for journey in self.http.get("/api/journeys").json()["journeys"]:
            results = self.http.get(f"/api/journeys/{journey['id']}/results").json()
            reached: Counter[int] = Counter()
            for said in last.values():
                if (said["journey"], said["version"]) == (journey["id"], results["version"]):
                    reached.update({stage: count for kind, stage, _, count in said["groups"].get("", ()) if kind == "r"})
            if any(reached[stage["stage"]] != stage["converted"] for stage in results["stages"]):
                return False
        return True

    def read(self, source: str) -> list[Any]:
        """All records of a topic, in the order of each partition."""
        names = reader.partitions_of_topics(self.settings, [self.settings.topic_prefix + source])
        found: list[Any] = []
        for topic in {topic for topic, _ in names}:
            for _, records in reader.read_log(self.settings, topic):
                found += records
        return found


NESTED = parse_journey(
    {
        "id": "nested",
        "name": "Any of all",
        "stages": [
            {
                "name": "Searched, or came by the catalogue and looked",
                "condition": {
                    "any": [
                        {"rule": "performed_activity", "activity": "search"},
                        {"all": [{"rule": "visited_page", "page": "/catalog"}, {"rule": "visited_page", "page": "/product_view"}]},
                    ]
                },
            },
            {
                "name": "Cart and something else",
                "condition": {
                    "all": [
                        {"rule": "performed_activity", "activity": "add_to_cart"},
                        {"rule": "visited_url", "url": {"not_contains": "cart"}},
                    ]
                },
            },
        ],
    }
)
WORDS = parse_journey(
    {
        "id": "words",
        "name": "Text of every kind",
        "stages": [
            {"name": "Begins", "condition": {"any": [{"rule": "visited_url", "url": {"starts_with": "HTTPS://SHOP"}}]}},
            {"name": "Ends", "condition": {"any": [{"rule": "visited_url", "url": {"ends_with": "view"}}]}},
            {"name": "Matches", "condition": {"any": [{"rule": "visited_url", "url": {"matches": "/(cart|shipping)[a-z_]*$"}}]}},
        ],
    }
)
