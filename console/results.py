"""Results: makes answers of what all partitions said: versions, sums, lag, lists and their cursors. Pure; asks nobody, knows no clock."""

from __future__ import annotations

import base64
import heapq
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from schemas.journey import Journey
from schemas.times import format_ms
from state import totals
from state.totals import Cell

from .errors import ApiError

SOURCES = ("activities", "contact-merges", "contacts", "handoffs")
MAX_LIMIT = 1000
Ends = Mapping[tuple[str, int], int]
"""(source, partition) -> the offset behind its last record."""


class Choice(NamedTuple):
    """Which view an answer speaks of: `(version, generation)`, or None when none can be read on all partitions."""

    view: tuple[int, int] | None
    status: str
    progress: float

    @property
    def version(self) -> int | None:
        return None if self.view is None else self.view[0]


class Wanted(NamedTuple):
    """What a journey should show: its version and generation (None while evidence is missing), and how far the recalculation is that concerns it.

    Views of the generation `enough` show the same already: a switch was cancelled since, and what it announced is being taken back.
    """

    version: int
    generation: int | None
    recalculation: float | None
    enough: int | None = None

    @property
    def target(self) -> tuple[int, int]:
        """The oldest view that shows it. Only where no evidence is missing."""
        assert self.generation is not None, "some evidence is missing"
        return self.version, self.generation if self.enough is None else self.enough


def choose(wanted: Wanted, partitions: Mapping[int, Mapping[str, Any]], asked: int | None = None) -> Choice:
    """What to show: of version *asked*, or of all up to the wanted one, the newest that can be read everywhere (design, section 6, an edit).

    An answer is `live` when that is what is wanted and no recalculation is about to change it. Else `progress` is that of the recalculation, or of
    the partitions that build it.
    """
    built = [{(v, g): (progress, readable) for v, g, progress, readable in said["versions"]} for said in partitions.values()]
    found = {
        view for view in built[0]
        if (view[0] <= wanted.version if asked is None else view[0] == asked) and all(b.get(view, (0, False))[1] for b in built)
    }  # fmt: skip
    view = max(found, default=None)
    if asked is not None and asked != wanted.version:
        progress = 1.0 if view is not None else sum(max((p for (v, _), (p, _) in b.items() if v == asked), default=0.0) for b in built) / len(built)
        return Choice(view, "live" if view is not None else "calculating", progress if view is not None else min(progress, 0.999))
    if wanted.recalculation is not None:
        return Choice(view, "calculating", min(wanted.recalculation, 0.999))
    if wanted.generation is None:
        return Choice(view, "calculating", 0.0)
    if view is not None and view >= wanted.target:
        return Choice(view, "live", 1.0)
    target = wanted.version, wanted.generation
    return Choice(view, "calculating", min(sum(b.get(target, (0.0, False))[0] for b in built) / len(built), 0.999))


def rows(journey: Journey, cells: Mapping[Cell, int] | None) -> list[dict[str, Any]]:
    """The rows of the results; with no *cells*, rows without numbers (contract, section 4, results)."""
    if cells is not None:
        return totals.results(journey, cells)
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


NEWEST, OLDEST, SUMMED = b"n", b"o", b"s"
"""What the cursor of a list, or of its checksums, begins with: a cursor is good in its order only."""


def page(partitions: Iterable[Mapping[str, Any]], limit: int, newest: bool = False) -> tuple[int, list[dict[str, Any]], str | None]:
    """One page of a list over all partitions: `(total, rows, cursor)`, rows ordered by key; the cursor is None on the last page."""
    parts = list(partitions)
    merged = list(heapq.merge(*(part["rows"] for part in parts), key=lambda row: bytes.fromhex(row["key"]), reverse=newest))
    shown = merged[:limit]
    # a partition that gave as many rows as were asked for may have more
    more = len(merged) > limit or any(len(part["rows"]) >= limit for part in parts)
    cursor = encode_cursor((NEWEST if newest else OLDEST) + bytes.fromhex(shown[-1]["key"])) if shown and more else None
    out = [{"contact_id": r["contact_id"], "name": r["name"], "reached_at": format_ms(r["reached_at_ms"]), "groups": r["groups"]} for r in shown]
    return sum(part["total"] for part in parts), out, cursor


