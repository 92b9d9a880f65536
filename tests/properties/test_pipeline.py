"""What may begin on a partition: background work gets its share while more arrives than can be done, and what is on its way keeps to its memory."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import agents.pipeline
from agents import intake, rebuilding, recalculator
from agents.pipeline import Pipeline, Turns, UnderWay, Work
from agents.recalculator import Pace
from schemas.journey import parse_journey
from schemas.recalculation import Recalculation
from schemas.rules import VisitedPage
from state import oracle
from state.decision import CHANGE_BYTES, ENTRY_BYTES
from state.recalculation import by_key
from tests.support.loopback import TOPICS, Loopback
from tests.support.records import Record, block_of

T0_MS = 1_767_323_045_000


def journey(id_: str, *pages: str) -> dict[str, Any]:
    stages = [{"name": f"{n} {page}", "condition": {"any": [{"rule": "visited_page", "page": page}]}} for n, page in enumerate(pages)]
    return {"id": id_, "name": id_, "version": 1, "stages": stages}


def visit(number: int, contact: str, page: str = "/a") -> dict[str, Any]:
    return {"id": f"a{number}", "contact_id": contact, "type": "pagevisit", "at": T0_MS + number, "page": page}


# ---------------------------------------------------------------- whose turn it is


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("costs", [(1.0, 1.0), (1.0, 50.0), (50.0, 1.0)])
def test_background_work_gets_its_share_whatever_a_step_costs(share: float, costs: tuple[float, float]) -> None:
    turns, spent = Turns(share), {False: 0.0, True: 0.0}
    live_cost, behind_cost = costs
    for _ in range(20_000):
        behind = turns.may_begin(True, 1, 1, 2, 3)
        assert turns.may_begin(False, 1, 1, 2, 3) != behind, "one of the two may begin"
        spent[behind] += behind_cost if behind else live_cost
        (turns.background if behind else turns.live)(behind_cost if behind else live_cost)
    assert spent[True] / (spent[True] + spent[False]) == pytest.approx(share, abs=0.02)


def test_who_may_begin() -> None:
    """Of background and live work, while none or three of three are on their way."""
    idle, owed = Turns(0.2), Turns(0.2)
    owed.live(1.0)
    #        behind, live waits, background waits, on their way
    table = [
        (True, 0, 1, 0, True, True),
        (True, 1, 1, 0, False, True),
        (True, 0, 1, 1, False, True),
        (True, 1, 1, 3, False, False),
        (False, 1, 0, 2, True, True),
        (False, 1, 1, 2, True, False),
        (False, 1, 1, 3, False, False),
    ]
    for behind, live_waits, behind_waits, taken, when_idle, when_owed in table:
        assert idle.may_begin(behind, live_waits, behind_waits, taken, 3) == when_idle
        assert owed.may_begin(behind, live_waits, behind_waits, taken, 3) == when_owed


def test_without_a_share_it_waits_until_nothing_arrives() -> None:
    turns = Turns(0.0)
    turns.live(1e6)
    assert not turns.may_begin(True, 1, 1, 1, 3)
    assert turns.may_begin(True, 0, 1, 0, 3)


async def test_a_view_is_built_while_more_arrives_than_can_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody always waits for room, so that the partition is never idle. The clock counts a second for each step of work."""
    clock = itertools.count()
    monkeypatch.setattr(agents.pipeline, "perf_counter", lambda: float(next(clock)))
    loop = Loopback(tmp_path, partitions=1, chunk=50)
    loop.context.decision_bytes = 5 * (CHANGE_BYTES + ENTRY_BYTES)  # a few contacts a step
    loop.open()
    loop.apply(journey("first", "/a", "/b"))
    await loop.settle()
    for number in range(200):
        loop.send("activities", visit(number, f"c{number}"))
    await loop.settle()
    partition, kinds = loop.partitions[0], list[bool]()
    assert partition.pipeline is not None
    account = partition.pipeline._account

    def counted(work: Work, seconds: float) -> None:
        if partition.building.scans:
            kinds.append(work.behind)
        account(work, seconds)

    monkeypatch.setattr(partition.pipeline, "_account", counted)
    loop.context.catalog["second"] = parse_journey(journey("second", "/a"))
    loop.recalculating.apply()
    numbers, built = itertools.count(1000), asyncio.Event()

    async def arrive() -> None:
        while not built.is_set():
            number = next(numbers)
            assert number < 100_000, "the view is built before so many activities"
            loop.send("activities", visit(number, f"c{number % 200}", "/b"))
            log = loop.out.log(TOPICS["activities"], 0)
            await partition.submit("activities", [log[-1]], lambda: None)

    async def look() -> None:
        while not any(view.journey.id == "second" and view.id in partition.building.complete for view in partition.views.all):
            assert not loop.failures
            await asyncio.sleep(0)
        built.set()

    await asyncio.gather(look(), *(arrive() for _ in range(6)))
    await partition.drain()
    assert sum(kinds) / len(kinds) == pytest.approx(0.2, abs=0.06)
    assert loop.counts("second") == [200]
    await loop.close()


