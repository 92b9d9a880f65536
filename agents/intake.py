"""Intake: turns records of the source topics into messages for contacts. Refuses what is bad, changes nothing, sends nothing."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from schemas import codec, screen
from schemas.compiled import Array, Loops
from schemas.errors import Refused
from schemas.grouping import grouped
from schemas.hashing import h8, h8_of
from schemas.rules import PerformedActivity
from schemas.times import LAST_MS, format_ms
from state.arrivals import NO_ARRIVALS, Arrivals, Fact, arrivals
from state.evidence import BIAS
from state.identity import Merge, Profile
from state.matching import Keys, Matcher
from state.messages import ACTIVITY, ERASURE, Join, Message, Origin, Unite
from state.sieve import Sieve
from streams.blocks import VALUE, VALUE_SIZE, Rows

from . import handoffs, metrics
from .pipeline import OutRecord

_hit, _rejected, _no_hit = map(metrics.ACTIVITIES.labels, ("hit", "rejected", "no_hit"))
MOST_FACTS = 200_000  # rules met by activities, taken in at once: each takes about 100 bytes
MAX_REJECTED_BYTES = 7 << 20  # of a record, so that it fits into the rejected topic with our headers
MAX_ORIGIN_BYTES = 4 << 20  # of a merge record that goes to its person's holder, in case it is rejected there; its value has less
MAX_ERROR = 4000  # characters
HEADER_BYTES = 12  # beside name and value, at most
TRUNCATED = "waypost_truncated"
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Record(Protocol):
    """A record as the transport delivers it; times in milliseconds."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]  # Kafka allows headers without a value


class Taken(NamedTuple):
    """What a chunk of one topic comes to. `records`: of the first so many of its records; None: of all."""

    arrived: Arrivals
    messages: list[Message]
    refused: list[tuple[Record, Refused]]
    records: int | None = None


@Loops
def loops() -> None:  # until they are ready every activity is decoded
    one = np.zeros(1, np.int64)
    screen.sound(b"{}", one, one + 2, 0)
    screen.read(b"{}", one, one + 2, 0, one)
    Sieve([PerformedActivity(activity="warm")]).passing(b"{}", one, one + 2)


def activities(records: Sequence[Record], matcher: Matcher, now_ms: int, ahead_ms: int, few: int = 0) -> Taken:
    """Hits of a chunk of activities, or of its first ones where these meet very many rules. An activity at more than *ahead_ms* after *now_ms* is
    refused. *few*: see `state.plain.FEW`."""
    if len(records) < few:
        return _one_by_one(records, matcher, now_ms, ahead_ms)
    refused: list[tuple[Record, Refused]] = []
    all_met, all_ids, texts = list[Keys](), list[bytes](), list[bytes]()
    columns: list[tuple[Array, Array, Array, Array]] = []  # where contacts begin in the texts, how long they are, which of all met, moments
    base = facts = 0
    for among, value, said in _telling(records, matcher, now_ms + ahead_ms):
        text, bounds, sizes = said.text, said.bounds, np.diff(said.bounds)
        signatures, rows, ends = grouped(text, bounds[:-1:3], sizes[::3])
        met = [matcher.known.get(signature) or () for signature in signatures]
        for n in [n for n, signature in enumerate(signatures) if signature and signature not in matcher.known]:
            met[n] = _looked_up(value(int(rows[ends[n] - 1])), signatures[n], matcher)
        which = np.empty(len(said.sound), np.int64)
        which[rows] = np.repeat(np.arange(len(met)), np.diff(ends, prepend=0))
        told: dict[int, tuple[str, str, int]] = {}  # contact, id and moment of those that had to be decoded
        for n in np.flatnonzero(~said.sound).tolist():
            which[n] = len(met)
            try:
                met.append(_decoded(value(n), matcher, now_ms, ahead_ms, n, told))
            except Refused as error:
                met.append(())
                refused.append((among(n), error))
        hit = np.flatnonzero(np.fromiter(map(len, met), np.int64, len(met))[which])
        starts, lengths, moments = bounds[1::3][hit] + base, sizes[1::3][hit], said.at[hit]
        ids = [text[begin:end] for begin, end in zip(bounds[2::3][hit].tolist(), bounds[3::3][hit].tolist(), strict=True)]
        texts.append(text)
        base += len(text)
        if told:
            place = {n: i for i, n in enumerate(hit.tolist())}
            for n, (contact, id_, moment) in told.items():
                i, encoded = place[n], contact.encode()
                starts[i], lengths[i], moments[i], ids[i] = base, len(encoded), moment, id_.encode()
                texts.append(encoded)
                base += len(encoded)
        columns.append((starts, lengths, which[hit] + len(all_met), moments))
        all_met += met
        all_ids += ids
        facts += int(np.fromiter(map(len, met), np.int64, len(met))[which[hit]].sum())
    if facts > MOST_FACTS and len(records) > 1:
        matcher.faults.clear()  # they come again
        first = len(records) // 2
        taken = activities(records[:first], matcher, now_ms, ahead_ms, few)
        return taken._replace(records=first if taken.records is None else taken.records)
    _count(len(records), len(all_ids), len(refused), matcher)
    if not all_ids:
        return Taken(NO_ARRIVALS, [], refused)
    starts, lengths, which, moments = columns[0] if len(columns) == 1 else map(np.concatenate, zip(*columns, strict=True))
    return Taken(arrivals(b"".join(texts), starts, lengths, all_met, which, moments, b"".join(map(h8_of, all_ids)), all_ids), [], refused)


