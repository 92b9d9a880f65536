"""Edits: what the next version of a journey changes, in sentences, and what saving it costs. Pure; saves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.journey import Condition, Journey, Stage
from schemas.rules import Rule
from state.recalculation import Table, rules_by_key


def sentence(condition: Condition) -> str:
    """A condition in words: its rules' sentences joined by "or" and "and", conditions in it in brackets."""
    parts = [f"({sentence(m)})" if isinstance(m, Condition) else m.describe() for m in condition.members]
    return (" or " if condition.op == "any" else " and ").join(parts)


def changes(before: Journey | None, after: Journey) -> list[str]:
    """What *after* changes about *before*, a sentence each; empty when they say the same. Stages are known again by their names, else by place."""
    if before is None:
        return [f"Created with {_stages(len(after.stages))}"]
    said = []
    if before.name != after.name:
        said.append(f"Renamed from “{before.name}” to “{after.name}”")
    if before.scheduled_recalculation != after.scheduled_recalculation:
        said.append(f"Scheduled recalculation turned {'on' if after.scheduled_recalculation else 'off'}")
    pairs, gone = _matched(before, after)
    for k, stage in enumerate(gone):
        if stage is not None:
            said.append(f"Removed stage {k + 1}, {stage.name}")
    kept = [old for old in pairs if old is not None]
    moved = kept != sorted(kept)
    for k, (stage, old) in enumerate(zip(after.stages, pairs, strict=True), 1):
        if old is None:
            said.append(f"Added stage {k}, {stage.name}")
            continue
        was = before.stages[old]
        where = f"stage {k}, {stage.name}"
        if moved and old + 1 != k:
            said.append(f"Moved {where}, from place {old + 1}")
        if was.name != stage.name:
            said.append(f"Renamed stage {k} from “{was.name}” to “{stage.name}”")
        if was.kpi != stage.kpi:
            said.append(f"KPI of {where}: {_kpi(was)} → {_kpi(stage)}")
        if was.condition != stage.condition:
            said.append(f"Condition of {where}: {sentence(was.condition)} → {sentence(stage.condition)}")
    return said


def _matched(before: Journey, after: Journey) -> tuple[list[int | None], list[Stage | None]]:
    """For each stage of *after* the place (from 0) of what it was in *before*, or None; and what is left of *before*, by place."""
    left: dict[str, int] = {stage.name: k for k, stage in enumerate(before.stages)}
    pairs: list[int | None] = [left.pop(stage.name, None) for stage in after.stages]
    for k, old in enumerate(pairs):  # a stage with a new name in the same place, and with the same condition or neighbours, was renamed
        if old is None and k < len(before.stages) and before.stages[k].name in left:
            pairs[k] = left.pop(before.stages[k].name)
    return pairs, [stage if stage.name in left else None for stage in before.stages]


def _stages(count: int) -> str:
    return f"{count} stage" if count == 1 else f"{count} stages"


def _kpi(stage: Stage) -> str:
    return "none" if stage.kpi is None else f"{stage.kpi:,}"


def cost(table: Table, journey: Journey, activities: int | None, rate: float | None) -> dict[str, Any]:
    """What saving *journey* brings: whether the log has to be read, for which rules, and for about how long.

    *activities*: how many the log has; *rate*: how many a second the last recalculation read; None where it is not known.
    """
    new = new_rules(table, journey)
    seconds = None if not new or activities is None or not rate else round(activities / rate, 1)
    return {
        "recalculation": bool(new),
        "rules": [rule.describe() for rule in new.values()],
        "activities": activities if new else None,
        "seconds": seconds,
    }


def new_rules(table: Table, journey: Journey) -> Mapping[bytes, Rule]:
    """The rules of *journey*, by their keys, of which no evidence was ever collected."""
    return {key: rule for key, rule in rules_by_key(journey).items() if not table.standing(key).readable}
