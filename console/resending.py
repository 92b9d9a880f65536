"""Resending: brings rejected records to the topic they came from once more, as they were or mended. Judges mended ones as the API judges facts.

A resend may be repeated: an activity, a merge or a profile that is there twice counts once (one without an id is known by its content), and an
erasure keeps the moment of its rejection.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka.errors import MessageSizeTooLargeError, UnknownTopicOrPartitionError

from schemas import codec
from schemas.errors import Refused, shown
from streams.partitioner import partition_of

from .errors import error_body
from .facts import KINDS
from .kafka import SEND_SECONDS, Writer, broker, now_ms
from .rejected import Id, RejectedReader, own_headers, rejected_at_ms, row, truncated_bytes

FACTS = {kind.source: kind for kind in KINDS.values()}
INTERNAL = ("handoffs", "rebuilt-evidence")
"""What only workers write: sent again as it was, after an upgrade for example, never mended."""
JOURNEYS = "journeys"
UNTOUCHED = "untouched"
"""A field that the request does not have: as the record was."""


class Mend(NamedTuple):
    """What is to be sent: the record `id`, with `key` and `value` where they are given (`UNTOUCHED` where not)."""

    id: Id
    key: bytes | str | None = UNTOUCHED
    value: bytes | str | None = UNTOUCHED


class Outgoing(NamedTuple):
    """A record as it goes out. `timestamp_ms` None: now."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp_ms: int | None


def content(text: str | None, base64_text: str | None, name: str) -> bytes | None:
    """The bytes that a field *name* and its twin in base64 say. Raises `Refused`."""
    if text is not None and base64_text is not None:
        raise Refused("bad_value", f"{name} and {name}_base64 are both given; give one of them", name)
    if base64_text is None:
        if text is None:
            return None
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise Refused("bad_value", f"{name} is not valid Unicode (a lone surrogate); give its bytes as {name}_base64", name) from None
    try:
        return base64.b64decode(base64_text, validate=True)
    except ValueError as error:  # binascii's, and another for what is not ASCII
        raise Refused("bad_value", f"{name}_base64 is not base64 ({error}); encode the bytes again", f"{name}_base64") from None


def prepare(record: Any, mend: Mend, topics: Mapping[str, str], partition_count: int, now_ms: int, ahead_ms: int) -> Outgoing:
    """*record* of the rejected topic, mended, as it goes to its topic; *topics*: full name -> source. Raises `Refused`."""
    said = row(record)
    source = topics.get(said["topic"] or "")
    if source is None:
        raise Refused("unknown_topic", f"it came from {shown(said['topic'])}, which is no input of this Waypost; send it there yourself")
    if source == JOURNEYS:
        raise Refused("not_a_fact", "it is of the journeys topic; save the journey as it should be: PUT /api/journeys/{id}, waypost journey apply")
    size = truncated_bytes(record)
    if size is not None and isinstance(mend.value, str):
        raise Refused("truncated", f"it had {size} bytes, and only its beginning is kept; send it anew from where it came", "value")
    key = record.key if isinstance(mend.key, str) else mend.key
    value = record.value if isinstance(mend.value, str) else mend.value
    partition = said["partition"] if said["partition"] is not None and said["partition"] < partition_count else None
    if key != record.key or value != record.value:
        if source in INTERNAL:
            raise Refused("not_a_fact", f"{source} is written by workers alone; send the record as it was, or leave it")
        if value is None and record.value is not None:
            raise Refused("empty_value", "a null value says nothing (or erases a contact); leave value out to send it as it was", "value")
        contact = _contact(source, key, value, now_ms, ahead_ms)
        if isinstance(mend.key, str):
            key = contact.encode()  # of a compacted topic the key decides what is replaced
        partition = None
    if key is None and value is None:
        raise Refused("empty_value", "it has neither key nor value: there is nothing to send", "value")
    if partition is None:
        partition = partition_of(key, partition_count) if key is not None else 0
    timestamp_ms = rejected_at_ms(record) if value is None else None  # the time of an erasure counts, and must be the same each time
    return Outgoing(str(said["topic"]), partition, key, value, own_headers(record), timestamp_ms)


