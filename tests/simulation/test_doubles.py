"""A double passes the same exam as the real thing: the ledger in memory against RocksDB."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from state.ledger import FORMAT, FORMAT_KEY, Ledger, Memory, prefix_end, wipe

from .doubles import Disk, MemoryLedger

keys = st.binary(min_size=1, max_size=3).map(lambda tail: b"e" + tail) | st.sampled_from(
    (b"e", b"f", b"x\xff", b"x\xff\xff")
)
writes = st.lists(st.tuples(keys, st.none() | st.binary(max_size=4)), max_size=8)
drops = st.lists(st.tuples(keys, keys).map(sorted).map(tuple), max_size=2)
questions = st.tuples(keys, st.none() | keys, st.none() | st.integers(0, 4))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(writes, drops, questions), min_size=1, max_size=6), st.sampled_from([0, 600, 1 << 20]))
def test_the_ledger_in_memory_is_a_ledger(tmp_path: Path, steps: list, room: int) -> None:  # type: ignore[type-arg]
    """*room*: for records that RocksDB need not be asked for."""
    wipe(tmp_path / "real")
    memory = Memory(16)
    memory.recent_bytes = room
    real, double = Ledger(tmp_path / "real", memory), MemoryLedger(Path("/double"), Disk())
    try:
        for changes, dropped, (prefix, after, limit) in steps:
            for ledger in (real, double):
                ledger.write(changes, dropped)
            for space in (b"e", b"f", b"x"):
                assert list(real.scan(space)) == list(double.scan(space))
            assert list(real.scan(prefix, after, limit)) == list(double.scan(prefix, after, limit))
            assert list(real.scan_back(prefix, after, limit or 9)) == list(double.scan_back(prefix, after, limit or 9))
            assert real.last(prefix) == double.last(prefix)
            asked = [key for key, _ in changes] + [prefix]
            assert real.get_many(asked) == double.get_many(asked) == [double.get(key) for key in asked]
            assert real.get(prefix) == double.get(prefix)
            assert real.get(asked) == double.get(asked)
            assert real._recent_bytes <= room // 2
        assert prefix_end(b"a\xff") == b"b"
    finally:
        real.close()
    assert memory.ledgers == 0


def test_the_ledger_in_memory_keeps_its_content_when_it_is_opened_again(tmp_path: Path) -> None:
    disk = Disk()
    for make in (lambda: Ledger(tmp_path / "again", Memory(16)), lambda: MemoryLedger(Path("/again"), disk)):
        first = make()
        first.write([(b"a", b"1"), (b"b", b"2"), (b"b", None)])
        first.close()
        second = make()
        assert list(second.scan(b"a")) == [(b"a", b"1")]
        assert second.get(b"b") is None
        second.close()


def test_a_directory_of_another_format_is_emptied_and_one_of_before_formats_is_kept(tmp_path: Path) -> None:
    for written, kept in ((FORMAT, True), (None, True), (b"0", False), (b"999", False)):
        first = Ledger(tmp_path / "ledger", Memory(16))
        first.write([(b"ea", b"1"), (FORMAT_KEY, written)])
        first.close()
        second = Ledger(tmp_path / "ledger", Memory(16))
        assert second.emptied == (None if kept else written)
        assert second.get(b"ea") == (b"1" if kept else None)
        assert second.get(FORMAT_KEY) == FORMAT
        second.close()
        wipe(tmp_path / "ledger")
