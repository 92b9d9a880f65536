"""Views: what a page shows, made from answers of the HTTP API: figures as text, bars as places. Pure; asks nobody, knows no clock and no HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from console.figures import duration, number, percent
from schemas.journey import Condition, Journey

WIDTH, HEIGHT, TOP = 944, 216, 26  # of the funnel's drawing
METER = 100
SMALL = (92, 24)


class Bar(NamedTuple):
    x: float
    y: float
    width: float
    height: float


def matches(journey: Journey, words: str) -> bool:
    """Whether the name of *journey*, its id or a name of its stages holds *words*, in capitals or not."""
    folded = words.strip().casefold()
    return any(folded in text.casefold() for text in (journey.name, journey.id, *(stage.name for stage in journey.stages)))


def bars(counts: Sequence[int | None], width: float, height: float, gap: float) -> list[Bar]:
    """One bar for each count, the greatest of them *height* high; who is there is seen: a bar of one contact is at least 1 high."""
    wide = (width - gap * (len(counts) - 1)) / len(counts)
    most = max((n or 0 for n in counts), default=0)
    high = [max(1.0, height * (n or 0) / most) if n else 0.0 for n in counts]
    return [Bar(round(k * (wide + gap), 1), round(height - h, 1), round(wide, 1), round(h, 1)) for k, h in enumerate(high)]


def kpi(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The target of a stage and how much of it is there; None when it has none."""
    if row["kpi"] is None:
        return None
    part = None if row["converted"] is None else min(METER, METER * row["converted"] // row["kpi"]) if row["kpi"] else METER
    met = row["converted"] is not None and row["converted"] >= row["kpi"]
    return {"of": number(row["kpi"]), "percent": percent(row["converted"], row["kpi"]), "meter": part or 0, "met": met}


def largest_drop(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """After which stage the largest share is lost; the first of equals. None while nobody is lost."""
    lost = [row for row in rows if row["dropped_off"] and row["converted"]]
    if not lost:
        return None
    most = max(lost, key=lambda row: (Fraction(row["dropped_off"], row["converted"]), -row["stage"]))
    return {"percent": percent(most["dropped_off"], most["converted"]), "stage": most["stage"]}


def line(journey: Journey, results: Mapping[str, Any]) -> dict[str, Any]:
    """The row of *journey* on the page of all journeys."""
    rows = results["stages"]
    first, last = rows[0], rows[-1]
    return {
        "id": journey.id,
        "name": journey.name,
        "stages": len(journey.stages),
        "version": journey.version,
        "scheduled": journey.scheduled_recalculation,
        "unknown": first["converted"] is None,
        "bars": bars([row["converted"] for row in rows], *SMALL, 3),
        "entered": number(first["converted"]),
        "last": number(last["converted"]),
        "overall": percent(last["converted"], first["converted"]),
        "kpi": kpi(last),
        "drop": largest_drop(rows),
        **state(results),
        "shows": results["version"] if results["version"] != journey.version else None,
    }


def state(results: Mapping[str, Any]) -> dict[str, Any]:
    """How fresh results are, in words."""
    return {
        "live": results["status"] == "live",
        "progress": int(results["progress"] * 100),
        "lag": number(results["lag"]),
        "behind": results["lag"] > 0,
        "as_of": results["as_of"],
        "clock": results["as_of"][11:19],
    }


def funnel(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages with their figures and their places in the drawing."""
    rows = results["stages"]
    counts = [row["converted"] for row in rows]
    wide = WIDTH / (len(rows) + (len(rows) - 1) * 0.58)
    gap = wide * 0.58
    placed = [bar._replace(y=round(bar.y + TOP, 1)) for bar in bars(counts, WIDTH, HEIGHT - TOP, gap)]
    most = max((n or 0 for n in counts), default=0)
    found = []
    for k, (row, bar) in enumerate(zip(rows, placed, strict=True)):
        before = rows[max(0, k - 1)]["converted"]
        target = row["kpi"] if row["kpi"] is not None and 0 < row["kpi"] <= most else None
        found.append(
            {
                "stage": row["stage"],
                "name": row["name"],
                "bar": bar,
                "next": placed[k + 1] if k + 1 < len(placed) else None,
                "kpi_y": None if target is None else round(HEIGHT - (HEIGHT - TOP) * target / most, 1),
                "converted": number(row["converted"]),
                "share": percent(row["converted"], before),
                "dropped": None if row["dropped_off"] is None else number(row["dropped_off"]),
                "dropped_share": percent(row["dropped_off"], row["converted"]),
                "kpi": kpi(row),
                "median": duration(row["median_seconds_from_previous"]),
            }
        )
    return found


def sentence(condition: Condition) -> str:
    """A condition in words: its rules' sentences joined by "or" and "and", conditions in it in brackets."""
    parts = [f"({sentence(m)})" if isinstance(m, Condition) else m.describe() for m in condition.members]
    return (" or " if condition.op == "any" else " and ").join(parts)


def totals(results: Mapping[str, Any]) -> dict[str, str]:
    """The line above the funnel."""
    first, last = results["stages"][0]["converted"], results["stages"][-1]["converted"]
    return {"entered": number(first), "last": number(last), "overall": percent(last, first)}


def csv_lines(contacts: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str, str]]:
    """Rows of the file of a list."""
    return ((row["contact_id"], row["reached_at"], " ".join(row["groups"])) for row in contacts)
