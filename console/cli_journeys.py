"""The commands `waypost journey` and `waypost contact`: ask the HTTP API, print its answers. Compute nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import yaml
from rich.text import Text

from schemas.errors import Refused, shown
from schemas.journey import JourneyRefused, journey_json, parse_journey

from . import figures
from .client import ApiFailed, Client, segment, with_api
from .options import Commands, Failed, Misused, err, json_flag, out, print_json, table
from .written import from_text


@click.group(cls=Commands)
def journey() -> None:
    """Journeys: apply, look, delete."""


@journey.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=click.Path(allow_dash=True))
@json_flag
@with_api
def apply(files: tuple[str, ...], api: Client, as_json: bool) -> None:
    """Creates journeys from files (JSON or YAML; - for standard input), or makes new versions of them.

    A file holds one journey, or a list of them. All files are checked before anything is sent.
    """
    journeys = [found for name in dict.fromkeys(files) for found in _read(name)]
    answers, failed = [], 0
    for name, one in _checked(journeys):
        try:
            before = _version(api, one["id"])
            saved = api.call("PUT", f"/api/journeys/{segment(one['id'])}", json=one)
        except ApiFailed as error:
            failed += 1
            err.print(f"{name}: {error.message}", markup=False, soft_wrap=True)
            continue
        answers.append(saved)
        if not as_json:
            what = "created" if before is None else "unchanged" if saved["version"] == before else "new version"
            out.print(f"{saved['id']}  version {saved['version']}  {what}", markup=False, soft_wrap=True)
    if as_json:
        print_json(answers)
    if failed:
        raise Failed(f"{failed} of {len(journeys)} journeys were refused")


def _version(api: Client, id_: str) -> int | None:
    try:
        return int(api.call("GET", f"/api/journeys/{segment(id_)}")["version"])
    except ApiFailed as error:
        if error.status == 404:
            return None
        raise


def _read(name: str) -> list[tuple[str, Any]]:
    """`(where it stands, journey)` of the journeys that a file holds."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Misused(f"{name} cannot be read: {error}") from None
    try:
        found = from_text(text, name)
    except Refused as refused:
        raise Failed(f"{name}: {refused.message}") from None
    return [(name if len(found) == 1 else f"{name}, journey {number}", one) for number, one in enumerate(found, 1)]


def _checked(journeys: list[tuple[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The journeys as the API takes them. Raises `Failed` with every mistake in every one."""
    good, mistakes = [], []
    places: dict[str, str] = {}
    for name, one in journeys:
        try:
            said = _given(one, journey_json(parse_journey(one)))
        except JourneyRefused as refused:
            mistakes += [f"{name}: {error.message}" for error in refused.errors]
            continue
        before = places.setdefault(said["id"], name)
        if before != name:
            mistakes.append(f'{name}: journey: id "{said["id"]}" is that of the journey in {before} too; give each its own')
        good.append((name, said))
    if mistakes:
        raise Failed("nothing was applied:\n" + "\n".join(mistakes))
    return good


def _given(one: Any, said: dict[str, Any]) -> dict[str, Any]:
    """*said* without the flag that the file leaves to the API."""
    return said if "scheduled_recalculation" in one else {k: v for k, v in said.items() if k != "scheduled_recalculation"}


@journey.command(name="list")
@json_flag
@with_api
def list_(api: Client, as_json: bool) -> None:
    """All journeys."""
    journeys = api.call("GET", "/api/journeys")["journeys"]
    if as_json:
        print_json(journeys)
        return
    shown_ = table("journey", "name", "stages", "version", "saved", "results", right=("stages", "version"))
    for one in journeys:
        status = one["status"] or "unknown"
        shown_.add_row(one["id"], _literal(one["name"]), str(len(one["stages"])), str(one["version"]), one["saved_at"], status)
    out.print(shown_ if journeys else "No journeys yet. Apply one: waypost journey apply FILE")


@journey.command()
@click.argument("id_", metavar="ID")
@json_flag
@with_api
def show(id_: str, api: Client, as_json: bool) -> None:
    """One journey, as a file that `journey apply` takes."""
    found = api.call("GET", f"/api/journeys/{segment(id_)}")
    if as_json:
        print_json(found)
    else:
        click.echo(yaml.safe_dump(found, sort_keys=False, allow_unicode=True), nl=False)


@journey.command()
@click.argument("id_", metavar="ID")
@click.option("--group", metavar="GROUP", help="Only contacts of this group.")
@click.option("--version", metavar="N", type=click.IntRange(1), help="Of this version.  [default: the newest complete one]")
@json_flag
@with_api
def results(id_: str, group: str | None, version: int | None, api: Client, as_json: bool) -> None:
    """The numbers of every stage."""
    found = api.call("GET", f"/api/journeys/{segment(id_)}/results", query={"group": group, "version": version})
    if as_json:
        print_json(found)
    else:
        out.print(figures.funnel(found))
        out.print(figures.status(found), markup=False, soft_wrap=True)


@journey.command()
@click.argument("id_", metavar="ID")
@click.confirmation_option("--yes", prompt="The journey and its results go. Delete it?", help="Do not ask.")
@with_api
def delete(id_: str, api: Client) -> None:
    """Deletes a journey and its results."""
    api.call("DELETE", f"/api/journeys/{segment(id_)}")
    out.print(f"{id_} deleted", markup=False)


@journey.command()
@click.argument("id_", metavar="ID")
@click.option("--stage", required=True, metavar="N", type=click.IntRange(1), help="Which stage, counted from 1.")
@click.option("--dropped-off", is_flag=True, help="Those who reached it and not the next, instead of all who reached it.")
@click.option("--group", metavar="GROUP", help="Only contacts of this group.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="At most so many.  [default: all]")
@json_flag
@with_api
def contacts(id_: str, stage: int, dropped_off: bool, group: str | None, limit: int | None, api: Client, as_json: bool) -> None:
    """The contacts behind a number of the results."""
    query = {"who": "dropped_off" if dropped_off else "converted", "group": group}
    total: int | None = 0
    rows: list[dict[str, Any]] = []
    for page in api.pages(f"/api/journeys/{segment(id_)}/stages/{stage}/contacts", "contacts", query, limit):
        total = page["total"]
        rows += page["contacts"]
    if as_json:
        print_json({"total": total, "contacts": rows})
        return
    listed = table("contact", "reached", "groups")
    for row in rows:
        listed.add_row(_literal(row["contact_id"]), row["reached_at"], _literal(", ".join(row["groups"])))
    out.print(listed)
    out.print(f"{figures.number(len(rows))} of {figures.number(total)}")


@click.group(cls=Commands)
def contact() -> None:
    """One contact: show, erase."""


@contact.command(name="show")
@click.argument("id_", metavar="ID")
@json_flag
@with_api
def show_contact(id_: str, api: Client, as_json: bool) -> None:
    """Who a contact is, where it stands on every journey, by which activities, and what is missing."""
    found = api.call("GET", f"/api/contacts/{segment(id_)}")
    if as_json:
        print_json(found)
    else:
        out.print(figures.contact(found))


@contact.command()
@click.argument("id_", metavar="ID")
@click.confirmation_option("--yes", prompt="Everything this contact and its aliases did until now goes for good. Erase?", help="Do not ask.")
@with_api
def erase(id_: str, api: Client) -> None:
    """Erases the person of a contact: all that happened until now, of all its contacts."""
    api.call("DELETE", f"/api/contacts/{segment(id_)}")
    out.print(f"{shown(id_)} is being erased", markup=False)


def _literal(text: str) -> Text:
    """*text* as it is, in a table that would read it as markup."""
    return Text(text)
