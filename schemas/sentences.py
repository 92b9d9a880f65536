"""Sentences: what pydantic found wrong, in our words. Decides nothing; only says."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

from .errors import shown

TYPES = {
    "string_type": "a text",
    "string_unicode": "a text of valid Unicode",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}


class Broken(NamedTuple):
    """A broken rule: `code` for programs; `path` from the validated value, such as `groups[1]`; `sentence` without the place."""

    code: str
    path: str
    sentence: str

    def told_of(self, place: str) -> str:
        """The sentence with *place* before it."""
        if not place:
            return self.sentence
        return f"{place} {self.sentence}" if self.sentence.startswith(("is ", "has ")) else f"{place}: {self.sentence}"


def broken(details: Any) -> Broken:
    """What one entry of `ValidationError.errors()` says."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    path = joined(details["loc"])
    if kind == "missing":
        return Broken("missing_field", path, "is missing; add it")
    if kind in TYPES:
        return Broken("wrong_type", path, f"{shown(value)} is not {TYPES[kind]}; give {TYPES[kind]}")
    if kind == "string_too_short":
        return Broken("empty_field", path, f"is empty; give at least {characters(context['min_length'])}")
    if kind == "string_too_long":
        return Broken("too_long", path, f"has {len(value)} characters; give at most {context['max_length']}")
    if kind.startswith("text_"):  # schemas.text
        return Broken("bad_" + kind.removeprefix("text_"), path + context["at"], context["sentence"])
    if kind == "value_error":
        return Broken("bad_value", path, str(context["error"]))
    return Broken("bad_value", path, lowered(details["msg"]))


def joined(loc: Iterable[str | int]) -> str:
    """A path such as `stages[2].condition` of pydantic's location."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in loc).removeprefix(".")


def characters(number: int) -> str:
    return "one character" if number == 1 else f"{number} characters"


def lowered(text: str) -> str:
    """*text* as it goes on after a colon."""
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def meant(name: object, names: Iterable[str]) -> str:
    """` did you mean "stages"?`, when *name* is close to one of *names*; else nothing."""
    close = get_close_matches(name, list(names), n=1) if isinstance(name, str) and len(name) <= 100 else []
    return f' did you mean "{close[0]}"?' if close else ""
