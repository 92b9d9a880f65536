"""The README's commands are run: the first in a fresh copy and a fresh environment, the others on what `waypost up` starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from streams.brokers import free_port
from tests.support.terminal import ROOT, Terminal, blocks

README = ROOT / "README.md"
GUIDE = ROOT / "docs" / "guide.md"
NOT_IN_A_CHECKOUT = (".venv", ".git", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", ".waypost")


def shell(holding: str) -> str:
    """The README's block of commands that holds *holding*."""
    (found,) = [text for language, _, text in blocks(README) if language == "sh" and holding in text]
    return found


@pytest.mark.embedded
def test_one_command_makes_the_environment_and_runs_the_demo(tmp_path: Path) -> None:
    copy = tmp_path / "waypost"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_IN_A_CHECKOUT))
    command = shell("waypost demo").strip().replace("python3 ", f"{sys.executable} ", 1)
    clean = {k: v for k, v in os.environ.items() if k.startswith("WAYPOST_TEST_") or not k.startswith(("WAYPOST_", "PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        ["/bin/sh", "-ec", f"{command} --exit"], cwd=copy, env=clean, capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "2,099 visitors in stage 1 are 586 people." in done.stdout


@pytest.mark.embedded
def test_the_other_commands_work_on_what_up_starts(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, {"8080": str(free_port())})
    for _, name, text in blocks(GUIDE):
        if name in ("loan.yaml", "activities.jsonl"):
            (tmp_path / name).write_text(text)
    commands = [line.removeprefix(".venv/bin/").partition("#")[0].strip() for line in shell("journey apply").splitlines()]
    assert commands[0] == "waypost up"
    try:
        for command in commands:
            terminal.settle()
            output = terminal.run(command)
        assert "No difference" in output  # the last one is check
    finally:
        terminal.end()
