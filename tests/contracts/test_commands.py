"""`waypost demo` and `waypost up` as a person runs them: what they show, and that nothing is left when they end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka.admin import AdminClient

from tests.conftest import Broker
from tests.support import PATIENCE_SECONDS, eventually
from tests.support.running import Waypost, started

ROOT = Path(__file__).parents[2]


def environ() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name.startswith("WAYPOST_TEST_") or not name.startswith("WAYPOST_")}
    return {**clean, "PYTHONPATH": str(ROOT)}


def begun(*argv: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "console", *argv], cwd=cwd, env=environ(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


def children(pid: int) -> set[int]:
    """All processes below *pid*."""
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent == pid:
            child = int(stat.parent.name)
            found |= {child} | children(child)
    return found


def shown_funnels(output: str) -> list[list[int]]:
    """The contacts column of each funnel printed, converted of every stage."""
    tables = re.split(r"Every session .*\n", output)[1:]
    return [[int(m.replace(",", "")) for m in re.findall(r"^\d  .*?  ([\d,]+)  [█·]", one, re.M)] for one in tables]


@pytest.mark.parametrize(
    "kind", [pytest.param("embedded", marks=pytest.mark.embedded), pytest.param("kafka", marks=pytest.mark.kafka)]
)
def test_the_demo_shows_2_099_visitors_become_586_people(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    flags = ["--broker", request.getfixturevalue("kafka")] if kind == "kafka" else []
    process = begun("demo", "--exit", *flags, cwd=tmp_path)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    before, after = shown_funnels(output)
    assert (before, after) == ([2099, 1493, 431, 210, 64], [586, 581, 480, 381, 211])
    assert "2,099 visitors in stage 1 are 586 people." in output
    assert re.search(r"What user_\d+ did, once known as \d+ visitors", output)
    assert re.search(r"The API answers at http://127\.0\.0\.1:\d+/api", output)
    assert list(tmp_path.iterdir()) == []  # it leaves nothing
    if kind == "kafka":
        there = AdminClient({"bootstrap.servers": flags[1]}).list_topics(timeout=PATIENCE_SECONDS).topics
        assert not [topic for topic in there if topic.startswith("waypost-demo-")]


@pytest.mark.embedded
def test_the_demo_stays_up_and_agrees_with_the_oracle_until_told_to_end(tmp_path: Path) -> None:
    process = begun("demo", cwd=tmp_path)
    assert process.stdout is not None
    output = ""
    while "waypost check" not in output:
        line = process.stdout.readline()
        assert line, output
        output += line
    command = next(line for line in output.splitlines() if "waypost check" in line).split()[1:]
    checked = subprocess.run(
        [sys.executable, "-m", "console", *command], env=environ(), capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert re.search(r"No difference in [\d,]+ numbers and lines of 1 journeys, from 38,316 records", checked.stdout)
    below = children(process.pid)
    assert len(below) >= 2
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_SECONDS) == 0
    eventually(lambda: all(gone(child) for child in below))


@pytest.mark.embedded
def test_a_killed_up_takes_its_children_with_it(tmp_path: Path) -> None:
    process = begun("up", "--port", "0", "--data", str(tmp_path / "data"), cwd=tmp_path)
    assert process.stdout is not None
    while "Ctrl-C ends it" not in process.stdout.readline():
        assert process.poll() is None
    below = children(process.pid)
    process.kill()
    process.wait()
    eventually(lambda: all(gone(child) for child in below))


@pytest.mark.embedded
def test_two_ups_do_not_share_a_directory(tmp_path: Path, waypost: Waypost) -> None:
    process = begun("up", "--port", "0", "--data", str(waypost.settings.data_dir), cwd=tmp_path)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "another waypost works in" in output


@pytest.mark.parametrize("command", [("up", "--port", "0"), ("demo",), ("worker", "--broker", "127.0.0.1:9")], ids=lambda c: c[0])
@pytest.mark.parametrize(("path", "reason"), [("/proc/waypost", "No such file"), ("a-file", "not a directory"), ("a-file/below", "not a directory")])
def test_a_data_directory_that_cannot_be_written_is_refused_with_a_sentence(
    tmp_path: Path, command: tuple[str, ...], path: str, reason: str
) -> None:
    (tmp_path / "a-file").touch()
    process = begun(*command, "--data-dir", path, cwd=tmp_path)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert output.startswith(f"Failed: data_dir {path} (flag --data-dir) cannot be used: ")
    assert reason in output
    assert "Traceback" not in output


@pytest.mark.embedded
def test_a_taken_port_is_told_with_the_way_out(tmp_path: Path, waypost: Waypost) -> None:
    process = begun("up", "--port", str(waypost.port), "--data", str(tmp_path / "data"), cwd=tmp_path)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "choose another with --port" in output


def test_a_worker_that_dies_is_started_again(broker: Broker, prefix: str, tmp_path: Path) -> None:
    with started(broker.bootstrap, prefix, tmp_path / "data") as running:
        facts = [{"contact_id": f"c{i}", "type": "memberregistration", "at": 1_700_000_000_000 + i} for i in range(50)]
        body = {"name": "x", "stages": [{"name": "a", "condition": {"any": [{"rule": "became_member"}]}}]}
        assert running.http.put("/api/journeys/x", json=body).status_code == 201
        assert running.http.post("/api/activities", json=facts).json()["taken"] == 50
        assert running.settled("x")["stages"][0]["converted"] == 50
        (worker,) = running.health()["workers"]
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in children(running.process.pid)}
        pid = next(pid for pid, argv in commands.items() if b"python" in argv[0] and argv[-2:] == [b"worker", b""])
        os.kill(pid, signal.SIGKILL)
        running.until(lambda: running.health()["status"] == "degraded")
        running.until(lambda: running.health()["status"] == "ok")
        (again,) = (one for one in running.health()["workers"] if one["state"] == "live")
        assert (again["url"], again["partitions"]) == (worker["url"], worker["partitions"])
        assert again["started_at"] > worker["started_at"]
        assert running.settled("x")["stages"][0]["converted"] == 50


def lasting(health: dict[str, Any]) -> dict[str, Any]:
    """Without what changes from one look to the next: what RocksDB does with its files, how fast it goes."""
    passing = {"disk_bytes", "activities_per_second"}
    return {**health, "workers": [{key: said for key, said in worker.items() if key not in passing} for worker in health["workers"]]}


@pytest.mark.kafka
def test_a_console_finds_the_workers_through_their_group(kafka: str, prefix: str, tmp_path: Path) -> None:
    with started(kafka, prefix, tmp_path / "data") as running:
        settings = running.settings
        flags = ["--broker", kafka, "--topic-prefix", settings.topic_prefix, "--group", settings.group]
        process = begun("console", "--port", "0", *flags, cwd=tmp_path)
        try:
            assert process.stdout is not None
            while (found := re.search(r"(http://\S+)/api", process.stdout.readline())) is None:
                assert process.poll() is None
            health = httpx.get(f"{found[1]}/api/health").json()
            assert "error" not in health, process.kill() or process.stdout.read()
            assert lasting(health) == lasting(running.health())
            assert health["broker"]["kind"] == "kafka"
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)


