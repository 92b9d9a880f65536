"""Views: what a page shows, made from answers of the HTTP API: figures as text, bars as places. Pure; asks nobody, knows no HTML."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple

from console.figures import duration, number, percent
from schemas.journey import Journey

WIDTH, HEIGHT, TOP = 944, 216, 26  # of the funnel's drawing
METER = 100
SMALL = (92, 24)


DAYS = 42  # of the trend, shown at a time
FEW = 20  # contacts under which a share says little
INTERVALS = ("1 min", "5 min", "15 min", "1 h", "4 h", "12 h", "1 d", "3 d", "7 d", "30 d", "longer")  # the ends of `console.statistics.EDGES`


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


def when(text: str, now: datetime | None = None) -> str:
    """A time for people, in UTC: of today the clock, of this week with the weekday, else with the date. The whole of it stands beside it."""
    at = datetime.fromisoformat(text)
    today = (now or datetime.now(UTC)).date()
    clock = f"{at:%H:%M:%S}"
    if at.date() == today:
        return clock
    if today - timedelta(days=7) < at.date() < today:
        return f"{at:%a} {clock}"
    return f"{at.day} {at:%b}{'' if at.year == today.year else f' {at.year}'}, {clock}"


def points(part: int, whole: int, of_part: int, of_whole: int) -> Fraction | None:
    """By how many percentage points part/whole differs from of_part/of_whole."""
    return None if not whole or not of_whole else Fraction(part * 100, whole) - Fraction(of_part * 100, of_whole)


def signed(difference: Fraction) -> str:
    """One decimal, half up, with a true sign: +9.3, −16.7."""
    tenths = (abs(difference) * 10 + Fraction(1, 2)).__floor__()
    return f"{'±' if not tenths else '+' if difference > 0 else '−'}{tenths // 10}.{tenths % 10}"


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
        "order": _order(journey, rows, results),
    }


def _order(journey: Journey, rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> dict[str, Any]:
    """By what the rows of the page of all journeys are sorted, by column; what is not known comes first."""
    first, last = rows[0]["converted"], rows[-1]["converted"]
    lost = [Fraction(row["dropped_off"], row["converted"]) for row in rows if row["dropped_off"] and row["converted"]]
    return {
        "name": journey.name.casefold(),
        "entered": -1 if first is None else first,
        "last": -1 if last is None else last,
        "overall": Fraction(last, first) if first and last is not None else -1,
        "kpi": Fraction(last, rows[-1]["kpi"]) if rows[-1]["kpi"] and last is not None else -1,
        "drop": max(lost, default=-1),
        "recalculated": results["recalculated_at"] or "",
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
        "recalculated_at": results["recalculated_at"],
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
                "label_y": round(max(14.0, min(bar.y + 12, HEIGHT - 30)), 1),
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


def totals(results: Mapping[str, Any], median_seconds: float | None) -> dict[str, str]:
    """The line above the funnel; *median_seconds*: from the first stage to the last."""
    first, last = results["stages"][0]["converted"], results["stages"][-1]["converted"]
    return {"entered": number(first), "last": number(last), "overall": percent(last, first), "median": duration(median_seconds)}


def csv_lines(contacts: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str, str]]:
    """Rows of the file of a list."""
    return ((row["contact_id"], row["reached_at"], " ".join(row["groups"])) for row in contacts)


def groups(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How each group does at each stage against all contacts: `rows` and the sentence on the largest difference. *found*: the API's `groups`."""
    if not found:
        return {"rows": [], "names": [], "largest": None}
    everyone = [row["converted"] for row in found[0]["stages"]]
    names = [row["name"] for row in found[0]["stages"]]
    largest: tuple[Fraction, str, str] | None = None
    rows: list[dict[str, Any]] = []
    best: dict[int, tuple[Fraction, int]] = {}
    worst: dict[int, tuple[Fraction, int]] = {}
    for number_, one in enumerate(found):
        counts = [row["converted"] for row in one["stages"]]
        cells = []
        for k in range(1, len(counts)):
            off = None if one["group"] is None else points(counts[k], counts[k - 1], everyone[k], everyone[k - 1])
            few = counts[k - 1] < FEW
            if off is not None and not few:
                if largest is None or abs(off) > abs(largest[0]):
                    largest = off, one["group"], names[k]
                best[k] = max(best.get(k, (off, number_)), (off, number_), key=lambda item: item[0])
                worst[k] = min(worst.get(k, (off, number_)), (off, number_), key=lambda item: item[0])
            cells.append(
                {"n": number(counts[k]), "share": percent(counts[k], counts[k - 1]), "points": None if off is None else signed(off),
                 "few": few, "up": off is not None and off > 0, "mark": None}
            )  # fmt: skip
        rows.append({"group": one["group"], "entered": number(counts[0]), "cells": cells, "overall": percent(counts[-1], counts[0])})
    for marks, word in ((best, "best"), (worst, "worst")):
        for k, (_, row) in marks.items():
            if best[k][1] != worst[k][1]:
                rows[row]["cells"][k - 1]["mark"] = word
    said = None
    if largest is not None and largest[0]:
        how = "more" if largest[0] > 0 else "less"
        said = f"contacts of group {largest[1]} reach “{largest[2]}” {signed(abs(largest[0]))[1:]} points {how} often than all contacts"
    return {"rows": rows, "names": names, "largest": said}


