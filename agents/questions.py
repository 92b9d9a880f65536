"""Questions: what a partition answers about its views and contacts, from what is written to RocksDB. Changes nothing.

Every answer is computed in one go of the event loop, from one state of the partition: its number equals its list.
"""

from __future__ import annotations

import json
from typing import Any

from schemas.journey import journey_json
from state import records
from state.evidence import Evidence, moment_ms
from state.identity import Identity
from state.progress import BEGINNING, Progress
from state.views import View, group_key, index_prefix, split_index_key

from .building import BUILDING
from .partition import Partition

CONVERTED, DROPPED_OFF = "converted", "dropped_off"


def view_of(partition: Partition, journey: str, version: int | None) -> View | None:
    """The newest complete view of a journey here, or that of *version*; None when there is none."""
    complete = [
        v for v in partition.views.all
        if v.journey.id == journey and partition.building.state[v.id] != BUILDING and version in (None, v.journey.version)
    ]  # fmt: skip
    return max(complete, key=lambda v: v.journey.version or 0, default=None)


def versions(partition: Partition, journey: str) -> dict[int, float]:
    """Version -> how far its view is built, 0 to 1. A scan goes by contact id, so the progress of an unfinished one is a guess by its first bytes."""
    found: dict[int, float] = {}
    for view in partition.views.all:
        if view.journey.id == journey:
            complete = partition.building.state[view.id] != BUILDING
            found[view.journey.version or 0] = 1.0 if complete else partition.building.scanned(view)
    return found


def journeys(partition: Partition, only: str | None) -> dict[str, Any]:
    """The newest version of every journey here, or of one, and how far its view is built: journey -> [version, progress]."""
    found: dict[str, list[float]] = {}
    for view in partition.views.all:
        version = view.journey.version or 0
        if only in (None, view.journey.id) and version >= found.get(view.journey.id, [0])[0]:
            complete = partition.building.state[view.id] != BUILDING
            found[view.journey.id] = [version, 1.0 if complete else partition.building.scanned(view)]
    return {"journeys": found}


def results(partition: Partition, journey: str, version: int | None, group: str | None) -> dict[str, Any]:
    """Versions and, of the version asked for or the newest complete one, the cells `[kind, stage, bucket, count]`."""
    view = view_of(partition, journey, version)
    cells = {} if view is None else partition.totals.get(view.id, {}).get(group or "", {})
    return {
        "versions": versions(partition, journey),
        "version": None if view is None else view.journey.version,
        "journey": None if view is None else journey_json(view.journey),
        "cells": [[kind, stage, bucket, count] for (kind, stage, bucket), count in cells.items()],
        "groups": [] if view is None else sorted(g for g, c in partition.totals.get(view.id, {}).items() if g and c),
    }


def listed(
    partition: Partition,
    journey: str,
    version: int | None,
    stage: int,
    who: str,
    group: str | None,
    limit: int,
    after: bytes | None,
) -> dict[str, Any]:
    """A page of the persons who reached *stage* (converted), or went no further (dropped_off), ordered by key; and how many there are in all.

    A row's key is `(furthest stage, its moment, name)` as bytes: it orders rows over all partitions. *after* is the key of the last row seen.
    """
    view = view_of(partition, journey, version)
    if view is None:
        return {"version": None, "total": 0, "rows": []}
    last = len(view.journey.stages)
    cells = partition.totals.get(view.id, {}).get(group or "", {})
    reached = [cells.get(("r", k, 0), 0) for k in range(1, last + 2)]
    group8 = group_key(group)
    if who == CONVERTED:
        total, furthest = reached[stage - 1], range(stage, last + 1)
    elif stage == last:
        return {"version": view.journey.version, "total": 0, "rows": []}  # none drops off the last stage
    else:
        total, furthest = reached[stage - 1] - reached[stage], range(stage, stage + 1)
    head = len(index_prefix(view.id, group8))
    rows: list[dict[str, Any]] = []
    for k in furthest:
        if len(rows) >= limit:
            break
        if after is not None and after[0] > k:
            continue
        start = index_prefix(view.id, group8) + after if after is not None and after[0] == k else None
        for key, _ in partition.ledger.scan(index_prefix(view.id, group8, k), start, limit - len(rows)):
            at_stage, moment, name, holder = split_index_key(key)
            evidence, identity = _holder(partition, holder)
            groups = () if identity is None else identity[1]
            if at_stage != stage:
                moment = view.project(evidence.hits)[stage - 1].at
            rows.append(
                {
                    "key": key[head:].hex(),
                    "contact_id": name,
                    "reached_at_ms": moment_ms(moment),
                    "groups": list(groups),
                }
            )
    return {"version": view.journey.version, "total": total, "rows": rows}


