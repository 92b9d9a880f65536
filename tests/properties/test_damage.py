"""Damage: each kind of file of a real RocksDB flipped, cut, emptied and removed.

Either the damage is found, or what is read is all that was written up to some batch: nothing in
between is ever missing in silence.
"""

from __future__ import annotations

import logging
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.partition import Context
from agents.partitions import MOST_DAMAGES, Partitions
from state.ledger import KEPT_ASIDE, Damaged, Ledger, Memory, set_aside
from state.matching import Matcher

BATCHES, IN_A_BATCH = 24, 100
Harm = Callable[[bytes], bytes | None]


def flipped(at: float) -> Harm:
    def harm(data: bytes) -> bytes:
        made = bytearray(data)
        if made:
            made[min(int(len(made) * at), len(made) - 1)] ^= 0xFF
        return bytes(made)

    return harm


def cut(to: float) -> Harm:
    return lambda data: data[: int(len(data) * to)]


HARMS: dict[str, Harm] = {
    **{f"flipped at {at}": flipped(at) for at in (0, 0.4, 1)},
    **{f"cut to {to}": cut(to) for to in (0, 0.4, 0.7, 0.95)},
    "removed": lambda data: None,
}
FILES = ("*.sst", "*.log", "MANIFEST-*", "CURRENT")
OTHERS = ("OPTIONS-*", "IDENTITY", "rocksdict-config.json")


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory(16)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, memory: Memory) -> list[Path]:
    """A ledger as SIGKILL leaves it, with several files and a log; and one that was closed."""
    made, found = random.Random(1), tmp_path_factory.mktemp("written")
    ledger = Ledger(found / "open", memory)
    for batch in range(BATCHES):
        records = {
            b"e%06d" % (batch * IN_A_BATCH + n): made.randbytes(60) for n in range(IN_A_BATCH)
        }
        position = [(b"z%06d" % batch, b"x" * 16), (b"pchangelog", str(batch).encode())]
        ledger.write(position, records=records)
        if batch % 5 == 4:
            ledger._db.flush()
    shutil.copytree(found / "open", found / "killed")
    ledger.close()
    return [found / "killed", found / "open"]


def damaged_copies(written: list[Path], to: Path) -> Iterator[tuple[str, Path]]:
    for source in written:
        for pattern, name in (
            *product(FILES, HARMS),
            *product(OTHERS, ("flipped at 0.4", "cut to 0")),
        ):
            harm = HARMS[name]
            file = sorted(source.glob(pattern))[-1]
            path = to / "ledger"
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(source, path)
            left = harm(file.read_bytes())
            (path / file.name).unlink() if left is None else (path / file.name).write_bytes(left)
            yield f"{source.name}: {file.name} {name}", path


def read_all(ledger: Ledger) -> tuple[int, list[int], int]:
    """What a ledger holds, read in every way: contacts, batches, position."""
    contacts = [key for key, _ in ledger.scan(b"e")]
    assert contacts == [key for key, _ in ledger.scan_back(b"e", None, 10**9)][::-1]
    assert None not in ledger.get_many(contacts)
    batches = [int(key[1:]) for key, _ in ledger.scan(b"z")]
    return len(contacts), batches, int(ledger.get(b"pchangelog") or b"-1")


def test_damage_is_found_or_nothing_is_missing_in_between(
    written: list[Path], memory: Memory, tmp_path: Path
) -> None:
    found, whole = 0, 0
    for what, path in damaged_copies(written, tmp_path):
        said: list[Damaged] = []
        try:
            ledger = Ledger(path, memory)
        except Damaged:
            found += 1
        else:
            ledger.on_damage = said.append
            try:
                contacts, batches, position = read_all(ledger)
                assert batches == [*range(position + 1)], what
                assert contacts == IN_A_BATCH * len(batches), what
                whole += 1
            except Damaged:
                assert said, what
                found += 1
            ledger.close()
        place, _ = set_aside(path, "1")
        anew = Ledger(path, memory)  # in the same process: its lock is free
        assert read_all(anew) == (0, [], -1)
        anew.close()
        shutil.rmtree(place)
    assert found > 20
    assert whole > 20


