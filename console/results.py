"""Results: makes answers of what all partitions said: versions, sums, lag, lists and their cursors. Pure; asks nobody, knows no clock."""

from __future__ import annotations

import base64
import heapq
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from schemas.journey import Journey
from schemas.times import format_ms
from state import totals

from .errors import ApiError

SOURCES = ("activities", "contact-merges", "contacts", "handoffs")
MAX_LIMIT = 1000
Ends = Mapping[tuple[str, int], int]
"""(source, partition) -> the offset behind its last record."""


class Choice(NamedTuple):
    """Which version an answer speaks of. `version` is None when no version is complete on all partitions."""

    version: int | None
    status: str
    progress: float


def choose(newest: int, partitions: Mapping[int, Mapping[str, Any]], asked: int | None = None) -> Choice:
    """The version to show: *asked*, or the newest that is complete everywhere (design, section 6, an edit).

    `progress` is that of *newest* over all partitions; an answer is `live` when it shows it. Only versions up to *newest*, the one that the
    journeys topic has, count.
    """
    built = [{int(v): progress for v, progress in said["versions"].items()} for said in partitions.values()]
    target = newest if asked is None else asked
    progress = sum(b.get(target, 0.0) for b in built) / len(built)
    complete = {v for v in built[0] if v <= newest and all(b.get(v) == 1.0 for b in built)}
    if asked is None:
        version = max(complete, default=None)
    else:
        version = asked if asked in complete else None
    live = version == target
    return Choice(version, "live" if live else "calculating", 1.0 if live else min(progress, 0.999))


def rows(journey: Journey, parts: Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The rows of the results; with no *parts*, rows without numbers (contract, section 4, results)."""
    if parts is not None:
        return totals.results(journey, totals.summed(part["cells"] for part in parts))
    nothing = dict.fromkeys(("converted", "converted_ratio", "dropped_off", "dropped_off_ratio"))
    return [
        {"stage": k, "name": stage.name, **nothing, "kpi": stage.kpi, "kpi_ratio": None, "median_seconds_from_previous": None}
        for k, stage in enumerate(journey.stages, 1)
    ]


def lag(before: Ends, partitions: Mapping[int, Mapping[str, Any]], after: Ends, begins: Ends) -> int:
    """How many records of the input topics the answers do not reflect (contract, section 4, `lag`).

    *before*: the ends of all topics, taken before the workers were asked. *after*: those of the handoffs, taken when they had answered: what they
    had sent each other by then is either reflected or counted here, so 0 is exact. *begins*: where topics begin; what is gone is not behind.
    """
    behind = 0
    for (source, partition), end in {**before, **after}.items():
        position = (partitions[partition].get("positions") or {}).get(source)
        behind += max(0, end - max(position or 0, begins.get((source, partition), 0)))
    return behind


# ---------------------------------------------------------------------------------------- lists


def page(partitions: Iterable[Mapping[str, Any]], limit: int) -> tuple[int, list[dict[str, Any]], str | None]:
    """One page of a list over all partitions: `(total, rows, cursor)`, rows ordered by key; the cursor is None on the last page."""
    parts = list(partitions)
    merged = list(heapq.merge(*(part["rows"] for part in parts), key=lambda row: bytes.fromhex(row["key"])))
    shown = merged[:limit]
    # a partition that gave as many rows as were asked for may have more
    more = len(merged) > limit or any(len(part["rows"]) >= limit for part in parts)
    cursor = encode_cursor(bytes.fromhex(shown[-1]["key"])) if shown and more else None
    out = [{"contact_id": r["contact_id"], "reached_at": format_ms(r["reached_at_ms"]), "groups": r["groups"]} for r in shown]
    return sum(part["total"] for part in parts), out, cursor


def encode_cursor(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).decode().rstrip("=")


def decode_cursor(cursor: str) -> bytes:
    """The key that a cursor stands for. Raises `ApiError` (404) for one that we never gave."""
    try:
        key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        key = b""
    if not key or encode_cursor(key) != cursor:
        raise ApiError(404, "unknown_cursor", "there is no such page: give back the cursor of the page before as it is, or none", "cursor")
    return key


# ---------------------------------------------------------------------------------------- a contact


def contact(asked: str, said: Mapping[str, Any], behind: int) -> dict[str, Any]:
    """What the API says of a contact, from what its holder's partition said."""
    profile = said["profile"]
    return {
        "contact_id": asked,
        "survivor": said["survivor"],
        "aliases": said["aliases"],
        "profile": None if profile is None else {"attributes": profile["attributes"], "at": format_ms(profile["at_ms"])},
        "groups": said["groups"],
        "erased_at": _time(said["erased_at_ms"]),
        "lag": behind,
        "journeys": [standing(journey) for journey in said["journeys"]],
    }


def standing(said: Mapping[str, Any]) -> dict[str, Any]:
    """Where a contact stands on one journey, by what, and what is missing for the next stage."""
    missing = said["missing"]
    return {
        "journey": said["journey"],
        "version": said["version"],
        "stage": len(said["stages"]),
        "stages": [
            {
                "stage": row["stage"],
                "name": row["name"],
                "reached_at": format_ms(row["reached_at_ms"]),
                "met_by": [{"at": format_ms(m["at_ms"]), "activity": m["activity"], "rule": m["rule"]} for m in row["met_by"]],
            }
            for row in said["stages"]
        ],
        "missing": None
        if missing is None
        else {
            "stage": missing["stage"],
            "name": missing["name"],
            "not_before": _time(missing["not_before_ms"]),
            "rules": missing["rules"],
        },
        "bounded": said["marked"],
    }


def _time(at_ms: int | None) -> str | None:
    return None if at_ms is None else format_ms(at_ms)
