"""Bench: measures speed and memory on Apache Kafka, verifying every number on the way, and says against what: `python -m tests.bench`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from agents.worker import compile_loops
from tests.bench import cases as main_cases
from tests.bench import growth, pages, recalculation
from tests.bench.cases import Bench
from tests.bench.ground import ROOT, WrongAnswer
from tests.bench.report import Row, as_json, machine, show
from tests.support.kafka import KafkaBroker, KafkaUnavailable

HEAP_MB = 1024
COMPILED = "compiled code, once in a checkout"


class Bars:
    """A progress bar for each thing that is done, in the order in which they begin."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: float, total: float) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)


CASES = {**main_cases.CASES, **recalculation.CASES, **pages.CASES, **growth.CASES}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("cases", nargs=-1, type=click.Choice(list(CASES)))
@click.option("--scale", default=1.0, show_default=True, help="Part of the data: 0.1 is a tenth of the activities and of the contacts.")
@click.option("--repeat", default=1, show_default=True, help="How often throughput and recovery are measured; the median counts.")
@click.option("--seconds", default=60.0, show_default=True, help="How long the case latency sends.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Writes the figures to this file too.")
@click.option("--flames", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Draws flame graphs of the cases sparse and dense into this directory (py-spy); they take a few percent of the speed.")
@click.option("--keep", type=click.Path(path_type=Path), help="Works in this directory, and leaves it (logs, data).")
def main(cases: tuple[str, ...], scale: float, repeat: int, seconds: float, json_file: Path | None, flames: Path | None, keep: Path | None) -> None:
    """Measures CASES (all of them without any). Needs Java and Maven for Apache Kafka; takes some minutes.

    Exit code 1: a number was wrong. A promise that is missed is shown, and is no error.
    """
    console = Console(highlight=False, **({} if sys.stdout.isatty() else {"width": 180}))
    chosen = [name for name in CASES if not cases or name in cases]
    about = machine(ROOT)
    rows: list[Row] = []
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="waypost-bench-") as temporary:
        directory = keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        broker = KafkaBroker(directory / "kafka", heap_mb=HEAP_MB, lasting=True)
        columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        try:
            with Progress(*columns, console=console) as progress:
                bars = Bars(progress)
                bars(COMPILED, 0, 1)
                compile_loops()
                bars(COMPILED, 1, 1)
                bench = Bench(broker.start(), directory, scale, repeat, seconds, progress=bars, flames=flames)
                for name in chosen:
                    try:
                        rows += CASES[name](bench)
                    except Exception as reason:  # the other cases are worth measuring yet
                        wrong.append(f"{name}: {reason}")
                        if not isinstance(reason, WrongAnswer):
                            console.print_exception()
        except KafkaUnavailable as reason:
            raise click.ClickException(str(reason)) from None
        finally:
            broker.kill()
    settings = f"python -m tests.bench {' '.join(cases)} --scale {scale:g} --repeat {repeat}".replace("  ", " ")
    show(console, rows, about, settings)
    if json_file is not None:
        json_file.write_text(json.dumps({**as_json(rows, about, settings), "wrong": wrong}, indent=1) + "\n")
    for reason in wrong:
        console.print(f"WRONG: {reason}", markup=False, style="red")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
