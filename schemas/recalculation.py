"""Recalculation: a rebuilding of evidence from the log, as the recalculations topic has it. What follows from one `state.recalculation` decides.

One value a key, the recalculation's id: its state and progress (contract, section 4). Beside it, on a topic that is nobody's but ours, parts of it
report: a partition of the workers what it has recorded, joined and shown, a partition of the log how far it was read.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from .errors import Refused
from .rules import Rule, catalogue, parameters
from .times import DAY_MS, LAST_MS, datetime_ms, format_ms

PLANNED, FILLING, SWITCHING, LIVE, CANCELLED, FAILED = "planned", "filling", "switching", "live", "cancelled", "failed"
State = Literal["planned", "filling", "switching", "live", "cancelled", "failed"]
STATES: tuple[str, ...] = get_args(State)
OVER = frozenset({LIVE, CANCELLED, FAILED})
REQUEST, EDIT, SCHEDULE = "request", "edit", "schedule"
Cause = Literal["request", "edit", "schedule"]
CAUSES: tuple[str, ...] = get_args(Cause)
Phase = Literal["reading", "joining", "comparing", "confirming", "building", "cancelling"]
READING: Phase = "reading"
JOINING: Phase = "joining"
COMPARING: Phase = "comparing"
CONFIRMING: Phase = "confirming"
BUILDING: Phase = "building"
CANCELLING: Phase = "cancelling"
PHASES: tuple[Phase, ...] = (READING, JOINING, COMPARING, CONFIRMING, BUILDING)
"""What goes on while a recalculation fills (reading, joining, comparing) and switches (confirming,
building), in this order."""
WORKER, JOB, VIEWS, COMPARISON = "worker", "job", "views", "comparison"
_TIMES = ("planned_at", "started_at", "switched_at", "finished_at", "log_from", "confirmed_at")

# The types of the wire. msgspec takes nothing for another type: no text for a number, no 1.5, NaN
# or 1e999 for a whole number.
MAX_EPOCH = 2**31 - 1
MAX_AMOUNT = 1e12  # of what is measured: a rate, an expected duration
MAX_REASON = 2000  # characters of a reason as it is written; readers take more
MAX_CONTROL_MS = LAST_MS - 366 * DAY_MS
"""The last time on a control topic: with a time zone added, or a year, it is still in the calendar."""
MAX_WHOLE = 2**53 - 1
Whole = Annotated[int, Meta(ge=0, le=MAX_WHOLE)]
"""An offset, a number of records or contacts, milliseconds: what every reader of JSON holds exactly."""
Epoch = Annotated[int, Meta(ge=0, le=MAX_EPOCH)]
Partition = Annotated[int, Meta(ge=0, le=999_999)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Amount = Annotated[float, Meta(ge=0.0, le=MAX_AMOUNT)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Reason = Annotated[str, Meta(max_length=100_000)]
ControlTime = Annotated[int, Meta(ge=0, le=MAX_CONTROL_MS)] | Annotated[datetime, Meta(tz=True)]


@dataclass(frozen=True, slots=True)
class PhaseProgress:
    """How far a phase is, for how many seconds it has gone on, and of how many `total`: activities
    to read, messages to join, contacts to compare or to build views of."""

    name: Phase
    progress: Share = 0.0
    seconds: Amount = 0.0
    total: Whole = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """How many contacts reached a stage of a journey's version by the visible results, and by the
    rebuilt evidence.

    `expected`: by the visible evidence without what the log no longer holds.
    """

    journey: Name
    version: Whole
    stage: Whole
    visible: Whole
    expected: Whole
    rebuilt: Whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalculation:
    """`epoch`: counts the recalculations that began to fill, from 1; 0 while planned. Times in milliseconds since 1970 UTC or None.

    `journeys`: for which it was asked; `rules`: whose evidence it rebuilds. `retired`: keys (`schemas.rules.rule_key`, hex) of rules whose evidence
    is given up, `unneeded`: since when no journey needs one. `log_from`: the time of the oldest record that the log had. `events_read`,
    `events_total`: records of the log; `changed`: contacts whose stages are others than they were.

    `switched_at`: since when views are built over its evidence. `phase`: what goes on, see `PHASES`; of a cancelled one `cancelling`, while what
    was announced of it is taken back. `differences`: why it waits for a confirmation, which `confirmed_at` is the time of. `log_begins`: for each
    partition whose log has lost its beginning, the time of the first record that is left.
    """

    id: str
    state: str
    cause: str
    journeys: tuple[str, ...]
    rules: tuple[Rule, ...]
    epoch: int = 0
    throttle: float | None = None  # `events_per_second` as asked for
    planned_at: int = 0
    started_at: int | None = None
    switched_at: int | None = None
    finished_at: int | None = None
    log_from: int | None = None
    progress: float = 0.0
    events_read: int = 0
    events_total: int | None = None
    events_per_second: float | None = None  # at present
    eta_seconds: float | None = None
    changed: int | None = None
    reason: str | None = None
    retired: frozenset[str] = frozenset()
    unneeded: dict[str, int] = field(default_factory=dict)
    phase: str | None = None
    phases: tuple[PhaseProgress, ...] = ()
    confirmed_at: int | None = None
    differences: tuple[Difference, ...] = ()
    log_begins: dict[int, int] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.state in OVER

    @property
    def waits(self) -> bool:
        """Whether somebody has to confirm it before it is switched to."""
        return self.phase == CONFIRMING and not self.over and self.confirmed_at is None

    def but(self, **changes: Any) -> Recalculation:
        """The same with *changes*."""
        return replace(self, **changes)


def rule_json(rule: Rule) -> dict[str, Any]:
    """A rule as journeys write it."""
    return {"rule": rule.name, **parameters(rule)}


def rule_text(rule: Rule) -> bytes:
    """A rule as it stands in a recalculation's record."""
    return json.dumps(rule_json(rule), ensure_ascii=False).encode()