def _holder(partition: Partition, contact: str) -> tuple[Evidence, tuple[str, tuple[str, ...], int | None] | None]:
    record = partition.ledger.get(records.EVIDENCE + contact.encode())
    assert record is not None, f"{contact} is in the index and has no evidence"
    evidence, has_identity = records.decode_evidence(record)
    if not has_identity:
        return evidence, None
    head = records.decode_head(partition.ledger.get(records.IDENTITY + contact.encode()))
    if head[2] is not None:
        evidence.forget(head[2])
    return evidence, head


def contact(partition: Partition, id_: str) -> dict[str, Any]:
    """What is known of a contact here: an alias's pointer, or a holder's person with, for every journey, its stages and by what they were met."""
    record = partition.ledger.get(records.EVIDENCE + id_.encode())
    if record is None:
        return {"partition": partition.number, "state": "unknown"}
    pointer = records.pointer_of(record)
    if pointer is not None:
        return {"partition": partition.number, "state": "alias", "pointer": pointer}
    evidence, head = _holder(partition, id_)
    identity = Identity(id_)
    if head is not None:
        identity = records.decode_identity(id_, partition.ledger.get(records.IDENTITY + id_.encode()))
    profile = identity.profiles.get(identity.name)
    seen: dict[str, View] = {}
    for view in partition.views.all:
        if partition.building.state[view.id] != BUILDING:
            best = seen.get(view.journey.id)
            if best is None or (view.journey.version or 0) > (best.journey.version or 0):
                seen[view.journey.id] = view
    return {
        "partition": partition.number,
        "state": "holder",
        "holder": id_,
        "survivor": identity.name,
        "aliases": sorted(identity.members - {identity.name}),
        "profile": None if profile is None else {"attributes": json.loads(profile.attributes), "at_ms": profile.at_ms},
        "groups": list(identity.groups),
        "erased_at_ms": identity.erased_at_ms,
        "journeys": [_standing(view, evidence) for _, view in sorted(seen.items())],
    }


def _standing(view: View, evidence: Evidence) -> dict[str, Any]:
    progress: Progress = view.project(evidence.hits)
    stages = view.journey.stages
    rows = []
    for k, reached in enumerate(progress):
        met_by = [
            {"at_ms": moment_ms(hit), "activity": hit[8:].hex(), "rule": rule.describe()}
            for hit in dict.fromkeys(reached.met_by)
            for key, rule in view.projection.stage_rules[k].items()
            if _holds(evidence.hits.get(key, b""), hit)
        ]
        rows.append({"stage": k + 1, "name": stages[k].name, "reached_at_ms": reached.at_ms, "met_by": met_by})
    missing = None
    if len(progress) < len(stages):
        k = len(progress)
        missing = {
            "stage": k + 1,
            "name": stages[k].name,
            "not_before_ms": moment_ms(progress[-1].at) if progress and progress[-1].at != BEGINNING else None,
            "rules": [rule.describe() for rule in view.projection.missing(evidence.hits)],
        }
    return {
        "journey": view.journey.id,
        "version": view.journey.version,
        "marked": bool(evidence.marked & view.rules),
        "stages": rows,
        "missing": missing,
    }


def _holds(blob: bytes, hit: bytes) -> bool:
    return any(blob[i : i + 16] == hit for i in range(0, len(blob), 16))
