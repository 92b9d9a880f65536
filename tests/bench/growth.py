"""Growth: how the worker's cost grows: with contacts, journeys, rules that an activity meets, merges, hits. Each case is a curve, a row a point."""

from __future__ import annotations

from tests.bench import data
from tests.bench.cases import STAGES_OF_MANY, Bench
from tests.bench.ground import Run
from tests.bench.report import Row

CONTACTS = (10_000, 100_000, 1_000_000, 10_000_000)
JOURNEYS = (1, 10, 100, 1000)
RULES = (0, 1, 2, 5, 10)
MERGED = (0.0, 0.1, 0.25, 0.5)
HITS = (10, 3500)  # past 4,096 a person is marked, and counted in a cell of its own
ACTIVITIES = 1_000_000
SMOOTH = 200_000
"""Of the curves that need fewer."""


def contacts(bench: Bench) -> list[Row]:
    """Dense activities of ever more contacts, each as many as the others; at least one of each."""
    rows = []
    for n in CONTACTS:
        many = bench.scaled(n)
        count = max(bench.scaled(ACTIVITIES), many)
        ground = bench.ground(f"contacts-{n}")
        ground.apply([data.journey()])
        ground.load(data.activities("dense", count, many, in_turn=True), count)
        with ground.worker() as worker:
            run = ground.play(worker)
            ground.verify_numbers(worker)
            disk = ground.disk_bytes() / many
        rows += _rows("contacts", f"{many:,} contacts", run, f"peak {run.peak_mib:.0f} MiB; {disk:.0f} bytes a contact on disk")
        bench.forget(ground)
    return rows


def journeys(bench: Bench) -> list[Row]:
    """Sparse activities under ever more journeys of ten stages; what the others ask is in the same fields of the same types, and nothing meets it."""
    rows, count = [], bench.scaled(SMOOTH)
    for n in JOURNEYS:
        many = min(n, bench.many_journeys)
        ground = bench.ground(f"curve-{n}-journeys")
        ground.apply([data.journey(stages=STAGES_OF_MANY), *(data.other_journey(i, STAGES_OF_MANY) for i in range(1, many))])
        ground.expected.stages = STAGES_OF_MANY
        ground.prepare(many)
        ground.load(data.activities("sparse", count, max(1, count // 10)), count)
        with ground.worker() as worker:
            run = ground.play(worker)
            ground.verify(worker)
        rows += _rows("journeys curve", f"{many:,} journeys", run)
        bench.forget(ground)
    return rows


def rules(bench: Bench) -> list[Row]:
    """Activities that meet ever more rules at once; those past the first are in one stage of a journey of their own."""
    rows, count = [], bench.scaled(SMOOTH)
    for met in RULES:
        ground = bench.ground(f"rules-{met}")
        ground.apply([data.journey(), *([data.also_met(met - 1)] if met > 1 else [])])
        ground.load(data.activities("dense" if met else "none", count, max(1, count // 10)), count)
        with ground.worker() as worker:
            run = ground.play(worker)
            ground.verify(worker)
        rows += _rows("rules", f"{met} rules met", run)
        bench.forget(ground)
    return rows


def merges(bench: Bench) -> list[Row]:
    """Dense activities, and ever more of the contacts merged in pairs, most of which lie in two partitions, so that one hands over to the other."""
    rows, count = [], bench.scaled(SMOOTH)
    for share in MERGED:
        many = max(2, count // 10)
        ground = bench.ground(f"merges-{share:g}")
        ground.apply([data.journey()])
        ground.load(data.activities("dense", count, many), count)
        ground.merge([(f"c-{2 * i:06d}", f"c-{2 * i + 1:06d}") for i in range(int(many * share / 2))])
        with ground.worker() as worker:
            run = ground.play(worker)
            ground.verify(worker)
        rows += _rows("merges", f"{share:.0%} of {many:,} contacts merged", run)
        bench.forget(ground)
    return rows


def hits(bench: Bench) -> list[Row]:
    """Each activity is another hit on the same rules of few contacts, until each has so many hits on each rule."""
    rows, costs = [], []
    count = bench.scaled(SMOOTH)
    for most in HITS:
        many = max(1, count // most // data.STAGES)
        ground = bench.ground(f"hits-{most}")
        ground.apply([data.journey()])
        ground.load(data.activities("dense", count, many, in_turn=True), count)
        with ground.worker() as worker:
            run = ground.play(worker)
            ground.verify(worker)
        costs.append(run.cpu_per_million)
        rows += _rows("hits", f"up to {count // many // data.STAGES:,} hits on a rule, {many:,} contacts", run)
        bench.forget(ground)
    return [*rows, Row("hits", "CPU of many against few", costs[-1] / costs[0], "times", at_most=3.0)]


def _rows(case: str, point: str, run: Run, more: str = "") -> list[Row]:
    said = f"{run.records:,} activities, {run.per_second:,.0f}/s"
    return [Row(case, point, run.cpu_per_million, "s/M", said + (f"; {more}" if more else ""))]


CASES = {"contacts": contacts, "journeys-curve": journeys, "rules": rules, "merges": merges, "hits": hits}
