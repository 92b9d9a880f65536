"""A campaign: a Waypost on a broker with unusual settings, the traffic of a user's day, and what is done meanwhile: rows of numbers, all verified."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from confluent_kafka import KafkaError, Producer

from state import records
from state.evidence import hit
from state.ledger import Ledger, Memory, prefix_end
from streams.brokers import EmbeddedBroker
from streams.settings import librdkafka_config
from tests.bench.ground import ROOT, WrongAnswer
from tests.bench.report import Row
from tests.scale import traffic as made
from tests.scale.traffic import BY_URL, FUNNEL, FUNNELS, UNDER_PRESSURE, Traffic
from tests.support import PATIENCE_SECONDS
from tests.support.group import Group
from tests.support.kafka import KafkaBroker

SERVER = {
    "fetch.max.bytes": str(1 << 20),  # an answer is full long before all partitions are in it
    "log.segment.bytes": str(4 << 20),  # no shorter than the longest batch
    "log.cleaner.backoff.ms": "100",
    "log.cleaner.min.cleanable.ratio": "0.01",
}
"""Of the broker: answers that leave partitions out, small segments, compaction all the time."""
BATCH_BYTES = 2 << 20
SESSION_SECONDS = 10
OVER = ("live", "cancelled", "failed")
PATIENT_SECONDS = 10 * PATIENCE_SECONDS  # how long a recalculation of everything is waited for
Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    """How much. *seconds*: of use, while the last third of the traffic comes in."""

    persons: int
    activities: int
    journeys: int
    many: int
    seconds: float


SIZES = {
    "short": Size(persons=22_500, activities=150_000, journeys=4, many=0, seconds=20),
    "long": Size(persons=150_000, activities=1_000_000, journeys=8, many=1990, seconds=1200),
}
"""With the two journeys of the funnel, the long one has 2,000 in the end."""


class Live(threading.Thread):
    """Sends what is left of the traffic at a steady pace, and asks as a dashboard does: the funnel's numbers must never fall."""

    def __init__(self, campaign: Campaign, records: Iterator[made.Sent], per_second: float) -> None:
        super().__init__(daemon=True)
        self.campaign, self.records, self.per_second = campaign, records, per_second
        self.failed: BaseException | None = None
        self.rest = threading.Event()

    def run(self) -> None:
        try:
            began, number, looked = time.monotonic(), 0, 0.0
            for number, sent in enumerate(self.records, 1):
                self.campaign.send(sent)
                if self.rest.is_set() or number % 100:
                    continue
                ahead = number / self.per_second - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)
                if time.monotonic() - looked > 1.0:
                    looked = time.monotonic()
                    self.campaign.look()
            self.campaign.flush()
        except BaseException as error:
            self.failed = error