def encode_cursor(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).decode().rstrip("=")


def decode_cursor(cursor: str, newest: bool = False) -> bytes:
    """The key that a cursor of a list in this order stands for. Raises `ApiError` (404) for one that we never gave."""
    return _decoded(cursor, NEWEST if newest else OLDEST)


def encode_place(partition: int, after: bytes) -> str:
    """The cursor of checksums: a partition, and the key of its index after which to go on."""
    return encode_cursor(SUMMED + partition.to_bytes(4, "big") + after)


def decode_place(cursor: str, partitions: int) -> tuple[int, bytes]:
    """`(partition, key)` of such a cursor. Raises `ApiError` (404) for one that we never gave."""
    key = _decoded(cursor, SUMMED)
    partition = int.from_bytes(key[:4], "big")
    if len(key) < 4 or partition >= partitions:
        raise _unknown_cursor()
    return partition, key[4:]


def _decoded(cursor: str, order: bytes) -> bytes:
    try:
        key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except ValueError:
        key = b""
    if encode_cursor(key) != cursor or len(key) < 2 or key[:1] != order:
        raise _unknown_cursor()
    return key[1:]


def _unknown_cursor() -> ApiError:
    return ApiError(404, "unknown_cursor", "there is no such page: give back the cursor of the page before as it is, or none", "cursor")


LIST_SUMS = ("group", "furthest", "contacts", "sampled", "checksum")
STAGE_SUMS = ("stage", "sampled", "checksum")


def checksums(said: Mapping[str, Any], cursor: str | None) -> dict[str, Any]:
    """A page of checksums, from what a partition said."""
    return {
        "version": said["version"],
        "generation": said["generation"],
        **{
            name: [dict(zip(columns, [*row[:-1], f"{row[-1]:016x}"], strict=True)) for row in said[name]]
            for name, columns in (("lists", LIST_SUMS), ("stages", STAGE_SUMS))
        },
        "cursor": cursor,
    }


# ---------------------------------------------------------------------------------------- a contact


def contact(asked: str, said: Mapping[str, Any], behind: int) -> dict[str, Any]:
    """What the API says of a contact, from what its holder's partition said."""
    profile = said["profile"]
    return {
        "contact_id": asked,
        "survivor": said["survivor"],
        "aliases": said["aliases"],
        "merges": [{"from": m["from"], "into": m["into"], "at": format_ms(m["at_ms"]), "merge": m["merge"]} for m in said["merges"]],
        "profile": None if profile is None else {"attributes": profile["attributes"], "at": format_ms(profile["at_ms"])},
        "groups": said["groups"],
        "erased_at": _time(said["erased_at_ms"]),
        "lag": behind,
        "journeys": [standing(journey) for journey in said["journeys"]],
        "activities": [
            {**_hit(a), "rules": a["rules"], "stages": [{"journey": journey, "stage": stage} for journey, stage in a["stages"]]}
            for a in said["activities"]
        ],
    }


def _hit(said: Mapping[str, Any]) -> dict[str, Any]:
    return {"at": format_ms(said["at_ms"]), "activity": said["activity"]}


def condition(said: Mapping[str, Any]) -> dict[str, Any]:
    """A condition that is not met yet, as a tree, with what meets its rules and what does not count for them."""
    if "op" in said:
        return {"op": said["op"], "members": [condition(member) for member in said["members"]]}
    return {
        "rule": said["rule"],
        "met_by": None if said["met_by"] is None else _hit(said["met_by"]),
        "too_early": [_hit(one) for one in said["too_early"]],
        "used": [{**_hit(one), "stage": one["stage"]} for one in said["used"]],
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
                "met_by": [{**_hit(m), "rule": m["rule"]} for m in row["met_by"]],
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
            "condition": condition(missing["condition"]),
        },
        "bounded": said["marked"],
    }


def _time(at_ms: int | None) -> str | None:
    return None if at_ms is None else format_ms(at_ms)
