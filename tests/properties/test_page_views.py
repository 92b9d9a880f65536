"""What pages show of results: bars, shares and sentences. And that a built package holds every file of the pages."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

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
    assert views.sentence(journey.stages[0].condition) == 'visited page "a" or (visited page "b" and visited page "c")'
    assert views.matches(journey, " s ")
    assert not views.matches(journey, "x")


def test_the_package_takes_every_file_of_the_pages_with_it():
    taken = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["console"]
    files = [p.relative_to(ROOT / "console").as_posix() for p in (ROOT / "console/pages").rglob("*") if p.suffix in (".html", ".css", ".js")]
    assert len(files) >= 7
    assert all(any(fnmatch(file, pattern) for pattern in taken) for file in files)
