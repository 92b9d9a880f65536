"""Growth: how the worker's cost grows: with contacts, journeys, rules that an activity meets, merges, hits. Each case is a curve, a row a point."""

from __future__ import annotations

from functools import partial

from tests.bench import data
from tests.bench.cases import STAGES_OF_MANY, Bench
from tests.bench.ground import Ground, Run, WrongAnswer
from tests.bench.report import Row

CONTACTS = (10_000, 100_000, 1_000_000, 10_000_000)
JOURNEYS = (1, 10, 100, 1000)
RULES = (0, 1, 2, 5, 10)
MERGED = (0.0, 0.1, 0.25, 0.5)
HITS = (10, 3500)  # past 4,096 a person is marked, and counted in a cell of its own
ON_ONE_RULE = (1, 50, 200, 2000)
NEW_CONTACTS, MOST_CHANGES = 20_000, 4_000_000  # of the case decisions: as many of the first as come to so many changes
ACTIVITIES = 1_000_000
SMOOTH = 200_000
"""Of the curves that need fewer."""


def contacts(bench: Bench) -> list[Row]:
    """Dense activities of ever more contacts, each as many as the others; at least one of each."""
    rows = []
    for n in CONTACTS[:: bench.every]:
        many = bench.scaled(n)
        ground = bench.ground(f"contacts-{n}")
        ground.apply([data.journey()])
        run, disk_bytes = _run(bench, ground, "dense", max(bench.scaled(ACTIVITIES), many), many, in_turn=True)
        rows.append(_row("contacts", f"{many:,} contacts", run, f"; peak {run.peak_mib:.0f} MiB; {disk_bytes / many:.0f} bytes a contact on disk"))
    return [
        *rows,
        Row("contacts", f"memory of the worker, peak, {many:,} contacts", run.peak_mib, "MiB", aim=500, less=True),
        Row("contacts", "on disk, a contact", disk_bytes / many, "bytes", "while it runs", aim=120, less=True),
    ]


def journeys(bench: Bench) -> list[Row]:
    """Sparse activities under ever more journeys of ten stages; what the others ask is in the same fields of the same types, and nothing meets it."""
    rows, count = [], bench.scaled(SMOOTH)
    for n in JOURNEYS[:: bench.every]:
        many = min(n, bench.many_journeys)
        ground = bench.ground(f"curve-{n}-journeys")
        ground.apply([data.journey(stages=STAGES_OF_MANY), *(data.other_journey(i, STAGES_OF_MANY) for i in range(1, many))])
        ground.expected.stages = STAGES_OF_MANY
        ground.prepare(many)
        run, _ = _run(bench, ground, "sparse", count, max(1, count // 10))
        rows.append(_row("journeys curve", f"{many:,} journeys", run))
    return rows


def rules(bench: Bench) -> list[Row]:
    """Activities that meet ever more rules at once; those past the first are in one stage of a journey of their own."""
    rows, count = [], bench.scaled(SMOOTH)
    for met in RULES[:: bench.every]:
        ground = bench.ground(f"rules-{met}")
        ground.apply([data.journey(), *([data.also_met(met - 1)] if met > 1 else [])])
        run, _ = _run(bench, ground, "dense" if met else "none", count, max(1, count // 10))
        rows.append(_row("rules", f"{met} rules met", run))
    return rows


def merges(bench: Bench) -> list[Row]:
    """Dense activities, and ever more of the contacts merged in pairs, most of which lie in two partitions, so that one hands over to the other."""
    rows, count = [], bench.scaled(SMOOTH)
    many = max(2, count // 10)
    for share in MERGED[:: bench.every]:
        ground = bench.ground(f"merges-{share:g}")
        ground.apply([data.journey()])
        ground.merge([(f"c-{2 * i:06d}", f"c-{2 * i + 1:06d}") for i in range(int(many * share / 2))])
        run, _ = _run(bench, ground, "dense", count, many)
        rows.append(_row("merges", f"{share:.0%} of {many:,} contacts merged", run))
    return rows


def hits(bench: Bench) -> list[Row]:
    """Each activity is another hit on the same rules of few contacts, until each has so many hits on each rule."""
    rows, costs, count = [], [], bench.scaled(SMOOTH)
    for most in HITS:
        many = max(1, count // most // data.STAGES)
        ground = bench.ground(f"hits-{most}")
        ground.apply([data.journey()])
        run, _ = _run(bench, ground, "dense", count, many, in_turn=True)
        costs.append(run.cpu_per_million)
        rows.append(_row("hits", f"up to {count // many // data.STAGES:,} hits on a rule, {many:,} contacts", run))
    return [*rows, Row("hits", "CPU of many against few", costs[-1] / costs[0], "times", at_most=3.0)]


def decisions(bench: Bench) -> list[Row]:
    """One activity of each of many new contacts, and ever more journeys on the rule that it meets: each contact changes a stage of all of them."""
    rows = []
    for n in ON_ONE_RULE[:: bench.every]:
        many, contacts = min(n, bench.many_journeys * 2), bench.scaled(min(NEW_CONTACTS, MOST_CHANGES // n))
        ground = bench.ground(f"decisions-{n}")
        ground.apply([data.journey(stages=1), *({**data.journey(stages=1), "id": f"same-{i:04d}"} for i in range(1, many))])
        ground.expected.stages = 1
        with ground.worker() as worker:
            ground.until(partial(worker.built, many, ground.settings.partitions), "every journey is built", 0.3)
            ground.load(data.first_steps(contacts), contacts)
            run = ground.play(worker)
            ground.verify(worker)
            if many > 1 and worker.cells(f"same-{many - 1:04d}") != ground.expected.cells():
                raise WrongAnswer(f"{ground.name}: the numbers of the last journey are wrong")
            peak_mib = worker.peak_mib()
        bench.forget(ground)
        changes = contacts * many
        said = f"{contacts:,} new contacts, {run.per_second:,.0f}/s; {run.cpu_seconds * 1e6 / changes:.1f} CPU µs a change"
        rows += [
            Row("decisions", f"{many:,} journeys on one rule, stage changes", changes / run.seconds, "/s", said),
            Row("decisions", f"{many:,} journeys on one rule, memory of the worker, peak", peak_mib, "MiB"),
        ]
    return rows


def _run(bench: Bench, ground: Ground, kind: str, count: int, contacts: int, *, in_turn: bool = False) -> tuple[Run, int]:
    """A worker over these activities, every number verified, and bytes of its data directory. What *ground* wrote goes: the next needs the room."""
    ground.load(data.activities(kind, count, contacts, in_turn=in_turn), count)
    with ground.worker() as worker:
        run = ground.play(worker)
        ground.verify(worker)
        disk_bytes = ground.disk_bytes()
    bench.forget(ground)
    return run, disk_bytes


def _row(case: str, point: str, run: Run, more: str = "") -> Row:
    return Row(case, point, run.cpu_per_million, "s/M", f"{run.records:,} activities, {run.per_second:,.0f}/s{more}")


CASES = {"contacts": contacts, "journeys-curve": journeys, "rules": rules, "merges": merges, "hits": hits, "decisions": decisions}
