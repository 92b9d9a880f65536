"""The bench itself is sound: every case runs on a hundredth of the data, and its numbers are right. Asserts no times: those are for the bench."""

from __future__ import annotations

from hashlib import blake2b

import pytest

from tests.bench import data
from tests.bench.__main__ import CASES
from tests.bench.cases import Bench


@pytest.fixture(scope="module")
def bench(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(kafka, tmp_path_factory.mktemp("bench"), scale=0.01, many_journeys=50, every=2, journeys_over=(("dense", 100_000),))


@pytest.mark.kafka
@pytest.mark.parametrize("case", CASES)
def test_case(bench: Bench, case: str) -> None:
    rows = CASES[case](bench)
    assert rows
    assert all(row.value > 0 for row in rows)


@pytest.mark.parametrize(("kind", "digest"), [("sparse", "57482561eb5368cd"), ("dense", "47e9978e7b46275b")])
def test_the_data_are_always_the_same(kind: str, digest: str) -> None:
    """Figures of different days can be compared only because of that."""
    made = b"\n".join(made.value for made in data.activities(kind, 10_000, 200_000))
    assert blake2b(made, digest_size=8).hexdigest() == digest


def test_what_must_come_out_is_what_one_who_looks_at_each_contact_sees() -> None:
    expected = data.Expected()
    for contact, stage, at_ms in [
        ("ada", 1, 50),  # the calculator before the campaign page does not count
        ("ada", 0, 100),
        ("ada", 1, 100),  # equal times count as in order
        ("ada", 2, 90),
        ("bob", 0, 300),
        ("bob", 0, 200),  # late, and it is the first that counts
        ("bob", 2, 400),
        ("eve", 4, 1),
    ]:
        expected.take(data.Made(contact, b"", stage, at_ms))
    expected.take(data.Made("kim", b"", None, 5))
    assert expected.reached() == {("ada", 1): 100, ("ada", 2): 100, ("bob", 1): 200}
    assert expected.cells() == {("r", 1, 0): 2, ("d", 1, 0): 2, ("r", 2, 0): 1, ("d", 2, 0): 1, ("w", 2, 0): 1}
    assert set(expected.hits) == {"ada", "bob", "eve"}
    assert expected.activities == 9
