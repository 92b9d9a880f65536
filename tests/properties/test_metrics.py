"""Metrics of a worker: what is looked at when Prometheus asks, of the partitions that are live here; and what intake counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import REGISTRY

from agents import intake, internal
from agents.partition import SOURCES
from schemas import rules
from schemas.rules import Rule, rule_key
from state.matching import Matcher
from tests.support.corpus import AT_MS, activity, raw
from tests.support.records import Record


async def scraped(live: dict[int, Any], behind: dict[tuple[str, int], int]) -> dict[str, float]:
    """The gauges of partitions as /metrics shows them, when *live* are here."""
    context = SimpleNamespace(topics={source: f"ours.{source}" for source in SOURCES}, now_ms=lambda: 0)
    partitions: Any = SimpleNamespace(active=lambda: live, context=context)
    app = internal.application(partitions, lambda: True, lambda topic, partition: behind.get((topic, partition), 0))
    async with TestClient(TestServer(app)) as client:
        lines = (await (await client.get("/metrics")).text()).splitlines()
    mine = (line.partition("} ") for line in lines if line.startswith(("waypost_source", "waypost_ledger")))
    return {name: float(value) for name, _, value in mine}


async def test_the_lag_of_every_source_of_every_live_partition_is_shown_and_of_no_others() -> None:
    ledger = SimpleNamespace(ledger=SimpleNamespace(size_bytes=lambda: 4096))
    shown = await scraped({0: ledger, 3: ledger}, {("ours.activities", 3): 17, ("ours.handoffs", 0): 2})
    lag = {name: value for name, value in shown.items() if name.startswith("waypost_source_lag_records")}
    assert len(lag) == 2 * len(SOURCES)
    assert {name: value for name, value in lag.items() if value} == {
        'waypost_source_lag_records{partition="3",topic="activities"': 17, 'waypost_source_lag_records{partition="0",topic="handoffs"': 2,
    }  # fmt: skip
    assert shown['waypost_ledger_bytes{partition="3"'] == 4096
    shown = await scraped({0: ledger}, {})
    assert not [name for name in shown if 'partition="3"' in name], "what went to another worker is told there"


class Failing(Rule):
    name = "failing"
    category = "Test"
    sentence = "fails"
    types: ClassVar[frozenset[str]] = frozenset({"pagevisit"})

    def accepts(self, activity: Any) -> bool:
        raise RuntimeError("code of other people")


def test_own_code_of_a_rule_type_that_fails_is_counted_by_rule_and_the_others_are_met() -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("waypost_rule_faults_total", {"rule": "failing"}) or 0.0

    good = rules.VisitedPage(page="/x")
    matcher = Matcher({rule_key(rule): rule for rule in (Failing(), good)})
    before = count()
    records = [Record(offset, AT_MS, b"c-1", raw(activity(id=str(offset)))) for offset in range(5)]
    for _ in range(2):
        taken = intake.activities(records, matcher, AT_MS, 0)
        assert {rule for rule, _ in dict(taken.arrived.items())["c-1"]} == {rule_key(good)}
    assert count() - before == 10
