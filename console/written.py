"""Written: reads journeys as people write them, in JSON or YAML, and finds what such readers pass over: names given twice. Judges no journey."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

import msgspec
import yaml

from schemas.errors import Refused, shown

MAX_VALUES = 1_000_000  # of a file of journeys


def from_json(raw: bytes) -> Any:
    """What *raw* says. Raises `Refused`: not JSON, nested too deep, a name given twice in one object."""
    try:
        said = msgspec.json.decode(raw)
        json.loads(raw.decode(), object_pairs_hook=_once, parse_int=str, parse_float=str)
    except RecursionError:
        raise Refused("too_deep", "objects and lists are nested too deep; flatten them") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused("not_json", f"the body is not JSON ({error}); send one journey as JSON in UTF-8") from None
    return said


def from_text(text: str, name: str) -> list[Any]:
    """The journeys in a file: one, or a list of them. Raises `Refused`, with the line of what is wrong. *name*: the file's, `.json` is JSON only."""
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise Refused("too_deep", "nested too deep to be a journey") from None
    except Refused:
        raise
    except ValueError as error:
        if text.lstrip()[:1] in ("{", "[") and name.endswith(".json"):
            raise Refused("not_json", f"not JSON: {error}") from None
        try:
            found = yaml.load(text, _Loader)
            _bounded(found)
        except Refused:
            raise
        except (yaml.YAMLError, RecursionError) as wrong:
            raise Refused("not_yaml", f"neither JSON nor YAML: {wrong}") from None
        except ValueError as wrong:  # a date that is none: 2026-13-45
            raise Refused("not_yaml", f"not YAML: {wrong}; put texts in quotes") from None
    return found if isinstance(found, list) else [found]


def _bounded(found: Any) -> None:
    """Raises `Refused` where aliases of YAML make far more of a text than stands in it."""
    left, stack = MAX_VALUES, [found]
    while stack:
        value = stack.pop()
        stack += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        left -= 1
        if left < 0:
            raise Refused("too_large", f"more than {MAX_VALUES:,} values, once its aliases are written out; write less into one file")


def _twice(name: object, where: str = "") -> str:
    return f"{shown(name)} is there twice in one object{where}; the first would be lost: join them, or take one away"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    said = dict(pairs)
    if len(said) < len(pairs):
        names = [name for name, _ in pairs]
        raise Refused("given_twice", _twice(next(name for name in names if names.count(name) > 1)))
    return said


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which would take the last of what is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise Refused("given_twice", _twice(key.value, f", line {key.start_mark.line + 1}"))
                seen.add(key.value)
        return super().construct_mapping(node, deep)
