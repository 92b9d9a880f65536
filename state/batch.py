"""Batch: decides what a batch of one partition comes to (design, section 6). Pure; reads records through a function it is given.

A batch is filled with what arrived (`activities`, `deliver`, `gather`, `scan`, `restore`) and closed with `decide()`, whose `Decision` says
everything that has to be done: changes, handoffs, records to the changelog, then records, index and totals to RocksDB, in this order.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from . import records
from .announcement import anything, differences, farewell, part_said, predecessors_said, said_of, spoken_before
from .arrivals import Arrivals, Fact, join_of
from .decision import CHANGE_BYTES, UNBOUNDED, Decision, Room
from .evidence import Evidence, moment_ms
from .identity import LONGEST_ID_BYTES, MAX_MERGES_BYTES, MERGE_BYTES, Identity, Merge, place
from .messages import ACTIVITY, MERGE, RECALCULATION, Join, Message, Part, Unite
from .person import Person, Shown
from .plain import FEW, Plain
from .views import View, Views

MAX_MERGES = 10_000  # of a person (design, section 3); a setting of the worker
COPIES = 3  # of a record, at most: as it was, taken apart, and as it becomes


class Batch:
    """Everything that one batch does to one partition.

    *load* returns a record by its key (see `records`), *is_here* says whether a contact belongs to this partition. *silent*: announce nothing.
    *few*: see `plain.FEW`. *room*: about how many bytes of memory the decision may take. What takes many returns what is left once there is no more
    (`full`), and that is for the next batch: the order in which contacts are decided makes no difference to what is known, shown and last announced.
    """

    def __init__(
        self,
        views: Views,
        load: Callable[[bytes], bytes | None],
        is_here: Callable[[str], bool],
        max_merges: int = MAX_MERGES,
        silent: bool = False,
        few: int = FEW,
        room: int = UNBOUNDED,
    ) -> None:
        assert room > 0, "a batch has room for one contact at least"
        self._silent = silent
        self._views = views
        self._load = load
        self._is_here = is_here
        self._max_merges = max_merges
        self._persons: dict[str, Person] = {}
        self._queue: deque[Message] = deque()
        self._truncated = Counter[str]()
        self._decision = Decision({}, [], [], [], {}, {}, self._truncated)
        self._room = Room(self._decision, room)
        self._plain = Plain(views, load, self._decision, few, self._room)

    @property
    def full(self) -> bool:
        """Whether the decision has taken all of its room."""
        return self._room.left <= 0

    # ------------------------------------------------------------------ arrivals

    def activities(self, arrived: Arrivals) -> tuple[int, list[Arrivals]]:
        """Take hits of contacts of this partition, each in it once. Return how many of the contacts were taken before the batch was full, one at
        least, and what aliases among them send on that is left, each for a batch of its own."""
        untouched = not self._decision.records and not self._persons
        if not (untouched and self._plain.worth(len(arrived)) and self._views.settled()):
            return self._singly(arrived), []
        forwarded: dict[bytes, list[tuple[Fact, bytes]]] = {}  # by aliases, to contacts of this partition
        taken = self._in_bulk(arrived, forwarded)
        worked_on = {person.key for person in self._persons.values()}
        unknown = Arrivals.of_lists({contact: forwarded.pop(contact) for contact in sorted(forwarded.keys() - worked_on)})
        known = Arrivals.of_lists(forwarded)
        rest = [unknown.split(self._in_bulk(unknown, None))[1], known.split(self._singly(known))[1]]
        return taken, [one for one in rest if one]

    def _singly(self, arrived: Arrivals) -> int:
        """Take hits of contacts one by one; return how many were taken before the batch was full."""
        taken = 0
        while taken < len(arrived) and not self.full:
            self._single(arrived, taken, self._load(arrived.keys[taken]))
            taken += 1
        self._drain()
        return taken

    def _in_bulk(self, arrived: Arrivals, forwarded: dict[bytes, list[tuple[Fact, bytes]]] | None) -> int:
        """Take hits of contacts that the batch does not work on, by compiled code as far as it goes; return how many were taken before it was full.
        *forwarded*: gets those of aliases that point into this partition; None: these are decided as any other."""
        count = len(arrived)
        while arrived and not self.full:
            left, done = self._plain.join(arrived)
            for number, record in left:
                pointer = None if record is None or forwarded is None else records.pointer_of(record)
                if pointer is None or forwarded is None:
                    self._single(arrived, number, record)
                elif self._is_here(pointer):
                    forwarded.setdefault(pointer.encode(), []).extend(arrived.with_ids(number))
                else:
                    self._decision.handoffs.append(join_of(pointer, arrived.of(number), arrived.ids_of(number)))
            arrived = arrived.split(done)[1]
        return count - len(arrived)

    def _single(self, arrived: Arrivals, number: int, record: bytes | None) -> None:
        """Hits of one contact."""
        contact = arrived.contact(number)
        untouched = arrived.keys[number] not in self._decision.records and contact not in self._persons
        plain = untouched and (record is None or records.is_plain(record))
        if not plain or not self._plain.join_one(arrived, number, record):
            self._one(contact, arrived.of(number), arrived.ids_of(number))

    def _one(self, contact: str, facts: Sequence[Fact], ids: Sequence[str]) -> None:
        """Hits of anybody. *ids*: of the activity behind each."""
        person = self._persons.get(contact) or self._person(contact)
        if person.pointer is not None:
            self._send(join_of(person.pointer, facts, ids))
            return
        erased_at_ms = person.head[2]
        for (rule, hit), id_ in zip(facts, ids, strict=True):
            if erased_at_ms is not None and moment_ms(hit) <= erased_at_ms:
                continue
            if person.evidence.add(rule, hit):
                if rule not in person.rules:
                    person.rules.add(rule)
                    self._room.take(CHANGE_BYTES * self._views.stages_of((rule,)))
                person.ids[hit] = id_
                if person.cause == ACTIVITY:
                    person.cause_id = id_

    def gather(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Take messages of rebuilt evidence; return what is left for the next batch."""
        messages = self._plain.gather(messages, self._persons)
        for number, message in enumerate(messages):
            if self.full:
                return messages[number:]
            if message.to in self._persons or not self._plain.gather_one(message):
                self.deliver(message)
        return ()

    def deliver_all(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Take messages for contacts of this partition; return what is left for the next batch."""
        for number, message in enumerate(messages):
            if self.full:
                return messages[number:]
            self.deliver(message)
        return ()

    def deliver(self, message: Message) -> None:
        """A message for a contact of this partition; what it sends on within the partition is handled at once."""
        self._queue.append(message)
        self._drain()

    def _drain(self) -> None:
        while self._queue:
            message = self._queue.popleft()
            person = self._persons.get(message.to) or self._person(message.to)
            if person.pointer is not None:
                self._send(message._replace(to=person.pointer))
            elif isinstance(message, Join):
                self._expect(person, message)
                self._join(person, message)
            else:
                self._expect(person, message)
                self._unite(person, message)

    def _expect(self, person: Person, message: Message) -> None:
        """Count what a message to a holder may come to once the batch is decided."""
        stages = self._views.stages_of(message.hits) if isinstance(message, Join) else 0
        if not isinstance(message, Join) or message.part is not None or message.again or message.profiles or message.erased_at_ms is not None:
            stages += self._views.stages_of(person.evidence.hits)
        if isinstance(message, Join) and message.again and person.has_identity():
            stages *= len(person.whole().members)  # each name is announced
        self._room.take(CHANGE_BYTES * stages)

    def scan(self, views: Sequence[View], holders: Sequence[bytes]) -> tuple[Counter[bytes], int]:
        """Takes *holders* (contacts as bytes; aliases are passed over) into *views*, which are being built, and announces how they stand against
        what was said before.

        Returns, by view id, how many contacts stand elsewhere than the same version said, where each counts once, at the first of the views; and how
        many of *holders* it took before the room was used up, one at least. The caller moves the views' cursor past these afterwards. Nothing else
        may be in the same batch.
        """
        speaking = {view.id: view.cause for view in views if view.speaks and not view.told and not self._silent}
        changed: Counter[bytes] = Counter()
        compiled, taken = self._plain.worth(len(holders)), 0
        while taken < len(holders) and not self.full:
            some = holders[taken : taken + self._plain.scan_size(views, speaking)]
            self._scan(views, speaking, self._plain.scan(views, speaking, some) if compiled else some, changed)
            taken += len(some)
        return changed, taken

    def _scan(self, views: Sequence[View], speaking: Mapping[bytes, str], holders: Sequence[bytes], changed: Counter[bytes]) -> None:
        """Take *holders* into *views*, one by one."""
        for contact in holders:
            person = self._person(contact.decode())
            if person.pointer is not None:
                continue
            name, groups, _ = person.head
            evidence, counted = person.evidence, False
            for view in views:
                after = view.project(evidence.hits)
                cause = speaking.get(view.id)
                if cause is not None:
                    spoken = predecessors_said(view, name, evidence.hits)
                    because = view.source.recalculation if cause == RECALCULATION else None
                    said = differences(view, spoken, name, after, cause, because, {})
                    if said:
                        self._decision.changes.extend(said)
                        if cause == RECALCULATION and not counted:
                            counted = True
                            changed[view.id] += 1
                marked = bool(evidence.marked and evidence.marked & view.rules)
                self._decision.place(view, person.contact, (name, groups, after, marked), 1)

    def restore(self, changed: Mapping[str, tuple[bytes | None, bytes | None]]) -> None:
        """Takes over records as the changelog has them: contact -> (evidence record, identity record). For silent batches: views follow."""
        for contact, (evidence, identity) in changed.items():
            person = self._person(contact)
            pointer = None if evidence is None else records.pointer_of(evidence)
            if pointer is not None:
                if person.shown is not None:
                    self._withdraw(person, person.shown)
                person.pointer, person.shown = pointer, None
                continue
            if person.pointer is not None:
                continue
            person.evidence, has_identity = Evidence(), False
            if evidence is not None:
                person.evidence, has_identity = records.decode_evidence(evidence)
            # an identity counts once the evidence beside it says that it is there: the changelog may have ended between the two
            person.raw_identity, person.identity, person.head = (
                identity if has_identity else None,
                None,
                (contact, (), None),
            )
            if person.raw_identity is not None:
                person.head = records.decode_head(person.raw_identity)
                if person.head[2] is not None:
                    person.evidence.forget(person.head[2])
            person.renamed = True

    # ------------------------------------------------------------------ messages

    def _person(self, contact: str) -> Person:
        person = self._persons.get(contact)
        if person is not None:
            return person
        person = self._persons[contact] = Person(contact)
        key = records.EVIDENCE + person.key
        record = self._plain.record(key)
        if record is not None:
            self._room.take(COPIES * len(record))
            person.pointer = records.pointer_of(record)
            if person.pointer is not None:
                person.was_holder = False
                return person
            person.evidence, has_identity = records.decode_evidence(record)
            if has_identity:
                person.raw_identity = self._load(records.IDENTITY + person.key)
                self._room.take(COPIES * len(person.raw_identity or b""))
                # in a compacted changelog the tombstone of an identity may come before the alias that is its reason, when that was said again
                assert person.raw_identity is not None or self._silent, f"{contact}: the evidence says that there is an identity"
            if person.raw_identity is not None:
                person.head = records.decode_head(person.raw_identity)
                if person.head[2] is not None:
                    person.evidence.forget(person.head[2])
        self._show(person)
        return person

    @staticmethod
    def _show(person: Person) -> None:
        name, groups, _ = person.head
        person.shown = Shown(name, groups, dict(person.evidence.hits), person.evidence.marked)

    def _send(self, message: Message) -> None:
        if self._is_here(message.to):
            self._queue.append(message)
        else:
            self._decision.handoffs.append(message)

    def _join(self, person: Person, message: Join) -> None:
        evidence = person.evidence
        if message.again:
            person.again = True
            person.perhaps.update(message.said)
        if evidence.lower(message.halvings):
            person.renamed = True
        for rule, blob in message.hits.items():
            if evidence.add(rule, blob):
                person.rules.add(rule)
        if message.marked - evidence.marked:
            evidence.marked |= message.marked
            person.renamed = True
        if message.members or message.merges or message.profiles or message.erased_at_ms is not None:
            identity = person.whole()
            changed = identity.join(message.members, message.merges, dict(message.profiles), message.erased_at_ms)
            self._truncated.update(identity.cut)
            if changed:
                person.renamed = True
                person.head = identity.name, identity.groups, identity.erased_at_ms
        if person.head[2] is not None and evidence.forget(person.head[2]):
            person.renamed = True
        person.ids.update(message.ids)
        if message.cause != ACTIVITY:
            person.cause, person.cause_id = message.cause, message.cause_id
        elif person.cause == ACTIVITY and message.hits:
            person.cause_id = message.cause_id
        if message.part is not None:
            person.parts.append(Part(message.part, message.hits, message.said))
            person.renamed = True

    def _unite(self, person: Person, message: Unite) -> None:
        identity = person.whole()
        new = [merge for merge in message.merges if merge not in identity.merges]
        reason = self._full(identity, new)
        if reason is not None:
            assert message.origin is not None, "only a unite that carries a merge record brings a new merge"
            self._decision.refused.append((message.origin, reason))
            return
        person.cause, person.cause_id = MERGE, message.cause_id
        if message.other == person.contact:
            self._join_merges(person, identity, new)
        elif place(message.other) < place(person.contact):
            self._flush(person)
            self._show(person)
            identity.join(merges=new)
            self._hand_over(person, identity, message)
        else:
            self._join_merges(person, identity, new)
            self._send(Unite(message.other, person.contact, cause_id=message.cause_id))

    def _full(self, identity: Identity, new: Sequence[Merge]) -> str | None:
        """Why a person takes no *new* merges; None when it does, or there are none."""
        if not new:
            return None
        if len(identity.merges) + len(new) > self._max_merges:
            return f"the person of {new[0].from_} has {len(identity.merges)} merges already; the limit is {self._max_merges}"
        size, more = identity.merges_bytes(), len(new) * (MERGE_BYTES + 2 * LONGEST_ID_BYTES)
        if size + more > MAX_MERGES_BYTES:
            return f"the ids in the merges of the person of {new[0].from_} take {size} bytes already; the limit is {MAX_MERGES_BYTES}"
        return None

    @staticmethod
    def _join_merges(person: Person, identity: Identity, merges: Iterable[Merge]) -> None:
        if identity.join(merges=merges):
            person.renamed = True
            person.head = identity.name, identity.groups, identity.erased_at_ms

    def _hand_over(self, person: Person, identity: Identity, message: Unite) -> None:
        """Sends everything to the other and becomes its alias. What was visible goes from here without a word; the other will speak of it."""
        shown, to = person.shown, message.other
        assert shown is not None, "a holder is visible"
        self._withdraw(person, shown)
        self._send(
            Join(
                to, person.evidence.hits, person.evidence.marked, tuple(sorted(identity.members)), tuple(sorted(identity.merges)),
                identity.profiles, identity.erased_at_ms, MERGE, message.cause_id, part=shown.name,
                said=said_of(self._views.concerned(shown.hits), person.key, shown.hits), halvings=person.evidence.halvings,
            )
        )  # fmt: skip
        person.pointer, person.shown = to, None

    # ------------------------------------------------------------------ outcome

    def decide(self) -> Decision:
        """Everything the batch comes to. The batch must not be used after."""
        self._drain()
        for person in self._persons.values():
            if person.pointer is None:
                self._flush(person)
        # The changelog may end anywhere in what we write. An alias comes behind the holder that took its evidence over in the same batch, and its
        # own identity goes last: otherwise evidence would be with nobody, or a holder without its identity.
        written = self._decision.records
        for person in self._persons.values():
            if person.pointer is not None and person.was_holder:
                evidence_key, identity_key = records.EVIDENCE + person.key, records.IDENTITY + person.key
                written.pop(evidence_key, None)
                written.pop(identity_key, None)
                written[evidence_key] = records.encode_alias(person.pointer)
                if person.raw_identity is not None:
                    written[identity_key] = None
        return self._decision

    def _flush(self, person: Person) -> None:
        """Writes what changed of *person* and brings views and announcements to where it stands now."""
        if not person.rules and not person.renamed and not person.again:
            return
        shown, evidence = person.shown, person.evidence
        assert shown is not None, "a holder is visible"
        if evidence.bound():
            person.renamed = True  # hits of any rule may have gone
            self._truncated["hits"] += 1
        name, groups, _ = person.head
        hits = evidence.hits
        if not person.renamed and not person.again:
            concerned = self._views.concerned(person.rules)
        else:
            parts = {rule for part in person.parts for rule in part.hits}
            concerned = self._views.concerned({*hits, *shown.hits, *parts})
        for part in person.parts:
            # of journeys that nobody here speaks of, the name that stays is left as well: who learns of them says what is true then
            here = self._views.speaking if part.name == name else {}
            concerned += [view for journey, view in here.items() if journey in part.said and view not in concerned]
            self._decision.changes.extend(farewell(part, here, person.cause, person.cause_id))
        names: set[str] = set()
        if person.again:
            names = {name, *(person.whole().members if person.has_identity() else (person.contact,))}
            here = self._views.speaking
            concerned += [view for journey, view in here.items() if journey in person.perhaps and view not in concerned]
            for who in sorted(names) if person.perhaps else ():
                gone = farewell(Part(who, {}, person.perhaps), here, person.cause, person.cause_id)
                self._decision.changes.extend(gone)
        for view in concerned:
            after = view.project(hits)
            before = view.project(shown.hits)
            if view.speaks and not self._silent:
                spoken, furthest = spoken_before(view, person.key, shown.name, shown.hits), 0
                for part in person.parts:
                    if part.name == name:
                        said, stages = part_said(view, part)
                        spoken.append(said)
                        furthest = max(furthest, stages)
                if names:
                    unknown, stages = anything(view, names)
                    perhaps = person.perhaps.get(view.journey.id)
                    spoken += unknown
                    furthest = max(furthest, stages, len(perhaps.stages) if perhaps is not None else 0)
                self._decision.changes.extend(
                    differences(view, spoken, name, after, person.cause, person.cause_id, person.ids, furthest)
                )
            if view.includes(person.key):
                was = shown.name, shown.groups, before, bool(shown.marked & view.rules)
                now = name, groups, after, bool(evidence.marked & view.rules)
                if was != now:
                    self._decision.place(view, person.contact, was, -1)
                    self._decision.place(view, person.contact, now, 1)
        if person.rules or person.renamed:
            self._write(person)
        person.rules, person.renamed, person.parts, person.again, person.perhaps = set(), False, [], False, {}

    def _write(self, person: Person) -> None:
        written, key, has_identity = self._decision.records, records.EVIDENCE + person.key, person.has_identity()
        if person.renamed and has_identity:  # before the evidence that says there is one
            record = records.encode_identity(person.whole())
            if record != person.raw_identity:
                written[records.IDENTITY + person.key] = person.raw_identity = record
                written.pop(key, None)  # its hits may have been written before
        written[key] = records.encode_evidence(person.evidence, has_identity)

    def _withdraw(self, person: Person, shown: Shown) -> None:
        for view in self._views.concerned(shown.hits):
            if view.includes(person.key):
                before = view.project(shown.hits)
                self._decision.place(
                    view, person.contact, (shown.name, shown.groups, before, bool(shown.marked & view.rules)), -1
                )
