"""Records stay smaller than their topics take: split where they can be, else cut, the same way in any order, and marked. Nothing ends a worker."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import handoffs, intake, questions
from agents.partitions import Partitions, split_totals, totals_key
from console.rejected import Id
from console.resending import Mend, prepare
from schemas.errors import Refused
from schemas.hashing import h8
from schemas.journey import parse_journey
from schemas.profile import TRUNCATED
from schemas.recalculation import EDIT, PLANNED, Compared, ComparisonReport, Recalculation, encode, encode_report
from schemas.rules import PerformedActivity, rule_key
from state import comparison, joining, records
from state import evidence as evidence_module
from state import identity as identity_module
from state import recalculation as recalculation_module
from state.batch import Batch
from state.evidence import HIT_BYTES, LIMIT_HITS, MAX_HALVINGS, MAX_RECORD_BYTES, Evidence, hit, record_bytes
from state.identity import MAX_MERGES_BYTES, MAX_PROFILES_BYTES, Identity, Merge, Profile, place
from state.messages import MERGE, Join, Said
from state.recalculation import evidence_key, parts
from state.views import Source, Views
from streams.topics import BY_NAME
from tests.properties.test_evidence import blob_of, many
from tests.properties.test_kernel import cells, decided, record_of, views_of
from tests.support.loopback import CHANGELOG, TOPICS, Loopback, Record
from tests.support.strategies import CONTACTS, hit_sets, merges, profiles

T0_MS = 1_767_323_045_000
LONG = "\U0001f642"  # a character of four bytes
EVIDENCE_KEY = records.EVIDENCE + b"a"


# -- evidence ---------------------------------------------------------------------------------------------------------------

RULES = [bytes([n]) * 8 for n in range(4)]
parts_of_rules = st.lists(st.dictionaries(st.sampled_from(RULES), many().filter(bool), max_size=4), min_size=1, max_size=4)
SMALL = 3 * LIMIT_HITS * HIT_BYTES // 2  # less than two full rules


def expected(parts: list[dict[bytes, set[int]]]) -> tuple[dict[bytes, bytes], set[bytes], int]:
    """What must be kept of the true sets: of each rule everything, or the ends, at the first limit at which the record fits."""
    truth: dict[bytes, set[int]] = {}
    for part in parts:
        for rule, numbers in part.items():
            truth.setdefault(rule, set()).update(numbers)
    for halvings in range(MAX_HALVINGS + 1):
        half = LIMIT_HITS >> halvings >> 1
        kept = {}
        for rule, numbers in truth.items():
            ordered = sorted(numbers)
            kept[rule] = blob_of(set(ordered if len(ordered) <= 2 * half else ordered[:half] + ordered[-half:]))
        if record_bytes(kept) <= SMALL:
            break
    return kept, {rule for rule, numbers in truth.items() if len(numbers) > 2 * half}, halvings


def evidence_of(part: dict[bytes, set[int]]) -> Evidence:
    found = Evidence()
    found.join({rule: blob_of(numbers) for rule, numbers in part.items()})
    found.bound()
    return found


@settings(max_examples=60)
@given(parts_of_rules, st.randoms(use_true_random=False), st.booleans())
def test_a_large_record_is_cut_to_the_same_in_any_order(parts: list[dict[bytes, set[int]]], random: Any, at_once: bool) -> None:
    with patch.object(evidence_module, "MAX_RECORD_BYTES", SMALL):
        pieces = [evidence_of(part) for part in parts]
        again = [*pieces, *pieces[:2]]
        random.shuffle(again)
        whole = Evidence()
        for piece in again:
            whole.join(piece.hits, piece.marked, piece.halvings)
            assert at_once or whole.bound() in (True, False)
        whole.bound()
        values = [records.encode_evidence(piece, False) for piece in again]
        together, _ = joining.join_all(EVIDENCE_KEY, values)
        one_by_one: bytes | None = None
        for value in values:
            one_by_one = joining.join(EVIDENCE_KEY, one_by_one, value)
    kept, marked, halvings = expected(parts)
    for record in (records.encode_evidence(whole, False), together, one_by_one):
        assert record is not None
        found, _ = records.decode_evidence(record)
        assert (found.hits, set(found.marked), found.halvings) == (kept, marked, halvings)
        assert len(record) == record_bytes(kept) <= SMALL


@given(hit_sets, st.integers(0, MAX_HALVINGS))
def test_how_often_the_limit_was_halved_stands_in_the_record(found: dict[bytes, bytes], halvings: int) -> None:
    written = Evidence(dict(found), halvings=halvings)
    record = records.encode_evidence(written, True)
    read, has_identity = records.decode_evidence(record)
    assert (read.hits, read.halvings, has_identity) == (found, halvings, True)
    assert records.is_plain(record) is False
    assert records.is_plain(records.encode_evidence(written, False)) == (halvings == 0)


def test_as_many_rules_as_a_record_counts() -> None:
    many_rules = {n.to_bytes(8, "big"): hit(1, bytes(8)) for n in range(70_000)}
    found = Evidence(dict(many_rules))
    assert found.bound()
    read, _ = records.decode_evidence(records.encode_evidence(found, False))
    assert len(read.hits) == 65_535 == len(read.marked)
    assert read.hits.keys() == set(sorted(many_rules)[:65_535])


@pytest.mark.parametrize("more", [0, 1])
def test_compiled_code_leaves_a_record_that_would_be_too_large(more: int) -> None:
    """Of one that is as large as may be, and of one hit more."""
    made: list[Any] = [(parse_journey(journey("j", [["seen"], ["rest"]])).stages, _source("seen", "rest"))]
    blob = b"".join(hit(at, bytes(8)) for at in range(4095))
    full = {b"%08d" % n: blob for n in range(192)}
    left = (MAX_RECORD_BYTES - record_bytes(full) - 10) // HIT_BYTES
    full[b"rest    "] = b"".join(hit(at, bytes(8)) for at in range(left - 1))
    record = record_of([], "plain")
    assert record is not None
    known: dict[bytes, bytes | None] = {EVIDENCE_KEY: records.encode_evidence(Evidence(full), False)}
    new = {"a": [(b"rest    ", hit(9999 + n, bytes(8))) for n in range(1 + more)]}
    compiled, written = (decided(views_of(made), known, new, few) for few in (0, 1 << 30))
    assert compiled.records == written.records
    assert compiled.entries == written.entries
    assert cells(compiled) == cells(written)
    assert sorted(map(repr, compiled.changes)) == sorted(map(repr, written.changes))
    after = compiled.records[EVIDENCE_KEY]
    assert after is not None
    found, _ = records.decode_evidence(after)
    assert found.halvings == more
    assert len(after) <= MAX_RECORD_BYTES
    assert compiled.truncated == written.truncated == ({"hits": 1} if more else {})


def _source(*names: str) -> Source:
    return Source({rule_key(PerformedActivity(activity=name)): name.ljust(8).encode() for name in names}, 1, "r")


# -- identity ---------------------------------------------------------------------------------------------------------------


def ids(count: int, width: int, char: str) -> list[str]:
    return [f"{n:06}".ljust(width, char) for n in range(count)]


def chain(contacts: list[str]) -> tuple[Merge, ...]:
    return tuple(Merge(T0_MS + n, h8(f"m{n}"), a, b) for n, (a, b) in enumerate(pairwise(contacts)))


def test_ten_thousand_merges_of_the_longest_ids_fit() -> None:
    contacts = ids(10_001, 200, LONG)
    whole = Identity(contacts[0])
    whole.join(contacts, chain(contacts), {contacts[-1]: Profile(1, "{}", ("red",))})
    assert whole.cut == ()
    assert len(whole.merges) == 10_000
    assert whole.merges_bytes() <= MAX_MERGES_BYTES
    record = records.encode_identity(whole)
    assert len(record) < BY_NAME["evidence-changelog"].max_message_bytes - MAX_PROFILES_BYTES - (1 << 20)
    assert records.decode_head(record) == (contacts[-1], ("red",), None)
    assert records.decode_identity(contacts[0], record) == whole


def identity_of(members: set[str], found: list[Merge], said: dict[str, Profile]) -> Identity:
    made = Identity(CONTACTS[0])
    made.join(members, found, said)
    return made


identities = st.builds(
    identity_of, st.sets(st.sampled_from(CONTACTS), max_size=4), st.lists(merges, max_size=4),
    st.dictionaries(st.sampled_from(CONTACTS), profiles, max_size=3),
)  # fmt: skip


@given(identities, st.sampled_from([0, 40, 1 << 20]))
def test_either_layout_of_an_identity_reads_as_written(identity: Identity, compact_bytes: int) -> None:
    with patch.object(records, "COMPACT_BYTES", compact_bytes):
        record = records.encode_identity(identity)
    assert record[0] == (2 if compact_bytes == 0 else record[0])
    assert records.decode_identity(identity.holder, record) == identity
    assert records.decode_head(record) == (identity.name, identity.groups, identity.erased_at_ms)


def test_merges_of_more_than_a_record_holds_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity_module, "MAX_MERGES_BYTES", 40_000)
    monkeypatch.setattr("state.batch.MAX_MERGES_BYTES", 40_000)
    monkeypatch.setattr(records, "COMPACT_BYTES", 0)
    contacts = ids(30, 190, LONG)
    batch = Batch(Views(), {}.get, lambda _: True)
    log = [
        Record(n, 0, None, json.dumps({"id": f"m{n}", "from": a, "into": b, "at": T0_MS}).encode())
        for n, (a, b) in enumerate([(contacts[0], other) for other in contacts[1:]] * 2)
    ]
    for message in intake.merges(log, "waypost.contact-merges", 0, T0_MS, 0).messages:
        batch.deliver(message)
    decision = batch.decide()
    assert decision.refused
    assert all("take" in reason and "the limit is 40000" in reason for _, reason in decision.refused)
    taken = 58 - len(decision.refused)
    assert taken > 20  # some of them twice, which is no new merge
    assert max(len(value) for value in decision.records.values() if value) < 42_000


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=60))
def test_persons_that_become_too_large_together_keep_the_newest_merges(pairs: list[tuple[int, int]]) -> None:
    found = [Merge(at, h8(f"m{at}"), f"c{a}".ljust(50, LONG), f"c{b}".ljust(50, LONG)) for at, (a, b) in enumerate(pairs)]
    holder = found[0].from_
    with patch.object(identity_module, "MAX_MERGES_BYTES", 3000):
        one, other = Identity(holder), Identity(holder)
        one.join({m.into for m in found}, found)
        for merge in found:
            other.join({merge.into}, [merge])
        for made in (one, other):
            assert made.merges_bytes() <= 3000
            assert holder in made.members
            assert made.merges == set(found[len(found) - len(made.merges) :])
        assert one.cut == (("merges",) if len(one.merges) < len(found) else ())
    assert one.merges == other.merges


def test_the_survivor_and_the_newest_keep_their_profiles_whole() -> None:
    contacts = [f"c{n}" for n in range(18)]
    said = {contact: Profile(T0_MS - n, json.dumps({"n": n, "text": "x" * 1_000_000}), (f"g{n}",)) for n, contact in enumerate(contacts)}
    holder = min(contacts, key=place)
    whole = Identity(holder)
    whole.join(contacts, chain(contacts), said)
    assert whole.name == "c17"
    assert whole.groups == ("g17",)
    assert whole.cut == ("profiles",)
    kept = {contact for contact in contacts if whole.profiles[contact] == said[contact]}
    assert kept == {"c0", "c1", "c2", "c3", "c17"}
    assert all(whole.profiles[contact] == (said[contact].at_ms, TRUNCATED, said[contact].groups) for contact in set(contacts) - kept)
    assert len(records.encode_identity(whole)) < MAX_PROFILES_BYTES + 100_000
    before = records.encode_identity(whole)
    whole.join(profiles=said)
    assert records.encode_identity(whole) == before, "what was cut stays cut, however often it comes"


def test_groups_go_last_and_never_the_survivors() -> None:
    contacts = [f"c{n}" for n in range(8)]
    groups = tuple(f"group-{n:06}" for n in range(60_000))
    said = {contact: Profile(T0_MS - n, '{"a":1}', (*groups, contact)) for n, contact in enumerate(contacts)}
    whole = Identity(min(contacts, key=place))
    whole.join(contacts, chain(contacts), said)
    assert whole.groups == (*groups, "c7")
    assert sum(bool(profile.groups) for profile in whole.profiles.values()) == 5
    assert len(records.encode_identity(whole)) < MAX_PROFILES_BYTES + (2 << 20)


# -- handoffs ---------------------------------------------------------------------------------------------------------------

names = st.lists(st.text(max_size=9), max_size=3).map(tuple)
said_of = st.dictionaries(st.sampled_from(["j", "k", "l"]), st.builds(Said, st.integers(0, 2), st.booleans(), names, st.integers(0, 9)), max_size=3)
ids_of_hits = st.dictionaries(st.sampled_from([hit(at, h8(f"act-{n}")) for at in range(10) for n in range(13)]), st.text(min_size=1, max_size=9))
joins = st.builds(
    Join, st.just("ann"), hit_sets, st.frozensets(st.sampled_from([bytes([n]) * 8 for n in range(6)]), max_size=2),
    st.lists(st.sampled_from(CONTACTS), unique=True, max_size=4).map(tuple), st.lists(merges, unique=True, max_size=4).map(tuple),
    st.dictionaries(st.sampled_from(CONTACTS), profiles, max_size=3), st.none() | st.integers(0, 5), st.just(MERGE), st.none() | st.just("m"),
    ids_of_hits, st.none() | st.just("bob"), said_of, st.booleans(), st.integers(0, MAX_HALVINGS),
)  # fmt: skip


@settings(max_examples=60)
@given(joins, st.integers(1, 200))
def test_the_pieces_of_a_join_are_the_join(message: Join, piece_bytes: int) -> None:
    hits = {blob[at : at + HIT_BYTES] for blob in message.hits.values() for at in range(0, len(blob), HIT_BYTES)}
    message = message._replace(ids={hit: id_ for hit, id_ in message.ids.items() if hit in hits})
    with patch.object(handoffs, "MAX_PIECE_BYTES", piece_bytes), patch.object(handoffs, "PIECE_HITS", 2):
        pieces = [handoffs.decode(raw) for raw in handoffs.encode_all(message)]
    found = [piece for piece in pieces if isinstance(piece, Join)]
    if len(found) == 1 and found[0].said == message.said:
        assert found == [message]
        return
    once = {(one.to, one.cause, one.cause_id, one.erased_at_ms, one.again, one.halvings) for one in found}
    assert once == {("ann", MERGE, message.cause_id, message.erased_at_ms, message.again, message.halvings)}
    assert {field: _united(found, field) for field in ("hits", "profiles", "said")} == {
        "hits": dict(message.hits), "profiles": dict(message.profiles),
        "said": {journey: one._replace(settled=False) for journey, one in message.said.items()},
    }  # fmt: skip
    assert _united(found, "ids") == message.ids
    assert frozenset().union(*(one.marked for one in found)) == message.marked
    assert tuple(merge for one in found for merge in one.merges) == message.merges
    assert [one.members for one in found if one.members] == ([message.members] if message.members else []), "a name comes at once"
    spoken = [n for n, one in enumerate(found) if one.said or one.part is not None]
    facts = [n for n, one in enumerate(found) if one.hits or one.merges or one.profiles]
    assert not spoken or not facts or min(spoken) > max(facts), "what was announced comes last"
    assert {found[n].part for n in spoken} <= {message.part}
    assert bool(spoken) == bool(message.said or message.part is not None)


def _united(found: list[Join], field: str) -> dict[Any, Any]:
    whole: dict[Any, Any] = {}
    for one in found:
        for key, value in getattr(one, field).items():
            whole[key] = whole.get(key, b"") + value if field == "hits" else value
    return whole


def test_a_join_without_anything_cut_is_written_as_ever() -> None:
    """Workers of before read it: during an upgrade they may."""
    raw = handoffs._decode_envelope(handoffs.encode(Join("c")))[2]
    assert len(msgspec.msgpack.decode(raw)) == 13


# -- recalculations, rejected records ----------------------------------------------------------------------------------------


def test_a_recalculation_of_very_many_rules_is_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recalculation_module, "MAX_RULES_BYTES", 2000)
    rules = tuple(PerformedActivity(activity=f"a{n:03}") for n in range(100))
    whole = Recalculation(id="r", state=PLANNED, cause=EDIT, journeys=("j",), rules=rules, planned_at=7)
    found = parts(whole)
    assert [one.id for one in found] == ["r", *(f"r-{n}" for n in range(1, len(found)))]
    assert [one.planned_at for one in found] == list(range(7, 7 + len(found)))
    assert tuple(rule for one in found for rule in one.rules) == rules
    assert all(len(encode(one)) < 3000 for one in found)
    assert len(found) > 2
    assert parts(whole.but(rules=rules[:3])) == [whole.but(rules=rules[:3])]


def test_what_a_recalculation_gathers_about_its_rules_fits() -> None:
    """Each rule, and since when no journey needs it."""
    rules = tuple(PerformedActivity(activity=f"{n:05}".rjust(100, "x")) for n in range(recalculation_module.MAX_RULES))
    [first, *_] = parts(Recalculation(id="r", state=PLANNED, cause=EDIT, journeys=tuple(f"j-{n}" for n in range(2000)), rules=rules))
    assert len(first.rules) > 40_000
    unneeded = {rule_key(rule).hex(): T0_MS for rule in first.rules}
    assert len(encode(first.but(unneeded=unneeded))) < BY_NAME["recalculations"].max_message_bytes - 100_000


def test_a_partition_reports_of_the_journeys_that_differ_most() -> None:
    """Of more than a record has room for."""
    def compared(n: int, off: int) -> Compared:
        return Compared(f"journey-{n}".ljust(64, "x"), 10**6, *((10**9 + differ,) * 10 for differ in (0, 0, off)))

    some, more = ([compared(n, n * 7919 % count) for n in range(count)] for count in (1000, 4000))
    assert comparison._fitting(some) == some
    kept = comparison._fitting(more)
    assert 1000 < len(kept) < 4000
    assert len(encode_report(ComparisonReport(10**9, tuple(kept)))) < BY_NAME["recalculation-reports"].max_message_bytes
    assert [one.rebuilt[0] - 10**9 for one in kept] == list(range(3999, 3999 - len(kept), -1))


@pytest.mark.parametrize(("key", "value", "headers"), [
    (b"k", b"v" * (20 << 20), [("a", b"1")]), (b"k" * (20 << 20), b"v", []), (b"k", None, [("h" * 1000, b"x" * (9 << 20))]),
    (None, b"v" * (8 << 20), []),
])  # fmt: skip
def test_a_rejected_record_that_is_too_large_is_cut_and_says_so(key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> None:
    record = Record(3, 0, key, value, headers)
    _, kept_key, kept, said, _ = intake.rejected("waypost.activities", 1, record, Refused("too_large", "x" * 100_000), T0_MS)
    size = len(kept_key or b"") + len(kept or b"") + sum(len(name) + len(value) for name, value in said)
    assert size < BY_NAME["rejected"].max_message_bytes - 100_000
    came = len(key or b"") + len(value or b"") + sum(len(name) + len(one) for name, one in headers)
    assert said[0][0] == "waypost_truncated"
    assert came <= int(said[0][1]) <= came + 100
    assert kept is None or (value or b"").startswith(kept)
    assert kept_key is None or (key or b"").startswith(kept_key)


def test_a_rejected_record_that_was_cut_is_sent_again_only_with_a_new_value() -> None:
    _, key, value, headers, _ = intake.rejected(
        "waypost.activities", 1, Record(3, 0, b"c", b"v" * (9 << 20), [("a", b"1")]), Refused("too_large", "too large"), T0_MS
    )
    kept = SimpleNamespace(key=key, value=value, headers=tuple(headers), partition=0, offset=5, timestamp=T0_MS)
    topics = {"waypost.activities": "activities"}
    with pytest.raises(Refused, match="had 9437199 bytes, and only its beginning is kept"):
        prepare(kept, Mend(Id(0, 5)), topics, 4, T0_MS, 0)
    mended = json.dumps({"contact_id": "c", "type": "click", "at": T0_MS}).encode()
    sent = prepare(kept, Mend(Id(0, 5), value=mended), topics, 4, T0_MS, 0)
    assert (sent.key, sent.value, sent.headers) == (b"c", mended, [])
    own = SimpleNamespace(key=b"c", value=b"v", headers=((intake.TRUNCATED, b"9"), ("a", b"1"), *headers[1:]), partition=0, offset=5, timestamp=T0_MS)
    assert prepare(own, Mend(Id(0, 5)), topics, 4, T0_MS, 0).headers == [(intake.TRUNCATED, b"9"), ("a", b"1")], "a header of its own"


# -- the worker's part, whole ------------------------------------------------------------------------------------------------


def journey(id_: str, stages: list[list[str]]) -> dict[str, Any]:
    return {
        "id": id_, "name": id_, "version": 1,
        "stages": [
            {"name": f"s{n}", "condition": {"any": [{"rule": "performed_activity", "activity": name} for name in names]}}
            for n, names in enumerate(stages)
        ],
    }  # fmt: skip


def bare(rules: int) -> dict[str, Any]:
    """A journey of so many rules, 50 a stage."""
    return journey("wide", [[f"a{n}" for n in range(begin, begin + 50)] for begin in range(0, rules, 50)])


async def started(directory: Path, applied: dict[str, Any], partitions: int = 1) -> Loopback:
    loop = Loopback(directory, partitions)
    loop.open()
    loop.apply(applied)
    await loop.settle()
    return loop


def arrive(loop: Loopback, source: str, contact: str, keys: list[bytes], count: int) -> None:
    """*count* hits of each of *keys*, as activities that another partition hands over."""
    hits = b"".join(hit(T0_MS + 1000 * n, h8(f"a{n}")) for n in range(count))
    for begin in range(0, len(keys), 100):
        for raw in handoffs.encode_all(Join(contact, dict.fromkeys(keys[begin : begin + 100], hits))):
            loop.send(source, raw, contact)


def keys_of(loop: Loopback, id_: str) -> list[bytes]:
    source = loop.context.recalculations.source(loop.context.catalog[id_])
    assert source is not None
    return list(source.keys.values())


async def recovered(loop: Loopback, number: int = 0) -> None:
    """The directory is lost; what the changelog has is all there is."""
    await loop.partitions.pop(number).close()
    (loop.context.data_dir / f"partition-{number}").rename(loop.context.data_dir / f"lost-{number}")
    loop.recover(number)
    await loop.settle()


async def test_300_rules_met_4300_times_by_one_contact(tmp_path: Path) -> None:
    loop = await started(tmp_path, bare(300))
    arrive(loop, "handoffs", "c", keys_of(loop, "wide"), 4300)
    await loop.settle()
    assert loop.counts("wide") == [1] * 6
    record = loop.partitions[0].ledger.get(records.EVIDENCE + b"c")
    found, _ = records.decode_evidence(record)
    assert found.halvings == 1
    assert {len(blob) for blob in found.hits.values()} == {LIMIT_HITS * HIT_BYTES // 2}
    [standing] = questions.contact(loop.partitions[0], "c")["journeys"]
    assert standing["marked"]
    loop.send("activities", {"id": "late", "contact_id": "c", "type": "a0", "at": T0_MS - 1}, "c")
    await loop.settle()
    assert loop.listed("wide", 6, "converted") == (1, [("c", T0_MS + 4000)])
    await recovered(loop)
    assert loop.listed("wide", 6, "converted") == (1, [("c", T0_MS + 4000)])
    await loop.close()


async def test_150_rules_while_a_recalculation_doubles_the_evidence(tmp_path: Path) -> None:
    loop = await started(tmp_path, bare(150))
    keys = keys_of(loop, "wide")
    arrive(loop, "handoffs", "c", keys, 4000)
    await loop.settle()
    assert not questions.contact(loop.partitions[0], "c")["journeys"][0]["marked"]
    epoch = [evidence_key(key, "next") for key in keys]
    arrive(loop, "rebuilt-evidence", "c", epoch, 4000)
    await loop.settle()
    found, _ = records.decode_evidence(loop.partitions[0].ledger.get(records.EVIDENCE + b"c"))
    assert found.hits.keys() == {*keys, *epoch}
    assert found.halvings == 1
    assert questions.contact(loop.partitions[0], "c")["journeys"][0]["marked"]
    assert loop.listed("wide", 3, "converted") == (1, [("c", T0_MS + 2000)])
    cells = questions.results(loop.partitions[0], "wide", None, None, None)["cells"]
    assert ["m", 0, 0, 1] in cells
    await recovered(loop)
    assert sorted(questions.results(loop.partitions[0], "wide", None, None, None)["cells"]) == sorted(cells)
    await loop.close()


async def test_18_profiles_of_a_megabyte_are_one_person(tmp_path: Path) -> None:
    loop = await started(tmp_path, bare(50), partitions=3)
    contacts = [f"c{n}" for n in range(18)]
    for n, contact in enumerate(contacts):
        said = {"contact_id": contact, "groups": [f"g{n}"], "attributes": {"n": n, "text": "x" * 1_000_000}, "at": T0_MS - n}
        loop.send("contacts", said, contact)
        loop.send("activities", {"id": contact, "contact_id": contact, "type": "a0", "at": T0_MS + n}, contact)
    await loop.settle()
    for n, (one, other) in enumerate(pairwise(contacts)):
        loop.send("contact-merges", {"id": f"m{n}", "from": one, "into": other, "at": T0_MS + n}, one)
    await loop.settle()
    holder = min(contacts, key=place)
    answer = next(a for a in (questions.contact(p, holder) for p in loop.partitions.values()) if a["state"] == "holder")
    assert answer["survivor"] == "c17"
    assert sorted(answer["aliases"]) == sorted(contacts[:-1])
    assert answer["profile"]["attributes"]["n"] == 17
    assert loop.counts("wide") == [1]
    assert loop.counts("wide", "g17") == [1]
    for number in loop.partitions:
        await recovered(loop, number)
    assert loop.counts("wide", "g17") == [1]
    await loop.close()


async def test_9500_merges_of_the_longest_ids_and_a_person_that_moves_with_them(tmp_path: Path) -> None:
    loop = await started(tmp_path, bare(50), partitions=3)
    contacts = ids(9_501, 200, LONG)
    holder = min(contacts, key=place)
    first = place(holder)
    far = next(far for far in (f"far-{n}" for n in range(1_000_000)) if place(far) < first)
    for raw in handoffs.encode_all(Join(holder, members=tuple(contacts), merges=chain(contacts), cause=MERGE)):
        loop.send("handoffs", raw, holder)
    loop.send("activities", {"id": "a", "contact_id": holder, "type": "a0", "at": T0_MS}, holder)
    await loop.settle()
    assert loop.listed("wide", 1, "converted") == (1, [(contacts[-1], T0_MS)])
    loop.send("contact-merges", {"id": "last", "from": holder, "into": far, "at": T0_MS - 1}, holder)
    await loop.settle()
    assert loop.listed("wide", 1, "converted") == (1, [(contacts[-1], T0_MS)])
    answer = next(a for a in (questions.contact(p, far) for p in loop.partitions.values()) if a["state"] == "holder")
    assert len(answer["aliases"]) == 9_501
    for number in loop.partitions:
        await recovered(loop, number)
    assert loop.listed("wide", 1, "converted") == (1, [(contacts[-1], T0_MS)])
    await loop.close()


async def test_the_totals_of_very_many_groups_are_published_in_pieces(tmp_path: Path) -> None:
    """25 MB of them, as 400,000 groups with short names have."""
    loop = await started(tmp_path, bare(50))
    partitions = Partitions(loop.context, SimpleNamespace(), lambda *_: 0)  # type: ignore[arg-type]
    partitions._open = loop.partitions
    [view] = loop.partitions[0].views.all
    everybody = {("r", 1, 0): 30_000, ("d", 1, 20_000): 30_000}
    totals = loop.partitions[0].totals[view.id] = {group: {("r", 1, 0): 1, ("d", 1, 20_000): 1} for group in ids(30_000, 200, LONG)}
    totals[""] = everybody
    await partitions.publish_totals()
    first = published(loop)
    assert len(first) == first[b"wide/1/0"]["pieces"] > 2
    assert first[b"wide/1/0"]["groups"][""] == [[*cell, n] for cell, n in everybody.items()]
    assert {said["as_of"] for said in first.values()} == {first[b"wide/1/0"]["as_of"]}
    assert [first[totals_key("wide/1/0", n)].get("piece", 0) for n in range(len(first))] == list(range(len(first)))
    assert sum(len(said["groups"]) for said in first.values()) == 30_001
    for group in [group for group in totals if group][10:]:
        del totals[group]
    loop.partitions[0].changed = {view.id}
    await partitions.publish_totals()
    [(key, said)] = published(loop).items()
    assert key == b"wide/1/0"
    assert "pieces" not in said
    assert len(said["groups"]) == 11
    await loop.close()


def published(loop: Loopback) -> dict[bytes, Any]:
    """What a reader of the compacted topic knows."""
    last = {record.key: record.value for record in loop.out.all(TOPICS["totals"])}
    return {key: json.loads(value) for key, value in last.items() if value is not None and key is not None}


cells_of = st.tuples(st.sampled_from("rdw"), st.integers(1, 3), st.integers(0, 9))


@given(st.dictionaries(st.text(max_size=4), st.dictionaries(cells_of, st.integers(1, 9))))
def test_pieces_of_totals_hold_each_cell_once(totals: dict[str, dict[Any, int]]) -> None:
    with patch("agents.partitions.MAX_TOTALS_BYTES", 60), patch("agents.partitions.PIECE_CELLS", 2):
        pieces = split_totals(totals)
    found: dict[str, dict[Any, int]] = {}
    for piece in pieces:
        for group, raw in piece.items():
            for kind, stage, bucket, count in json.loads(bytes(raw)):
                mine = found.setdefault(group, {})
                assert (kind, stage, bucket) not in mine
                mine[kind, stage, bucket] = count
    assert found == {group: mine for group, mine in totals.items() if mine}
    assert not found.get("") or "" in pieces[0]


def test_nothing_of_these_is_larger_than_its_topic_takes() -> None:
    """What the limits leave room for."""
    changelog = BY_NAME["evidence-changelog"].max_message_bytes
    assert changelog - (1 << 20) > MAX_RECORD_BYTES
    assert changelog - (1 << 20) > MAX_MERGES_BYTES + MAX_PROFILES_BYTES + (1 << 20), "and the survivor's groups, which come twice"
    assert 2 * handoffs.MAX_PIECE_BYTES <= BY_NAME["handoffs"].max_message_bytes == BY_NAME["rebuilt-evidence"].max_message_bytes
    assert CHANGELOG not in TOPICS.values()
