"""Questions: what a partition answers about its views and contacts, from what is written to RocksDB. Changes nothing.

Every answer is computed in one go of the event loop, from one state of the partition: its number equals its list.
"""

from __future__ import annotations

import json
from typing import Any

from schemas.journey import journey_json
from schemas.recalculation import LIVE
from state import records
from state.evidence import Evidence, moment_ms
from state.identity import Identity
from state.progress import BEGINNING, Progress
from state.views import View, group_key, index_prefix, split_index_key

from .partition import Partition

CONVERTED, DROPPED_OFF = "converted", "dropped_off"


def readable(partition: Partition, view: View) -> bool:
    """Whether *view* is complete here, and of evidence to which everybody has switched."""
    if view.id not in partition.building.complete:
        return False
    behind = view.source.recalculation
    one = None if behind is None else partition.context.recalculations.records.get(behind)
    return behind is None or (one is not None and one.state == LIVE)


def view_of(partition: Partition, journey: str, version: int | None, generation: int | None) -> View | None:
    """The newest readable view of a journey here, or that of *version*, or of *version* and *generation*; None when there is none."""
    found = [
        v for v in partition.views.all
        if v.journey.id == journey and readable(partition, v) and version in (None, v.journey.version)
        and generation in (None, v.source.generation)
    ]  # fmt: skip
    return max(found, key=lambda v: v.order, default=None)


def versions(partition: Partition, journey: str) -> list[list[Any]]:
    """`[version, generation, progress, readable]` of each view of a journey.

    A scan goes by contact id, so the progress of an unfinished one is a guess by its first bytes.
    """
    return [
        [*view.order, partition.building.scanned(view), readable(partition, view)]
        for view in partition.views.all
        if view.journey.id == journey
    ]


def journeys(partition: Partition, only: str | None) -> dict[str, Any]:
    """The newest readable view of every journey here, or of one: journey -> [version, generation]."""
    found: dict[str, tuple[int, int]] = {}
    for view in partition.views.all:
        if only in (None, view.journey.id) and view.order > found.get(view.journey.id, (-1, 0)) and readable(partition, view):
            found[view.journey.id] = view.order
    return {"journeys": {id_: list(order) for id_, order in found.items()}}


def results(partition: Partition, journey: str, version: int | None, generation: int | None, group: str | None) -> dict[str, Any]:
    """All views' versions and, of the one asked for or the newest readable, the cells `[kind, stage, bucket, count]`."""
    view = view_of(partition, journey, version, generation)
    cells = {} if view is None else partition.totals.get(view.id, {}).get(group or "", {})
    return {
        "versions": versions(partition, journey),
        "version": None if view is None else view.journey.version,
        "generation": None if view is None else view.source.generation,
        "journey": None if view is None else journey_json(view.journey),
        "cells": [[kind, stage, bucket, count] for (kind, stage, bucket), count in cells.items()],
        "groups": [] if view is None else sorted(g for g, c in partition.totals.get(view.id, {}).items() if g and c),
    }


def listed(
    partition: Partition,
    journey: str,
    version: int | None,
    generation: int | None,
    stage: int,
    who: str,
    group: str | None,
    limit: int,
    after: bytes | None,
) -> dict[str, Any]:
    """A page of the persons who reached *stage* (converted), or went no further (dropped_off), ordered by key; and how many there are in all.

    A row's key is `(furthest stage, its moment, name)` as bytes: it orders rows over all partitions. *after* is the key of the last row seen.
    """
    view = view_of(partition, journey, version, generation)
    if view is None:
        return {"version": None, "generation": None, "total": 0, "rows": []}
    shown = {"version": view.journey.version, "generation": view.source.generation}
    last = len(view.journey.stages)
    cells = partition.totals.get(view.id, {}).get(group or "", {})
    reached = [cells.get(("r", k, 0), 0) for k in range(1, last + 2)]
    group8 = group_key(group)
    if who == CONVERTED:
        total, furthest = reached[stage - 1], range(stage, last + 1)
    elif stage == last:
        return {**shown, "total": 0, "rows": []}  # none drops off the last stage
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
    return {**shown, "total": total, "rows": rows}


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
        if readable(partition, view):
            best = seen.get(view.journey.id)
            if best is None or view.order > best.order:
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
