"""The HTTP API (contract, section 4), on a running Waypost: what each call does, and that every error has the one shape."""

from __future__ import annotations

import base64
import json
import time
from typing import Any
from unittest.mock import ANY

import httpx
import pytest

from streams.partitioner import partition_of
from streams.reader import read_log
from tests.support.running import Waypost

pytestmark = pytest.mark.embedded

DAY = "2026-01-02T"


def journey(name: str, *pages: str, **more: Any) -> dict[str, Any]:
    """A stage for each page, kept apart from other tests by *name*."""
    stages = [{"name": p, "condition": {"any": [{"rule": "visited_page", "page": f"/{name}/{p}"}]}} for p in pages]
    return {"id": name, "name": f"Journey {name}", "stages": stages, **more}


def visit(name: str, contact: str, page: str, at: str, **more: Any) -> dict[str, Any]:
    return {"contact_id": f"{name}-{contact}", "type": "pagevisit", "page": f"/{name}/{page}", "at": f"{DAY}{at}Z", **more}


def put(waypost: Waypost, body: dict[str, Any], **headers: str) -> httpx.Response:
    return waypost.http.put(f"/api/journeys/{body['id']}", json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def send(waypost: Waypost, kind: str, *facts: Any) -> None:
    answer = waypost.http.post(f"/api/{kind}", json=list(facts))
    assert (answer.status_code, answer.json()) == (202, {"taken": len(facts), "refused": []})


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error, which has the contract's shape and no trace of Python."""
    found = answer.json()
    assert set(found) == {"error"}
    assert set(found["error"]) == {"code", "message", "path"}
    assert "Traceback" not in answer.text
    return dict(found["error"])


# -- journeys -------------------------------------------------------------------------------------------------------------


def test_a_journey_is_created_then_versioned_and_an_equal_body_changes_nothing(waypost: Waypost, name: str) -> None:
    created = put(waypost, journey(name, "a", "b"))
    assert created.status_code == 201
    assert created.headers["etag"] == '"1"'
    assert {**created.json(), "saved_at": "", "status": ""} == {
        **journey(name, "a", "b"),
        "scheduled_recalculation": False,
        "stages": [
            {"name": p, "condition": {"any": [{"rule": "visited_page", "page": {"equals": f"/{name}/{p}"}}]}} for p in ("a", "b")
        ],
        "version": 1,
        "saved_at": "",
        "status": "",
    }
    assert put(waypost, journey(name, "a", "b")).json()["version"] == 1
    edited = put(waypost, journey(name, "b", "a"))
    assert (edited.status_code, edited.json()["version"], edited.headers["etag"]) == (200, 2, '"2"')


def test_what_get_returns_can_be_put_back(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a", "b"))
    found = waypost.http.get(f"/api/journeys/{name}").json()
    again = waypost.http.put(f"/api/journeys/{name}", json=found)
    assert (again.status_code, again.json()["version"], again.json()["saved_at"]) == (200, 1, found["saved_at"])


def test_all_journeys_are_listed_with_their_status(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a"))
    waypost.settled(name)
    (mine,) = [j for j in waypost.http.get("/api/journeys").json()["journeys"] if j["id"] == name]
    assert (mine["version"], mine["status"]) == (1, "live")


def test_if_match_guards_against_lost_edits(waypost: Waypost, name: str) -> None:
    assert error_of(put(waypost, journey(name, "a"), If_Match='"1"'))["code"] == "version_conflict"  # there is none yet
    put(waypost, journey(name, "a"))
    assert put(waypost, journey(name, "b"), If_Match='"1"').status_code == 200
    late = put(waypost, journey(name, "c"), If_Match='"1"')
    assert (late.status_code, error_of(late)["code"]) == (412, "version_conflict")
    assert "version 2" in error_of(late)["message"]
    assert waypost.http.get(f"/api/journeys/{name}").json()["stages"][0]["name"] == "b"
    assert waypost.http.delete(f"/api/journeys/{name}", headers={"If-Match": '"1"'}).status_code == 412
    assert waypost.http.delete(f"/api/journeys/{name}", headers={"If-Match": '"2"'}).status_code == 204


def test_a_deleted_journey_is_gone_and_made_anew_counts_on(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a"))
    assert waypost.http.delete(f"/api/journeys/{name}").status_code == 204
    for path in ("", "/results", "/live", "/stages/1/contacts"):
        answer = waypost.http.get(f"/api/journeys/{name}{path}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "unknown_journey")
    assert waypost.http.delete(f"/api/journeys/{name}").status_code == 404
    again = put(waypost, journey(name, "a"))
    assert (again.status_code, again.json()["version"]) == (201, 2)  # so that nothing of the first is taken for the second's


MISTAKES: list[tuple[str, Any, int, str, str | None]] = [
    ("an unknown field", lambda j: j | {"nmae": "x"}, 422, "unknown_field", "nmae"),
    ("an empty condition", lambda j: j | {"stages": [{"name": "a", "condition": {"any": []}}]}, 422, "empty_condition", "stages[0].condition"),
    ("no stages", lambda j: j | {"stages": []}, 422, "bad_stage_count", "stages"),
    ("another id", lambda j: j | {"id": "other"}, 409, "other_id", "id"),
    ("an id of the wrong type", lambda j: j | {"id": 7}, 422, "wrong_type", "id"),
    ("a list", lambda j: [j], 422, "wrong_type", None),
    ("null", lambda j: None, 422, "wrong_type", None),
    (
        "an unknown rule",
        lambda j: j | {"stages": [{"name": "a", "condition": {"any": [{"rule": "visited_pag", "page": "x"}]}}]},
        422, "unknown_rule", "stages[0].condition.any[0].rule",
    ),
    (
        "a bad pattern",
        lambda j: j | {"stages": [{"name": "a", "condition": {"any": [{"rule": "visited_url", "url": {"matches": "("}}]}}]},
        422, "bad_pattern", "stages[0].condition.any[0].url.matches",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("what", "change", "status", "code", "path"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_a_bad_journey_is_refused_with_the_place(
    waypost: Waypost, name: str, what: str, change: Any, status: int, code: str, path: str | None
) -> None:
    body = json.dumps(change(journey(name, "a")))
    answer = waypost.http.put(f"/api/journeys/{name}", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, error_of(answer)["code"], error_of(answer)["path"]) == (status, code, path)
    assert waypost.http.get(f"/api/journeys/{name}").status_code == 404


BODIES: list[tuple[str, bytes, str, int, str]] = [
    ("not JSON", b"{", "application/json", 422, "not_json"),
    ("nothing", b"", "application/json", 422, "not_json"),
    ("NaN", b'{"name": NaN}', "application/json", 422, "not_json"),
    ("not UTF-8", b'{"name": "\xff"}', "application/json", 422, "not_json"),
    ("a lone surrogate", b'{"name": "\\ud800"}', "application/json", 422, "not_json"),
    ("nested a million deep", b"[" * 1_000_000, "application/json", 422, "too_deep"),
    ("a form", b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    ("text", b"{}", "text/plain; charset=utf-8", 415, "unsupported_media_type"),
    ("33 MiB", b" " * (33 << 20), "application/json", 413, "too_large"),
]


@pytest.mark.parametrize(("what", "body", "kind", "status", "code"), BODIES, ids=[row[0] for row in BODIES])
def test_a_body_that_is_no_json_is_refused(waypost: Waypost, what: str, body: bytes, kind: str, status: int, code: str) -> None:
    answer = waypost.http.put("/api/journeys/x", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)


def test_an_endless_body_is_cut_off(waypost: Waypost) -> None:
    def chunks() -> Any:
        for _ in range(40):
            yield b" " * (1 << 20)

    try:
        answer = waypost.http.post("/api/activities", content=chunks(), headers={"Content-Type": "application/json"})
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        return  # cut off while it was still being sent
    assert (answer.status_code, error_of(answer)["code"]) == (413, "too_large")


# -- errors ---------------------------------------------------------------------------------------------------------------

JSON_ROUTES = (
    ("PUT", "/api/journeys/x"), ("POST", "/api/journeys/x/preview"), ("POST", "/api/activities"), ("POST", "/api/recalculations"),
    ("POST", "/api/rejected/resend"), ("POST", "/builder/show"), ("POST", "/builder/compare?id=x&version=1"), ("POST", "/builder/import"),
)  # fmt: skip
BODIES = (b"", b"null", b"[]", b"{}", b'{"name":1}', b'{"text":1,"name":"x"}', b"\xff", b'"\xff"', b'{"draft":"\xff"}', b"[" * 100_000, b'"\\ud800"',
          b"1e999", b"9" * 5000, b'{"draft":' * 900)  # fmt: skip


@pytest.mark.parametrize(("method", "path"), JSON_ROUTES)
def test_a_body_of_any_kind_is_answered_with_an_error_in_the_one_shape(waypost: Waypost, method: str, path: str) -> None:
    for body in BODIES:
        answer = waypost.http.request(method, path, content=body, headers={"Content-Type": "application/json"})
        if path == "/api/activities" and body == b"[]":
            assert answer.json() == {"taken": 0, "refused": []}
            continue
        assert 400 <= answer.status_code < 500, (body[:20], answer.text)
        assert error_of(answer)["message"]


@pytest.mark.parametrize(
    "text",
    ["id: !!binary /w==", "id: .nan", "id: .inf", 'id: "\\ud800"', "id: 2026-01-01", "0x" + "f" * 5000,
     "a: 0x" + "f" * 5000, "? !!set {a}\n: b"],
)
def test_a_file_with_values_that_json_lacks_is_read_or_refused(waypost: Waypost, text: str) -> None:
    answer = waypost.http.post("/builder/import", json={"name": "x.yaml", "text": text})
    assert answer.status_code in (200, 422), answer.text
    assert answer.status_code == 200 or error_of(answer)["message"]


@pytest.mark.parametrize("host", ["[", "[]", "]", "[::1", "[zz]:80", "[:::::]", "a b", "a/b", "@", "127.0.0.1:99999", "127.0.0.1:x", "\xe9"])
def test_a_host_that_is_none_is_refused(waypost: Waypost, host: str) -> None:
    for path in ("/", "/healthz", "/login", "/api/journeys"):
        answer = waypost.http.get(path, headers={b"Host": host.encode("latin-1")})
        assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_host")


@pytest.mark.parametrize(("method", "path"), [("POST", "/journeys"), ("DELETE", "/builder"), ("PUT", "/api/journeys")])
def test_a_method_that_is_not_possible_names_those_that_are(waypost: Waypost, method: str, path: str) -> None:
    answer = waypost.http.request(method, path)
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"
    assert "use GET" in error_of(answer)["message"]


@pytest.mark.parametrize("origin", ["http://[", "[", "", "null", "http://", "://", "http://[::1", "http://a@b", "\xe9://\xe9"])
def test_an_origin_that_is_none_is_elsewhere(waypost: Waypost, origin: str) -> None:
    headers = {b"Origin": origin.encode("latin-1")}
    answer = waypost.http.put("/api/journeys/no-such", content=b"{}", headers=headers)
    assert (answer.status_code, error_of(answer)["code"]) == (403, "cross_site")
    assert waypost.http.get("/api/journeys", headers=headers).status_code == 200


def test_a_cursor_of_rejected_records_with_an_infinite_offset_names_no_page(waypost: Waypost) -> None:
    for rows in ("[[0,1e999]]", "[[1e999,1]]", "[[null,1]]", "[[0]]", "{}", "[" * 3000):
        cursor = base64.urlsafe_b64encode(rows.encode()).decode().rstrip("=")
        answer = waypost.http.get("/api/rejected", params={"cursor": cursor[:4000]})
        assert answer.status_code in (200, 404), answer.text


QUESTIONS = [
    ("GET", "/api/nothing", 404, "not_found", None),
    ("GET", "/nothing", 404, "not_found", None),
    ("GET", "/api/journeys/", 404, "not_found", None),
    ("GET", "/api/journeys/no-such", 404, "unknown_journey", None),
    ("GET", "/api/journeys/no-such/results?version=1", 404, "unknown_journey", None),
    ("GET", "/api/contacts/nobody-knows", 404, "unknown_contact", None),
    ("GET", "/api/journeys/x/stages/one/contacts", 422, "wrong_type", "stage"),
    ("GET", "/api/journeys/x/stages/0/contacts", 422, "out_of_range", "stage"),
    ("GET", "/api/journeys/x/stages/1/contacts?who=all", 422, "bad_value", "who"),
    ("GET", "/api/journeys/x/stages/1/contacts?limit=1001", 422, "out_of_range", "limit"),
    ("GET", "/api/journeys/x/stages/1/contacts?limit=many", 422, "wrong_type", "limit"),
    ("GET", "/api/journeys/x/results?version=0", 422, "out_of_range", "version"),
    ("GET", "/api/journeys/x/results?grop=a", 422, "unknown_parameter", "grop"),
    ("GET", "/api/journeys?x=1", 422, "unknown_parameter", "x"),
    ("GET", "/api/contacts/" + "x" * 201, 422, "too_long", "contact_id"),
    ("GET", "/api/rejected?cursor=%25%25", 404, "unknown_cursor", "cursor"),
    ("POST", "/api/journeys/x", 405, "method_not_allowed", None),
    ("PATCH", "/api/activities", 405, "method_not_allowed", None),
    ("DELETE", "/api/health", 405, "method_not_allowed", None),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "status", "code", "where"), QUESTIONS)
def test_every_error_has_the_shape(waypost: Waypost, method: str, path: str, status: int, code: str, where: str | None) -> None:
    answer = waypost.http.request(method, path)
    assert (answer.status_code, error_of(answer)["code"], error_of(answer)["path"]) == (status, code, where)
    assert answer.headers["content-type"] == "application/json"


def test_a_wrong_method_is_told_the_right_ones(waypost: Waypost) -> None:
    assert waypost.http.post("/api/journeys/x").headers["allow"] == "DELETE, GET, PUT"


def test_a_cursor_that_was_never_given_names_no_page(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a"))
    for cursor in ("!!", "AA", "AA==", "A"):
        answer = waypost.http.get(f"/api/journeys/{name}/stages/1/contacts", params={"cursor": cursor})
        assert answer.status_code in (200, 404)
        if answer.status_code == 404:
            assert error_of(answer)["code"] == "unknown_cursor"


def test_an_if_match_that_is_no_version_matches_none(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a"))
    for value in ("1", '"0"', '"x"', 'W/"1"'):
        assert put(waypost, journey(name, "b"), If_Match=value).status_code == 412
    assert put(waypost, journey(name, "b"), If_Match="*").json()["version"] == 2


def test_preconditions_with_a_star_tell_making_from_editing(waypost: Waypost, name: str) -> None:
    absent = put(waypost, journey(name, "a"), If_Match="*")
    assert (absent.status_code, error_of(absent)["code"]) == (412, "version_conflict")
    assert put(waypost, journey(name, "a"), If_None_Match="*").status_code == 201
    for body in (journey(name, "a"), journey(name, "b")):  # an equal one as well: only one of two writers has made it
        late = put(waypost, body, If_None_Match="*")
        assert (late.status_code, error_of(late)["code"]) == (412, "version_conflict")
        assert "version 1" in error_of(late)["message"]
    assert waypost.http.get(f"/api/journeys/{name}").json()["version"] == 1
    for headers in ({"If_None_Match": '"1"'}, {"If_None_Match": "*", "If_Match": '"1"'}):
        wrong = put(waypost, journey(name, "b"), **headers)
        assert (wrong.status_code, error_of(wrong)["code"]) == (422, "bad_precondition")
    waypost.http.delete(f"/api/journeys/{name}")
    assert put(waypost, journey(name, "b"), If_None_Match="*").status_code == 201


# -- facts ----------------------------------------------------------------------------------------------------------------


def test_good_facts_are_on_the_topic_in_their_contacts_partition_before_the_answer(waypost: Waypost, name: str) -> None:
    facts = [visit(name, f"p{i}", "x", "10:00:00", id=f"{name}-{i}") for i in range(20)]
    send(waypost, "activities", *facts)
    seen = {}
    for partition, records in read_log(waypost.settings, waypost.settings.topic_prefix + "activities"):
        for record in records:
            fact = json.loads(record.value() or b"")
            if str(fact.get("id", "")).startswith(name):
                seen[fact["id"]] = fact
                assert record.key() == fact["contact_id"].encode()
                assert partition == partition_of(fact["contact_id"], waypost.settings.partitions)
    assert seen == {fact["id"]: fact for fact in facts}


def test_bad_facts_are_listed_and_the_good_ones_taken(waypost: Waypost, name: str) -> None:
    good = visit(name, "ada", "x", "10:00:00")
    bad = [good | {"at": "yesterday"}, 7, good | {"pagge": "x"}, {}, good | {"contact_id": ""}, good | {"at": "2999-01-01T00:00:00Z"}]
    answer = waypost.http.post("/api/activities", json=[good, *bad, good])
    assert answer.status_code == 202
    found = answer.json()
    assert found["taken"] == 2
    assert [(r["index"], r["error"]["code"], r["error"]["path"]) for r in found["refused"]] == [
        (1, "bad_time", "at"),
        (2, "not_an_object", None),
        (3, "unknown_field", "pagge"),
        (4, "missing_field", "contact_id"),
        (5, "empty_field", "contact_id"),
        (6, "in_the_future", "at"),
    ]


def test_merges_and_profiles_are_checked_too(waypost: Waypost, name: str) -> None:
    merge = {"from": f"{name}-a", "into": f"{name}-b", "at": 1_700_000_000_001}
    answer = waypost.http.post("/api/merges", json=[merge, {**merge, "into": f"{name}-a"}, {**merge, "from_": "x"}]).json()
    assert (answer["taken"], [r["error"]["code"] for r in answer["refused"]]) == (1, ["self_merge", "unknown_field"])
    profile = {"contact_id": f"{name}-a", "at": 1_700_000_000_001, "attributes": {"anything": {"goes": [1]}}}
    answer = waypost.http.post("/api/contacts", json=[profile, {**profile, "groups": "vip"}, {**profile, "at": True}]).json()
    assert (answer["taken"], [r["error"]["path"] for r in answer["refused"]]) == (1, ["groups", "at"])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "not_json"),
        (b"{}", "wrong_type"),
        (b"null", "wrong_type"),
        (b'"x"', "wrong_type"),
        (b"[" + b"1," * 10_000 + b"1]", "too_many"),
        (b"[1", "not_json"),
        (b"[NaN]", "not_json"),
        (b"[" * 1_000_000, "too_deep"),
    ],
)
def test_what_is_no_list_of_at_most_10_000_is_refused(waypost: Waypost, body: bytes, code: str) -> None:
    answer = waypost.http.post("/api/merges", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, error_of(answer)["code"]) == (422, code)


def test_ten_thousand_facts_at_once(waypost: Waypost, name: str) -> None:
    send(waypost, "activities", *(visit(name, f"many{i}", "x", "10:00:00") for i in range(10_000)))


def test_an_empty_list_is_fine(waypost: Waypost) -> None:
    send(waypost, "activities")


# -- results, lists, contacts ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(waypost: Waypost) -> str:
    """Ten contacts on a journey a, b, c: all reach a, six of them b, two of them c; odd ones are in group odd. Its name."""
    name = f"story{time.time_ns()}"
    put(waypost, journey(name, "a", "b", "c"))
    waypost.settled(name)
    put(waypost, {**journey(name, "a", "b", "c"), "stages": [s | {"kpi": 4} for s in journey(name, "a", "b", "c")["stages"]]})
    waypost.settled(name)
    facts = [visit(name, str(i), "a", f"10:00:0{i}") for i in range(10)]
    facts += [visit(name, str(i), "b", f"11:00:0{i}") for i in range(6)]
    facts += [visit(name, str(i), "c", f"12:00:0{i}") for i in range(2)]
    send(waypost, "contacts", *({"contact_id": f"{name}-{i}", "groups": ["odd"], "at": f"{DAY}09:00:00Z"} for i in range(1, 10, 2)))
    send(waypost, "activities", *facts)
    waypost.settled(name)
    return name


def test_results_are_those_of_the_contract(waypost: Waypost, story: str) -> None:
    found = waypost.settled(story)
    assert {k: v for k, v in found.items() if k not in ("as_of", "stages")} == {
        "journey": story, "version": 2, "status": "live", "progress": 1.0, "lag": 0, "recalculated_at": ANY, "group": None,
    }  # fmt: skip
    assert found["stages"] == [
        {"stage": 1, "name": "a", "converted": 10, "converted_ratio": 1.0, "dropped_off": 4, "dropped_off_ratio": 0.4, "kpi": 4,
         "kpi_ratio": 2.5, "median_seconds_from_previous": None},
        {"stage": 2, "name": "b", "converted": 6, "converted_ratio": 0.6, "dropped_off": 4, "dropped_off_ratio": 4 / 6, "kpi": 4,
         "kpi_ratio": 1.5, "median_seconds_from_previous": 3600.0},
        {"stage": 3, "name": "c", "converted": 2, "converted_ratio": 2 / 6, "dropped_off": None, "dropped_off_ratio": None, "kpi": 4,
         "kpi_ratio": 0.5, "median_seconds_from_previous": 3600.0},
    ]  # fmt: skip


def test_a_number_equals_its_list(waypost: Waypost, story: str) -> None:
    for group in (None, "odd", "nobody is in it"):
        stages = waypost.settled(story, **({"group": group} if group else {}))["stages"]
        for stage in stages:
            for who in ("converted", "dropped_off"):
                query = {"who": who, **({"group": group} if group else {})}
                found = waypost.http.get(f"/api/journeys/{story}/stages/{stage['stage']}/contacts", params=query).json()
                assert found["total"] == len(found["contacts"]) == (stage[who] or 0)
    everyone = waypost.http.get(f"/api/journeys/{story}/stages/1/contacts").json()["contacts"]
    assert {r["contact_id"]: (r["reached_at"], r["groups"]) for r in everyone} == {
        f"{story}-{i}": (f"{DAY}10:00:0{i}.000Z", ["odd"] if i % 2 else []) for i in range(10)
    }


@pytest.mark.parametrize("limit", [1, 3, 10, 1000])
@pytest.mark.parametrize("order", [None, "oldest", "newest"])
def test_lists_page_by_cursor(waypost: Waypost, story: str, limit: int, order: str | None) -> None:
    seen: list[str] = []
    cursor = None
    while True:
        query = {"limit": limit, **({"cursor": cursor} if cursor else {}), **({"order": order} if order else {})}
        page = waypost.http.get(f"/api/journeys/{story}/stages/1/contacts", params=query).json()
        assert page["total"] == 10
        assert len(page["contacts"]) <= limit
        seen += [row["contact_id"] for row in page["contacts"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(f"{story}-{i}" for i in range(10))
    stand = [[j for j in waypost.http.get(f"/api/contacts/{id_}").json()["journeys"] if j["journey"] == story] for id_ in seen]
    reached = [one["stages"][-1]["reached_at"] for (one,) in stand]
    assert len(set(reached)) > 1
    if order == "newest":
        assert reached == sorted(reached, reverse=True)


def test_a_cursor_is_one_of_its_order(waypost: Waypost, story: str) -> None:
    for order, other in (("oldest", "newest"), ("newest", "oldest")):
        path = f"/api/journeys/{story}/stages/1/contacts"
        cursor = waypost.http.get(path, params={"limit": 2, "order": order}).json()["cursor"]
        answer = waypost.http.get(path, params={"limit": 2, "order": other, "cursor": cursor})
        assert (answer.status_code, error_of(answer)["code"]) == (404, "unknown_cursor")


def test_a_stage_that_is_not_there(waypost: Waypost, story: str) -> None:
    answer = waypost.http.get(f"/api/journeys/{story}/stages/4/contacts")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "unknown_stage")


def test_results_of_a_version_before(waypost: Waypost, name: str) -> None:
    """They can be had until every partition has let the version go, which is a moment after all have the new one."""
    put(waypost, journey(name, "a"))
    waypost.settled(name)
    for version in range(2, 12):
        put(waypost, {**journey(name, "a"), "stages": [journey(name, "a")["stages"][0] | {"kpi": version}]})
        answer = waypost.http.get(f"/api/journeys/{name}/results", params={"version": version - 1})
        if answer.status_code == 200:
            break
        assert error_of(answer)["code"] == "unknown_version"
    assert answer.status_code == 200
    assert (answer.json()["version"], answer.json()["stages"][0]["kpi"]) == (version - 1, version - 1 if version > 2 else None)
    assert error_of(waypost.http.get(f"/api/journeys/{name}/results", params={"version": version + 1}))["code"] == "unknown_version"


def test_a_contact_is_explained(waypost: Waypost, story: str) -> None:
    found = waypost.http.get(f"/api/contacts/{story}-3").json()
    assert {k: found[k] for k in ("contact_id", "survivor", "aliases", "groups", "erased_at")} == {
        "contact_id": f"{story}-3", "survivor": f"{story}-3", "aliases": [], "groups": ["odd"], "erased_at": None,
    }  # fmt: skip
    (standing,) = [j for j in found["journeys"] if j["journey"] == story]
    assert (standing["version"], standing["stage"]) == (2, 2)
    assert [(s["name"], s["reached_at"]) for s in standing["stages"]] == [("a", f"{DAY}10:00:03.000Z"), ("b", f"{DAY}11:00:03.000Z")]
    assert standing["stages"][1]["met_by"][0]["rule"] == f'visited page "/{story}/b"'
    assert {k: v for k, v in standing["missing"].items() if k != "condition"} == {
        "stage": 3, "name": "c", "not_before": f"{DAY}11:00:03.000Z", "rules": [f'visited page "/{story}/c"'],
    }  # fmt: skip


def test_a_merge_an_erasure_and_their_names(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a", "b"))
    waypost.settled(name)
    send(waypost, "activities", visit(name, "visitor", "a", "10:00:00"), visit(name, "ada", "b", "11:00:00"))
    assert [s["converted"] for s in waypost.settled(name)["stages"]] == [1, 0]
    send(waypost, "merges", {"from": f"{name}-visitor", "into": f"{name}-ada", "at": f"{DAY}12:00:00Z"})
    assert [s["converted"] for s in waypost.settled(name)["stages"]] == [1, 1]
    for asked in ("visitor", "ada"):
        found = waypost.http.get(f"/api/contacts/{name}-{asked}").json()
        assert (found["contact_id"], found["survivor"], found["aliases"]) == (f"{name}-{asked}", f"{name}-ada", [f"{name}-visitor"])
    assert waypost.http.delete(f"/api/contacts/{name}-visitor").status_code == 204
    assert [s["converted"] for s in waypost.settled(name)["stages"]] == [0, 0]
    found = waypost.http.get(f"/api/contacts/{name}-ada").json()
    assert found["erased_at"] is not None
    assert found["journeys"] == [] or all(j["stage"] == 0 for j in found["journeys"])


@pytest.mark.parametrize("odd", ["a/b", "a b", "ä", "%2F", "a?b#c", "..", "/", "a//b", "+", "日本"])
def test_contacts_with_odd_ids(waypost: Waypost, name: str, odd: str) -> None:
    from urllib.parse import quote

    put(waypost, journey(name, "a"))
    waypost.settled(name)
    id_ = f"{name}{odd}"
    send(waypost, "activities", {"contact_id": id_, "type": "pagevisit", "page": f"/{name}/a", "at": 1_700_000_000_001})
    waypost.settled(name)
    assert waypost.http.get(f"/api/contacts/{quote(id_, safe='')}").json()["survivor"] == id_


# -- the rest -------------------------------------------------------------------------------------------------------------


def test_rules_are_the_catalogue(waypost: Waypost) -> None:
    rules = {rule["name"]: rule for rule in waypost.http.get("/api/rules").json()["rules"]}
    assert {"visited_page", "visited_url", "landed_on_page", "submitted_form", "clicked_email_link", "performed_activity", "became_member"} <= set(
        rules
    )
    assert rules["visited_page"]["parameters"]["required"] == ["page"]


def test_health_names_broker_and_workers(waypost: Waypost) -> None:
    waypost.until(lambda: waypost.health()["lag"] == 0)
    found = waypost.health()
    assert found["status"] == "ok"
    assert found["broker"] == {"bootstrap": waypost.settings.bootstrap, "kind": "embedded"}
    assert [(w["state"], w["partitions"]) for w in found["workers"]] == [("live", [0, 1, 2, 3])]


def test_orchestrators_are_answered(waypost: Waypost) -> None:
    assert waypost.http.get("/healthz").json() == {"status": "ok"}
    assert waypost.http.get("/readyz").json() == {"ready": True}
    assert 'waypost_http_requests_total{method="GET",route="/healthz",status="200"}' in waypost.http.get("/metrics").text