def _one_by_one(records: Sequence[Record], matcher: Matcher, now_ms: int, ahead_ms: int) -> Taken:
    """What `activities` does, of so few that columns are not worth what it takes to make them."""
    refused: list[tuple[Record, Refused]] = []
    hits: dict[bytes, list[tuple[Fact, bytes]]] = {}
    told: dict[int, tuple[str, str, int]] = {}
    for n, record in enumerate(records):
        try:
            met = _decoded(record.value, matcher, now_ms, ahead_ms, n, told)
        except Refused as error:
            refused.append((record, error))
            continue
        if met:
            contact, said, moment = told[n]
            id_ = said.encode()
            hit = moment.to_bytes(8, "big") + h8_of(id_)
            hits.setdefault(contact.encode(), []).extend([((rule, hit), id_) for rule in met])
    _count(len(records), len(told), len(refused), matcher)
    return Taken(Arrivals.of_lists({contact: hits[contact] for contact in sorted(hits)}) if hits else NO_ARRIVALS, [], refused)


def _count(records: int, hit: int, refused: int, matcher: Matcher) -> None:
    _hit.inc(hit)
    _rejected.inc(refused)
    _no_hit.inc(records - hit - refused)
    if matcher.faults:
        for rule, count in matcher.faults.items():
            metrics.RULE_FAULTS.labels(rule).inc(count)
        matcher.faults.clear()


def _looked_up(raw: bytes | None, signature: bytes, matcher: Matcher) -> Keys:
    """The rules that a sound activity meets whose *signature* nobody remembers."""
    met = matcher.match(codec.decode_activity(raw))
    matcher.remember(signature, met)
    return met


def _decoded(raw: bytes | None, matcher: Matcher, now_ms: int, ahead_ms: int, n: int, told: dict[int, tuple[str, str, int]]) -> Keys:
    """The rules that an activity meets; *told* hears, under *n*, who did it, its id and its moment, if there are any. Raises `Refused`."""
    if raw is not None and len(raw) <= codec.PLAIN_BYTES and raw.isascii():
        try:
            activity = codec.activity_decoder(raw)
        except codec.DECODE_ERRORS:
            raise codec.explain_activity(raw) from None
    else:
        activity = codec.decode_activity(raw)
    at, latest_ms = activity.at, now_ms + ahead_ms
    if at > latest_ms if type(at) is int else at > _latest(latest_ms) or at.year <= 2000:  # type: ignore[union-attr]
        codec.refuse_future(codec.activity_at_ms(activity), now_ms, ahead_ms)
    met = matcher.match(activity)
    if met:
        at_ms = codec.activity_at_ms(activity)  # refuses what an offset pushed out of the calendar
        told[n] = activity.contact_id, activity.id or codec.activity_id(activity, raw), at_ms + BIAS  # type: ignore[arg-type]
    return met


@lru_cache(maxsize=2)
def _latest(latest_ms: int) -> dt.datetime:
    return _EPOCH + dt.timedelta(milliseconds=min(latest_ms, LAST_MS))


def _telling(
    records: Sequence[Record], matcher: Matcher, latest_ms: int
) -> Iterable[tuple[Callable[[int], Record], Callable[[int], bytes | None], screen.Said]]:
    """(the n-th record, its value, what all of them say) of all activities but those that are sound for certain and meet no rule."""
    if not loops.ready or not isinstance(records, Rows):
        return [(records.__getitem__, lambda n: records[n].value, _nothing(len(records)))]
    fields = None if matcher.fields is None else screen.numbers_of(matcher.fields)
    found: list[tuple[Callable[[int], Record], Callable[[int], bytes | None], screen.Said]] = []
    for rows in records.apart():
        (block,) = rows.blocks
        data, starts, sizes = block.data, block.spans[:, VALUE], block.spans[:, VALUE_SIZE]
        telling = np.zeros(len(rows), np.bool_)
        telling[matcher.sieve.passing(data, starts, sizes)] = True
        silent = np.flatnonzero(~telling)
        telling[silent] = ~screen.sound(data, starts[silent], sizes[silent], latest_ms)
        numbers = np.flatnonzero(telling)
        starts, sizes = starts[numbers], sizes[numbers]
        said = _nothing(len(numbers)) if fields is None else screen.read(data, starts, sizes, latest_ms, fields)
        found.append((_among(rows, numbers.tolist()), _values(data, starts.tolist(), sizes.tolist()), said))
    return found


def _among(rows: Rows, numbers: list[int]) -> Callable[[int], Record]:
    return lambda n: rows[numbers[n]]


