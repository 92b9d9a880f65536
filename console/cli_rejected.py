"""The command `waypost rejected`: shows what was rejected and why. Sends nothing."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from .client import Client, with_api
from .options import Commands, json_flag, out, print_json, table

SHOWN_CHARACTERS = 60


@click.group(cls=Commands)
def rejected() -> None:
    """Records that were rejected."""


@rejected.command(name="list")
@click.option("--limit", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="At most so many, the newest.")
@json_flag
@with_api
def list_(limit: int, api: Client, as_json: bool) -> None:
    """The newest rejected records, and why they were."""
    rows = [row for page in api.pages("/api/rejected", "rejected", {}, limit) for row in page["rejected"]]
    if as_json:
        print_json({"rejected": rows})
        return
    shown = table("rejected at", "from", "why", "value")
    for row in rows:
        place = f"{row['topic']}/{row['partition']}@{row['offset']}"
        shown.add_row(row["rejected_at"] or "", Text(place), Text(row["error"]), Text(_value(row)))
    out.print(shown if rows else "Nothing was rejected.")


def _value(row: dict[str, Any]) -> str:
    value = row["value"] if row["value"] is not None else f"bytes, base64: {row['value_base64']}" if row["value_base64"] else "null"
    short = value if len(value) <= SHOWN_CHARACTERS else value[: SHOWN_CHARACTERS - 1] + "…"
    return "".join(c if c.isprintable() else " " for c in short)
