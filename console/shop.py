"""Shop: the bundled events of an online shop, as activities, merges and profiles, and a journey over them. Pure but for reading its own file.

Each session is an anonymous contact, which turns out to be its user when the session ends.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any, NamedTuple

FILE = "data/ecom.csv.gz"
ACTIONS = frozenset({"add_to_cart", "wishlist_add", "filter_results", "search", "purchase", "payment_error", "checkout_bug"})
"""Events that are something done; the others are pages visited."""

JOURNEY: dict[str, Any] = {
    "id": "shop",
    "name": "From the shop's home page to a purchase",
    "scheduled_recalculation": False,
    "stages": [
        {"name": "Visited the home page", "kpi": 500, "condition": {"any": [{"rule": "visited_page", "page": "/home"}]}},
        {"name": "Looked at a product", "kpi": 400, "condition": {"any": [{"rule": "visited_page", "page": "/product_view"}]}},
        {"name": "Put it into the cart", "kpi": 300, "condition": {"any": [{"rule": "performed_activity", "activity": "add_to_cart"}]}},
        {
            "name": "Began to pay",
            "kpi": 200,
            "condition": {"any": [{"rule": "visited_page", "page": {"one_of": ["/shipping_details", "/payment_details"]}}]},
        },
        {"name": "Bought", "kpi": 150, "condition": {"any": [{"rule": "performed_activity", "activity": "purchase"}]}},
    ],
}


class Shop(NamedTuple):
    """Facts as JSON lines, in the order of the file."""

    activities: list[bytes]
    merges: list[bytes]
    contacts: list[bytes]
    told: dict[str, str]  # activity id -> who did what, for people


def shop() -> Shop:
    """All facts that the file comes to. Ids are made of what is in it: the same every time."""
    activities: list[bytes] = []
    told: dict[str, str] = {}
    last: dict[str, dict[str, str]] = {}  # session -> its last event
    count: dict[str, int] = {}
    for row in _rows():
        session = row["session_id"]
        count[session] = count.get(session, 0) + 1
        id_ = f"{session}-{count[session]:03}"
        activities.append(_line(_activity(row, id_)))
        told[id_] = f"{row['event']} in session {session} on {row['platform']}"
        known = last.get(session)
        if known is None or row["timestamp"] >= known["timestamp"]:
            last[session] = row
    merges = [_line({"id": f"merge-{s}", "from": s, "into": row["user_id"], "at": _at(row)}) for s, row in last.items()]
    return Shop(activities, merges, [_line(_profile(row)) for row in last.values()], told)


def _rows() -> Iterator[dict[str, str]]:
    packed = resources.files("console").joinpath(FILE).read_bytes()
    with gzip.open(io.BytesIO(packed), "rt", encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def _activity(row: dict[str, str], id_: str) -> dict[str, Any]:
    event = row["event"]
    what = {"type": event} if event in ACTIONS else {"type": "pagevisit", "page": f"/{event}", "url": f"https://shop.example/{event}"}
    return {"id": id_, "contact_id": row["session_id"], **what, "at": _at(row), "utm_source": row["acquisition_channel"]}


def _profile(row: dict[str, str]) -> dict[str, Any]:
    return {
        "contact_id": row["user_id"],
        "groups": [row["acquisition_channel"], row["user_lifecycle"]],
        "attributes": {"platform": row["platform"], "cohort": row["user_cohort"]},
        "at": _at(row),
    }


def _at(row: dict[str, str]) -> str:
    return row["timestamp"].replace(" ", "T") + "Z"


def _line(fact: dict[str, Any]) -> bytes:
    return json.dumps(fact, ensure_ascii=False, separators=(",", ":")).encode()
