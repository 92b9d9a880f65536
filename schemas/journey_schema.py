"""Journey schema: what a journey file may hold, as JSON Schema, for editors, the API's description and the docs. `journey.parse_journey` decides."""

from typing import Any

from .journey import MAX_DEPTH, MAX_ID, MAX_KPI, MAX_NAME, MAX_RULES, MAX_STAGES, MAX_VERSION, OPS
from .rules import Rule, catalogue

ADDED = "added by the API; ignored in what is sent"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def journey_schema(ref: str = "#/$defs/{}") -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of a journey, and the definitions that it refers to by *ref* (in OpenAPI: `#/components/schemas/{}`).

    Says all rules of contract section 2 but three that JSON Schema cannot: unique stage names, rules counted over a stage, valid patterns.
    """
    definitions: dict[str, Any] = {}
    members = []
    for name, rule_type in catalogue().items():
        title = f"Rule_{name}"
        definitions[title] = _rule(name, rule_type)
        members.append({"$ref": ref.format(title)})
    for depth in range(MAX_DEPTH, 0, -1):
        inner = [{"$ref": ref.format(f"Condition_{depth + 1}")}] if depth < MAX_DEPTH else []
        rows = {"type": "array", "minItems": 1, "maxItems": MAX_RULES, "items": {"anyOf": members + inner}}
        definitions[f"Condition_{depth}"] = {"anyOf": [_object({op: rows}, [op]) for op in OPS]}
    text = {"type": "string", "minLength": 1, "maxLength": MAX_NAME}
    kpi = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_KPI, "description": "target number of contacts"}
    definitions["Stage"] = _object(
        {"name": text, "kpi": kpi, "condition": {"$ref": ref.format("Condition_1")}}, ["name", "condition"]
    )
    journey = _object(
        {
            "id": {"type": "string", "pattern": "^[a-z0-9-]+$", "minLength": 1, "maxLength": MAX_ID},
            "name": text,
            "scheduled_recalculation": {"type": "boolean", "default": False},
            "stages": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_STAGES,
                "items": {"$ref": ref.format("Stage")},
            },
            "version": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_VERSION, "description": ADDED},
            "saved_at": {"type": ["string", "null"], "format": "date-time", "description": ADDED},
            "status": {"description": ADDED},
        },
        ["id", "name", "stages"],
    )
    return journey, definitions


def document() -> dict[str, Any]:
    """One JSON Schema document of a journey file."""
    journey, definitions = journey_schema()
    return {"$schema": DIALECT, "title": "Waypost journey", **journey, "$defs": definitions}


def _rule(name: str, rule_type: type[Rule]) -> dict[str, Any]:
    schema = rule_type.model_json_schema()
    body = {k: v for k, v in schema.items() if k not in ("title", "description", "properties", "required")}
    properties = {"rule": {"const": name}, **schema.get("properties", {})}
    return {**body, **_object(properties, ["rule", *schema.get("required", [])])}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
