"""The alerts fire when they should, and only then: Prometheus' own test tool plays `alerts.test.yml` against them."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from tests.support import PATIENCE_SECONDS
from tests.support.terminal import ROOT

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
PLAYED = ROOT / "tests" / "contracts" / "alerts.test.yml"
ALERTS = {rule["alert"]: rule for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]}


def promtool(*arguments: str) -> str:
    """Return what promtool prints; fail where it exits with an error."""
    command = shutil.which("promtool")
    assert command, "promtool is missing: apt-get install prometheus, or leave these tests out with -m 'not promtool'"
    done = subprocess.run([command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.promtool
def test_prometheus_takes_the_rules() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(RULES))


@pytest.mark.promtool
def test_alerts_fire_on_outages_bursts_and_restarts_and_only_then() -> None:
    promtool("test", "rules", str(PLAYED))


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_fires_in_a_scenario(name: str) -> None:
    """Each check of a scenario lists all alerts that fire, so that one which is named nowhere would only be seen to be quiet."""
    checks = [check for scenario in yaml.safe_load(PLAYED.read_text())["tests"] for check in scenario["promql_expr_test"]]
    assert {check["expr"] for check in checks} == {'count by (alertname) (ALERTS{alertstate="firing"})'}
    firing = {sample["labels"] for check in checks for sample in check["exp_samples"]}
    assert f'{{alertname="{name}"}}' in firing
