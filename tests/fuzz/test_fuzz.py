"""A short fuzzing; `python -m tests.fuzz` does a million records and two hundred thousand requests."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from console.people import ROLES
from streams.topics import TABLE
from tests.fuzz.calls import fuzz_calls, users
from tests.fuzz.fuzz import NOT_READ, fuzz_records, seeds
from tests.support.running import started


@pytest.mark.parametrize("seed", [11, 12])
def test_records(seed: int) -> None:
    found = fuzz_records(20_000, seed, print)
    assert found.said["activities taken"] > 1000
    assert found.said["activities not_json"] > 500
    assert sum(found.said.values()) >= 20_000
    for topic in ("recalculations", "recalculation-reports", "evidence-changelog", "sessions"):
        assert found.said[f"{topic} taken"] > 50


def test_every_topic_is_fuzzed_or_read_by_nobody() -> None:
    r = Random(1)
    fuzzed = {seeds(r)[0] for _ in range(2000)}
    assert fuzzed | NOT_READ == {spec.name for spec in TABLE}
    assert not fuzzed & NOT_READ


@pytest.mark.embedded
def test_calls(embedded: str, prefix: str, tmp_path: Path) -> None:
    running = started(embedded, prefix, tmp_path / "up", **users(tmp_path))
    running.http.headers["Authorization"] = f"Bearer {ROLES[-1]}"
    with running:
        found = fuzz_calls(running, 2_500, 13, print)
    assert sum(times for what, times in found.said.items() if what.isdigit()) == 2_500
    for status in ("200", "303", "400", "401", "403", "404", "405", "422"):
        assert found.said[status] > 20, (status, found.said)
