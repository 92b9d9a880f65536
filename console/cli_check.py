"""The command `waypost check`: runs the comparison with the oracle, shows its progress and what differs."""

from __future__ import annotations

import sys

import click
from rich.text import Text

from streams.settings import Settings

from .cli_send import bar
from .client import Client, with_api, with_broker
from .options import BROKER, Failed, err, json_flag, out, print_json, settings_flags, table

SHOWN = 50


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]…")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(0), default=60.0, show_default=True, help="How long to wait for the workers.")
@settings_flags(*BROKER, "max_future_hours")
@json_flag
@with_api
def check(ids: tuple[str, ...], timeout: float, settings: Settings, api: Client, as_json: bool) -> None:
    """Reads the log with the naive oracle and compares every number, list and name with what the workers say.

    Without IDs: all journeys. Exit code 1 when anything differs.
    """
    from streams.reader import ReaderError

    from .check import lines, run

    settings = with_broker(settings, api)
    with bar(counted=True) as progress:
        task = progress.add_task("waiting for the workers", total=None)

        def told(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total or None)

        try:
            report = run(settings, api, ids, timeout, told)
        except ReaderError as error:
            raise Failed(str(error)) from None
    if as_json:
        print_json(
            {
                "journeys": report.journeys,
                "records": report.records,
                "rejected": report.rejected,
                "compared": report.compared,
                "differences": [one._asdict() for one in report.differences],
                "notes": report.notes,
            }
        )
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
