"""The command line `waypost` (contract, section 5): parses, calls, prints. Every command's work is done elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

import click

from streams.settings import TABLE, Settings

from .cli_check import check
from .cli_journeys import contact, journey
from .cli_recalculations import recalculate, recalculations
from .cli_rejected import rejected
from .cli_send import send
from .cli_users import user
from .options import (
    CONSOLE,
    RECALCULATOR,
    TOPICS,
    UP,
    WORKER,
    Commands,
    Failed,
    connectable,
    json_flag,
    out,
    print_json,
    settings_flags,
    table,
    writable,
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="waypost", message="waypost %(version)s")
def cli() -> None:
    """Where contacts stand on their customer journeys: current within a second, exact in any order of arrival."""


@cli.command()
@click.option("--exit", "exit_after", is_flag=True, help="End when the results are shown, instead of staying up.")
@settings_flags(*UP, also={"--port": "console_port", "--data": "data_dir"})
def demo(settings: Settings, exit_after: bool) -> None:
    """Plays a shop's events through everything, and shows the results and where to look.

    With --broker it plays on your Kafka, in topics of its own, which it deletes in the end.
    """
    from .demo import run_demo

    if settings.origin_of("data_dir") != "default":
        writable(settings)

    log_to(settings, sys.stderr, "WARNING")
    reason = run_demo(settings, out, exit_after)
    if reason is not None:
        raise Failed(reason)


@cli.command()
@settings_flags(*UP, also={"--port": "console_port", "--data": "data_dir"})
def up(settings: Settings) -> None:
    """Everything in one command: topics, a worker, the console; without --broker, a broker in memory too."""
    from .supervisor import run_up

    writable(settings)

    log_to(settings, sys.stderr, "WARNING")
    reason = run_up(settings, out)
    if reason is not None:
        raise Failed(reason)


@cli.command()
@settings_flags(*WORKER)
def worker(settings: Settings) -> None:
    """One worker of the group. Start as many as you have machines; partitions are shared out by themselves."""
    writable(connectable(settings))
    from agents.worker import main as run

    from .topics import require

    log_to(settings, sys.stderr)
    require(settings)
    sys.exit(run(settings))


@cli.command()
@settings_flags(*RECALCULATOR)
def recalculator(settings: Settings) -> None:
    """One recalculation job: reads the log again when asked. Start as many as you like; they share the log's partitions."""
    connectable(settings)
    from agents.recalculator import main as run

    from .topics import require

    log_to(settings, sys.stderr)
    require(settings)
    sys.exit(run(settings))


@cli.command()
@settings_flags(*CONSOLE, also={"--port": "console_port"})
def console(settings: Settings) -> None:
    """The HTTP API and the pages, alone. Stateless: run as many as you like."""
    connectable(settings)
    from .server import run
    from .topics import require

    log_to(settings, sys.stderr)
    require(settings)
    sys.exit(run(settings))


@cli.command()
@settings_flags(*(spec.name for spec in TABLE if not spec.secret))
@json_flag
def config(settings: Settings, as_json: bool) -> None:
    """Which settings are in force, and where each value comes from. Secrets are masked."""
    rows = settings.rows()
    if as_json:
        print_json([{"name": row.name, "value": row.value, "origin": row.origin} for row in rows])
        return
    shown = table("setting", "value", "from")
    for row in rows:
        shown.add_row(row.name, row.value, row.origin)
    out.print(shown)


@cli.command()
@click.option("--check", "only_check", is_flag=True, help="Change nothing; exit 1 when something is not as it should be.")
@settings_flags(*TOPICS)
@json_flag
def topics(settings: Settings, only_check: bool, as_json: bool) -> None:
    """Creates the topics that are missing, or checks all of them."""
    connectable(settings)
    from .topics import report

    report(settings, only_check, as_json)


cli.add_command(journey)
cli.add_command(contact)
cli.add_command(send)
cli.add_command(check)
cli.add_command(rejected)
cli.add_command(recalculate)
cli.add_command(recalculations)
cli.add_command(user)


def log_to(settings: Settings, stream: TextIO, least: str | None = None) -> None:
    """Log lines as the settings say; *least*: the level where they say nothing."""
    from .logs import configure

    configure(settings, stream, least)


def main() -> None:
    """The entry point of `waypost`."""
    try:
        cli(standalone_mode=True)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


