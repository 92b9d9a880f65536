"""Succession: what a partition takes over from the owner before, and owes in its place. Joins the changelog, hands on, repeats; decides nothing new.

An owner may end between announcing something and writing it down. So each writes down how far it has followed its sources, and whoever comes after
says the truth again of everybody touched by what the owner before may have had on its way (docs/architecture.md, what is announced).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from schemas.errors import Refused
from state import joining, records
from state.announcement import perhaps_said
from state.batch import Batch
from state.decision import ENTRY_BYTES, Decision
from state.messages import Join

from . import intake, metrics
from .building import VIEW
from .entries import POSITION, REPEATED, is_contact, refusal
from .heard import Heard

if TYPE_CHECKING:
    from .partition import Partition

log = logging.getLogger(__name__)

LEFT, FOREIGN = b"h", b"f"
CHANGELOG_POSITION = POSITION + b"changelog"
_decode_values = msgspec.msgpack.Decoder(list[bytes | None]).decode
CHANGELOG = "evidence-changelog"
MOST_BAD = 1000  # records of the changelog that are kept in mind until they are rejected
REPEATED_CONTACTS = 250  # are announced at once: a person of many contacts says much


class Succession:
    """Of one partition. Offsets are the next ones, by source.

    `logged`: the last position sent to the changelog; `followed`: what is in RocksDB, since this owner is one; `decided`: before it, something may
    have had an effect. `stale`: keys of which the changelog's last record is less than what is known here; an owner says them again.
    """

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self.stale: set[bytes] = set()
        self._foreign: set[bytes] = set()  # keys of which RocksDB keeps what somebody else wrote
        self._foreign_to: dict[str, int] = {}  # once so much is followed, that is known otherwise
        self._repeat_to: dict[str, int] = {}
        self._bad: list[tuple[Any, Refused]] = []  # records that no worker writes, to be rejected
        self._repeated: dict[str, set[bytes]] = {}  # contact -> rules, of what came again and is not announced yet
        self._order: list[str] = []  # of the same, once all of it came, the next to be announced last
        self.beginning = False  # the changelog is yet to be told that batches are taken
        self.logged: dict[str, int] = {}
        self.followed: dict[str, int] = {}
        self.decided: dict[str, int] = {}

    def load(self) -> None:
        """What is owed still, as it was last written."""
        self._repeated = {
            key[1:].decode(): {value[i : i + 8] for i in range(0, len(value), 8)}
            for key, value in self._partition.ledger.scan(REPEATED)
        }

    # ------------------------------------------------------------------ recovery

    def recover(self, changes: Sequence[Any], last_offset: int) -> None:
        """See `Partition.recover`."""
        heard = Heard(changes)
        spoilt = self._pass_over(heard, changes)
        told = self._of_our_own(heard.last)
        found = zip(heard.last, self._partition.ledger.get_many([*heard.last]), strict=True)
        old = {key: value for key, value in found if value is not None}


        def values(key: bytes) -> list[bytes | None]:
            known = [old[key]] if key in old else []
            return known + [value for value in heard.values(key) if refusal(key, value) is None]

        # of a key with a bad record, the one before it need not say all that is known
        unsettled = {*heard.unsettled(old), *(spoilt & heard.last.keys())}
        joined, left = self._join(heard.last, unsettled, values)
        metrics.RECOVERED_RECORDS.inc(len(changes))
        for key, value in joined.items():
            if value != heard.last.get(key):
                self.stale.add(key)
            elif key in self.stale:  # its owner has said it again
                self.stale.discard(key)
                if key in self._foreign:
                    self._foreign.discard(key)
                    told.append((FOREIGN + key, None))
        self.stale |= spoilt  # what is known of these has to be the changelog's last word
        # behind a stale record the position stays: should this owner end before it has said it again, the next one finds it again
        position = [] if self.stale else [(CHANGELOG_POSITION, str(last_offset).encode())]
        self._write(joined, left, [*told, *position])

    def _pass_over(self, heard: Heard, changes: Sequence[Any]) -> set[bytes]:
        """Take what no worker writes out of *heard*; return the keys of contacts that it concerns."""
        doubtful = heard.doubtful()
        bad = {key: error for key in doubtful if (error := refusal(key, heard.last[key]))}
        for key in bad:
            sound = [value for value in heard.values(key) if refusal(key, value) is None]
            if sound:
                heard.last[key] = sound[-1]
            else:
                del heard.last[key]
        if bad:
            rows = [one for one in changes if one.key in bad or (one.key or b"") in bad]
            found = [(record, refusal(record.key, record.value)) for record in rows]
            self._bad += [(record, error) for record, error in found if error is not None]
            del self._bad[:-MOST_BAD]
            for key, error in bad.items():
                number = self._partition.number
                log.error("changelog of partition %d, key %r: %s", number, (key or b"")[:100], error)
        contacts = (records.EVIDENCE, records.IDENTITY)
        return {key for key in bad if key and key[:1] in contacts and is_contact(key)}

    def _reject(self) -> None:
        """Send what was passed over to the rejected topic; a crash may repeat it."""
        if not self._bad:
            return
        p, now_ms = self._partition, self._partition.context.now_ms()
        topic = p.context.topics[CHANGELOG]
        out = [intake.rejected(topic, p.number, record, error, now_ms) for record, error in self._bad]
        self._bad = []
        work = p.work(Decision({}, [], [], [], {}, {}), out)
        work.took_room = False
        assert p.pipeline is not None, "an owner rejects"
        p.pipeline.add(work)

    def resume(self) -> None:
        """Joins what somebody else wrote while this worker was the owner, as whoever reads the changelog does (see `keep`)."""
        ledger = self._partition.ledger
        found = {key[1:]: _decode_values(value) for key, value in ledger.scan(FOREIGN)}
        if found:
            self._foreign, self.stale = {*found}, {*found}
            for (_, values), mine in zip(found.items(), ledger.get_many([*found]), strict=True):
                if mine is not None:  # it was written behind
                    values.append(mine)
            joined, left = self._join({key: values[-1] for key, values in found.items()}, found, found.__getitem__)
            self._write(joined, left)

    def _write(self, joined: Mapping[bytes, bytes | None], left: Mapping[bytes, bytes], last: Iterable[tuple[bytes, bytes | None]] = ()) -> None:
        """Write the records *joined* and what views become with them, in pieces of bounded size. What they leave out, *left*, goes with the first,
        *last* behind all: should this end between two, the same comes again, and finds what was written."""
        p = self._partition
        a_contact = 2 * ENTRY_BYTES * len(p.views.all)
        size = max(1, p.context.decision_bytes // a_contact) if a_contact else len(joined)
        keys: dict[bytes, list[bytes]] = {}  # by contact
        for key in joined:
            keys.setdefault(key[1:], []).append(key)
        contacts = [*keys]
        before: list[tuple[bytes, bytes | None]] = [*left.items()]
        for at in range(0, len(contacts), max(1, size)):
            mine = {key: joined[key] for contact in contacts[at : at + size] for key in keys[contact]}
            p.ledger.write([*before, *mine.items(), *self._restore_views(mine)])
            before = []
        p.ledger.write([*before, *last])

    def _join(
        self, last: Mapping[bytes, bytes | None], unsettled: Collection[bytes], values: Callable[[bytes], Sequence[bytes | None]]
    ) -> tuple[dict[bytes, bytes | None], dict[bytes, bytes]]:
        """What is known of each key comes to, and what that leaves out, under `LEFT`: its *last* value, but for the *unsettled* ones what all of its
        *values* come to, in the order of the log."""
        p = self._partition
        joined: dict[bytes, bytes | None] = {**last}
        left: dict[bytes, bytes] = {}
        for key in unsettled:
            joined[key], lost = joining.join_all(key, values(key))
            if lost is not None:
                left[LEFT + key] = joining.join(key, p.ledger.get(LEFT + key), lost) or lost
        for key in unsettled:  # an alias keeps no identity; a stale writer's alias comes without the tombstone of one it did not know
            evidence, identity = joined[key], records.IDENTITY + key[1:]
            if key[:1] == records.EVIDENCE and evidence is not None and records.pointer_of(evidence) is not None:
                kept = joined[identity] if identity in joined else p.ledger.get(identity)
                if kept is not None:
                    left[LEFT + identity] = joining.join(identity, left.get(LEFT + identity) or p.ledger.get(LEFT + identity), kept) or kept
                    joined[identity] = None
        return joined, left

    def _of_our_own(self, last: dict[bytes, bytes | None]) -> list[tuple[bytes, bytes | None]]:
        """Takes what is not about a contact out of *last*; what becomes of it in RocksDB."""
        positions = self._partition.positions
        own = {kind: [key for key in last if key[:1] == kind] for kind in (VIEW, POSITION, REPEATED)}
        told = [self._partition.building.told(key, last.pop(key)) for key in own[VIEW]]
        for key in own[POSITION]:
            source, following = key[1:].decode(), int(last.pop(key) or 0)
            if following > positions.get(source, -1):
                positions[source] = following
                told.append((key, str(following).encode()))
        told += [(key, last.pop(key)) for key in own[REPEATED]]
        return [entry for entry in told if entry is not None]

    def _restore_views(self, joined: Mapping[bytes, bytes | None]) -> list[tuple[bytes, bytes | None]]:
        """What index and totals become with the records *joined*, which are not in RocksDB yet."""
        p = self._partition
        if not p.views.all:
            return []
        contacts: dict[str, tuple[bytes | None, bytes | None]] = {}
        for contact in {key[1:] for key in joined}:
            both = (records.EVIDENCE + contact, records.IDENTITY + contact)
            evidence, identity = (joined[k] if k in joined else p.ledger.get(k) for k in both)
            contacts[contact.decode()] = (evidence, identity)
        batch = Batch(p.views, p.ledger.get, lambda _: True, silent=True)
        batch.restore(contacts)
        decision = batch.decide()
        totals = [(id_, p.totals.setdefault(id_, {}), groups) for id_, groups in decision.totals.items()]
        return [*decision.entries.items(), *p.add_totals(totals)]

    # ------------------------------------------------------------------ taking over

    def begin(self, ends: Mapping[str, int], most: int) -> None:
        """This worker owns the partition. *ends*: where the log of each source ends now; *most*: so many records of a source the owner before may
        have had on their way beyond the furthest position that anybody wrote down.

        They come again, perhaps in another order; then the truth is announced of every contact that they touch (`repeated`).
        """
        positions = self._partition.positions
        self.followed, self.logged = {}, dict(positions)
        self._repeat_to = {source: min(positions.get(source, 0) + most, end) for source, end in ends.items()}
        self.beginning = not positions
        if self.beginning:  # nobody took a batch before: whoever does says so first
            self._repeat_to = {}
        self.decided = dict(self._repeat_to)  # at most, by the owner before

    def hand_on(self, sources: Iterable[str]) -> None:
        """What goes out first: that batches are taken, where the changelog does not know it yet; what the changelog's last record says less of; and
        what recovery found behind aliases.

        A fact that comes again is without effect where a stale writer's record told of it already, and is done with: so the record must not be one
        that compaction takes. Where a stale writer made a contact an alias, its owner may have known more of it by then.
        """
        p = self._partition
        if self.beginning:
            marks: dict[bytes, bytes | None] = {POSITION + source.encode(): b"0" for source in sources}
            p.add_aside(Decision(marks, [], [], [], {}, {}))
        self._reject()
        if self.stale:
            again = sorted(((key, p.ledger.get(key)) for key in self.stale), key=_place)
            kept, self._foreign = self._foreign, set()
            p.add_aside(Decision(dict(again), [], [], [], {}, {}), done=lambda: self._said(kept))
        found: dict[str, dict[bytes, bytes]] = {}
        for key, value in p.ledger.scan(LEFT):
            found.setdefault(key[2:].decode(), {})[key[1:2]] = value
        if not found:
            return
        batch = Batch(p.views, p.reader({records.EVIDENCE + contact.encode() for contact in found}), p.is_here, p.context.max_merges)
        owed: dict[bytes, bytes | None] = {}
        for contact, left in found.items():
            batch.deliver(joining.left_behind(contact, left.get(records.EVIDENCE), left.get(records.IDENTITY)))
            if records.EVIDENCE in left:  # the owner before took it for a holder, and a view that it built may have spoken of it
                mine = self._repeated.setdefault(contact, set())
                mine.update(records.decode_evidence(left[records.EVIDENCE])[0].hits)
                owed[REPEATED + contact.encode()] = b"".join(sorted(mine))
        decision = batch.decide()
        decision.records.update(owed)
        p.add_aside(decision, also=[(LEFT + kind + contact.encode(), None) for contact, left in found.items() for kind in left])

    def _said(self, kept: set[bytes]) -> None:
        """The changelog's last records say all that is known; *kept*: of what others wrote before this worker became the owner."""
        self.stale.clear()
        self._partition.ledger.write([(FOREIGN + key, None) for key in kept - self._foreign])

    def keep(self, foreign: Iterable[tuple[bytes, bytes | None]], ends: Mapping[str, int]) -> None:
        """Keeps what somebody else wrote to the changelog while this worker was the owner; *ends*: where the log of each source ends now.

        Whoever reads the changelog joins it, and what they write then goes without saying it all again. So this worker joins it too, where it begins
        again (`resume`) before it has followed all facts that can be behind it. Not earlier: what follows from facts is announced as they come.
        """
        values: dict[bytes, list[bytes | None]] = {}
        for key, value in foreign:
            error = refusal(key, value)
            if error is not None:
                log.error("changelog, key %r, of another writer: %s", key[:100], error)
            elif key[:1] in (records.EVIDENCE, records.IDENTITY):
                values.setdefault(key, []).append(value)
        ledger = self._partition.ledger
        written: list[tuple[bytes, bytes | None]] = []
        for key, found in values.items():
            before = ledger.get(FOREIGN + key)
            known = [] if before is None else _decode_values(before)
            written.append((FOREIGN + key, msgspec.msgpack.encode([*known, *found])))
        ledger.write(written)
        self._foreign |= values.keys()
        self._foreign_to = dict(ends)

    def forget(self) -> None:
        """Lets go of what `keep` keeps, once everything is followed that can be behind it."""
        if self._foreign_to and all(self._reflected(source) >= to for source, to in self._foreign_to.items()):
            self._partition.ledger.write([(FOREIGN + key, None) for key in self._foreign])
            self._foreign, self._foreign_to = set(), {}

    def note(self, source: str, first_offset: int, taken: intake.Taken) -> dict[bytes, bytes | None]:
        """Keeps, of what comes again, which contacts it touches, and of which rules something may have been said: contact -> rule keys.

        The changelog keeps it too: should this owner end before the truth of them is announced, it is owed by the next.
        """
        if first_offset >= self._repeat_to.get(source, 0):
            return {}
        rules = {contact: {rule for rule, _ in hits} for contact, hits in taken.arrived.items()}
        for message in taken.messages:
            rules.setdefault(message.to, set()).update(message.hits if isinstance(message, Join) else ())
        for contact, load in self._loading(rules):
            mine = rules[contact]
            record = load(records.EVIDENCE + self._holder(contact, load).encode())  # what concerns an alias concerns its holder
            if record is not None and records.pointer_of(record) is None:
                mine.update(records.decode_evidence(record)[0].hits)
            mine.update(self._repeated.get(contact, ()))
        self._repeated |= rules
        return {REPEATED + contact.encode(): b"".join(sorted(mine)) for contact, mine in rules.items()}

    def _loading(self, contacts: Iterable[str]) -> Iterator[tuple[str, Callable[[bytes], bytes | None]]]:
        """Yield each contact with what reads its record; records are read some at a time, since they may be large."""
        waiting = [*contacts]
        for at in range(0, len(waiting), REPEATED_CONTACTS):
            piece = waiting[at : at + REPEATED_CONTACTS]
            load = self._partition.reader([records.EVIDENCE + contact.encode() for contact in piece])
            yield from ((contact, load) for contact in piece)

    def _holder(self, contact: str, load: Callable[[bytes], bytes | None]) -> str:
        """Who holds the evidence of *contact*, as far as that is here."""
        while self._partition.is_here(contact):
            record = load(records.EVIDENCE + contact.encode())
            pointer = None if record is None else records.pointer_of(record)
            if pointer is None:
                break
            contact = pointer
        return contact

    def repeated(self) -> bool:
        """Whether everything that the owner before may have had on its way has come again, and the truth of it is announced. If that can be done now,
        each call does a piece."""
        if not self._repeat_to and not self._repeated:
            return True
        for source in [s for s, to in self._repeat_to.items() if self._reflected(s) >= to]:
            del self._repeat_to[source]
        if self._repeat_to:
            return False
        if self._repeated:
            p = self._partition
            if not self._order:  # contacts of one person go together: it is said once
                holders = {contact: self._holder(contact, load) for contact, load in self._loading(self._repeated)}
                self._order = sorted(self._repeated, key=lambda contact: (holders[contact], contact), reverse=True)
            piece = self._order[: -REPEATED_CONTACTS - 1 : -1]
            said = perhaps_said(p.views.concerned({rule for contact in piece for rule in self._repeated[contact]}))
            load = p.reader({records.EVIDENCE + contact.encode() for contact in piece})
            batch = Batch(p.views, load, p.is_here, p.context.max_merges, room=p.context.decision_bytes)
            left = batch.deliver_all([Join(contact, said=said, again=True) for contact in piece if p.is_here(contact)])
            if left:
                piece = piece[: piece.index(left[0].to)]
            del self._order[-len(piece) :]
            decision = batch.decide()
            decision.records.update({REPEATED + contact.encode(): None for contact in piece})
            for contact in piece:
                del self._repeated[contact]
            p.add_aside(decision)
        return not self._repeated

    def recording_from(self) -> int:
        """Every activity of this partition's log from this offset on meets the matcher as it is now, here and with whoever comes after, and none has
        had an effect yet."""
        return max(self.decided.get("activities", 0), self._done("activities"))

    def _reflected(self, source: str) -> int:
        return max(self.followed.get(source, 0), self._done(source))

    def _done(self, source: str) -> int:
        context = self._partition.context
        return context.reflected(context.topics[source], self._partition.number) or 0


def _place(entry: tuple[bytes, bytes | None]) -> int:
    """Where an entry stands among others, the changelog may end behind each: see `Batch.decide`."""
    key, value = entry
    if key[:1] == records.IDENTITY:
        return 3 if value is None else 0
    return 1 if value is None or records.pointer_of(value) is None else 2
