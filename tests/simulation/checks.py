"""What must hold of a cluster at rest: it says what the oracle says, of every person, list, number and stage change."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from agents import questions
from agents.building import LIVE
from console import results
from console.checking import Checksums
from console.expected import of_answer
from schemas.hashing import h8
from schemas.journey import Journey
from schemas.rules import rule_key
from schemas.times import parse_ms
from state import oracle, records
from state.evidence import hit
from state.identity import Merge, place
from state.recalculation import evidence_key
from state.totals import Cell, contribution, wait_bucket
from state.views import View, group_key

from .cluster import Cluster
from .history import GROUPS
from .worker import ALL_RULES


def check(cluster: Cluster) -> None:
    """Compares everything. Raises AssertionError, which says what differs."""
    history = cluster.plan.history(cluster.facts_sent)
    people = oracle.persons(history)
    cluster.recalculating.check_rest()
    check_places(cluster, history, people)
    journeys = cluster.plan.journeys(cluster.facts_sent)
    answers = {id_: oracle.answer(journey, history) for id_, journey in journeys.items()}
    check_views(cluster, answers)
    check_changes(cluster, answers)
    assert not cluster.rejected, f"rejected: {cluster.rejected}"


# -- evidence and names ---------------------------------------------------------------------------------------------------


def check_places(cluster: Cluster, history: oracle.History, people: list[oracle.Person]) -> None:
    """Exactly one holder a person, with exactly the oracle's evidence under the oracle's name; the others point to it."""
    found: dict[str, tuple[bytes, bytes | None]] = {}
    for part in _parts(cluster):
        for key, value in part.ledger.scan(records.EVIDENCE):
            contact = key[1:].decode()
            assert contact not in found, f"{contact} is at two partitions"
            found[contact] = value, part.ledger.get(records.IDENTITY + key[1:])
    merges = {Merge(m.at_ms, h8(m.id), m.from_, m.into) for m in history.merges}
    for person in people:
        holder = min(person.contacts, key=place)
        hits = _hits(cluster, person)
        if holder not in found:
            assert len(person.contacts) == 1, f"{person.contacts} are one person and have no holder"
            assert not any((hits, person.profile, person.erased_at_ms)), f"nothing is kept of {holder}"
            continue
        for contact in person.contacts - {holder}:
            at, steps = contact, 0
            while (pointer := _pointer(found, at)) is not None:
                assert place(pointer) < place(at), "pointers go from larger to smaller"
                at, steps = pointer, steps + 1
            assert at == holder, f"{contact} leads to {at}, not to the holder {holder}"
        value, raw_identity = found[holder]
        assert records.pointer_of(value) is None, f"{holder} should be the holder"
        evidence, has_identity = records.decode_evidence(value)
        identity = None if not has_identity else records.decode_identity(holder, raw_identity or b"")
        if identity is not None and identity.erased_at_ms is not None:
            evidence.forget(identity.erased_at_ms)
        kept = {key: evidence.hits[key] for key in current_keys(cluster).values() if key in evidence.hits}  # nothing is said of what is given up
        assert kept == hits, f"evidence of {sorted(person.contacts)} is {kept}, not {hits}"
        if identity is None:
            lost = len(person.contacts) > 1 or person.profile or person.erased_at_ms
            assert not lost, f"the identity of {holder} is lost"
            continue
        mine = {m for m in merges if m.from_ in person.contacts}
        assert identity.members == set(person.contacts), f"members {identity.members}, not {set(person.contacts)}"
        assert identity.merges == mine, f"merges of {holder}: {identity.merges}, not {mine}"
        assert identity.name == person.survivor, f"named {identity.name}, not {person.survivor}"
        assert set(identity.groups) == set(person.groups), f"groups {identity.groups}, not {set(person.groups)}"
        assert identity.erased_at_ms == person.erased_at_ms
        kept = identity.profiles.get(identity.name)
        if person.profile is None:
            assert kept is None, f"{identity.name} has a profile: {kept}"
        else:
            assert kept is not None, f"{identity.name} has no profile"
            assert (kept.at_ms, json.loads(kept.attributes)) == (person.profile.at_ms, person.profile.attributes)


def _pointer(found: dict[str, tuple[bytes, bytes | None]], contact: str) -> str | None:
    assert contact in found, f"nothing is known of {contact}"
    return records.pointer_of(found[contact][0])


def current_keys(cluster: Cluster) -> dict[bytes, bytes]:
    """Rule key -> evidence key, of all rules whose evidence is live."""
    table = cluster.recalculating.table
    return {key: evidence_key(key, one) for one, key in table.live()}


def _hits(cluster: Cluster, person: oracle.Person) -> dict[bytes, bytes]:
    hits, keys = {}, current_keys(cluster)
    for rule in ALL_RULES:
        mine = {hit(a.at_ms, h8(a.id)) for a in person.activities if oracle.meets(a, rule)}
        if mine and rule_key(rule) in keys:
            hits[keys[rule_key(rule)]] = b"".join(sorted(mine))
    return hits


# -- numbers and lists ----------------------------------------------------------------------------------------------------


def check_views(cluster: Cluster, answers: dict[str, oracle.Answer]) -> None:
    """Totals summed over partitions, and lists, are the oracle's; a number equals its list in each partition."""
    for part in _parts(cluster):
        live = {v.journey.id: v.journey for v in part.views.all if part.building.state[v.id] == LIVE and part.building.readable(v)}
        assert live == {id_: a.journey for id_, a in answers.items()}, f"partition {part.number} shows {live}"
    for id_, answer in answers.items():
        for group in (None, *GROUPS):
            totals: dict[Cell, int] = defaultdict(int)
            for part in _parts(cluster):
                said = questions.results(part, id_, None, None, group)
                for kind, stage, bucket, count in said["cells"]:
                    totals[kind, stage, bucket] += count
            expected = cells(answer, group)
            assert totals == expected, f"{id_}, group {group}: {dict(totals)}, not {expected}"
            for stage in range(1, len(answer.journey.stages) + 1):
                for who, rows in (("converted", answer.converted(stage, group)), ("dropped_off", answer.dropped_off(stage, group))):
                    check_list(cluster, id_, stage, who, group, rows)
        check_checksums(cluster, id_, answer)


