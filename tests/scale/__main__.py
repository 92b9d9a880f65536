"""`python -m tests.scale` plays the campaign at the size of a user's day, on Apache Kafka and on the embedded broker; `--size short` as CI does."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from agents.worker import compile_loops
from tests.bench.ground import ROOT
from tests.bench.report import as_json, machine, show
from tests.scale.campaign import CASES, SIZES, run

BROKERS = ("kafka", "embedded")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--size", type=click.Choice(list(SIZES)), default="long", show_default=True)
@click.option(
    "--broker", "kinds", type=click.Choice(BROKERS), multiple=True,
    help="On this one only; can be repeated.  [default: both]",
)  # fmt: skip
@click.option(
    "--case", "cases", type=click.Choice(list(CASES)), multiple=True,
    help="Only these; can be repeated. All others need the case load.",
)  # fmt: skip
@click.option(
    "--minutes", type=float, help="How long the site is used, instead of the size's time."
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    help="Writes the figures to this file too.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    help="Works in this directory, and leaves it (logs, data).",
)
def main(
    size: str, kinds: tuple[str, ...], cases: tuple[str, ...], minutes: float | None,
    json_file: Path | None, keep: Path | None,
) -> None:  # fmt: skip
    """Sends the traffic of a user's day, does meanwhile what users and operators do, and verifies every number: by formula and by the oracle.

    Exit code 1: a number was wrong. A promise that is missed is shown, and is no error.
    """
    console = Console(highlight=False, **({} if sys.stdout.isatty() else {"width": 180}))
    chosen = SIZES[size] if minutes is None else replace(SIZES[size], seconds=minutes * 60)
    about, figures, wrong = machine(ROOT), {}, []
    compile_loops()
    directory = keep or Path(tempfile.mkdtemp(prefix="waypost-scale-"))
    for kind in kinds or BROKERS:
        began = time.monotonic()

        def say(text: str, kind: str = kind, began: float = began) -> None:
            console.print(f"{kind}, {time.monotonic() - began:.0f} s: {text}", markup=False)

        flags = [f"--size {size}", f"--broker {kind}", *(f"--case '{case}'" for case in cases)]
        flags += [] if minutes is None else [f"--minutes {minutes:g}"]
        settings = f"python -m tests.scale {' '.join(flags)}"
        rows, error = run(kind, directory / kind, chosen, say, cases)
        show(console, rows, about, settings)
        figures[kind] = as_json(rows, about, settings)
        if error is not None:
            wrong.append(f"{kind}: {error}")
            text = f"WRONG: {kind}: {error}\nlogs and data are left in {directory}"
            console.print(text, markup=False, style="red")
    if keep is None and not wrong:
        shutil.rmtree(directory)
    if json_file is not None:
        json_file.write_text(json.dumps({"brokers": figures, "wrong": wrong}, indent=1) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