def _installed(data: dict[str, Any]) -> Rule | None:
    """The rule of `rule_json`; None when its type is not installed here any more, as no journey can have it then. Raises ValueError."""
    given = dict(data)
    found = catalogue().get(given.pop("rule"))
    return None if found is None else found(**given)


def recalculation_json(what: Recalculation) -> dict[str, Any]:
    """As topic and API show it."""
    said = {
        "id": what.id, "state": what.state, "cause": what.cause, "journeys": list(what.journeys), "epoch": what.epoch,
        "progress": what.progress, "events_read": what.events_read, "events_total": what.events_total,
        "events_per_second": what.events_per_second, "throttle": what.throttle, "eta_seconds": what.eta_seconds,
        "changed": what.changed, "reason": what.reason, "rules": [rule_json(rule) for rule in what.rules],
        "phase": what.phase, "phases": [asdict(one) for one in what.phases], "differences": [asdict(one) for one in what.differences],
    }  # fmt: skip
    for name in _TIMES:
        time_ms = getattr(what, name)
        said[name] = None if time_ms is None else format_ms(time_ms)
    if what.retired:
        said["retired"] = sorted(what.retired)
    if what.unneeded:
        said["unneeded"] = {key: format_ms(at) for key, at in sorted(what.unneeded.items())}
    if what.log_begins:
        said["log_begins"] = {str(p): at_ms for p, at_ms in sorted(what.log_begins.items())}
    return said


def encode(what: Recalculation) -> bytes:
    """The value of the topic."""
    return json.dumps(recalculation_json(what), ensure_ascii=False).encode()


