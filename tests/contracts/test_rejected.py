"""Rejected records over the API and the command line, on a running Waypost: listed, filtered, sent again as they were and mended."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from schemas.times import format_ms
from tests.support import PATIENCE_SECONDS
from tests.support.records import values
from tests.support.running import Waypost

pytestmark = pytest.mark.embedded


def on(waypost: Waypost, *argv: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "console", *argv]
    return subprocess.run(command, env=waypost.environ, input=stdin, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def journey(name: str) -> dict[str, Any]:
    return {"id": name, "name": name, "stages": [{"name": "a", "condition": {"any": [{"rule": "visited_page", "page": name}]}}]}


def visit(name: str, who: str, **more: Any) -> dict[str, Any]:
    return {"id": f"{name}-{who}", "contact_id": f"{name}-{who}", "type": "pagevisit", "page": name, "at": "2026-01-02T10:00:00Z", **more}


def reject(
    waypost: Waypost, name: str, *raws: bytes | None, source: str = "activities", headers: Any = (), key: str | None = None
) -> list[dict[str, Any]]:
    """Sends what is bad under *key*, or *name*, and waits until it is rejected; the rows as listed, in the order of *raws*."""
    producer = Producer({"bootstrap.servers": waypost.settings.bootstrap, "message.max.bytes": 8 << 20})
    places: dict[int, tuple[int, int]] = {}

    def delivered(index: int) -> Callable[[Any, Any], None]:
        return lambda error, message: places.__setitem__(index, (message.partition(), message.offset()))

    topic = waypost.settings.topic_prefix + source
    for index, raw in enumerate(raws):
        producer.produce(topic, raw, key or name, headers=list(headers), on_delivery=delivered(index))
        producer.flush(PATIENCE_SECONDS)
    found: dict[tuple[int, int], dict[str, Any]] = {}

    def there() -> bool:
        rows = waypost.http.get("/api/rejected", params={"limit": 50, "topic": source}).json()["rejected"]
        found.update({(row["partition"], row["offset"]): row for row in rows if row["topic"] == topic})
        return all(place in found for place in places.values())

    waypost.until(there, what="for the rejected topic")
    return [found[places[index]] for index in range(len(raws))]


def resend(waypost: Waypost, *records: dict[str, Any]) -> dict[str, Any]:
    answer = waypost.http.post("/api/rejected/resend", json={"records": records})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def converted(waypost: Waypost, name: str) -> int:
    return int(waypost.settled(name)["stages"][0]["converted"])


def on_topic(waypost: Waypost, place: dict[str, Any]) -> bytes | None:
    return dict(values(waypost.settings, place["topic"])[place["partition"]])[place["offset"]]


def test_a_record_sent_as_it_was_goes_where_it_was_and_is_rejected_with_headers_of_its_own(waypost: Waypost, name: str) -> None:
    theirs = [("trace", b"1"), ("waypost_error", b"of an earlier life"), ("trace", None)]
    (row,) = reject(waypost, name, b"\xff still bad", headers=theirs)
    assert row["value"] is None
    assert base64.b64decode(row["value_base64"]) == b"\xff still bad"
    shown = [{"name": "trace", "value": "1"}, {"name": "waypost_error", "value": "of an earlier life"}, {"name": "trace", "value": None}]
    assert row["headers"] == shown
    answer = resend(waypost, {"id": row["id"]})
    (sent,) = answer["sent"]
    assert answer["refused"] == []
    assert (sent["index"], sent["id"], sent["topic"], sent["partition"]) == (0, row["id"], row["topic"], row["partition"])
    again: list[dict[str, Any]] = []

    def rejected_again() -> bool:
        rows = waypost.http.get("/api/rejected", params={"limit": 20}).json()["rejected"]
        again[:] = [one for one in rows if (one["topic"], one["partition"], one["offset"]) == (sent["topic"], sent["partition"], sent["offset"])]
        return bool(again)

    waypost.until(rejected_again, what="for the second rejection")
    (second,) = again
    assert second["headers"] == shown, "the headers of the first rejection are gone, those that the record came with are not"
    assert (second["key"], second["value_base64"], second["error"]) == (row["key"], row["value_base64"], row["error"])


def test_a_mended_record_is_counted_under_its_contact_and_twice_is_once(waypost: Waypost, name: str) -> None:
    waypost.http.put(f"/api/journeys/{name}", json=journey(name))
    (row,) = reject(waypost, name, json.dumps(visit(name, "x", type="")).encode())
    assert "type" in row["error"]
    mended = {"id": row["id"], "value": json.dumps(visit(name, "x"))}
    for _ in range(3):
        assert len(resend(waypost, mended)["sent"]) == 1
    assert converted(waypost, name) == 1


def test_what_has_no_id_is_known_by_its_content(waypost: Waypost, name: str) -> None:
    waypost.http.put(f"/api/journeys/{name}", json=journey(name))
    fact = {k: v for k, v in visit(name, "x").items() if k != "id"}
    (row,) = reject(waypost, name, json.dumps({**fact, "at": "soon"}).encode())
    for text in (json.dumps(fact), json.dumps(fact, indent=1, sort_keys=True)):
        assert len(resend(waypost, {"id": row["id"], "value": text})["sent"]) == 1
    assert converted(waypost, name) == 1
    done = waypost.http.get(f"/api/contacts/{name}-x").json()["journeys"]
    (met,) = next(one for one in done if one["journey"] == name)["stages"][0]["met_by"]
    assert met["at"] == "2026-01-02T10:00:00.000Z"


def test_large_records_and_bytes_that_are_no_text_are_listed_whole_and_mended(waypost: Waypost, name: str) -> None:
    waypost.http.put(f"/api/journeys/{name}", json=journey(name))
    large = json.dumps(visit(name, "large", note="x" * (2 << 20))).encode()
    rows = reject(waypost, name, large, b"\xff\xfe\x00")
    assert rows[0]["value"].encode() == large
    answer = resend(
        waypost,
        {"id": rows[0]["id"], "value": json.dumps(visit(name, "large"))},
        {"id": rows[1]["id"], "value_base64": base64.b64encode(json.dumps(visit(name, "bytes")).encode()).decode()},
    )
    assert [one["index"] for one in answer["sent"]] == [0, 1]
    assert converted(waypost, name) == 2


def test_what_is_mended_is_judged_before_it_is_sent(waypost: Waypost, name: str) -> None:
    row, other = reject(waypost, name, b"?", b"??")
    far = format_ms(int(time.time() * 1000) + 5 * 86_400_000)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"value": "{"}, "not_json"), ({"value": json.dumps(visit(name, "x", type=7))}, "wrong_type"), ({"value": None}, "empty_value"),
        ({"value": json.dumps(visit(name, "x", at=far))}, "in_the_future"), ({"value": "x", "value_base64": "eA=="}, "bad_value"),
        ({"value_base64": "not base64"}, "bad_value"), ({"key_base64": "é"}, "bad_value"), ({"key": "mended", "value": "?"}, "not_json"),
        ({"value": "x" * (1 << 20) + "x"}, "too_large"), ({"value": "\\ud800"}, "not_json"),
    ]  # fmt: skip
    for mend, code in cases:
        answer = resend(waypost, {"id": row["id"], **mend}, {"id": other["id"]})
        (refused,) = answer["refused"]
        assert (refused["index"], refused["error"]["code"]) == (0, code), refused
        assert [one["index"] for one in answer["sent"]] == [1], "the others are sent"


def test_an_erasure_keeps_its_moment(waypost: Waypost, name: str) -> None:
    """Sent again and again, it erases what it erased the first time, and nothing that came since."""
    waypost.http.put(f"/api/journeys/{name}", json=journey(name))
    who = f"{name}-x"
    waypost.http.post("/api/activities", json=[visit(name, "x")])
    assert converted(waypost, name) == 1
    (row,) = reject(waypost, name, None, source="contacts", key="k" * 201)
    now = format_ms(int(time.time() * 1000) + 60_000)
    waypost.http.post("/api/activities", json=[visit(name, "x", id=f"{name}-later", at=now)])
    for _ in range(2):
        (sent,) = resend(waypost, {"id": row["id"], "key": who})["sent"]
        assert on_topic(waypost, sent) is None
        assert converted(waypost, name) == 1
        reached = waypost.http.get(f"/api/contacts/{who}").json()
        assert reached["erased_at"] == row["rejected_at"]


def test_what_is_not_there_and_what_is_no_fact_is_refused_with_the_way_out(waypost: Waypost, name: str) -> None:
    (garbage,) = reject(waypost, name, b"garbage", source="handoffs")
    (bad,) = reject(waypost, name, b"[]", source="journeys")
    mended = {"id": garbage["id"], "value": "{}"}
    answer = resend(waypost, {"id": "0-99999999"}, {"id": "77-0"}, mended, {"id": bad["id"]}, {"id": garbage["id"]})
    codes = [one["error"]["code"] for one in answer["refused"]]
    assert codes == ["unknown_record", "unknown_record", "not_a_fact", "not_a_fact", "given_twice"]
    assert len(resend(waypost, {"id": garbage["id"]})["sent"]) == 1, "what workers write is sent as it was, after an upgrade for example"
    assert "waypost journey apply" in next(one["error"]["message"] for one in answer["refused"] if one["index"] == 3)


@pytest.mark.parametrize(
    ("body", "code", "path"),
    [
        ("[]", "wrong_type", None), ("{", "not_json", None), ("{}", "bad_value", "records"), ('{"records": []}', "bad_value", "records"),
        ('{"records": {}}', "bad_value", "records"), ('{"records": [], "all": true}', "unknown_field", "all"),
        ('{"records": ["0-1"]}', "wrong_type", "records[0]"), ('{"records": [{}]}', "bad_value", "records[0].id"),
        ('{"records": [{"id": "0-1"}, {"id": "01-1"}]}', "bad_value", "records[1].id"), ('{"records": [{"id": 1}]}', "wrong_type", "records[0].id"),
        ('{"records": [{"id": "0-1", "value": {}}]}', "wrong_type", "records[0].value"),
        ('{"records": [{"id": "0-1", "colour": "red"}]}', "unknown_field", "records[0].colour"),
        (json.dumps({"records": [{"id": "0-1"}] * 1001}), "bad_value", "records"), ("[" * 100_000, "too_deep", None),
    ],
)  # fmt: skip
def test_a_body_that_is_none_says_where_and_why(waypost: Waypost, body: str, code: str, path: str | None) -> None:
    answer = waypost.http.post("/api/rejected/resend", content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["path"]) == (422, code, path), error


def test_the_list_is_filtered_by_topic_reason_and_time(waypost: Waypost, name: str) -> None:
    rows = reject(waypost, name, b"?", json.dumps(visit(name, "x", type="")).encode())
    rows += reject(waypost, name, b"!", source="contacts")

    def ids(**query: Any) -> set[str]:
        found: set[str] = set()
        cursor: str | None = None
        while True:
            page = waypost.http.get("/api/rejected", params={"limit": 3, **query, **({"cursor": cursor} if cursor else {})}).json()
            found |= {row["id"] for row in page["rejected"]}
            cursor = page["cursor"]
            if cursor is None:
                return found

    mine = {row["id"] for row in rows}
    assert ids() >= mine
    assert ids(topic="contacts") & mine == {rows[2]["id"]}
    assert ids(error=rows[1]["error"].upper()) & mine == {rows[1]["id"]}
    begin = min(row["rejected_at"] for row in rows)
    assert ids(since=begin) >= mine
    assert not ids(until=begin) & mine
    assert ids(since=begin, topic="activities", error="not JSON") & mine == {rows[0]["id"]}
    for query in ({"since": "yesterday"}, {"until": "2026-01-02"}, {"topic": "totals"}, {"error": ""}):
        answer = waypost.http.get("/api/rejected", params=query)
        assert (answer.status_code, answer.json()["error"]["path"]) == (422, next(iter(query))), answer.text


# -- the command line -----------------------------------------------------------------------------------------------------


def test_a_list_is_mended_in_a_file_and_sent(waypost: Waypost, name: str, tmp_path: Path) -> None:
    waypost.http.put(f"/api/journeys/{name}", json=journey(name))
    bad = [visit(name, str(i), type="", note=f"{name}-note") for i in range(5)]
    rows = reject(waypost, name, *(json.dumps(one).encode() for one in bad))
    listed = on(waypost, "rejected", "list", "--topic", "activities", "--error", "type", "--limit", "5", "--json")
    assert listed.returncode == 0, listed.stderr
    found = json.loads(listed.stdout)
    assert {row["id"] for row in found["rejected"]} == {row["id"] for row in rows}
    file = tmp_path / "mended.json"
    file.write_text(listed.stdout.replace('\\"type\\": \\"\\"', '\\"type\\": \\"pagevisit\\"'))
    unasked = on(waypost, "rejected", "resend", "--mended", str(file))
    assert (unasked.returncode, "--yes" in unasked.stderr) == (2, True)
    told = on(waypost, "rejected", "resend", "--mended", str(file), "--dry-run")
    assert told.stdout == f"Would send 5 records to {rows[0]['topic']} (5)\n"
    for _ in range(2):
        done = on(waypost, "rejected", "resend", "--mended", str(file), "--yes")
        assert (done.returncode, done.stdout) == (0, "5 records sent again, 0 refused\n"), done.stderr
    assert converted(waypost, name) == 5
    lines = "\n".join(json.dumps(row) for row in json.loads(file.read_text())["rejected"])
    done = on(waypost, "rejected", "resend", "--mended", "-", "--yes", "--json", stdin=lines)
    assert (done.returncode, len(json.loads(done.stdout)["sent"])) == (0, 5), done.stderr


def test_records_are_named_by_id_and_by_the_place_they_came_from(waypost: Waypost, name: str) -> None:
    rows = reject(waypost, name, b"1", b"2", b"3")
    place = f"{rows[1]['topic']}/{rows[1]['partition']}@{rows[1]['offset']}"
    done = on(waypost, "rejected", "resend", rows[0]["id"], place, "0-99999999", "--yes", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, [one["id"] for one in said["sent"]]) == (1, [rows[0]["id"], rows[1]["id"]])
    assert [(one["id"], one["index"], one["error"]["code"]) for one in said["refused"]] == [("0-99999999", 2, "unknown_record")]
    told = on(waypost, "rejected", "resend", "0-99999999", "--yes")
    assert (told.returncode, told.stdout) == (1, "0 records sent again, 1 refused\n")
    assert told.stderr.startswith("0-99999999: there is no rejected record")
    missing = on(waypost, "rejected", "resend", "nowhere/0@7", "--yes")
    assert (missing.returncode, "nowhere/0@7" in missing.stderr) == (1, True)


def test_records_are_chosen_by_filters(waypost: Waypost, name: str) -> None:
    (row,) = reject(waypost, name, json.dumps({**visit(name, "x"), "id": 7}).encode(), source="contact-merges")
    done = on(waypost, "rejected", "resend", "--topic", "contact-merges", "--since", row["rejected_at"], "--yes")
    assert (done.returncode, done.stdout) == (0, "1 record sent again, 0 refused\n"), done.stderr
    nothing = on(waypost, "rejected", "resend", "--until", "2020-01-01T00:00:00Z", "--yes")
    assert (nothing.returncode, nothing.stdout) == (0, "Nothing to send: nothing of that was rejected.\n")


@pytest.mark.parametrize(
    "argv",
    [
        (), ("0-1", "--all"), ("--all", "--topic", "contacts"), ("--topic", "totals"), ("--mended", "no-such-file"), ("--all", "--mended", "-"),
        ("--since", "yesterday"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_use_sends_nothing(waypost: Waypost, argv: tuple[str, ...]) -> None:
    done = on(waypost, "rejected", "resend", *argv, "--yes")
    assert done.returncode in (1, 2)
    assert done.returncode == (1 if "--since" in argv else 2), done.stderr
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["{", "\x00", "[1]", '{"rejected": [{}]}', '[{"id": "0-1", "value": {"a": 1}}]'])
def test_a_file_that_is_none_says_so(waypost: Waypost, tmp_path: Path, text: str) -> None:
    file = tmp_path / "mended.json"
    file.write_text(text)
    done = on(waypost, "rejected", "resend", "--mended", str(file), "--yes")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "rejected list --json" in done.stderr or "is not a text" in done.stderr
