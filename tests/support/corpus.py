"""Records that must be rejected, each with its reason, and odd ones that must be taken: deterministic, never sends anything itself.

A reason is a regular expression (case ignored) that the sentence of the refusal, its code or its path has to contain.
Topics are named without prefix: "activities", "contact-merges", "contacts", "handoffs", "rebuilt-evidence", "journeys",
"recalculations", "recalculation-reports".
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from agents import handoffs
from schemas.errors import shown
from schemas.hashing import h8
from schemas.times import EARLIEST_MS
from state.evidence import hit
from state.identity import Merge, Profile
from state.messages import Join, Unite

AT = "2026-01-02T03:04:05.678Z"
AT_MS = 1_767_323_045_678
FAR = "2999-01-01T00:00:00Z"
FAR_MS = 32_472_144_000_000
MIB = 1 << 20
Headers = tuple[tuple[str, bytes | None], ...]

OPTIONAL_TEXT = [
    "page",
    "url",
    "channel",
    "form",
    "email",
    "value",
    "title",
    "utm_source",
    "utm_content",
    "language",
    "referrer",
]


@dataclass(frozen=True)
class Sent:
    """A record as it goes to the broker. `key` and `value` may be None, as Kafka allows. `timestamp_ms`: the record's; None for now."""

    name: str
    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int | None = dataclasses.field(default=None, kw_only=True)


@dataclass(frozen=True)
class Bad(Sent):
    """A record that must end on the rejected topic, with a reason that matches `reason`."""

    reason: str = ""


@dataclass(frozen=True)
class Good(Sent):
    """A record in strange clothes that must be taken, and what it says: `contact_id` and `at_ms`."""

    contact_id: str = ""
    at_ms: int = AT_MS


# -- well-formed records to spoil -----------------------------------------------------------------------------------------


def activity(**changes: Any) -> dict[str, Any]:
    return {"id": "a-1", "contact_id": "c-1", "type": "pagevisit", "at": AT, "page": "/x"} | changes


def merge(**changes: Any) -> dict[str, Any]:
    return {"id": "m-1", "from": "v-1", "into": "c-1", "at": AT} | changes


def profile(**changes: Any) -> dict[str, Any]:
    return {"contact_id": "c-1", "groups": ["smb"], "attributes": {"name": "Ada"}, "at": AT} | changes


FACTS = {"activities": activity, "contact-merges": merge, "contacts": profile}
REQUIRED = {
    "activities": ("contact_id", "type", "at"),
    "contact-merges": ("from", "into", "at"),
    "contacts": ("contact_id", "at"),
}
IDS = {"activities": ("contact_id",), "contact-merges": ("from", "into"), "contacts": ("contact_id",)}


def without(fact: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in fact.items() if k != name}


