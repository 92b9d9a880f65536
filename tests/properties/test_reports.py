"""Reports, recalculations and the schedule come back as they were.

Whatever else lies on their topics is refused without harm.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.driver import scheduled
from schemas.errors import Refused
from schemas.journey import parse_journey
from schemas.recalculation import (
    BUILDING,
    CANCELLED,
    COMPARING,
    COMPARISON,
    FILLING,
    JOB,
    MAX_EPOCH,
    MAX_REASON,
    PLANNED,
    READING,
    SCHEDULE,
    SWITCHING,
    VIEWS,
    WORKER,
    Compared,
    ComparisonReport,
    Difference,
    JobReport,
    PhaseProgress,
    Recalculation,
    Schedule,
    ViewsReport,
    WorkerReport,
    decode,
    decode_report,
    decode_schedule,
    encode,
    encode_report,
    encode_schedule,
    recalculation_json,
    report_key,
)
from schemas.rules import VisitedPage
from state.progression import Flush, advance
from state.recalculation import Reports, Table, begin
from tests.support.hostile import hostile_variants

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@pytest.mark.parametrize(
    ("who", "report"),
    [
        (WORKER, WorkerReport(7, 1, 2, 3, 0.5, True, 4)),
        (JOB, JobReport(1, 9, 1000, {0: 5, 3: 2}, "why")),
        (VIEWS, ViewsReport(((1, 2), (1, 4)))),
        (COMPARISON, ComparisonReport(5, (Compared("a", 1, (5, 4), (4, 4), (3, 0)),))),
    ],
)
def test_reports_come_back(who: str, report: WorkerReport | JobReport | ViewsReport) -> None:
    assert decode_report(report_key("a/b", who, 3), encode_report(report)) == ("a/b", who, 3, report)


@given(st.sampled_from((WORKER, JOB, VIEWS, COMPARISON, "else")), JSON)
def test_other_values_are_refused(who: str, value: object) -> None:
    with contextlib.suppress(Refused):
        decode_report(report_key("r", who, 0), json.dumps(value).encode())


@pytest.mark.parametrize("name", ["recording_from", "joined", "changed"])
@pytest.mark.parametrize("value", ["7", None, 1.5, True, [1]])
def test_an_offset_of_another_type_is_refused(name: str, value: object) -> None:
    said = json.loads(encode_report(WorkerReport(7, 1, 2, 3, 0.5, True, 4))) | {name: value}
    with pytest.raises(Refused):
        decode_report(report_key("r", WORKER, 0), json.dumps(said).encode())


@given(st.binary(max_size=20) | st.none(), st.binary(max_size=60), JSON)
def test_bytes_that_are_no_recalculation_are_refused(key: bytes | None, raw: bytes, value: object) -> None:
    for one in (raw, json.dumps(value).encode()):
        with pytest.raises(Refused):
            decode(key, one)


# -- every field with every hostile value

FULL = Recalculation(
    id="r-1", state=FILLING, cause="request", journeys=("a",), rules=(VisitedPage(page="/a"),), epoch=3,
    throttle=5.5, planned_at=1, started_at=2, switched_at=3, finished_at=4, log_from=5, progress=0.25,
    events_read=7, events_total=9, events_per_second=1.5, eta_seconds=2.5, changed=1, reason="why",
    retired=frozenset({"00"}), unneeded={"01": 6}, phase=READING,
    phases=(PhaseProgress(READING, 0.5, 1.5, 7),), confirmed_at=7,
    differences=(Difference("a", 1, 1, 5, 4, 3),), log_begins={0: 8},
)  # fmt: skip
REPORTS = {
    WORKER: WorkerReport(7, 1, 2, 3, 0.5, True, 4, 0.25),
    JOB: JobReport(1, 9, 1000, {0: 5, 3: 2}, "why", 11, 12),
    COMPARISON: ComparisonReport(5, (Compared("a", 1, (5, 4), (4, 4), (3, 0)),)),
    VIEWS: ViewsReport(((1, 2), (1, 4))),
}


def test_a_recalculation_and_a_schedule_come_back() -> None:
    assert decode(b"r-1", encode(FULL)) == FULL
    assert decode_schedule(encode_schedule(Schedule("0 * * * *", "UTC", 7))) == Schedule(
        "0 * * * *", "UTC", 7
    )


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert decode(b"r-1", json.dumps({**recalculation_json(FULL), "newer": 1}).encode()) == FULL
    for who, report in REPORTS.items():
        raw = json.dumps({**json.loads(encode_report(report)), "newer": 1}).encode()
        assert decode_report(report_key("r", who, 0), raw)[3] == report


def test_a_hostile_recalculation_is_refused_or_can_be_used() -> None:
    for raw in hostile_variants(encode(FULL)):
        _recalculation_refused_or_usable(raw)


def _recalculation_refused_or_usable(raw: bytes) -> None:
    try:
        one = decode(b"r-1", raw)
    except Refused:
        return
    assert decode(b"r-1", encode(one)) == one, "what is read can be written and read again"
    table = Table()
    table.take("r-1", one)
    journey = parse_journey(
        {
            "id": "a",
            "name": "A",
            "stages": [
                {"name": "S", "condition": {"any": [{"rule": "visited_page", "page": "/a"}]}}
            ],
        }
    )
    assert table.source(journey) is None or table.finished_at(journey) is not None
    planned = one.but(id="r-2", state=PLANNED)
    table.take("r-2", planned)
    table.take("r-1", one.but(state=CANCELLED))
    following = begin(table, [], 5)
    assert following is not None
    assert decode(b"r-2", encode(following)) == following, (
        "what comes next can be read by everybody"
    )
    scheduled(
        table,
        [journey],
        Schedule("0 * * * *", "Pacific/Kiritimati", 0),
        "0 * * * *",
        "Pacific/Kiritimati",
        1_790_000_000_000,
    )


def test_a_scheduled_run_from_the_end_of_the_calendar_neither_fails_nor_stops_the_schedule() -> (
    None
):
    table = Table()
    late = json.dumps(
        {
            **recalculation_json(FULL.but(state=CANCELLED, cause=SCHEDULE)),
            "planned_at": "9998-12-30T23:59:59.999Z",
        }
    ).encode()
    table.take("r-1", decode(b"r-1", late))
    journey = parse_journey(
        {
            "id": "a",
            "name": "A",
            "scheduled_recalculation": True,
            "stages": [
                {"name": "S", "condition": {"any": [{"rule": "visited_page", "page": "/a"}]}}
            ],
        }
    )
    args = (
        table,
        [journey],
        Schedule("* * * * *", "Pacific/Kiritimati", 0),
        "* * * * *",
        "Pacific/Kiritimati",
    )
    assert scheduled(*args, 1_790_000_000_000) == (None, None), "nothing is due at the very moment"


def test_no_epoch_comes_after_the_highest() -> None:
    table = Table()
    table.take("r-1", FULL.but(epoch=MAX_EPOCH, state=CANCELLED))
    table.take("r-2", FULL.but(id="r-2", epoch=0, state=PLANNED))
    after = begin(table, [], 9)
    assert after is not None
    assert (after.state, after.epoch) == ("failed", 0)
    assert decode(b"r-2", encode(after)) == after


def report_variants() -> Iterator[tuple[str, bytes]]:
    for who, report in REPORTS.items():
        yield from ((who, raw) for raw in hostile_variants(encode_report(report)))


def test_a_hostile_report_is_refused_or_can_be_used() -> None:
    for who, raw in report_variants():
        _report_refused_or_usable(who, raw)


def _report_refused_or_usable(who: str, raw: bytes) -> None:
    try:
        id_, _, partition, report = decode_report(report_key("r-1", who, 0), raw)
    except Refused:
        return
    assert report is not None
    assert decode_report(report_key("r-1", who, 0), encode_report(report))[3] == report
    for others in (REPORTS, {}):
        reports = Reports()
        for other, known in others.items():
            reports.take(id_, other, partition, known)
        reports.take(id_, who, partition, report)
        reports.take(id_, who, 777, report)  # a partition that there is not
        flush = Flush()
        states = FULL, FULL.but(phase=COMPARING), FULL.but(state=SWITCHING, phase=BUILDING)
        for now_ms, one in zip((1, 2, 10_000), states, strict=True):
            after = advance(one, reports, 1, flush, {0: 0}, now_ms)
            assert decode(b"r-1", encode(after)) == after, (
                "what the driver writes can be read by everybody"
            )
        reports.common("r-1", 1)


def test_views_of_a_partition_that_is_none_block_nothing() -> None:
    reports = Reports()
    for partition in (0, 1, 777):
        reports.take("a", VIEWS, partition, ViewsReport(((1, 2),)))
    assert reports.common("a", 2) == (1, 2)
    assert reports.common("a", 3) is None


@pytest.mark.parametrize(
    "key",
    [
        b"r/worker/-1",
        b"r/worker/1_0",
        b"r/worker/01",
        b"r/worker/" + b"9" * 5000,
        b"r/else/1",
        b"worker/1",
        b"",
        None,
        b"\xff/job/1",
    ],
)
def test_a_hostile_key_of_a_report_is_refused(key: bytes | None) -> None:
    for value in (None, encode_report(REPORTS[WORKER])):
        with pytest.raises(Refused):
            decode_report(key, value)


def test_a_hostile_schedule_is_refused_or_can_be_used() -> None:
    for raw in hostile_variants(encode_schedule(Schedule("0 * * * *", "UTC", 7))):
        with contextlib.suppress(Refused):
            schedule = decode_schedule(raw)
            scheduled(Table(), [], schedule, schedule.cron, "Pacific/Kiritimati", 1_790_000_000_000)
            assert decode_schedule(encode_schedule(schedule)) == schedule


@pytest.mark.parametrize("error", ["x" * 200_000, "\ud800", "\x00"])
def test_whatever_a_job_fails_with_can_be_read(error: str) -> None:
    report = decode_report(b"r/job/0", encode_report(JobReport(0, 0, 0, {}, error)))[3]
    assert isinstance(report, JobReport)
    assert report.error is not None
    assert len(report.error) <= MAX_REASON


def test_a_rule_type_that_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OverflowError("theirs")

    monkeypatch.setattr(VisitedPage, "__init__", fails)
    with pytest.raises(Refused, match="theirs"):
        decode(b"r-1", encode(FULL))
