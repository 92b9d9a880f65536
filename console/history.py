"""History: reads the whole log as facts for the oracle, through the validating codec, and says which records must have been rejected.

Reads only. What a worker rejects for a reason that the record alone does not show (its clock, the merges a person already has) is taken from the
rejected topic, when the reason holds. Facts go to files of temporary directories, all of a person to the same one (`shards`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from schemas import codec
from schemas.activity import FIELDS
from schemas.errors import Refused
from schemas.journey import Journey
from schemas.times import parse_ms
from state import oracle
from streams import reader
from streams.settings import Settings

from .shards import Fact, Shards

INPUTS = ("contact-merges", "contacts", "activities")
"""Merges first: they say who is one person."""
Progress = Callable[[str, int, int], None]
"""Hears what is read, and how many offsets of how many."""


class _ContactOnly(msgspec.Struct):
    """As much of an activity as says whether its person is in the sample."""

    contact_id: str


_contact_only = msgspec.json.Decoder(_ContactOnly).decode


class Place(NamedTuple):
    """Where a record stands: topic without prefix, partition, offset."""

    source: str
    partition: int
    offset: int


class Rejection(NamedTuple):
    """What the rejected topic says of a record."""

    error: str
    rejected_at_ms: int | None


@dataclass
class Log:
    """What the log says up to `ends`."""

    shards: Shards
    journeys: dict[str, Journey] = field(default_factory=dict)
    records: int = 0
    not_rejected: list[tuple[Place, str]] = field(
        default_factory=list
    )  # bad, and not on the rejected topic
    wrongly_rejected: list[tuple[Place, str]] = field(default_factory=list)  # good, and on it
    rejected: int = 0
    forgotten: list[str] = field(
        default_factory=list
    )  # topics that no longer begin at their beginning
    ends: dict[tuple[str, int], int] = field(default_factory=dict)


def ends(settings: Settings) -> dict[tuple[str, int], int]:
    """Where the input topics and the journeys end now: (full name, partition) -> offset. Raises `ReaderError`."""
    topics = [settings.topic_prefix + source for source in (*INPUTS, "journeys")]
    return reader.end_offsets(settings, reader.partitions_of_topics(settings, topics))


def read(
    settings: Settings,
    until: dict[tuple[str, int], int],
    progress: Progress,
    directory: Path,
    share: float = 1.0,
) -> Log:
    """The log up to *until*, its facts in files in *directory*: all of them, or those of a *share* of the persons. Raises `ReaderError`."""
    facts = sum(
        end for (topic, _), end in until.items() if topic == settings.topic_prefix + "activities"
    )
    log = Log(Shards(directory, facts * share, share), ends=until)
    rejections, complete = _rejections(settings, progress)
    if not complete:
        log.forgotten.append(settings.topic_prefix + "rejected")
    for source in INPUTS:
        topic = settings.topic_prefix + source
        partitions = {number: end for (name, number), end in until.items() if name == topic}
        begins = reader.begin_offsets(settings, [(topic, number) for number in partitions])
        if source != "contacts" and any(
            begins.values()
        ):  # contacts is compacted: what is gone is replaced by what came later
            log.forgotten.append(topic)
        told = lambda done, total, topic=topic: progress(f"reading {topic}", done, total)  # noqa: E731
        for number, records in reader.read_log(settings, topic, ends=partitions, progress=told):
            log.records += len(records)
            for record in records:
                _take(
                    log,
                    Place(source, number, record.offset()),
                    record,
                    rejections,
                    complete,
                    settings,
                )
        if source == "contact-merges":
            log.shards.joined()
    log.shards.flush()
    topic = settings.topic_prefix + "journeys"
    for _, records in reader.read_log(
        settings, topic, ends={n: e for (name, n), e in until.items() if name == topic}
    ):
        _journeys(log, records)
    return log


def _take(
    log: Log,
    place: Place,
    record: reader.Record,
    rejections: dict[Place, Rejection],
    complete: bool,
    settings: Settings,
) -> None:
    """One record into the history, or among the rejected; what does not fit is noted."""
    rejection = rejections.get(place)
    if rejection is None and log.shards.share < 1 and _outside(log.shards, place.source, record):
        return
    try:
        fact, at_ms = decode(place.source, record)
    except Refused as refused:
        log.rejected += 1
        if rejection is None and complete:
            log.not_rejected.append((place, refused.message))
        return
    if rejection is not None:
        ahead = (
            rejection.rejected_at_ms is not None
            and at_ms > rejection.rejected_at_ms + settings.max_future_ms
        )
        too_many = isinstance(fact, oracle.Merge) and "merges" in rejection.error
        log.rejected += 1
        if not (ahead or too_many):
            log.wrongly_rejected.append((place, rejection.error))
        return
    log.shards.take(fact)


def _outside(shards: Shards, source: str, record: reader.Record) -> bool:
    """Return True for an activity of a person who is not in the sample: of such nothing but the contact is decoded."""
    raw = record.value()
    if source != "activities" or raw is None:
        return False
    try:
        contact = _contact_only(raw).contact_id
    except codec.DECODE_ERRORS:
        return False  # a bad record: the validating codec says why
    return not shards.sampled(contact)


def decode(source: str, record: reader.Record) -> tuple[Fact, int]:
    """The fact that a record of an input topic says, and its time. Raises `Refused`."""
    raw = record.value()
    if source == "contacts":
        if raw is None:
            at_ms = record.timestamp()[1]
            return oracle.Erasure(codec.decode_contact_key(record.key()), at_ms), at_ms
        profile = codec.decode_profile(record.key(), raw)
        return oracle.Profile(
            profile.contact_id, profile.groups, profile.attributes, profile.at_ms
        ), profile.at_ms
    if raw is None:
        raise Refused("empty_value", "the record has no value")
    if source == "contact-merges":
        merge = codec.decode_merge(raw)
        return oracle.Merge(merge.id, merge.from_, merge.into, merge.at_ms), merge.at_ms
    activity = codec.decode_activity(raw)
    at_ms = codec.activity_at_ms(activity)
    fields = {name: value for name in FIELDS if (value := getattr(activity, name)) is not None}
    return oracle.Activity(
        activity.contact_id, activity.type, at_ms, codec.activity_id(activity, raw), fields
    ), at_ms


def _rejections(settings: Settings, progress: Progress) -> tuple[dict[Place, Rejection], bool]:
    """What the rejected topic says, by where the records stood; and whether it still holds all it ever had."""
    topic = settings.topic_prefix + "rejected"
    found: dict[Place, Rejection] = {}
    begins = reader.begin_offsets(settings, reader.partitions_of_topics(settings, [topic]))
    for _, records in reader.read_log(
        settings, topic, progress=lambda done, total: progress(f"reading {topic}", done, total)
    ):
        for record in records:
            headers = dict(record.headers() or [])
            place = _place(headers, settings)
            if place is not None:
                found[place] = Rejection(
                    _text(headers.get("waypost_error")),
                    _ms(_text(headers.get("waypost_rejected_at"))),
                )
    return found, not any(begins.values())


def _place(headers: dict[str, bytes | None], settings: Settings) -> Place | None:
    topic, partition, offset = (
        _text(headers.get(f"waypost_{name}")) for name in ("topic", "partition", "offset")
    )
    known = all(number.isdecimal() and len(number) < 20 for number in (partition, offset))
    if not (topic.startswith(settings.topic_prefix) and known):
        return None
    return Place(topic.removeprefix(settings.topic_prefix), int(partition), int(offset))


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")


def _ms(text: str) -> int | None:
    try:
        return parse_ms(text)
    except Refused:
        return None


def _journeys(log: Log, records: Iterable[reader.Record]) -> None:
    for record in records:
        try:
            id_, journey = codec.decode_journey(record.key(), record.value())
        except Refused:
            continue  # workers bring such a record to the rejected topic and pass it over
        if journey is None:
            log.journeys.pop(id_, None)
        else:
            log.journeys[id_] = journey
