"""Questions: what a partition answers about its views and contacts, from what is written to RocksDB. Changes nothing.

Every answer is computed in one go of the event loop, from one state of the partition: its number equals its list.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

from schemas.journey import Condition, journey_json
from schemas.rules import Rule, rule_key
from state import checksums, records
from state.evidence import HIT_BYTES, Evidence, each, first_at_or_after, moment_ms
from state.identity import Identity
from state.progress import BEGINNING, Progress
from state.views import EVERYONE, View, group_key, index_prefix, split_index_key

from .partition import Partition

CONVERTED, DROPPED_OFF = "converted", "dropped_off"
MAX_ACTIVITIES = 200  # of a contact, told at a time: the newest
MAX_EARLY = 5  # hits of a rule that came before they could count
MAX_MERGES = 100
MAX_READ_BYTES = 1 << 16  # of a person's merges and profiles, read for a list
MAX_SUMMED = 4000  # entries of the index whose checksums are computed at a time: about 50 ms, in which nothing else is answered
GROUP_BYTES = len(EVERYONE)


def view_of(partition: Partition, journey: str, version: int | None, generation: int | None) -> View | None:
    """The newest readable view of a journey here, or that of *version*, or of *version* and *generation*; None when there is none."""
    found = [
        v for v in partition.views.all
        if v.journey.id == journey and partition.building.readable(v) and version in (None, v.journey.version)
        and generation in (None, v.source.generation)
    ]  # fmt: skip
    return max(found, key=lambda v: v.order, default=None)


def versions(partition: Partition, journey: str) -> list[list[Any]]:
    """`[version, generation, progress, readable]` of each view of a journey.

    A scan goes by contact id, so the progress of an unfinished one is a guess by its first bytes.
    """
    return [
        [*view.order, partition.building.scanned(view), partition.building.readable(view)]
        for view in partition.views.all
        if view.journey.id == journey
    ]


def journeys(partition: Partition, only: str | None) -> dict[str, Any]:
    """The newest readable view of every journey here, or of one: journey -> [version, generation]."""
    found: dict[str, tuple[int, int]] = {}
    for view in partition.views.all:
        if only in (None, view.journey.id) and view.order > found.get(view.journey.id, (-1, 0)) and partition.building.readable(view):
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


def grouped(partition: Partition, journey: str, version: int | None, generation: int | None) -> dict[str, Any]:
    """As `results`, with how many reached each stage, `[reached, …]`, by group; all contacts are the group ""."""
    view = view_of(partition, journey, version, generation)
    groups = {} if view is None else partition.totals.get(view.id, {})
    stages = 0 if view is None else len(view.journey.stages)
    return {
        "versions": versions(partition, journey),
        "version": None if view is None else view.journey.version,
        "generation": None if view is None else view.source.generation,
        "journey": None if view is None else journey_json(view.journey),
        "groups": {
            group: reached
            for group, cells in groups.items()
            if any(reached := [cells.get(("r", k, 0), 0) for k in range(1, stages + 1)])
        },
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
    newest: bool = False,
) -> dict[str, Any]:
    """A page of the persons who reached *stage* (converted), or went no further (dropped_off), ordered by key; and how many there are in all.

    A row's key is `(furthest stage, its moment, name)` as bytes: it orders rows over all partitions. *after* is the key of the last row seen.
    With *newest* it is `(moment, furthest stage, name)`, the greatest first: who moved last comes first.
    """
    view = view_of(partition, journey, version, generation)
    if view is None:
        return {"version": None, "generation": None, "total": 0, "rows": []}
    shown = {"version": view.journey.version, "generation": view.source.generation}
    last = len(view.journey.stages)
    cells = partition.totals.get(view.id, {}).get(group or "", {})
    reached = [cells.get(("r", k, 0), 0) for k in range(1, last + 2)]
    group8 = group_key(group)
    if not 1 <= stage <= last:
        return {**shown, "total": 0, "rows": []}
    if who == CONVERTED:
        total, furthest = reached[stage - 1], range(stage, last + 1)
    elif stage == last:
        return {**shown, "total": 0, "rows": []}  # none drops off the last stage
    else:
        total, furthest = reached[stage - 1] - reached[stage], range(stage, stage + 1)
    rows: list[dict[str, Any]] = []
    for key, entry in islice(_entries(partition, index_prefix(view.id, group8), furthest, limit, after, newest), limit):
        at_stage, moment, name, holder = split_index_key(entry)
        evidence, identity = _holder(partition, holder)
        if at_stage != stage:
            moment = view.project(evidence.hits)[stage - 1].at
        rows.append(
            {
                "key": key.hex(),
                "contact_id": name,
                "name": None if identity is None else _called(partition, holder),
                "reached_at_ms": moment_ms(moment),
                "groups": [] if identity is None else list(identity[1]),
            }
        )
    return {**shown, "total": total, "rows": rows}


def summed(
    partition: Partition, journey: str, version: int | None, generation: int | None, share: float, after: bytes | None, limit: int = MAX_SUMMED
) -> dict[str, Any]:
    """Counts and checksums of the next *limit* entries of a journey's index, of all groups, those after the key *after*.

    `lists`: `[group key, furthest stage, persons, persons of the sample, checksum]`; `stages`: `[stage, persons of the sample, checksum]`, of
    everyone, with groups and what the stage was met by (`state.checksums`). Checksums are those of the sample alone. `last`: the key to go on
    after; None at the end.
    """
    view = view_of(partition, journey, version, generation)
    if view is None:
        return {"version": None, "generation": None, "lists": [], "stages": [], "last": None}
    prefix, last, seen = index_prefix(view.id, b""), None, 0
    lists: dict[tuple[bytes, int], tuple[int, int, int]] = {}
    stages: dict[int, tuple[int, int]] = {}
    for entry, _ in partition.ledger.scan(prefix, None if after is None else prefix + after, limit):
        seen, last = seen + 1, entry
        group = entry[len(prefix) : len(prefix) + GROUP_BYTES]
        furthest, moment, name, holder = split_index_key(entry)
        persons, count, checksum = lists.get((group, furthest), (0, 0, 0))
        if checksums.sampled(name, share):
            count, checksum = checksums.added((count, checksum), checksums.of_entry(name, moment))
            if group == EVERYONE:
                evidence, head = _holder(partition, holder)
                groups = () if head is None else head[1]
                for k, reached in enumerate(view.project(evidence.hits), 1):
                    row = checksums.of_row(name, groups, reached.at, reached.met_by)
                    stages[k] = checksums.added(stages.get(k, (0, 0)), row)
        lists[group, furthest] = persons + 1, count, checksum
    return {
        "version": view.journey.version,
        "generation": view.source.generation,
        "lists": [[group.hex(), furthest, *sums] for (group, furthest), sums in sorted(lists.items())],
        "stages": [[k, *sums] for k, sums in sorted(stages.items())],
        "last": last[len(prefix) :].hex() if last is not None and seen == limit else None,
    }


def _entries(
    partition: Partition, prefix: bytes, furthest: Iterable[int], limit: int, after: bytes | None, newest: bool
) -> Iterable[tuple[bytes, bytes]]:
    """`(row key, index key)` of the persons of one view and group who stand at one of the stages *furthest*, in the order of a list."""
    head = len(prefix)
    scan, scan_back = partition.ledger.scan, partition.ledger.scan_back
    if not newest:
        for k in furthest:
            if after is None or after[0] <= k:
                start = prefix + after if after is not None and after[0] == k else None
                for entry, _ in scan(prefix + bytes((k,)), start, limit):
                    yield entry[head:], entry
        return

    def of(k: int) -> Iterable[tuple[bytes, bytes]]:
        before = None
        if after is not None:  # of two who came at the same moment, the one at the further stage comes first
            moment, stage, name = after[:8], after[8:9], after[9:]
            before = prefix + bytes((k,)) + moment + (name if stage == bytes((k,)) else b"" if stage < bytes((k,)) else b"\xff" * 8)
        for entry, _ in scan_back(prefix + bytes((k,)), before, limit):
            yield entry[head + 1 : head + 9] + entry[head : head + 1] + entry[head + 9 :], entry

    yield from heapq.merge(*map(of, furthest), reverse=True)


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


def _called(partition: Partition, contact: str) -> str | None:
    """The name in the profile of the person that *contact* holds, if there is one."""
    record = partition.ledger.get(records.IDENTITY + contact.encode())
    if record is None or len(record) > MAX_READ_BYTES:
        return None
    identity = records.decode_identity(contact, record)
    profile = identity.profiles.get(identity.name)
    name = None if profile is None else json.loads(profile.attributes).get("name")
    return name if isinstance(name, str) and name else None


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
        if partition.building.readable(view):
            best = seen.get(view.journey.id)
            if best is None or view.order > best.order:
                seen[view.journey.id] = view
    return {
        "partition": partition.number,
        "state": "holder",
        "holder": id_,
        "survivor": identity.name,
        "aliases": sorted(identity.members - {identity.name}),
        "merges": [
            {"from": m.from_, "into": m.into, "at_ms": m.at_ms, "merge": m.h.hex()} for m in sorted(identity.merges)[-MAX_MERGES:]
        ],
        "profile": None if profile is None else {"attributes": json.loads(profile.attributes), "at_ms": profile.at_ms},
        "groups": list(identity.groups),
        "erased_at_ms": identity.erased_at_ms,
        "journeys": [_standing(view, evidence) for _, view in sorted(seen.items())],
        "activities": _activities([view for _, view in sorted(seen.items())], evidence),
    }


def _activities(views: list[View], evidence: Evidence) -> list[dict[str, Any]]:
    """The newest hits, newest first: when, the hash of the activity, the rules met, and `[journey, stage]` of the stages reached by it."""
    met: dict[bytes, list[str]] = {}
    counted: dict[bytes, list[tuple[str, int]]] = {}
    for view in views:
        for key, rule in view.projection.rules.items():
            blob = evidence.hits.get(key, b"")
            for hit in each(blob[-MAX_ACTIVITIES * HIT_BYTES :]):
                sentences = met.setdefault(hit, [])
                if (sentence := rule.describe()) not in sentences:
                    sentences.append(sentence)
        for k, reached in enumerate(view.project(evidence.hits), 1):
            for hit in dict.fromkeys(reached.met_by):
                counted.setdefault(hit, []).append((view.journey.id, k))
    shown = sorted(met, reverse=True)[:MAX_ACTIVITIES]
    return [{"at_ms": moment_ms(hit), "activity": hit[8:].hex(), "rules": met[hit], "stages": counted.get(hit, [])} for hit in shown]


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
            "condition": _condition(view, k, evidence, progress),
        }
    return {
        "journey": view.journey.id,
        "version": view.journey.version,
        "marked": bool(evidence.marked & view.rules),
        "stages": rows,
        "missing": missing,
    }


def _condition(view: View, k: int, evidence: Evidence, progress: Progress) -> dict[str, Any]:
    """The condition of the stage with index *k*, not reached yet, as a tree: by each rule the hit that meets it, and the newest that do not count."""
    after = progress[-1].at if progress else BEGINNING
    spent = {hit: n for n, reached in enumerate(progress, 1) for hit in reached.met_by}
    keys = {rule_key(rule): key for key, rule in view.projection.stage_rules[k].items()}

    def told(hit: bytes) -> dict[str, Any]:
        return {"at_ms": moment_ms(hit), "activity": hit[8:].hex()}

    def tree(member: Condition | Rule) -> dict[str, Any]:
        if isinstance(member, Condition):
            return {"op": member.op, "members": [tree(one) for one in member.members]}
        blob = evidence.hits.get(keys[rule_key(member)], b"")
        begin = first_at_or_after(blob, after)
        met = next((hit for hit in each(blob[begin:]) if hit not in spent), None)
        early = [hit for hit in each(blob[:begin][-MAX_EARLY * HIT_BYTES :]) if hit not in spent]
        used = [hit for hit in each(blob) if hit in spent]
        return {
            "rule": member.describe(),
            "met_by": None if met is None else told(met),
            "too_early": [told(hit) for hit in reversed(early)],
            "used": [{**told(hit), "stage": spent[hit]} for hit in used],
        }

    return tree(view.journey.stages[k].condition)


def _holds(blob: bytes, hit: bytes) -> bool:
    return any(blob[i : i + 16] == hit for i in range(0, len(blob), 16))
