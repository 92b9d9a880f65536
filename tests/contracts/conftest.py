"""Fixtures of the contract tests: one running Waypost for all tests of the API and the command line."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from tests.support.records import values, values_in_bulk
from tests.support.running import Waypost, started


@pytest.fixture(scope="session")
def waypost(embedded: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Waypost]:
    """Shared by the run: use journeys and contacts of your own."""
    with started(embedded, f"t{uuid.uuid4().hex[:10]}.", tmp_path_factory.mktemp("waypost")) as running:
        yield running


@pytest.fixture
def name() -> str:
    """A journey id, or the beginning of contact ids, that nobody else uses."""
    return f"n{uuid.uuid4().hex[:10]}"


@pytest.fixture(params=[values, values_in_bulk], ids=["one by one", "in bulk"])
def read(request: pytest.FixtureRequest) -> Callable[..., dict[int, list[tuple[int, bytes | None]]]]:
    """All of a topic, by either of the two readers: what they read is the same."""
    return request.param  # type: ignore[no-any-return]
