"""Journey: stages with conditions, and the reading of journeys that people write. Every mistake becomes a sentence; no input can hurt it.

Limits are those of the contract, section 2. The reader walks by hand, never deeper than conditions may go and never past
`MAX_ERRORS` mistakes, so that neither nesting bombs nor endless lists cost anything.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, InstanceOf, ValidationError

from .errors import Refused, shown
from .rules import Rule, catalogue, parameters
from .sentences import broken, meant
from .times import format_ms, parse_ms

MAX_ID = 64
MAX_NAME = 200
MAX_STAGES = 10
MAX_DEPTH = 5  # conditions inside each other; a stage's own condition is the first
MAX_RULES = 50  # a stage
MAX_VERSION = 2**31 - 1
MAX_KPI = 2**53 - 1  # what every reader of JSON holds exactly
MAX_ERRORS = 50  # after so many mistakes the rest is not read

OPS = ("any", "all")
ADDED = ("version", "saved_at", "status")  # by the API; reading an answer back must work
JOURNEY_FIELDS = ("id", "name", "scheduled_recalculation", "stages")
STAGE_FIELDS = ("name", "kpi", "condition")


class _Value(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Condition(_Value):
    """Rules and conditions joined by *any* or *all*; never empty."""

    op: Literal["any", "all"]
    members: tuple["InstanceOf[Rule] | InstanceOf[Condition]", ...]


class Stage(_Value):
    """`kpi`: target number of contacts, or None."""

    name: str
    kpi: int | None = None
    condition: Condition


class Journey(_Value):
    """`version`: counts saved edits from 1; None before the first. `saved_at`: milliseconds since 1970 UTC."""

    id: str
    name: str
    scheduled_recalculation: bool = False
    stages: tuple[Stage, ...]
    version: int | None = None
    saved_at: int | None = None


class JourneyRefused(Refused):
    """A journey with mistakes. `errors`: all of them (at most `MAX_ERRORS`); code, message and path are the first one's."""

    def __init__(self, errors: list[Refused]) -> None:
        first = errors[0]
        more = "" if len(errors) == 1 else f" (and {len(errors) - 1} more)"
        super().__init__(first.code, first.message + more, first.path)
        self.errors = errors

    def __reduce__(self) -> Any:
        return (JourneyRefused, (self.errors,))


def parse_journey(data: object) -> Journey:
    """The journey that *data*, read from JSON or YAML, says. Raises `JourneyRefused`, whatever *data* is."""
    reader = _Reader()
    try:
        journey = reader.journey(data)
    except _Enough:
        journey = None
    if reader.errors or journey is None:
        raise JourneyRefused(reader.errors)
    return journey


def journey_json(journey: Journey) -> dict[str, Any]:
    """As the contract shows it (section 2), text parameters as `{operator: value}`; version and saved_at where there are any."""
    data: dict[str, Any] = {
        "id": journey.id,
        "name": journey.name,
        "scheduled_recalculation": journey.scheduled_recalculation,
        "stages": [_stage_json(stage) for stage in journey.stages],
    }
    if journey.version is not None:
        data["version"] = journey.version
    if journey.saved_at is not None:
        data["saved_at"] = format_ms(journey.saved_at)
    return data


def _stage_json(stage: Stage) -> dict[str, Any]:
    kpi = {} if stage.kpi is None else {"kpi": stage.kpi}
    return {"name": stage.name, **kpi, "condition": _condition_json(stage.condition)}


def _condition_json(condition: Condition | Rule) -> dict[str, Any]:
    if isinstance(condition, Condition):
        return {condition.op: [_condition_json(member) for member in condition.members]}
    return {"rule": condition.name, **parameters(condition)}


def body_digest(journey: Journey) -> bytes:
    """16 bytes, equal for journeys that say the same; version and saved_at do not count."""
    body = journey_json(journey.model_copy(update={"version": None, "saved_at": None}))
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return blake2b(text.encode(), digest_size=16).digest()


# -- reading ----------------------------------------------------------------------------------------------------------------


class _Enough(Exception):
    """So many mistakes that the rest is not worth reading."""


