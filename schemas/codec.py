"""Codec: bytes into facts, fast. The compiled decoders derive from the pydantic models; pydantic speaks only where something is wrong.

Both accept and refuse the same bytes. Where the two libraries differ by nature, this is how they are made to agree:

- *Grammar, numbers, surrogates.* One grammar decides what is JSON, msgspec's (no NaN, no lone surrogates); the way over pydantic asks it first.
- *Encoding.* msgspec does not look into fields that nobody reads, so bytes that are not ASCII pass a UTF-8 check of the whole record first.
- *Nesting.* How deep either reads depends on how full the interpreter's stack is. A record nested deeper than `MAX_DEPTH` is therefore refused
  before; in `PLAIN_BYTES` or less nothing can be.
- *A field given twice.* Both take the last, but msgspec refuses if any of them is bad; the way over pydantic tries each of them, except of a
  field that msgspec leaves unread at first (a profile's attributes), and a text that msgspec takes for a time.
- *Times.* The model reads texts with msgspec's parser (schemas.times). msgspec knows no bounds for a `datetime`: that one is not before the year
  2000, nor pushed out of the years 1 to 9999 by its offset, is tested after decoding.
- *Whole numbers* written as floats (`1.0`), booleans as numbers: refused by both.
"""

import json
from collections.abc import Callable
from datetime import datetime
from hashlib import blake2b
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Union, get_args, get_origin

import msgspec
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from .activity import Activity
from .errors import Refused, shown
from .journey import Journey, parse_journey
from .merge import ContactMerge
from .profile import ContactProfile, plain
from .sentences import broken, lowered
from .times import EARLIEST_MS, EPOCH, LAST_MS, MILLISECOND, datetime_ms, format_ms, parse_ms, refuse_early
from .wire import MAX_BYTES, MAX_DEPTH, MAX_ID, OnTheWire

PLAIN_BYTES = 2 * MAX_DEPTH  # so short a record cannot be nested too deep
DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what a bound decode function may raise

_META = {
    MinLen: "min_length",
    MaxLen: "max_length",
    Ge: "ge",
    Le: "le",
}  # a model's constraint -> the compiled decoder's


def _meta(metadata: Any) -> dict[str, Any]:
    return {_META[type(m)]: getattr(m, _META[type(m)]) for m in metadata if type(m) in _META}


def _wire_type(annotation: Any, metadata: Any = ()) -> Any:
    """The type by which msgspec decodes what the model holds as *annotation* with *metadata*."""
    for m in metadata:
        if isinstance(m, OnTheWire):
            return m.type
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        flat = [x for m in metadata for x in (m.metadata if isinstance(m, FieldInfo) else [m])]
        return _wire_type(annotation, flat)
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(_wire_type(a) for a in get_args(annotation))]  # noqa: UP007 (made of values)
    if get_origin(annotation) is list:
        return list[_wire_type(get_args(annotation)[0])]  # type: ignore[misc]
    constraints = _meta(metadata)
    return Annotated[annotation, msgspec.Meta(**constraints)] if constraints else annotation


def wire_struct(name: str, model: type[BaseModel]) -> Any:
    """The msgspec Struct that decodes what *model* describes: same fields, same limits; raises nothing of its own."""
    fields: list[Any] = []
    for field_name, info in model.model_fields.items():
        wire = _wire_type(info.annotation, info.metadata)
        if info.is_required():
            default = msgspec.field(name=info.alias)
        elif info.default_factory is not None:
            default = msgspec.field(name=info.alias, default_factory=info.default_factory)  # type: ignore[arg-type]
        else:
            default = msgspec.field(name=info.alias, default=info.default)
        fields.append((field_name, wire, default))
    return msgspec.defstruct(name, fields, module=__name__, gc=False)


if TYPE_CHECKING:

    class WireActivity(Activity):
        """An activity as decoded: the fields of `Activity`; `at` as it came."""

        at: int | datetime  # type: ignore[assignment]
else:
    WireActivity = wire_struct("WireActivity", Activity)

_MergeOnWire = wire_struct("MergeOnWire", ContactMerge)
_ProfileOnWire = wire_struct("ProfileOnWire", ContactProfile)


class WireMerge(NamedTuple):
    id: str
    from_: str
    into: str
    at_ms: int


class WireProfile(NamedTuple):
    contact_id: str
    groups: tuple[str, ...]
    attributes: dict[str, Any]
    at_ms: int


activity_decoder: Callable[[bytes], WireActivity] = msgspec.json.Decoder(WireActivity).decode
"""For loops that decode many: right for ASCII of at most `PLAIN_BYTES`, raises `DECODE_ERRORS`; all else goes to `decode_activity`.

Texts with a time outside the years 2000 to 9999 are only tested by `activity_at_ms`, which raises `Refused`."""