def test_a_recalculator_keeps_its_share_of_its_speed_however_long_the_backlog_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(recalculator, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    pace = Pace(0.2)
    pace.living(0.0, 50_000.0)
    assert pace.wait_seconds(1000, 1.0) == 0.0
    measured = 50_000.0
    for _ in range(50):
        pace.living(60.0, measured)
        measured *= 0.9
    assert pace.brake == pytest.approx(0.2 * 50_000)
    waited = 0.0
    for _ in range(100):
        waited += (seconds := pace.wait_seconds(1000, 1.0))
        clock[0] += seconds
    assert 100 * 1000 / waited == pytest.approx(10_000, rel=0.1)
    for _ in range(50):
        pace.living(0.0, measured)
    assert pace.brake is None


async def test_how_far_many_views_are_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loopback(tmp_path, partitions=1)
    loop.open()
    for n in range(50):
        loop.apply(journey(f"j{n}", "/a"))
    await loop.settle()
    partition, scans = loop.partitions[0], 0
    scan = partition.ledger.scan

    def counted(*of: Any) -> Any:
        nonlocal scans
        scans += 1
        return scan(*of)

    partition.building.complete.clear()
    monkeypatch.setattr(partition.ledger, "scan", counted)
    partition.building.shown("none")
    assert scans <= 2
    monkeypatch.undo()
    await loop.close()


# ---------------------------------------------------------------- memory


class Broker:
    """Acknowledges when it is let, each sending by itself."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[None]] = []

    async def send(self, *_: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        return future

    async def owned(self, _: int) -> None:
        return None

    def frozen(self, _: int) -> bool:
        return False

    def beside(self, run: Any) -> None:
        run.close()


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come")


async def test_partitions_share_the_memory_of_what_is_on_its_way() -> None:
    broker, shared, failures = Broker(), UnderWay(100), list[BaseException]()
    topics = {"stage-changes": "s", "rejected": "r", "handoffs": "h"}
    one, other = (Pipeline(n, topics, broker, broker, failures.append, depth=3, under_way=shared) for n in range(2))
    assert await one.room()
    one.add(Work(handoffs=[(0, b"k", b"v", [], 0)], size_bytes=120))
    waiting = asyncio.create_task(other.room())
    await until(lambda: bool(broker.waiting))
    assert not waiting.done()
    broker.waiting[0].set_result(None)
    await until(waiting.done)
    assert shared.bytes == 0
    other.add(Work(handoffs=[(0, b"k", b"v", [], 0)], size_bytes=500))
    waiting = asyncio.create_task(one.room())
    await until(lambda: len(broker.waiting) == 2)
    assert not waiting.done()
    await other.close()  # what it had on its way is dropped
    await until(waiting.done)
    assert shared.bytes == 0
    await one.close()
    assert not failures


async def test_what_a_chunk_comes_to_is_decided_and_sent_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One activity of each of 300 new contacts, all of one chunk, and forty journeys of two stages on its rule: 24,000 changes."""
    loop = Loopback(tmp_path, partitions=1, chunk=1000)
    loop.context.decision_bytes, loop.context.under_way = 100 * CHANGE_BYTES, UnderWay(250 * CHANGE_BYTES)
    sizes, peak = list[int](), list[int]()
    send = loop.out.send

    async def counted(topic: str, records: list[Any]) -> Any:
        if topic == TOPICS["stage-changes"]:
            sizes.append(len(records))
            peak.append(loop.context.under_way.bytes)
        return await send(topic, records)

    monkeypatch.setattr(loop.out, "send", counted)
    loop.open()
    said = [journey(f"j{n}", "/a", "/a") for n in range(40)]
    for one in said:
        loop.apply(one)
    await loop.settle()
    known = oracle.History()
    for number in range(300):
        for at in (2 * number, 2 * number + 1):
            loop.send("activities", visit(at, f"c{number:03}"))
            known.activities.append(oracle.Activity(f"c{number:03}", "pagevisit", T0_MS + at, f"a{at}", {"page": "/a"}))
    await loop.settle()
    one_contact = 40 * (2 * CHANGE_BYTES + ENTRY_BYTES) + 10_000
    assert sum(sizes) == 24_000
    assert max(sizes) <= 100 + 2 * 40
    assert max(peak) <= 250 * CHANGE_BYTES + 100 * CHANGE_BYTES + one_contact
    truth = oracle.answer(parse_journey(said[0]), known)
    assert all(loop.counts(one["id"]) == [stage.converted for stage in truth.results(None)] for one in said)
    written = [int(r.value or b"") for r in loop.changelog.log("changelog", 0) if r.key == b"pactivities" and r.value != b"0"]
    assert written == [600], "the position goes behind all of the chunk"
    await loop.close()


async def test_activities_that_meet_very_many_rules_are_taken_in_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk is cut where its rules are too many, and each record is done once, with what is wrong with it."""
    monkeypatch.setattr(intake, "MOST_FACTS", 100)
    taken = list[int]()
    arrivals = intake.arrivals
    monkeypatch.setattr(intake, "arrivals", lambda *of: (made := arrivals(*of), taken.append(len(made.facts)))[0])
    loop = Loopback(tmp_path, partitions=1, chunk=1000)
    loop.context.few = 0  # in columns
    loop.open()
    rules = [{"rule": "visited_page", "page": {"starts_with": "/" + "a" * n}} for n in range(30)]
    loop.apply({"id": "many", "name": "many", "version": 1, "stages": [{"name": "s", "condition": {"any": rules}}]})
    await loop.settle()
    for number in range(40):
        loop.send("activities", visit(number, f"c{number}", "/" + "a" * 40) if number % 4 else {"contact_id": f"c{number}"})
    await loop.settle()
    assert loop.counts("many") == [30]
    assert sum(taken) == 30 * 30
    assert max(taken) <= 100
    assert len(loop.out.all(TOPICS["rejected"])) == 10
    await loop.close()


def test_hits_of_the_log_come_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilding, "HITS_AT_ONCE", 10)
    rules = [VisitedPage(page={"starts_with": "/" + "a" * n}) for n in range(7)]
    one = Recalculation(id="r", state="filling", cause="request", journeys=(), rules=tuple(rules), planned_at=1)
    log = [Record(n, 0, b"c", json.dumps(visit(n, "c", "/" + "a" * 9)).encode()) for n in range(20)]
    into: rebuilding.Hits = {}
    pieces = [*rebuilding.hits(block_of(log), rebuilding.finder(one, by_key(rules)), 0, into)]
    assert sum(pieces) == len(into["c"]) == 140
    assert max(pieces) < 10 + len(rules)


async def test_a_chunk_that_was_cut_off_comes_again_and_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker ends between two decisions of a chunk, and its directory is lost."""
    loop = Loopback(tmp_path, partitions=1, chunk=1000)
    loop.context.decision_bytes = 20 * CHANGE_BYTES
    loop.open()
    for n in range(10):
        loop.apply(journey(f"j{n}", "/a"))
    await loop.settle()
    for number in range(60):
        loop.send("activities", visit(number, f"c{number:02}"))
    partition, sent = loop.partitions[0], 0
    send = loop.changelog.send

    async def cut(number: int, items: Any) -> Any:
        nonlocal sent
        sent += 1
        if sent == 3:
            return asyncio.get_running_loop().create_future()  # never acknowledged
        return await send(number, items)

    monkeypatch.setattr(loop.changelog, "send", cut)
    submitted = asyncio.create_task(partition.submit("activities", loop.out.log(TOPICS["activities"], 0), lambda: None))
    await until(lambda: sent == 3)
    await loop.partitions.pop(0).close()
    await submitted
    monkeypatch.setattr(loop.changelog, "send", send)
    known = len(loop.out.all(TOPICS["stage-changes"]))
    assert 0 < known < 600
    (tmp_path / "partition-0").rename(tmp_path / "lost")
    loop.recover(0)
    await loop.settle()
    assert [loop.counts(f"j{n}") for n in range(10)] == [[60]] * 10
    changed = {record.key: record for record in loop.out.all(TOPICS["stage-changes"])}
    assert len(changed) == 60
    said = {(record.key, record.value) for record in loop.out.all(TOPICS["stage-changes"])}
    assert len(said) >= 600
    await loop.close()
