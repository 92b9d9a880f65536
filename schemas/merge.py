"""Merge: contact `from` turned out to be contact `into` (contract, section 1). Says nothing of who survives: see state.identity."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from .wire import MAX_ID, Fact, Id, Moment

SELF_MERGE = "from and into are the same contact; a contact cannot be merged into itself"


class ContactMerge(Fact):
    """`from` and `into`, and whoever was merged into either, are one person from now on."""

    from_: Annotated[Id, Field(alias="from")]
    into: Id
    at: Moment
    id: Annotated[str, Field(max_length=MAX_ID)] | None = None

    @model_validator(mode="after")
    def _two_contacts(self) -> Self:
        if self.from_ == self.into:
            raise ValueError(SELF_MERGE)
        return self
