"""Cases of recalculation: how fast the log is read again, how long until it is live, what the living notice, and how fast an edit shows."""

from __future__ import annotations

import json
import threading
import time

from confluent_kafka import Producer

from schemas.recalculation import LIVE
from streams.settings import librdkafka_config
from tests.bench import cases, data
from tests.bench.cases import Bench, paced, percentile, until_seen
from tests.bench.ground import Ground, Worker, WrongAnswer
from tests.bench.report import Row

LIVE_RATE = 2000
THROTTLE = 20_000.0
MINUTES_SECONDS = 300.0


def replay(bench: Bench) -> list[Row]:
    """Reading and matching the sparse log as the job does, against a bare librdkafka consumer on the same topic, one after the other."""
    ground = bench.loaded("sparse")
    total, rates = ground.expected.activities, {}
    for kind in ("librdkafka", "job", "librdkafka", "job"):
        bench.progress(f"replay: {kind}", 0, 1)
        rates[kind] = max(rates.get(kind, 0.0), cases.peer_run(bench, kind, ground.topic("activities"), total).per_second)
    said, bare = f"{total:,} sparse activities, the better of two runs", rates["librdkafka"]
    return [
        Row("replay", "activities read and matched a second", rates["job"], "/s", said, at_least=350_000, aim=700_000),
        Row("replay", "of what a bare consumer reads", rates["job"] / bare, "times", f"{bare:,.0f}/s", at_least=0.5, aim=0.8),
    ]


def recalculation(bench: Bench) -> list[Row]:
    """A full recalculation of the dense log beside its worker: alone, then with live activities, unthrottled and throttled."""
    ground = bench.played("dense")
    rows = []
    with ground.worker() as worker, ground.job():
        ground.until(lambda: worker.live(ground.settings.partitions) and worker.built(1, ground.settings.partitions), "the worker serves")
        time.sleep(6.0)  # the job becomes a member of its group
        seconds = _run(bench, ground, "alone", None)
        ground.verify(worker)
        said = f"{ground.expected.activities:,} activities, {len(ground.expected.hits):,} contacts, worker and job on the same cores"
        rows.append(Row("recalculation", "until it is live", seconds, "s", said, at_most=60 * max(bench.scale, 0.05)))
        for name, throttle, most_ms in (("unthrottled", None, 2000.0), ("throttled", THROTTLE, 500.0)):
            rows.append(_beside(bench, ground, worker, name, throttle, most_ms))
    return rows


def _run(bench: Bench, ground: Ground, name: str, throttle: float | None) -> float:
    """Seconds from the wish to the word `live`."""
    began = time.monotonic()
    ground.plan(name, throttle)
    while True:
        one = ground.recalculation(name)
        if one is not None:
            bench.progress(f"recalculation, {name}: {one.state}", one.progress, 1.0)
            if one.state == LIVE:
                if one.changed:
                    raise WrongAnswer(f"recalculation: {one.changed} contacts changed, none should")
                return time.monotonic() - began
            if one.over:
                raise WrongAnswer(f"recalculation: {one.state}, {one.reason}")
        if time.monotonic() - began > MINUTES_SECONDS:
            raise WrongAnswer(f"recalculation: not live after {MINUTES_SECONDS:.0f} s; see {ground.directory / 'job.log'}")
        time.sleep(0.2)


def _beside(bench: Bench, ground: Ground, worker: Worker, name: str, throttle: float | None, most_ms: float) -> Row:
    """The delay of live activities, sent all the time while a recalculation goes on."""
    took: list[float] = []
    running = threading.Thread(target=lambda: took.append(_run(bench, ground, name, throttle)))
    seconds, contacts = max(4.0, 20.0 * bench.scale), bench.scaled(30_000) + len(name)
    running.start()
    said, looks, _ = paced(bench, ground, worker, seconds, contacts, LIVE_RATE)
    for made in data.activities("dense", int(LIVE_RATE * seconds), contacts):
        ground.expected.take(made)
    running.join(MINUTES_SECONDS)
    if not took:
        raise WrongAnswer(f"recalculation {name} did not end")
    ground.verify(worker)
    delays = sorted(until_seen(said["taken"], looks))
    covered = min(1.0, took[0] / seconds)
    text = f"{LIVE_RATE:,}/s for {seconds:.0f} s, {covered:.0%} of it beside the recalculation ({took[0]:.1f} s); "
    text += f"median {percentile(delays, 0.5):.0f} ms"
    return Row("recalculation", f"live latency meanwhile, {name}, p99", percentile(delays, 0.99), "ms", text, at_most=most_ms)


def reprojection(bench: Bench) -> list[Row]:
    """An edit without new rules over a million contacts: until all partitions show it; the old version is readable all the time."""
    ground = bench.ground("memory")
    contacts = bench.scaled(1_000_000)
    if not ground.played:
        cases.memory(bench)
    edited = {**data.journey(), "version": 2, "saved_at": 0, "stages": data.journey()["stages"][:4]}
    with ground.worker() as worker:
        ground.until(lambda: worker.built(1, ground.settings.partitions), "the first version is there")
        producer = Producer(librdkafka_config(ground.settings))
        began = time.monotonic()
        producer.produce(ground.topic("journeys"), json.dumps(edited).encode(), data.JOURNEY, partition=0)
        producer.flush(30)
        asked = 0
        while True:
            shown = json.loads(worker.ask("/internal/journeys") or b"{}")["partitions"].values()
            versions = [partition["journeys"].get(data.JOURNEY, [None])[0] for partition in shown]
            if None in versions:
                raise WrongAnswer("reprojection: the journey had numbers and has none")
            asked += 1
            if len(versions) == ground.settings.partitions and set(versions) == {2}:
                break
            if time.monotonic() - began > MINUTES_SECONDS:
                raise WrongAnswer(f"reprojection: not shown after {MINUTES_SECONDS:.0f} s")
            time.sleep(0.05)
        seconds = time.monotonic() - began
    said = f"{contacts:,} contacts with evidence; asked {asked} times meanwhile, always a version there"
    share = max(bench.scale, 0.05)
    return [Row("reprojection", "until all partitions show the edit", seconds, "s", said, at_most=20 * share, aim=2 * share)]


CASES = {"replay": replay, "recalculation": recalculation, "reprojection": reprojection}
