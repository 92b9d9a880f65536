"""Arrivals: the hits that a chunk of activities brings, in columns, one contact's behind the other's. Pure; a hit is no object until asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain

import numpy as np

from schemas.compiled import Array
from schemas.grouping import grouped

from .evidence import Evidence, each
from .messages import Join, Message
from .records import EVIDENCE

Fact = tuple[bytes, bytes]
"""(rule key, hit)."""
FACT = np.dtype(">u8")


def packed(facts: Sequence[Sequence[Fact]]) -> tuple[Array, Array]:
    """*facts* of contacts in columns: see `Arrivals`, *facts* and *ends*."""
    flat = b"".join([part for mine in facts for fact in mine for part in fact])
    ends = np.cumsum(np.fromiter(map(len, facts), np.int64, len(facts)), dtype=np.int64)
    return np.frombuffer(flat, FACT).astype(np.uint64).reshape(-1, 3), ends


class Arrivals:
    """`contacts`: the ids of who has hits, as UTF-8, in the order of `grouped`. `facts`: a row for each hit, uint64, (rule key, moment, hash of
    the activity's id); those of contact *i* from ends[i - 1] to before ends[i], in the order in which they came."""

    def __init__(self, contacts: list[bytes], ends: Array, facts: Array, rows: Array, ids: Sequence[bytes]) -> None:
        self.contacts, self.ends, self.facts = contacts, ends, facts
        self._rows, self._ids = rows, ids  # of each fact the activity, of each activity its id in UTF-8

    def __len__(self) -> int:
        return len(self.contacts)

    @cached_property
    def keys(self) -> list[bytes]:
        """The keys of the contacts' evidence records."""
        return [EVIDENCE + contact for contact in self.contacts]

    @cached_property
    def begins(self) -> list[int]:
        """Where each contact's facts begin."""
        return [0, *self.ends[:-1].tolist()]

    def contact(self, number: int) -> str:
        return self.contacts[number].decode()

    @cached_property
    def _packed(self) -> bytes:
        return self.facts.astype(FACT).tobytes()

    def hit(self, fact: int) -> bytes:
        """The hit of a fact."""
        return self._packed[24 * fact + 8 : 24 * fact + 24]

    def ids(self, facts: Array | slice) -> list[str]:
        """The ids of the activities behind facts, given by number."""
        return [self._ids[row].decode() for row in self._rows[facts].tolist()]

    def of(self, number: int) -> list[Fact]:
        """The facts of a contact."""
        packed = self._packed
        return [(packed[at : at + 8], packed[at + 8 : at + 24]) for at in range(24 * self.begins[number], 24 * int(self.ends[number]), 24)]

    def ids_of(self, number: int) -> list[str]:
        """Of each of the same the activity's id."""
        return self.ids(slice(self.begins[number], int(self.ends[number])))

    def items(self) -> Iterator[tuple[str, list[Fact]]]:
        """Contacts and their facts."""
        return ((self.contact(number), self.of(number)) for number in range(len(self)))

    @staticmethod
    def of_lists(facts: Mapping[bytes, Sequence[tuple[Fact, bytes]]]) -> Arrivals:
        """By contact, facts with the id of the activity behind each."""
        columns, ends = packed([[fact for fact, _ in mine] for mine in facts.values()])
        return Arrivals([*facts], ends, columns, np.arange(len(columns)), [id_ for mine in facts.values() for _, id_ in mine])

    def with_ids(self, number: int) -> list[tuple[Fact, bytes]]:
        """The facts of a contact, each with its activity's id in UTF-8."""
        rows = self._rows[self.begins[number] : int(self.ends[number])].tolist()
        return [*zip(self.of(number), [self._ids[row] for row in rows], strict=True)]

    def only(self, kept: Array) -> Arrivals:
        """Those of the contacts for which *kept*, bool, holds."""
        if kept.all():
            return self
        counts = np.diff(self.ends, prepend=0)
        facts = np.repeat(kept, counts)
        contacts = [self.contacts[number] for number in np.flatnonzero(kept)]
        return Arrivals(contacts, np.cumsum(counts[kept]), self.facts[facts], self._rows[facts], self._ids)

    def split(self, count: int) -> tuple[Arrivals, Arrivals]:
        """Return those of the first *count* contacts, and the others."""
        if count >= len(self):
            return self, NO_ARRIVALS
        at = int(self.ends[count - 1]) if count else 0
        first = Arrivals(self.contacts[:count], self.ends[:count], self.facts[:at], self._rows[:at], self._ids)
        return first, Arrivals(self.contacts[count:], self.ends[count:] - at, self.facts[at:], self._rows[at:], self._ids)


def arrivals(
    data: bytes, starts: Array, sizes: Array, met: Sequence[Sequence[bytes]], which: Array, moments: Array, hashes: bytes, ids: Sequence[bytes]
) -> Arrivals:
    """Of activities in the order in which they came: contact (bytes in *data*), which of *met*, keys of rules, it meets, moment and id with its hash
    of each."""
    contacts, rows, ends = grouped(data, starts, sizes)
    counts = np.fromiter(map(len, met), np.int64, len(met))
    rules = np.frombuffer(b"".join(chain.from_iterable(met)), FACT)
    of_each = counts[which[rows]]
    of_facts = np.repeat(rows, of_each)  # the activity behind each fact
    before = np.cumsum(of_each)
    number = np.arange(len(of_facts)) - np.repeat(before - of_each, of_each)  # among the facts of the activity
    facts = np.empty((len(of_facts), 3), np.uint64)
    facts[:, 0] = rules[(np.cumsum(counts) - counts)[which[of_facts]] + number]
    facts[:, 1] = moments[of_facts]
    facts[:, 2] = np.frombuffer(hashes, FACT)[of_facts]
    return Arrivals(contacts, before[ends - 1] if len(ends) else ends, facts, of_facts, ids)


def join_of(to: str, facts: Sequence[Fact], ids: Sequence[str]) -> Join:
    """Hits, each with its activity's id, as a message for *to*."""
    joined = Evidence()
    for fact in facts:
        joined.add(*fact)
    return Join(to, joined.hits, cause_id=ids[-1], ids={hit: id_ for (_, hit), id_ in zip(facts, ids, strict=True)})


def hits_alone(messages: Iterable[Message]) -> tuple[Arrivals, list[Message]]:
    """Those of *messages* that `join_of` made, as arrivals, and the others."""
    found: dict[bytes, list[tuple[Fact, bytes]]] = {}
    others: list[Message] = []
    for message in messages:
        if isinstance(message, Join) and message.ids and message == Join(message.to, message.hits, cause_id=message.cause_id, ids=message.ids):
            facts = [(rule, hit) for rule, blob in message.hits.items() for hit in each(blob)]
            if all(hit in message.ids for _, hit in facts):
                found.setdefault(message.to.encode(), []).extend((fact, message.ids[fact[1]].encode()) for fact in facts)
                continue
        others.append(message)
    return Arrivals.of_lists({contact: found[contact] for contact in sorted(found)}), others


NO_ARRIVALS = Arrivals([], np.zeros(0, np.int64), np.zeros((0, 3), np.uint64), np.zeros(0, np.int64), [])
