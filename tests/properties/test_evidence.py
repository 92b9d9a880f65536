"""Evidence is a join-semilattice, bounded or not, and so are the records that hold it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from state import joining, records
from state.evidence import HIT_BYTES, LIMIT_HITS, Evidence, each, first_at_or_after, hit, moment, moment_ms, union
from state.identity import Identity
from tests.support.strategies import CONTACTS, blobs, hit_sets, hits, merges, profiles, rule_keys

marks = st.frozensets(rule_keys, max_size=2)


def evidence(found: dict[bytes, bytes], marked: frozenset[bytes] = frozenset()) -> Evidence:
    return Evidence(dict(found), marked)


def joined(*parts: Evidence) -> tuple[dict[bytes, bytes], frozenset[bytes]]:
    total = Evidence()
    for part in parts:
        total.join(part.hits, part.marked)
    return total.hits, total.marked


@given(blobs, blobs, blobs)
def test_union_is_commutative_associative_idempotent(a: bytes, b: bytes, c: bytes) -> None:
    assert union(a, b) == union(b, a)
    assert union(union(a, b), c) == union(a, union(b, c))
    assert union(a, a) == a
    assert set(each(union(a, b))) == set(each(a)) | set(each(b))
    assert list(each(union(a, b))) == sorted(each(union(a, b)))


@given(hit_sets, hit_sets, hit_sets, marks)
def test_evidence_joins_in_any_order(
    a: dict[bytes, bytes], b: dict[bytes, bytes], c: dict[bytes, bytes], marked: frozenset[bytes]
) -> None:
    x, y, z = evidence(a, marked), evidence(b), evidence(c)
    assert joined(x, y, z) == joined(z, y, x) == joined(y, x, z, x, y)


@given(hit_sets, hit_sets)
def test_join_says_whether_anything_was_new(a: dict[bytes, bytes], b: dict[bytes, bytes]) -> None:
    x = evidence(a)
    before = dict(x.hits)
    assert x.join(b) == (x.hits != before)
    assert not x.join(b), "the same again is never new"


@given(st.lists(hits, max_size=20))
def test_hits_one_by_one_or_together(found: list[bytes]) -> None:
    one_by_one, rule = Evidence(), b"r" * 8
    new = [one_by_one.add(rule, each_hit) for each_hit in found]
    together = b"".join(sorted(set(found)))
    assert one_by_one.hits.get(rule, b"") == together
    assert sum(new) == len(set(found))


@given(blobs, hits)
def test_search_is_a_search(blob: bytes, key: bytes) -> None:
    found = list(each(blob))
    expected = next((i for i, one in enumerate(found) if one >= key), len(found))
    assert first_at_or_after(blob, key) == expected * HIT_BYTES
    assert first_at_or_after(blob, key[:8]) == sum(one[:8] < key[:8] for one in found) * HIT_BYTES


@given(st.integers(-(2**62), 2**62), st.integers(-(2**62), 2**62))
def test_bytes_of_times_sort_as_times_do(a: int, b: int) -> None:
    assert (moment(a) < moment(b)) == (a < b)
    assert moment_ms(moment(a)) == a == moment_ms(hit(a, b"h" * 8))


@given(hit_sets, st.integers(-1, 10))
def test_erasure_forgets_what_is_not_after_it(found: dict[bytes, bytes], erased_at_ms: int) -> None:
    x = evidence(found)
    expected = {
        rule: kept
        for rule, blob in found.items()
        if (kept := b"".join(one for one in each(blob) if moment_ms(one) > erased_at_ms))
    }
    assert x.forget(erased_at_ms) == (expected != found)
    assert x.hits == expected


# -- the bound ------------------------------------------------------------------------------------------------------------

ids = st.integers(0, 3 * LIMIT_HITS)


@st.composite
def many(draw: st.DrawFn) -> set[int]:
    """A set of hits, by number, around the bound: some runs and some single ones."""
    found = set(draw(st.lists(ids, max_size=20)))
    for _ in range(draw(st.integers(0, 3))):
        start, length = draw(ids), draw(st.integers(1, LIMIT_HITS))
        found |= set(range(start, start + length))
    return found


def blob_of(numbers: set[int]) -> bytes:
    return b"".join(hit(n // 3, n.to_bytes(8, "big")) for n in sorted(numbers))


def bounded_of(numbers: set[int]) -> bytes:
    """What must be kept of the true set: everything, or the earliest and the latest half."""
    ordered = sorted(numbers)
    half = LIMIT_HITS // 2
    return blob_of(set(ordered if len(ordered) <= LIMIT_HITS else ordered[:half] + ordered[-half:]))


@settings(max_examples=60, deadline=None)
@given(st.lists(many(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_bounded_evidence_is_the_ends_of_the_true_set_in_any_order(parts: list[set[int]], random: object) -> None:
    rule = b"r" * 8
    truth = set[int]().union(*parts)
    pieces = []
    for part in parts:  # each part was cut before it came
        piece = Evidence()
        if part:
            piece.add(rule, blob_of(part))
        pieces.append(piece)
    random.shuffle(pieces)  # type: ignore[attr-defined]
    hits, marked = joined(*pieces, *pieces)
    assert hits.get(rule, b"") == bounded_of(truth)
    assert (rule in marked) == (len(truth) > LIMIT_HITS)
    a, b = joined(*pieces[:1], *pieces[1:]), joined(*reversed(pieces))
    assert a == b


# -- records --------------------------------------------------------------------------------------------------------------


@given(hit_sets, marks, st.booleans())
def test_an_evidence_record_reads_as_written(
    found: dict[bytes, bytes], marked: frozenset[bytes], has_identity: bool
) -> None:
    marked &= found.keys()
    record = records.encode_evidence(evidence(found, marked), has_identity)
    assert records.pointer_of(record) is None
    read, flag = records.decode_evidence(record)
    assert (read.hits, read.marked, flag) == (found, marked, has_identity)


@given(st.text(min_size=1, max_size=200).filter(lambda text: text.isprintable()))
def test_an_alias_record_reads_as_written(pointer: str) -> None:
    assert records.pointer_of(records.encode_alias(pointer)) == pointer


@st.composite
def identities(draw: st.DrawFn) -> Identity:
    found = Identity(CONTACTS[0])
    found.join(
        draw(st.sets(st.sampled_from(CONTACTS), max_size=4)),
        draw(st.lists(merges, max_size=4)),
        draw(st.dictionaries(st.sampled_from(CONTACTS), profiles, max_size=3)),
        draw(st.none() | st.integers(0, 9)),
    )
    return found


@given(identities())
def test_an_identity_record_reads_as_written(identity: Identity) -> None:
    record = records.encode_identity(identity)
    read = records.decode_identity(identity.holder, record)
    assert read == identity
    assert records.decode_head(record) == (identity.name, identity.groups, identity.erased_at_ms)


evidence_records = st.one_of(
    st.builds(lambda found, flag: records.encode_evidence(evidence(found), flag), hit_sets, st.booleans()),
    st.just(records.encode_alias("ann")),
)
identity_records = identities().map(records.encode_identity)
E_KEY, I_KEY = records.EVIDENCE + CONTACTS[0].encode(), records.IDENTITY + CONTACTS[0].encode()


def said(key: bytes, record: bytes | None) -> object:
    """What a record says, apart from the order in which it says it."""
    if record is None:
        return None
    if key == I_KEY:
        return records.decode_identity(CONTACTS[0], record)
    pointer = records.pointer_of(record)
    if pointer is not None:
        return pointer
    read, flag = records.decode_evidence(record)
    return read.hits, read.marked, flag


@given(st.data(), st.sampled_from((E_KEY, I_KEY)))
def test_records_join_in_any_order(data: st.DataObject, key: bytes) -> None:
    kind = evidence_records if key == E_KEY else identity_records
    a, b, c = data.draw(kind), data.draw(kind), data.draw(kind)

    def join(x: bytes | None, y: bytes | None) -> bytes | None:
        return joining.join(key, x, y)

    assert said(key, join(a, b)) == said(key, join(b, a))
    assert said(key, join(join(a, b), c)) == said(key, join(a, join(b, c)))
    assert said(key, join(a, a)) == said(key, a)
    assert join(None, a) == a
    once = join(a, b)
    assert said(key, join(once, b)) == said(key, once), "a record that was joined already changes nothing"


@given(hit_sets)
def test_an_alias_stands_above_every_holder(found: dict[bytes, bytes]) -> None:
    alias, holder = records.encode_alias("ann"), records.encode_evidence(evidence(found), False)
    assert joining.join(E_KEY, holder, alias) == alias == joining.join(E_KEY, alias, holder)
