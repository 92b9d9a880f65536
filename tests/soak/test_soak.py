"""Three minutes of the soak, with a fault every twenty seconds; `python -m tests.soak` goes on for two hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import soak as module
from tests.soak.soak import soak


@pytest.mark.kafka
def test_three_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAULT_SECONDS", 20.0)
    found = soak(tmp_path, minutes=2.5, rate=100.0, seed=3, say=print)
    assert found.compared > 1000
    assert sum(found.faults.values()) >= 4
    assert found.sent["activities"] > 5000
    assert found.growth() < 1.5, found.memory_mib
