"""Changes: a stage change as it goes out (contract, section 3): CloudEvents 1.0 in Kafka's binary mode. Decides nothing."""

from functools import lru_cache
from hashlib import blake2b

import msgspec

from .times import format_ms

SPEC, SOURCE, CONTENT_TYPE = ("ce_specversion", b"1.0"), ("ce_source", b"/waypost"), ("content-type", b"application/json")
CAUSES = ("activity", "merge", "erasure", "edit", "recalculation")
TYPES = {change: ("ce_type", f"waypost.stage.{change}".encode()) for change in ("reached", "moved", "left")}


class StageChange(msgspec.Struct, frozen=True, gc=False):
    """The new truth for (journey, version, contact, stage).

    `stage` counts from 1. `change`: reached, moved, left. `reached_at`, `previous_reached_at`: milliseconds since 1970 UTC or None.
    `cause`: one of `CAUSES`. `cause_id`: the id of the activity or merge behind it, or None.
    """

    journey: str
    version: int
    contact_id: str
    stage: int
    stage_name: str
    change: str
    reached_at: int | None
    previous_reached_at: int | None
    cause: str
    cause_id: str | None


class _Out(msgspec.Struct, gc=False):
    """`StageChange` as JSON shows it: times as text."""

    journey: str
    version: int
    contact_id: str
    stage: int
    stage_name: str
    change: str
    reached_at: str | None
    previous_reached_at: str | None
    cause: str
    cause_id: str | None


@lru_cache(maxsize=16)
def _time(time_ms: int) -> tuple[str, bytes]:
    return "ce_time", format_ms(time_ms).encode()  # the same for all changes of a batch


_json = msgspec.json.Encoder().encode


def change_id(change: StageChange) -> str:
    """The `ce_id`: the same for the same change, whenever and by whomever it is sent."""
    c = change
    what = (c.journey, c.version, c.contact_id, c.stage, c.change, c.reached_at, c.previous_reached_at, c.cause_id)
    return blake2b(_json(what), digest_size=16).hexdigest()


def encode(change: StageChange, time_ms: int) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Key, value and headers of the record that announces *change*; *time_ms*: when that is (`ce_time`)."""
    c = change
    reached_at, previous = c.reached_at, c.previous_reached_at
    key = c.contact_id.encode()
    value = _json(
        _Out(
            c.journey,
            c.version,
            c.contact_id,
            c.stage,
            c.stage_name,
            c.change,
            None if reached_at is None else format_ms(reached_at),
            None if previous is None else format_ms(previous),
            c.cause,
            c.cause_id,
        )
    )
    # most are the same ones for all changes: a tuple takes time to make
    headers = [SPEC, ("ce_id", change_id(c).encode()), SOURCE, TYPES[c.change], ("ce_subject", key), _time(time_ms), CONTENT_TYPE]
    return key, value, headers
