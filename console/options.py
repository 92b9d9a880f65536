"""Options: the flags that commands share, made from the table of settings, and how commands print and fail. Runs no command."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from streams.settings import TABLE, Settings, SettingsError, flag_name

BROKER = (
    "broker", "security_protocol", "sasl_mechanism", "sasl_username", "ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname",
    "topic_prefix",
)  # fmt: skip
TOPICS = (
    *BROKER, "partitions", "replication_factor", "activities_retention_ms", "stage_changes_retention_ms", "rejected_retention_ms",
    "audit_retention_ms",
)  # fmt: skip
LOGS = ("log_level", "log_format")
HTTP = ("http_connections", "http_connections_per_address", "http_header_seconds", "http_body_seconds")
WORKER = (
    *BROKER, "partitions", "group", "group_instance_id", "session_timeout_seconds", "heartbeat_seconds", "standby_replicas", "data_dir", "memory_mb",
    "background_share",
    *HTTP,
    "worker_host", "worker_port", "worker_advertised_url", "max_future_hours", "max_merges", "totals_interval_seconds", "recalculation_schedule",
    "recalculation_time_zone", "evidence_retention_days", *LOGS,
)  # fmt: skip
CONSOLE = (
    *BROKER, "partitions", "group", "workers", "console_host", "console_port", *HTTP, "live_streams", "live_streams_per_session", "trusted_proxies",
    "users_file",
    "oidc_issuer", "oidc_client_id", "oidc_role_claim", "session_hours", "max_future_hours",
    "recalculation_schedule", "recalculation_time_zone", *LOGS,
)  # fmt: skip
RECALCULATOR = (
    "background_share",
    *BROKER, "partitions", "group", "group_instance_id", "session_timeout_seconds", "heartbeat_seconds", "max_future_hours",
    "recalculation_events_per_second", *LOGS,
)  # fmt: skip
UP = tuple(name for name in dict.fromkeys((*TOPICS, *CONSOLE, *WORKER, *RECALCULATOR)) if name != "workers")

_SPECS = {spec.name: spec for spec in TABLE}
F = TypeVar("F", bound=Callable[..., Any])

FILE_COLUMNS = 120  # where output is no terminal, and so has no width


def _console(stderr: bool = False) -> Console:
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    # With FORCE_COLOR, as CI systems set it, rich takes a file for a terminal, and a dumb one for 80 columns whatever COLUMNS says
    made = Console(stderr=stderr, highlight=False, force_terminal=False if dumb and not terminal else None)
    if not terminal and "COLUMNS" not in os.environ:
        made.width = FILE_COLUMNS
    return made


out = _console()
err = _console(stderr=True)


class Commands(click.Group):
    """Lists commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def settings_flags(*names: str, also: dict[str, str] | None = None) -> Callable[[F], F]:
    """A decorator: flags for the settings *names*; the command gets `settings`, loaded. *also*: shorter flags, flag -> setting.

    Secrets have no flags: other users of the machine can read command lines.
    """

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> Any:
            flags = {name: kwargs.pop("set_" + name) for name in names}
            return command(*args, settings=load(flags), **kwargs)

        shorter = {setting: flag for flag, setting in (also or {}).items()}
        for name in reversed(names):
            spec = _SPECS[name]
            default = f"  [default: {spec.default}]" if spec.default else ""
            declared = [shorter[name]] if name in shorter else []
            run = click.option(
                *declared, flag_name(name), f"set_{name}", metavar=_metavar(spec.type), help=f"{_plain(spec.description)}{default}"
            )(run)
        return run  # type: ignore[return-value]

    return decorate


def load(flags: dict[str, Any]) -> Settings:
    """The settings in force. What is wrong with them is wrong use (exit code 2)."""
    try:
        return Settings.load(flags)
    except SettingsError as error:
        raise Misused(str(error)) from None


def connectable(settings: Settings) -> Settings:
    """*settings*. Fails early, with the way out, when they name no broker."""
    try:
        settings.bootstrap  # noqa: B018 it raises
    except SettingsError as error:
        raise Misused(str(error)) from None
    return settings


def writable(settings: Settings) -> Settings:
    """Return *settings* if files can be written in their `data_dir`, which is made if missing. Raise Failed with the reason if not."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.data_dir):
            pass
    except OSError as error:
        reason = "it is not a directory" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise Failed(
            f"data_dir {settings.data_dir} ({settings.origin_of('data_dir')}) cannot be used: {reason}; "
            "name a directory that this process may write"
        ) from None
    return settings


def _metavar(kind: str) -> str:
    words = {"text": "TEXT", "integer": "N", "number": "N", "path": "PATH", "list of texts": "LIST", "true or false": "true|false"}
    return words.get(kind) or kind.removeprefix("one of ").replace(", ", "|")


def _plain(description: str) -> str:
    return description.replace("`", "")


class Misused(click.ClickException):
    """Wrong use: exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        err.print("[red]Wrong use:[/red]", end=" ")
        err.print(self.message, markup=False, soft_wrap=True)


class Failed(click.ClickException):
    """It did not work: exit code 1."""

    def show(self, file: Any = None) -> None:
        err.print("[red]Failed:[/red]", end=" ")
        err.print(self.message, markup=False, soft_wrap=True)


def json_flag(command: F) -> F:
    """The flag `--json` (parameter `as_json`) of every command that prints data."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(*columns: str, title: str | None = None, right: tuple[str, ...] = ()) -> Table:
    """A table as all commands print them; *right*: columns of figures."""
    made = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), title_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made
