"""Keys taken together by compiled code are those that a dict takes together, and stand by what follows what they all begin with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import grouping
from schemas.grouping import grouped

KEYS = st.tuples(st.binary(max_size=3), st.lists(st.one_of(st.binary(max_size=3), st.binary(max_size=20)), max_size=40)).map(
    lambda made: [made[0] + key for key in made[1]]
)


def columns(keys: list[bytes]) -> tuple[bytes, np.ndarray, np.ndarray]:
    sizes = np.array([len(key) for key in keys], np.int64)
    return b"".join(keys), np.cumsum(sizes) - sizes, sizes


@given(KEYS)
def test_compiled_code_groups_as_a_dict_does(keys: list[bytes]) -> None:
    grouping.loops.warm()
    found, rows, ends = grouped(*columns(keys))
    begins = [0, *ends.tolist()]
    together = {key: rows[begins[i] : begins[i + 1]].tolist() for i, key in enumerate(found)}
    assert len(together) == len(found)
    assert together == {key: [row for row, other in enumerate(keys) if other == key] for key in keys}
    common = next((i for i, column in enumerate(zip(*found, strict=False)) if len(set(column)) > 1), min(map(len, found), default=0))
    places = [key[common : common + 8].ljust(8, b"\0") for key in found]
    assert places == sorted(places)


@given(KEYS)
def test_it_does_the_same_before_it_is_compiled(keys: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping.loops, "ready", False)
        found, rows, ends = grouped(*columns(keys))
    assert found == sorted(set(keys))
    assert rows.tolist() == [row for key in found for row, other in enumerate(keys) if other == key]
    assert ends.tolist() == np.cumsum([keys.count(key) for key in found]).tolist()


def test_a_key_outside_of_its_data_is_refused() -> None:
    with pytest.raises(IndexError):
        grouped(b"abc", np.array([2]), np.array([2]))
