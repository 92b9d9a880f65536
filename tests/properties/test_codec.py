"""The compiled decoders and the pydantic models accept and refuse the same bytes, and no bytes do any harm."""

import json
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas import codec, times
from schemas.activity import Activity
from schemas.errors import Refused
from schemas.merge import ContactMerge
from schemas.profile import ContactProfile

GOOD = b'{"id": "a-81", "contact_id": "c-42", "type": "pagevisit", "at": "2026-01-02T03:04:05.678Z", "page": "/campaign/smb"}'

# -- bytes that look like facts, more or less -------------------------------------------------------------------------------


class Literal(str):
    """JSON text that is written as it is."""


times_text = st.one_of(
    st.datetimes().map(lambda d: d.isoformat() + "Z"),
    st.datetimes(timezones=st.timezones()).map(lambda d: d.isoformat()),
    st.sampled_from(
        [
            "2026-01-02T03:04:05.678Z", "2026-01-02 03:04:05z", "2026-01-02T03:04:05", "2026-01-02T03:04:05.6789999Z", "2026-01-02",
            "2026-01-02T03:04:05+0100", "2026-01-02T03:04:05+01", "0001-01-01T00:00:00+10:00", "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59-10:00", "2026-01-02T23:59:60Z", "2026-01-02T24:00:00Z",
            "2026-02-30T00:00:00Z", "1767323045678", "soon", "", "2026-01-02T03:04:05,5Z", "１２３４-01-02T03:04:05Z",
        ]
    ),
)  # fmt: skip
numbers = st.one_of(
    st.integers(),
    st.integers(times.FIRST_MS - 2, times.FIRST_MS + 2),
    st.integers(times.EARLIEST_MS - 2, times.EARLIEST_MS + 2),
    st.integers(times.LAST_MS - 2, times.LAST_MS + 2),
    st.sampled_from([10**30, -(10**30), 2**63, 2**64, -(2**63) - 1]),
    st.floats(),
    st.sampled_from(
        [
            "1.0",
            "1e3",
            "1E+2",
            "-0",
            "-0.0",
            "1e999",
            "01",
            "1.",
            ".5",
            "+1",
            "NaN",
            "Infinity",
            "-Infinity",
            "9" * 5000,
        ]
    ).map(Literal),
)
texts = st.one_of(
    st.text(st.characters(), max_size=8),
    st.sampled_from(
        [
            "",
            "x",
            "x" * 200,
            "x" * 201,
            "é" * 200,
            "é" * 201,
            "x" * 250,
            "x" * 251,
            "😀" * 201,
            "\x00",
            "\ud800",
            "a\udc00b",
            "\ud83d\ude00",
        ]
    ),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts, times_text)
junk = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def written(value: object) -> str:
    """JSON, or nearly: lone surrogates as escapes, NaN and literals as they are."""
    if isinstance(value, Literal):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


@st.composite
def records(draw: st.DrawFn, fields: dict[str, st.SearchStrategy[object]]) -> bytes:
    """Mostly good records: each field is good, or anything, or missing, or given twice; unknown fields between; sometimes damaged bytes."""
    pairs: list[tuple[str, object]] = []
    for name, good in fields.items():
        match draw(st.integers(0, 19)):
            case 0:
                pairs.append((name, draw(junk)))
            case 1:
                pass
            case 2:
                pairs += [(name, draw(good | junk)), (name, draw(good | junk))]
            case _:
                pairs.append((name, draw(good)))
    for _ in range(draw(st.integers(0, 2))):
        pairs.append((draw(texts), draw(junk)))
    pairs = draw(st.permutations(pairs))
    raw = ("{" + ",".join(f"{json.dumps(name)}:{written(value)}" for name, value in pairs) + "}").encode(
        "utf-8", "surrogatepass"
    )
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(raw)))
        cut = draw(st.integers(0, 3))
        raw = (
            raw[:at]
            + draw(st.binary(max_size=3) | st.sampled_from([b"\xff", b",", b"}", b'"', b"\\", b"\\ud800", b"NaN"]))
            + raw[at + cut :]
        )
    return raw


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5) | st.sampled_from(["c-42", "x" * 200])
moments = st.integers(times.EARLIEST_MS, times.LAST_MS) | times_text.filter(lambda t: t.endswith("Z"))
optional = st.none() | ids
activities = records(
    {
        "contact_id": ids,
        "type": st.sampled_from(["pagevisit", "Click", "x" * 250]),
        "at": moments,
        "id": optional,
        "page": optional,
        "url": optional,
        "value": optional,
    }
)
merges = records({"from": ids, "into": ids, "at": moments, "id": optional})
attributes = st.dictionaries(ids, junk, max_size=3)
profiles = records({"contact_id": ids, "at": moments, "groups": st.lists(ids, max_size=3), "attributes": attributes})


