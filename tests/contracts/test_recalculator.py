"""What the job that reads the log again reports: how far it read, and a failure with a reason when part of the log did not come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agents import recalculator
from agents.catalog import Catalog
from schemas import recalculation
from schemas.recalculation import (
    FILLING,
    REQUEST,
    WORKER,
    Recalculation,
    WorkerReport,
    encode_report,
    report_key,
)
from schemas.rules import catalogue
from streams.blocks import Block
from streams.reader import read_log
from streams.replay import nothing, read_blocks
from streams.settings import Settings
from streams.topics import names, provision
from tests.support import eventually
from tests.support.records import write

COUNT, PARTITIONS = 20_000, 4
Blocks = Iterator[tuple[int, Block]]


@pytest.fixture
def settings(embedded: str, prefix: str) -> Settings:
    """On this broker a job needs no group."""
    return Settings.load(
        {"broker": embedded, "topic_prefix": prefix, "group": prefix + "g"}, environ={}
    )


def all_of_it(blocks: Blocks) -> Blocks:
    return blocks


def partition_2_taken_for_empty(blocks: Blocks) -> Blocks:
    for number, block in blocks:
        yield number, nothing(block.begin, block.next) if number == 2 else block


def ended_early(blocks: Blocks) -> Blocks:
    for number, block in blocks:
        if number != 2:
            yield number, block


@pytest.mark.parametrize(
    ("reading", "complete"),
    [(all_of_it, True), (partition_2_taken_for_empty, False), (ended_early, False)],
)
def test_the_job_fails_when_it_read_less_than_the_log_holds(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    reading: Callable[[Blocks], Blocks],
    complete: bool,
) -> None:
    provision(settings)
    topics = names(settings)
    write(
        settings,
        topics["activities"],
        [
            {"key": b"%d" % n, "value": b"{}" * 20, "partition": n % PARTITIONS}
            for n in range(COUNT)
        ],
    )
    one = Recalculation(
        id="r",
        state=FILLING,
        cause=REQUEST,
        journeys=("j",),
        epoch=1,
        rules=(catalogue()["visited_page"](page={"equals": "/"}),),
    )
    write(
        settings,
        topics["recalculations"],
        [{"key": b"r", "value": recalculation.encode(one), "partition": 0}],
    )
    write(settings, topics["recalculation-reports"], [
        {"key": report_key("r", WORKER, p), "value": encode_report(WorkerReport(COUNT // PARTITIONS)), "partition": 0} for p in range(PARTITIONS)
    ])  # fmt: skip
    monkeypatch.setattr(
        recalculator,
        "read_blocks",
        lambda *args, **more: closing(reading, read_blocks(*args, **more)),
    )
    stop = threading.Event()
    job = threading.Thread(target=recalculator.Recalculator(settings, stop).run)
    job.start()
    try:
        reports = Catalog().reports

        def over() -> bool:
            catalog = Catalog()
            for _, records in read_log(settings, topics["recalculation-reports"]):
                for record in records:
                    catalog.take(
                        "recalculation-reports", record.key(), record.value(), record.offset()
                    )
            nonlocal reports
            reports = catalog.reports
            found = [reports.job("r", p) for p in range(PARTITIONS)]
            return all(
                report is not None and (report.error or report.read >= COUNT // PARTITIONS)
                for report in found
            )

        eventually(over, "the job's reports")
    finally:
        stop.set()
        job.join()
    found = [reports.job("r", p) for p in range(PARTITIONS)]
    if complete:
        assert [(report.read, report.error) for report in found if report] == [
            (COUNT // PARTITIONS, None)
        ] * PARTITIONS
    else:
        reasons = {report.error for report in found if report}
        assert len(reasons) == 1
        reason = str(reasons.pop())
        assert reason.startswith("the log was not read completely: ")
        assert f"records of {topics['activities']} are missing: partition 2 offsets " in reason
        assert all(report.read < COUNT // PARTITIONS for report in found[2:3] if report), (
            "what is missing is not reported as read"
        )


def closing(reading: Callable[[Blocks], Blocks], blocks: Any) -> Blocks:
    """What *reading* makes of *blocks*, which are closed with it."""
    try:
        yield from reading(blocks)
    finally:
        blocks.close()
