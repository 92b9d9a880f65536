"""Reports come back as they were, and whatever else lies on their topic is refused without harm."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Refused
from schemas.recalculation import (
    JOB,
    VIEWS,
    WORKER,
    JobReport,
    ViewsReport,
    WorkerReport,
    decode,
    decode_report,
    encode_report,
    report_key,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@pytest.mark.parametrize(
    ("who", "report"),
    [
        (WORKER, WorkerReport(7, 1, 2, 3, 0.5, True, 4)),
        (JOB, JobReport(1, 9, 1000, {0: 5, 3: 2}, "why")),
        (VIEWS, ViewsReport(((1, 2), (1, 4)))),
    ],
)
def test_reports_come_back(who: str, report: WorkerReport | JobReport | ViewsReport) -> None:
    assert decode_report(report_key("a/b", who, 3), encode_report(report)) == ("a/b", who, 3, report)


@given(st.sampled_from((WORKER, JOB, VIEWS, "else")), JSON)
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
