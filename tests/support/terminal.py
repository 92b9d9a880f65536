"""A terminal for tests of pages: takes the fenced blocks of a page, runs its commands as a person would, compares what they show. Decides nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.support import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
STAYS = ("waypost worker", "waypost console", "waypost recalculator", "waypost up")


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, file name or "", text) of every fenced block, in order."""
    found = re.findall(r"^```(\w*)(?: file=(\S+))?\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)
    return [(language, name, text) for language, name, text in found]


class Terminal:
    """Runs commands in *directory* as a person would, with `waypost` and `python` of this checkout."""

    def __init__(self, directory: Path, replaced: dict[str, str]) -> None:
        self.directory = directory
        self.replaced = replaced
        self.port = replaced["8080"]
        bin_ = directory / "bin"
        bin_.mkdir()
        for name, argv in (("waypost", "-m console"), ("python", "")):
            (bin_ / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {argv} "$@"\n')
            (bin_ / name).chmod(0o755)
        clean = {k: v for k, v in os.environ.items() if k.startswith("WAYPOST_TEST_") or not k.startswith("WAYPOST_")}
        self.environ = {
            **clean, "PATH": f"{bin_}{os.pathsep}{clean['PATH']}", "PYTHONPATH": str(ROOT), "COLUMNS": "200", "WAYPOST_CONSOLE_PORT": self.port,
        }  # fmt: skip
        self.left: list[subprocess.Popen[bytes]] = []
        self.answers = False

    def filled(self, text: str) -> str:
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        return text

    def run(self, text: str) -> str:
        """One block of shell. What stays is left running; the variables it exports stay too."""
        script = self.filled(text)
        if text.startswith(STAYS):
            log = (self.directory / "left.log").open("ab")
            self.answers = self.answers or not text.startswith(("waypost worker", "waypost recalculator"))
            self.left.append(subprocess.Popen(["/bin/sh", "-c", f"exec {script}"], cwd=self.directory, env=self.environ, stdout=log, stderr=log))
            return ""
        argv = ["/bin/sh", "-ec", f"{script}\nenv > .env"]
        done = subprocess.run(argv, cwd=self.directory, env=self.environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        for line in (self.directory / ".env").read_text().splitlines():
            name, _, value = line.partition("=")
            if name.startswith("WAYPOST_"):
                self.environ[name] = value
        return done.stdout + done.stderr

    def end(self) -> None:
        """Ends what stays, last first."""
        for process in reversed(self.left):
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_SECONDS)

    def settle(self) -> None:
        """The guide says "within a second": a person is slower than a test."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self.left:
            try:
                health = httpx.get(f"http://127.0.0.1:{self.port}/api/health", timeout=PATIENCE_SECONDS).json()
                journeys = httpx.get(f"http://127.0.0.1:{self.port}/api/journeys", timeout=PATIENCE_SECONDS).json()["journeys"]
                if health["lag"] == 0 and all(one["status"] == "live" for one in journeys):
                    return
            except (httpx.TransportError, ValueError):
                pass  # not up yet
            if not self.answers:
                return  # a worker alone is not asked
            assert time.monotonic() < end, (self.directory / "left.log").read_text()[-3000:]
            time.sleep(0.1)


def shows(output: str, line: str) -> bool:
    """Whether *output* has the line: any spacing, and anything for `…`."""
    words = [re.escape(" ".join(part.split())) for part in line.split("…")]
    flat = [" ".join(one.split()) for one in output.splitlines()]
    pattern = re.compile(r".*".join(f" ?{part} ?" for part in words))
    return any(pattern.fullmatch(f"{one}") or pattern.fullmatch(f" {one} ") for one in flat)