def raw(fact: Any) -> bytes:
    return json.dumps(fact, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


# -- what can be wrong ----------------------------------------------------------------------------------------------------

WRONG_TYPES: dict[str, Any] = {
    "integer": 7,
    "float": 7.5,
    "true": True,
    "list": ["x"],
    "object": {"x": 1},
}

TOO_EARLY: dict[str, Any] = {
    "in seconds": AT_MS // 1000,
    "the epoch": 0,
    "before 1970": -1,
    "the last millisecond of 1999": EARLIEST_MS - 1,
    "the last second of 1999": "1999-12-31T23:59:59Z",
    "1999 by its offset": "2000-01-01T00:59:59+01:00",
    "the first year": "0001-01-01T00:00:00Z",
}
BLANKS = {"a blank": " ", "blanks": "   ", "a tab": "\t", "no-break spaces": "\u00a0\u2003"}

NOT_JSON: dict[str, bytes] = {
    "empty": b"",
    "blank": b"  \n ",
    "a word": b"hello",
    "a zero byte": b"\x00",
    "binary": bytes(range(256)),
    "invalid UTF-8": b'{"contact_id":"\xff\xfe","type":"pagevisit","at":"%s"}' % AT.encode(),
    "overlong UTF-8": b'{"contact_id":"\xc0\xaf","type":"pagevisit","at":"%s"}' % AT.encode(),
    "UTF-8 of a surrogate": b'{"contact_id":"\xed\xa0\x80","type":"pagevisit","at":"%s"}' % AT.encode(),
    "latin-1": '{"contact_id":"Zoë","type":"pagevisit","at":"2026-01-02T03:04:05Z"}'.encode("latin-1"),
    "UTF-16": raw(activity()).decode().encode("utf-16"),
    "UTF-32": raw(activity()).decode().encode("utf-32"),
    "single quotes": b"{'contact_id': 'c-1'}",
    "no quotes": b"{contact_id: c-1}",
    "a comment": b'{"contact_id":"c-1" /* who */}',
    "XML": b"<activity><contact_id>c-1</contact_id></activity>",
    "CSV": b"c-1,pagevisit,2026-01-02",
    "a control character in a string": b'{"contact_id":"c\n1"}',
    "a bad escape": b'{"contact_id":"\\x41"}',
    "a short unicode escape": b'{"contact_id":"\\u12"}',
    "a leading zero": b'{"at":01}',
    "a plus sign": b'{"at":+1}',
    "hexadecimal": b'{"at":0x10}',
    "gzip": bytes.fromhex("1f8b0800000000000003") + b"\xab\x56\x4a",
    "Avro framing": b"\x00\x00\x00\x00\x01" + raw(activity()),
}

OTHER_JSON: dict[str, bytes] = {
    "null": b"null",
    "true": b"true",
    "a number": b"42",
    "a string": b'"c-1"',
    "an empty list": b"[]",
    "a list": b"[1,2,3]",
}

BAD_TIMES: dict[str, Any] = {
    "null": None,
    "empty": "",
    "a word": "yesterday",
    "a date only": "2026-01-02",
    "a time only": "03:04:05Z",
    "no offset": "2026-01-02T03:04:05",
    "month 13": "2026-13-02T03:04:05Z",
    "day 30 of February": "2026-02-30T03:04:05Z",
    "hour 25": "2026-01-02T25:04:05Z",
    "minute 60": "2026-01-02T03:60:05Z",
    "offset of 99 hours": "2026-01-02T03:04:05+99:00",
    "American": "01/02/2026 03:04 AM",
    "RFC 2822": "Fri, 02 Jan 2026 03:04:05 GMT",
    "a week date": "2026-W01-5T03:04:05Z",
    "milliseconds as text": "1767323045678x",
    "true": True,
    "false": False,
    "a fraction": 1767323045.678,
    "a list": [AT],
    "an object": {"ms": AT_MS},
    "beyond 64 bits": 10**30,
    "below 64 bits": -(10**30),
}


ODD_HEADERS: dict[str, Headers] = {
    "headers without a value": (("trace", None), ("trace", b"")),
    "a header without a name": (("", b"1"),),
    "headers that are not text": (("a", b"\xff"), ("a", b""), ("ü", b"\x00")),
    "a hundred headers": tuple((f"h{i}", b"x" * 100) for i in range(100)),
    "the headers of an earlier rejection": (
        ("waypost_error", b"something else"),
        ("waypost_topic", b"theirs"),
        ("waypost_partition", b"x"),
        ("waypost_offset", b"-1"),
        ("waypost_rejected_at", None),
    ),
}


def _bad() -> Iterator[Bad]:
    for topic, fact in FACTS.items():

        def bad(name: str, value: bytes | None, reason: str, topic: str = topic, **more: Any) -> Bad:
            return Bad(
                name=f"{topic}: {name}", topic=topic, key=more.pop("key", b"c-1"), value=value, reason=reason, **more
            )

        good = raw(fact())
        # the bytes
        for name, value in NOT_JSON.items():
            yield bad(f"not JSON, {name}", value, "json|utf-8")
        yield bad("a byte order mark", b"\xef\xbb\xbf" + good, "json|utf-8")
        yield bad("two values", good + good, "json")
        yield bad("a trailing comma", good[:-1] + b",}", "json")
        yield bad("rubbish behind", good + b" x", "json")
        for cut in (1, 2, len(good) // 2, len(good) - 1):
            yield bad(f"cut after {cut} bytes", good[:cut], "json")
        yield bad("NaN in an unknown field", good[:-1] + b',"score":NaN}', "json")
        yield bad("Infinity in an unknown field", good[:-1] + b',"score":-Infinity}', "json")
        yield bad(
            "a lone surrogate in an unknown field", good[:-1] + b',"note":"\\ud800"}', "json|surrogate|utf-8|unicode"
        )
        yield bad("lists 100,000 deep", good[:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json|deep|nest")
        yield bad("objects 100,000 deep", b'{"x":' * 100_000 + b"1" + b"}" * 100_000, "json|deep|nest")
        yield bad("unclosed 500,000 deep", b"[" * 500_000, "json|deep|nest|object")
        # the shape
        for name, value in OTHER_JSON.items():
            yield bad(f"{name} instead of an object", value, "object")
        yield bad("an empty object", b"{}", "|".join(REQUIRED[topic]))
        # the size
        yield bad("2 MiB in an unknown field", raw(fact(note="x" * 2 * MIB)), "1 MiB|1048576|1,048,576")
        yield bad("2 MiB that are not JSON", b"x" * (2 * MIB), "1 MiB|1048576|1,048,576")
        yield bad("one byte over 1 MiB", good[:-1] + b" " * (MIB - len(good)) + b" }", "1 MiB|1048576|1,048,576")
        # required fields and ids
        for field in REQUIRED[topic]:
            yield bad(f"{field} missing", raw(without(fact(), field)), rf"\b{field}\b")
            yield bad(f"{field} misspelt", raw(without(fact(), field) | {field.upper(): "c-1"}), rf"\b{field}\b")
        for field in IDS[topic]:
            yield bad(f"{field} null", raw(fact(**{field: None})), rf"\b{field}\b")
            yield bad(f"{field} empty", raw(fact(**{field: ""})), rf"\b{field}\b")
            for name, blank in BLANKS.items():
                yield bad(f"{field} of {name}", raw(fact(**{field: blank})), rf"{field}.*blank")
            yield bad(f"{field} of 201 characters", raw(fact(**{field: "c" * 201})), rf"\b{field}\b|200")
            yield bad(f"{field} of 201 emoji", raw(fact(**{field: "🙂" * 201})), rf"\b{field}\b|200")
            yield bad(f"{field} of 100,000 characters", raw(fact(**{field: "c" * 100_000})), rf"\b{field}\b|200")
            escaped = good.replace(
                b'"%s":"%s"' % (field.encode(), str(fact()[field]).encode()), b'"%s":"\\ud800"' % field.encode()
            )
            yield bad(f"{field} a lone surrogate", escaped, "json|surrogate|utf-8|unicode")
            for name, wrong in WRONG_TYPES.items():
                yield bad(f"{field} {name}", raw(fact(**{field: wrong})), rf"\b{field}\b")
        if topic != "contacts":
            yield bad("id of 201 characters", raw(fact(id="i" * 201)), r"\bid\b|200")
            for name, wrong in WRONG_TYPES.items():
                yield bad(f"id {name}", raw(fact(id=wrong)), r"\bid\b")
        # times
        for name, at in BAD_TIMES.items():
            yield bad(f"at {name}", raw(fact(at=at)), r"\bat\b|time")
        yield bad("at NaN", good.replace(b'"%s"' % AT.encode(), b"NaN"), "json")
        yield bad("at in the year 2999", raw(fact(at=FAR)), "future|ahead")
        yield bad("at in the year 2999, as an integer", raw(fact(at=FAR_MS)), "future|ahead")
        for name, early in TOO_EARLY.items():
            yield bad(f"at {name}", raw(fact(at=early)), "before the year 2000")
        yield bad("at in microseconds", raw(fact(at=AT_MS * 1000)), r"future|ahead|\bat\b|time")
        # headers and keys do not excuse
        yield bad(
            "a good key with a bad value", b"?", "json", key=b"c-1", headers=(("trace", b"\xff\x00"), ("trace", b"2"))
        )
        for name, headers in ODD_HEADERS.items():
            yield bad(f"a bad value with {name}", b"?", "json", headers=headers)
        yield bad("no key and a bad value", b"?", "json", key=None)
        yield bad("a key that is not UTF-8 and a bad value", b"?", "json", key=b"\xff\xfe")

    for topic in ("activities", "contact-merges"):
        yield Bad(f"{topic}: null value", topic, b"c-1", None, reason="json|null|empty")
        yield Bad(f"{topic}: no key, null value", topic, None, None, reason="json|null|empty")

    def act(name: str, reason: str, **changes: Any) -> Bad:
        return Bad(f"activities: {name}", "activities", b"c-1", raw(activity(**changes)), reason=reason)

    for field in OPTIONAL_TEXT:
        for name, wrong in WRONG_TYPES.items():
            yield act(f"{field} {name}", rf"\b{field}\b", **{field: wrong})
    yield act("type null", r"\btype\b", type=None)
    yield act("type empty", r"\btype\b", type="")
    yield act("type of 251 characters", r"\btype\b|250", type="t" * 251)
    for name, wrong in WRONG_TYPES.items():
        yield act(f"type {name}", r"\btype\b", type=wrong)

    def mrg(name: str, reason: str, **changes: Any) -> Bad:
        return Bad(f"contact-merges: {name}", "contact-merges", b"v-1", raw(merge(**changes)), reason=reason)

    itself = r"itself|same|\binto\b"
    yield mrg("a contact into itself", itself, into="v-1")
    yield mrg("a contact into itself, without id", itself, id=None, into="v-1")
    yield mrg("a contact of 200 characters into itself", itself, **{"from": "v" * 200, "into": "v" * 200})

    def prf(name: str, reason: str, **changes: Any) -> Bad:
        return Bad(f"contacts: {name}", "contacts", b"c-1", raw(profile(**changes)), reason=reason)

    for name, wrong in {"a string": "smb", "integer": 7, "true": True, "an object": {"smb": 1}}.items():
        yield prf(f"groups {name}", r"\bgroups\b", groups=wrong)
    for name, wrong in {"integer": 7, "null": None, "a list": ["x"], "true": True}.items():
        yield prf(f"a group {name}", r"\bgroups\b", groups=["smb", wrong])
    for name, wrong in {"a string": "Ada", "integer": 7, "true": True, "a list": [["name", "Ada"]]}.items():
        yield prf(f"attributes {name}", r"\battributes\b", attributes=wrong)
    yield Bad("contacts: erasure without key", "contacts", None, None, reason=r"\bkey\b|contact_id")
    yield Bad("contacts: erasure with an empty key", "contacts", b"", None, reason=r"\bkey\b|contact_id")
    yield Bad(
        "contacts: erasure with a key that is not UTF-8",
        "contacts",
        b"\xff\xfe",
        None,
        reason=r"\bkey\b|contact_id|utf-8",
    )
    yield Bad(
        "contacts: erasure with a key of 201 characters", "contacts", b"c" * 201, None, reason=r"\bkey\b|contact_id|200"
    )
    yield Bad("contacts: erasure in the year 2999", "contacts", b"c-1", None, reason="future|ahead", timestamp_ms=FAR_MS)
    yield from _bad_handoffs("handoffs")
    yield from _bad_handoffs("rebuilt-evidence")
    yield from _bad_journeys()
    yield from _bad_recalculations()
    yield from _bad_reports()


def _bad_handoffs(topic: str) -> Iterator[Bad]:
    """What no worker writes: bytes that do not decode, and messages that decode and cannot be kept or announced."""

    def bad(name: str, value: bytes | None, reason: str, key: bytes | None = b"c-1") -> Bad:
        return Bad(f"{topic}: {name}", topic, key, value, reason=reason)

    rule, moment = b"12345678", hit(AT_MS, h8("a-1"))
    good = handoffs.encode(Join("c-1", {rule: moment}))
    none = "not a handoff"
    for name, value in NOT_JSON.items():
        yield bad(name, value, none)
    yield bad("a null value", None, none)
    yield bad("a null value without key", None, none, key=None)
    yield bad("an activity", raw(activity()), none)
    yield bad("rubbish behind", good + b"\x00", none)
    for cut in range(1, len(good), 7):
        yield bad(f"cut after {cut} bytes", good[:cut], none)
    yield bad("lists 100,000 deep", b"\x91" * 100_000, none)
    yield bad("2 MiB that are no handoff", b"\xc0" * (2 * MIB), none)
    yield bad("a later format", msgspec.msgpack.encode((2, "join", ("c-1", {}))), "format 2")
    yield bad("an unknown kind", msgspec.msgpack.encode((1, "x" * 5000, ())), "kind")
    yield bad("half a hit", handoffs.encode(Join("c-1", {rule: moment[:9]})), none)
    yield bad("a hit of the year 300 million", handoffs.encode(Join("c-1", {rule: b"\xff" * 16})), none)
    yield bad("hits that are not sorted", handoffs.encode(Join("c-1", {rule: moment + moment})), none)
    yield bad("a rule key of 3 bytes", handoffs.encode(Join("c-1", {b"123": moment})), none)
    yield bad("nobody", handoffs.encode(Join("", {rule: moment})), none)
    yield bad("an id of 201 characters", handoffs.encode(Join("c" * 201, {rule: moment})), none)
    yield bad("an erasure beyond 63 bits", handoffs.encode(Join("c-1", erased_at_ms=2**63)), none)
    yield bad("a profile that is not JSON", handoffs.encode(Join("c-1", profiles={"c-1": Profile(1, "{", ())})), none)
    yield bad("an unknown cause", handoffs.encode(Join("c-1", {rule: moment}, cause="whim")), none)
    yield bad("a union with nobody", handoffs.encode(Unite("c-1", "")), none)
    yield bad("a merge from nowhere", handoffs.encode(Unite("c-1", "c-2", (Merge(1, h8("m"), "c-1", "c-2"),), "m")), none)


def journey(id_: str, **changes: Any) -> dict[str, Any]:
    return {"id": id_, "name": "n", "stages": [{"name": "a", "condition": {"any": [{"rule": "became_member"}]}}]} | changes


def _bad_journeys() -> Iterator[Bad]:
    """Records of the journeys topic that nobody wrote through the API. Each has a key of its own, since the topic is compacted."""
    number = 0

    def bad(called: str, reason: str, value: bytes | None = None, key: bytes | None = b"?", **changes: Any) -> Bad:
        nonlocal number
        number += 1
        id_ = f"bad-{number}"
        said = raw(journey(id_, **changes)) if value is None and key == b"?" else value
        return Bad(f"journeys: {called}", "journeys", id_.encode() if key == b"?" else key, said, reason=reason)

    for name, value in NOT_JSON.items():
        yield bad(f"not JSON, {name}", "json|utf-8", value)
    for name, value in OTHER_JSON.items():
        yield bad(f"{name} instead of an object", "journey", value)
    yield bad("lists 100,000 deep", "json|deep|nest", b"[" * 100_000 + b"]" * 100_000)
    yield bad("NaN", "json", b'{"id":"bad","name":NaN,"stages":[]}')
    yield bad("a lone surrogate", "json|surrogate|unicode", b'{"id":"bad","name":"\\ud800","stages":[]}')
    yield bad("the key of another", "key", raw(journey("other")), b"another")
    yield bad("no key", "key", raw(journey("bad")), None)
    yield bad("an empty key", "key", raw(journey("bad")), b"")
    yield bad("a key that is not UTF-8", "key", raw(journey("bad")), b"\xff\xfe")
    yield bad("a deletion with an empty key", "key", None, b"")
    yield bad("a deletion with a key that is not UTF-8", "key", None, b"\xff\xfd")
    yield bad("a name of 2 MiB", "name", name="n" * 2 * MIB)
    yield bad("no stages", "stage", stages=[])
    yield bad("11 stages", "stage", stages=[{**journey("x")["stages"][0], "name": str(n)} for n in range(11)])
    yield bad("version 0", "version", version=0)
    for name, high in {"2^31": 2**31, "2^53 - 1": 2**53 - 1, "1e3": 1e3, "true": True}.items():
        yield bad(f"version {name}", "version", version=high)
    yield bad("no version", "version", saved_at=AT)
    yield bad("no time of saving", "saved_at", version=1)
    yield bad("an unknown field", "unknown|colour", colour="red")
    for name, reason, condition in (
        ("an empty condition", "empty|condition", {"any": []}),
        ("an unknown rule", "rule", {"any": [{"rule": "danced"}]}),
        ("a pattern that is none", "matches|pattern", {"any": [{"rule": "visited_url", "url": {"matches": "("}}]}),
    ):
        yield bad(name, reason, stages=[{"name": "a", "condition": condition}])


def recalculation(id_: str, **changes: Any) -> dict[str, Any]:
    return {"id": id_, "state": "cancelled", "cause": "request", "journeys": ["a"], "rules": [], "epoch": 1} | changes


INFINITE, HUGE = json.loads("1e999"), 10**30


def _bad_recalculations() -> Iterator[Bad]:
    """What no worker and no console writes. Each has a key of its own, since the topic is compacted."""
    number = 0

    def bad(called: str, value: bytes | None = None, key: bytes | None = b"?", **changes: Any) -> Bad:
        nonlocal number
        number += 1
        id_ = f"bad-{number}"
        said = raw(recalculation(id_, **changes)) if value is None and key == b"?" else value
        said = None if said is None else said.replace(b"Infinity", b"1e999")
        return Bad(
            f"recalculations: {called}", "recalculations", id_.encode() if key == b"?" else key, said,
            reason="not a recalculation|bad_time|key",
        )  # fmt: skip

    for name, value in {**NOT_JSON, **OTHER_JSON}.items():
        yield bad(name, value)
    for name in ("epoch", "events_read", "events_total", "changed", "progress", "throttle", "eta_seconds"):
        for wrong in (INFINITE, HUGE, -1, "x", [1], {}):
            yield bad(f"{name} {shown(wrong)}", **{name: wrong})
    for name in ("planned_at", "started_at", "log_from"):
        for wrong in (INFINITE, "soon", "9999-12-31T23:59:59.999Z", -1, True):
            yield bad(f"{name} {shown(wrong)}", **{name: wrong})
    for name, wrong in {"state": "over", "cause": None, "reason": {}, "journeys": [[]], "rules": [{}]}.items():
        yield bad(f"{name} {shown(wrong)}", **{name: wrong})
    yield bad("a rule that is none", rules=[{"rule": "visited_url", "url": {"matches": "("}}])
    yield bad("retired numbers", retired=[1])
    yield bad("unneeded since never", unneeded={"00": INFINITE})
    yield bad("the key of another", raw(recalculation("other")), b"another")
    yield bad("an empty key", raw(recalculation("bad")), b"")
    yield bad("a key that is not UTF-8", raw(recalculation("bad")), b"\xff\xfe")
    yield bad("a deletion with a key that is not UTF-8", None, b"\xff\xfd")


def _bad_reports() -> Iterator[Bad]:
    """What no worker and no job reports, under keys of reports and under others."""
    worker = {"recording_from": 1, "log_begin": 0, "joined": 0, "handed": 0, "scanned": 0.5, "shown": False, "changed": 0}
    job = {"begin": 0, "read": 1, "at_ms": 1, "written": {"0": 1}, "error": None}
    sound = {"worker": worker, "job": job, "views": {"views": [[1, 2]]}}
    number = 0

    def bad(who: str, name: str, value: bytes, key: bytes | None = None) -> Bad:
        nonlocal number
        number += 1
        return Bad(
            f"reports: {who}, {name}", "recalculation-reports", key or f"bad-{number}/{who}/0".encode(), value,
            reason="not a report|not a schedule",
        )  # fmt: skip

    for who, said in sound.items():
        for field in said:
            for wrong in (INFINITE, HUGE, -1, "x", [1]):
                changed = raw({**said, field: wrong}).replace(b"Infinity", b"1e999")
                if not (field == "error" and wrong == "x"):
                    yield bad(who, f"{field} {shown(wrong)}", changed)
        yield bad(who, "no object", b"[]")
    yield bad("views", "infinite versions", b'{"views":[[1e999,1]]}')
    yield bad("job", "infinite offsets", raw({**job, "written": {"0": INFINITE}}).replace(b"Infinity", b"1e999"))
    yield bad("job", "a negative partition", raw({**job, "written": {"-1": 1}}))
    for key in (b"nobody", b"a/worker/-1", b"a/worker/x", b"a/someone/1", b"\xff/job/1", b""):
        yield bad("key", repr(key), raw(worker), key or b" ")
    yield bad("schedule", "no object", b"[]", b"schedule")
    yield bad("schedule", "since never", b'{"cron":"* * * * *","zone":"UTC","since":1e999}', b"schedule")


def _good() -> Iterator[Good]:
    def act(
        name: str, who: str, at_ms: int = AT_MS, *, key: bytes | None = b"?", headers: Headers = (), **changes: Any
    ) -> Good:
        fact = activity(id=f"good {name}", contact_id=who) | changes
        sent_key = who.encode() if key == b"?" else key
        return Good(f"activities: {name}", "activities", sent_key, raw(fact), headers, contact_id=who, at_ms=at_ms)

    yield act("no key", "strange-1", key=None)
    yield act("an empty key", "strange-2", key=b"")
    yield act("the key of another contact", "strange-3", key=b"somebody else")
    yield act("a key that is not UTF-8", "strange-4", key=b"\xff\xfe\x00")
    yield act("unknown extra fields", "strange-5", score=1.5e300, deep={"a": [{"b": [None, True]}]}, **{"": 1})
    yield act("a type in capitals", "strange-6", type="PAGEVISIT")
    yield act("a type in mixed case", "strange-7", type="PageVisit")
    yield act("a custom type", "strange-8", type="Sample File/Download 🙂")
    yield act("milliseconds", "strange-9", at=AT_MS)
    yield act("offset +02:00", "strange-10", at="2026-01-02T05:04:05.678+02:00")
    yield act("offset -11:30", "strange-11", at="2026-01-01T15:34:05.678-11:30")
    yield act("microseconds are cut", "strange-12", at="2026-01-02T03:04:05.678999Z")
    yield act("no fraction", "strange-13", AT_MS - 678, at="2026-01-02T03:04:05Z")
    yield act("the first millisecond of 2000", "strange-14", EARLIEST_MS, at=EARLIEST_MS)
    yield act("the year 2000 by its offset", "strange-15", EARLIEST_MS, at="1999-12-31T23:00:00-01:00")
    yield act("all optional fields null", "strange-16", **dict.fromkeys(OPTIONAL_TEXT))
    yield act("all optional fields set", "strange-17", **dict.fromkeys(OPTIONAL_TEXT, "x"))
    yield act("id null", "strange-18", id=None)
    yield act("ids of 200 characters", "é" * 200, id="i" * 200)
    yield act("an id of 200 emoji", "🙂" * 200)
    yield act("an id with spaces and quotes", ' "quoted" \\ \t')
    yield act("an id with a zero byte", "a\x00b")
    yield act("an id that looks like a path", "../../etc/passwd")
    yield act("a type of 250 characters", "strange-19", type="t" * 250)
    for number, (name, headers) in enumerate(ODD_HEADERS.items()):
        yield act(name, f"strange-20-{number}", headers=headers)
    yield act("a long unknown field", "strange-21", note="x" * 900_000)
    yield act("an emoji page", "strange-22", page="/🙂/İ/ß")
    plain = raw(activity(id="good without id", contact_id="strange-23"))
    yield Good(
        "activities: white space around", "activities", b"x", b" \r\n\t" + plain + b"\n", contact_id="strange-23"
    )
    escapes = b'{"id":"g\\u0031","contact_id":"\\u0073trange-24","type":"page\\u0056isit","at":"' + AT.encode() + b'"}'
    yield Good("activities: escapes", "activities", b"x", escapes, contact_id="strange-24")
    pair = b'{"id":"g2","contact_id":"\\ud83d\\ude42","type":"pagevisit","at":"' + AT.encode() + b'"}'
    yield Good("activities: a surrogate pair", "activities", b"x", pair, contact_id="🙂")
    exact = raw(activity(id="g3", contact_id="strange-25"))
    exact = exact[:-1] + b" " * (MIB - len(exact)) + b"}"
    yield Good("activities: exactly 1 MiB", "activities", b"x", exact, contact_id="strange-25")

    def mrg(name: str, who: str, key: bytes | None, **changes: Any) -> Good:
        fact = merge(**({"id": f"good {name}", "from": who, "into": "strange-1"} | changes))
        return Good(f"contact-merges: {name}", "contact-merges", key, raw(fact), contact_id=who)

    yield mrg("no key", "strange-v1", None)
    yield mrg("the key of the other side", "strange-v2", b"strange-1")
    yield mrg("unknown extra fields", "strange-v3", b"strange-v3", reason="login", n=[1])
    yield mrg("milliseconds", "strange-v4", b"strange-v4", at=AT_MS)
    yield mrg("id null", "strange-v5", b"strange-v5", id=None)
    for number, (name, headers) in enumerate(ODD_HEADERS.items()):
        who = f"strange-v6-{number}"
        fact = merge(**{"id": f"good {name}", "from": who, "into": "strange-1"})
        yield Good(f"contact-merges: {name}", "contact-merges", who.encode(), raw(fact), headers, contact_id=who)

    def prf(name: str, who: str, key: bytes | None, **changes: Any) -> Good:
        return Good(
            f"contacts: {name}", "contacts", key, raw(profile(**({"contact_id": who} | changes))), contact_id=who
        )

    yield prf("no key", "strange-p1", None)
    yield prf("the key of another contact", "strange-p2", b"somebody else")
    yield prf("unknown extra fields", "strange-p3", b"strange-p3", source="crm")
    yield prf("no groups", "strange-p4", b"strange-p4", groups=[])
    yield prf("nested attributes", "strange-p5", b"strange-p5", attributes={"a": {"b": [1, None, 2.5]}})


BAD: tuple[Bad, ...] = tuple(_bad())
GOOD: tuple[Good, ...] = tuple(_good())
