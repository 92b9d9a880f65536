"""Shards: the facts of the log in files, all of a person in the same one, so that the oracle can be asked about some persons at a time.

A shard is a file of chunks: 4 bytes of length, then MessagePack. Memory holds `HELD` facts, and who is merged with whom.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from schemas.hashing import h
from state import oracle
from state.checksums import sampled

SHARD_FACTS = 20_000  # about 25 MiB while the oracle is asked
MAX_SHARDS = 256
HELD = 50_000
ACTIVITY, MERGE, PROFILE, ERASURE = range(4)
Fact = oracle.Activity | oracle.Merge | oracle.Profile | oracle.Erasure

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[list[Any]]).decode


class Shards:
    """Takes merges first, then `joined`, then all other facts, then `flush`. *expected*: about how many facts; *share*: of the persons."""

    def __init__(self, directory: Path, expected: float, share: float = 1.0) -> None:
        self.share = share
        self.paths = [
            directory / f"shard-{n}"
            for n in range(max(1, min(MAX_SHARDS, round(expected / SHARD_FACTS))))
        ]
        self._merges: list[oracle.Merge] = []
        self._survivors: dict[str, str] = {}
        self._held: list[list[list[Any]]] = [[] for _ in self.paths]
        self._count = 0
        self._shard_of = lru_cache(100_000)(self._found)
        directory.mkdir(parents=True, exist_ok=True)

    def joined(self) -> None:
        """All merges are taken: from now on it is known who is one person."""
        for person in oracle.persons(oracle.History(merges=self._merges)):
            self._survivors.update(dict.fromkeys(person.contacts, person.survivor))
        merges, self._merges = self._merges, []
        for merge in merges:
            self._add(merge.into, [MERGE, merge.id, merge.from_, merge.into, merge.at_ms])

    def sampled(self, contact: str) -> bool:
        """Return True if the person of *contact* is in the sample."""
        return self._shard_of(contact) is not None

    def take(self, fact: Fact) -> None:
        """Keeps a fact, unless its person is not in the sample."""
        if isinstance(fact, oracle.Activity):
            self._add(
                fact.contact_id,
                [ACTIVITY, fact.contact_id, fact.type, fact.at_ms, fact.id, fact.fields],
            )
        elif isinstance(fact, oracle.Merge):
            self._merges.append(fact)
        elif isinstance(fact, oracle.Profile):
            self._add(
                fact.contact_id,
                [PROFILE, fact.contact_id, fact.groups, json.dumps(fact.attributes), fact.at_ms],
            )
        else:
            self._add(fact.contact_id, [ERASURE, fact.contact_id, fact.at_ms])

    def flush(self) -> None:
        """Writes what is held."""
        for path, held in zip(self.paths, self._held, strict=True):
            if held:
                chunk = _encode(held)
                with path.open("ab") as file:
                    file.write(len(chunk).to_bytes(4, "big") + chunk)
                held.clear()
        self._count = 0

    def _add(self, contact: str, fact: list[Any]) -> None:
        shard = self._shard_of(contact)
        if shard is None:
            return
        self._held[shard].append(fact)
        self._count += 1
        if self._count >= HELD:
            self.flush()

    def _found(self, contact: str) -> int | None:
        """The shard of a contact's person; None outside of the sample."""
        survivor = self._survivors.get(contact, contact)
        return h(survivor) % len(self.paths) if sampled(survivor, self.share) else None


def load(path: Path) -> oracle.History:
    """The facts of a shard."""
    history = oracle.History()
    for fact in _chunks(path):
        kind = fact[0]
        if kind == ACTIVITY:
            history.activities.append(oracle.Activity(*fact[1:]))
        elif kind == MERGE:
            history.merges.append(oracle.Merge(*fact[1:]))
        elif kind == PROFILE:
            contact, groups, attributes, at_ms = fact[1:]
            history.profiles.append(
                oracle.Profile(contact, tuple(groups), json.loads(attributes), at_ms)
            )
        else:
            history.erasures.append(oracle.Erasure(*fact[1:]))
    return history


def _chunks(path: Path) -> Iterator[list[Any]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        while head := file.read(4):
            yield from _decode(file.read(int.from_bytes(head, "big")))
