"""Replay reads every record of a log exactly once, whatever the broker leaves out of its answers; what holds no record is proven, not assumed."""

from __future__ import annotations

import asyncio
import random
from typing import Any, NamedTuple

import pytest
from aiokafka import errors
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import replay
from streams.blocks import OFFSET, Absent, Block
from streams.reader import Extent, ReaderError
from streams.replay import WHOLE_BYTES, Answer, Coverage, Cursor, read_blocks
from streams.settings import Settings
from tests.properties.test_blocks import PRODUCER, batch, marker

TOPIC = "log"
SETTINGS = Settings.load({"broker": "127.0.0.1:1"}, environ={})


class Piece(NamedTuple):
    """A batch on the log: `kept` are the offsets of its records that a consumer reads."""

    base: int
    end: int
    raw: bytes
    kept: tuple[int, ...]


class Part:
    """One partition: batches with holes between them, perhaps a hole at its end, perhaps aborted records."""

    def __init__(self, rng: random.Random) -> None:
        self.pieces: list[Piece] = []
        self.aborted: list[tuple[int, int]] = []
        at = self.begin = rng.choice((0, 0, 50))
        for _ in range(rng.randrange(6)):
            at += rng.choice((0, 0, 0, 5))
            count, value = rng.randint(1, 4), b"v" * rng.choice((1, 1, 300, 3000))
            sent = [(n, b"k", value, []) for n in range(count)]
            aborted = rng.random() < 0.2
            raw = batch(at, sent, 0, PRODUCER if aborted else -1)
            self.pieces.append(
                Piece(at, at + count, raw, () if aborted else tuple(range(at, at + count)))
            )
            at += count
            if aborted:
                self.aborted.append((PRODUCER, at - count))
                self.pieces.append(Piece(at, at + 1, marker(at, commit=False), ()))
                at += 1
        self.end = at + rng.choice((0, 0, 7))

    def expected(self) -> list[int]:
        return [offset for piece in self.pieces for offset in piece.kept if offset >= self.begin]


class Broker:
    """The fetch path of a broker, and the client for it: two nodes, each leading some partitions. Every liberty is taken that a broker has."""

    def __init__(self, rng: random.Random, parts: dict[int, Part]) -> None:
        self.rng, self.parts = rng, parts
        self.leaders = {number: rng.randrange(2) for number in parts}
        self.answer_bytes = rng.choice((1, 400, 4000, 1 << 30))
        self.whole_first = (
            self.answer_bytes < 1 << 30 or rng.random() < 0.5
        )  # Kafka sends the first batch of an answer, whatever its size
        self.cuts = rng.random() < 0.3  # and brokers before 3.0 cut off the last batch
        self.trouble = rng.choice((0.0, 0.3))
        self.requests = 0
        self.cluster = self

    # -- the client

    async def bootstrap(self) -> None: ...
    async def set_topics(self, topics: list[str]) -> None: ...
    async def close(self) -> None: ...
    def force_metadata_update(self) -> None: ...

    def leader_for_partition(self, tp: Any) -> int | None:
        return None if self.rng.random() < self.trouble / 3 else self.leaders[tp.partition]

    async def send(self, node: int, request: Any) -> Any:
        self.requests += 1
        assert self.requests < 100_000, "it goes on asking"
        if self.rng.random() < self.trouble:
            self.leaders[self.rng.choice(list(self.leaders))] = self.rng.randrange(2)
        if self.rng.random() < self.trouble / 3:
            raise errors.KafkaConnectionError("cut off")
        answer = self._response(node, request)
        for _ in range(
            self.rng.choice((0, 0, 20, 200))
        ):  # the leader may change while the answer is on its way
            await asyncio.sleep(0)
        return answer

    def _response(self, node: int, request: Any) -> Response:
        [(_, asked)] = request.topics
        throttle_ms = 5 if self.rng.random() < self.trouble else 0
        answers = []
        room = min(request._max_bytes, self.answer_bytes)
        for number, offset, most in asked:
            answer = self._answer(
                node, number, offset, min(most, room), first=not any(found[-1] for found in answers)
            )
            room = max(0, room - len(answer[-1]))
            answers.append(answer)
        left_out = throttle_ms and self.rng.random() < 0.3
        return Response(throttle_ms, [] if left_out else [(TOPIC, answers)])

    def _answer(
        self, node: int, number: int, offset: int, room: int, first: bool
    ) -> tuple[Any, ...]:
        part = self.parts[number]
        if self.leaders[number] != node:
            return (number, errors.NotLeaderForPartitionError.errno, -1, -1, -1, None, -1, b"")
        if offset < part.begin:
            return (number, errors.OffsetOutOfRangeError.errno, -1, -1, -1, None, -1, b"")
        raw = b""
        for piece in part.pieces:
            if piece.end <= offset:
                continue
            if len(raw) + len(piece.raw) > room and not (first and not raw and self.whole_first):
                raw += piece.raw[: max(0, room - len(raw))] if self.cuts else b""
                break
            raw += piece.raw
        stable = part.end if self.rng.random() >= self.trouble else self.rng.randint(0, part.end)
        return (number, 0, part.end, stable, part.begin, part.aborted, -1, raw)


