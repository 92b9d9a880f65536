"""Wire: the types and limits that the models of input facts share. Decodes nothing."""

import re
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from .errors import Refused
from .times import EARLIEST_MS, LAST_MS, parse_ms, refuse_early

MAX_BYTES = 1024 * 1024  # of one record's value (design, section 3, bad input)
MAX_DEPTH = (
    500  # of objects and lists inside each other in one record; below what the interpreter's stack holds anywhere
)
MAX_ID = 200  # characters of the id of a contact, an activity, a merge
MAX_TYPE = 250  # characters of an activity's type


class Fact(BaseModel):
    """An input fact: types are taken as they are, never coerced; unknown fields are ignored (contract, preamble)."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", populate_by_name=False)


class OnTheWire(NamedTuple):
    """Marks a field of a model that the compiled decoder reads as another type than the model holds."""

    type: Any


def _moment(value: object) -> int:
    try:
        return refuse_early(parse_ms(value))
    except Refused as refused:
        raise ValueError(refused.message) from None


NOT_BLANK = r"\S"
"""What an id must hold: a character that is not white space."""
_not_blank = re.compile(NOT_BLANK).search


def _id(value: str) -> str:
    if not _not_blank(value):
        raise ValueError("holds nothing but blanks; send the id of a contact")
    return value


Id = Annotated[
    str,
    Field(min_length=1, max_length=MAX_ID, json_schema_extra={"pattern": NOT_BLANK}),
    AfterValidator(_id),
    OnTheWire(Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID, pattern=NOT_BLANK)]),
]
"""The id of a contact."""

Name = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
"""The name of a group."""

Moment = Annotated[
    int,
    BeforeValidator(_moment),
    OnTheWire(
        Annotated[int, msgspec.Meta(ge=EARLIEST_MS, le=LAST_MS)] | Annotated[datetime, msgspec.Meta(tz=True)],
    ),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "format": "date-time"},
                {"type": "integer", "minimum": EARLIEST_MS, "maximum": LAST_MS},
            ],
            "description": "RFC 3339 with an offset, or milliseconds since 1970 UTC; not before the year 2000",
        }
    ),
]
"""The time of a fact: milliseconds since 1970 UTC, read from RFC 3339 or an integer; not before the year 2000."""
