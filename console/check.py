"""Check: compares every number, list and name with what the naive oracle makes of the whole log. Changes nothing.

The oracle is slow and obvious; what it says is the truth, and every difference is a fault of the workers, or of the log's keeping.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from schemas.hashing import h
from schemas.journey import Journey
from schemas.times import format_ms
from state import oracle
from streams.settings import Settings

from . import history
from .client import ApiFailed, Client, segment
from .options import Failed

TRIES = 3  # when the log grows while it is checked
POLL_SECONDS = 0.1
WAIT_PARTS = 256  # medians are counted in buckets of this relative width (state.totals)
EXPLAINED = 300  # contacts of a journey whose explanation is compared
Told = Callable[[str, int, int], None]
"""Hears what is being done, and how much of how much is."""
Judged = Callable[[oracle.Answer], None]
"""Hears what the oracle says of a journey, once more when the check is repeated."""
Explained = dict[str, list[tuple[str, list[str]]]]
"""Of a contact, by journey: when it reached its stages, and by which activities."""


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
    compared: int = 0  # numbers and lines of lists
    rejected: int = 0
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(
    settings: Settings, api: Client, ids: tuple[str, ...], timeout_seconds: float, told: Told, judged: Judged = lambda answer: None
) -> Report:
    """Compares the journeys *ids*, all when there are none. Raises `Failed`, `ReaderError`."""
    report = Report()
    for _ in range(TRIES):
        caught_up(api, ids, timeout_seconds, told)
        log = history.read(settings, history.ends(settings), told)
        caught_up(api, ids, timeout_seconds, told)
        report = _compare(log, api, ids, told, judged)
        if history.ends(settings) == log.ends:
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
        calculating = [j["id"] for j in there if j["status"] != "live" and (not ids or j["id"] in ids)]
        if lag == 0 and not calculating:
            return
        if time.monotonic() > until:
            busy = f"calculating {', '.join(calculating)}" if calculating else "not answering for every partition"
            why = f"{lag:,} records behind" if lag else busy
            way_out = "; what was cancelled or failed (`waypost recalculations`) waits to be recalculated; or name the journeys to check"
            raise Failed(f"after {timeout_seconds:g} s the workers are still {why}; wait longer with --timeout{way_out if calculating else ''}")
        if lag is not None:
            most = max(most, lag)
            told("waiting for the workers", most - lag, most)
        time.sleep(POLL_SECONDS)


def _compare(log: history.Log, api: Client, ids: tuple[str, ...], told: Told, judged: Judged) -> Report:
    report = Report(records=log.records, rejected=log.rejected)
    for topic in log.forgotten:
        report.notes.append(f"{topic} no longer begins at its beginning (retention): the workers may know more than the log can prove")
    for place, reason in log.not_rejected:
        report.differences.append(Difference("", "", f"{place.source}/{place.partition}@{place.offset}", f"rejected: {reason}", "not rejected"))
    for place, error in log.wrongly_rejected:
        report.differences.append(Difference("", "", f"{place.source}/{place.partition}@{place.offset}", "taken", f"rejected: {error}"))
    said = {j["id"]: j["version"] for j in api.call("GET", "/api/journeys")["journeys"]}
    truth = {j.id: j.version for j in log.journeys.values()}
    for id_ in sorted({*said, *truth}):
        if said.get(id_) != truth.get(id_):
            report.differences.append(Difference(id_, "", "version", _text(truth.get(id_)), _text(said.get(id_))))
    if unknown := [id_ for id_ in ids if id_ not in truth]:
        raise Failed(f"there is no journey {', '.join(unknown)}; `waypost journey list` lists those there are")
    explained: dict[str, Explained | str] = {}
    for id_ in ids or sorted(truth):
        if id_ in said:
            report.journeys.append(id_)
            told(f"asking the oracle about {id_}", 0, 0)
            answer = oracle.answer(log.journeys[id_], log.history)
            judged(answer)
            _Comparison(answer, api, report, told, explained).run()
    return report


class _Comparison:
    """One journey: everyone, then each group. *explained*: what contacts were told already; one answer speaks of all journeys."""

    def __init__(self, truth: oracle.Answer, api: Client, report: Report, told: Told, explained: dict[str, Explained | str]) -> None:
        self.truth = truth
        self.journey: Journey = truth.journey
        self.api = api
        self.report = report
        self.told = told
        self.explained = explained

    def run(self) -> None:
        groups = sorted({group for name, stages in self.truth.reached.items() if stages for group in self.truth.groups[name]})
        questions: list[str | None] = [None, *groups]
        steps = len(questions) * (1 + 2 * len(self.journey.stages))
        done = 0
        for group in questions:
            self._results(group)
            done += 1
            for stage in range(1, len(self.journey.stages) + 1):
                for who in ("converted", "dropped_off"):
                    self._list(group, stage, who)
                    done += 1
                    self.told(f"comparing {self.journey.id}", done, steps)
        self._explanations()

    def _differs(self, group: str | None, where: str, expected: Any, found: Any) -> None:
        self.report.differences.append(Difference(self.journey.id, group or "", where, _text(expected), _text(found)))

    def _equal(self, group: str | None, where: str, expected: Any, found: Any) -> None:
        self.report.compared += 1
        if expected != found:
            self._differs(group, where, expected, found)

    def _results(self, group: str | None) -> None:
        found = self.api.call("GET", f"/api/journeys/{segment(self.journey.id)}/results", query={"group": group})
        self._equal(group, "version", self.journey.version, found["version"])
        expected = self.truth.results(group)
        self._equal(group, "number of stages", len(expected), len(found["stages"]))
        for right, row in zip(expected, found["stages"], strict=False):
            for name in ("name", "converted", "converted_ratio", "dropped_off", "dropped_off_ratio", "kpi", "kpi_ratio"):
                self._equal(group, f"stage {right.stage}, {name}", getattr(right, name), row[name])
            self._median(group, f"stage {right.stage}, median_seconds_from_previous", right.waits_ms, row["median_seconds_from_previous"])
        if len(expected) > 1:
            waits = self.api.call("GET", f"/api/journeys/{segment(self.journey.id)}/waits", query={"group": group})
            median = (waits["overall"] or {}).get("median_seconds")
            self._median(group, "median from the first stage to the last", expected[-1].since_first_ms, median)

    def _median(self, group: str | None, where: str, waits_ms: list[int], found: float | None) -> None:
        self.report.compared += 1
        median = statistics.median(waits_ms) / 1000 if waits_ms else None
        if not close(median, found):
            self._differs(group, where, median, found)

    def _list(self, group: str | None, stage: int, who: str) -> None:
        path = f"/api/journeys/{segment(self.journey.id)}/stages/{stage}/contacts"
        pages = list(self.api.pages(path, "contacts", {"who": who, "group": group}))
        rows = [row for page in pages for row in page["contacts"]]
        where = f"list {stage}.{who}"
        expected = {
            row.contact_id: (format_ms(row.reached_at_ms), sorted(row.groups))
            for row in (self.truth.converted(stage, group) if who == "converted" else self.truth.dropped_off(stage, group))
        }
        found = {row["contact_id"]: (row["reached_at"], sorted(row["groups"])) for row in rows}
        self._equal(group, f"{where}, total", len(expected), pages[0]["total"])
        self._equal(group, f"{where}, lines", len(expected), len(rows))
        self.report.compared += len(expected)
        for contact in sorted({*expected, *found}):
            if expected.get(contact) != found.get(contact):
                self._differs(group, f"{where}, {contact}", expected.get(contact), found.get(contact))

    def _explanations(self) -> None:
        """What single contacts are told: stages, times, and the activities by which they were met."""
        there = (name for name, stages in self.truth.reached.items() if stages)
        picked = sorted(there, key=h)[:EXPLAINED]  # by hash: most are the same ones for all journeys
        for done, name in enumerate(picked, 1):
            self.told(f"comparing explanations of {self.journey.id}", done, len(picked))
            expected = [(format_ms(r.at_ms), sorted({_hex(hit) for hit, _ in r.met_by})) for r in self.truth.reached[name]]
            if name not in self.explained:
                self.explained[name] = self._ask(name)
            found = self.explained[name]
            self._equal(None, f"contact {name}", expected, found if isinstance(found, str) else found.get(self.journey.id, []))

    def _ask(self, name: str) -> Explained | str:
        try:
            found = self.api.call("GET", f"/api/contacts/{segment(name)}")
        except ApiFailed as error:
            return error.message
        if found["survivor"] != name:
            return f"its person is named {found['survivor']}"
        return {
            journey["journey"]: [(stage["reached_at"], sorted({met["activity"] for met in stage["met_by"]})) for stage in journey["stages"]]
            for journey in found["journeys"]
            if journey["stages"]
        }


def close(exact_seconds: float | None, found_seconds: float | None) -> bool:
    """Whether a median is the exact one as nearly as whole seconds and buckets allow: never above it, below by less than a second or a bucket."""
    if exact_seconds is None or found_seconds is None:
        return exact_seconds is found_seconds
    return exact_seconds - 1 - exact_seconds / WAIT_PARTS < found_seconds <= exact_seconds


def _hex(hit: oracle.Hit) -> str:
    return hit[1].to_bytes(8, "big").hex()


def _text(value: Any) -> str:
    return "nothing" if value is None else str(value)


def lines(report: Report) -> Iterator[str]:
    """The report's last words."""
    what = f"{report.compared:,} numbers and lines of {len(report.journeys)} journeys, from {report.records:,} records ({report.rejected:,} rejected)"
    yield f"{len(report.differences):,} differences in {what}" if report.differences else f"No difference in {what}."
    yield from report.notes
