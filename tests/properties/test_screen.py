"""The screen never says sound of what the codec refuses, and says it of every activity that is written plainly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas import codec, screen
from schemas.activity import FIELDS, Activity
from schemas.errors import Refused
from schemas.times import EARLIEST_MS, FIRST_MS, LAST_MS, format_ms
from schemas.wire import MAX_BYTES, MAX_ID, MAX_TYPE

NOW_MS = 1_767_322_800_000
LATEST_MS = NOW_MS + 86_400_000


def together(values: Sequence[bytes | None]) -> tuple[bytes, Any, Any]:
    """Data, starts and sizes."""
    sizes = np.array([-1 if value is None else len(value) for value in values], np.int64)
    return b"".join(value or b"" for value in values), np.cumsum([0, *np.maximum(sizes, 0)], dtype=np.int64)[:-1], sizes


def sound(*values: bytes | None, latest_ms: int = LATEST_MS) -> list[bool]:
    return screen.sound(*together(values), latest_ms).tolist()  # type: ignore[no-any-return]


def accepted(value: bytes, latest_ms: int = LATEST_MS) -> bool:
    try:
        return codec.activity_at_ms(codec.decode_activity(value)) <= latest_ms
    except Refused:
        return False


plain_texts = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), max_size=30)
moments = st.one_of(
    st.integers(NOW_MS - 10**11, LATEST_MS),
    st.integers(NOW_MS - 10**11, LATEST_MS).map(format_ms),
    st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2026, 1, 1)).map(lambda at: at.isoformat() + "Z"),
    st.sampled_from(["2024-02-29T23:59:59Z", "2000-02-29T00:00:00.5+05:30", "2025-12-31T23:59:59.999999-11:00"]),
    st.sampled_from([EARLIEST_MS, "2000-01-01T00:00:00Z", "1999-12-31T23:00:00-01:00"]),
)
others = st.one_of(st.none(), st.booleans(), st.integers(-(10**14), 10**14), plain_texts)
plain = st.fixed_dictionaries(
    {"contact_id": plain_texts.filter(str.strip), "type": plain_texts.filter(bool), "at": moments},
    optional={**{name: st.none() | plain_texts for name in ("id", "page", "url", "title", "referrer")}, "weight": others, "": others},
)
written = st.tuples(plain, st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r")]), st.sampled_from(["", " ", "\n"])).map(
    lambda made: (made[2] + json.dumps(made[0], separators=made[1]) + made[2]).encode()
)


@settings(max_examples=400)
@given(st.lists(written, max_size=5))
def test_what_is_written_plainly_is_known_to_be_sound(values: list[bytes]) -> None:
    assert sound(*values) == [True] * len(values)
    assert all(map(accepted, values))


wild_values = st.one_of(
    others, st.floats(allow_nan=False), st.text(max_size=8), st.lists(st.none(), max_size=2), st.just({}), moments,
    st.integers(-(10**20), 10**20), st.sampled_from([FIRST_MS, FIRST_MS - 1, LAST_MS, LAST_MS + 1, LATEST_MS, LATEST_MS + 1, "x" * (MAX_ID + 1)]),
    st.sampled_from([EARLIEST_MS - 1, "1999-12-31T23:59:59.999999Z", "2000-01-01T00:59:59+01:00", " ", "   "]),
    st.sampled_from(["2025-02-29T00:00:00Z", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2025-01-01T24:00:00Z"]),
    st.sampled_from(["2025-01-01T00:00:00", "2025-01-01 00:00:00Z", "2025-01-01T00:00:00.1234567Z", "2025-13-01T00:00:00Z"]),
    st.sampled_from(["2025-01-00T00:00:00Z", "2025-01-01T00:00:00+24:00", "2025-01-01T00:00:00+01:60", "2025-01-01T00:00:00.Z"]),
    st.sampled_from(["2025-00-01T00:00:00Z", "-025-01-01T00:00:00Z", "2025-01-01T00:00:60Z", "2025-01-01T00:60:00Z"]),
)  # fmt: skip
wild = st.dictionaries(st.sampled_from([*Activity.model_fields, "weight", "Type"]), wild_values, max_size=6)
changes = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 2), st.binary(min_size=1, max_size=3)), max_size=3)


def changed(value: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    raw = bytearray(value)
    for at, removed, put in edits:
        begin = at % (len(raw) + 1)
        raw[begin : begin + removed] = put
    return bytes(raw)


@settings(max_examples=3000)
@given(st.tuples(st.builds(lambda a, b: json.dumps({**a, **b}).encode(), plain, wild), changes).map(lambda made: changed(*made)))
@example(b'{"contact_id":"c","type":"t","at":1700000000001,"at":"never"}')
@example(b'{"contact_id":"c","type":"t","at":1700000000001,"weight":01}')
@example(b'{"contact_id":"c","type":"t","at":-0}')
@example(b'{"contact_id":"c","type":"t","at":1700000000001,}')
@example(b'{"contact_id":"c","type":"t","at":1.0}')
def test_what_is_said_to_be_sound_is_accepted(value: bytes) -> None:
    (said,) = sound(value)
    assert not said or accepted(value), value


@settings(max_examples=1000)
@given(st.lists(written | st.builds(lambda a, b: json.dumps({**a, **b}).encode(), plain, wild), max_size=6), st.sets(st.sampled_from(FIELDS)))
def test_what_is_read_is_what_the_codec_reads(values: list[bytes], fields: set[str]) -> None:
    said = screen.read(*together(values), LATEST_MS, screen.numbers_of(fields))
    signatures: dict[bytes, tuple[str | None, ...]] = {}
    for n, (value, known) in enumerate(zip(values, sound(*values), strict=True)):
        begin, contact_at, id_at, end = said.bounds[3 * n : 3 * n + 4]
        if not said.sound[n]:
            assert begin == end
            assert not known or not codec.decode_activity(value).id
            continue
        activity = codec.decode_activity(value)
        assert (said.text[contact_at:id_at].decode(), said.text[id_at:end].decode()) == (activity.contact_id, activity.id)
        assert int(said.at[n]) - (1 << 63) == codec.activity_at_ms(activity)
        looked_at = (activity.type, *(getattr(activity, field) for field in sorted(fields)))
        assert signatures.setdefault(said.text[begin:contact_at], looked_at) == looked_at
    assert len(set(signatures.values())) == len(signatures)


@pytest.mark.parametrize("name", ["contact_id", "type", "id"])
def test_lengths_are_the_models(name: str) -> None:
    most = MAX_TYPE if name == "type" else MAX_ID
    for size in (0, 1, most, most + 1):
        value = json.dumps({"contact_id": "c", "type": "t", "at": 1_700_000_000_001, name: "x" * size}).encode()
        assert sound(value) == [accepted(value)], (name, size)


def test_what_is_too_long_or_missing_is_left_to_the_codec() -> None:
    head, tail = b'{"contact_id":"c","type":"t","at":1700000000001,"page":"', b'"}'
    most = MAX_BYTES - len(head) - len(tail)
    assert sound(None, b"", head + b"x" * most + tail, head + b"x" * (most + 1) + tail) == [False, False, True, False]


def test_an_activity_of_later_than_the_latest_is_not_sound() -> None:
    for at in (EARLIEST_MS + 1000, "2000-01-01T00:00:01.000Z", "2000-01-01T01:00:01+01:00"):
        value = json.dumps({"contact_id": "c", "type": "t", "at": at}).encode()
        assert [sound(value, latest_ms=latest) for latest in (EARLIEST_MS + 999, EARLIEST_MS + 1000)] == [[False], [True]]


def test_an_activity_before_the_year_2000_is_not_sound() -> None:
    for early, at in ((EARLIEST_MS - 1, EARLIEST_MS), ("1999-12-31T23:59:59.999Z", "2000-01-01T00:00:00Z")):
        values = [json.dumps({"contact_id": "c", "type": "t", "at": moment}).encode() for moment in (early, at)]
        assert sound(*values) == [False, True] == [accepted(value) for value in values]


def test_a_contact_of_blanks_is_not_sound() -> None:
    for blank in (" ", "   "):
        value = json.dumps({"contact_id": blank, "type": "t", "at": NOW_MS}).encode()
        assert not sound(value)[0]
        assert not accepted(value)


def test_a_value_outside_of_its_data_is_an_error() -> None:
    with pytest.raises(IndexError):
        screen.sound(b"{}", np.array([1], np.int64), np.array([2], np.int64), LATEST_MS)
    with pytest.raises(IndexError):
        screen.read(b"{}", np.array([1], np.int64), np.array([2], np.int64), LATEST_MS, screen.numbers_of(["page"]))


def test_there_is_room_for_a_record_that_is_nothing_but_what_is_asked_for() -> None:
    value = json.dumps({"contact_id": "c", "type": "t", "at": 1_700_000_000_001, "id": "i", **dict.fromkeys(FIELDS, "x" * 50)}).encode()
    said = screen.read(*together([value] * 3), LATEST_MS, screen.numbers_of([*FIELDS, *FIELDS]))
    assert said.sound.tolist() == [True] * 3
    assert said.bounds[-1] == len(said.text) == 3 * (len("tci") + 2 * (len(FIELDS) + 1) + 50 * len(FIELDS))
    with pytest.raises(KeyError):
        screen.numbers_of(["type"])
