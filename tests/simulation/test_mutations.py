"""The simulation finds what it is for: each fault put into the engine on purpose is caught within a few hundred histories, most within ten."""

from __future__ import annotations

import pytest

from .mutations import FIRST, MUTATIONS
from .play import failure

HISTORIES = 1500


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_caught(name: str) -> None:
    first = FIRST.get(name, 0)
    assert failure(first)[1] is None, "the engine is wrong without any fault put into it"
    with MUTATIONS[name]():
        caught = next((seed for seed in range(first, first + HISTORIES) if failure(seed)[1] is not None), None)
    assert caught is not None, f"{HISTORIES} histories did not notice: {name}"
