"""Hashing: the 64-bit hash that orders activities, merges and contacts (design, section 3). Nothing else may order them."""

from hashlib import blake2b


def h8(text: str) -> bytes:
    """The hash of *text*: 8 bytes, which compare as the integer `h` does."""
    return blake2b(text.encode(), digest_size=8).digest()


def h(text: str) -> int:
    """The hash of *text* as an integer, 0 to 2^64 - 1."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
