"""Fuzzing: records that are nearly right, in great numbers. Nothing may fail that is ours, and memory stays as it is.

Records go the way they go on a worker: intake, then a decision over what is there already. Requests over HTTP: `tests.fuzz.calls`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import psutil

from agents import handoffs, intake
from agents.catalog import CONTROL, Catalog
from agents.entries import refusal
from console import rejected
from console.pages.views import recalculation_line
from console.recalculations import shown
from console.sessions import Table as Sessions
from console.sessions import new_key, revocation
from schemas import recalculation
from schemas.hashing import h8
from schemas.journey import parse_journey
from schemas.recalculation import (
    FILLING,
    JOB,
    STATES,
    SWITCHING,
    WORKER,
    JobReport,
    Recalculation,
    WorkerReport,
    encode_report,
    report_key,
)
from state import bulk, records
from state.batch import Batch
from state.evidence import Evidence, hit
from state.matching import Matcher
from state.messages import Join, Unite
from state.progression import Flush, advance
from state.recalculation import begin, rules_by_key
from state.views import View, Views
from streams.blocks import Rows
from tests.support.records import Record, block_of

NOW_MS, AHEAD_MS = 1_790_000_000_000, 86_400_000
CHUNK = 1000
PIECES = [
    b"null", b"true", b"-1", b"1e999", b"1.0", b"9" * 400, b'""', b'"\\ud800"', b'"\\u0000"', b"[]", b"{}", b"[" * 600, b'{"a":' * 300,
    b"\xff\xfe", b"\x00",
    "é\u202e😀".encode(),
    b'"2026-01-02T03:04:05Z"', b'"0001-01-01T00:00:00+23:59"', b'"9999-12-31T23:59:59-23:59"', b"253402300799999", b'"contact_id"',
    b'"type"', b'"at"', b'"page"', b",", b":", b'"', b"\\", b"}", b"]", b"/start", b"x" * 3000,
]  # fmt: skip
JOURNEY = {
    "id": "fuzz",
    "name": "Fuzz",
    "stages": [
        {"name": "One", "condition": {"any": [{"rule": "visited_page", "page": "/start"}, {"rule": "visited_url", "url": {"matches": "a.*b"}}]}},
        {"name": "Two", "condition": {"all": [{"rule": "submitted_form", "form": "f"}, {"rule": "performed_activity", "activity": "click"}]}},
    ],
}
RULES = rules_by_key(parse_journey(JOURNEY))


class Found(NamedTuple):
    """`said`: what was answered, counted. `growth`: memory at the end for that after the first tenth."""

    said: Counter[str]
    growth: float


def mutated(r: Random, raw: bytes) -> bytes:
    """*raw* with one to four things done to it."""
    made = bytearray(raw)
    for _ in range(r.choice((0, 1, 1, 1, 2, 3, 4))):
        at = r.randrange(len(made) + 1)
        kind = r.randrange(7)
        if kind == 0 and made:
            made[at % len(made)] ^= 1 << r.randrange(8)
        elif kind == 1:
            del made[at : at + r.randrange(1, 12)]
        elif kind == 2:
            made[at:at] = r.choice(PIECES)
        elif kind == 3:
            made[at:at] = made[: r.randrange(len(made) + 1)]
        elif kind == 4:
            colon = made.find(b":", at)
            end = min((i for i in (made.find(b",", colon), made.find(b"}", colon)) if i > 0), default=-1)
            if 0 < colon < end:
                made[colon + 1 : end] = r.choice(PIECES)  # another value for a field
        elif kind == 5:
            made[at:] = b""
        else:
            made[at : at + 1] = bytes([r.randrange(256)])
    return bytes(made[: 3 << 20])


def seeds(r: Random) -> tuple[str, bytes, bytes | None]:
    """Return a topic, a record that is right for it, and its key where that matters."""
    if r.random() < 0.7:
        return *_facts(r), None
    id_, at = f"r{r.randrange(5)}", NOW_MS - r.randrange(10**9)
    kind = r.randrange(7)
    if kind == 0:
        saved = {**JOURNEY, "version": r.randrange(1, 9), "saved_at": at}
        return "journeys", json.dumps(saved).encode(), b"fuzz"
    if kind == 1:
        one = Recalculation(
            id=id_, state=r.choice(STATES), cause="edit", journeys=("fuzz",), rules=tuple(RULES.values()), epoch=r.randrange(9),
            planned_at=at, started_at=at, switched_at=at, finished_at=at, events_read=7, events_total=9, changed=1,
        )  # fmt: skip
        return "recalculations", recalculation.encode(one), id_.encode()
    if kind == 2:
        report = WorkerReport(7, 1, 2, 3, 0.5, True, 4) if r.random() < 0.5 else JobReport(1, 9, at, {0: 5, 3: 2})
        who = WORKER if isinstance(report, WorkerReport) else JOB
        return "recalculation-reports", encode_report(report), report_key(id_, who, r.randrange(3))
    if kind == 3:
        evidence = Evidence({rule: hit(at, h8("x")) for rule in RULES})
        return "evidence-changelog", records.encode_evidence(evidence, False), b"ec"
    if kind == 4:
        return "rejected", b"{}", None
    made = new_key(at, alone=False) if kind == 5 else revocation("ada", at)
    return "sessions", made[1], made[0]


def _facts(r: Random) -> tuple[str, bytes]:
    """A source topic and a record that is right for it."""
    contact, at = f"c{r.randrange(50)}", NOW_MS - r.randrange(10**9)
    kind = r.randrange(10)
    if kind < 5:
        type_, page = r.choice(["pagevisit", "PageVisit", "click", "bizformsubmit"]), r.choice(["/start", "/other"])
        said: dict[str, Any] = {"id": f"a{r.randrange(10**6)}", "contact_id": contact, "type": type_, "at": at, "page": page}
        said |= {"url": "https://x/a-b", "form": "f", "value": None}
        return "activities", json.dumps(said).encode()
    if kind < 6:
        return "contact-merges", json.dumps({"from": contact, "into": f"c{r.randrange(50)}", "at": at, "id": "m"}).encode()
    if kind < 7:
        return "contacts", json.dumps({"contact_id": contact, "groups": ["a", "b"], "attributes": {"n": 1, "t": "x"}, "at": at}).encode()
    if kind < 9:
        rule = r.choice(list(RULES))
        message = Join(contact, {rule: hit(at, h8("x"))}, ids={hit(at, h8("x")): "x"}) if kind == 7 else Unite(contact, f"c{r.randrange(50)}")
        return "handoffs", handoffs.encode(message)
    message = Join(contact, {next(iter(RULES)): hit(at, h8("y"))})
    return "rebuilt-evidence", handoffs.encode(message)


def fuzz_records(count: int, seed: int, say: Callable[[str], None]) -> Found:
    """Raises whatever fails; what is refused is refused in words."""
    bulk.loops.warm()
    intake.loops.warm()
    r, said, matcher = Random(seed), Counter[str](), Matcher(RULES)
    views = Views([View(parse_journey(JOURNEY), told=True)])
    keep: dict[bytes, bytes] = {}
    memory = psutil.Process()
    early = 0
    for done in range(0, count, CHUNK):
        chunks: dict[str, list[Record]] = {}
        for offset in range(done, min(done + CHUNK, count)):
            source, raw, own = seeds(r)
            value = None if r.random() < 0.002 else mutated(r, raw)
            key = r.choice((None, b"", b"c1", b"\xff\xfe", value[:20] if value else b"k"))
            key = own if own is not None and r.random() < 0.8 else key
            chunks.setdefault(source, []).append(Record(offset, NOW_MS, key, value, [("h", None)] if r.random() < 0.01 else ()))
        for source, chunk in chunks.items():
            if source in READ_ALONE:
                for record in chunk:
                    said[f"{source} {READ_ALONE[source](record)}"] += 1
                continue
            taken = _taken(source, chunk, matcher)
            for _, refused in taken.refused:
                assert refused.message, "a refusal says why"
                said[f"{source} {refused.code}"] += 1
            said[f"{source} taken"] += len(chunk) - len(taken.refused)
            batch = Batch(views, keep.get, lambda _: True)
            if taken.arrived:
                batch.activities(taken.arrived)
            for message in taken.messages:
                batch.deliver(message)
            for place, written in batch.decide().records.items():
                keep.pop(place, None)
                if written is not None:
                    keep[place] = written
        while len(keep) > 20_000:
            keep.pop(next(iter(keep)))
        if done <= count // 10:
            early = memory.memory_info().rss
        if done % 100_000 == 0 and done:
            say(f"{done:,} records")
    return Found(said, memory.memory_info().rss / early)


class ControlTopics:
    """What a worker, a console and its pages make of records of the control topics."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self._journey = parse_journey(JOURNEY)

    def take(self, source: str, record: Record) -> str:
        """Take one record; return the code of its refusal, or "taken"."""
        catalog = self.catalog
        catalog.take(source, record.key, record.value, record.offset)
        refused = catalog.refused[source].pop(record.offset, None)
        if refused is not None:
            assert refused.code != "bad_record", "no decoder raises what it does not name"
            return refused.code
        table = catalog.recalculations
        for one in table.all():
            recalculation_line(shown(one), {})
            if one.state in (FILLING, SWITCHING):
                after = advance(one, catalog.reports, 2, Flush(), {0: 0, 1: 0}, NOW_MS)
                assert recalculation.decode(one.id.encode(), recalculation.encode(after)) == after
        table.source(self._journey)
        catalog.reports.common("fuzz", 2)
        begin(table, [self._journey], NOW_MS)
        if len(table.records) > 20:
            self.catalog = Catalog()
        return "taken"


