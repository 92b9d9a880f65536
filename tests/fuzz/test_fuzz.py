"""A short fuzzing; `python -m tests.fuzz` does a million records and a hundred thousand calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.fuzz import fuzz_calls, fuzz_records
from tests.support.running import started


@pytest.mark.parametrize("seed", [11, 12])
def test_records(seed: int) -> None:
    found = fuzz_records(20_000, seed, print)
    assert found.said["activities taken"] > 1000
    assert found.said["activities not_json"] > 500
    assert sum(found.said.values()) >= 20_000


@pytest.mark.embedded
def test_calls(embedded: str, prefix: str, tmp_path: Path) -> None:
    with started(embedded, prefix, tmp_path) as running:
        found = fuzz_calls(running.url, running.process.pid, 2_000, 13, print)
    assert found.said["200"] > 100
    assert found.said["404"] > 100
    assert sum(found.said.values()) == 2_000
    assert found.said["422"] + found.said["400"] > 100
