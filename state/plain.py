"""Plain: the common case of a batch, where nothing but hits matters: many contacts at once by compiled code, or one by one. Pure; whatever is more
than that it leaves to `batch`."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence

import numpy as np

from . import bulk, kernel, records
from .announcement import Spoken, spoken_before
from .arrivals import Arrivals, Fact, packed
from .decision import CHANGE_BYTES, ENTRY_BYTES, Decision, Room
from .evidence import HIT_BYTES, Evidence, each
from .messages import Join, Message
from .onward import go_on, take_in
from .views import View, Views

FEW = 32  # contacts, or records, of a batch for which compiled code is not worth what it takes to begin
VIEWS_LIKE_A_CONTACT = 8  # so many views that watch a hit make as much work as one more contact
MOST_GATHERED_BYTES = 64 * HIT_BYTES  # of one message; the compiled loop compares new hits with each other
BULK_STAGES = 1 << 17  # that compiled code of a scan has room for, 16 bytes each


class Plain:
    """The plain cases of one batch. *load* returns a record by its key; what they come to is added to *decision*, and to what is taken of *room*.
    *few*: see `FEW`."""

    def __init__(self, views: Views, load: Callable[[bytes], bytes | None], decision: Decision, few: int, room: Room) -> None:
        self._room = room
        self._few = few
        self._views = views
        self._load = load
        self._decision = decision

    def worth(self, count: int) -> bool:
        """Whether compiled code is worth it for so many, and there."""
        many = count >= self._few or count * self._views.most_watching >= VIEWS_LIKE_A_CONTACT * self._few
        return many and bulk.loops.ready

    def record(self, key: bytes) -> bytes | None:
        """A record as the batch leaves it so far."""
        written = self._decision.records
        return written[key] if key in written else self._load(key)

    def join(self, arrived: Arrivals) -> tuple[list[tuple[int, bytes | None]], int]:
        """Hits of many contacts, by compiled code; returns those that it leaves, by number, with their records, and how many contacts it looked at
        before the room was used up, one at least. None of them may be among those that the batch works on already."""
        if not arrived:
            return [], 0
        plan, done = self._plan(), self._decision
        known = list(map(self.record if done.records else self._load, arrived.keys))
        heads = self._heads(arrived, known)
        most = self._room.left // (CHANGE_BYTES + ENTRY_BYTES)
        states, made, onward, moves, taken = plan.join([record or b"" for record in known], arrived.facts, arrived.ends, heads.keys(), most)
        self._room.take(sum(map(len, made)))
        joined = states == kernel.JOINED
        if joined.all():
            done.records.update(zip(arrived.keys, made, strict=True))
        else:
            done.records.update((arrived.keys[number], made[number]) for number in np.flatnonzero(joined).tolist())
        go_on(plan, onward, arrived, taken, done.changes, done.entries, done.totals)
        for number, view, before, after in moves:
            name, groups = heads.get(number) or (arrived.contact(number), ())
            changed = np.array([fact for fact in range(arrived.begins[number], int(arrived.ends[number])) if taken[fact]])
            ids = arrived.ids(changed)
            those = dict(zip(map(arrived.hit, changed.tolist()), ids, strict=True))
            done.moved(view, arrived.contacts[number], name, groups, [(name, before)], before, after, those, ids[-1])
        left = [(number, known[number]) for number in np.flatnonzero(states == kernel.LEFT).tolist()]
        return left, int(np.count_nonzero(states != kernel.BEYOND))

    def _heads(self, arrived: Arrivals, known: Sequence[bytes | None]) -> dict[int, tuple[str, tuple[str, ...]]]:
        """Name and groups, by number, of holders with an identity from whom nothing was erased."""
        found = {}
        for number, record in enumerate(known):
            if record is not None and record[1] == records.HAS_IDENTITY:
                identity = self._load(records.IDENTITY + arrived.contacts[number])
                if identity is not None:
                    name, groups, erased_at_ms = records.decode_head(identity)
                    if erased_at_ms is None:
                        found[number] = name, groups
        return found

    def join_one(self, arrived: Arrivals, number: int, record: bytes | None) -> bool:
        """Hits of a holder without identity that the batch does not work on. Returns False, and does nothing, if its record would be too large."""
        contact, key, new = arrived.contact(number), arrived.keys[number], arrived.of(number)
        evidence = Evidence() if record is None else records.decode_evidence(record)[0]
        hits = evidence.hits
        before_hits, before_marked = hits.copy(), evidence.marked
        add = evidence.add
        changed = [fact for fact in new if add(*fact)]
        if not changed:
            return True
        if evidence.bound():
            return False
        rule, last = changed[-1]
        single = len(changed) == 1
        ids = {hit: id_ for (_, hit), id_ in zip(new, arrived.ids_of(number), strict=True)}
        concerned: Iterable[View] = (
            self._views.by_rule.get(rule, ()) if single else self._views.concerned(r for r, _ in changed)
        )
        holder, marked = key[1:], evidence.marked
        for view in concerned:
            before = view.project(before_hits)
            settled = view.settled(holder)
            if settled and not marked:
                unmoved = view.projection.unmoved
                if unmoved(before, rule, last) if single else all(unmoved(before, *fact) for fact in changed):
                    continue
            after = view.project(hits)
            if after == before and settled and not marked:
                continue
            spoken: list[Spoken] = [(contact, before)] if settled else spoken_before(view, holder, contact, before_hits)
            those = {hit: ids[hit] for _, hit in changed}
            both = bool(before_marked & view.rules), bool(marked & view.rules)
            self._decision.moved(view, holder, contact, (), spoken, before, after, those, ids[last], both)
        self._write(key, evidence)
        return True

    def _write(self, key: bytes, evidence: Evidence) -> None:
        made = self._decision.records[key] = records.encode_evidence(evidence, False)
        self._room.take(len(made))

    def gather(self, messages: Sequence[Message], worked_on: Container[str]) -> list[Message]:
        """Rebuilt evidence, by compiled code. As a rule no view reads its epoch yet, and of a holder without identity only the record changes.
        Returns the messages that it leaves; those to contacts that the batch works on are among them."""
        known: dict[str, tuple[bytes, bytes | None, list[Fact]]] = {}
        taken: list[Message] = []
        for message in messages:
            size = _whole_bytes(message)
            if not isinstance(message, Join) or not 0 < size <= MOST_GATHERED_BYTES or self._views.concerned(message.hits):
                continue
            of_one = known.get(message.to)
            if of_one is None:
                key = records.EVIDENCE + message.to.encode()
                if key in self._decision.records or message.to in worked_on:
                    continue
                record = self._load(key)
                if not (record is None or records.is_plain(record)):
                    continue
                of_one = known[message.to] = key, record, []
            of_one[2].extend((rule, hit) for rule, blob in message.hits.items() for hit in each(blob))
            taken.append(message)
        if not known or not self.worth(len(known)):
            return [*messages]
        facts, ends = packed([facts for _, _, facts in known.values()])
        states, made, onward, moves, _ = self._plan().join([record or b"" for _, record, _ in known.values()], facts, ends)
        assert not moves, "nobody watches what is rebuilt"
        assert not len(onward.rows), "nobody watches what is rebuilt"
        self._room.take(sum(map(len, made)))
        left = set()
        for (contact, (key, _, _)), state, new in zip(known.items(), states.tolist(), made, strict=True):
            if state == kernel.JOINED:
                self._decision.records[key] = new
            elif state == kernel.LEFT:
                left.add(contact)
        done = {id(message) for message in taken if message.to not in left}
        return [message for message in messages if id(message) not in done]

    def gather_one(self, message: Message) -> bool:
        """The same of one contact that the batch does not work on; whether there was nothing but that to it."""
        if not isinstance(message, Join) or self._views.concerned(message.hits):
            return False
        key = records.EVIDENCE + message.to.encode()
        record = self.record(key)
        if not (record is None or records.is_plain(record)):
            return False
        evidence = Evidence() if record is None else records.decode_evidence(record)[0]
        if evidence.join(message.hits, message.marked, message.halvings):
            if evidence.bound():
                return False  # hits of rules that somebody watches may have gone
            self._write(key, evidence)
        return True

    def scan_size(self, views: Sequence[View], speaking: Container[bytes]) -> int:
        """Return how many contacts are scanned before it is looked whether there is room for more."""
        stages = sum(len(view.journey.stages) for view in views)
        said = sum(len(view.journey.stages) for view in views if view.id in speaking)
        return max(1, min(BULK_STAGES // stages, self._room.left // (ENTRY_BYTES * len(views) + CHANGE_BYTES * said)))

    def scan(self, views: Sequence[View], speaking: Container[bytes], holders: Sequence[bytes]) -> list[bytes]:
        """What `Batch.scan` does, by compiled code; returns those that it leaves. *speaking*: the ids of views that announce."""
        plan, done = self._plan(), self._decision
        before = [view.predecessors if view.id in speaking else () for view in views]
        first = {view.id for view, mine in zip(views, before, strict=True) if view.id in speaking and not mine}
        asked = [(view, mine, bool(mine) and not any(one.told for one in mine)) for view, mine in zip(views, before, strict=True)]
        states, onward = plan.stand([self._load(records.EVIDENCE + holder) or b"" for holder in holders], asked)
        take_in(plan, onward, holders, first, done.changes, done.entries, done.totals)
        return [holders[number] for number in np.flatnonzero(states == kernel.LEFT).tolist()]

    def _plan(self) -> bulk.Plan:
        """The views, made ready for compiled code."""
        plan: bulk.Plan | None = self._views.plan
        if plan is None:
            plan = self._views.plan = bulk.Plan(self._views)
        return plan


def _whole_bytes(message: Message) -> int:
    """The bytes of a join's hits; 0 where some were cut, or it is no join."""
    if not isinstance(message, Join) or message.marked or message.halvings:
        return 0
    return sum(map(len, message.hits.values()))