class Response(NamedTuple):
    throttle_time_ms: int
    topics: list[Any]
    API_VERSION: int = 11


@settings(max_examples=300)
@given(st.integers(0, 1 << 40))
def test_every_record_is_read_once_whatever_an_answer_leaves_out(seed: int) -> None:
    rng = random.Random(seed)
    parts = {number: Part(rng) for number in range(rng.randint(1, 6))}
    broker = Broker(rng, parts)
    listed = {
        number: 0 if rng.random() < 0.2 else part.begin for number, part in parts.items()
    }  # retention came in between
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(replay, "AIOKafkaClient", lambda **_: broker)
        patched.setattr(replay, "RETRY_SECONDS", 0.0)
        patched.setattr(replay, "PARTITION_BYTES", rng.choice((500, 1 << 20)))
        patched.setattr(
            replay, "IDLE_SECONDS", rng.choice((0.001, 1.0))
        )  # so that there are blocks that say nothing
        patched.setattr(
            replay,
            "extent",
            lambda *_: Extent(dict(listed), {n: part.end for n, part in parts.items()}),
        )
        patched.setattr(
            replay, "begin_offsets", lambda _, asked: {one: parts[one[1]].begin for one in asked}
        )
        found: dict[int, list[Block]] = {number: [] for number in parts}
        for number, block in read_blocks(SETTINGS, TOPIC):
            found[number].append(block)
    for number, part in parts.items():
        blocks, at = found[number], listed[number]
        for block in blocks:
            assert block.begin == at or (at < part.begin == block.begin), (
                "a gap that nothing explains"
            )
            at = block.next
        assert at == part.end or part.end == listed[number]
        assert [
            offset for block in blocks for offset in block.spans[:, OFFSET].tolist()
        ] == part.expected()
        held = [offset for piece in part.pieces for offset in range(piece.base, piece.end)]
        holes = set(range(part.begin, part.end)) - set(held)
        absent = [
            offset for block in blocks for a in block.absent for offset in range(a.first, a.end)
        ]
        assert sorted(holes) == absent, "what is said to be absent is what is"
        assert all(
            isinstance(a, Absent) and a.size == a.end - a.first
            for block in blocks
            for a in block.absent
        )
    _what_is_not_read_is_noticed(rng, parts, found, listed)


def _what_is_not_read_is_noticed(
    rng: random.Random,
    parts: dict[int, Part],
    found: dict[int, list[Block]],
    listed: dict[int, int],
) -> None:
    ends, begins = (
        {n: part.end for n, part in parts.items()},
        {n: part.begin for n, part in parts.items()},
    )
    coverage = counted(found, listed)
    assert coverage.unread(ends, begins, compacted=True) == []
    assert coverage.records == sum(len(part.expected()) for part in parts.values())
    holes = sum(
        part.end - part.begin - sum(piece.end - piece.base for piece in part.pieces)
        for part in parts.values()
    )
    assert sum(unread.size for unread in coverage.unread(ends, begins, compacted=False)) == holes
    for number in [number for number, blocks in found.items() if blocks]:
        lost = rng.randrange(len(found[number]))
        rest = found | {number: found[number][:lost] + found[number][lost + 1 :]}
        missing = counted(rest, listed).unread(ends, begins, compacted=True)
        assert {unread.partition for unread in missing} <= {number}
        if found[number][lost].next > max(found[number][lost].begin, begins[number]):
            assert [(unread.first, unread.end) for unread in missing] == [
                (found[number][lost].begin, found[number][lost].next)
            ]


