"""Thousands of journeys on one rule: each new contact that meets it changes a stage of all of them, and the worker keeps to its memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.bench import data
from tests.bench.ground import Ground

JOURNEYS, CONTACTS = 2000, 160
MEMORY_MB = 64
BESIDE_MB = 40  # what an allocator cannot give back, and Kafka's clients


@pytest.mark.kafka
def test_memory_keeps_to_the_setting_whatever_a_chunk_comes_to(kafka: str, tmp_path: Path) -> None:
    """All contacts are in one chunk of each partition. Decided at once, what they come to took 600 MiB and more."""
    ground = Ground(kafka, tmp_path, "scale-decisions", lambda what, done, total: None, max_future_hours=1e5, memory_mb=MEMORY_MB)
    ground.apply([data.journey(stages=1), *({**data.journey(stages=1), "id": f"same-{n:04d}"} for n in range(1, JOURNEYS))])
    ground.expected.stages = 1
    with ground.worker() as worker:
        built: Callable[[], bool] = partial(worker.built, JOURNEYS, ground.settings.partitions)
        ground.until(built, "every journey is built")
        before_mib = worker.rss_mib()
        ground.load(data.first_steps(CONTACTS), CONTACTS)
        ground.play(worker)
        peak_mib = worker.peak_mib()
        ground.verify(worker)
        wanted = ground.expected.cells()
        assert all(worker.cells(f"same-{n:04d}") == wanted for n in range(1, JOURNEYS, 97))
        assert worker.metric("waypost_stage_changes_total") >= JOURNEYS * CONTACTS
    assert peak_mib - before_mib < MEMORY_MB + BESIDE_MB
    ground.discard()
