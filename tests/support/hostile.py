"""Hostile: values that no sound record has, put in the place of each value of a sound one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

NUMBERS = (
    b"1e999", b"-1e999", b"NaN", b"Infinity", b"-Infinity", b"-1", b"-0.0", b"0", b"1.5", b"1e15",
    b"1e-300", b"1e300", b"2147483647", b"2147483648", b"9007199254740991", b"9007199254740993",
    b"9223372036854775807", b"18446744073709551616", b"9" * 400,
)  # fmt: skip
OTHERS = (
    b"null", b"true", b"false", b'""', b'"x"', b'"' + b"y" * 200_001 + b'"', b'"\\ud800"', b'"\\u0000"',
    b"[]", b"[1]", b"[[1e999,1]]", b"{}", b'{"0":1e999}', b'{"-1":1}', b'{"rule":"nowhere"}',
    b"[" * 100_000, b'"0001-01-01T00:00:00+23:59"', b'"9999-12-31T23:59:59.999Z"', b'"\xff"',
)  # fmt: skip
VALUES = NUMBERS + OTHERS
_HOLE = "\U0010fffd hole"
_HOLE_BYTES = json.dumps(_HOLE, ensure_ascii=False).encode()


def _with_hole(value: Any) -> Iterator[Any]:
    """Yield *value* with a hole in the place of each value in it, and without each of its fields."""
    yield _HOLE
    if isinstance(value, dict):
        for name, inner in value.items():
            yield {k: v for k, v in value.items() if k != name}
            for made in _with_hole(inner):
                yield {**value, name: made}
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            for made in _with_hole(inner):
                yield [*value[:i], made, *value[i + 1 :]]


def hostile_variants(sound: bytes) -> Iterator[bytes]:
    """Yield the JSON *sound* with each value, at any depth, replaced by each hostile one.

    And with each field left out.
    """
    for made in _with_hole(json.loads(sound)):
        raw = json.dumps(made, ensure_ascii=False).encode()
        if _HOLE_BYTES not in raw:
            yield raw
        else:
            yield from (raw.replace(_HOLE_BYTES, value) for value in VALUES)
