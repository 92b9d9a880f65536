"""Figures: how numbers, times, results and contacts look on a terminal. Rounds once, from the integers, half up; asks nobody."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .options import table

NOTHING = "–"
BAR_CELLS = 10


def number(value: int | None) -> str:
    """1240 is 1,240; none is –."""
    return NOTHING if value is None else f"{value:,}".replace("-", "−")


def percent(part: int | None, whole: int | None) -> str:
    """One decimal, rounded half up from the integers (design, section 3): 431 of 400 is 107.8 %; – where the divisor is 0."""
    if part is None or not whole:
        return NOTHING
    tenths = (Fraction(part * 1000, whole) + Fraction(1, 2)).__floor__()
    return f"{tenths // 10:,}.{tenths % 10} %"


def duration(seconds: float | None) -> str:
    """Two units: 2 d 3 h."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:g} s"
    whole = int(seconds)
    for size, unit, smaller, name in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size:,} {unit}" + (f" {rest} {name}" if rest else "")
    return NOTHING


def funnel(results: Mapping[str, Any], title: str | None = None) -> Table:
    """The rows of results as a table with bars; fits into 80 columns unless names are long."""
    right = ("contacts", "step", "lost", "KPI", "wait")
    shown = table("", "stage", "contacts", "", "step", "lost", "KPI", "wait", title=title, right=right)
    for column in shown.columns[2:]:
        column.no_wrap = True
    rows = results["stages"]
    most = max((row["converted"] or 0 for row in rows), default=0)
    previous = rows[0]["converted"] if rows else None
    for row in rows:
        n, dropped = row["converted"], row["dropped_off"]
        filled = 0 if not n or not most else max(1, round(BAR_CELLS * n / most))
        shown.add_row(
            str(row["stage"]),
            Text(row["name"]),
            number(n),
            Text("█" * filled + "·" * (BAR_CELLS - filled), style="blue"),
            percent(n, previous),
            NOTHING if dropped is None else f"{number(dropped)}  {percent(dropped, n)}",
            percent(n, row["kpi"]),
            duration(row["median_seconds_from_previous"]),
        )
        previous = n
    return shown


def status(results: Mapping[str, Any]) -> str:
    """The line under results: how fresh they are."""
    group = f"group {results['group']} (groups overlap), " if results["group"] else ""
    state = "live" if results["status"] == "live" else f"calculating, {int(results['progress'] * 100)} %"
    return f"{results['journey']}, version {results['version']}, {group}{state}, as of {results['as_of']}, {number(results['lag'])} behind"


def contact(found: Mapping[str, Any]) -> RenderableType:
    """A person: who, and where on every journey, by what."""
    lines: list[RenderableType] = []
    head = Text(found["survivor"], style="bold")
    if found["contact_id"] != found["survivor"]:
        head.append(f"  (asked for as {found['contact_id']})", style="dim")
    lines.append(head)
    if found["erased_at"]:
        lines.append(Text(f"erased at {found['erased_at']}: what happened before is gone"))
    if found["aliases"]:
        lines.append(Text(f"also known as {', '.join(found['aliases'])}"))
    if found["groups"]:
        lines.append(Text(f"in groups {', '.join(found['groups'])}"))
    if found["profile"]:
        lines.append(Text("profile " + ", ".join(f"{name}: {value}" for name, value in found["profile"]["attributes"].items())))
    for standing in found["journeys"]:
        lines += [Text(""), *_standing(standing)]
    if not found["journeys"]:
        lines.append(Text("There are no journeys."))
    return Group(*lines)


def _standing(standing: Mapping[str, Any]) -> list[RenderableType]:
    lines: list[RenderableType] = [Text(f"Journey {standing['journey']}, version {standing['version']}", style="bold")]
    for stage in standing["stages"]:
        lines.append(Text(f"  ✓ {stage['stage']}  {stage['name']}, reached {stage['reached_at']}"))
        lines += [Text(f"        {met['rule']}, at {met['at']}", style="dim") for met in stage["met_by"]]
    missing = standing["missing"]
    if missing is not None:
        lines.append(Text(f"  · {missing['stage']}  {missing['name']}, not reached"))
        after = f", at or after {missing['not_before']}" if missing["not_before"] else ""
        lines += [Text(f"        waits for: {rule}{after}", style="dim") for rule in missing["rules"]]
    return lines