def counted(found: dict[int, list[Block]], starts: dict[int, int]) -> Coverage:
    coverage = Coverage(starts)
    for number, blocks in found.items():
        for block in blocks:
            coverage.take(number, block)
    return coverage


def test_a_broker_that_sends_nothing_gives_control_back_and_is_an_error_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    part = Part(random.Random(0))
    part.pieces, part.end = [], 10
    broker = Broker(random.Random(0), {0: part})
    broker.trouble = 0.0
    monkeypatch.setattr(broker, "_response", lambda *_: Response(1, []))  # over its quota, for ever
    monkeypatch.setattr(replay, "AIOKafkaClient", lambda **_: broker)
    monkeypatch.setattr(replay, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(replay, "STALL_SECONDS", 0.1)
    monkeypatch.setattr(replay, "extent", lambda *_: Extent({0: 3}, {0: 10}))
    found: list[Any] = []
    with pytest.raises(ReaderError, match="has sent nothing for"):
        found.extend(
            (number, len(block), block.begin, block.next)
            for number, block in read_blocks(SETTINGS, TOPIC)
        )
    assert set(found) == {(0, 0, 3, 3)}


def test_an_empty_answer_proves_nothing_unless_the_partition_was_asked_for_alone_and_with_room_for_all() -> (
    None
):
    cursor = Cursor(10, 20)
    empty = Answer(b"", [], 20, alone=False, throttled=False)
    assert not cursor.take(empty)
    assert (cursor.alone, cursor.max_bytes < WHOLE_BYTES) == (True, True)
    assert not cursor.take(empty._replace(alone=True)), (
        "a batch larger than what was asked for may be left out"
    )
    assert (cursor.alone, cursor.max_bytes) == (True, WHOLE_BYTES)
    for later in (
        empty._replace(alone=True, throttled=True),
        empty._replace(alone=True, committed=19),
    ):
        waiting = Cursor(10, 20, True, WHOLE_BYTES)
        assert not waiting.take(later), (
            "a throttled answer, or one of a replica that is behind, proves nothing either"
        )
        assert (waiting.offset, waiting.alone) == (10, False), (
            "and it does not keep others from being read"
        )
    assert cursor.take(empty._replace(alone=True))
    assert cursor.offset == 20


def test_a_batch_that_is_cut_off_is_asked_for_with_room_for_it() -> None:
    raw = batch(10, [(1, b"k", b"v" * 1000, [])])
    cursor = Cursor(10, 20)
    assert not cursor.take(Answer(raw[:-1], [], 20, alone=True, throttled=False))
    assert (cursor.offset, cursor.alone, cursor.max_bytes) == (10, True, WHOLE_BYTES)
    with pytest.raises(ReaderError, match="hold no whole batch"):
        cursor.take(Answer(raw[:-1], [], 20, alone=True, throttled=False))
    huge = raw[:8] + (WHOLE_BYTES + 100).to_bytes(4, "big") + raw[12:]
    cursor = Cursor(10, 20, True, WHOLE_BYTES)
    assert not cursor.take(Answer(huge, [], 20, alone=True, throttled=False))
    assert cursor.max_bytes == WHOLE_BYTES + 112


def test_batches_that_end_before_the_offset_are_no_progress() -> None:
    raw = batch(5, [(1, b"k", b"v", [])])
    cursor = Cursor(10, 20)
    assert not cursor.take(Answer(raw, [], 20, alone=False, throttled=False))
    with pytest.raises(ReaderError, match="hold no whole batch"):
        cursor.take(Answer(raw, [], 20, alone=True, throttled=False))
