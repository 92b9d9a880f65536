"""What the API says around an edit: versions, previews, values seen; and the statistics beside the results: groups, days, waits, health's hour."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.running import Waypost

from .test_api import error_of, journey, put, send, visit

pytestmark = pytest.mark.embedded


def test_versions_say_what_they_changed_and_can_be_saved_again(waypost: Waypost, name: str) -> None:
    first = journey(name, "a", "b")
    put(waypost, first)
    second = {**journey(name, "b", "a", "c"), "name": "Renamed"}
    second["stages"][0]["kpi"] = 5
    put(waypost, second)
    answer = waypost.http.get(f"/api/journeys/{name}/versions").json()
    assert [one["version"] for one in answer["versions"]] == [2, 1]
    assert answer["versions"][1]["changes"] == ["Created with 2 stages"]
    assert answer["versions"][0]["changes"] == [
        f"Renamed from “Journey {name}” to “Renamed”", "Moved stage 1, b, from place 2", "KPI of stage 1, b: none → 5",
        "Moved stage 2, a, from place 1", "Added stage 3, c",
    ]  # fmt: skip
    old = waypost.http.get(f"/api/journeys/{name}/versions/1").json()
    assert [stage["name"] for stage in old["stages"]] == ["a", "b"]
    again = put(waypost, old).json()
    assert (again["version"], [stage["name"] for stage in again["stages"]]) == (3, ["a", "b"])
    assert error_of(waypost.http.get(f"/api/journeys/{name}/versions/9"))["code"] == "unknown_version"
    assert waypost.http.get(f"/api/journeys/{name}-no/versions").status_code == 404


def test_a_preview_says_what_saving_brings_and_saves_nothing(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a", "b"))
    send(waypost, "activities", visit(name, "x", "a", "10:00:00"))
    waypost.settled(name)

    def preview(body: Any, status: int = 200) -> dict[str, Any]:
        answer = waypost.http.post(f"/api/journeys/{name}/preview", json=body)
        assert answer.status_code == status, answer.text
        return dict(answer.json())

    known = preview(journey(name, "b", "a"))
    assert (known["version"], known["recalculation"], known["rules"], known["activities"]) == (2, False, [], None)
    fresh = preview(journey(name, "a", "b", "c"))
    assert (fresh["recalculation"], fresh["rules"]) == (True, [f'visited page "/{name}/c"'])
    assert fresh["activities"] > 0
    assert fresh["changes"] == ["Added stage 3, c"]
    assert preview(journey(name, "a", "b"))["changes"] == []
    assert preview({"name": "x"}, 422)["error"]["path"]
    assert waypost.http.get(f"/api/journeys/{name}").json()["version"] == 1
    unknown = waypost.http.post(f"/api/journeys/{name}-new/preview", json=journey(f"{name}-new", "a")).json()
    assert (unknown["version"], unknown["changes"]) == (1, ["Created with 1 stage"])


def test_values_seen_lately_are_told_the_most_frequent_first(waypost: Waypost, name: str) -> None:
    send(waypost, "activities", *(visit(name, str(k), "often" if k else "once", "10:00:00", channel=f"{name}-Channel") for k in range(3)))

    def seen() -> list[dict[str, Any]]:
        return list(waypost.http.get("/api/values", params={"field": "page", "q": name.upper()}).json()["values"])

    waypost.until(lambda: len(seen()) == 2, "for the values to be read again")
    assert seen() == [{"value": f"/{name}/often", "activities": 2}, {"value": f"/{name}/once", "activities": 1}]
    assert waypost.http.get("/api/values", params={"field": "channel", "q": name}).json()["values"][0]["value"] == f"{name}-Channel"
    assert waypost.http.get("/api/values", params={"field": "contact_id"}).status_code == 422


def test_groups_days_and_waits_add_up_to_the_results(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a", "b", "c"))
    groups = [["red"] if k < 3 else ["red", "blue"] for k in range(5)]
    profiles = [{"contact_id": f"{name}-{k}", "groups": mine, "at": 1_700_000_000_001} for k, mine in enumerate(groups)]
    send(waypost, "contacts", *profiles)
    send(waypost, "activities", *(visit(name, str(k), "a", "10:00:00") for k in range(8)))
    send(waypost, "activities", *(visit(name, str(k), "b", f"10:{k + 1:02}:00") for k in range(4)))
    send(waypost, "activities", *(visit(name, str(k), "c", f"10:0{k + 5}:00") for k in range(3)))
    results = waypost.settled(name)
    reached = [row["converted"] for row in results["stages"]]
    groups = waypost.http.get(f"/api/journeys/{name}/groups").json()
    assert [(one["group"], [row["converted"] for row in one["stages"]]) for one in groups["groups"]] == [
        (None, reached), ("red", [5, 4, 3]), ("blue", [2, 1, 0]),
    ]  # fmt: skip
    assert groups["groups"][1]["stages"][1]["converted_ratio"] == 4 / 5
    for one in groups["groups"][1:]:
        of_group = waypost.http.get(f"/api/journeys/{name}/results", params={"group": one["group"]}).json()
        assert [row["converted"] for row in of_group["stages"]] == [row["converted"] for row in one["stages"]]
    days = waypost.http.get(f"/api/journeys/{name}/days").json()
    assert [sum(row["reached"][k] for row in days["days"]) for k in range(3)] == reached
    assert days["days"][0]["day"] == "2026-01-02"
    answer = waypost.http.get(f"/api/journeys/{name}/waits").json()
    waits = answer["stages"]
    row, _ = waits
    assert (answer["overall"]["contacts"], answer["overall"]["median_seconds"], answer["overall"]["p90_seconds"]) == (3, 360.0, 420)
    assert (row["stage"], row["contacts"], row["p10_seconds"], row["median_seconds"], row["p90_seconds"]) == (2, 4, 60, 150.0, 240)
    assert [(i["from_seconds"], i["contacts"]) for i in waits[0]["intervals"] if i["contacts"]] == [(60, 4)]
    assert sum(i["contacts"] for i in waits[0]["intervals"]) == reached[1]
    assert waits[0]["intervals"][-1]["to_seconds"] is None
    grouped = waypost.http.get(f"/api/journeys/{name}/waits", params={"group": "blue"}).json()["stages"][0]
    assert (grouped["contacts"], grouped["median_seconds"]) == (1, 240.0)
    assert 'id="median">6 min<' in waypost.http.get(f"/journeys/{name}").text


def test_what_a_contact_lacks_is_told_with_what_does_not_count(waypost: Waypost, name: str) -> None:
    body = journey(name, "a", "b")
    b, c = ({"rule": "visited_page", "page": f"/{name}/{page}"} for page in "bc")
    body["stages"][1]["condition"] = {"all": [b, {"any": [c]}]}
    put(waypost, body)
    send(waypost, "activities", visit(name, "x", "b", "09:00:00"), visit(name, "x", "a", "10:00:00"), visit(name, "x", "c", "11:00:00"))
    send(waypost, "contacts", {"contact_id": f"{name}-x", "groups": [], "attributes": {"name": "Ada"}, "at": 1_700_000_000_001})
    waypost.settled(name)
    found = waypost.http.get(f"/api/contacts/{name}-x").json()
    standing = next(one for one in found["journeys"] if one["journey"] == name)
    tree = standing["missing"]["condition"]
    assert (tree["op"], tree["members"][1]["op"]) == ("all", "any")
    b, c = tree["members"][0], tree["members"][1]["members"][0]
    assert (b["met_by"], [one["at"][11:19] for one in b["too_early"]]) == (None, ["09:00:00"])
    assert (c["met_by"]["at"][11:19], c["too_early"], c["used"]) == ("11:00:00", [], [])
    mine = [(a["at"][11:19], a["stages"]) for a in found["activities"]]
    assert mine == [("11:00:00", []), ("10:00:00", [{"journey": name, "stage": 1}]), ("09:00:00", [])]
    assert waypost.http.get(f"/api/journeys/{name}/stages/1/contacts").json()["contacts"][0]["name"] == "Ada"


def test_health_tells_the_last_hour(waypost: Waypost) -> None:
    def there() -> bool:
        return len(waypost.http.get("/api/health/history").json()["points"]) >= 1

    waypost.until(there, "for two looks")
    point = waypost.http.get("/api/health/history").json()["points"][-1]
    assert abs(datetime.fromisoformat(point["at"]).timestamp() - datetime.now(UTC).timestamp()) < 60
    assert point["activities"] is None or point["activities"] >= 0
    (worker,) = waypost.http.get("/api/health").json()["workers"]
    assert worker["disk_bytes"] > 0
    assert worker["started_at"] < point["at"]
