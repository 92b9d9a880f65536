"""Results as they change (contract, section 4, live), on a running Waypost."""

from __future__ import annotations

import json
import time

import pytest

from tests.contracts.test_api import journey, put, send, visit
from tests.support.running import Waypost

pytestmark = pytest.mark.embedded


def test_live_tells_results_when_they_change(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a"))
    waypost.settled(name)
    with waypost.http.stream("GET", f"/api/journeys/{name}/live") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = (json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line.startswith("data: "))
        assert next(events)["stages"][0]["converted"] == 0
        send(waypost, "activities", visit(name, "ada", "a", "10:00:00"))
        assert any(event["stages"][0]["converted"] == 1 for event in events)
        began, count = time.monotonic(), 0
        for i in range(40):  # many changes, at most four events a second; they wait for us while we send
            send(waypost, "activities", visit(name, f"v{i}", "a", "10:00:00"))
        while next(events)["stages"][0]["converted"] != 41:
            count += 1
        assert count <= 4 * (time.monotonic() - began) + 2


def test_a_listener_that_leaves_is_forgotten(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a"))
    waypost.settled(name)

    def listeners() -> int:
        (line,) = [one for one in waypost.http.get("/metrics").text.splitlines() if one.startswith("waypost_live_streams ")]
        return int(float(line.split()[1]))

    waypost.until(lambda: listeners() == 0)
    with waypost.http.stream("GET", f"/api/journeys/{name}/live") as one, waypost.http.stream("GET", f"/api/journeys/{name}/live") as other:
        lines = [one.iter_lines(), other.iter_lines()]  # kept: a stream whose lines nobody wants any more is closed
        assert [next(one) for one in lines] == ["retry: 1000"] * 2
        assert listeners() == 2
    waypost.until(lambda: listeners() == 0)


def test_live_tells_that_the_journey_is_gone(waypost: Waypost, name: str) -> None:
    put(waypost, journey(name, "a"))
    waypost.settled(name)
    with waypost.http.stream("GET", f"/api/journeys/{name}/live") as stream:
        lines = stream.iter_lines()
        while not next(lines).startswith("data: "):
            pass
        waypost.http.delete(f"/api/journeys/{name}")
        while next(lines) != "event: unavailable":
            pass
        assert json.loads(next(lines).removeprefix("data: "))["error"]["code"] == "unknown_journey"
