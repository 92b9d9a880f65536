"""Plays one history to its end and compares everything at each stop, and once more after every disk was lost."""

from __future__ import annotations

from collections.abc import Callable

from .checks import check, check_shown
from .cluster import Cluster, with_doubles
from .history import plan


def play(seed: int, trace: Callable[[str], None] | None = None) -> Cluster:
    """Raises AssertionError when anything differs from the oracle."""
    with with_doubles(seed):
        cluster = Cluster(plan(seed), trace, check_shown)
        for stop in cluster.plan.stops:
            cluster.settle(stop)
            check(cluster)
        cluster.start_over()
        cluster.settle(cluster.facts_sent)
        check(cluster)
        cluster.close()
        return cluster


def failure(seed: int) -> tuple[int, str | None]:
    """The seed, and what went wrong with it."""
    try:
        play(seed)
    except Exception as error:
        return seed, f"{type(error).__name__}: {error}"[:600]
    return seed, None