_control = ControlTopics()


def _changelog(record: Record) -> str:
    try:
        refused = refusal(record.key, record.value)
    except records.UnknownVersion:
        return "of a later program"
    return "taken" if refused is None else refused.code


_sessions = Sessions()


def _session(record: Record) -> str:
    try:
        _sessions.take(record.offset, record.key, record.value)
    except (ValueError, msgspec.MsgspecError, RecursionError):  # what the console passes over
        return "refused"
    _sessions.outlived(NOW_MS)
    _sessions.wants_key(NOW_MS)
    return "taken"


def _rejected(record: Record) -> str:
    listed = rejected.row(SimpleNamespace(partition=0, **record._asdict()))
    rejected.rejected_at_ms(record)
    return "listed" if json.dumps(listed) else ""


READ_ALONE: dict[str, Callable[[Record], str]] = {
    **{source: partial(_control.take, source) for source in CONTROL},
    "evidence-changelog": _changelog,
    "rejected": _rejected,
    "sessions": _session,
}
NOT_READ = {"stage-changes", "totals", "audit"}
"""Topics that nothing of Waypost reads while it runs: they are for others."""


def _taken(source: str, chunk: list[Record], matcher: Matcher) -> intake.Taken:
    if source == "activities":
        fetched = Rows(block_of(chunk)) if len(chunk) % 2 else chunk
        return intake.activities(fetched, matcher, NOW_MS, AHEAD_MS)
    if source == "contact-merges":
        return intake.merges(chunk, source, 0, NOW_MS, AHEAD_MS)
    if source == "contacts":
        return intake.profiles(chunk, NOW_MS, AHEAD_MS)
    return intake.handed_over(chunk)
