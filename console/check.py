"""Check: compares every number, list and name with what the naive oracle makes of the whole log. Changes nothing.

The oracle is slow and obvious; what it says is the truth, and every difference is a fault of the workers, or of the log's keeping. It is asked
about the persons of one shard at a time (`expected`), by several processes where there are many. Lists are compared by checksums, which workers
compute from the same index and evidence as the lists; the first lines, and in a small history all of them, are read as users read them.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from schemas.journey import Journey, journey_json
from streams.settings import Settings

from . import expected, history
from .checking import Checksums, Comparison, Naming, Told
from .client import Client, segment
from .expected import Expected, Judged
from .options import Failed

TRIES = 3  # when the log grows while it is checked
POLL_SECONDS = 0.1
LINES = (
    100  # of each list, read as users read it; the rest of a long one is compared by its checksum
)
MAX_PROCESSES = 8
CONFIDENCE = 0.95


class Difference(NamedTuple):
    """One thing that is not as it should be."""

    journey: str
    group: str
    where: str
    expected: str
    found: str


@dataclass
class Report:
    records: int = 0
    journeys: list[str] = field(default_factory=list)
    persons: int = 0
    share: float = 1.0
    compared: int = 0  # numbers and lines of lists
    rejected: int = 0
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def differs(self, journey: str, group: str | None, where: str, right: Any, found: Any) -> None:
        self.differences.append(Difference(journey, group or "", where, _text(right), _text(found)))

    def bound(self) -> float:
        """The share of all persons that can differ, at most, with 95 % confidence, when none of the sample does (the "rule of three")."""
        return 1 - (1 - CONFIDENCE) ** (1 / self.persons) if self.persons else 1.0


@dataclass(frozen=True)
class Request:
    """What to check. *ids*: the journeys, all when there are none; *share*: of the persons; *processes*: 0 for as many as there are cores."""

    settings: Settings
    api: Client
    ids: tuple[str, ...] = ()
    timeout_seconds: float = 60.0
    told: Told = lambda what, done, total: None
    judged: Judged | None = None
    share: float = 1.0
    processes: int = 0
    lines: int = LINES


def run(
    settings: Settings,
    api: Client,
    ids: tuple[str, ...],
    timeout_seconds: float,
    told: Told,
    judged: Judged | None = None,
    share: float = 1.0,
) -> Report:
    """Compares the journeys *ids*, all when there are none. Raises `Failed`, `ReaderError`."""
    return check(Request(settings, api, ids, timeout_seconds, told, judged, share))


def check(request: Request) -> Report:
    """Compares what is asked for. Raises `Failed`, `ReaderError`."""
    for _ in range(TRIES):
        with tempfile.TemporaryDirectory(prefix="waypost-check-") as directory:
            caught_up(request.api, request.ids, request.timeout_seconds, request.told)
            log = history.read(
                request.settings,
                history.ends(request.settings),
                request.told,
                Path(directory),
                request.share,
            )
            caught_up(request.api, request.ids, request.timeout_seconds, request.told)
            report = compare(log, request)
        if history.ends(request.settings) == log.ends:
            return report
    raise Failed(f"the log grew during each of {TRIES} checks; check again when less comes in")


def caught_up(api: Client, ids: tuple[str, ...], timeout_seconds: float, told: Told) -> None:
    """Waits until the workers have everything that was sent and show the newest version of the journeys *ids*, all when there are none. Raises
    `Failed`."""
    until = time.monotonic() + timeout_seconds
    most = 0
    while True:
        health = api.call("GET", "/api/health")
        lag = health["lag"]
        there = api.call("GET", "/api/journeys")["journeys"] if lag == 0 else ()
        calculating = [
            j["id"] for j in there if j["status"] != "live" and (not ids or j["id"] in ids)
        ]
        if lag == 0 and not calculating:
            return
        if time.monotonic() > until:
            busy = (
                f"calculating {', '.join(calculating)}"
                if calculating
                else "not answering for every partition"
            )
            why = f"{lag:,} records behind" if lag else busy
            way_out = "; what was cancelled or failed (`waypost recalculations`) waits to be recalculated; or name the journeys to check"
            raise Failed(
                f"after {timeout_seconds:g} s the workers are still {why}; wait longer with --timeout{way_out if calculating else ''}"
            )
        if lag is not None:
            most = max(most, lag)
            told("waiting for the workers", most - lag, most)
        time.sleep(POLL_SECONDS)


def compare(log: history.Log, request: Request) -> Report:
    """What the workers say, against what *log* says. Raises `Failed`."""
    report = Report(records=log.records, rejected=log.rejected, share=request.share)
    for topic in log.forgotten:
        report.notes.append(
            f"{topic} no longer begins at its beginning (retention): the workers may know more than the log can prove"
        )
    for place, reason in log.not_rejected:
        report.differs(
            "",
            None,
            f"{place.source}/{place.partition}@{place.offset}",
            f"rejected: {reason}",
            "not rejected",
        )
    for place, error in log.wrongly_rejected:
        report.differs(
            "",
            None,
            f"{place.source}/{place.partition}@{place.offset}",
            "taken",
            f"rejected: {error}",
        )
    shown = {j["id"]: j["version"] for j in request.api.call("GET", "/api/journeys")["journeys"]}
    truth = {j.id: j.version for j in log.journeys.values()}
    for id_ in sorted({*shown, *truth}):
        if shown.get(id_) != truth.get(id_):
            report.differs(id_, None, "version", truth.get(id_), shown.get(id_))
    if unknown := [id_ for id_ in request.ids if id_ not in truth]:
        raise Failed(
            f"there is no journey {', '.join(unknown)}; `waypost journey list` lists those there are"
        )
    report.journeys = [id_ for id_ in request.ids or sorted(truth) if id_ in shown]
    journeys = [log.journeys[id_] for id_ in report.journeys]
    small = len(log.shards.paths) == 1 and request.lines == LINES
    lines = 10**9 if small else request.lines
    with ThreadPoolExecutor(1) as executor:  # workers compute checksums while the oracle is asked
        summed = executor.submit(
            lambda: {id_: _checksums(request.api, id_, request.share) for id_ in report.journeys}
        )
        right = _expected(log.shards.paths, journeys, lines, request)
        while not summed.done():
            request.told("reading checksums of lists", 0, 0)
            time.sleep(POLL_SECONDS)
        found = summed.result()
    report.persons = right.persons
    contacts: dict[str, Any] = {}
    for done, journey in enumerate(journeys):
        request.told(f"comparing {journey.id}", done, len(journeys))
        naming = Naming(log.shards.paths, journey, request.share)
        comparison = Comparison(
            journey,
            right.journeys[journey.id],
            request.api,
            report,
            contacts,
            naming,
            small,
            lines,
            request.told,
        )
        if request.share < 1:
            comparison.sample(found[journey.id])
        else:
            comparison.everything(found[journey.id])
    return report


def _checksums(api: Client, id_: str, share: float) -> Checksums:
    """What the workers' checksums of a journey come to. Raises `Failed`."""
    found = Checksums()
    for page in api.pages(
        f"/api/journeys/{segment(id_)}/checksums", "lists", {"share": repr(share)}, sized=False
    ):
        found.take(page)
    return found


