"""The corpus of bad records: each is refused with its reason, and the odd good ones are taken: by the codec, and by what workers do with chunks."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

import pytest

from agents import handoffs, intake
from agents.catalog import CONTROL, MAX_REFUSED, Catalog
from schemas import codec, recalculation
from schemas.errors import Refused
from state.matching import Matcher
from streams.blocks import Rows
from tests.support.corpus import AT, AT_MS, BAD, GOOD, Bad, Good, Sent, journey, raw
from tests.support.records import Record, block_of

NOW_MS, AHEAD_MS = AT_MS + 1000, 86_400_000


def take(sent: Sent) -> tuple[str, int]:
    """Contact and time of a record, by the codec's functions in the order in which a worker calls them."""
    if sent.topic == "contacts" and sent.value is None:
        codec.refuse_future(sent.timestamp_ms or 0, NOW_MS, AHEAD_MS)
        return codec.decode_contact_key(sent.key), 0
    if sent.topic in ("handoffs", "rebuilt-evidence"):
        return handoffs.decode(sent.value or b"").to, 0
    if sent.topic == "journeys":
        return codec.decode_journey(sent.key, sent.value)[0], 0
    if sent.topic in ("recalculations", "recalculation-reports"):
        catalog = Catalog()
        catalog.take(sent.topic, sent.key, sent.value, 0)
        raise catalog.refused[sent.topic][0]
    if sent.value is None:
        raise Refused("empty_value", "null")
    if sent.topic == "activities":
        activity = codec.decode_activity(sent.value)
        who, at_ms = activity.contact_id, codec.activity_at_ms(activity)
        assert codec.activity_id(activity, sent.value), "every activity has an id in the end"
    elif sent.topic == "contact-merges":
        merge = codec.decode_merge(sent.value)
        assert merge.id, "every merge has an id in the end"
        who, at_ms = merge.from_, merge.at_ms
    else:
        profile = codec.decode_profile(sent.key, sent.value)
        who, at_ms = profile.contact_id, profile.at_ms
    codec.refuse_future(at_ms, NOW_MS, AHEAD_MS)
    return who, at_ms


def test_the_corpus_is_large_and_has_no_doubles() -> None:
    assert len(BAD) >= 200
    assert len({bad.name for bad in BAD}) == len(BAD)
    assert len({good.name for good in GOOD}) == len(GOOD)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_ones_are_refused_with_their_reason(bad: Bad) -> None:
    with pytest.raises(Refused) as refused:
        take(bad)
    said = f"{refused.value.message} {refused.value.code} {refused.value.path}"
    assert re.search(bad.reason, said, re.IGNORECASE), said
    assert len(refused.value.message) < 1000, "a reason is a sentence, however large the record"
    refused.value.message.encode()  # it goes into a header


@pytest.mark.parametrize("good", GOOD, ids=lambda good: good.name)
def test_odd_ones_are_taken(good: Good) -> None:
    assert take(good) == (good.contact_id, good.at_ms)


@pytest.mark.parametrize("topic", CONTROL)
def test_the_catalogue_passes_bad_records_over_and_keeps_their_offsets_in_mind(topic: str) -> None:
    catalog = Catalog()
    bad = [one for one in BAD if one.topic == topic]
    assert not any(catalog.take(topic, one.key, one.value, at) for at, one in enumerate(bad))
    assert [*catalog.refused[topic]] == [*range(len(bad))]
    assert (catalog.journeys, catalog.recalculations.records, catalog.reports.known()) == ({}, {}, [])
    assert catalog.take("journeys", b"good", raw(journey("good", version=1, saved_at=AT)), len(bad))
    assert [*catalog.journeys] == ["good"]


def test_the_catalogue_keeps_a_bounded_number_of_bad_records_in_mind() -> None:
    catalog = Catalog()
    for offset in range(MAX_REFUSED + 5):
        catalog.take("recalculations", b"x", b"{", offset)
    assert [*catalog.refused["recalculations"]] == [*range(5, MAX_REFUSED + 5)]


def test_a_record_that_meets_a_fault_of_ours_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: Any) -> Any:
        raise OverflowError("cannot convert float infinity to integer")

    monkeypatch.setattr(recalculation, "decode", fault)
    catalog = Catalog()
    assert not catalog.take("recalculations", b"x", b"{}", 3)
    assert catalog.refused["recalculations"][3].code == "bad_record"


def test_exactly_the_allowed_time_ahead_is_taken() -> None:
    codec.refuse_future(NOW_MS + AHEAD_MS, NOW_MS, AHEAD_MS)
    with pytest.raises(Refused):
        codec.refuse_future(NOW_MS + AHEAD_MS + 1, NOW_MS, AHEAD_MS)


def taken_in(sent: list[Sent], fetched: bool) -> list[tuple[Any, Refused]]:
    """What intake refuses of chunks that hold *sent*, topic by topic. *fetched*: as the transport has them, else as objects."""
    chunks: dict[str, Any] = defaultdict(list)
    for offset, one in enumerate(sent):
        chunks[one.topic].append(Record(offset, one.timestamp_ms or AT_MS, one.key, one.value, one.headers))
    if fetched:
        intake.loops.warm()
        chunks["activities"] = Rows(*(block_of([record]) for record in chunks["activities"]))
    return [
        *intake.activities(chunks["activities"], Matcher({}), NOW_MS, AHEAD_MS).refused,
        *intake.merges(chunks["contact-merges"], "contact-merges", 0, NOW_MS, AHEAD_MS).refused,
        *intake.profiles(chunks["contacts"], NOW_MS, AHEAD_MS).refused,
        *intake.handed_over(chunks["handoffs"] + chunks["rebuilt-evidence"]).refused,
    ]


@pytest.mark.parametrize("fetched", [False, True])
def test_a_chunk_of_good_and_bad_loses_none_and_refuses_the_bad_as_they_came(fetched: bool) -> None:
    bad = [one for one in BAD if one.topic not in CONTROL]
    mixed: list[Sent] = [one for pair in zip(bad, GOOD * (len(bad) // len(GOOD) + 1), strict=False) for one in pair]
    refused = {record.offset: (record, error) for record, error in taken_in(mixed, fetched)}
    for offset, one in enumerate(mixed):
        assert (offset in refused) == isinstance(one, Bad), one.name
        if isinstance(one, Bad):
            record, error = refused[offset]
            assert (record.key, record.value, list(record.headers)) == (one.key, one.value, list(one.headers))
            assert re.search(one.reason, f"{error.message} {error.code} {error.path}", re.IGNORECASE), one.name
