"""Progression: what a recalculation under way does next, how far each of its phases is, and how long it will still take. Pure; knows no clock.

`advance` says the next step (design, section 6, recalculation). Every step is idempotent: two drivers that act at the same time do no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from schemas.journey import Journey
from schemas.recalculation import (
    BUILDING,
    COMPARING,
    CONFIRMING,
    FAILED,
    JOINING,
    LIVE,
    MAX_AMOUNT,
    MAX_REASON,
    MAX_WHOLE,
    READING,
    SWITCHING,
    JobReport,
    Phase,
    PhaseProgress,
    Recalculation,
    WorkerReport,
)

from .comparison import Tolerance, reason, unexplained
from .recalculation import Reports, Table

MAX_HOPS = 16  # a join follows so many pointers at most, for all practical purposes: their number grows with the logarithm of the merges
WINDOW_MS = 5000  # speeds are measured over so long
MEASURED_SHARE, LEARNED_SHARE = 0.2, 0.5
"""Of a phase, from which on its own speed counts alone: where no recalculation before tells, and where
one does."""
TIMED: tuple[Phase, ...] = (READING, JOINING, COMPARING, BUILDING)
COSTS: dict[str, float] = {READING: 4e-6, JOINING: 8e-6, COMPARING: 4e-6, BUILDING: 8e-6}
"""Seconds for an activity, a message, a contact, where no recalculation before tells: of two cores
(docs/performance.md)."""
MIN_LEARNED = 1000  # of a phase's total, for its speed to tell anything


@dataclass(slots=True)
class Flush:
    """What a driver remembers of a recalculation under way: how far it is with waiting for rebuilt evidence that aliases send on, where each round
    takes every join one pointer further; and what speeds are measured by."""

    rounds: int = 0
    ends: Mapping[int, int] | None = None
    rate: list[tuple[int, int]] = field(
        default_factory=list
    )  # (milliseconds, records read), of the last seconds
    joined_before: tuple[float, float] | None = (
        None  # share and seconds of joining, when it went on alone
    )
    joined_from: dict[int, int] = field(
        default_factory=dict
    )  # by partition, where its rebuilt evidence begins
    seconds: dict[str, float] = field(default_factory=dict)  # that phases went on
    at_ms: int | None = None  # when it was looked at last


def costs(table: Table) -> dict[str, float]:
    """Return the seconds that each phase took for each of its total, by the newest recalculation that tells; without those that nobody tells."""
    found: dict[str, float] = {}
    for one in table.all():
        for phase in one.phases if one.state == LIVE else ():
            if phase.total >= MIN_LEARNED and phase.seconds > 0:
                found[phase.name] = phase.seconds / phase.total
    return found


def advance(
    one: Recalculation,
    reports: Reports,
    partitions: int,
    flush: Flush,
    handoff_ends: Mapping[int, int],
    now_ms: int,
    tolerance: Tolerance = Tolerance(),
    learned: Mapping[str, float] = {},
) -> Recalculation:
    """*one*, which is filling or switching, as it stands now: to be written, if it differs.

    *handoff_ends*: where the handoffs of each partition end, asked for after the reports were read. *flush* is the driver's own, and remembers.
    *learned*: see `costs`.
    """
    workers = [reports.worker(one.id, p) for p in range(partitions)]
    jobs = [reports.job(one.id, p) for p in range(partitions)]
    if one.state == SWITCHING:
        if one.switched_at is None:
            return one if one.confirmed_at is None else _switched(one, now_ms)
        after = _live(one, workers, now_ms)
    else:
        error = next((job.error for job in jobs if job is not None and job.error), None)
        if error is not None:
            return one.but(state=FAILED, phase=None, finished_at=now_ms, reason=error)
        one = _read_so_far(one, workers, jobs, flush, now_ms)
        after = (
            one
            if one.phase == COMPARING
            else _joined(one, reports, workers, jobs, flush, handoff_ends)
        )
        if one.phase == COMPARING:
            after = _compared(one, reports, partitions, tolerance, now_ms)
    return _timed(after, one.phase, reports, workers, jobs, flush, now_ms, learned)


# -- steps ------------------------------------------------------------------------------------------------------------------


def _joined(
    one: Recalculation,
    reports: Reports,
    workers: list[WorkerReport | None],
    jobs: list[JobReport | None],
    flush: Flush,
    handoff_ends: Mapping[int, int],
) -> Recalculation:
    """*one* in the phase that it is in by what is read and joined: when all is, contacts are compared."""  # fmt: skip
    if not all(w is not None and _read(w, job) for w, job in zip(workers, jobs, strict=True)):
        return one.but(phase=READING) if one.phase is None else one
    one = one.but(phase=JOINING)
    written = reports.written(one.id)
    if any(w is None or w.joined < written.get(p, 0) for p, w in enumerate(workers)):
        return one
    if flush.ends is not None and any(
        w is None or w.handed < flush.ends[p] for p, w in enumerate(workers)
    ):
        return one
    still = flush.ends is not None and all(
        handoff_ends[p] <= flush.ends[p] for p in range(len(workers))
    )
    if still or flush.rounds >= MAX_HOPS:
        return one.but(phase=COMPARING)
    flush.rounds, flush.ends = flush.rounds + 1, dict(handoff_ends)
    return one


def _compared(
    one: Recalculation, reports: Reports, partitions: int, tolerance: Tolerance, now_ms: int
) -> Recalculation:
    """*one*, switched to when all partitions have compared and found nothing that somebody has to confirm."""
    found = [
        report for p in range(partitions) if (report := reports.comparison(one.id, p)) is not None
    ]
    if len(found) < partitions:
        return one
    differences = unexplained(found, tolerance)
    if not differences:
        return _switched(one, now_ms)
    return one.but(
        state=SWITCHING,
        phase=CONFIRMING,
        differences=differences,
        reason=reason(differences)[:MAX_REASON],
        events_per_second=None,
    )


def _switched(one: Recalculation, now_ms: int) -> Recalculation:
    return one.but(
        state=SWITCHING, phase=BUILDING, switched_at=now_ms, reason=None, events_per_second=None
    )


def _live(one: Recalculation, workers: list[WorkerReport | None], now_ms: int) -> Recalculation:
    """*one*, live when all partitions have built all views."""
    said = [w for w in workers if w is not None]
    if len(said) < len(workers) or not all(w.shown for w in said):
        return one
    changed = _whole(sum(w.changed for w in said))
    return one.but(
        state=LIVE, phase=None, finished_at=now_ms, changed=changed, events_per_second=None
    )


def _read(worker: WorkerReport, job: JobReport | None) -> bool:
    """Whether the log of a partition was read as far as the worker has not recorded by itself."""
    return worker.recording_from <= worker.log_begin or (
        job is not None and job.read >= worker.recording_from
    )


def taken_back(
    one: Recalculation, table: Table, reports: Reports, journeys: Iterable[Journey], partitions: int
) -> bool:
    """Return True when all partitions show views that were built since *one* was cancelled: they have announced what it had changed."""
    for journey in journeys:
        source = table.source(journey)
        if source is None or table.rules(one.id).keys().isdisjoint(source.keys):
            continue
        common = reports.common(journey.id, partitions)
        if common is None or common < (journey.version or 0, source.generation):
            return False
    return True


# -- how far ----------------------------------------------------------------------------------------------------------------


def _read_so_far(
    one: Recalculation,
    workers: list[WorkerReport | None],
    jobs: list[JobReport | None],
    flush: Flush,
    now_ms: int,
) -> Recalculation:
    """*one* with how much of the log is read, and how fast."""
    total = read = 0
    complete = True
    for worker, job in zip(workers, jobs, strict=True):
        if worker is None:
            complete = False
            continue
        begin = worker.log_begin if job is None else job.begin
        length = max(0, worker.recording_from - begin)
        total += length
        read += 0 if job is None else min(length, max(0, max(job.read, job.seen) - begin))
    rate = _rate(flush.rate, now_ms, read)
    return one.but(
        events_read=_whole(read),
        events_total=_whole(total) if complete else None,
        events_per_second=None if rate is None else min(round(rate, 1), MAX_AMOUNT),
    )


def _rate(seen: list[tuple[int, int]], now_ms: int, amount: int) -> float | None:
    """How much is done a second, over the last seconds, now that *amount* is."""
    seen.append((now_ms, amount))
    while len(seen) > 2 and seen[0][0] < now_ms - WINDOW_MS:
        seen.pop(0)
    (then_ms, then), (at_ms, now) = seen[0], seen[-1]
    return max(0, now - then) * 1000 / (at_ms - then_ms) if at_ms > then_ms else None


def _timed(
    one: Recalculation,
    phase: str | None,
    reports: Reports,
    workers: list[WorkerReport | None],
    jobs: list[JobReport | None],
    flush: Flush,
    now_ms: int,
    learned: Mapping[str, float],
) -> Recalculation:
    """*one* with how far each phase is, and how long all of it will still take. *phase*: what went on until now."""  # fmt: skip
    if flush.at_ms is None:
        flush.seconds = {known.name: known.seconds for known in one.phases}
    elif phase in TIMED:
        flush.seconds[phase] = flush.seconds.get(phase, 0.0) + max(0, now_ms - flush.at_ms) / 1000
    flush.at_ms = now_ms
    at = _number(one)
    totals = _totals(one, reports, workers, jobs, flush)
    shares = _shares(one, at, workers, totals, flush)
    phases = tuple(
        PhaseProgress(name, round(shares[name], 4), min(round(flush.seconds.get(name, 0.0), 1), MAX_AMOUNT), _whole(round(totals[name])))
        for name in TIMED
    )  # fmt: skip
    one = one.but(phases=phases)
    if one.state == LIVE:
        return one.but(progress=1.0, eta_seconds=0.0)
    unknown = at == 0 and not shares[READING] and totals[READING] and READING not in learned
    if one.phase == CONFIRMING or one.events_total is None or unknown:
        return one.but(eta_seconds=None)
    left = _left(at, totals, shares, flush, learned)
    spent = sum(flush.seconds.values())
    done = spent / (spent + left) if spent > 0 else 0.0
    return one.but(
        eta_seconds=min(round(left, 1), MAX_AMOUNT),
        progress=round(max(one.progress, min(done, 0.999)), 4),
    )


def _number(one: Recalculation) -> int:
    """Which of `TIMED` goes on; all are over where *one* is live."""
    if one.state == LIVE:
        return len(TIMED)
    if one.state == SWITCHING:
        return TIMED.index(BUILDING)
    return TIMED.index(one.phase or READING)


def _totals(
    one: Recalculation,
    reports: Reports,
    workers: list[WorkerReport | None],
    jobs: list[JobReport | None],
    flush: Flush,
) -> dict[str, float]:
    """Of how many activities, messages and contacts each phase is, as far as that can be told."""
    written = reports.written(one.id)
    for p, worker in enumerate(workers):
        if worker is not None:
            flush.joined_from.setdefault(p, worker.joined)
    sent = float(sum(max(0, end - flush.joined_from.get(p, end)) for p, end in written.items()))
    total = one.events_total or 0
    if one.phase == READING:
        said = [(job.seen, job.read, job.begin, job.pending) for job in jobs if job is not None]
        flushed = sum(max(0, read - begin) for _, read, begin, _ in said)
        seen = sum(max(0, max(seen, read) - begin) for seen, read, begin, _ in said)
        pending = float(max((pending for *_, pending in said), default=0))
        sent *= total / flushed if flushed else 1.0
        if (
            seen > flushed
        ):  # how many more contacts will come is between none and as many as came so far
            pending *= (max(1.0, (total - flushed) / (seen - flushed))) ** 0.5
        sent += pending
    compared = [reports.comparison(one.id, p) for p in range(len(workers))]
    contacts = (
        sum(report.contacts for report in compared if report is not None)
        if None not in compared
        else sent
    )
    return {READING: total, JOINING: sent, COMPARING: contacts, BUILDING: contacts}


def _shares(
    one: Recalculation,
    at: int,
    workers: list[WorkerReport | None],
    totals: Mapping[str, float],
    flush: Flush,
) -> dict[str, float]:
    """How far each phase is, 0 to 1."""
    joined = sum(
        max(0, w.joined - flush.joined_from.get(p, w.joined))
        for p, w in enumerate(workers)
        if w is not None
    )
    here = [w for w in workers if w is not None]
    current = {
        READING: one.events_read / totals[READING] if totals[READING] else 0.0,
        JOINING: joined / totals[JOINING] if totals[JOINING] else 0.0,
        COMPARING: sum(w.compared for w in here) / len(workers),
        BUILDING: sum(w.scanned for w in here) / len(workers),
    }
    known = {phase.name: phase.progress for phase in one.phases}
    shares: dict[str, float] = {}
    for n, name in enumerate(TIMED):
        begun = n == at or (
            name == JOINING and at < n
        )  # what was written already is joined while the log is read
        shares[name] = (
            1.0 if n < at else min(1.0, max(known.get(name, 0.0), current[name])) if begun else 0.0
        )
    return shares


def _left(
    at: int,
    totals: Mapping[str, float],
    shares: Mapping[str, float],
    flush: Flush,
    learned: Mapping[str, float],
) -> float:
    """For how many seconds it will still go on, in all phases.

    What goes on is judged by its own speed, the more of it is done the more; what is to come by that
    of the newest recalculation that tells, or by `COSTS`.
    """
    left = 0.0
    for n, name in enumerate(TIMED[at:], at):
        share, seconds = shares[name], flush.seconds.get(name, 0.0)
        expected = totals[name] * learned.get(name, COSTS[name])
        begun = share  # of what is to come: what was joined while the log is read
        if n == at:
            begun = 0.0
            if name == JOINING:
                begun, since = flush.joined_before = flush.joined_before or (share, seconds)
                share = (share - begun) / (1.0 - begun) if begun < 1.0 else 1.0
                seconds -= since
        if name not in learned:  # what is learned are the seconds after reading
            expected *= 1.0 - begun
        if n > at:
            left += expected
            continue
        measured = seconds / share if share > 0 else expected
        weight = min(1.0, share / (LEARNED_SHARE if name in learned else MEASURED_SHARE))
        left += (measured * weight + expected * (1.0 - weight)) * (1.0 - share)
    return left


def _whole(number: int) -> int:
    """Return *number*, at most what the topic takes: sums of what is reported may be greater."""
    return min(number, MAX_WHOLE)
