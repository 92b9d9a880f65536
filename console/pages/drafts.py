"""Drafts: a journey while somebody writes it: incomplete, wrong in places. Makes of it what the builder shows; judges it as the API does. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from console.edits import sentence
from schemas.activity import FIELDS
from schemas.errors import Refused
from schemas.journey import MAX_DEPTH, MAX_RULES, MAX_STAGES, OPS, Journey, JourneyRefused, parse_journey
from schemas.rules import catalogue_data, rule_key
from schemas.text import OPERATORS
from state.progress import rules_of

WORDS = {"equals": "is", "not_equals": "is not", "contains": "contains", "not_contains": "does not contain", "starts_with": "starts with",
         "ends_with": "ends with", "one_of": "is one of", "matches": "matches the pattern"}  # fmt: skip
assert WORDS.keys() == OPERATORS.keys()


def judged(draft: Any) -> tuple[Journey | None, list[Refused]]:
    """`(the journey, what is wrong with it)`; the journey is None when anything is."""
    try:
        return parse_journey(given(draft)), []
    except JourneyRefused as refused:
        return None, refused.errors


def given(value: Any) -> Any:
    """*value* without the tests of rules whose text is empty: the operator is chosen, the parameter is not given. The page sends the same."""
    if isinstance(value, list):
        return [given(one) for one in value]
    if not isinstance(value, dict):
        return value
    rule = "rule" in value
    return {name: given(one) for name, one in value.items() if not (rule and isinstance(one, dict) and list(one.values()) in ([""], [[]]))}


def anchor(path: str | None) -> str:
    """The id, on the page, of what a path of an error or a draft names."""
    return "at-" + re.sub(r"[^a-z0-9_]+", "-", path or "").strip("-")


def shape(draft: Mapping[str, Any], selected: int, errors: list[Refused], new: frozenset[bytes]) -> dict[str, Any]:
    """What the builder shows of *draft*: all stages, the selected one in full. *new*: keys of rules that no evidence was ever collected for."""
    given = draft.get("stages")
    stages = [stage if isinstance(stage, dict) else {} for stage in given[:MAX_STAGES]] if isinstance(given, list) else []
    selected = max(0, min(selected, len(stages) - 1))
    types = {one["name"]: one for one in catalogue_data()}
    placed: dict[str, list[str]] = {}
    for error in errors:
        placed.setdefault(error.path or "", []).append(error.message)
    rows = []
    for k, stage in enumerate(stages):
        read, _ = judged({"id": "x", "name": "x", "stages": [{**stage, "name": "x"}]})
        rows.append(
            {
                "name": _text(stage.get("name")), "kpi": stage.get("kpi"), "at": f"stages[{k}]",
                "sentence": None if read is None else sentence(read.stages[0].condition),
                "wrong": any(path == f"stages[{k}]" or path.startswith(f"stages[{k}].") for path in placed),
            }
        )  # fmt: skip
    condition = None
    if stages:
        at = f"stages[{selected}].condition"
        condition = _node(stages[selected].get("condition"), at, 1, types, new)
    return {
        "stages": rows, "selected": selected, "condition": condition, "rules": _count(condition), "max_rules": MAX_RULES,
        "max_stages": MAX_STAGES, "max_depth": MAX_DEPTH, "words": WORDS, "errors": placed,
        "wrong": [{"message": error.message, "anchor": anchor(error.path), "stage": _stage_of(error.path)} for error in errors],
    }  # fmt: skip


def _stage_of(path: str | None) -> int | None:
    found = re.match(r"stages\[(\d+)\]", path or "")
    return int(found[1]) if found else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _node(value: Any, at: str, depth: int, types: Mapping[str, Any], new: frozenset[bytes]) -> dict[str, Any]:
    """A condition or a rule of a draft, whatever is written there."""
    data = value if isinstance(value, dict) else {}
    if "rule" in data:
        return _rule(data, at, types, new)
    op = next((op for op in OPS if op in data), "any")
    members = data.get(op)
    found = members if isinstance(members, list) and depth <= MAX_DEPTH else []
    return {
        "op": op, "at": at, "anchor": anchor(at), "depth": depth, "list": f"{at}.{op}",
        "members": [_node(one, f"{at}.{op}[{k}]", depth + 1, types, new) for k, one in enumerate(found[:200])],
    }  # fmt: skip


def _rule(data: Mapping[str, Any], at: str, types: Mapping[str, Any], new: frozenset[bytes]) -> dict[str, Any]:
    name = _text(data.get("rule"))
    info = types.get(name)
    read, _ = judged({"id": "x", "name": "x", "stages": [{"name": "x", "condition": {"any": [data]}}]})
    fresh = read is not None and rule_key(rules_of(read)[0]) in new
    base = {"rule": name, "at": at, "anchor": anchor(at), "new": fresh, "known": info is not None}
    if info is None:
        return {**base, "title": f"Unknown rule {name}", "fields": []}
    required = info["parameters"].get("required", [])
    fields = [_field(p, schema, data.get(p), at, p in required) for p, schema in info["parameters"]["properties"].items()]
    return {**base, "title": title(info["sentence"]), "fields": fields}


def title(text: str) -> str:
    """The head of a rule's sentence: what stands before its first parameter."""
    head = re.split(r"[\[{]", text)[0].strip() or text
    return head[:1].upper() + head[1:]


def _field(name: str, schema: Mapping[str, Any], value: Any, at: str, required: bool) -> dict[str, Any]:
    """A field of a rule's form, by the JSON Schema of its parameter."""
    options = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    objects = [next(iter(one["properties"])) for one in options if one.get("type") == "object" and one.get("properties")]
    base = {
        "name": name, "label": name.replace("_", " "), "at": f"{at}.{name}", "anchor": anchor(f"{at}.{name}"), "required": required,
        "offers": name if name in FIELDS else "type" if name == "activity" else None,
    }  # fmt: skip
    if objects and set(objects) <= OPERATORS.keys():  # a text test
        bare = next((one["description"] for one in options if one.get("type") == "string" and "description" in one), "")
        usual = next((op for op in objects if f"{{{op}:" in bare), objects[0])
        op, operand = next(iter(value.items()), (usual, "")) if isinstance(value, dict) else (usual, value)
        text = "\n".join(map(str, operand)) if isinstance(operand, list) else "" if operand is None else str(operand)
        return {**base, "kind": "test", "ops": objects, "op": op if op in objects else usual, "value": text}
    only = options[0] if len(options) == 1 else {}
    if "enum" in only:
        return {**base, "kind": "choice", "choices": only["enum"], "value": value}
    kind = {"string": "text", "integer": "whole", "number": "number", "boolean": "flag"}.get(only.get("type", ""), "json")
    return {**base, "kind": kind, "value": value}


def _count(node: Mapping[str, Any] | None) -> int:
    if node is None:
        return 0
    return 1 if "rule" in node else sum(_count(member) for member in node["members"])
