"""Activity: one thing a contact did at a time (contract, section 1). The model is the definition; the codec's decoder derives from it."""

from typing import Annotated

from pydantic import Field

from .wire import MAX_ID, MAX_TYPE, Fact, Id, Moment


class Activity(Fact):
    """One thing that `contact_id` did; the same `id` twice is the same activity, and without one the hash of the content stands in."""

    contact_id: Id
    type: Annotated[str, Field(min_length=1, max_length=MAX_TYPE)]
    at: Moment
    id: Annotated[str, Field(max_length=MAX_ID)] | None = None
    page: str | None = None
    url: str | None = None
    channel: str | None = None
    form: str | None = None
    email: str | None = None
    value: str | None = None
    title: str | None = None
    utm_source: str | None = None
    utm_content: str | None = None
    language: str | None = None
    referrer: str | None = None


KEYS = frozenset({"contact_id", "type", "at", "id"})
FIELDS: tuple[str, ...] = tuple(name for name in Activity.model_fields if name not in KEYS)
"""The fields that rules can test."""
