"""The command `waypost check`: runs the comparison with the oracle, shows its progress and what differs."""

from __future__ import annotations

import sys
import time
from concurrent.futures import BrokenExecutor
from typing import Any

import click
from rich.progress import Progress, TaskID
from rich.text import Text

from streams.settings import Settings

from .cli_send import bar
from .client import Client, with_api, with_broker
from .options import BROKER, Failed, err, json_flag, out, print_json, settings_flags, table

SHOWN = 50
LINE_SECONDS = 15.0  # between lines of progress, where there is no terminal to draw a bar on


class Share(click.ParamType):
    """A part of all persons: `1%` or `0.01`."""

    name = "share"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            self.fail(f"{value!r} is no part of all persons; write it as 1% or 0.01", param, ctx)
        return share


class Shown:
    """Shows what is being done, how far it is and when it is done: as a bar, or as lines where there is no terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._began = self._printed = time.monotonic()
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            for task in self._tasks.values():
                self._progress.remove_task(task)
            self._tasks = {what: self._progress.add_task(what, total=total or None)}
            self._what, self._began = what, now
        self._progress.update(self._tasks[what], completed=done, total=total or None)
        if not err.is_terminal and now - self._printed > LINE_SECONDS:
            self._printed = now
            err.print(
                what + remaining(done, total, now - self._began), markup=False, soft_wrap=True
            )


def remaining(done: int, total: int, seconds: float) -> str:
    """How far something is that began *seconds* ago, and how long it will take at this rate."""
    if not total:
        return ""
    left = f", about {seconds * (total - done) / done:,.0f} s left" if done else ""
    return f": {done:,} of {total:,}{left}"


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]…")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="How long to wait for the workers.",
)
@click.option(
    "--sample", "share", metavar="SHARE", type=Share(), default=1.0,
    help="Check a part of the persons, as 1% or 0.01, chosen by the hash of their ids; the output says what that proves.",
)  # fmt: skip
@settings_flags(*BROKER, "max_future_hours")
@json_flag
@with_api
def check(
    ids: tuple[str, ...],
    timeout: float,
    share: float,
    settings: Settings,
    api: Client,
    as_json: bool,
) -> None:
    """Reads the log with the naive oracle and compares every number, list and name with what the workers say.

    Without IDs: all journeys. Exit code 1 when anything differs.
    """
    from streams.reader import ReaderError

    from .check import data, lines, run

    settings = with_broker(settings, api)
    with bar(counted=True) as progress:
        try:
            report = run(settings, api, ids, timeout, Shown(progress), share=share)
        except ReaderError as error:
            raise Failed(str(error)) from None
        except OSError as error:
            raise Failed(
                f"the facts of the log cannot be kept: {error}; name a directory with room in TMPDIR"
            ) from None
        except BrokenExecutor:
            raise Failed(
                "a process of the check was ended, perhaps for its memory; check with --sample"
            ) from None
    if as_json:
        print_json(data(report))
    else:
        if report.differences:
            shown = table("journey", "group", "where", "oracle", "workers")
            for one in report.differences[:SHOWN]:
                shown.add_row(*map(Text, one))
            out.print(shown)
            if len(report.differences) > SHOWN:
                err.print(f"and {len(report.differences) - SHOWN:,} more; --json lists all of them")
        for line in lines(report):
            out.print(line, markup=False, soft_wrap=True)
    if report.differences:
        sys.exit(1)