def _expected(paths: list[Path], journeys: list[Journey], lines: int, request: Request) -> Expected:
    """What the oracle says of all shards."""
    found, what = Expected(), "asking the oracle"
    found.add(Expected(journeys={journey.id: expected.JourneySum() for journey in journeys}), lines)
    request.told(what, 0, len(paths))
    if len(paths) == 1 or request.judged is not None or request.processes == 1:
        judged = request.judged or (lambda answer: None)
        for done, path in enumerate(paths, 1):
            found.add(expected.of_shard(path, journeys, lines, judged), lines)
            request.told(what, done, len(paths))
        return found
    processes = min(request.processes or min(os.cpu_count() or 1, MAX_PROCESSES), len(paths))
    data = [journey_json(journey) for journey in journeys]
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), expected.begin_process
    ) as pool:
        try:
            parts = [pool.submit(expected.of_shard_in_process, path, data, lines) for path in paths]
            for done, part in enumerate(as_completed(parts), 1):
                found.add(part.result(), lines)
                request.told(what, done, len(paths))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def _text(value: Any) -> str:
    return "nothing" if value is None else str(value)


def lines(report: Report) -> Iterator[str]:
    """The report's last words."""
    what = f"{report.compared:,} numbers and lines of {len(report.journeys)} journeys, from {report.records:,} records ({report.rejected:,} rejected)"
    yield (
        f"{len(report.differences):,} differences in {what}"
        if report.differences
        else f"No difference in {what}."
    )
    if report.share < 1:
        yield sentence(report)
        yield NOT_CHECKED
    yield from report.notes


NOT_CHECKED = (
    "Not checked with --sample: waits and days of everybody (numbers are compared with the lengths of "
    "their lists), first lines of lists, and whether bad records of other persons were rejected."
)


def data(report: Report) -> dict[str, Any]:
    """The report for programs."""
    sample = {
        "share": report.share,
        "persons": report.persons,
        "of_about": round(report.persons / report.share),
        "fewer_than": None if report.differences else report.bound(),
        "confidence": CONFIDENCE,
    }
    return {
        "journeys": report.journeys,
        "records": report.records,
        "rejected": report.rejected,
        "compared": report.compared,
        "differences": [one._asdict() for one in report.differences],
        "notes": report.notes,
        "sample": sample if report.share < 1 else None,
    }


def sentence(report: Report) -> str:
    """What the check of a sample proves."""
    if not report.persons:
        return "No person is in the sample, so that nothing is proven; check a larger one."
    of = f"{report.persons:,} of about {round(report.persons / report.share):,} persons"
    if report.differences:
        return f"A sample of {of} was checked; without --sample all of them are."
    return f"No difference among {of}: with {CONFIDENCE:.0%} confidence fewer than {percent_above(report.bound())} % of persons differ."


def percent_above(share: float) -> str:
    """A share as percent with two digits, rounded up: a bound must not become smaller."""
    percent = share * 100
    digits = 1 - math.floor(math.log10(percent))
    return f"{math.ceil(percent * 10**digits - 1e-9) / 10**digits:.{max(0, digits)}f}"
