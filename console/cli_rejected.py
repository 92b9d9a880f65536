"""The commands `waypost rejected`: show what was rejected and why, and send it again. The API reads and sends."""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.text import Text

from .cli_send import bar
from .client import Client, with_api
from .options import Commands, Failed, Misused, err, json_flag, out, print_json, table

SHOWN_CHARACTERS = 60
AT_ONCE = 200  # records of one request
SHOWN_REFUSED = 100
MOST_BYTES = 16 * 1024 * 1024  # of what is mended in one request
SOURCES = ("activities", "contact-merges", "contacts", "journeys", "handoffs", "rebuilt-evidence")
MENDED = ("id", "key", "key_base64", "value", "value_base64")
F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=Commands)
def rejected() -> None:
    """Records that were rejected."""


def _filters(command: F) -> F:
    """A decorator: flags that say which records are meant; the command gets them as `filters`."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        filters = {name: kwargs.pop(name) for name in ("topic", "error", "since", "until")}
        return command(*args, filters=filters, **kwargs)

    for option in (
        click.option("--until", metavar="TIME", help="Only those rejected before this time (RFC 3339)."),
        click.option("--since", metavar="TIME", help="Only those rejected at or after this time (RFC 3339)."),
        click.option("--error", metavar="TEXT", help="Only those whose reason contains this; case is ignored."),
        click.option("--topic", type=click.Choice(SOURCES), help="Only those that came from this topic."),
    ):
        run = option(run)
    return run  # type: ignore[return-value]


@rejected.command(name="list")
@click.option("--limit", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="At most so many, the newest.")
@_filters
@json_flag
@with_api
def list_(limit: int, filters: dict[str, str | None], api: Client, as_json: bool) -> None:
    """The newest rejected records, and why they were.

    With --json as they are, in a form that `waypost rejected resend --mended` takes back: redirect it into a file and mend it there.
    """
    rows = [*_rows(api, filters, limit)]
    if as_json:
        print_json({"rejected": rows})
        return
    shown = table("id", "rejected at", "from", "why", "value")
    for row in rows:
        shown.add_row(row["id"], row["rejected_at"] or "", Text(_place(row)), Text(row["error"]), Text(_value(row)))
    out.print(shown if rows else "Nothing was rejected." if not any(filters.values()) else "Nothing of that was rejected.")


@rejected.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="All that are still on the rejected topic.")
@click.option("--mended", metavar="FILE", type=click.Path(allow_dash=True), help="Those in this file, as it says; - for standard input.")
@_filters
@click.option("--dry-run", is_flag=True, help="Tell what would be sent, and send nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_flag
@with_api
def resend(
    ids: tuple[str, ...], all_: bool, mended: str | None, filters: dict[str, str | None], dry_run: bool, yes: bool, api: Client, as_json: bool
) -> None:
    """Sends rejected records once more to the topics they came from.

    Name them by ID, as the list shows it (or by TOPIC/PARTITION@OFFSET, where they came from), choose them by --topic, --error, --since and --until,
    take --all, or give a --mended file: what `waypost rejected list --json` printed, with `value` (or `value_base64`) and `key` as they should be.

    What is sent as it was is rejected again if it is still bad. To repeat a resend is safe: a fact that is there twice counts once; what has no id is
    known by its content. Exit code 1 when some could not be sent.
    """
    ways = (bool(ids), any(filters.values()), all_, mended is not None)
    if sum(ways) != 1:
        raise Misused("say which: IDs, or --topic, --error, --since, --until, or --all, or --mended FILE; one of these ways")
    if mended is not None:
        records = _mended(mended)
        where = Counter(str(one.get("topic") or "where they came from") for one in records)
    else:
        rows = [*(_named(api, ids) if ids else _once(_rows(api, filters, None)))]
        records = [{"id": row["id"]} for row in rows]
        where = Counter(str(row["topic"]) for row in rows)
    if not records:
        if as_json:
            print_json({"sent": [], "refused": []})
        else:
            out.print("Nothing to send: nothing of that was rejected.")
        return
    said = f"{_many(len(records))} to " + ", ".join(f"{topic} ({count:,})" for topic, count in sorted(where.items()))
    if dry_run:
        if as_json:
            print_json({"would_send": records})
        else:
            out.print(f"Would send {said}", markup=False, soft_wrap=True)
        return
    if not yes:
        if mended == "-" or not sys.stdin.isatty():
            raise Misused(f"this sends {said}; say --yes where nobody can be asked")
        click.confirm(f"Send {said} again?", abort=True, err=True)
    _sent(api, records, as_json)


def _sent(api: Client, records: list[dict[str, Any]], as_json: bool) -> None:
    """Sends *records* and tells of it. Exit code 1 when some were refused."""
    sent: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    with bar(counted=True) as progress:
        task = progress.add_task("sending again", total=len(records))
        for start, some in _requests(records):
            try:
                answer = api.call("POST", "/api/rejected/resend", json={"records": some})
            except Failed as failure:
                done = f"{len(sent):,} of {_many(len(records))} were sent before: run it again, nothing counts twice" if sent else "nothing was sent"
                raise Failed(f"{failure.message}; {done}") from None
            sent += [{**one, "index": one["index"] + start} for one in answer["sent"]]
            refused += [{**one, "index": one["index"] + start} for one in answer["refused"]]
            progress.advance(task, len(some))
    if as_json:
        print_json({"sent": sent, "refused": [{**one, "id": records[one["index"]]["id"]} for one in refused]})
    else:
        for one in refused[:SHOWN_REFUSED]:
            err.print(f"{records[one['index']]['id']}: {one['error']['message']}", markup=False, soft_wrap=True)
        if len(refused) > SHOWN_REFUSED:
            err.print(f"and {len(refused) - SHOWN_REFUSED:,} more; --json lists all of them")
        out.print(f"{_many(len(sent))} sent again, {len(refused):,} refused")
    if refused:
        sys.exit(1)


def _requests(records: list[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(place of the first, records) of each request; what is mended may be large."""
    start, size = 0, 0
    some: list[dict[str, Any]] = []
    for place, one in enumerate(records):
        mine = {name: one[name] for name in MENDED if name in one}
        bytes_ = sum(len(value.encode("utf-8", "surrogatepass")) for value in mine.values() if value is not None)
        if some and (len(some) == AT_ONCE or size + bytes_ > MOST_BYTES):
            yield start, some
            start, some, size = place, [], 0
        some.append(mine)
        size += bytes_
    yield start, some