def _values(data: bytes, starts: list[int], sizes: list[int]) -> Callable[[int], bytes | None]:
    """The n-th value, at a tenth of what it takes to make the record."""
    return lambda n: None if sizes[n] < 0 else data[starts[n] : starts[n] + sizes[n]]


def _nothing(count: int) -> screen.Said:
    """What so many records say that nobody has looked at."""
    return screen.Said(np.zeros(count, np.bool_), np.zeros(count, np.uint64), b"", np.zeros(3 * count + 1, np.int64))


def as_join(contact: str, hits: list[tuple[bytes, bytes]]) -> Join:
    """Hits of a contact as a message that brings them to whoever holds it."""
    blobs: dict[bytes, set[bytes]] = {}
    for rule, hit in hits:
        blobs.setdefault(rule, set()).add(hit)
    return Join(contact, {rule: b"".join(sorted(blob)) for rule, blob in blobs.items()})


def merges(records: Sequence[Record], topic: str, partition: int, now_ms: int, ahead_ms: int) -> Taken:
    """A unite for each merge record of a chunk; it carries the record, since only the person's holder may know that it has too many."""
    messages: list[Message] = []
    refused: list[tuple[Record, Refused]] = []
    for record in records:
        try:
            if record.value is None:
                raise Refused("empty_value", "a merge has a value; a null says nothing and is not counted")
            merge = codec.decode_merge(record.value)
            codec.refuse_future(merge.at_ms, now_ms, ahead_ms)
            fact = Merge(merge.at_ms, h8(merge.id), merge.from_, merge.into)
            key, value, headers = _fitting(record.key, record.value, record.headers or (), MAX_ORIGIN_BYTES)
            origin = Origin(topic, partition, record.offset, key, value, tuple(headers))
            messages.append(Unite(merge.from_, merge.into, (fact,), merge.id, origin))
        except Refused as error:
            refused.append((record, error))
    return Taken(NO_ARRIVALS, messages, refused)


def profiles(records: Sequence[Record], now_ms: int, ahead_ms: int) -> Taken:
    """A join for each profile of a chunk; a null value is an erasure at the record's time."""
    messages: list[Message] = []
    refused: list[tuple[Record, Refused]] = []
    for record in records:
        try:
            if record.value is None:
                contact = codec.decode_contact_key(record.key)
                codec.refuse_future(record.timestamp, now_ms, ahead_ms)  # else it would erase what is still to come
                messages.append(Join(contact, erased_at_ms=record.timestamp, cause=ERASURE))
                continue
            profile = codec.decode_profile(record.key, record.value)
            codec.refuse_future(profile.at_ms, now_ms, ahead_ms)
            attributes = json.dumps(profile.attributes, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
            said = Profile(profile.at_ms, attributes, tuple(profile.groups))
            messages.append(Join(profile.contact_id, profiles={profile.contact_id: said}, cause=ACTIVITY))
        except Refused as error:
            refused.append((record, error))
    return Taken(NO_ARRIVALS, messages, refused)


def handed_over(records: Sequence[Record]) -> Taken:
    """The messages of a chunk of handoffs."""
    messages: list[Message] = []
    refused: list[tuple[Record, Refused]] = []
    for record in records:
        try:
            messages.append(handoffs.decode(record.value or b""))
        except Refused as error:
            refused.append((record, error))
    return Taken(NO_ARRIVALS, messages, refused)


def rejected(topic: str, partition: int, record: Any, error: Refused, now_ms: int) -> OutRecord:
    """*record* of *topic* as it goes to the rejected topic: as it came, our headers behind its own (contract, section 3).

    What is larger than the rejected topic takes is cut to what it takes; the header `waypost_truncated` says how many bytes came.
    """
    metrics.REJECTED.labels(topic, error.code).inc()
    key, value, headers = _fitting(record.key, record.value, record.headers or (), MAX_REJECTED_BYTES)
    if headers[-1:] and headers[-1][0] == TRUNCATED:
        metrics.TRUNCATED.labels("rejected").inc()
    ours = [
        ("waypost_error", error.message[:MAX_ERROR].encode("utf-8", "backslashreplace")),
        ("waypost_topic", topic.encode()),
        ("waypost_partition", str(partition).encode()),
        ("waypost_offset", str(record.offset).encode()),
        ("waypost_rejected_at", format_ms(now_ms).encode()),
    ]
    return None, key, value, [*headers, *ours], now_ms


def _fitting(key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]], limit_bytes: int) -> tuple[Any, Any, list[Any]]:
    """Key, value and headers as they are; or, where they take more than *limit_bytes*, without the headers, key and value cut, and with a header
    that says how many bytes they took."""
    headers = list(headers)
    size = sum(len(name.encode("utf-8", "backslashreplace")) + len(said or b"") + HEADER_BYTES for name, said in headers)
    size += len(key or b"") + len(value or b"")
    if size <= limit_bytes:
        return key, value, headers
    key = None if key is None else key[: limit_bytes // 8]
    value = None if value is None else value[: limit_bytes - limit_bytes // 8]
    return key, value, [(TRUNCATED, str(size).encode())]
