"""Recalculations over the HTTP API and the command line (contract, sections 4 and 5), on the embedded broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from console.recalculations import MAX_PLANNED
from schemas.journey import parse_journey
from tests.contracts.test_api import error_of, journey, put, send, visit
from tests.contracts.test_cli import run
from tests.support import PATIENCE_SECONDS
from tests.support.recalculating import plan_differing
from tests.support.running import Waypost

pytestmark = pytest.mark.embedded

ROOT = Path(__file__).parents[2]
FIELDS = {
    "id", "state", "cause", "journeys", "rules", "progress", "events_read", "events_total", "events_per_second", "throttle", "eta_seconds",
    "phase", "phases", "differences", "confirmed_at",
    "changed", "reason", "planned_at", "started_at", "finished_at", "log_from",
}  # fmt: skip


def ended(waypost: Waypost, id_: str) -> dict[str, Any]:
    """The recalculation, once it is over."""
    found: dict[str, Any] = {}

    def over() -> bool:
        found.update(waypost.http.get(f"/api/recalculations/{id_}").json())
        return found["state"] in ("live", "cancelled", "failed")

    waypost.until(over, f"for {id_} to end")
    return found


def test_a_journey_over_what_happened_before_it_was_there(waypost: Waypost, name: str) -> None:
    send(waypost, "activities", visit(name, "a", "x", "10:00:00"), visit(name, "b", "x", "11:00:00"), visit(name, "b", "y", "12:00:00"))
    saved = put(waypost, journey(name, "x", "y"))
    assert saved.json()["status"] == "calculating"
    found = waypost.settled(name)
    assert [row["converted"] for row in found["stages"]] == [2, 1]
    assert found["recalculated_at"] is not None
    (mine,) = [one for one in waypost.http.get("/api/recalculations").json()["recalculations"] if name in one["journeys"]]
    assert (mine["cause"], mine["state"], mine["progress"]) == ("edit", "live", 1.0)


def test_one_is_started_watched_and_listed(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "x"))
    send(waypost, "activities", visit(name, "a", "x", "10:00:00"))
    waypost.settled(name)
    answer = waypost.http.post("/api/recalculations", json={"journeys": [name], "events_per_second": 100_000})
    assert answer.status_code == 202
    started = answer.json()
    assert set(started) == FIELDS
    assert (started["cause"], started["journeys"], started["throttle"], started["changed"]) == ("request", [name], 100_000, None)
    assert started["rules"] == [f'visited page "/{name}/x"']
    assert started["log_from"] is not None
    live = ended(waypost, started["id"])
    assert (live["state"], live["progress"], live["changed"]) == ("live", 1.0, 0)
    assert live["events_read"] == live["events_total"] > 0
    assert waypost.settled(name)["stages"][0]["converted"] == 1
    listed = waypost.http.get("/api/recalculations", params={"limit": 1}).json()
    assert listed["recalculations"][0]["id"] == started["id"]
    following = waypost.http.get("/api/recalculations", params={"limit": 1, "cursor": listed["cursor"]}).json()
    assert following["recalculations"][0]["id"] != started["id"]


def test_cancelling_leaves_the_living_untouched(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "x"))
    send(waypost, "activities", visit(name, "a", "x", "10:00:00"))
    before = waypost.settled(name)
    id_ = waypost.http.post("/api/recalculations", json={"journeys": [name], "events_per_second": 1}).json()["id"]
    waypost.until(lambda: waypost.http.get(f"/api/recalculations/{id_}").json()["state"] == "filling", "for it to read")
    during = waypost.http.get(f"/api/journeys/{name}/results").json()
    assert (during["status"], during["stages"]) == ("calculating", before["stages"])
    for _ in range(2):
        cancelled = waypost.http.post(f"/api/recalculations/{id_}/cancel")
        assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    after = waypost.settled(name)
    assert after["stages"] == before["stages"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"journeys": ["no-such-journey"]}, 404, "unknown_journey"),
        ({"journeys": []}, 422, "bad_journeys"),
        ({"journeys": "some"}, 422, "bad_journeys"),
        ({"journeys": [1]}, 422, "bad_journeys"),
        ({}, 422, "bad_journeys"),
        ([], 422, "wrong_type"),
        ({"journeys": "all", "speed": 1}, 422, "unknown_field"),
        ({"journeys": "all", "events_per_second": 0}, 422, "bad_rate"),
        ({"journeys": "all", "events_per_second": 0.999}, 422, "bad_rate"),
        ({"journeys": "all", "events_per_second": "many"}, 422, "bad_rate"),
        ({"journeys": "all", "events_per_second": True}, 422, "bad_rate"),
    ],
)
def test_mistakes_are_told(waypost: Waypost, body: Any, status: int, code: str) -> None:
    answer = waypost.http.post("/api/recalculations", json=body)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)


def test_what_there_is_not(waypost: Waypost, name: str) -> None:
    for method, path in (("GET", "nothing"), ("POST", "nothing/cancel"), ("POST", "nothing/confirm")):
        answer = waypost.http.request(method, f"/api/recalculations/{path}")
        assert (answer.status_code, error_of(answer)["code"]) == (404, "unknown_recalculation")
    assert error_of(waypost.http.get("/api/recalculations", params={"cursor": "nothing"}))["code"] == "unknown_cursor"
    put(waypost, journey(name, "x"))
    waypost.settled(name)
    id_ = waypost.http.post("/api/recalculations", json={"journeys": [name]}).json()["id"]
    ended(waypost, id_)
    late = waypost.http.post(f"/api/recalculations/{id_}/cancel")
    assert (late.status_code, error_of(late)["code"]) == (409, "recalculation_over")
    late = waypost.http.post(f"/api/recalculations/{id_}/confirm")
    assert (late.status_code, error_of(late)["code"]) == (409, "nothing_to_confirm")


def test_equal_ones_that_wait_are_one_and_the_queue_is_bounded(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "x"))
    put(waypost, journey(name + "-2", "y"))
    send(waypost, "activities", *(visit(name, str(n), "x", "10:00:00") for n in range(2000)))  # half an hour's reading at one a second
    waypost.settled(name)
    waypost.settled(name + "-2")
    slow = waypost.http.post("/api/recalculations", json={"journeys": [name], "events_per_second": 1}).json()["id"]
    waypost.until(lambda: waypost.http.get(f"/api/recalculations/{slow}").json()["state"] == "filling", "for it to read")
    body = {"journeys": [name, name + "-2"], "events_per_second": 2}
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: waypost.http.post("/api/recalculations", json=body), range(300)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    planned = [answers[0].json()["id"]]
    other = waypost.http.post("/api/recalculations", json=body | {"events_per_second": 3})
    assert other.json()["id"] not in planned, "it is not equal"
    planned.append(other.json()["id"])
    while (answer := waypost.http.post("/api/recalculations", json=body | {"events_per_second": 4 + len(planned)})).status_code == 202:
        planned.append(answer.json()["id"])
    assert len(planned) == MAX_PLANNED
    assert (answer.status_code, error_of(answer)["code"]) == (429, "too_many_recalculations")
    for id_ in [*planned, slow]:
        assert waypost.http.post(f"/api/recalculations/{id_}/cancel").status_code == 200
    assert waypost.settled(name)["stages"][0]["converted"] == 2000


def test_one_whose_results_differ_waits_for_a_confirmation_and_says_the_numbers_of_both(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "x", "y"))
    send(waypost, "activities", visit(name, "a", "x", "10:00:00"))
    assert waypost.settled(name)["stages"][0]["converted"] == 1
    worker = waypost.health()["workers"][0]["url"]
    id_ = f"r-{name}"
    plan_differing(waypost.settings, worker, parse_journey(journey(name, "x", "y")), id_, 150)
    found: dict[str, Any] = {}

    def waits() -> bool:
        found.update(waypost.http.get(f"/api/recalculations/{id_}").json())
        return bool(found.get("phase") == "confirming")  # the console may not know of it yet

    waypost.until(waits, "for it to wait")
    assert (found["state"], found["eta_seconds"], found["confirmed_at"]) == ("switching", None, None)
    assert [(row["name"], row["progress"]) for row in found["phases"]] == [("reading", 1.0), ("joining", 1.0), ("comparing", 1.0), ("building", 0.0)]
    first = {"journey": name, "version": 1, "stage": 1, "visible": 1, "expected": 1, "rebuilt": 151}
    assert found["differences"][0] == first
    assert len(found["differences"]) == 2
    during = waypost.http.get(f"/api/journeys/{name}/results").json()
    assert (during["status"], during["stages"][0]["converted"]) == ("calculating", 1)
    assert 'waypost_recalculations_unconfirmed 1.0' in waypost.http.get("/metrics").text
    watched = run("recalculations", "--watch", id_, "--api", waypost.url)
    assert watched.returncode == 1
    assert "1 contacts are visible, 151 were rebuilt" in watched.stderr
    assert f"waypost recalculations --confirm {id_}" in watched.stderr
    assert "151" in watched.stdout
    (row,) = [line.split() for line in run("recalculations", "--api", waypost.url, environ={"COLUMNS": "250"}).stdout.splitlines() if id_ in line]
    assert row[:2] == [id_, "switching,"], "what waits is the first word behind"
    assert run("recalculations", "--confirm", id_, "--api", waypost.url).returncode == 0
    done = ended(waypost, id_)
    assert (done["state"], done["changed"], done["reason"]) == ("live", 150, None)
    assert done["confirmed_at"] is not None
    assert waypost.http.post(f"/api/recalculations/{id_}/confirm").status_code == 200, "again changes nothing"
    assert waypost.settled(name)["stages"][0]["converted"] == 151


def test_without_a_schedule_there_is_no_next_run(waypost: Waypost) -> None:
    found = waypost.http.get("/api/schedule").json()
    assert (found["cron"], found["time_zone"], found["next_run"]) == (None, "UTC", None)


# -- the command line -----------------------------------------------------------------------------------------------------


def test_recalculate_waits_and_says_what_it_did(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "x"))
    send(waypost, "activities", visit(name, "a", "x", "10:00:00"))
    waypost.settled(name)
    done = run("recalculate", name, "--api", waypost.url)
    assert done.returncode == 0, done.stderr
    assert "activities read, 0 contacts stand elsewhere than before" in done.stdout
    assert "The log reaches back to" in done.stderr
    as_json = json.loads(run("recalculate", name, "--json", "--api", waypost.url).stdout)
    assert (as_json["state"], as_json["changed"]) == ("live", 0)
    listed = json.loads(run("recalculations", "--json", "--limit", "2", "--api", waypost.url).stdout)
    assert listed[0]["id"] == as_json["id"]
    assert len(listed) == 2
    assert as_json["id"] in run("recalculations", "--api", waypost.url, environ={"COLUMNS": "200"}).stdout


def test_recalculate_wants_to_know_what(waypost: Waypost, name: str) -> None:
    assert run("recalculate", "--api", waypost.url).returncode == 2
    assert run("recalculate", name, "--all", "--api", waypost.url).returncode == 2
    unknown = run("recalculate", name, "--api", waypost.url)
    assert (unknown.returncode, f'there is no journey "{name}"' in unknown.stderr) == (1, True)


def test_ctrl_c_leaves_it_running_and_says_so(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "x"))
    send(waypost, "activities", visit(name, "a", "x", "10:00:00"))
    waypost.settled(name)
    argv = [sys.executable, "-m", "console", "recalculate", name, "--events-per-second", "1", "--api", waypost.url]
    command = subprocess.Popen(argv, env={**waypost.environ, "PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    mine: list[dict[str, Any]] = []

    def begun() -> bool:
        mine[:] = [o for o in waypost.http.get("/api/recalculations").json()["recalculations"] if o["journeys"] == [name] and o["state"] == "filling"]
        return bool(mine)

    waypost.until(begun, "for it to begin")
    id_ = mine[0]["id"]
    try:
        time.sleep(0.5)
        os.kill(command.pid, signal.SIGINT)
        _, said = command.communicate(timeout=PATIENCE_SECONDS)
    except BaseException:
        command.kill()
        waypost.http.post(f"/api/recalculations/{id_}/cancel")  # others wait for it
        raise
    assert command.returncode == 1
    assert f"{id_} goes on without you" in said
    assert waypost.http.get(f"/api/recalculations/{id_}").json()["state"] == "filling"
    stopped = run("recalculations", "--cancel", id_, "--api", waypost.url)
    assert (stopped.returncode, stopped.stdout.strip()) == (0, f"{id_} cancelled")
    assert run("recalculations", "--watch", id_, "--api", waypost.url).returncode == 1
