"""Checksums: sums of 64-bit hashes that stand for lists of persons, whatever their order: how a list is compared without being sent. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.hashing import h, h8_of

MODULUS = 1 << 64


def of_entry(name: str, moment: bytes) -> int:
    """The hash of a person in the list of those who came to one stage and no further; *moment*: when, as `evidence.moment` writes it."""
    return int.from_bytes(h8_of(moment + name.encode()), "big")


def of_row(name: str, groups: Iterable[str], moment: bytes, met_by: Iterable[bytes]) -> int:
    """The hash of all that is said of one stage that a person reached: name, groups, when, and the hits by which the stage was met."""
    hits = b"".join(sorted(set(met_by)))
    return int.from_bytes(
        h8_of(b"\0".join((name.encode(), *map(str.encode, sorted(groups)), moment + hits))), "big"
    )


def sampled(name: str, share: float) -> bool:
    """Return True for the persons of a sample: those whose name's hash is among the lowest *share* of all hashes; 1 is everybody."""
    return share >= 1 or h(name) < share * MODULUS


def added(total: tuple[int, int], hashed: int) -> tuple[int, int]:
    """`(count, sum)` with one more."""
    return total[0] + 1, (total[1] + hashed) % MODULUS
