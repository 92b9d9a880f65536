"""What pages show of results: bars, shares and sentences. And that a built package holds every file of the pages."""

from __future__ import annotations

import tomllib
from datetime import UTC, date, datetime
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from console.edits import sentence
from console.pages import views
from schemas.journey import parse_journey

ROOT = Path(__file__).parents[2]


@given(st.lists(st.none() | st.integers(0, 10**7), min_size=1, max_size=10))
def test_bars_stand_on_the_ground_beside_each_other_and_every_contact_is_seen(counts):
    bars = views.bars(counts, 944, 190, 3)
    assert len(bars) == len(counts)
    for n, bar in zip(counts, bars, strict=True):
        assert abs(bar.y + bar.height - 190) < 0.11
        assert (bar.height >= 1) == bool(n)
    assert all(b.x >= a.x + a.width for a, b in pairwise(bars))
    assert max(bar.height for bar in bars) == (190 if any(counts) else 0)


def row(stage, converted, dropped, kpi=None):
    return {"stage": stage, "name": "s", "converted": converted, "dropped_off": dropped, "kpi": kpi}


def test_the_largest_drop_is_a_share_and_the_first_of_equals():
    assert views.largest_drop([row(1, 100, 50), row(2, 50, 40), row(3, 10, 8), row(4, 2, None)]) == {"percent": "80.0 %", "stage": 2}
    assert views.largest_drop([row(1, 0, 0), row(2, 0, None)]) is None
    assert views.largest_drop([row(1, None, None)]) is None


def test_a_target_is_met_from_the_last_contact_on_and_its_meter_never_overflows():
    assert views.kpi(row(1, 431, None, 400)) == {"of": "400", "percent": "107.8 %", "meter": 100, "met": True}
    assert views.kpi(row(1, 399, None, 400)) == {"of": "400", "percent": "99.8 %", "meter": 99, "met": False}
    assert views.kpi(row(1, None, None, 400)) == {"of": "400", "percent": "–", "meter": 0, "met": False}
    assert views.kpi(row(1, 4, None)) is None


def test_a_condition_in_a_condition_is_in_brackets():
    page = [{"rule": "visited_page", "page": name} for name in "abc"]
    condition = {"any": [page[0], {"all": page[1:]}]}
    journey = parse_journey({"id": "j", "name": "J", "stages": [{"name": "S", "condition": condition}]})
    assert sentence(journey.stages[0].condition) == 'visited page "a" or (visited page "b" and visited page "c")'
    assert views.matches(journey, " s ")
    assert not views.matches(journey, "x")


def test_the_package_takes_every_file_of_the_pages_with_it():
    taken = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["console"]
    files = [p.relative_to(ROOT / "console").as_posix() for p in (ROOT / "console/pages").rglob("*") if p.suffix in (".html", ".css", ".js")]
    assert len(files) >= 7
    assert all(any(fnmatch(file, pattern) for pattern in taken) for file in files)


def test_times_are_as_short_as_they_can_be():
    now = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
    for text, shown in (
        ("2026-11-25T01:02:03.004Z", "01:02:03"), ("2026-11-23T01:02:03Z", "Mon 01:02:03"), ("2026-01-02T01:02:03Z", "2 Jan, 01:02:03"),
        ("2024-02-03T01:02:03Z", "3 Feb 2024, 01:02:03"),
    ):  # fmt: skip
        assert views.when(text, now) == shown


def test_groups_are_compared_in_points_rounded_once_with_the_best_and_the_worst_marked():
    def group(name, *counts):
        return {"group": name, "stages": [{"name": f"s{k}", "converted": n} for k, n in enumerate(counts)]}

    found = views.groups([group(None, 1240, 412), group("owners", 684, 291), group("none", 188, 31), group("few", 19, 19)])
    rows = {row["group"]: row["cells"][0] for row in found["rows"]}
    assert (rows["owners"]["points"], rows["owners"]["mark"], rows["owners"]["up"]) == ("+9.3", "best", True)
    assert (rows["none"]["points"], rows["none"]["mark"]) == ("−16.7", "worst")
    assert (rows["few"]["few"], rows["few"]["mark"]) == (True, None)
    assert found["largest"] == "contacts of group none reach “s1” 16.7 points less often than all contacts"


def test_the_trend_shows_days_without_anybody_as_nothing():
    found = views.trend(["a"], [{"day": "2026-11-24", "reached": [3]}, {"day": "2020-01-01", "reached": [1]}], date(2026, 11, 25))
    assert (found["rows"][0]["sum"], found["older"], len(found["rows"][0]["bars"])) == ("3", 1, views.DAYS)
    assert found["days"] == [{"day": "2026-11-24", "reached": ["3"]}]