@dataclass
class _Reader:
    """Reads one journey and collects its mistakes. Methods give None for what they could not read."""

    errors: list[Refused] = field(default_factory=list)
    rules_left: int = MAX_RULES  # of the stage being read

    def wrong(self, code: str, path: str, where: str, sentence: str) -> None:
        self.errors.append(Refused(code, f"{where}: {sentence}" if where else sentence, path or None))
        if len(self.errors) >= MAX_ERRORS:
            raise _Enough

    def journey(self, data: object) -> Journey | None:
        if not isinstance(data, dict):
            self.wrong(
                "wrong_type", "", "journey", f"{shown(data)} is not an object; give one with {listed(JOURNEY_FIELDS)}"
            )
            return None
        self.unknown(data, "", "journey", JOURNEY_FIELDS, ADDED)
        id_ = self.text(data, "id", "", "journey", MAX_ID)
        if id_ is not None and not re.fullmatch(r"[a-z0-9-]+", id_):
            self.wrong(
                "bad_id", "id", "journey", f"id {shown(id_)} has other characters than a-z, 0-9 and -; choose another"
            )
        name = self.text(data, "name", "", "journey", MAX_NAME)
        scheduled = data.get("scheduled_recalculation", False)
        if not isinstance(scheduled, bool):
            self.wrong(
                "wrong_type",
                "scheduled_recalculation",
                "journey",
                f"scheduled_recalculation: {shown(scheduled)} is not true or false; give one of them",
            )
        stages = self.stages(data)
        version = data.get("version")
        if version is not None and (
            not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= MAX_VERSION
        ):
            self.wrong(
                "bad_version",
                "version",
                "journey",
                f"version: {shown(version)} is not a whole number from 1; leave it out",
            )
        saved_at = data.get("saved_at")
        if saved_at is not None:
            try:
                saved_at = parse_ms(saved_at)
            except Refused as refused:
                self.wrong(refused.code, "saved_at", "journey", f"saved_at: {refused.message}")
        if self.errors or id_ is None or name is None:
            return None
        return Journey(
            id=id_, name=name, scheduled_recalculation=scheduled, stages=stages, version=version, saved_at=saved_at
        )

    def stages(self, data: dict[Any, Any]) -> tuple[Stage, ...]:
        if "stages" not in data:
            self.wrong("missing_field", "stages", "journey", f"stages are missing; add 1 to {MAX_STAGES}")
            return ()
        rows = data["stages"]
        if not isinstance(rows, list):
            self.wrong("wrong_type", "stages", "journey", f"stages: {shown(rows)} is not a list; give a list of stages")
            return ()
        if not 1 <= len(rows) <= MAX_STAGES:
            self.wrong(
                "bad_stage_count",
                "stages",
                "journey",
                f"{len(rows)} stages; a journey has 1 to {MAX_STAGES}, " + ("remove some" if rows else "add one"),
            )
        names: dict[str, int] = {}
        stages = [self.stage(row, index, names) for index, row in enumerate(rows[:MAX_STAGES])]
        return tuple(stage for stage in stages if stage is not None)

    def stage(self, row: object, index: int, names: dict[str, int]) -> Stage | None:
        path, where = f"stages[{index}]", f"stage {index + 1}"
        if not isinstance(row, dict):
            self.wrong(
                "wrong_type", path, where, f"{shown(row)} is not an object; give one with {listed(STAGE_FIELDS)}"
            )
            return None
        if isinstance(row.get("name"), str) and row["name"]:
            where += f" {shown(row['name'])}"
        before = len(self.errors)
        self.unknown(row, path, where, STAGE_FIELDS)
        name = self.text(row, "name", path, where, MAX_NAME)
        if name is not None and names.setdefault(name, index) != index:
            self.wrong(
                "duplicate_name",
                f"{path}.name",
                where,
                f"stage {names[name] + 1} has the same name; give each stage its own",
            )
        kpi = row.get("kpi")
        if kpi is not None and (not isinstance(kpi, int) or isinstance(kpi, bool) or not 1 <= kpi <= MAX_KPI):
            self.wrong(
                "bad_kpi",
                f"{path}.kpi",
                where,
                f"kpi: {shown(kpi)} is not a whole number of contacts from 1; mend it or leave it out",
            )
        if "condition" not in row:
            self.wrong(
                "missing_field",
                f"{path}.condition",
                where,
                'condition is missing; add {"any": [...]} with at least one rule',
            )
            return None
        self.rules_left = MAX_RULES
        condition = self.condition(row["condition"], f"{path}.condition", where, 1)
        if len(self.errors) > before or condition is None or name is None:
            return None
        return Stage(name=name, kpi=kpi, condition=condition)

    def condition(self, data: object, path: str, where: str, depth: int) -> Condition | None:
        what = "condition" if depth == 1 else "inner condition"
        if depth > MAX_DEPTH:
            self.wrong("too_deep", path, where, f"conditions are nested more than {MAX_DEPTH} deep; flatten them")
            return None
        if not isinstance(data, dict):
            self.wrong(
                "wrong_type",
                path,
                where,
                f'{what}: {shown(data)} is not an object; write {{"any": [...]}} or {{"all": [...]}}',
            )
            return None
        if not data:
            self.wrong("empty_condition", path, where, f"{what} is empty; {_way_out(depth)}")
            return None
        ops = [op for op in OPS if op in data]
        if not ops and "rule" in data:
            self.wrong("bare_rule", path, where, f'{what} is a rule; write it inside {{"any": [...]}}')
            return None
        self.unknown(data, path, f"{where}, {what}", OPS)
        if len(ops) != 1:
            if ops:
                self.wrong("any_and_all", path, where, f"{what} has both any and all; nest one in the other")
            return None
        op = ops[0]
        rows = data[op]
        if not isinstance(rows, list):
            self.wrong(
                "wrong_type",
                f"{path}.{op}",
                where,
                f"{what}: {op} is {shown(rows)}; give a list of rules and conditions",
            )
            return None
        if not rows:
            self.wrong("empty_condition", path, where, f"{what} is empty; {_way_out(depth)}")
            return None
        members = []
        for index, row in enumerate(rows):
            if self.rules_left < 0:
                return None
            members.append(self.member(row, f"{path}.{op}[{index}]", where, depth))
        found = tuple(member for member in members if member is not None)
        return Condition(op=op, members=found) if len(found) == len(members) else None  # type: ignore[arg-type]

    def member(self, row: object, path: str, where: str, depth: int) -> Rule | Condition | None:
        if isinstance(row, dict):
            if "rule" in row:
                return self.rule(row, path, where)
            if any(op in row for op in OPS) or not row:
                return self.condition(row, path, where, depth + 1)
        given = f" with {listed(map(shown, list(row)[:3]))}" if isinstance(row, dict) else ""
        way_out = 'write {"rule": ...}, {"any": [...]} or {"all": [...]}'
        self.wrong("wrong_type", path, where, f"{shown(row)}{given} is neither a rule nor a condition; {way_out}")
        return None

    def rule(self, row: dict[Any, Any], path: str, where: str) -> Rule | None:
        self.rules_left -= 1
        if self.rules_left < 0:
            self.wrong(
                "too_many_rules",
                path,
                where,
                f"more than {MAX_RULES} rules in one stage; use one_of or matches, or remove some",
            )
            return None
        name, types = row["rule"], catalogue()
        rule_type = types.get(name) if isinstance(name, str) else None
        if rule_type is None:
            self.wrong(
                "unknown_rule",
                f"{path}.rule",
                where,
                f"unknown rule {shown(name)};{meant(name, types) or ' use one of ' + listed(types)}",
            )
            return None
        where = f"{where}, {name}"
        given = {key: value for key, value in row.items() if key != "rule"}
        known = tuple(rule_type.model_fields)
        for op in OPS:
            if op in given and op not in known:
                self.wrong(
                    "rule_and_condition", path, where, f"a rule cannot have {op}; put the rule inside the list of {op}"
                )
                return None
        before = len(self.errors)
        self.unknown(given, path, where, known)
        try:
            rule = rule_type.model_validate({key: given[key] for key in known if key in given})
        except ValidationError as error:
            for details in error.errors(include_url=False):
                what = broken(details)
                parameter = str(details["loc"][0]) if details["loc"] else ""
                self.wrong(what.code, f"{path}.{what.path}" if what.path else path, where, what.told_of(parameter))
            return None
        return rule if len(self.errors) == before else None

    def text(self, data: dict[Any, Any], name: str, path: str, where: str, longest: int) -> str | None:
        at = f"{path}.{name}".lstrip(".")
        if name not in data:
            self.wrong("missing_field", at, where, f"{name} is missing; add it")
            return None
        value = data[name]
        if not isinstance(value, str):
            self.wrong("wrong_type", at, where, f"{name}: {shown(value)} is not a text; put it in quotes")
        elif not value:
            self.wrong("empty_field", at, where, f"{name} is empty; give 1 to {longest} characters")
        elif len(value) > longest:
            self.wrong("too_long", at, where, f"{name} has {len(value)} characters; give at most {longest}")
        elif not valid_unicode(value):
            self.wrong(
                "bad_text", at, where, f"{name} is not valid Unicode (a lone surrogate); write the character itself"
            )
        else:
            return value
        return None

    def unknown(
        self, data: dict[Any, Any], path: str, where: str, known: tuple[str, ...], silent: tuple[str, ...] = ()
    ) -> None:
        for name in data:
            if name not in known and name not in silent:
                at = f"{path}.{name}".lstrip(".") if isinstance(name, str) and name.isidentifier() else path
                fields = f" the fields are {listed(known)}" if known else " there are none"
                self.wrong("unknown_field", at, where, f"unknown field {shown(name)};{meant(name, known) or fields}")


def _way_out(depth: int) -> str:
    return "add a rule or remove the stage" if depth == 1 else "add a rule or remove it"


def listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def valid_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
