"""What a check expects: summed over shards it is what the oracle says of everybody, and of a sample what it says of its persons."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from console import expected
from console.check import Report, lines, percent_above, sentence
from console.cli_check import Share, remaining
from console.cli_check import check as check_command
from console.shards import SHARD_FACTS, Shards, load
from schemas.journey import Journey
from state import oracle
from state.checksums import sampled
from tests.support.strategies import CONTACTS, activities, journeys, times

contacts = st.sampled_from(CONTACTS)
merges = st.builds(
    lambda id_, pair, at_ms: oracle.Merge(f"m-{id_}", pair[0], pair[1], at_ms),
    st.integers(0, 9), st.lists(contacts, min_size=2, max_size=2, unique=True), times,
)  # fmt: skip
profiles = st.builds(
    lambda contact, groups, n, at_ms: oracle.Profile(contact, tuple(groups), {"n": n}, at_ms),
    contacts, st.lists(st.sampled_from(("smb", "vip")), max_size=2, unique=True), st.integers(0, 2**70), times,
)  # fmt: skip
histories = st.builds(
    oracle.History,
    st.lists(activities(), max_size=16),
    st.lists(merges, max_size=4),
    st.lists(profiles, max_size=4),
    st.lists(st.builds(oracle.Erasure, contacts, times), max_size=2),
)


def sharded(history: oracle.History, directory: Path, shards: int, share: float) -> Shards:
    """The facts as a check keeps them."""
    found = Shards(directory, shards * SHARD_FACTS, share)
    for merge in history.merges:
        found.take(merge)
    found.joined()
    for fact in [*history.profiles, *history.erasures, *history.activities]:
        found.take(fact)
    found.flush()
    return found


@settings(max_examples=60, deadline=None)
@given(
    journeys(), histories, st.integers(1, 5), st.sampled_from((1.0, 0.5, 0.2)), st.integers(1, 3)
)
def test_the_sum_over_shards_is_what_the_oracle_says(
    journey: Journey, history: oracle.History, shards: int, share: float, first: int
) -> None:
    truth = oracle.answer(journey, history)
    truth.reached = {name: stages for name, stages in truth.reached.items() if sampled(name, share)}
    with tempfile.TemporaryDirectory() as directory:
        found = expected.Expected(journeys={"j": expected.JourneySum()})
        for path in sharded(history, Path(directory), shards, share).paths:
            found.add(expected.of_shard(path, [journey], first), first)
    assert found.persons == len(truth.reached)
    mine = found.journeys["j"]
    for group in (None, "smb", "vip"):
        rows = truth.results(group)
        if not rows[0].converted:
            assert group not in mine.groups
            continue
        sums = mine.groups[group]
        for k, (row, stage) in enumerate(zip(rows, sums.stages, strict=True), 1):
            assert (stage.converted, stage.dropped_off) == (row.converted, row.dropped_off or 0)
            assert sorted(stage.waits_ms) == row.waits_ms
            assert sorted(stage.since_first_ms) == row.since_first_ms
            assert stage.days == Counter(row.days)
            who = "dropped_off" if k < len(rows) else "converted"
            listed = truth.dropped_off(k, group) if k < len(rows) else truth.converted(k, group)
            assert sums.lists.get(k, (0, 0))[0] == len(listed), who
            shown = [(one.name, one.reached_at_ms) for one in sums.first.get(k, [])]
            assert shown == [(one.contact_id, one.reached_at_ms) for one in listed][:first]
    assert {k: count for k, (count, _) in mine.stages.items()} == {
        k: len(truth.converted(k)) for k in range(1, len(journey.stages) + 1) if truth.converted(k)
    }
    names = {name for _, name, _ in mine.explained}
    assert names == {name for name, stages in truth.reached.items() if stages}


@settings(max_examples=30, deadline=None)
@given(histories)
def test_facts_come_back_from_a_shard_as_they_were(history: oracle.History) -> None:
    with tempfile.TemporaryDirectory() as directory:
        (path,) = sharded(history, Path(directory), 1, 1.0).paths
        found = load(path)
    assert found == history


def test_more_facts_than_are_held_go_to_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("console.shards.HELD", 10)
    done = [oracle.Activity(f"c{i % 7}", "a", i, f"a-{i}", {"page": "/x"}) for i in range(95)]
    found = sharded(oracle.History(done), tmp_path, 3, 1.0)
    read = [one for path in found.paths for one in load(path).activities]
    assert sorted(read, key=lambda one: one.at_ms) == done
    assert sum(path.exists() for path in found.paths) > 1


@pytest.mark.parametrize(
    ("persons", "percent"),
    [(1, "95"), (10, "26"), (100, "3.0"), (2000, "0.15"), (1_000_000, "0.00030")],
)
def test_what_a_sample_proves_is_rounded_up(persons: int, percent: str) -> None:
    report = Report(persons=persons, share=0.01)
    assert percent_above(report.bound()) == percent
    assert float(percent) / 100 >= report.bound()
    assert f"among {persons:,} of about {persons * 100:,} persons" in sentence(report)
    assert f"fewer than {percent} %" in "\n".join(lines(report))


def test_of_differences_in_a_sample_nothing_is_bounded() -> None:
    report = Report(persons=5, share=0.5)
    report.differs("j", None, "stage 1", 1, 2)
    assert "confidence" not in "\n".join(lines(report))
    assert Report(persons=0, share=0.01).bound() == 1.0


@pytest.mark.parametrize(
    ("text", "share"), [("1%", 0.01), ("0.5 %", 0.005), ("0.25", 0.25), ("100%", 1.0), ("1", 1.0)]
)
def test_shares(text: str, share: float) -> None:
    assert Share().convert(text, None, None) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0", "0%", "101%", "-1", "nan", "inf", "x", ""])
def test_no_shares(text: str) -> None:
    with pytest.raises(Exception, match="no part of all persons"):
        Share().convert(text, None, None)


def test_what_is_left_is_told_at_the_rate_so_far() -> None:
    assert remaining(0, 0, 5.0) == ""
    assert remaining(0, 10, 5.0) == ": 0 of 10"
    assert remaining(250, 1000, 5.0) == ": 250 of 1,000, about 15 s left"


def test_a_directory_without_room_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("console.check.run", full)
    done = CliRunner().invoke(check_command, ["--broker", "127.0.0.1:1"])
    assert done.exit_code == 1
    assert "No space left on device; name a directory with room in TMPDIR" in " ".join(
        done.output.split()
    )
