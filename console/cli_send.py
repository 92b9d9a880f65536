"""The command `waypost send`: a file of facts to its topic, with a progress bar and the list of what was refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from streams.settings import Settings

from .client import with_broker
from .facts import KINDS
from .options import BROKER, Failed, Misused, err, json_flag, out, print_json, settings_flags

SHOWN_BAD = 100


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@settings_flags(*BROKER, "max_future_hours")
@json_flag
def send(kind: str, file: str, settings: Settings, as_json: bool) -> None:
    """Sends a file of activities, merges or contacts (profiles): JSON lines, - for standard input.

    Bad lines are listed, the good ones sent; exit code 1 when there were bad ones.
    """
    from .sending import CannotSend, Sender, lines, partition_count

    with _opened(file) as (source, size):
        settings = with_broker(settings)
        try:
            sender = Sender(settings, KINDS[kind], partition_count(settings, KINDS[kind]))
        except CannotSend as error:
            raise Failed(str(error)) from None
        with bar() as progress:
            task = progress.add_task(f"sending {kind}", total=size or None)
            for number, line, read in lines(source):
                sender.line(number, line)
                progress.advance(task, read)
            sender.finish(lambda left: progress.update(task, description=f"waiting for the broker, {left:,} on their way"))
            progress.update(task, completed=size or None, description=f"sent {sender.sent:,} {kind}")
    bad = [{"line": b.line, "error": {"code": b.error.code, "message": b.error.message, "path": b.error.path}} for b in sender.bad]
    if as_json:
        print_json({"sent": sender.sent, "refused": bad})
    else:
        for one in sender.bad[:SHOWN_BAD]:
            err.print(f"line {one.line}: {one.error.message}", markup=False, soft_wrap=True)
        if len(bad) > SHOWN_BAD:
            err.print(f"and {len(bad) - SHOWN_BAD:,} more; --json lists all of them")
        out.print(f"{sender.sent:,} {kind} sent, {len(bad):,} refused")
    if bad:
        sys.exit(1)


@contextmanager
def _opened(file: str) -> Iterator[tuple[BinaryIO, int]]:
    if file == "-":
        yield sys.stdin.buffer, 0
        return
    path = Path(file)
    if not path.exists() or path.is_dir() or not os.access(path, os.R_OK):
        raise Misused(f"{file} cannot be read; name a file of JSON lines, or - for standard input")
    with path.open("rb") as source:
        yield source, path.stat().st_size


@contextmanager
def bar(counted: bool = False) -> Iterator[Progress]:
    """A progress bar on standard error, so that standard output is only data; gone when there is no terminal."""
    columns = [TextColumn("{task.description}"), BarColumn(), *([MofNCompleteColumn()] if counted else []), TimeRemainingColumn()]
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        yield progress