def outcome(decode, *args):
    """What *decode* gives, or None when it refuses; anything else that it raises is a failure."""
    try:
        return decode(*args)
    except Refused as error:
        refused = error
    assert refused.code.replace("_", "").isalpha()
    assert 0 < len(refused.message) < 400
    assert "\n" not in refused.message
    return None


# -- the same inputs --------------------------------------------------------------------------------------------------------


@settings(max_examples=1500, deadline=None)
@given(activities)
@example(GOOD)
@example(b'{"contact_id":"a","type":"t","at":1700000000001,"at":"x","at":5}')
@example(b'{"contact_id":"a","type":"t","at":1700000000001,"x":"\xff"}')
@example(b'{"contact_id":"a","type":"t","at":1700000000001,"\xff":1}')
@example(b'{"contact_id":"a","type":"t","at":1700000000001,"x":' + b"9" * 5000 + b"}")
@example(b'{"contact_id":"a","type":"t","at":"0001-01-01T00:00:00+10:00"}')
@example(b'{"contact_\\u0069d":"a","type":"t","at":1700000000001}')
@example(b"")
@example(b" ")
@example(b"null")
@example(b"[]")
@example(b'"{}"')
@example(b"{}")
@example(b"\xef\xbb\xbf" + GOOD)
@example(GOOD + b" ")
@example(GOOD + b"x")
@example(GOOD.decode().encode("utf-16"))
def test_activities_the_same_by_decoder_and_by_model(raw):
    fast, slow = outcome(codec.decode_activity, raw), outcome(codec.parse, Activity, raw)
    assert (fast is None) == (slow is None)
    if fast is not None:
        assert codec.activity_at_ms(fast) == slow.at
        assert {f: getattr(fast, f) for f in Activity.model_fields if f != "at"} == slow.model_dump(exclude={"at"})
        assert codec.activity_id(fast, raw) == codec.activity_id(fast, raw) != ""


@settings(max_examples=700, deadline=None)
@given(merges)
@example(b'{"from":"a","into":"a","at":1700000000001}')
@example(b'{"from_":"a","into":"b","at":1700000000001}')
def test_merges_the_same_by_decoder_and_by_model(raw):
    fast, slow = outcome(codec.decode_merge, raw), outcome(codec.parse, ContactMerge, raw)
    assert (fast is None) == (slow is None)
    if fast is not None:
        assert (fast.from_, fast.into, fast.at_ms) == (slow.from_, slow.into, slow.at)
        assert fast.id == (slow.id or codec.content_id(raw))


