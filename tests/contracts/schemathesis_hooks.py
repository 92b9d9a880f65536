"""Hooks for schemathesis: keep generated journeys to the three rules that JSON Schema cannot say (see schemas.journey_schema). Change nothing else.

Stage names are unique, patterns are RE2's, a stage has at most 50 rules over all its conditions. test_api.py shows that breaking them is refused.
"""

from __future__ import annotations

from typing import Any

import re2
import schemathesis

from schemas.journey import MAX_RULES
from schemas.text import pattern


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("stages"), list):
        _name_apart(body["stages"])
        for stage in body["stages"]:
            if isinstance(stage, dict):
                _mend_patterns(stage.get("condition"))
                _thin(stage.get("condition"), MAX_RULES)
    return body


def _name_apart(stages: list[Any]) -> None:
    seen: set[str] = set()
    for index, stage in enumerate(stages):
        name = stage.get("name") if isinstance(stage, dict) else None
        if isinstance(name, str) and name in seen:
            stage["name"] = f"{name[:150]} {index}"
        if isinstance(name, str):
            seen.add(stage["name"])


def _mend_patterns(value: Any) -> None:
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(one, dict) and set(one) == {"matches"} and isinstance(one["matches"], str):
            try:
                pattern(one["matches"])
            except (re2.error, UnicodeError):
                one["matches"] = "a.*b"
        else:
            _mend_patterns(one)


def _thin(condition: Any, left: int) -> int:
    """Takes rules away past *left*; how many are left then."""
    if not isinstance(condition, dict):
        return left
    for members in condition.values():
        if isinstance(members, list):
            for index, member in enumerate(list(members)):
                if left <= 0 and index > 0:
                    members.remove(member)
                elif isinstance(member, dict) and "rule" in member:
                    left -= 1
                else:
                    left = _thin(member, left)
    return left


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """What links put together of answers and generated parts is kept to the same rules."""
    map_body(context, case.body)
