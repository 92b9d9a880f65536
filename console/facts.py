"""Facts that people send without Kafka: an array or lines of activities, merges or profiles, checked one by one. Pure; sends nothing.

Over HTTP a field that a fact does not have is a mistake (contract, preamble); on the topics it is none, and so it is none for `waypost send`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from pydantic import BaseModel

from schemas import codec
from schemas.activity import Activity
from schemas.errors import Refused, shown
from schemas.merge import ContactMerge
from schemas.profile import ContactProfile
from schemas.sentences import meant

from .errors import ApiError, error_body

MAX_ITEMS = 10_000  # of one request
_array = msgspec.json.Decoder(list[msgspec.Raw])
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Key(NamedTuple):
    """What decides where a fact goes, and when it was."""

    contact: str
    at_ms: int


class Kind(NamedTuple):
    """`source`: the topic without its prefix. `read` gives the key of a fact's bytes, or raises `Refused`."""

    source: str
    model: type[BaseModel]
    read: Callable[[bytes], Key]


def _activity(raw: bytes) -> Key:
    activity = codec.decode_activity(raw)
    return Key(activity.contact_id, codec.activity_at_ms(activity))


def _merge(raw: bytes) -> Key:
    merge = codec.decode_merge(raw)
    return Key(merge.from_, merge.at_ms)


def _profile(raw: bytes) -> Key:
    profile = codec.decode_profile(None, raw)
    return Key(profile.contact_id, profile.at_ms)


KINDS: Mapping[str, Kind] = {
    "activities": Kind("activities", Activity, _activity),
    "merges": Kind("contact-merges", ContactMerge, _merge),
    "contacts": Kind("contacts", ContactProfile, _profile),
}


class Good(NamedTuple):
    """A fact that can go on its topic. `place`: where it stood in what was sent, from 0."""

    place: int
    key: bytes
    value: bytes


class Checked(NamedTuple):
    good: list[Good]
    refused: list[tuple[int, Refused]]


def check(kind: Kind, facts: Iterable[bytes], now_ms: int, ahead_ms: int, strict: bool) -> Checked:
    """Which *facts* can go on the topic. *strict*: a field that the kind does not have is a mistake."""
    good: list[Good] = []
    refused: list[tuple[int, Refused]] = []
    for index, raw in enumerate(facts):
        try:
            key = kind.read(raw)
            codec.refuse_future(key.at_ms, now_ms, ahead_ms)
            if strict:
                refuse_unknown(kind.model, raw)
            good.append(Good(index, key.contact.encode(), raw))
        except Refused as error:
            refused.append((index, error))
    return Checked(good, refused)


def refuse_unknown(model: type[BaseModel], raw: bytes) -> None:
    """Raises `Refused` for a field that *model* does not have; *raw* is an object already."""
    known = [info.alias or name for name, info in model.model_fields.items()]
    for name in _fields.decode(raw):
        if name not in known:
            way_out = meant(name, known) or f" the fields are {', '.join(known)}"
            raise Refused("unknown_field", f"unknown field {shown(name)};{way_out}", name if name.isidentifier() else None)


def array(body: bytes) -> list[bytes]:
    """The elements of a JSON array, each as it was written. Raises `ApiError` (422)."""
    try:
        elements = [bytes(element) for element in _array.decode(body)]
    except RecursionError:
        raise ApiError(422, "too_deep", "objects and lists are nested too deep; flatten them") from None
    except msgspec.ValidationError:
        raise ApiError(422, "wrong_type", "the body is not a list; send a JSON array, also for one") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(422, "not_json", f"the body is not JSON ({error}); send a JSON array in UTF-8") from None
    if len(elements) > MAX_ITEMS:
        raise ApiError(422, "too_many", f"{len(elements)} elements; send at most {MAX_ITEMS} at once")
    return elements


def taken(checked: Checked, failed: Mapping[int, Refused]) -> dict[str, Any]:
    """The answer to a POST: how many are on the topic, and which were refused; *failed*: by index, what the broker refused."""
    refused = sorted([*checked.refused, *failed.items()], key=lambda entry: entry[0])
    return {
        "taken": len(checked.good) - len(failed),
        "refused": [{"index": index, **error_body(e.code, e.message, e.path)} for index, e in refused],
    }
