"""A short fuzzing; `python -m tests.fuzz` does a million records and two hundred thousand requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from console.people import ROLES
from tests.fuzz.calls import fuzz_calls, users
from tests.fuzz.fuzz import fuzz_records
from tests.support.running import started


@pytest.mark.parametrize("seed", [11, 12])
def test_records(seed: int) -> None:
    found = fuzz_records(20_000, seed, print)
    assert found.said["activities taken"] > 1000
    assert found.said["activities not_json"] > 500
    assert sum(found.said.values()) >= 20_000


@pytest.mark.embedded
def test_calls(embedded: str, prefix: str, tmp_path: Path) -> None:
    running = started(embedded, prefix, tmp_path / "up", **users(tmp_path))
    running.http.headers["Authorization"] = f"Bearer {ROLES[-1]}"
    with running:
        found = fuzz_calls(running, 2_500, 13, print)
    assert sum(times for what, times in found.said.items() if what.isdigit()) == 2_500
    for status in ("200", "303", "400", "401", "403", "404", "405", "422"):
        assert found.said[status] > 20, (status, found.said)