def _contact(source: str, key: bytes | None, value: bytes | None, now_ms: int, ahead_ms: int) -> str:
    """The contact of a mended fact, which is judged as a worker will. Raises `Refused`."""
    if value is None:
        if source != "contacts":
            raise Refused("empty_value", "a null value says nothing; give a value", "value")
        return codec.decode_contact_key(key)
    found = FACTS[source].read(value)
    codec.refuse_future(found.at_ms, now_ms, ahead_ms)
    return found.contact


class Resender:
    """Sends again; waits for the broker's acknowledgement."""

    def __init__(self, reader: RejectedReader, writer: Writer, prefix: str, partition_count: int, ahead_ms: int) -> None:
        self._reader = reader
        self._writer = writer
        self._topics = {prefix + source: source for source in (*FACTS, *INTERNAL, JOURNEYS)}
        self._partition_count = partition_count
        self._ahead_ms = ahead_ms

    async def resend(self, asked: Sequence[Mend | Refused]) -> dict[str, Any]:
        """The answer to a POST: what was sent, and where to; what was refused. Raises `ApiError` (503); what was sent by then stays sent."""
        sent: dict[int, dict[str, Any]] = {}
        refused: dict[int, Refused] = {index: one for index, one in enumerate(asked) if isinstance(one, Refused)}
        by_id: dict[Id, list[int]] = {}
        mends = {index: one for index, one in enumerate(asked) if isinstance(one, Mend)}
        for index, mend in mends.items():
            by_id.setdefault(mend.id, []).append(index)
            if len(by_id[mend.id]) > 1:
                refused[index] = Refused("given_twice", f"record {mend.id} is in the request twice; name it once", "id")
        left = set(by_id)
        while left:
            found = await self._reader.records(left)
            left -= found.keys()
            waiting: list[tuple[int, Mend, Outgoing, asyncio.Future[Any]]] = []
            async with broker(SEND_SECONDS):
                for id_, record in found.items():
                    index = by_id[id_][0]
                    try:
                        outgoing = self._prepared(id_, record, mends[index])
                        waiting.append((index, mends[index], outgoing, await self._send(outgoing)))
                    except Refused as error:
                        refused[index] = error
                answers = await asyncio.gather(*(future for *_, future in waiting), return_exceptions=True)
                for (index, mend, outgoing, _), answer in zip(waiting, answers, strict=True):
                    if isinstance(answer, MessageSizeTooLargeError):
                        refused[index] = _too_large(answer)
                    elif isinstance(answer, BaseException):
                        raise answer
                    else:
                        place = {"topic": outgoing.topic, "partition": outgoing.partition, "offset": int(answer.offset)}
                        sent[index] = {"index": index, "id": str(mend.id), **place}
        errors = [{"index": index, **error_body(one.code, one.message, one.path)} for index, one in sorted(refused.items())]
        return {"sent": [one for _, one in sorted(sent.items())], "refused": errors}

    def _prepared(self, id_: Id, record: Any, mend: Mend) -> Outgoing:
        if record is None:
            raise Refused("unknown_record", f"there is no rejected record {id_}, or retention took it; GET /api/rejected lists those there are", "id")
        return prepare(record, mend, self._topics, self._partition_count, now_ms(), self._ahead_ms)

    async def _send(self, outgoing: Outgoing) -> asyncio.Future[Any]:
        topic, partition, key, value, headers, timestamp_ms = outgoing
        try:
            return await self._writer.producer.send(  # type: ignore[no-any-return]
                topic, value, key=key, partition=partition, headers=headers, timestamp_ms=timestamp_ms
            )
        except MessageSizeTooLargeError as error:
            raise _too_large(error) from None
        except UnknownTopicOrPartitionError:
            raise Refused("unknown_topic", f"there is no topic {topic} any more; make it with `waypost topics`") from None


def _too_large(error: Exception) -> Refused:
    return Refused("too_large", f"the broker refuses a record of this size ({error}); mend it to less", "value")
