"""Hashing: the 64-bit hash that orders activities, merges and contacts (design, section 3). Nothing else may order them."""

from hashlib import blake2b

_h8 = blake2b(digest_size=8).copy


def h8(text: str) -> bytes:
    """The hash of *text*: 8 bytes, which compare as the integer `h` does."""
    return h8_of(text.encode())


def h8_of(text: bytes) -> bytes:
    """The hash of a text, given in UTF-8."""
    hashed = _h8()  # a copy takes two thirds of the time of a new one
    hashed.update(text)
    return hashed.digest()


def h(text: str) -> int:
    """The hash of *text* as an integer, 0 to 2^64 - 1."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