class _RecalculationOnWire(msgspec.Struct):
    """The value of the topic, as `recalculation_json` writes it. Unknown fields are ignored."""

    id: Name
    state: State
    cause: Cause
    journeys: tuple[Name, ...]
    rules: list[dict[str, Any]]
    epoch: Epoch
    throttle: Amount | None = None
    planned_at: ControlTime | None = None
    started_at: ControlTime | None = None
    switched_at: ControlTime | None = None
    finished_at: ControlTime | None = None
    log_from: ControlTime | None = None
    progress: Share = 0.0
    events_read: Whole = 0
    events_total: Whole | None = None
    events_per_second: Amount | None = None
    eta_seconds: Amount | None = None
    changed: Whole | None = None
    reason: Reason | None = None
    retired: frozenset[Name] = frozenset()
    unneeded: dict[Name, ControlTime] = {}
    phase: Phase | None = None
    phases: tuple[PhaseProgress, ...] = ()
    confirmed_at: ControlTime | None = None
    differences: tuple[Difference, ...] = ()
    log_begins: dict[Partition, Annotated[int, Meta(ge=0, le=MAX_CONTROL_MS)]] = {}


_read_recalculation = msgspec.json.Decoder(_RecalculationOnWire).decode


def decode(key: bytes | None, value: bytes) -> Recalculation:
    """Return the recalculation of a record of the topic. Raises Refused, whatever the bytes are."""
    try:
        wire = _read_recalculation(value)
        fields = {name: getattr(wire, name) for name in wire.__struct_fields__}
        fields |= {
            name: None if fields[name] is None else _time_ms(fields[name]) for name in _TIMES
        }
        fields["planned_at"] = fields["planned_at"] or 0
        fields["unneeded"] = {rule: _time_ms(at) for rule, at in wire.unneeded.items()}
    except _DECODE_ERRORS as error:
        raise Refused("bad_recalculation", f"not a recalculation: {_short(error)}") from None
    if key != wire.id.encode():
        raise Refused(
            "bad_recalculation", "not a recalculation: its id is not the key of the record", "id"
        )
    try:
        fields["rules"] = tuple(rule for rule in map(_installed, wire.rules) if rule is not None)
    except Exception as error:  # the class of a rule type is anybody's code
        raise Refused(
            "bad_recalculation",
            f"not a recalculation: a rule cannot be made: {type(error).__name__}, {_short(error)}",
            "rules",
        ) from None
    return Recalculation(**fields)


_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Refused)


def _short(error: Exception) -> str:
    """Return what *error* says, of at most 500 characters: it may name a value of any size."""
    return str(error)[:500].encode(errors="replace").decode()


def _time_ms(at: int | datetime) -> int:
    """Return *at* in milliseconds. Raises Refused before 1970 and after `MAX_CONTROL_MS`."""
    at_ms = at if isinstance(at, int) else datetime_ms(at)
    if not 0 <= at_ms <= MAX_CONTROL_MS:
        raise Refused("bad_time", "a time is before 1970 or after the year 9998")
    return at_ms


# -- reports ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What the owner of a partition says of a recalculation.

    `recording_from`: every activity of this partition's log from this offset on is recorded under the new epoch, now and by whoever comes after;
    `log_begin`: where the log begins. `joined`, `handed`: the next offsets of rebuilt evidence and of handoffs not joined yet. `compared`, 0 to 1:
    how much of it is compared with what is visible; `scanned`: how much of it shows; `shown`: all of it.
    """

    recording_from: Whole
    log_begin: Whole = 0
    joined: Whole = 0
    handed: Whole = 0
    scanned: Share = 0.0
    shown: bool = False
    changed: Whole = 0
    compared: Share = 0.0


@dataclass(frozen=True, slots=True)
class JobReport:
    """What the job says of a partition of the log: read from `begin` up to `read`, and what it wrote of that ends before `written`
    (partition -> offset). What it has read up to `seen` it has not written yet: of all its partitions, evidence of `pending` contacts."""

    begin: Whole
    read: Whole
    at_ms: Whole
    written: dict[Partition, Whole] = field(default_factory=dict)
    error: Reason | None = None
    seen: Whole = 0
    pending: Whole = 0


@dataclass(frozen=True, slots=True)
class ViewsReport:
    """Of a journey, what can be read in a partition: `(version, generation)`, the oldest first."""

    views: tuple[tuple[Whole, Whole], ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """How many contacts of a partition reached each stage of a journey's version, see `Difference`."""

    journey: Name
    version: Whole
    visible: tuple[Whole, ...]
    expected: tuple[Whole, ...]
    rebuilt: tuple[Whole, ...]


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """What a partition found when it compared rebuilt evidence with the visible results: of how many
    contacts, and the journeys that are concerned."""

    contacts: Whole
    journeys: tuple[Compared, ...] = ()


