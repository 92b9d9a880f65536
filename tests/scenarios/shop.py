"""A shop to tell stories in: contacts do things, and the screen says what it says. The worker's real partitions, on ledgers and logs in memory.

Everything is answered at once and in order; other orders and crashes are the simulation's business. Times are "10:00", of one day.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY, patch

import agents.partition
from agents import questions
from agents.partition import SOURCES, Context, Partition
from agents.reporter import views_of
from schemas.journey import Journey, parse_journey
from schemas.recalculation import CANCELLED, PLANNED, REQUEST, Recalculation
from schemas.times import format_ms, parse_ms
from state import records
from state.comparison import Tolerance
from state.matching import Matcher
from state.recalculation import rules_by_key
from state.totals import Cell, results, summed
from streams.partitioner import partition_of
from tests.simulation.doubles import Disk, Loop, MemoryLedger
from tests.support.recalculating import Recalculating

DAY = "2026-01-02"
TOPICS = {name: name for name in (*SOURCES, "stage-changes", "rejected", "totals")}
PARTITIONS = 3


def ms(at: str) -> int:
    """The time that "10:00", "10:00:05" or a whole RFC 3339 text names, in milliseconds."""
    if "T" in at:
        return parse_ms(at)
    return parse_ms(f"{DAY}T{at if at.count(':') == 2 else at + ':00'}Z")


@dataclass(frozen=True)
class Change:
    """A stage change as a story tells it."""

    change: str
    stage: int
    at: str | None = None
    was: str | None = None


def reached(stage: int, at: str) -> Change:
    return Change("reached", stage, at)


def moved(stage: int, at: str, *, was: str) -> Change:
    return Change("moved", stage, at, was)


def left(stage: int, *, was: str = ANY) -> Change:
    """Without *was*: a merge takes a name away, and does not say since when it had been."""
    return Change("left", stage, None, was)


def _clock(text: str | None) -> str | None:
    """ "10:00" of an RFC 3339 text of the day."""
    if text is None:
        return None
    clock = text.removeprefix(f"{DAY}T").removesuffix("Z").removesuffix(".000")
    return clock.removesuffix(":00") if clock.count(":") == 2 else clock


@dataclass
class Contact:
    """Somebody who visits the shop, known by `id`."""

    shop: Shop
    id: str

    def does(self, type_: str, *, at: str, id: str | None = None, **fields: Any) -> None:
        """Any activity."""
        fact = {"id": id or self.shop.new_id("a"), "contact_id": self.id, "type": type_, "at": ms(at), **fields}
        self.shop.send("activities", self.id, fact)

    def visits(self, page: str, *, at: str, channel: str | None = None, id: str | None = None) -> None:
        self.does("pagevisit", at=at, id=id, page=page, url=f"https://shop.example{page}", channel=channel)

    def submits(self, form: str, *, at: str, id: str | None = None) -> None:
        self.does("bizformsubmit", at=at, id=id, form=form)

    def clicks(self, url: str, *, at: str, email: str) -> None:
        self.does("emailclick", at=at, url=url, email=email)

    def downloads(self, what: str, *, at: str) -> None:
        self.does("sample_file_download", at=at, value=what)

    def registers(self, *, at: str) -> None:
        self.does("memberregistration", at=at)

    def turns_out_to_be(self, other: Contact, *, at: str, id: str | None = None) -> None:
        """A merge: this contact into *other*."""
        fact = {"id": id or self.shop.new_id("m"), "from": self.id, "into": other.id, "at": ms(at)}
        self.shop.send("contact-merges", self.id, fact)

    def is_in(self, *groups: str, at: str = "00:00", **attributes: Any) -> None:
        """A profile."""
        self.shop.send(
            "contacts", self.id, {"contact_id": self.id, "groups": groups, "attributes": attributes, "at": ms(at)}
        )

    def asks_to_be_forgotten(self, *, at: str) -> None:
        """An erasure: a null profile, whose record has the time *at*."""
        self.shop.send_raw("contacts", self.id.encode(), None, ms(at))


class Shop:
    """The shop with one journey. `results()`, `who()`, `row()` are the screen; `changes()` is the topic of stage changes."""

    def __init__(self, *stages: dict[str, Any]) -> None:
        self._loop, self._ids = Loop(), 0
        self._logs: dict[tuple[str, int], list[Any]] = {}
        self._read: dict[tuple[str, int], int] = {}
        self._contacts: dict[str, Contact] = {}
        self._version = self._runs = 0
        self.rejected: list[dict[str, Any]] = []
        self._changes: list[dict[str, Any]] = []
        self._context = Context(
            partitions=PARTITIONS, data_dir=Path("/shop"), memory=Disk(), topics=TOPICS,
            outward=SimpleNamespace(send=self._send_out),  # type: ignore[arg-type]
            changelog=SimpleNamespace(send=self._to_changelog, frozen=lambda _: False, owned=self._owned),  # type: ignore[arg-type]
            now_ms=lambda: ms("23:00"), failed=self._failed, ahead_ms=86_400_000, max_merges=10_000, matcher=Matcher({}), catalog={},
            reflected=lambda topic, p: self._read.get((topic, p), 0), common=self._common,
        )  # fmt: skip
        with patch.object(agents.partition, "Ledger", MemoryLedger):
            self._partitions = [Partition(number, self._context) for number in range(PARTITIONS)]
        for partition in self._partitions:
            self._in_loop(partial(partition.activate, dict.fromkeys(SOURCES, 0)))
        self._recalculating = Recalculating(
            self._context, lambda: dict(enumerate(self._partitions)), lambda source, p: self._logs.get((source, p), []),
            lambda p, key, value: self._append("rebuilt-evidence", p, key, value, (), ms("23:00")), self._reconcile,
        )  # fmt: skip
        self.edit(*stages)

    def _common(self, journey: str) -> tuple[int, int] | None:
        """The newest view that can be read everywhere."""
        return max(set.intersection(*({*views_of(p).get(journey, ())} for p in self._partitions)), default=None)

    async def _owned(self, partition: int) -> None:
        """Always."""

    # ------------------------------------------------------------------ telling

    def contact(self, id_: str) -> Contact:
        return self._contacts.setdefault(id_, Contact(self, id_))

    def edit(self, *stages: dict[str, Any]) -> None:
        """A new version of the journey."""
        self._version += 1
        self.journey: Journey = parse_journey(
            {"id": "loan", "name": "Loan", "version": self._version, "stages": list(stages)}
        )
        self._context.catalog = {"loan": self.journey}
        self._recalculating.apply()
        self._finish()

    def recalculate(self) -> Recalculation:
        """A recalculation of the journey, asked for by hand; how it ended."""
        self._runs += 1
        rules = tuple(rules_by_key(self.journey).values())
        one = Recalculation(
            id=f"r-{self._runs}", state=PLANNED, cause=REQUEST, journeys=("loan",), rules=rules, planned_at=ms("23:00") + self._runs
        )
        self._recalculating.take(one)
        self._finish()
        return self._context.recalculations.records[one.id]

    def confirm(self, one: Recalculation) -> Recalculation:
        """Somebody makes the results of *one* visible, which waits for it."""
        self._recalculating.take(one.but(confirmed_at=ms("23:00")))
        self._finish()
        return self._context.recalculations.records[one.id]

    def cancel(self, one: Recalculation) -> Recalculation:
        """Somebody cancels *one*."""
        self._recalculating.take(one.but(state=CANCELLED, finished_at=ms("23:00")))
        self._finish()
        return self._context.recalculations.records[one.id]

    def tolerate(self, contacts: int) -> None:
        """From now on a stage may differ by less than so many contacts, or by a fifth, without a confirmation."""
        self._recalculating.tolerance = Tolerance(0.2, contacts)

    def lose(self, *contacts: Contact) -> None:
        """The log comes back without what these contacts did."""
        names = {contact.id for contact in contacts}
        for (topic, _), log in self._logs.items():
            for record in log if topic == "activities" else ():
                if record.value is not None and json.loads(record.value)["contact_id"] in names:
                    record.value = None

    def begin_log(self, at: str) -> None:
        """The first record that retention has left of each partition is of *at*."""
        self.forget_before(at)
        self._recalculating.log_begins = dict.fromkeys(range(PARTITIONS), ms(at))

    def forget_before(self, at: str) -> int:
        """Retention takes activities before *at* from the log; how many are left of those that were. Offsets stay what they were."""
        kept = 0
        for (topic, _), log in self._logs.items():
            for record in log if topic == "activities" else ():
                if record.value is not None and parse_ms(json.loads(record.value)["at"]) < ms(at):
                    record.value = None
                else:
                    kept += 1
        return kept

    def _finish(self) -> None:
        """Brings every recalculation to its end."""
        self._settle()
        for _ in self._recalculating.steps():
            self._settle()

    def _reconcile(self) -> None:
        for partition in self._partitions:
            self._in_loop(partition.reconcile)

    def new_id(self, kind: str) -> str:
        self._ids += 1
        return f"{kind}-{self._ids}"

    def send(self, topic: str, contact: str, fact: dict[str, Any]) -> None:
        self.send_raw(topic, contact.encode(), json.dumps(fact).encode(), ms("23:00"))

    def send_raw(
        self, topic: str, key: bytes | None, value: bytes | None, timestamp_ms: int, partition: int | None = None
    ) -> None:
        """A record as it is; without *partition*, where its key belongs."""
        if partition is None:
            partition = partition_of(key, PARTITIONS) if key else 0
        self._append(topic, partition, key, value, (), timestamp_ms)
        self._settle()

    # ------------------------------------------------------------------ what the screen says

    def results(self, group: str | None = None) -> list[int]:
        """How many converted, stage by stage."""
        return [row["converted"] for row in self.rows(group)]

    def rows(self, group: str | None = None) -> list[dict[str, Any]]:
        """The contract's rows."""
        return results(self.journey, self._totals(group))

    def row(self, stage: int, group: str | None = None) -> dict[str, Any]:
        return self.rows(group)[stage - 1]

    def who(self, stage: int, group: str | None = None, dropped_off: bool = False) -> list[str]:
        """The list behind a number; it is as long as the number says."""
        kind = questions.DROPPED_OFF if dropped_off else questions.CONVERTED
        names: list[str] = []
        for partition in self._partitions:
            said = questions.listed(partition, "loan", None, None, stage, kind, group, 1000, None)
            assert said["total"] == len(said["rows"]), "a number equals the list behind it"
            names += [row["contact_id"] for row in said["rows"]]
        return sorted(names)

    def changes(self, contact: Contact) -> list[Change]:
        """What the topic of stage changes said of *contact*, in order."""
        return [
            Change(
                c["change"],
                c["stage"],
                _clock(c["reached_at"]),
                _clock(c["previous_reached_at"]) if c["change"] != "reached" else None,
            )
            for c in self._changes
            if c["contact_id"] == contact.id
        ]

    def last_change(self) -> dict[str, Any]:
        """The last stage change, as the contract writes it."""
        return self._changes[-1]

    def knows(self, contact: Contact) -> dict[str, Any]:
        """What is known of a contact, wherever its evidence lives."""
        id_ = contact.id
        while True:
            said = questions.contact(self._partitions[partition_of(id_, PARTITIONS)], id_)
            if said["state"] != "alias":
                return said
            id_ = said["pointer"]

    def evidence_keys(self) -> set[bytes]:
        """Under which keys any evidence is kept."""
        found: set[bytes] = set()
        for partition in self._partitions:
            self._in_loop(partition.building.settle)
            for _, record in partition.ledger.scan(records.EVIDENCE):
                if records.pointer_of(record) is None:
                    found |= records.decode_evidence(record)[0].hits.keys()
        return found

    def keys_read(self) -> set[bytes]:
        """Evidence keys that anything reads or records."""
        return set(self._context.recalculations.recorded())

    def stages_of(self, contact: Contact) -> list[str | None]:
        """When *contact* reached each stage so far."""
        return [_clock(format_ms(stage["reached_at_ms"])) for stage in self.knows(contact)["journeys"][0]["stages"]]

    def _totals(self, group: str | None) -> dict[Cell, int]:
        return summed(questions.results(partition, "loan", None, None, group)["cells"] for partition in self._partitions)

    # ------------------------------------------------------------------ behind the counter

    async def _send_out(self, topic: str, records: list[Any]) -> Any:
        for partition, key, value, headers, timestamp_ms in records:
            if topic == "stage-changes":
                self._changes.append(json.loads(value))
            elif topic == "rejected":
                self.rejected.append({"value": value, "key": key, **{name: said.decode() for name, said in headers}})
            else:
                self._append(topic, partition, key, value, headers, timestamp_ms)
        return self._acknowledged(None)

    async def _to_changelog(self, _: int, records: list[Any]) -> Any:
        return self._acknowledged(len(records) - 1)

    async def _acknowledged(self, result: Any) -> Any:
        return result

    def _append(self, topic: str, partition: int, key: Any, value: Any, headers: Any, timestamp_ms: int) -> None:
        log = self._logs.setdefault((topic, partition), [])
        log.append(SimpleNamespace(offset=len(log), timestamp=timestamp_ms, key=key, value=value, headers=headers))

    def _settle(self) -> None:
        """Processes everything there is, handoffs included."""
        busy = True
        while busy:
            busy = False
            for (topic, number), log in list(self._logs.items()):
                at = self._read.get((topic, number), 0)
                if at < len(log):
                    self._read[topic, number], busy = len(log), True
                    self._loop.finish(self._partitions[number].submit(topic, log[at:], lambda: None))

    def _in_loop(self, call: Callable[[], None]) -> None:
        async def called() -> None:
            call()

        self._loop.finish(called())

    def _failed(self, error: BaseException) -> None:
        raise error