_merge_decoder = msgspec.json.Decoder(_MergeOnWire).decode
_profile_decoder = msgspec.json.Decoder(_ProfileOnWire).decode
_grammar = msgspec.json.Decoder(msgspec.Raw).decode
_object = msgspec.json.Decoder(dict[str, Any]).decode


# -- activities -----------------------------------------------------------------------------------------------------------


def decode_activity(raw: bytes | None) -> WireActivity:
    """The activity that *raw* says. Raises `Refused`, whatever the bytes are."""
    if raw is None:
        raise explain_activity(raw)
    if len(raw) > PLAIN_BYTES or not raw.isascii():
        _refuse_unsound(raw)
    try:
        activity = activity_decoder(raw)
    except DECODE_ERRORS as error:
        raise _explain(Activity, raw, error) from None
    at = activity.at
    if not isinstance(at, int) and not 2000 < at.year < 9999:
        _in_range(at)
    return activity


def explain_activity(raw: bytes | None) -> Refused:
    """Why *raw*, which `activity_decoder` refused, is no activity. None: a record without a value."""
    if raw is None:
        return Refused("empty_value", "the value is null; an activity needs one")
    return _explain(Activity, raw, None)


def activity_at_ms(activity: WireActivity) -> int:
    """Its time in milliseconds since 1970 UTC. Raises `Refused` for one before the year 2000 or, by its offset, after 9999."""
    at = activity.at
    if isinstance(at, int):
        return at
    at_ms = (at - EPOCH) // MILLISECOND
    if EARLIEST_MS <= at_ms <= LAST_MS:
        return at_ms
    return _in_range(at)


def activity_id(activity: WireActivity, raw: bytes) -> str:
    """Its id; without one, the hash of its content (design, section 3, bad input)."""
    return activity.id or content_id(raw)


# -- merges and profiles --------------------------------------------------------------------------------------------------


def decode_merge(raw: bytes) -> WireMerge:
    """The merge that *raw* says, with the hash of its content for a missing id. Raises `Refused`, whatever the bytes are."""
    _refuse_unsound(raw)
    try:
        merge = _merge_decoder(raw)
    except DECODE_ERRORS as error:
        raise _explain(ContactMerge, raw, error) from None
    if merge.from_ == merge.into:
        raise _explain(ContactMerge, raw, None)
    return WireMerge(merge.id or content_id(raw), merge.from_, merge.into, _in_range(merge.at))


def decode_profile(key: bytes | None, raw: bytes) -> WireProfile:
    """The profile that *raw* says; *key*, the record's, decides nothing. Raises `Refused`, whatever the bytes are."""
    _refuse_unsound(raw)
    try:
        profile = _profile_decoder(raw)
        attributes = plain(_object(profile.attributes)) if profile.attributes else {}
    except (*DECODE_ERRORS, ValueError) as error:
        raise _explain(ContactProfile, raw, error) from None
    return WireProfile(profile.contact_id, tuple(profile.groups), attributes, _in_range(profile.at))


def decode_contact_key(key: bytes | None) -> str:
    """The contact that a record without a value means (an erasure). Raises `Refused`."""
    if not key:
        raise Refused("missing_key", "the record has neither key nor value; an erasure names its contact in the key")
    try:
        contact_id = key.decode()
    except UnicodeDecodeError as error:
        raise Refused("bad_key", f"the key is not UTF-8 (byte {error.start}); write the contact id in UTF-8") from None
    if len(contact_id) > MAX_ID:
        raise Refused("too_long", f"the key has {len(contact_id)} characters; a contact id has at most {MAX_ID}")
    return contact_id


def decode_journey(key: bytes | None, raw: bytes | None) -> tuple[str, Journey | None]:
    """`(id, journey)` of a record of the journeys topic; the journey is None for a deletion. Raises `Refused`, whatever the bytes are."""
    if not key:
        raise Refused("missing_key", "the record has no key; the key of a journey is its id")
    try:
        id_ = key.decode()
    except UnicodeDecodeError as error:
        raise Refused("bad_key", f"the key is not UTF-8 (byte {error.start}); the key of a journey is its id") from None
    if raw is None:
        return id_, None
    try:
        said = msgspec.json.decode(raw)
    except RecursionError:
        raise Refused("too_deep", "objects and lists are nested too deep; flatten them") from None
    except DECODE_ERRORS as error:
        raise Refused("not_json", f"the value is not JSON ({lowered(str(error))}); save journeys through the API or the command line") from None
    journey = parse_journey(said)
    if journey.id != id_:
        raise Refused("other_id", f"the key is {shown(id_)}, the id of the journey {shown(journey.id)}; they must be the same", "id")
    if journey.version is None or journey.saved_at is None:
        name = "version" if journey.version is None else "saved_at"
        raise Refused(
            "missing_field",
            f"{name} is missing; save journeys through the API or the command line, which add it",
            name,
        )
    return id_, journey


# -- what all facts share -------------------------------------------------------------------------------------------------


