"""Recalculation: a rebuilding of evidence from the log, as the recalculations topic has it. What follows from one `state.recalculation` decides.

One value a key, the recalculation's id: its state and progress (contract, section 4). Beside it, on a topic that is nobody's but ours, parts of it
report: a partition of the workers what it has recorded, joined and shown, a partition of the log how far it was read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import Refused
from .rules import Rule, catalogue, parameters
from .times import format_ms, parse_ms

PLANNED, FILLING, SWITCHING, LIVE, CANCELLED, FAILED = "planned", "filling", "switching", "live", "cancelled", "failed"
STATES = (PLANNED, FILLING, SWITCHING, LIVE, CANCELLED, FAILED)
OVER = frozenset({LIVE, CANCELLED, FAILED})
REQUEST, EDIT, SCHEDULE = "request", "edit", "schedule"
CAUSES = (REQUEST, EDIT, SCHEDULE)
WORKER, JOB, VIEWS = "worker", "job", "views"
_TIMES = ("planned_at", "started_at", "switched_at", "finished_at", "log_from")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalculation:
    """`epoch`: counts the recalculations that began to fill, from 1; 0 while planned. Times in milliseconds since 1970 UTC or None.

    `journeys`: for which it was asked; `rules`: whose evidence it rebuilds. `retired`: keys (`schemas.rules.rule_key`, hex) of rules whose evidence
    is given up, `unneeded`: since when no journey needs one. `log_from`: the time of the oldest record that the log had. `events_read`,
    `events_total`: records of the log; `changed`: contacts whose stages are others than they were.
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

    @property
    def over(self) -> bool:
        return self.state in OVER

    def but(self, **changes: Any) -> Recalculation:
        """The same with *changes*."""
        return replace(self, **changes)


def rule_json(rule: Rule) -> dict[str, Any]:
    """A rule as journeys write it."""
    return {"rule": rule.name, **parameters(rule)}


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
    }  # fmt: skip
    for name in _TIMES:
        time_ms = getattr(what, name)
        said[name] = None if time_ms is None else format_ms(time_ms)
    if what.retired:
        said["retired"] = sorted(what.retired)
    if what.unneeded:
        said["unneeded"] = {key: format_ms(at) for key, at in sorted(what.unneeded.items())}
    return said


def encode(what: Recalculation) -> bytes:
    """The value of the topic."""
    return json.dumps(recalculation_json(what), ensure_ascii=False).encode()


def decode(key: bytes | None, value: bytes) -> Recalculation:
    """The recalculation of a record of the topic. Raises Refused, whatever the bytes are."""
    try:
        said = json.loads(value)
        if said["id"] != (key or b"").decode() or said["state"] not in STATES or said["cause"] not in CAUSES:
            raise Refused("bad_recalculation", "id, state or cause is none that a recalculation has")
        times: dict[str, Any] = {name: None if said.get(name) is None else parse_ms(said[name]) for name in _TIMES}
        return Recalculation(
            id=said["id"], state=said["state"], cause=said["cause"], journeys=tuple(map(str, said["journeys"])),
            rules=tuple(rule for rule in map(_installed, said["rules"]) if rule is not None), epoch=int(said["epoch"]), throttle=said.get("throttle"),
            progress=float(said.get("progress") or 0.0), events_read=int(said.get("events_read") or 0), events_total=said.get("events_total"),
            events_per_second=said.get("events_per_second"), eta_seconds=said.get("eta_seconds"), changed=said.get("changed"),
            reason=said.get("reason"), retired=frozenset(said.get("retired") or ()),
            unneeded={k: parse_ms(at) for k, at in (said.get("unneeded") or {}).items()},
            planned_at=times.pop("planned_at") or 0, **times,
        )  # fmt: skip
    except Refused:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused("bad_recalculation", f"not a recalculation: {error!r}") from None


# -- reports ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What the owner of a partition says of a recalculation.

    `recording_from`: every activity of this partition's log from this offset on is recorded under the new epoch, now and by whoever comes after;
    `log_begin`: where the log begins. `joined`, `handed`: the next offsets of rebuilt evidence and of handoffs not joined yet. `scanned`: 0 to 1, how
    much of it shows; `shown`: all of it.
    """

    recording_from: int
    log_begin: int = 0
    joined: int = 0
    handed: int = 0
    scanned: float = 0.0
    shown: bool = False
    changed: int = 0


@dataclass(frozen=True, slots=True)
class JobReport:
    """What the job says of a partition of the log: read from `begin` up to `read`, and what it wrote of that ends before `written`
    (partition -> offset)."""

    begin: int
    read: int
    at_ms: int
    written: dict[int, int] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ViewsReport:
    """Of a journey, what can be read in a partition: `(version, generation)`, the oldest first."""

    views: tuple[tuple[int, int], ...]


Report = WorkerReport | JobReport | ViewsReport
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


def decode_schedule(value: bytes) -> Schedule:
    """The schedule of `encode_schedule`. Raises Refused."""
    try:
        said = json.loads(value)
        return Schedule(str(said["cron"]), str(said["zone"]), parse_ms(said["since"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused("bad_schedule", f"not a schedule: {error!r}") from None


_WHOLE = {WORKER: ("recording_from", "log_begin", "joined", "handed", "changed"), JOB: ("begin", "read", "at_ms"), VIEWS: ()}


def report_key(what: str, who: str, partition: int) -> bytes:
    """The key of a report: of a recalculation `id/worker/3` or `id/job/3`, of a journey `id/views/3`."""
    return f"{what}/{who}/{partition}".encode()


def encode_report(report: Report) -> bytes:
    """The value of a report."""
    fields = {name: getattr(report, name) for name in report.__dataclass_fields__}
    return json.dumps(fields).encode()


def decode_report(key: bytes | None, value: bytes | None) -> tuple[str, str, int, Report | None]:
    """`(recalculation or journey, who, partition, report)`; the report is None for a tombstone. Raises Refused."""
    try:
        id_, who, number = (key or b"").decode().rsplit("/", 2)
        partition = int(number)
        if who not in (WORKER, JOB, VIEWS):
            raise ValueError(f"{who!r} does not report")
        if value is None:
            return id_, who, partition, None
        said = json.loads(value)
        if any(type(said[name]) is not int for name in _WHOLE[who]) or not isinstance(said.get("error", ""), str | None):
            raise ValueError("an offset that is no whole number")
        if who == WORKER:
            return id_, who, partition, WorkerReport(**{**said, "scanned": float(said["scanned"]), "shown": said["shown"] is True})
        if who == VIEWS:
            return id_, who, partition, ViewsReport(tuple(sorted((int(v), int(g)) for v, g in said["views"])))
        said["written"] = {int(p): int(offset) for p, offset in said["written"].items()}
        return id_, who, partition, JobReport(**said)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused("bad_report", f"not a report: {error!r}") from None