Report = WorkerReport | JobReport | ViewsReport | ComparisonReport
SCHEDULE_KEY = b"schedule"  # beside the reports: since when which schedule is followed


@dataclass(frozen=True, slots=True)
class Schedule:
    """A cron expression, the time zone in which it is read, and the moment since when it is followed, in milliseconds."""

    cron: str
    zone: str
    since_ms: int


def encode_schedule(schedule: Schedule) -> bytes:
    """The value under `SCHEDULE_KEY`."""
    return json.dumps({"cron": schedule.cron, "zone": schedule.zone, "since": format_ms(schedule.since_ms)}).encode()


class _ScheduleOnWire(msgspec.Struct):
    cron: Annotated[str, Meta(max_length=10_000)]
    zone: Name
    since: ControlTime


_read_schedule = msgspec.json.Decoder(_ScheduleOnWire).decode


def decode_schedule(value: bytes) -> Schedule:
    """Return the schedule of `encode_schedule`. Raises Refused, whatever the bytes are."""
    try:
        wire = _read_schedule(value)
        return Schedule(wire.cron, wire.zone, _time_ms(wire.since))
    except _DECODE_ERRORS as error:
        raise Refused("bad_schedule", f"not a schedule: {_short(error)}") from None


_REPORTS: dict[str, type[Report]] = {
    WORKER: WorkerReport,
    JOB: JobReport,
    VIEWS: ViewsReport,
    COMPARISON: ComparisonReport,
}
_read_report = {who: msgspec.json.Decoder(type_).decode for who, type_ in _REPORTS.items()}
_REPORT_KEY = re.compile(rb"(.{1,800})/(worker|job|views|comparison)/(0|[1-9][0-9]{0,5})", re.DOTALL)


def report_key(what: str, who: str, partition: int) -> bytes:
    """The key of a report: of a recalculation `id/worker/3`, `id/job/3` or `id/comparison/3`, of a journey `id/views/3`."""
    return f"{what}/{who}/{partition}".encode()


def encode_report(report: Report) -> bytes:
    """The value of a report."""
    if isinstance(report, JobReport) and report.error is not None:
        report = replace(report, error=report.error[:MAX_REASON].encode(errors="replace").decode())
    return json.dumps(asdict(report)).encode()


def decode_report(key: bytes | None, value: bytes | None) -> tuple[str, str, int, Report | None]:
    """Return `(recalculation or journey, who, partition, report)`; the report of a tombstone is None.

    Raises Refused, whatever the bytes are.
    """
    found = _REPORT_KEY.fullmatch(key or b"")
    if found is None:
        raise Refused(
            "bad_report",
            f"not a report: the key is not ID/KIND/PARTITION with a kind of {', '.join(_REPORTS)}",
        )
    try:
        id_, who, partition = found[1].decode(), found[2].decode(), int(found[3])
        report = None if value is None else _read_report[who](value)
    except _DECODE_ERRORS as error:
        raise Refused("bad_report", f"not a report: {_short(error)}") from None
    if isinstance(report, ViewsReport):
        report = ViewsReport(tuple(sorted(report.views)))
    return id_, who, partition, report
