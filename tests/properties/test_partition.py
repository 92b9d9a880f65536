"""The partitions of a worker, with real ledgers over logs in memory, say what the oracle says: numbers, lists, names, changes."""

from __future__ import annotations

import json
import random
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from agents import questions
from agents.succession import FOREIGN
from schemas.journey import parse_journey
from schemas.times import parse_ms
from state import oracle, records
from state.evidence import Evidence
from state.identity import Identity, Profile, place
from tests.support.loopback import TOPICS, Loopback

T0_MS = 1_767_323_045_000
CONTACTS = [f"contact-{n}" for n in range(9)]
PAGES = ["/a", "/b", "/c"]
GROUPS = ["red", "blue"]


def page(name: str) -> dict[str, str]:
    return {"rule": "visited_page", "page": name}


JOURNEYS = [
    {
        "id": "straight",
        "name": "Straight",
        "version": 1,
        "stages": [{"name": p, "condition": {"any": [page(p)]}} for p in PAGES],
    },
    {
        "id": "nested",
        "name": "Nested",
        "version": 1,
        "stages": [
            {"name": "one", "condition": {"any": [page("/b"), {"all": [page("/a"), page("/c")]}]}},
            {"name": "two", "condition": {"all": [page("/a"), page("/b")]}},
        ],
    },
]