def check_checksums(cluster: Cluster, id_: str, answer: oracle.Answer) -> None:
    """The checksums of all partitions, a few entries at a time, are those of the oracle's lists."""
    found = Checksums()
    for part in _parts(cluster):
        after: str | None = ""
        while after is not None:
            said = questions.summed(part, id_, None, None, 1.0, bytes.fromhex(after) or None, 3)
            found.take(results.checksums(said, None))
            after = said["last"]
    right = of_answer(answer, {name: name for name in answer.reached}, 0)  # no lines, so their order does not matter
    lists = {key: sums[1:] for key, sums in found.lists.items()}
    assert lists == {
        (group_key(group).hex(), k): sums for group, mine in right.groups.items() for k, sums in mine.lists.items()
    }, f"{id_}: checksums of lists"
    assert found.stages == right.stages, f"{id_}: checksums of stages"


def check_list(cluster: Cluster, id_: str, stage: int, who: str, group: str | None, expected: list[oracle.Row]) -> None:
    found = set()
    for part in _parts(cluster):
        said = questions.listed(part, id_, None, None, stage, who, group, 1000, None)
        assert said["total"] == len(said["rows"]), f"{id_}: {who} {stage}, group {group}: {said} counts not what it lists"
        for row in said["rows"]:
            found.add((row["contact_id"], row["reached_at_ms"], frozenset(row["groups"])))
    wanted = {(row.contact_id, row.reached_at_ms, row.groups) for row in expected}
    assert found == wanted, f"{id_}: {who} {stage}, group {group}: {found}, not {wanted}"


