"""What is in deploy/ and docker-compose.yml is sound: schemas, settings, commands, metrics; and the processes of the compose file run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml

from agents import metrics
from console.cli import cli
from console.people import digest, write
from streams.brokers import free_port
from streams.guarded import GuardedProcess
from streams.settings import ENV_PREFIX, Settings
from tests.support import PATIENCE_SECONDS
from tests.support.terminal import ROOT

from .test_api import journey, visit

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.31"
OURS = {name: service for name, service in COMPOSE["services"].items() if str(service["image"]).startswith("waypost")}
FOREIGN_METRICS = ("up", "process_resident_memory_bytes", "process_start_time_seconds")


def manifests() -> list[Any]:
    found = []
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        found += [pytest.param(one, id=f"{path.stem}-{one['kind']}") for one in yaml.safe_load_all(path.read_text())]
    return found


def test_the_compose_file_is_one() -> None:
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("manifest", manifests())
def test_manifests_are_what_kubernetes_takes(manifest: dict[str, Any]) -> None:
    if manifest["apiVersion"].startswith(("kustomize.", "kafka.strimzi.")):
        assert manifest.get("metadata") or set(manifest["resources"]) <= {path.name for path in (DEPLOY / "kubernetes").iterdir()}
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("manifest", [m for m in manifests() if "template" in m.values[0].get("spec", {})])
def test_pods_have_no_more_rights_than_they_need(manifest: dict[str, Any]) -> None:
    pod = manifest["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "service links are unknown settings"
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert "memory" in container["resources"]["limits"]
        assert container["args"][0] in cli.commands


def settings_named() -> set[str]:
    texts = [path.read_text() for path in (ROOT / "docker-compose.yml", *DEPLOY.rglob("*.yaml"), DEPLOY / "Dockerfile")]
    return {name for text in texts for name in re.findall(rf"\b{ENV_PREFIX}[A-Z_]+", text)}


def test_settings_and_commands_exist() -> None:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    assert settings_named() <= known
    assert {service["command"][0] for service in OURS.values()} <= cli.commands.keys()
    assert {"worker-1", "worker-2", "recalculator", "console", "topics"} == OURS.keys()
    for service in OURS.values():
        given = {name: str(value) for name, value in service["environment"].items() if "${" not in str(value) and name != "WAYPOST_USERS_FILE"}
        Settings.load({}, environ=given)


def test_the_image_holds_every_package() -> None:
    copied = set(re.findall(r"^COPY (\w+) \w+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert copied == packages


def test_the_versions_that_are_shipped_are_those_that_are_tested() -> None:
    """Kafka: the broker that the tests start. Python: the oldest that is supported, which `.ci/run` runs on."""
    tested = re.findall(r"<artifactId>kafka_[\d.]+</artifactId><version>([\d.]+)<", (ROOT / "tests/support/kafka/pom.xml").read_text())
    clusters = yaml.safe_load_all((DEPLOY / "kubernetes/strimzi.yaml").read_text())
    strimzi = [one["spec"]["kafka"]["version"] for one in clusters if one["kind"] == "Kafka"]
    assert [COMPOSE["services"]["kafka"]["image"]] == [f"apache/kafka:{version}" for version in tested]
    assert strimzi == tested
    oldest = re.findall(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    shipped = re.findall(r"^FROM python:([\d.]+)-slim", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert set(shipped) == set(oldest)


def expressions() -> list[tuple[str, str]]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]
    panels = json.loads((DEPLOY / "grafana" / "dashboards" / "waypost.json").read_text())["panels"]
    return [(rule["alert"], rule["expr"]) for rule in rules] + [(p["title"], target["expr"]) for p in panels for target in p["targets"]]


@pytest.mark.parametrize(("name", "expression"), expressions())
def test_metrics_of_alerts_and_dashboards_exist_with_their_labels(name: str, expression: str) -> None:
    known: dict[str, set[str]] = {}
    for metric in (*metrics.CATALOGUE, *metrics.CONSOLE_CATALOGUE):
        for sample in ("", "_total", "_bucket", "_count", "_sum"):
            known[metric._name + sample] = set(metric._labelnames)
    used = re.findall(r"\b(waypost_\w+|up|process_\w+)\b(?:\{([^}]*)\})?", expression)
    assert used
    for metric_name, labels in used:
        if metric_name in FOREIGN_METRICS:
            continue
        assert metric_name in known, f"{name}: {metric_name}"
        assert set(re.findall(r"(\w+)=", labels)) <= known[metric_name] | {"job", "instance"}, name
    allowed = {label for metric_name, _ in used for label in known.get(metric_name, set())} | {"le", "instance", "job"}
    assert {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")} <= allowed


def test_every_alert_has_its_paragraph_in_the_runbook() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text()
    for name, _ in expressions():
        if name.startswith("Waypost"):
            assert f"### {name}" in runbook, name


@pytest.mark.kafka
def test_the_processes_of_the_compose_file_make_a_waypost(kafka: str, prefix: str, tmp_path: Path) -> None:
    """The same commands and settings, as processes of this machine: names of hosts become addresses, volumes become directories."""
    ports, users = {name: free_port() for name in OURS}, tmp_path / "users.toml"
    write(users, "tokens", "test", {"role": "operator", "sha256": digest("a token")})
    api = httpx.Client(headers={"Authorization": "Bearer a token"})
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}

    def environ(name: str) -> dict[str, str]:
        said = {key: str(value) for key, value in OURS[name]["environment"].items()} | {"WAYPOST_INTERNAL_SECRET": "of this test"}
        if "WAYPOST_USERS_FILE" in said:
            said |= {"WAYPOST_USERS_FILE": str(users), "WAYPOST_SESSION_SECRET": "of this test, 32 characters or more"}
        said |= {"WAYPOST_BROKER": kafka, "WAYPOST_TOPIC_PREFIX": prefix, "WAYPOST_GROUP": f"{prefix}workers"}
        said["WAYPOST_DATA_DIR"] = str(tmp_path / name)
        for key in ("WAYPOST_WORKER_HOST", "WAYPOST_CONSOLE_HOST"):
            if key in said:
                said[key] = "127.0.0.1"
        for key in ("WAYPOST_WORKER_PORT", "WAYPOST_CONSOLE_PORT"):
            if key in said:
                said[key] = str(ports[name])
        if "WAYPOST_WORKER_ADVERTISED_URL" in said:
            said["WAYPOST_WORKER_ADVERTISED_URL"] = f"http://127.0.0.1:{ports[name]}"
        return {**clean, **said}

    def command(name: str) -> list[str]:
        return [sys.executable, "-m", "console", *OURS[name]["command"]]

    subprocess.run(command("topics"), cwd=ROOT, env=environ("topics"), check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    running = [GuardedProcess(command(n), log=tmp_path / f"{n}.log", cwd=ROOT, env=environ(n)) for n in OURS if n != "topics"]
    url = f"http://127.0.0.1:{ports['console']}"
    try:

        def until(there: Any) -> None:
            end = time.monotonic() + PATIENCE_SECONDS
            while True:
                try:
                    if there():
                        return
                except httpx.TransportError:
                    pass
                assert time.monotonic() < end, [one.tail(5) for one in running]
                time.sleep(0.2)

        until(lambda: api.get(f"{url}/api/health").json()["status"] == "ok")
        until(lambda: len(api.get(f"{url}/api/health").json()["workers"]) == 2)
        api.put(f"{url}/api/journeys/composed", json=journey("composed", "a", "b")).raise_for_status()
        api.post(f"{url}/api/activities", json=[visit("composed", str(k), "a", "10:00:00") for k in range(20)]).raise_for_status()

        def counted() -> bool:
            found = api.get(f"{url}/api/journeys/composed/results").json()
            return found.get("status") == "live" and found["stages"][0]["converted"] == 20

        until(counted)
        assert httpx.get(f"{url}/api/journeys").status_code == 401
        for port in (ports["worker-1"], ports["worker-2"]):
            assert httpx.get(f"http://127.0.0.1:{port}/internal/partitions").status_code == 401
            assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
            assert "waypost_visible_seconds_bucket" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
    finally:
        for one in running:
            one.stop(20.0)
    assert [one.exit_code for one in running] == [0] * len(running), [one.tail(5) for one in running]