def history(seed: int) -> tuple[list[tuple[str, dict | None, str, int]], oracle.History]:
    """Facts as records `(source, value, key, time)` in an order of arrival, and as the oracle takes them."""
    r = random.Random(seed)
    facts: list[tuple[str, dict | None, str, int]] = []
    known = oracle.History()
    contacts = CONTACTS[: r.randint(2, 9)]
    for n in range(r.randint(5, 60)):
        contact, at_ms = r.choice(contacts), T0_MS + r.randint(0, 12) * 1000
        fact = {"id": f"a{n}", "contact_id": contact, "type": "pagevisit", "at": at_ms, "page": r.choice(PAGES)}
        facts.append(("activities", fact, contact, 0))
        known.activities.append(oracle.Activity(contact, "pagevisit", at_ms, f"a{n}", {"page": fact["page"]}))
    for n in range(r.randint(0, 9)):
        a, b = r.sample(contacts, 2)
        at_ms = T0_MS + r.randint(0, 5) * 1000
        facts.append(("contact-merges", {"id": f"m{n}", "from": a, "into": b, "at": at_ms}, a, 0))
        known.merges.append(oracle.Merge(f"m{n}", a, b, at_ms))
    for _ in range(r.randint(0, 6)):
        contact, at_ms = r.choice(contacts), T0_MS + r.randint(0, 12) * 1000
        groups = r.sample(GROUPS, r.randint(0, 2))
        fact = {"contact_id": contact, "groups": groups, "attributes": {"n": r.randint(0, 3)}, "at": at_ms}
        facts.append(("contacts", fact, contact, 0))
        known.profiles.append(oracle.Profile(contact, tuple(groups), fact["attributes"], at_ms))
    for _ in range(r.choice([0, 0, 1])):
        contact, at_ms = r.choice(contacts), T0_MS + r.randint(0, 10) * 1000
        facts.append(("contacts", None, contact, at_ms))
        known.erasures.append(oracle.Erasure(contact, at_ms))
    facts += r.sample(facts, len(facts) // 5)
    r.shuffle(facts)
    return facts, known


def agrees(loop: Loopback, known: oracle.History) -> None:
    for said in JOURNEYS:
        journey = parse_journey(said)
        truth = oracle.answer(journey, known)
        for group in (None, *GROUPS):
            assert loop.counts(journey.id, group) == [stage.converted for stage in truth.results(group)]
            for k in range(1, len(journey.stages) + 1):
                for who, rows in (
                    ("converted", truth.converted(k, group)),
                    ("dropped_off", truth.dropped_off(k, group)),
                ):
                    total, listed = loop.listed(journey.id, k, who, group)
                    assert total == len(listed)
                    assert listed == sorted((row.contact_id, row.reached_at_ms) for row in rows)
        for k in (-1, 0, len(journey.stages) + 1, 300):  # no stage of it
            assert loop.listed(journey.id, k, "converted", None) == loop.listed(journey.id, k, "dropped_off", None) == (0, [])
        last = {}
        for record in loop.out.all(TOPICS["stage-changes"]):
            change = json.loads(record.value)
            if change["journey"] == journey.id:
                last[change["contact_id"], change["stage"]] = change["reached_at"] and parse_ms(change["reached_at"])
        announced = {key: at for key, at in last.items() if at is not None}
        assert announced == {
            (n, k): one.at_ms for n, stages in truth.reached.items() for k, one in enumerate(stages, 1)
        }


@pytest.mark.parametrize("seed", range(60))
async def test_any_order_with_restarts_and_lost_directories_is_what_the_oracle_says(tmp_path: Path, seed: int) -> None:
    facts, known = history(seed)
    r = random.Random(seed)
    loop = Loopback(tmp_path, partitions=r.choice([1, 3]), chunk=r.choice([1, 3, 50]))
    loop.open()
    late = r.random() < 0.5  # one journey is applied when half of the facts are there
    loop.apply(JOURNEYS[0])
    if not late:
        loop.apply(JOURNEYS[1])
    for i, (source, fact, key, at_ms) in enumerate(facts):
        wrong = r.randrange(loop.context.partitions) if r.random() < 0.2 else None
        loop.send(source, fact, key, at_ms, partition=wrong)
        if i == len(facts) // 2:
            await loop.settle(r.shuffle)
            loop.apply(JOURNEYS[1])
            await loop.settle()
            number = r.randrange(loop.context.partitions)
            await loop.partitions.pop(number).close()
            if r.random() < 0.5:
                (tmp_path / f"partition-{number}").rename(tmp_path / f"lost-{number}")
            loop.recover(number)
            loop.recalculating.apply()
    await loop.settle(r.shuffle)
    agrees(loop, known)
    await loop.close()


def merged(loop: Loopback, one: str, other: str) -> None:
    loop.send("contact-merges", {"id": f"{one}-{other}", "from": one, "into": other, "at": T0_MS}, one)


async def test_an_alias_of_a_stale_writer_that_knew_no_identity_does_not_swallow_one(tmp_path: Path) -> None:
    """The owner's holder has a member; the stale writer made it an alias and wrote no tombstone for an identity that it did not know."""
    far, holder, member = sorted(CONTACTS, key=place)[:3]
    loop = Loopback(tmp_path, partitions=1)
    loop.open()
    merged(loop, member, holder)
    await loop.settle()
    loop.changelog.append("changelog", 0, records.EVIDENCE + holder.encode(), records.encode_alias(far))
    await loop.partitions.pop(0).close()
    (tmp_path / "partition-0").rename(tmp_path / "lost")
    loop.recover(0)
    await loop.settle()
    merged(loop, holder, far)
    await loop.settle()
    said = questions.contact(loop.partitions[0], far)
    assert {said["survivor"], *said["aliases"]} == {far, holder, member}
    await loop.close()


async def test_what_only_a_stale_writer_knew_is_told_to_be_gone(tmp_path: Path) -> None:
    loop = Loopback(tmp_path, partitions=1)
    loop.open()
    merged(loop, CONTACTS[0], CONTACTS[1])
    await loop.settle()
    holder, alias = sorted(CONTACTS[:2], key=place)
    keys = [records.EVIDENCE + who.encode() for who in (holder, alias, "nobody")] + [records.IDENTITY + alias.encode()]
    said = dict(loop.partitions[0].values(keys))
    assert said[keys[0]] is not None
    assert records.pointer_of(said[keys[1]]) == holder
    assert said[keys[2]] is None
    assert said[keys[3]] is None
    await loop.close()


async def test_what_a_stale_writer_wrote_is_known_to_an_owner_that_begins_again(tmp_path: Path) -> None:
    """Another reader of the changelog has joined it, and writes from then on what goes without it: an owner that does not know it would read
    evidence that says that there is an identity, and find none; and a fact that was without effect there would be lost here."""
    contact = CONTACTS[0]
    known = Identity(contact)
    known.join(profiles={contact: Profile(T0_MS, "{}", ("red",))})
    foreign: list[tuple[bytes, bytes | None]] = [
        (records.IDENTITY + contact.encode(), records.encode_identity(known)),
        (records.EVIDENCE + contact.encode(), records.encode_evidence(Evidence(), True)),
    ]

    async def start_over(follow: bool) -> Loopback:
        loop = Loopback(tmp_path / str(follow), partitions=1)
        loop.open()
        loop.apply(JOURNEYS[0])
        loop.send("activities", {"id": "a", "contact_id": contact, "type": "pagevisit", "at": T0_MS, "page": "/a"}, contact)
        await loop.settle()
        partition = loop.partitions[0]
        for key, value in foreign:
            loop.changelog.append("changelog", 0, key, value)
        partition.succession.keep(foreign, {"activities": 2})
        for key, value in partition.values([key for key, _ in foreign]):
            loop.changelog.append("changelog", 0, key, value)
        assert questions.contact(partition, contact)["groups"] == []
        if follow:  # everything comes that was there when it was found: the identity would have come with it
            loop.send("activities", {"id": "b", "contact_id": contact, "type": "pagevisit", "at": T0_MS, "page": "/b"}, contact)
            await loop.settle()
        await loop.partitions.pop(0).close()
        loop.recover(0)
        await loop.settle()
        return loop

    loop = await start_over(follow=False)
    assert questions.contact(loop.partitions[0], contact)["groups"] == ["red"]
    assert loop.counts("straight", "red") == [1, 0, 0]
    said = {record.key: record.value for record in loop.changelog.log("changelog", 0)}
    assert said[foreign[0][0]] == foreign[0][1]
    assert not [*loop.partitions[0].ledger.scan(FOREIGN)]
    await loop.close()
    loop = await start_over(follow=True)
    assert questions.contact(loop.partitions[0], contact)["groups"] == []
    assert not [*loop.partitions[0].ledger.scan(FOREIGN)]
    await loop.close()


async def test_what_a_stale_writer_was_last_to_say_is_said_again_before_anything_else(tmp_path: Path) -> None:
    contact = CONTACTS[0]
    loop = Loopback(tmp_path, partitions=1)
    loop.open()
    loop.apply(JOURNEYS[0])
    loop.send("activities", {"id": "a", "contact_id": contact, "type": "pagevisit", "at": T0_MS, "page": "/a"}, contact)
    await loop.settle()
    key = records.EVIDENCE + contact.encode()
    right = loop.partitions[0].ledger.get(key)
    loop.changelog.append("changelog", 0, key, records.encode_evidence(Evidence(), False))
    end = len(loop.changelog.log("changelog", 0))
    await loop.partitions.pop(0).close()
    loop.recover(0)
    loop.send("activities", {"id": "b", "contact_id": CONTACTS[1], "type": "pagevisit", "at": T0_MS, "page": "/a"}, CONTACTS[1])
    await loop.settle()
    said = loop.changelog.log("changelog", 0)[end:]
    assert (said[0].key, said[0].value) == (key, right)
    assert loop.partitions[0].changelog_offset() == said[-1].offset
    await loop.close()


async def test_a_view_stays_until_a_newer_one_is_complete_here_whatever_was_said_of_the_owner_before(tmp_path: Path) -> None:
    """The owner before had built the newer version and said so; whoever takes over has the older one alone."""
    loop = Loopback(tmp_path, partitions=1)
    loop.open()
    loop.apply(JOURNEYS[0])
    loop.send("activities", {"id": "a", "contact_id": "c", "type": "pagevisit", "at": T0_MS, "page": "/a"}, "c")
    await loop.settle()
    await loop.partitions.pop(0).close()
    shutil.copytree(tmp_path / "partition-0", tmp_path / "kept")
    loop.recover(0)
    loop.apply({**JOURNEYS[0], "version": 2, "stages": JOURNEYS[0]["stages"][:2]})
    await loop.settle()
    common = max(view.order for view in loop.partitions[0].views.all)
    await loop.partitions.pop(0).close()
    shutil.rmtree(tmp_path / "partition-0")
    shutil.copytree(tmp_path / "kept", tmp_path / "partition-0")
    loop.context.common = lambda journey: common
    loop.recover(0)
    partition = loop.partitions[0]
    partition.building.settle()
    shown = [view.journey.version for view in partition.views.all if partition.building.readable(view)]
    assert shown == [1]
    await loop.settle()
    partition.building.settle()
    await partition.drain()
    assert [view.journey.version for view in partition.views.all] == [2]
    assert loop.counts("straight") == [1, 0]
    await loop.close()


async def test_positions_go_to_the_changelog_although_nothing_meets_a_rule(tmp_path: Path) -> None:
    """Else whoever takes over would not know how far the owner before may have announced something (`Partition.activate`)."""
    loop = Loopback(tmp_path, partitions=1, chunk=50)
    loop.context.chunk_records = 10
    loop.open()
    for n in range(200):
        loop.send("activities", {"id": f"a{n}", "contact_id": "c", "type": "click", "at": T0_MS}, "c")
    await loop.settle()
    written = [int(r.value) for r in loop.changelog.log("changelog", 0) if r.key == b"pactivities"]
    assert written
    assert max(written) > 200 - 10 - 1
    assert all(b - a <= 20 for a, b in pairwise([0, *written]))
    await loop.close()