def test_damage_met_while_running_is_reported_by_every_method(
    written: list[Path], memory: Memory, tmp_path: Path
) -> None:
    path = tmp_path / "ledger"
    shutil.copytree(written[1], path)
    ledger = Ledger(path, memory)
    for file in path.glob("*.sst"):
        data = bytearray(file.read_bytes())
        for at in range(0, len(data) * 2 // 3, 512):
            data[at] ^= 0xFF
        file.write_bytes(data)
    said: list[Damaged] = []
    ledger.on_damage = said.append
    key = b"e%06d" % (IN_A_BATCH * 7)
    reads: list[Callable[[], Any]] = [
        lambda: ledger.get(key),
        lambda: ledger.get_many([key]),
        lambda: [*ledger.scan(b"e")],
        lambda: [*ledger.scan_back(b"e", None, 10**9)],
    ]
    for number, read in enumerate(reads, 1):
        with pytest.raises(Damaged, match="is damaged: Corruption"):
            read()
        assert len(said) == number
    ledger.close()


def test_a_full_disk_and_a_lock_are_no_damage(memory: Memory, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", memory)
    ledger._judge(Exception("IO error: No space left on device: While appending to file"))
    with pytest.raises(Exception, match="lock hold by") as refused:
        Ledger(tmp_path / "ledger", memory)
    assert not isinstance(refused.value, Damaged)
    ledger.close()


# -- what a worker does about it


def partitions(directory: Path, memory: Memory, failed: list[BaseException]) -> Partitions:
    clock = iter(range(1000, 10**6))
    context = Context(
        partitions=4, data_dir=directory, memory=memory, topics={}, outward=SimpleNamespace(),
        changelog=SimpleNamespace(), now_ms=lambda: next(clock), failed=failed.append, ahead_ms=1,
        max_merges=1, matcher=Matcher({}), catalog={},
    )  # type: ignore[arg-type]  # fmt: skip
    return Partitions(context, SimpleNamespace(), lambda *_: None)  # type: ignore[arg-type]


async def test_a_damaged_partition_is_set_aside_and_recovered_from_the_beginning(
    written: list[Path], memory: Memory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(written[1], tmp_path / "partition-3")
    (tmp_path / "partition-3" / "CURRENT").write_bytes(b"")
    failed: list[BaseException] = []
    worker = partitions(tmp_path, memory, failed)
    with caplog.at_level(logging.ERROR):
        worker.open(3)
    assert worker.changelog_offset(3) is None
    (aside,) = tmp_path.glob("damaged-*")
    assert f"the RocksDB in {tmp_path / 'partition-3'} is damaged: Corruption" in caplog.text
    assert f"delete it with: rm -r {aside}" in caplog.text
    assert [*tmp_path.glob("partition-*")] == [tmp_path / "partition-3"], (
        "what is set aside is no partition"
    )
    await worker.close(3)
    assert failed == []


async def test_a_partition_that_is_found_damaged_is_closed_set_aside_and_assigned_again(
    written: list[Path], memory: Memory, tmp_path: Path
) -> None:
    shutil.copytree(written[1], tmp_path / "partition-3")
    failed: list[BaseException] = []
    worker = partitions(tmp_path, memory, failed)
    rejoined: list[int] = []
    worker.rejoin = lambda: rejoined.append(1)
    for times in range(1, MOST_DAMAGES + 2):
        worker.open(3)
        assert times > 1 or worker.changelog_offset(3) == BATCHES - 1
        found = worker._open[3]
        for _ in range(2):
            with pytest.raises(Damaged):
                found.ledger._judge(Exception("Corruption: block checksum mismatch"))
        assert not found.active
        worker.recover(3, [SimpleNamespace(key=b"ex", value=None)], 7)  # without effect
        await worker.close(3)
        assert len(rejoined) == times, "once, however often it is met"
        assert len([*tmp_path.glob("damaged-*")]) == min(times, KEPT_ASIDE)
    assert "check its disk" in str(failed[0])
    assert len(failed) == 1