def trend(names: Sequence[str], days: Sequence[Mapping[str, Any]], until: date) -> dict[str, Any]:
    """The last `DAYS` days up to *until*: for each stage its bars and sum; and the days themselves, the newest first."""
    counts = {date.fromisoformat(row["day"]): row["reached"] for row in days}
    shown = [until - timedelta(days=back) for back in range(DAYS - 1, -1, -1)]
    rows = []
    for k, name in enumerate(names):
        mine = [counts[day][k] if day in counts else 0 for day in shown]
        rows.append({"stage": k + 1, "name": name, "bars": list(zip(shown, mine, bars(mine, 504, 36, 2), strict=True)),
                     "sum": number(sum(mine)), "most": number(max(mine))})  # fmt: skip
    listed = [{"day": day.isoformat(), "reached": [number(n) for n in counts[day]]} for day in reversed(shown) if day in counts]
    older = sum(1 for day in counts if day < shown[0])
    return {"rows": rows, "days": listed, "from": shown[0].isoformat(), "to": shown[-1].isoformat(), "older": older}


def waits(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How long contacts took to each stage, and from the first to the last of three or more, with a bar for each interval of time."""
    found = []
    whole = [{"stage": None, "name": "From the first stage to the last", **answer["overall"]}] if len(answer["stages"]) > 1 else []
    for row in (*answer["stages"], *whole):
        counts = [interval["contacts"] for interval in row["intervals"]]
        found.append(
            {
                "stage": row["stage"], "name": row["name"], "contacts": number(row["contacts"]), "median": duration(row["median_seconds"]),
                "p10": duration(row["p10_seconds"]), "p90": duration(row["p90_seconds"]),
                "bars": [
                    {"bar": bar, "label": label, "n": number(n), "share": percent(n, row["contacts"])}
                    for bar, label, n in zip(bars(counts, 660, 48, 4), INTERVALS, counts, strict=True)
                ],
            }
        )  # fmt: skip
    return found


PHASES = {
    "reading": "Reads the log",
    "joining": "Joins what was read",
    "comparing": "Compares with what is visible",
    "confirming": "Waits for a confirmation",
    "building": "Builds the results",
    "cancelling": "Takes back what was announced",
}


def recalculation(one: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A recalculation under way, in words."""
    if one is None:
        return None
    total, rate, eta = one["events_total"], one["events_per_second"], one["eta_seconds"]
    current = next((phase for phase in one["phases"] if phase["name"] == one["phase"]), None)
    return {
        "phase": PHASES.get(one["phase"], ""),
        "phase_percent": None if current is None else int(current["progress"] * 100),
        "confirms": one["phase"] == "confirming" and one["confirmed_at"] is None and one["state"] == "switching",
        "id": one["id"], "state": one["state"], "cause": one["cause"], "percent": int(one["progress"] * 100),
        "read": number(one["events_read"]), "total": number(total), "rate": None if rate is None else number(int(rate)),
        "left": None if eta is None else duration(max(1, round(eta))), "throttle": None if one["throttle"] is None else number(int(one["throttle"])),
        "waits": one["state"] == "planned",
    }  # fmt: skip


def as_text(value: Any) -> str:
    """A value of a profile as JSON."""
    return json.dumps(value, ensure_ascii=False)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def strip(health: Mapping[str, Any], history: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures on top of the page of operations, each with its last hour."""
    points = history["points"]
    last = points[-1] if points else {}

    def one(title: str, value: str, unit: str, name: str | None) -> dict[str, Any]:
        values = [] if name is None else [point[name] or 0 for point in points]
        return {"title": title, "value": value, "unit": unit, "line": sparkline(values), "most": number(round(max(values, default=0)))}

    def rate(name: str) -> str:
        found = last.get(name)
        return "–" if found is None else number(round(found)) if found >= 10 else f"{found:.1f}"

    visible = history["visible_seconds"]
    hour = sum((point["rejected"] or 0) * history["every_seconds"] for point in points)
    return [
        one("Behind", number(health["lag"]), "records", "lag"),
        one("Activities", rate("activities"), "a second", "activities"),
        one("Visible within", "–" if visible is None else f"{visible:g}", "s, slowest 1 %", None),
        one("Stage changes", rate("stage_changes"), "a second", "stage_changes"),
        one("Rejected", number(round(hour)), "in the last hour", "rejected"),
    ]


def sparkline(values: Sequence[float]) -> str:
    """The points of a line through *values*, 200 wide and 24 high; empty for less than two."""
    if len(values) < 2:
        return ""
    most = max(values) or 1
    step = 200 / (len(values) - 1)
    return " ".join(f"{k * step:.1f},{23 - 21 * value / most:.1f}" for k, value in enumerate(values))


def recalculation_line(one: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A recalculation as a row of the page of operations."""
    found = recalculation(one)
    assert found is not None
    took = None
    if one["started_at"] and one["finished_at"]:
        took = duration(max(1, round((datetime.fromisoformat(one["finished_at"]) - datetime.fromisoformat(one["started_at"])).total_seconds())))
    mine = [names.get(id_, id_) for id_ in one["journeys"]]
    state = "cancelling" if one["phase"] == "cancelling" else one["state"]
    differences = [
        {
            "journey": names.get(row["journey"], row["journey"]), "version": row["version"], "stage": row["stage"],
            "visible": number(row["visible"]), "rebuilt": number(row["rebuilt"]),
            "expected": None if row["expected"] == row["visible"] else number(row["expected"]),
        }
        for row in one["differences"]
    ]  # fmt: skip
    return {
        **found, "journeys": mine[:3], "others": max(0, len(mine) - 3), "ids": one["journeys"], "rules": len(one["rules"]), "reason": one["reason"],
        "changed": number(one["changed"]), "over": one["state"] in ("live", "cancelled", "failed"), "finished_at": one["finished_at"], "took": took,
        "label": "waits for a confirmation" if found["confirms"] else state, "differences": differences if found["confirms"] else [],
        "kind": {"live": "good", "failed": "bad", "cancelled": ""}.get(one["state"], "warn"),
    }  # fmt: skip


def size(bytes_: int | None) -> str:
    """1.9 GB."""
    if bytes_ is None:
        return "–"
    for unit, by in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if bytes_ >= by:
            return f"{bytes_ / by:.1f} {unit}"
    return f"{bytes_} B"
