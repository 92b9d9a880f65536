"""Whatever lies in the changelog: recovery passes over what no worker writes, keeps what is known and rejects it once."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.entries import refusal
from agents.partition import SOURCES, Partition
from schemas.times import LAST_MS
from state import joining, records
from state.evidence import Evidence, hit
from state.identity import Identity, Merge, Profile
from streams.blocks import Rows
from tests.support.hostile import hostile_variants
from tests.support.loopback import CHANGELOG, Loopback
from tests.support.loopback import TOPICS as NAMES
from tests.support.records import block_of

AT_MS = 1_700_000_000_000
JOURNEY = {
    "id": "j", "name": "J", "version": 1, "saved_at": 0,
    "stages": [{"name": "s", "condition": {"any": [{"rule": "visited_page", "page": "/"}]}}],
}  # fmt: skip
RULE = b"12345678"
H8 = b"87654321"


def evidence(*at_ms: int) -> bytes:
    return records.encode_evidence(Evidence({RULE: b"".join(hit(at, H8) for at in at_ms)}), False)


def identity() -> bytes:
    who = Identity(
        "c",
        {"c", "d"},
        {Merge(AT_MS, H8, "d", "c")},
        {"c": Profile(AT_MS, "{}", ("g",))},
        5,
        "c",
        ("g",),
    )
    return records.encode_identity(who)


def wild(seed: int) -> Iterator[tuple[bytes | None, bytes | None]]:
    """Keys and values that no worker writes, and sound ones with some bytes changed."""
    r = random.Random(seed)
    for key in (
        None,
        b"",
        b"#",
        b"x" + bytes(17),
        b"t" + bytes(26),
        b"\xff",
        b"e",
        b"i",
        b"e\xff",
        b"e" + b"c" * 201,
        b"swept",
        b"hex",
        b"fec",
    ):
        yield key, b"1"
    for key, value in (
        (b"pchangelog", b"9"), (b"pactivities", b"1e999"), (b"pactivities", b"-1"), (b"pactivities", b"9" * 40), (b"p\xff", b"1"),
        (b"pactivities", b""), (b"rc", b"1234567"), (b"r\xff", b""), (b"ec", b""), (b"ic", b""), (b"ec", b"\x01"), (b"ec", b"\x01\x02"),
        (b"ec", b"\x01\x02\xff"), (b"ec", b"\x01\x03c"), (b"ec", b"\xff" * 40), (b"ic", b"\x01" + b"\xff" * 40), (b"ec", bytes(40)),
        (b"ec", evidence(LAST_MS + 1)), (b"ec", evidence(AT_MS + 1, AT_MS)), (b"v12345678", b"{}"), (b"v1", None), (b"v12345678", b"[" * 99_999),
    ):  # fmt: skip
        yield key, value
    for key, sound in (
        (b"ec", evidence(AT_MS, AT_MS + 5)),
        (b"ic", identity()),
        (b"ec", records.encode_alias("d")),
    ):
        for _ in range(150):
            made = bytearray(sound)
            for _ in range(r.randrange(1, 4)):
                kind, at = r.randrange(3), r.randrange(1, len(made) + 1)
                if kind == 0:
                    made[at - 1] ^= 1 << r.randrange(8)
                elif kind == 1:
                    del made[at:]
                else:
                    made[at:at] = r.randbytes(r.randrange(1, 9))
                if len(made) < 2:
                    break
            if not made or made[0] not in records.LATER_VERSIONS:
                yield key, bytes(made)


def test_what_is_not_refused_can_be_read_and_joined() -> None:
    taken = refused = 0
    for key, value in wild(3):
        if refusal(key, value) is not None:
            refused += 1
            continue
        taken += 1
        assert key is not None
        if value is None or key[:1] not in (b"e", b"i"):
            continue
        whole = evidence(AT_MS) if key[:1] == b"e" else identity()
        for one, other in ((value, whole), (whole, value)):
            joining.join_all(key, [one, other])
            joined = joining.join(key, one, other)
            assert joined is not None
            assert refusal(key, joined) is None
    assert taken > 20
    assert refused > 200


@pytest.mark.parametrize(
    "value", [evidence(AT_MS), evidence(), identity(), None, records.encode_alias("d")]
)
def test_what_workers_write_is_not_refused(value: bytes | None) -> None:
    key = b"ic" if value == identity() else b"ec"
    assert refusal(key, value) is None


def test_a_record_of_a_later_program_is_not_passed_over() -> None:
    for version in records.LATER_VERSIONS:
        with pytest.raises(records.UnknownVersion):
            refusal(b"ec", bytes((version,)) + evidence(AT_MS)[1:])


def test_what_the_compiled_loop_is_certain_of_is_not_refused() -> None:
    joining.loops.warm()
    found = [(key or b"", value or b"") for key, value in wild(6)]
    found += [(b"ec", evidence(AT_MS, AT_MS + 1)), (b"ec", evidence()), (b"ec", evidence(LAST_MS))]
    data = b"".join(part for one in found for part in one)
    spans, at = [], 0
    for key, value in found:
        spans.append((at, len(key), at + len(key), len(value)))
        at += len(key) + len(value)
    certain = joining.certain(data, np.array(spans, np.int64)).tolist()
    assert [one for one, sure in zip(found, certain, strict=True) if sure and refusal(*one)] == []
    assert certain[-3:] == [True, True, True]
    assert 3 < sum(certain) < len(found) // 2


async def counted(loop: Loopback) -> dict[bytes, bytes]:
    return {key: value for p in loop.partitions.values() for key, value in p.ledger.scan(b"e")}


@pytest.mark.parametrize("in_bulk", [False, True])
async def test_a_changelog_full_of_what_no_worker_writes_is_recovered(
    tmp_path: Path, in_bulk: bool
) -> None:
    loop = Loopback(tmp_path / "one", partitions=1)
    loop.context.topics = {**NAMES, "evidence-changelog": CHANGELOG}
    loop.open()
    loop.apply(JOURNEY)
    for n in range(20):
        act = {
            "id": f"a{n}",
            "contact_id": f"c{n % 5}",
            "type": "pagevisit",
            "page": "/",
            "at": AT_MS + n,
        }
        loop.send("activities", json.dumps(act).encode(), f"c{n % 5}")
    await loop.settle()
    before = await counted(loop)
    assert len(before) == 5
    await loop.partitions[0].close()
    view = next(r for r in loop.changelog.log(CHANGELOG, 0) if r.key[:1] == b"v")
    bad: list[tuple[Any, Any]] = [*wild(4)]
    bad += [(b"ec0", value) for _, value in wild(5)]
    bad += [(view.key, raw) for raw in hostile_variants(view.value)][::7]
    sound = [one for one in bad if refusal(*one) is None]
    bad = [one for one in bad if refusal(*one) is not None]
    assert len(bad) > 400
    assert len(sound) < len(bad)
    for key, value in bad:
        loop.changelog.append(CHANGELOG, 0, key, value)

    loop.context.data_dir = tmp_path / "two"  # everything from the changelog
    if in_bulk:
        joining.loops.warm()
        log = loop.changelog.log(CHANGELOG, 0)
        partition = loop.partitions[0] = Partition(0, loop.context)
        partition.recover(Rows(block_of(log)), len(log) - 1)
        partition.activate({source: len(loop.out.log(NAMES[source], 0)) for source in SOURCES})
    else:
        loop.recover(0)
    loop.recalculating.apply()
    await loop.settle()
    assert loop.failures == []
    assert await counted(loop) == before
    last = {record.key: record.value for record in loop.changelog.log(CHANGELOG, 0)}
    assert last[b"ec0"] == before[b"ec0"], "the changelog's last word is what is known"
    assert last[b"ec"] is None
    rejected = loop.out.all(NAMES["rejected"])
    assert {(one.key, one.value) for one in rejected} <= set(bad)
    assert b"ec0" in {one.key for one in rejected}
    assert all(
        dict(one.headers)["waypost_error"].startswith(b"not a changelog record") for one in rejected
    )
    await loop.partitions[0].close()
