"""The command line (contract, section 5): what each command prints and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import yaml
from click.testing import CliRunner

from console.cli import cli
from tests.contracts.test_api import journey, visit
from tests.support import PATIENCE_SECONDS
from tests.support.running import Waypost

ROOT = Path(__file__).parents[2]


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(*argv: str, environ: dict[str, str] | None = None, stdin: str = "") -> Done:
    """In this process, which is as good and quicker; `process` is for what cannot be."""
    unset: dict[str, str | None] = {name: None for name in os.environ if name.startswith("WAYPOST_") and not name.startswith("WAYPOST_TEST_")}
    done = CliRunner().invoke(cli, argv, input=stdin, env={**unset, **(environ or {})})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def process(*argv: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name.startswith("WAYPOST_TEST_") or not name.startswith("WAYPOST_")}
    command, environ = [sys.executable, "-m", "console", *argv], {**clean, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def commands(group: click.Group = cli, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield before
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name)


# -- without a broker -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", list(commands()), ids=lambda words: " ".join(words) or "waypost")
def test_everything_has_help(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, [*command, "--help"])
    assert done.exit_code == 0
    assert done.output.startswith("Usage:")
    assert len(done.output.splitlines()) > 3


def test_every_option_says_what_it_does() -> None:
    for words in commands():
        command: click.Command = cli
        for word in words:
            assert isinstance(command, click.Group)
            command = command.commands[word]
        assert command.help, words
        assert all(option.help for option in command.params if isinstance(option, click.Option)), words


def test_all_commands_of_the_contract_are_there() -> None:
    there = {" ".join(words) for words in commands()}
    assert {
        "demo", "up", "worker", "console", "recalculator", "recalculate", "recalculations", "topics", "check", "config",
        "journey apply", "journey list", "journey show", "journey results", "journey delete", "journey contacts",
        "contact show", "contact erase", "send", "rejected list", "rejected resend",
    } <= there  # fmt: skip


@pytest.mark.parametrize(
    "argv",
    [
        ("nonsense",), ("journey", "apply"), ("journey", "contacts", "x"), ("send", "things", "-"), ("config", "--no-such-flag"),
        ("worker",), ("console",), ("topics",), ("send", "merges", "no-such-file"),
        ("worker", "--broker", "no port"), ("up", "--port", "many"), ("up", "--data", "/tmp/x", "--partitions", "0"),
        ("journey", "results", "x", "--version", "0"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_use_ends_with_2_and_a_sentence(argv: tuple[str, ...]) -> None:
    done = run(*argv)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_what_does_not_work_ends_with_1_and_the_way_out(tmp_path: Path) -> None:
    done = run("journey", "list", "--api", "http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert "waypost up" in done.stderr
    unreachable = process("console", "--broker", "127.0.0.1:9")
    assert unreachable.returncode == 1
    assert "127.0.0.1:9 does not answer" in unreachable.stderr
    assert "Traceback" not in unreachable.stderr


@pytest.mark.parametrize(("columns", "width"), [("", 120), ("200", 200)])
@pytest.mark.parametrize("looks", [{}, {"FORCE_COLOR": "1", "TERM": "dumb"}, {"FORCE_COLOR": "1", "TERM": "xterm"}])
def test_a_file_is_as_wide_as_it_is_told_or_120(looks: dict[str, str], columns: str, width: int) -> None:
    clean = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR", "TERM")}
    environ = {**clean, **looks, **({"COLUMNS": columns} if columns else {})}
    said = "from console.options import err, out; print(out.width, err.width)"
    done = subprocess.run([sys.executable, "-c", said], env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    assert done.stdout.split() == [str(width), str(width)]


def test_config_says_where_values_come_from_and_masks_secrets(tmp_path: Path) -> None:
    file = tmp_path / "waypost.toml"
    file.write_text('partitions = 8\ngroup = "ours"\nsasl_password = "open sesame"\n')
    environ = {
        "WAYPOST_CONFIG": str(file), "WAYPOST_GROUP": "theirs", "WAYPOST_SECURITY_PROTOCOL": "sasl_plaintext",
        "WAYPOST_SASL_MECHANISM": "plain", "WAYPOST_SASL_USERNAME": "ali",
    }  # fmt: skip
    done = run("config", "--json", "--memory-mb", "64", environ=environ)
    rows = {row["name"]: (row["value"], row["origin"]) for row in json.loads(done.stdout)}
    assert rows["partitions"] == ("8", f"file {file}")
    assert rows["group"] == ("theirs", "environment WAYPOST_GROUP")
    assert rows["memory_mb"] == ("64", "flag --memory-mb")
    assert rows["topic_prefix"] == ("waypost.", "default")
    assert rows["sasl_password"][0] == "********"
    assert "open sesame" not in done.stdout + run("config", environ=environ).stdout


# -- on a running Waypost -------------------------------------------------------------------------------------------------


def on(waypost: Waypost, *argv: str, stdin: str = "") -> Done:
    return run(*argv, environ=waypost.environ, stdin=stdin)


@pytest.mark.embedded
def test_topics_are_checked(waypost: Waypost) -> None:
    done = on(waypost, "topics", "--check", "--json")
    assert (done.returncode, json.loads(done.stdout)["problems"]) == (0, [])
    done = on(waypost, "topics", "--check", "--topic-prefix", "other.", "--json")
    assert done.returncode == 1
    assert "other.activities is missing" in json.loads(done.stdout)["problems"][0]
    assert on(waypost, "topics").returncode == 0


@pytest.mark.embedded
def test_workers_and_consoles_do_not_start_on_topics_that_are_not_right(waypost: Waypost) -> None:
    for command in ("worker", "console"):
        missing = on(waypost, command, "--topic-prefix", "other.")
        assert (missing.returncode, "other.activities is missing; make it with `waypost topics`" in missing.stderr) == (1, True)
        wrong = on(waypost, command, "--partitions", "3")
        assert (wrong.returncode, "has 4 partitions, but should have 3" in wrong.stderr) == (1, True)


@pytest.mark.embedded
def test_a_journey_from_file_to_results(waypost: Waypost, name: str, tmp_path: Path) -> None:
    first, second = tmp_path / "one.yaml", tmp_path / "two.json"
    first.write_text(yaml.safe_dump(journey(name, "a", "b")))
    second.write_text(json.dumps([journey(f"{name}-x", "a"), journey(f"{name}-y", "a")]))
    done = on(waypost, "journey", "apply", str(first), str(second))
    assert (done.returncode, done.stdout.splitlines()) == (
        0, [f"{name}  version 1  created", f"{name}-x  version 1  created", f"{name}-y  version 1  created"],
    )  # fmt: skip
    assert on(waypost, "journey", "apply", str(first)).stdout == f"{name}  version 1  unchanged\n"
    shown = on(waypost, "journey", "show", name).stdout
    assert on(waypost, "journey", "apply", "-", stdin=shown).stdout == f"{name}  version 1  unchanged\n"
    edited = json.dumps(json.loads(on(waypost, "journey", "show", name, "--json").stdout) | {"name": "Other"})
    assert on(waypost, "journey", "apply", "-", stdin=edited).stdout == f"{name}  version 2  new version\n"
    assert {name, f"{name}-x"} <= {one["id"] for one in json.loads(on(waypost, "journey", "list", "--json").stdout)}
    assert name in on(waypost, "journey", "list").stdout

    waypost.settled(name)
    facts = [visit(name, "ada", "a", "10:00:00"), visit(name, "ada", "b", "10:01:00"), visit(name, "bob", "a", "10:00:00")]
    sent = on(waypost, "send", "activities", "-", stdin="\n".join(json.dumps(fact) for fact in facts))
    assert (sent.returncode, sent.stdout) == (0, "3 activities sent, 0 refused\n")
    waypost.settled(name)
    found = json.loads(on(waypost, "journey", "results", name, "--json").stdout)
    assert [stage["converted"] for stage in found["stages"]] == [2, 1]
    text = on(waypost, "journey", "results", name).stdout
    assert "50.0 %" in text
    assert "0 behind" in text
    listed = json.loads(on(waypost, "journey", "contacts", name, "--stage", "1", "--dropped-off", "--json").stdout)
    assert (listed["total"], [row["contact_id"] for row in listed["contacts"]]) == (1, [f"{name}-bob"])
    assert "2 of 2" in on(waypost, "journey", "contacts", name, "--stage", "1").stdout
    assert "1 of 2" in on(waypost, "journey", "contacts", name, "--stage", "1", "--limit", "1").stdout
    assert f'visited page "/{name}/b"' in on(waypost, "contact", "show", f"{name}-ada").stdout
    assert json.loads(on(waypost, "contact", "show", f"{name}-ada", "--json").stdout)["survivor"] == f"{name}-ada"

    assert on(waypost, "contact", "erase", f"{name}-bob", stdin="n\n").returncode == 1
    assert on(waypost, "contact", "erase", f"{name}-bob", "--yes").returncode == 0
    assert [stage["converted"] for stage in waypost.settled(name)["stages"]] == [1, 1]
    assert on(waypost, "journey", "delete", name, "--yes").returncode == 0
    gone = on(waypost, "journey", "show", name)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert f'there is no journey "{name}"' in gone.stderr


@pytest.mark.embedded
def test_every_mistake_of_every_journey_is_told_and_nothing_applied(waypost: Waypost, name: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.yaml"
    good.write_text(json.dumps(journey(name, "a")))
    bad.write_text(yaml.safe_dump({"id": "B A D", "stages": []}))
    done = on(waypost, "journey", "apply", str(good), str(bad))
    assert done.returncode == 1
    for words in ("other characters than a-z", "name is missing", "0 stages", "nothing was applied"):
        assert words in done.stderr
    assert waypost.http.get(f"/api/journeys/{name}").status_code == 404


@pytest.mark.embedded
@pytest.mark.parametrize("text", ["", "{", "a: [", "[" * 100_000, "!!python/object/apply:os.system [true]", "\x00"])
def test_a_file_that_is_no_journey(waypost: Waypost, text: str) -> None:
    done = on(waypost, "journey", "apply", "-", stdin=text)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.embedded
def test_bad_lines_are_listed_with_their_numbers_and_the_good_ones_sent(waypost: Waypost, name: str, tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    good = json.dumps(visit(name, "ada", "a", "10:00:00", extra="allowed here"))
    file.write_bytes(b"\n".join([good.encode(), b"{", b"", good.encode(), b'{"contact_id": "\xff"}', b"[" * 2_000_000, good.encode()]) + b"\n")
    done = on(waypost, "send", "activities", str(file), "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["sent"], [(r["line"], r["error"]["code"]) for r in found["refused"]]) == (
        3, [(2, "not_json"), (5, "not_json"), (6, "too_large")],
    )  # fmt: skip
    told = on(waypost, "send", "activities", str(file))
    assert told.stdout == "3 activities sent, 3 refused\n"
    assert [line.split(":")[0] for line in told.stderr.splitlines()] == ["line 2", "line 5", "line 6"]


@pytest.mark.embedded
def test_check_finds_no_difference_and_the_rejected_are_accounted_for(waypost: Waypost, name: str) -> None:
    from confluent_kafka import Producer

    waypost.http.put(f"/api/journeys/{name}", json=journey(name, "a", "b"))
    waypost.settled(name)
    producer = Producer({"bootstrap.servers": waypost.settings.bootstrap})
    for i in range(30):
        fact: dict[str, Any] = visit(name, f"c{i % 7}", "ab"[i % 2], f"10:00:{i:02}")
        producer.produce(waypost.settings.topic_prefix + "activities", json.dumps(fact), f"{name}-c{i % 7}")
        producer.produce(waypost.settings.topic_prefix + "activities", b"\xff bad " + str(i).encode(), f"{name}")
    producer.flush()
    waypost.http.post("/api/merges", json=[{"from": f"{name}-c1", "into": f"{name}-c2", "at": 1_700_000_000_001}])
    waypost.http.post("/api/contacts", json=[{"contact_id": f"{name}-c2", "groups": ["g", "h"], "at": 1_700_000_000_001}])
    done = on(waypost, "check", name, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["differences"]) == (0, [])
    assert (found["journeys"], found["rejected"] >= 30, found["compared"] > 50) == ([name], True, True)
    assert "No difference" in on(waypost, "check", name).stdout
    assert on(waypost, "check", "no-such-journey").returncode == 1
    listed = json.loads(on(waypost, "rejected", "list", "--limit", "5", "--json").stdout)
    assert len(listed["rejected"]) == 5
    assert "not UTF-8" in on(waypost, "rejected", "list", "--limit", "1").stdout


@pytest.mark.embedded
def test_a_journey_that_is_calculated_holds_up_no_check_but_its_own(waypost: Waypost, name: str) -> None:
    slow = f"{name}-slow"
    for id_ in (name, slow):
        waypost.http.put(f"/api/journeys/{id_}", json=journey(id_, "a")).raise_for_status()
        waypost.settled(id_)
    id_ = waypost.http.post("/api/recalculations", json={"journeys": [slow], "events_per_second": 1}).json()["id"]
    try:
        assert on(waypost, "check", name).returncode == 0
        held = on(waypost, "check", slow, "--timeout", "1")
        assert held.returncode == 1
        assert f"still calculating {slow}" in " ".join(held.stderr.split())
    finally:
        waypost.http.post(f"/api/recalculations/{id_}/cancel")
