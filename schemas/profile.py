"""Profile: what is known of a contact (contract, section 1), newest wins. A null value is an erasure and never comes here."""

from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, Field

from .wire import Fact, Id, Moment, Name, OnTheWire

MIN_INT, MAX_INT = -(2**63), 2**64 - 1  # the whole numbers that JSON writers and readers agree on
TRUNCATED = '{"waypost_truncated":true}'
"""Canonical attributes in place of those that are not kept: a person with many large profiles has the newest of them whole."""
MAX_ATTRIBUTES_DEPTH = 50  # of objects and lists inside each other, so that every writer can write them again


def plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """*attributes* as they are, when they can be written as JSON again by anyone; raises ValueError."""
    level: list[Any] = [attributes]
    for _ in range(MAX_ATTRIBUTES_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, int):
                if not MIN_INT <= value <= MAX_INT:
                    raise ValueError("a number has more than 64 bits; send it as text")
            elif isinstance(value, float) and not float("-inf") < value < float("inf"):
                raise ValueError("a number is out of range; send it as text")
        if not below:
            return attributes
        level = below
    raise ValueError(f"objects and lists are nested more than {MAX_ATTRIBUTES_DEPTH} deep; flatten them")


class ContactProfile(Fact):
    """Groups break results down; attributes are shown and never counted."""

    contact_id: Id
    at: Moment
    groups: list[Name] = Field(default_factory=list)
    attributes: Annotated[dict[str, Any], AfterValidator(plain), OnTheWire(msgspec.Raw)] = Field(default_factory=dict)
