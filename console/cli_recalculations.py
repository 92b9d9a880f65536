"""The commands `waypost recalculate` and `waypost recalculations`: ask the HTTP API, show how far it is. Compute nothing."""

from __future__ import annotations

import signal
import threading
from typing import Any

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from . import figures
from .client import Client, segment, with_api
from .options import Failed, Misused, err, json_flag, out, print_json, table

LOOK_SECONDS = 0.3
OVER = ("live", "cancelled", "failed")


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID…]")
@click.option("--all", "all_", is_flag=True, help="All journeys.")
@click.option("--events-per-second", metavar="N", type=click.FloatRange(min=1), help="Read at most so many activities a second.")
@click.option("--no-wait", is_flag=True, help="Start it and end; `waypost recalculations` tells how it goes.")
@json_flag
@with_api
def recalculate(ids: tuple[str, ...], all_: bool, events_per_second: float | None, no_wait: bool, api: Client, as_json: bool) -> None:
    """Builds the evidence of journeys anew from the log, beside the living, and switches when it is complete.

    Where the rebuilt results differ too much from the visible ones, this ends with the numbers of both, and
    `waypost recalculations --confirm` makes them visible. Ctrl-C leaves it running. Exit code 0: it is live (or, with --no-wait, planned).
    """
    if bool(ids) == all_:
        raise Misused("name the journeys to recalculate, or say --all")
    log_from = api.call("GET", "/api/recalculations", query={"limit": 1})["log_from"]
    if not as_json:
        reach = "The log holds no activities." if log_from is None else f"The log reaches back to {log_from}; what happened before counts no longer."
        err.print(reach, markup=False, soft_wrap=True)
    started = api.call("POST", "/api/recalculations", json={"journeys": "all" if all_ else list(ids), "events_per_second": events_per_second})
    if no_wait:
        if as_json:
            print_json(started)
        else:
            out.print(f"{started['id']} {started['state']}", markup=False)
        return
    _end(_watched(api, started["id"]), as_json)


@click.command()
@click.option("--watch", metavar="ID", help="Follow this one to its end.")
@click.option("--cancel", metavar="ID", help="Cancel this one; what is visible stays as it is.")
@click.option("--confirm", metavar="ID", help="Make the results of this one visible, which waits because they differ.")
@click.option("--limit", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
@json_flag
@with_api
def recalculations(
    watch: str | None, cancel: str | None, confirm: str | None, limit: int, api: Client, as_json: bool
) -> None:
    """Recalculations, the newest first."""
    if sum(map(bool, (watch, cancel, confirm))) > 1:
        raise Misused("--watch, --cancel and --confirm do not go together")
    if watch:
        _end(_watched(api, watch), as_json)
        return
    for action, id_ in (("cancel", cancel), ("confirm", confirm)):
        if id_:
            found = api.call("POST", f"/api/recalculations/{segment(id_)}/{action}")
            if as_json:
                print_json(found)
            else:
                out.print(f"{found['id']} {_state(found)}", markup=False)
            return
    rows: list[dict[str, Any]] = []
    for page in api.pages("/api/recalculations", "recalculations", {}, limit):
        rows += page["recalculations"]
    if as_json:
        print_json(rows)
        return
    numbers = ("progress", "activities", "changed")
    listed = table("recalculation", "state", "cause", "journeys", *numbers, "planned", right=numbers)
    for one in rows:
        names = ", ".join(one["journeys"][:3]) + (f" and {len(one['journeys']) - 3} more" if len(one["journeys"]) > 3 else "")
        counted = f"{int(one['progress'] * 100)} %", figures.number(one["events_read"]), figures.number(one["changed"])
        listed.add_row(one["id"], _state(one), one["cause"], names, *counted, one["planned_at"])
    out.print(listed if rows else "No recalculations yet. Start one: waypost recalculate ID")


def _watched(api: Client, id_: str) -> dict[str, Any]:
    """Follows a recalculation to its end, with a progress bar where there is a terminal; the recalculation as it ended. Ctrl-C leaves it running."""
    path = f"/api/recalculations/{segment(id_)}"
    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[speed]}")]
    told = threading.Event()  # an exception could come where nobody hands it on, in a destructor say
    before = signal.signal(signal.SIGINT, lambda *_: told.set())
    try:
        with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
            task = progress.add_task(id_, total=1.0, speed="")
            while True:
                one: dict[str, Any] = api.call("GET", path)
                progress.update(task, completed=one["progress"], description=f"{id_} {_phase(one)}", speed=_speed(one))
                if one["state"] in OVER or _waits(one):
                    return one
                if told.wait(LOOK_SECONDS):
                    break
    finally:
        signal.signal(signal.SIGINT, before)
    raise Failed(
        f"{id_} goes on without you: `waypost recalculations --watch {id_}` follows it, `waypost recalculations --cancel {id_}` cancels it"
    )


def _waits(one: dict[str, Any]) -> bool:
    """Whether somebody has to confirm it."""
    return bool(one["phase"] == "confirming" and one["confirmed_at"] is None)


def _state(one: dict[str, Any]) -> str:
    """The state in a word or two."""
    if one["phase"] == "cancelling":
        return "cancelling"
    return f"{one['state']}, {one['phase']}" if one["phase"] and one["state"] not in OVER else str(one["state"])


def _phase(one: dict[str, Any]) -> str:
    """What goes on, and how far it is."""
    for phase in one["phases"]:
        if phase["name"] == one["phase"]:
            return f"{phase['name']}, {int(phase['progress'] * 100)} %"
    return _state(one)


def _speed(one: dict[str, Any]) -> str:
    rate, eta = one["events_per_second"], one["eta_seconds"]
    said = [f"{figures.number(int(rate))} activities/s"] if rate and one["phase"] == "reading" else []
    if eta is not None and one["state"] in ("filling", "switching"):
        said.append(f"{figures.duration(float(eta))} left")
    return ", ".join(said)


def _differences(one: dict[str, Any]) -> Any:
    """The numbers of both sides, stage by stage."""
    numbers = ("stage", "visible", "without what the log no longer holds", "rebuilt")
    listed = table("journey", *numbers, right=numbers)
    for row in one["differences"]:
        counts = (figures.number(row[name]) for name in ("visible", "expected", "rebuilt"))
        listed.add_row(f"{row['journey']} version {row['version']}", str(row["stage"]), *counts)
    return listed


def _end(one: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(one)
    elif one["state"] == "live":
        changed = "1 contact stands" if one["changed"] == 1 else f"{figures.number(one['changed'])} contacts stand"
        said = f"{one['id']} is live: {figures.number(one['events_read'])} activities read, {changed} elsewhere than before"
        out.print(said, markup=False, soft_wrap=True)
    if _waits(one):
        if not as_json:
            out.print(_differences(one))
        yes, no = (f"`waypost recalculations --{action} {one['id']}`" for action in ("confirm", "cancel"))
        raise Failed(f"{one['id']} waits for a confirmation: {one['reason']}. {yes} makes its results visible, {no} keeps the visible ones")
    if one["state"] != "live":
        reason = f": {one['reason']}" if one["reason"] else ""
        raise Failed(f"{one['id']} was {one['state']}{reason}" if one["state"] == "cancelled" else f"{one['id']} {one['state']}{reason}")