def cells(answer: oracle.Answer, group: str | None) -> dict[Cell, int]:
    """The oracle's counts as cells of totals."""
    expected: dict[Cell, int] = defaultdict(int)
    for result in answer.results(group):
        if result.converted:
            expected["r", result.stage, 0] = result.converted
        for day, count in result.days.items():
            expected["d", result.stage, day] = count
        for wait_ms in result.waits_ms:
            expected["w", result.stage, wait_bucket(wait_ms)] += 1
        if result.stage == len(answer.journey.stages) > 2:
            for wait_ms in result.since_first_ms:
                expected["o", result.stage, wait_bucket(wait_ms)] += 1
    return dict(expected)


def check_shown(cluster: Cluster) -> None:
    """At any moment: what can be read is what the evidence written comes to, and of a journey that had numbers, some version has them still."""
    readable: dict[str, list[set[tuple[int, int]]]] = defaultdict(list)
    for part in _parts(cluster):
        for id_ in cluster.recalculating.catalog():
            readable[id_].append({v.order for v in part.views.all if v.journey.id == id_ and part.building.readable(v)})
        for view in part.views.all:
            if part.building.readable(view):
                shown = {group: {c: n for c, n in cells.items() if n} for group, cells in part.totals.get(view.id, {}).items()}
                shown = {group: cells for group, cells in shown.items() if cells}
                truth = written(part, view)
                assert shown == truth, f"{view.journey.id} {view.order} in {part.number} shows {shown}, evidence says {truth}"
    for id_, found in readable.items():
        if set.intersection(*found):
            cluster.visible.add(id_)
        else:
            assert id_ not in cluster.visible, f"{id_} had numbers and has none: {found}"
    cluster.visible &= readable.keys()


def written(part: Any, view: View) -> dict[str, dict[Cell, int]]:
    """What *view* comes to over the evidence in RocksDB: group ("" is everyone) -> cell -> count."""
    found: dict[str, dict[Cell, int]] = {}
    for key, value in part.ledger.scan(records.EVIDENCE):
        if records.pointer_of(value) is not None:
            continue
        evidence, has_identity = records.decode_evidence(value)
        groups: tuple[str, ...] = ()
        if has_identity:
            _, groups, erased_at_ms = records.decode_head(part.ledger.get(records.IDENTITY + key[1:]))
            if erased_at_ms is not None:
                evidence.forget(erased_at_ms)
        for group in ("", *groups):
            for cell in contribution(view.project(evidence.hits), len(view.journey.stages)):
                cells_of = found.setdefault(group, {})
                cells_of[cell] = cells_of.get(cell, 0) + 1
    return found


# -- stage changes --------------------------------------------------------------------------------------------------------


def check_changes(cluster: Cluster, answers: dict[str, oracle.Answer]) -> None:
    """A consumer that keeps the last change of each (journey, contact, stage) knows the truth."""
    last: dict[tuple[str, str, int], dict[str, Any]] = {}
    for key, value in cluster.changes:
        change = json.loads(value)
        assert key.decode() == change["contact_id"]
        last[change["journey"], change["contact_id"], change["stage"]] = change
    truth: dict[tuple[str, str, int], int] = {}
    for id_, answer in answers.items():
        for name, stages in answer.reached.items():
            for stage, reached in enumerate(stages, 1):
                truth[id_, name, stage] = reached.at_ms
    for key in {*last, *truth}:
        if key[0] not in answers:
            continue  # deleted: nobody speaks of it any more
        change = last.get(key)
        said = None if change is None or change["change"] == "left" else parse_ms(change["reached_at"])
        assert said == truth.get(key), f"last change of {key} is {change}, the truth is {truth.get(key)}"


def check_stage_names(changes: list[dict[str, Any]], journeys: dict[tuple[str, int], Journey]) -> None:
    """Each change names its stage as its version does."""
    for change in changes:
        stages = journeys[change["journey"], change["version"]].stages
        assert stages[change["stage"] - 1].name == change["stage_name"]


def _parts(cluster: Cluster) -> list[Any]:
    return [worker.open[p] for p, worker in enumerate(cluster.owner)]