@dataclass
class Campaign:
    """What cases share. `rows` gathers what was measured."""

    group: Group
    size: Size
    traffic: Traffic
    say: Say
    rows: list[Row] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    seen: list[int] = field(default_factory=lambda: [0] * made.ROUNDS)
    fallen: list[str] = field(default_factory=list)
    looks: int = 0
    live: Live | None = None

    def __post_init__(self) -> None:
        self._undelivered: list[str] = []
        self._producer = Producer(
            librdkafka_config(self.group.settings)
            | {
                "partitioner": "murmur2_random",
                "linger.ms": 200,
                "batch.size": BATCH_BYTES,
                "message.max.bytes": 2 * BATCH_BYTES,
                "on_delivery": self._delivered,
                "queue.buffering.max.messages": 500_000,
                "enable.idempotence": True,
                "log_level": 0,
            }
        )

    def row(
        self, case: str, what: str, value: float, unit: str, against: str = "", **promise: float
    ) -> None:
        self.rows.append(Row(case, what, value, unit, against, **promise))
        self.say(f"{case}: {what}: {value:,.1f} {unit}{', ' + against if against else ''}")

    # ---------------------------------------------------------------- facts

    def send(self, sent: made.Sent) -> None:
        while True:
            try:
                topic = self.group.settings.topic_prefix + sent.source
                self._producer.produce(topic, sent.value, sent.key)
                break
            except BufferError:
                self._producer.poll(0.05)
        self.sent[sent.source] += 1
        if sum(self.sent.values()) % 1000 == 0:
            self._producer.poll(0)

    def flush(self) -> None:
        assert self._producer.flush(PATIENCE_SECONDS) == 0, "not everything was delivered"
        assert not self._undelivered, (len(self._undelivered), self._undelivered[0])

    def flood(self, over: threading.Event) -> None:
        """Sends as fast as it can, until *over*."""
        for sent in made.flood(self.traffic.persons):
            if over.is_set():
                break
            self.send(sent)
        self.flush()

    def _delivered(self, error: KafkaError | None, _: Any) -> None:
        if error is not None:
            self._undelivered.append(error.str())

    # ---------------------------------------------------------------- what is seen

    def get(self, path: str) -> dict[str, Any]:
        answer = self.group.http.get(path)
        answer.raise_for_status()
        return dict(answer.json())

    def converted(self, journey: str) -> list[int | None]:
        return [row["converted"] for row in self.get(f"/api/journeys/{journey}/results")["stages"]]

    def by_formula(self) -> list[int]:
        """What the funnels must show in the end, and do. Raises WrongAnswer."""
        right = self.traffic.reached()
        for journey in self.get("/api/journeys")["journeys"]:
            found = self.converted(journey["id"]) if journey["id"] in FUNNELS else right
            if found != right:
                raise WrongAnswer(f"{journey['id']}: {found}, it must be {right}")
        return right

    def look(self) -> None:
        """Ask for the funnel's numbers, which only grow before the erasures in the end. Answers with a lag do not
        count: a person is in no number while its evidence is on the way to another partition."""
        answer = self.group.http.get(f"/api/journeys/{FUNNEL}/results")
        erasing = self.sent["contacts"] > self.traffic.persons
        if answer.status_code != 200 or answer.json()["lag"] or erasing:
            return
        found = [row["converted"] for row in answer.json()["stages"]]
        self.looks += 1
        if any(now < before for now, before in zip(found, self.seen, strict=True)):
            self.fallen.append(f"{self.seen} to {found}")
        self.seen = found

    def until_live(self, journeys: set[str] | None = None) -> float:
        """Seconds until *journeys*, all when there are none, show what they should."""
        began = time.monotonic()
        while True:
            rows = self.get("/api/journeys")["journeys"]
            left = [
                j["id"]
                for j in rows
                if j["status"] != "live" and (journeys is None or j["id"] in journeys)
            ]
            if not left:
                return time.monotonic() - began
            if time.monotonic() - began > PATIENT_SECONDS:
                raise WrongAnswer(
                    f"not live after {PATIENT_SECONDS:g} s: {left[:5]}, {len(left)} in all"
                )
            time.sleep(0.2)

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """As the group's, for what takes longer than a test may wait."""
        end = time.monotonic() + PATIENT_SECONDS
        while time.monotonic() < end - PATIENCE_SECONDS:
            with contextlib.suppress(httpx.HTTPError, KeyError):
                if holds():
                    return
            time.sleep(0.2)
        self.group.until(holds, what)

    def settled(self) -> None:
        """Waits until everything sent is in the numbers, and no recalculation is about to change them."""

        def current() -> bool:
            return bool(self.get("/api/health")["lag"] == 0)

        self.until(
            lambda: current() and self.group.live() and current(),
            "for everything to be in the numbers",
        )

    def recalculate(self) -> str:
        answer = self.group.http.post("/api/recalculations", json={"journeys": "all"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def recalculation(self, id_: str) -> dict[str, Any]:
        return self.get(f"/api/recalculations/{id_}")

    def watched(self, id_: str) -> tuple[dict[str, Any], list[tuple[float, float, float | None]]]:
        """A recalculation's end, and `(seconds since it began, progress, seconds that it says are left)` on the way."""
        began, found = time.monotonic(), list[tuple[float, float, float | None]]()
        while time.monotonic() - began < PATIENT_SECONDS:
            one = self.recalculation(id_)
            found.append((time.monotonic() - began, one["progress"], one["eta_seconds"]))
            if one["state"] in OVER:
                return one, found
            time.sleep(0.2)
        raise WrongAnswer(f"recalculation {id_} is not over after {PATIENT_SECONDS:g} s: {one}")


# -------------------------------------------------------------------------------------------- cases


def load(campaign: Campaign) -> None:
    """Two thirds of the traffic, as fast as it can be sent, over journeys that are there."""
    for journey in [made.funnel(), *map(made.section, range(campaign.size.journeys))]:
        campaign.group.apply(journey)
    campaign.until_live()
    records, began = campaign.traffic.records(), time.monotonic()
    for sent in records:
        campaign.send(sent)
        if campaign.sent["activities"] >= campaign.traffic.activities * 2 // 3:
            break
    campaign.flush()
    campaign.settled()
    seconds, total = time.monotonic() - began, sum(campaign.sent.values())
    campaign.row(
        "load",
        "records a second, until all are in the numbers",
        total / seconds,
        "/s",
        f"{total:,} records, {campaign.size.journeys + 1} journeys",
    )
    left = (
        campaign.traffic.activities * 1.02 + campaign.traffic.persons - campaign.sent["activities"]
    )
    campaign.live = Live(campaign, records, left / campaign.size.seconds)
    campaign.live.start()


def recalculation(campaign: Campaign) -> None:
    """Recalculate everything while activities come in: numbers never fall, and are exact in the end."""
    one, watched = campaign.watched(campaign.recalculate())
    if one["state"] != "live":
        raise WrongAnswer(f"recalculation: {one['state']}, {one['reason']}")
    seconds = watched[-1][0]
    campaign.row(
        "recalculation",
        "of everything, until it is live",
        seconds,
        "s",
        f"{one['events_read']:,} activities read",
    )
    estimates = [
        (left, max(0.5, seconds - at))
        for at, progress, left in watched
        if progress >= 0.1 and left is not None and at < seconds - 1
    ]
    if estimates:
        wrong = max(
            max(max(0.5, left) / right, right / max(0.5, left)) for left, right in estimates
        )
        campaign.row(
            "progress",
            "estimated time left, from 10 % on, at worst",
            wrong,
            "times",
            f"{len(estimates)} estimates",
            at_most=2,
        )


def new_rule(campaign: Campaign) -> None:
    """A journey with rules that no journey had, while activities come in; and an edit that brings new rules to one that is there."""
    began = time.monotonic()
    campaign.group.apply(made.funnel(BY_URL))
    campaign.until_live({BY_URL})
    campaign.row(
        "new rules",
        "until a journey is live",
        time.monotonic() - began,
        "s",
        "while activities come in",
    )


def cancel(campaign: Campaign) -> None:
    """A recalculation of everything is cancelled."""
    id_ = campaign.recalculate()
    campaign.until(lambda: campaign.recalculation(id_)["state"] != "planned", "for it to begin")
    began = time.monotonic()
    campaign.group.http.post(f"/api/recalculations/{id_}/cancel").raise_for_status()
    campaign.until(lambda: campaign.recalculation(id_)["state"] in OVER, "for it to be cancelled")
    campaign.until_live()
    campaign.row(
        "cancel",
        "until all journeys are live",
        time.monotonic() - began,
        "s",
        campaign.recalculation(id_)["state"],
        at_most=5,
    )


def pressure(campaign: Campaign) -> None:
    """A journey with new rules while more comes in than a worker can do: it must not wait until that is over."""
    over = threading.Event()
    producer = threading.Thread(target=lambda: campaign.flood(over), daemon=True)
    before = campaign.sent["activities"]
    producer.start()
    began = time.monotonic()
    try:
        campaign.group.apply(made.funnel(UNDER_PRESSURE))
        campaign.until_live({UNDER_PRESSURE})
        seconds, flooded = time.monotonic() - began, campaign.sent["activities"] - before
        lag = campaign.get("/api/health")["lag"]
    finally:
        over.set()
        producer.join()
    against = f"{flooded:,} activities sent meanwhile, of which {lag or 0:,} were not done when it was live"
    what = "until a journey is live, under pressure"
    campaign.row("new rules", what, seconds, "s", against)
    campaign.settled()
    campaign.by_formula()


def many(campaign: Campaign) -> None:
    """Journeys are put by API, one after the other."""
    took, sections = list[float](), campaign.size.journeys
    began = time.monotonic()
    for number in range(campaign.size.many):
        before = time.monotonic()
        campaign.group.apply(made.one_of_many(number, sections))
        took.append((time.monotonic() - before) * 1000)
    if not took:
        return
    campaign.row(
        "many",
        "answer to a PUT, median",
        statistics.median(took),
        "ms",
        f"{len(took):,} journeys",
        at_most=50.0,
    )
    campaign.row("many", "answer to a PUT, 99 of 100", sorted(took)[len(took) * 99 // 100], "ms")
    campaign.until_live()
    seconds = time.monotonic() - began
    rounds = len(campaign.get("/api/recalculations?limit=1000")["recalculations"])
    against = f"over {campaign.sent['activities']:,} activities; {rounds} recalculations so far"
    campaign.row("many", "from the first PUT until all are live", seconds, "s", against)
    for number in range(campaign.size.many):
        found = campaign.converted(f"many-{number:04d}")
        right = [0, 0] if number % 10 else campaign.converted(f"section-{number // 10 % sections}")
        if found != right:
            raise WrongAnswer(f"many-{number:04d}: {found}, it must be {right}")


def end(campaign: Campaign) -> None:
    """The rest of the traffic; then the funnel's numbers are those of the formula, whichever rules count it."""
    live = campaign.live
    assert live is not None
    live.join()
    if live.failed is not None:
        raise live.failed
    campaign.settled()
    right = campaign.by_formula()
    if campaign.fallen:
        raise WrongAnswer(f"numbers fell {len(campaign.fallen)} times: {campaign.fallen[:3]}")
    campaign.row(
        "numbers",
        "of the funnel, by formula",
        float(right[0]),
        "contacts",
        f"{right}, by two sets of rules; seen {campaign.looks} times without a lag on the way",
    )


def guard(campaign: Campaign) -> None:
    """The visible results are made too large: what is rebuilt has far fewer contacts, and must wait for somebody's yes."""
    group, right = campaign.group, campaign.traffic.reached()
    if group.embedded:
        campaign.say(
            "guard: left out, since there a worker that was changed while it was stopped shows nothing of it"
        )
        return
    group.workers["a"].stop(PATIENCE_SECONDS)
    for partition in range(group.settings.partitions):
        inflate(group.directory / "data-a" / f"partition-{partition}")
    group.start("a")
    campaign.settled()
    visible = campaign.converted(FUNNEL)
    if not visible[0] or visible[0] < 1.5 * right[0]:
        raise WrongAnswer(f"{visible} contacts are visible, it should be many more than {right}")
    id_, began = campaign.recalculate(), time.monotonic()

    def waits() -> bool:
        found = campaign.recalculation(id_)
        return found["phase"] == "confirming" or found["state"] in OVER

    campaign.until(waits, "for the recalculation to wait")
    one, now = campaign.recalculation(id_), campaign.converted(FUNNEL)
    if one["phase"] != "confirming" or now != visible:
        raise WrongAnswer(f"{one['state']}, {one['phase']}; {now} are visible, not {visible}")
    rows = [row for row in one["differences"] if (row["journey"], row["stage"]) == (FUNNEL, 1)]
    if [row["rebuilt"] for row in rows] != right[:1]:
        raise WrongAnswer(f"{rows} differ, {right[:1]} must be rebuilt")
    against = f"{visible[0]:,} visible, {right[0]:,} rebuilt"
    seconds = time.monotonic() - began
    campaign.row("guard", "until it waits for a confirmation", seconds, "s", against)
    group.http.post(f"/api/recalculations/{id_}/confirm").raise_for_status()
    campaign.until(lambda: campaign.recalculation(id_)["state"] == "live", "for it to be live")
    campaign.settled()
    campaign.by_formula()


def inflate(path: Path) -> None:
    """Gives each contact of a stopped worker's partition a hit of each rule, long before all others."""
    ledger = Ledger(path, Memory(16))
    try:
        entries = ledger.scan(records.EVIDENCE)
        holders = [(key, value) for key, value in entries if records.pointer_of(value) is None]
        known = [(key, *records.decode_evidence(value)) for key, value in holders]
        rules = sorted({rule for _, evidence, _ in known for rule in evidence.hits})
        for number, (key, evidence, has_identity) in enumerate(known):
            for rule in rules:
                evidence.add(rule, hit(0, number.to_bytes(8, "big")))
            ledger.write([(key, records.encode_evidence(evidence, has_identity))])
        views = [(space, prefix_end(space)) for space in (b"v", b"x", b"t")]
        ledger.write([], views)  # they are built again
    finally:
        ledger.close()


def recalculated(campaign: Campaign) -> None:
    """Recalculated once more when all is there: nobody changes."""
    one, watched = campaign.watched(campaign.recalculate())
    if one["state"] != "live" or one["changed"]:
        raise WrongAnswer(
            f"recalculation: {one['state']}, {one['changed']} contacts changed, none should"
        )
    campaign.row(
        "recalculation", "of everything at rest", watched[-1][0], "s", "no contact changed"
    )


def check(campaign: Campaign) -> None:
    """`waypost check` over everything."""
    _check(campaign, "all", [], at_most=120.0)


def sample(campaign: Campaign) -> None:
    """The same of a part of the persons."""
    _check(campaign, "sample of 5 %", ["--sample", "5%"])


def _check(campaign: Campaign, name: str, flags: list[str], **promise: float) -> None:
    shown = {journey["id"] for journey in campaign.get("/api/journeys")["journeys"]}
    named = sorted(
        id_ for id_ in shown if not id_.startswith("many-")
    )  # those are compared with others' numbers
    seconds, peak_mib, found = checked(campaign.group, [*flags, *named])
    if found["differences"]:
        first = found["differences"][:3]
        raise WrongAnswer(
            f"check, {name}: {len(found['differences'])} differences, for example {first}"
        )
    against = f"{found['records']:,} records, {len(found['journeys'])} journeys, {found['compared']:,} compared"
    if found["sample"]:
        against += f"; fewer than {found['sample']['fewer_than']:.2%} of persons differ"
    campaign.row("check", f"{name}, time", seconds, "s", against, **promise)
    campaign.row(
        "check", f"{name}, memory, peak", peak_mib, "MiB", "all its processes", at_most=1536.0
    )


def checked(group: Group, flags: list[str]) -> tuple[float, float, dict[str, Any]]:
    """`(seconds, MiB at most, what it printed)` of the command."""
    argv = [
        sys.executable,
        "-m",
        "console",
        "check",
        "--json",
        "--timeout",
        f"{PATIENCE_SECONDS:g}",
        *flags,
    ]
    environ = group.environ(WAYPOST_CONSOLE_PORT=str(group.port))
    began, peak = time.monotonic(), 0
    with (
        (group.directory / "check.log").open("w+") as errors,
        (group.directory / "check.json").open("w+") as output,
    ):
        process = subprocess.Popen(argv, env=environ, cwd=ROOT, stdout=output, stderr=errors)
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                tree = [
                    psutil.Process(process.pid),
                    *psutil.Process(process.pid).children(recursive=True),
                ]
                peak = max(peak, sum(_own_bytes(one) for one in tree))
            time.sleep(0.1)
        seconds = time.monotonic() - began
        output.seek(0)
        errors.seek(0)
        text = output.read()
        if process.returncode not in (0, 1) or not text:
            raise WrongAnswer(f"check ended with {process.returncode}: {errors.read()[-2000:]}")
    return seconds, peak / 2**20, json.loads(text)


def _own_bytes(process: psutil.Process) -> int:
    """Memory of a process, pages that it shares counted once over all."""
    with contextlib.suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0


CASES: dict[str, Callable[[Campaign], None]] = {
    "load": load,
    "recalculation": recalculation,
    "new rules": new_rule,
    "cancel": cancel,
    "end": end,
    "check": check,
    "sample": sample,
    "recalculated": recalculated,
    "guard": guard,
    "many": many,
    "pressure": pressure,
}
"""In this order: the first begins the traffic, which goes on until `end`."""


@contextlib.contextmanager
def broker(kind: str, directory: Path) -> Iterator[str]:
    """A broker of its own, *kind* "kafka" (with unusual settings) or "embedded"; its address."""
    if kind == "embedded":
        with EmbeddedBroker(directory / "broker") as embedded:
            yield embedded.bootstrap
        return
    node = KafkaBroker(
        directory / "kafka", heap_mb=768, session_ms=9000, lasting=True, properties=SERVER
    )
    try:
        yield node.start()
    finally:
        node.kill()


def run(
    kind: str, directory: Path, size: Size, say: Say, cases: Collection[str] = ()
) -> tuple[list[Row], str | None]:
    """Plays the campaign. What was measured, and what was wrong: after that nothing more is done."""
    with broker(kind, directory) as bootstrap:
        settings = {
            "session_timeout_seconds": SESSION_SECONDS,
            "heartbeat_seconds": 1,
            "partitions": 8,
        }
        embedded = kind == "embedded"
        with Group(
            bootstrap, "scale.", directory / "group", embedded=embedded, **settings
        ) as group:
            group.start("a")
            group.open_console()
            traffic = Traffic(size.persons, size.activities, made.began_a_month_ago())
            campaign = Campaign(group, size, traffic, say)
            for name, case in CASES.items():
                if not cases or name in cases:
                    try:
                        case(campaign)
                    except (AssertionError, httpx.HTTPError) as error:
                        return campaign.rows, f"{name}: {error!r}"
            return campaign.rows, None
