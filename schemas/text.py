"""Text: the operators by which rules test a field, and how a parameter spells one. Evaluates no rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import re2
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from .errors import shown
from .sentences import meant

MAX_OPERAND = 4000  # characters of one text or pattern
Operand = str | tuple[str, ...]


class Operator(NamedTuple):
    """`phrase`: how people say it. `negative`: a missing field passes. `test(text, operand)` gets both casefolded (a pattern: neither)."""

    phrase: str
    negative: bool
    test: Callable[[str, Any], bool]


def _options() -> Any:
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    return options


RE2_OPTIONS = _options()


@lru_cache(maxsize=4096)
def pattern(source: str) -> Any:
    """The compiled RE2 pattern, which ignores case. Raises `re2.error`."""
    return re2.compile(source, RE2_OPTIONS)


OPERATORS: dict[str, Operator] = {
    "contains": Operator("containing", False, lambda text, operand: operand in text),
    "not_contains": Operator("not containing", True, lambda text, operand: operand not in text),
    "starts_with": Operator("starting with", False, lambda text, operand: text.startswith(operand)),
    "ends_with": Operator("ending with", False, lambda text, operand: text.endswith(operand)),
    "equals": Operator("", False, lambda text, operand: text == operand),
    "not_equals": Operator("other than", True, lambda text, operand: text != operand),
    "one_of": Operator("one of", False, lambda text, operand: text in operand),
    "matches": Operator("matching", False, lambda text, operand: pattern(operand).search(text) is not None),
}


@dataclass(frozen=True, slots=True)
class TextTest:
    """`operator` of `OPERATORS`, and its operand: a text, for `one_of` a tuple of texts."""

    operator: str
    operand: Operand

    def passes(self, value: str | None) -> bool:
        """Whether a field with *value* passes; None is a missing field (design, section 3, rules)."""
        operator = OPERATORS[self.operator]
        if value is None:
            return operator.negative
        if self.operator == "matches":
            return operator.test(value, self.operand)
        return operator.test(value.casefold(), folded(self.operand))

    def json(self) -> dict[str, Any]:
        """As a journey file spells it: `{operator: value}`."""
        return {self.operator: list(self.operand) if isinstance(self.operand, tuple) else self.operand}

    def canonical(self) -> dict[str, Any]:
        """The same for all spellings that test the same: case folded, lists in order and without repeats."""
        if self.operator == "matches":
            return self.json()
        operand = folded(self.operand)
        return {self.operator: sorted(set(operand)) if isinstance(operand, tuple) else operand}

    def describe(self) -> str:
        """As people say it: `containing "loan"`."""
        texts = self.operand if isinstance(self.operand, tuple) else (self.operand,)
        quoted = ", ".join(f'"{text}"' for text in texts)
        return f"{OPERATORS[self.operator].phrase} {quoted}".lstrip()


def folded(operand: Operand) -> Operand:
    return tuple(text.casefold() for text in operand) if isinstance(operand, tuple) else operand.casefold()


def _bad(kind: str, sentence: str, at: str = "") -> PydanticCustomError:
    return PydanticCustomError("text_" + kind, "{sentence}", {"sentence": sentence, "at": at})


@dataclass(frozen=True)
class Text:
    """Annotates a parameter that tests a text: `{operator: value}`, or a bare string, which means *default*."""

    default: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse, serialization=core_schema.plain_serializer_function_ser_schema(TextTest.json)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        text = {"type": "string", "minLength": 1, "maxLength": MAX_OPERAND}
        operators = [
            {
                "type": "object",
                "properties": {name: {"type": "array", "items": text, "minItems": 1} if name == "one_of" else text},
                "required": [name],
                "additionalProperties": False,
            }
            for name in OPERATORS
        ]
        return {"anyOf": [{**text, "description": f"the same as {{{self.default}: …}}"}, *operators]}

    def parse(self, value: object) -> TextTest:
        if isinstance(value, TextTest):
            value = value.json()
        if isinstance(value, str):
            value = {self.default: value}
        if not isinstance(value, dict):
            raise _bad(
                "type",
                f'{shown(value)} is neither a text nor an operator with a value; write "text" or {{{self.default}: "text"}}',
            )
        if len(value) != 1:
            raise _bad("operators", f"{len(value)} operators; give exactly one of {', '.join(OPERATORS)}")
        ((name, operand),) = value.items()
        if not isinstance(name, str) or name not in OPERATORS:
            raise _bad(
                "operator",
                f"unknown operator {shown(name)};{meant(name, OPERATORS) or ' use one of ' + ', '.join(OPERATORS)}",
            )
        if name == "one_of":
            if not isinstance(operand, list | tuple) or not operand:
                what = "the list is empty" if operand in ([], ()) else f"{shown(operand)} is not a list of texts"
                raise _bad("operand", f'{what}; write ["first", "second"]', ".one_of")
            return TextTest(name, tuple(self._text(text, f".one_of[{i}]") for i, text in enumerate(operand)))
        text = self._text(operand, f".{name}")
        if name == "matches":
            try:
                pattern(text)
            except re2.error as error:
                raise _bad(
                    "pattern",
                    f"{shown(text)} is not a pattern of RE2 ({_said(error)}); mend it, or use contains",
                    ".matches",
                ) from None
        return TextTest(name, text)

    @staticmethod
    def _text(value: object, at: str) -> str:
        if not isinstance(value, str):
            raise _bad("operand", f"{shown(value)} is not a text; put it in quotes", at)
        if not value:
            raise _bad("operand", "the text is empty; write what to look for", at)
        if len(value) > MAX_OPERAND:
            raise _bad("operand", f"the text has {len(value)} characters; at most {MAX_OPERAND} are allowed", at)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _bad(
                "operand", f"{shown(value)} is not valid Unicode (a lone surrogate); write the character itself", at
            ) from None
        return value


def _said(error: Any) -> str:
    said = error.args[0] if error.args else "invalid"
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)


Contains = Annotated[TextTest, Text("contains")]
"""A text parameter whose bare string means `contains`."""

Equals = Annotated[TextTest, Text("equals")]
"""A text parameter whose bare string means `equals`."""