def _in_range(at: int | datetime) -> int:
    try:
        return refuse_early(at if isinstance(at, int) else datetime_ms(at))
    except Refused as refused:
        raise Refused(refused.code, f"at: {refused.message}", "at") from None


def content_id(raw: bytes) -> str:
    """The id of a fact that came without one: a hash of what it says, so that spacing, order of fields, nulls and notation of `at` do not matter.

    *raw* is JSON already. What no reader can hold (a number of 5,000 digits in a field that nobody reads) is hashed as it came.
    """
    try:
        content = {name: value for name, value in _object(raw).items() if value is not None and name != "id"}
        content["at"] = parse_ms(content.get("at"))
        canonical = msgspec.json.encode(content, order="deterministic")
    except (*DECODE_ERRORS, msgspec.MsgspecError, Refused, OverflowError):
        canonical = raw
    return "content-" + blake2b(canonical, digest_size=16).hexdigest()


def refuse_future(at_ms: int, now_ms: int, ahead_ms: int) -> None:
    """Raises `Refused` for a time more than *ahead_ms* after *now_ms* (design, section 3, bad input)."""
    if at_ms > now_ms + ahead_ms:
        raise Refused(
            "in_the_future",
            f"at: {format_ms(at_ms)} is more than {ahead_ms / 3_600_000:g} h ahead; send the time at which it happened",
            "at",
        )


def _refuse_unsound(raw: bytes) -> None:
    """Size, encoding, nesting: what must hold before any decoder sees *raw*."""
    if len(raw) > MAX_BYTES:
        raise Refused(
            "too_large", f"the value has {len(raw)} bytes; at most {MAX_BYTES} are allowed, send less in one record"
        )
    if not raw.isascii():
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            raise Refused("not_json", f"the value is not UTF-8 (byte {error.start}); send JSON in UTF-8") from None
    if len(raw) > PLAIN_BYTES and raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(raw) > MAX_DEPTH:
        raise Refused("too_deep", f"objects and lists are nested more than {MAX_DEPTH} deep; flatten them")


def _depth(raw: bytes) -> int:
    """How deep objects and lists are nested in *raw*; at most one more than `MAX_DEPTH`."""
    depth = deepest = 0
    in_text = False
    bytes_ = iter(raw)
    for byte in bytes_:
        if in_text:
            if byte == 0x5C:  # a backslash: what follows it ends no text
                next(bytes_, None)
            elif byte == 0x22:
                in_text = False
        elif byte == 0x22:
            in_text = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > MAX_DEPTH:
                break
        elif byte in b"]}":
            depth -= 1
    return deepest


class _Object(dict[str, Any]):
    """An object of JSON that remembers what was given twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs if len(pairs) > len(self) else []


def _whole(digits: str) -> int:
    return int(digits) if len(digits) <= 40 else 1 << 80  # too big for everyone: not worth reading


def parse(model: type[BaseModel], raw: bytes) -> BaseModel:
    """The slow, obvious way: *raw* by *model*, sound or `Refused` with the sentence that names the broken rule."""
    _refuse_unsound(raw)
    try:
        _grammar(raw)
    except DECODE_ERRORS as error:
        raise Refused(
            "not_json", f"the value is not JSON ({lowered(str(error))}); send one JSON object in UTF-8"
        ) from None
    value = json.loads(raw.decode(), object_pairs_hook=_Object, parse_int=_whole)
    if not isinstance(value, dict):
        raise Refused("not_an_object", f"the value is {shown(value)}; send one JSON object")
    unread = {name for name, info in model.model_fields.items() if OnTheWire(msgspec.Raw) in info.metadata}
    for name, earlier in value.pairs:  # type: ignore[attr-defined]
        if name in unread or (isinstance(earlier, str) and name in model.model_fields and _decodes(model, name, earlier)):
            continue
        try:
            model.model_validate({**value, name: earlier})
        except ValidationError as error:
            wrong = [details for details in error.errors(include_url=False) if details["loc"][:1] == (name,)]
            if wrong:
                raise _sentence(wrong[0]) from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _sentence(error.errors(include_url=False)[0]) from None


def _decodes(model: type[BaseModel], name: str, text: str) -> bool:
    """Return True if the compiled decoder takes *text* for the field *name* of *model*."""
    info = model.model_fields[name]
    try:
        msgspec.convert(text, _wire_type(info.annotation, info.metadata))
    except (msgspec.ValidationError, UnicodeEncodeError):
        return False
    return True


def _explain(model: type[BaseModel], raw: bytes, error: Exception | None) -> Refused:
    try:
        parse(model, raw)
    except Refused as refused:
        return refused
    return Refused("bad_record", f"the value was refused: {lowered(str(error))}")


def _sentence(details: Any) -> Refused:
    """One of pydantic's errors in words."""
    what = broken(details)
    code = {"at": "bad_time", "": "self_merge"}.get(what.path, what.code) if what.code == "bad_value" else what.code
    return Refused(code, what.told_of(what.path), what.path or None)