@settings(max_examples=700, deadline=None)
@given(profiles)
@example(b'{"contact_id":"a","at":1700000000001,"attributes":{"n":' + b"9" * 5000 + b"}}")
@example(b'{"contact_id":"a","at":1700000000001,"attributes":{"n":1e999}}')
@example(b'{"contact_id":"a","at":1700000000001,"attributes":{"n":18446744073709551616}}')
@example(b'{"contact_id":"a","at":1700000000001,"attributes":{"n":18446744073709551615}}')
@example(b'{"contact_id":"a","at":1700000000001,"attributes":' + b'{"a":' * 49 + b"{}" + b"}" * 49 + b"}")
@example(b'{"contact_id":"a","at":1700000000001,"attributes":' + b'{"a":' * 50 + b"{}" + b"}" * 50 + b"}")
@example(b'{"contact_id":"a","at":1700000000001,"attributes":[18446744073709551616],"attributes":{}}')
@example(b'{"contact_id":"a","at":"1999-01-01T00:00:00Z","at":1700000000001}')
@example(b'{"contact_id":"a","at":1,"at":1700000000001}')
@example(b'{"contact_id":"a","at":1700000000001,"groups":null}')
def test_profiles_the_same_by_decoder_and_by_model(raw):
    fast, slow = outcome(codec.decode_profile, None, raw), outcome(codec.parse, ContactProfile, raw)
    assert (fast is None) == (slow is None)
    if fast is not None:
        assert (fast.contact_id, list(fast.groups), fast.at_ms) == (slow.contact_id, slow.groups, slow.at)
        assert fast.attributes == slow.attributes
        assert msgspec.json.decode(msgspec.json.encode(fast.attributes)) == fast.attributes


@settings(max_examples=500, deadline=None)
@given(activities | st.binary(max_size=60))
def test_the_bound_decoder_refuses_what_the_codec_refuses(raw):
    """The worker's loop: `activity_decoder` where it is right, `decode_activity` for all else."""
    if not raw.isascii() or len(raw) > codec.PLAIN_BYTES:
        return
    try:
        fast = codec.activity_decoder(raw)
        codec.activity_at_ms(fast)
    except codec.DECODE_ERRORS:
        fast = None
        assert codec.explain_activity(raw).code != "bad_record"
    except Refused:
        fast = None
    full = outcome(codec.decode_activity, raw)
    assert fast == full


# -- harm -------------------------------------------------------------------------------------------------------------------

BOMBS = [
    b"[" * 100_000,
    b"{" * 100_000,
    b'{"a":' * 100_000,
    b'{"contact_id":"a","type":"t","at":1700000000001,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"contact_id":"a","type":"t","at":1700000000001,"x":' + b'{"a":' * 501 + b"1" + b"}" * 501 + b"}",
    b'{"contact_id":' + b"[" * 300_000 + b'"a"' + b"]" * 300_000 + b',"type":"t","at":1700000000001}',
    b"[]" * 500_000,
    b'"' + b"\\" * 1_000_000,
    b'"' + b"[" * 1_000_000 + b'"',
    b"9" * 1_000_000,
    b'{"contact_id":"a","type":"t","at":' + b"9" * 1_000_000 + b"}",
    b" " * (1024 * 1024 + 1),
    GOOD[:-1] + b',"x":"' + b"x" * 2 * 1024 * 1024 + b'"}',
]


@pytest.mark.parametrize("number", range(len(BOMBS)))
def test_bombs_are_refused(number):
    raw = BOMBS[number]
    for decode in (codec.decode_activity, codec.decode_merge, lambda r: codec.decode_profile(None, r)):
        with pytest.raises(Refused):
            decode(raw)
    assert isinstance(codec.explain_activity(raw), Refused)


def nested(depth: int, pad: int = 0) -> bytes:
    return b'{"contact_id":"a","type":"t","at":1700000000001,"x":' + b"[" * depth + b"]" * depth + b" " * pad + b"}"


def at_depth(frames: int, call):
    return call() if frames == 0 else at_depth(frames - 1, call)


@pytest.mark.parametrize("frames", [0, 200])
def test_how_deep_a_record_may_be_nested_does_not_depend_on_the_stack(frames):
    assert at_depth(frames, lambda: outcome(codec.decode_activity, nested(499))) is not None
    assert at_depth(frames, lambda: outcome(codec.decode_activity, nested(500))) is None
    assert at_depth(frames, lambda: codec.content_id(nested(499))) == codec.content_id(nested(499))