def _rows(api: Client, filters: dict[str, str | None], limit: int | None) -> Iterator[dict[str, Any]]:
    for page in api.pages("/api/rejected", "rejected", filters, limit):
        yield from page["rejected"]


def _once(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A record that was rejected twice (after a crash) once, the newest."""
    seen: set[str] = set()
    for row in rows:
        if _place(row) not in seen:
            seen.add(_place(row))
            yield row


def _named(api: Client, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The rows that *names* mean: ids go to the API as they are, which says what is wrong with them; places are looked for. Raises `Failed`."""
    left = {name for name in names if "@" in name}
    found: dict[str, dict[str, Any]] = {}
    for row in _rows(api, {}, None) if left else ():
        if _place(row) in left:
            left.discard(_place(row))
            found[_place(row)] = row
        if not left:
            break
    if left:
        raise Failed(f"nothing was rejected from {', '.join(sorted(left))}, or retention took it; see `waypost rejected list`")
    for name in dict.fromkeys(names):
        yield found.get(name) or {"id": name, "topic": "where they came from"}


def _mended(file: str) -> list[dict[str, Any]]:
    """The records of a file of mended ones: as the list prints them, or one object a line. Raises `Misused`."""
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise Misused(f"{file} cannot be read ({error.strerror}); name a file that `waypost rejected list --json` made") from None
    try:
        text = raw.decode()
        try:
            said = json.loads(text)
        except json.JSONDecodeError:
            said = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise Misused(f"{file} is not JSON ({error}); give what `waypost rejected list --json` printed, mended") from None
    rows = said.get("rejected", [said]) if isinstance(said, dict) else said
    if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in rows):
        raise Misused(f"{file} is not what `waypost rejected list --json` prints: every record needs its id")
    for row in rows:
        for name in MENDED[1:]:
            if not isinstance(row.get(name), str | None):
                raise Misused(f"{file}: record {row['id']}: {name} is not a text; a value that is JSON goes in as the text of it")
    return rows


def _many(count: int) -> str:
    return "1 record" if count == 1 else f"{count:,} records"


def _place(row: dict[str, Any]) -> str:
    return f"{row['topic']}/{row['partition']}@{row['offset']}"


def _value(row: dict[str, Any]) -> str:
    value = row["value"] if row["value"] is not None else f"bytes, base64: {row['value_base64']}" if row["value_base64"] else "null"
    short = value if len(value) <= SHOWN_CHARACTERS else value[: SHOWN_CHARACTERS - 1] + "…"
    return "".join(c if c.isprintable() else " " for c in short)
