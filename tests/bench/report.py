"""Report: what was measured, against what, on which machine, at which commit; as a table for people and as JSON. Measures nothing."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests.support import kafka

LIBRARIES = ("waypost", "faust-streaming", "aiokafka", "confluent-kafka", "rocksdict", "msgspec", "numpy")


@dataclass(frozen=True)
class Row:
    """One figure. `at_least`, `at_most`: the promise, if there is one; `against`: what it was measured against, or how. `aim`: how far it shall get
    in the end, which nobody was promised: at least that, or at most where less is better (`less`, or a promise of at most)."""

    case: str
    what: str
    value: float
    unit: str
    against: str = ""
    at_least: float | None = None
    at_most: float | None = None
    aim: float | None = None
    less: bool = False

    @property
    def aimed(self) -> str:
        """The aim, and whether it is reached."""
        if self.aim is None:
            return ""
        less = self.less or self.at_most is not None
        reached = self.value <= self.aim if less else self.value >= self.aim
        return f"{'≤' if less else '≥'} {number(self.aim)}{' reached' if reached else ''}"

    @property
    def kept(self) -> bool | None:
        """Whether the promise is kept; None where nothing is promised."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return None if self.at_most is None else self.value <= self.at_most

    @property
    def promise(self) -> str:
        if self.at_least is not None:
            return f"≥ {number(self.at_least)}"
        return "" if self.at_most is None else f"≤ {number(self.at_most)}"


def number(value: float) -> str:
    """A figure for people: three digits or more, thousands apart."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def machine(root: Path) -> dict[str, str]:
    """Where and with what was measured: the machine, the versions, the commit, and how busy the machine was before."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    java = subprocess.run([kafka.java(), "-version"], capture_output=True, text=True, check=False).stderr.splitlines()
    cores, memory_gib = len(psutil.Process().cpu_affinity() or ()), psutil.virtual_memory().total / 2**30
    return {
        "commit": _commit(root),
        "machine": f"{cores} of {os.cpu_count()} cores ({cpu}), {memory_gib:.0f} GiB, {platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.1f} processes wanted to run in the minute before",
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]),
        "broker": f"Apache Kafka {kafka.version()}, one node on the same cores, {java[0] if java else 'Java'}",
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


def _commit(root: Path) -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") or "not a git checkout"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "schemas", "state", "streams", "agents", "console")
    return f"{commit}, with changes that are not committed" if changed else commit


def show(out: Console, rows: Sequence[Row], about: dict[str, str], settings: str) -> None:
    """Prints the table at the end."""
    table = Table("case", "measured", "value", "promised", "", "aim", "against", title="Waypost: what it costs", title_justify="left")
    for column in (2, 3):
        table.columns[column].justify = "right"
    before = ""
    for row in rows:
        if row.case != before and before:
            table.add_section()
        verdict = {None: "", True: "[green]kept[/]", False: "[red]missed[/]"}[row.kept]
        case, value = row.case if row.case != before else "", f"{number(row.value)} {row.unit}"
        table.add_row(case, row.what, value, row.promise, verdict, row.aimed, row.against)
        before = row.case
    out.print(table)
    for name, said in {**about, "measured with": settings}.items():
        out.print(f"[bold]{name}[/]: {said}", soft_wrap=True)


def as_json(rows: Sequence[Row], about: dict[str, str], settings: str) -> dict[str, Any]:
    """The same for programs."""
    return {**about, "measured with": settings, "rows": [{**asdict(row), "kept": row.kept} for row in rows]}