def test_what_is_short_enough_to_go_unchecked_cannot_be_nested_too_deep():
    deepest = (codec.PLAIN_BYTES - len(nested(0))) // 2
    assert len(nested(deepest)) <= codec.PLAIN_BYTES < len(nested(deepest + 1))
    assert at_depth(200, lambda: codec.activity_decoder(nested(deepest))) is not None
    assert codec._depth(nested(deepest)) <= codec.MAX_DEPTH


def test_brackets_inside_texts_are_no_nesting():
    raw = GOOD[:-1] + b',"title":"' + b'[{\\"' * 1000 + b'"}'
    assert codec.decode_activity(raw).title == '[{"' * 1000


# -- what the sentences say -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (b"", "not_json", "truncated"),
        (b"hello", "not_json", "malformed"),
        (b"\xff{}", "not_json", "UTF-8"),
        (b'{"contact_id":"a","type":"t","at":NaN}', "not_json", "malformed"),
        (b'{"contact_id":"\\ud800","type":"t","at":1700000000001}', "not_json", "not JSON"),
        (b"[1]", "not_an_object", "a list"),
        (b"17", "not_an_object", "17"),
        (b'{"type":"t","at":1700000000001}', "missing_field", "contact_id is missing"),
        (b'{"contact_id":"a","at":1700000000001}', "missing_field", "type is missing"),
        (b'{"contact_id":"a","type":"t"}', "missing_field", "at is missing"),
        (b'{"contact_id":"","type":"t","at":1700000000001}', "empty_field", "contact_id is empty"),
        (b'{"contact_id":null,"type":"t","at":1700000000001}', "wrong_type", "contact_id: null is not a text"),
        (b'{"contact_id":7,"type":"t","at":1700000000001}', "wrong_type", "contact_id: 7 is not a text"),
        (b'{"contact_id":"a","type":["t"],"at":1700000000001}', "wrong_type", "type: a list is not a text"),
        (b'{"contact_id":"a","type":"t","at":1700000000001,"page":5}', "wrong_type", "page: 5 is not a text"),
        (b'{"contact_id":"' + b"x" * 201 + b'","type":"t","at":1700000000001}', "too_long", "contact_id has 201 characters; give at most 200"),
        (b'{"contact_id":"a","type":"' + b"x" * 251 + b'","at":1700000000001}', "too_long", "type has 251 characters; give at most 250"),
        (b'{"contact_id":"a","type":"t","at":1700000000001,"id":"' + b"x" * 201 + b'"}', "too_long", "id has 201"),
        (b'{"contact_id":"a","type":"t","at":"soon"}', "bad_time", 'at: "soon" is not a time; write RFC 3339'),
        (b'{"contact_id":"a","type":"t","at":"2026-01-02T03:04:05"}', "bad_time", "at:"),
        (b'{"contact_id":"a","type":"t","at":true}', "bad_time", "true is not a time"),
        (b'{"contact_id":"a","type":"t","at":1.5}', "bad_time", "1.5 is not a time"),
        (b'{"contact_id":"a","type":"t","at":null}', "bad_time", "null is not a time"),
        (b'{"contact_id":" ","type":"t","at":1700000000001}', "bad_value", "contact_id: holds nothing but blanks"),
        (b'{"contact_id":"a","type":"t","at":1767323045}', "bad_time", "if these are seconds, send milliseconds: 1767323045000"),
        (b'{"contact_id":"a","type":"t","at":0}', "bad_time", "(0 ms) is before the year 2000; send the time at which"),
        (b'{"contact_id":"a","type":"t","at":253402300800000}', "bad_time", "outside the years 1 to 9999"),
        (b'{"contact_id":"a","type":"t","at":"0001-01-01T00:00:00+10:00"}', "bad_time", "outside the years 1 to 9999"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_broken_rule_and_the_place(raw, code, says):
    with pytest.raises(Refused) as refused:
        codec.decode_activity(raw)
    assert refused.value.code == code
    assert says in refused.value.message
    assert codec.explain_activity(raw).code == code


def test_a_merge_of_a_contact_into_itself_is_refused():
    with pytest.raises(Refused) as refused:
        codec.decode_merge(b'{"id":"m","from":"a","into":"a","at":1700000000001}')
    assert refused.value.code == "self_merge"


def test_the_key_of_a_record_without_a_value():
    assert codec.decode_contact_key("é".encode()) == "é"
    for key, code in ((None, "missing_key"), (b"", "missing_key"), (b"\xff", "bad_key"), (b"x" * 201, "too_long")):
        with pytest.raises(Refused) as refused:
            codec.decode_contact_key(key)
        assert refused.value.code == code
    assert codec.explain_activity(None).code == "empty_value"


def test_a_time_too_far_ahead_is_refused():
    day_ms = 86_400_000
    codec.refuse_future(day_ms + 5, 5, day_ms)
    with pytest.raises(Refused) as refused:
        codec.refuse_future(day_ms + 6, 5, day_ms)
    assert refused.value.code == "in_the_future"
    assert "24 h" in refused.value.message


# -- ids from content -------------------------------------------------------------------------------------------------------


def test_the_content_stands_in_for_a_missing_id_however_it_is_written():
    same = [
        b'{"contact_id":"a","type":"t","at":"2026-01-02T03:04:05.678Z","page":"/x","extra":{"b":1,"a":2}}',
        b'{"extra": {"a":2, "b":1}, "page":"\\/x", "at": 1767323045678, "type":"t", "contact_id":"\\u0061"}',
        b'{"id":null,"contact_id":"a","type":"t","at":"2026-01-02T04:04:05.678+01:00","page":"/x","url":null,"extra":{"b":1,"a":2}}',
        b'{"id":"","contact_id":"a","type":"t","at":1767323045678,"page":"/x","extra":{"b":1,"a":2}}',
    ]
    assert len({codec.activity_id(codec.decode_activity(raw), raw) for raw in same}) == 1
    other = [same[0].replace(b"/x", b"/y"), same[0].replace(b'"b":1', b'"b":3'), same[0].replace(b"678Z", b"679Z")]
    assert len({codec.activity_id(codec.decode_activity(raw), raw) for raw in [same[0], *other]}) == 4


def test_a_given_id_is_the_id():
    assert codec.activity_id(codec.decode_activity(GOOD), GOOD) == "a-81"


def activity_time(text):
    """Return the time of an activity with *text* as its `at`, in milliseconds; None if it is refused as too early."""
    try:
        return codec.activity_at_ms(codec.decode_activity(b'{"contact_id":"a","type":"t","at":"%s"}' % text.encode()))
    except Refused as refused:
        if "before the year 2000" in refused.message:
            return None
        raise


# -- times ------------------------------------------------------------------------------------------------------------------


@given(st.integers(times.FIRST_MS, times.LAST_MS))
def test_times_come_back_as_they_went(at_ms):
    text = times.format_ms(at_ms)
    assert len(text) == len("2026-01-02T03:04:05.678Z")
    assert times.parse_ms(text) == at_ms
    assert activity_time(text) == (at_ms if at_ms >= times.EARLIEST_MS else None)


@given(st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)), st.integers(-1439, 1439))
def test_times_are_exact_in_every_offset(naive, offset_minutes):
    at = naive.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    exact = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert times.parse_ms(at.isoformat()) == times.datetime_ms(at) == exact
    assert activity_time(at.isoformat()) == (exact if exact >= times.EARLIEST_MS else None)


NO_TIMES = [
    True,
    None,
    1.0,
    "1",
    "",
    "now",
    "2026-01-02T03:04:05",
    times.LAST_MS + 1,
    times.FIRST_MS - 1,
    10**4000,
    [],
    "\ud800",
]


@pytest.mark.parametrize("value", NO_TIMES)
def test_what_is_no_time(value):
    with pytest.raises(Refused) as refused:
        times.parse_ms(value)
    assert refused.value.code == "bad_time"
    with pytest.raises(Refused):
        times.format_ms(times.LAST_MS + 1)
