"""Recalculator: the job that reads the log again for a recalculation and writes what it finds to rebuilt-evidence. Knows no merge and no erasure.

It writes what each contact did under that contact's id; whoever holds the contact joins it as it joins everything. Several jobs share the partitions
of the log through a consumer group. What is read is reported once its evidence is on the broker, so that whoever takes over goes on from there; read
twice is harmless. It is fast only as long as the living are: it waits where workers are behind with what it wrote, and steps back when they fall
behind with activities.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from schemas.recalculation import FILLING, JOB, JobReport, Recalculation, encode_report, report_key
from streams.partitioner import partition_of
from streams.reader import ReaderError, begin_offsets, broker_kind
from streams.replay import Coverage, Unread, read_blocks
from streams.settings import Settings, librdkafka_config
from streams.topics import TopicsError, is_compacted

from . import handoffs, intake, rebuilding
from .catalog import JOURNEYS, RECALCULATIONS, REPORTS, Catalog

log = logging.getLogger(__name__)

FLUSH_HITS = 500_000  # kept together before they are written: a contact's hits go in one message
FLUSH_SECONDS = 4.0
MAX_BEHIND = 250_000  # messages of rebuilt evidence that workers have not joined yet
LIVE_DELAY_SECONDS = 3.0  # workers commit once a second: a second or two is no delay
LOOK_SECONDS = 0.5
SLOWEST, FASTEST = 1_000.0, 2_000_000.0  # activities a second
RETRY_SECONDS = 1.0
FAULT_SECONDS = 10.0  # until what failed by a fault of this program is tried again
SHOWN = 5  # ranges of offsets in one message
MAX_REASON = 1000  # characters


class Control:
    """The control topics, read when asked."""

    def __init__(self, settings: Settings) -> None:
        self.catalog = Catalog()
        self._topics = {settings.topic_prefix + short: short for short in (JOURNEYS, RECALCULATIONS, REPORTS)}
        self._consumer = Consumer(_client(settings) | {"group.id": settings.group, "auto.offset.reset": "earliest", "fetch.wait.max.ms": 50})
        self._consumer.assign([TopicPartition(topic, 0, 0) for topic in self._topics])

    def read(self, seconds: float) -> None:
        """Takes what there is; waits *seconds* at most for the first record."""
        for record in self._consumer.consume(1000, seconds):
            error = record.error()
            if error is not None:
                log.warning("the control topics: %s", error.str())
                continue
            self.catalog.take(self._topics[record.topic()], record.key(), record.value(), record.offset())

    def close(self) -> None:
        self._consumer.close()


class Membership:
    """Which partitions of the log are this job's. On the embedded broker, where one job runs, all are.

    A member that librdkafka gives up for good (a broker that took over the group may take it for another of its name) is followed by a new one.
    """

    def __init__(self, settings: Settings) -> None:
        self.mine: set[int] = set()
        self._settings = settings
        self._alone = broker_kind(settings) == "embedded"
        self._consumer: Consumer | None = None
        self._join_at = 0.0
        if self._alone:
            self.mine = set(range(settings.partitions))
        else:
            self._join()

    def _join(self) -> None:
        settings = self._settings
        topic = settings.topic_prefix + "activities"
        fixed = {} if settings.group_instance_id is None else {"group.instance.id": settings.group_instance_id}
        self._consumer = Consumer(_client(settings) | fixed | {
            "group.id": settings.group + "-recalculator", "enable.auto.commit": False, "partition.assignment.strategy": "range",
            "session.timeout.ms": int(settings.session_timeout_seconds * 1000), "heartbeat.interval.ms": int(settings.heartbeat_seconds * 1000),
        })  # fmt: skip
        self._consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)

    def _assigned(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        consumer.assign(partitions)
        consumer.pause(partitions)  # a member only: what is read is read by readers of their own
        self.mine = {tp.partition for tp in partitions}
        log.info("partitions of the log: %s", sorted(self.mine))

    def _revoked(self, _: Any, partitions: list[TopicPartition]) -> None:
        self.mine -= {tp.partition for tp in partitions}

    def poll(self) -> None:
        """Stays a member, or becomes one again."""
        if self._consumer is None:
            if not self._alone and time.monotonic() >= self._join_at:
                self._join()
            return
        record = self._consumer.poll(0)
        error = None if record is None else record.error()
        if error is not None:
            log.warning("the group of recalculators: %s", error.str())
            if error.fatal() or error.code() == KafkaError._FATAL:
                self.close()
                self._join_at = time.monotonic() + RETRY_SECONDS

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
            self.mine = set()


class LivingDelay:
    """How far, in seconds, workers are behind the end of the activities, by the offsets they commit."""

    def __init__(self, settings: Settings) -> None:
        topic = settings.topic_prefix + "activities"
        self._tps = [TopicPartition(topic, p) for p in range(settings.partitions)]
        self._consumer = Consumer(_client(settings) | {"group.id": settings.group, "enable.auto.commit": False})
        self._ends: deque[tuple[float, list[int]]] = deque()
        self._looked = 0.0
        self.seconds = 0.0

    def look(self) -> bool:
        """Looks, if it is time to; whether it did."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        try:
            done = [max(0, tp.offset) for tp in self._consumer.committed(self._tps, timeout=5)]
            ends = [self._consumer.get_watermark_offsets(tp, timeout=5) for tp in self._tps]
        except KafkaException as error:
            log.warning("how far workers are cannot be asked: %s", error.args[0].str())
            return False
        done = [max(offset, low) for offset, (low, _) in zip(done, ends, strict=True)]
        self._ends.append((now, [high for _, high in ends]))
        while self._ends and all(offset >= end for offset, end in zip(done, self._ends[0][1], strict=True)):
            self._ends.popleft()
        self.seconds = now - self._ends[0][0] if self._ends else 0.0
        return True

    def close(self) -> None:
        self._consumer.close()


class Pace:
    """How many activities a second may be read: the throttle asked for, or less while live processing is behind, but at least *least_share* of what
    could be read without a brake."""

    def __init__(self, least_share: float) -> None:
        self.throttle: float | None = None
        self.brake: float | None = None
        self._least_share, self._unbraked = least_share, 0.0
        self._allowed_at = time.monotonic()

    def living(self, delay_seconds: float, measured: float) -> None:
        """Adapts to how far the living are behind, by *measured* activities a second."""
        if self.brake is None:
            self._unbraked = max(self._unbraked, measured)
        if delay_seconds > LIVE_DELAY_SECONDS:
            slower = (measured if self.brake is None else min(measured or self.brake, self.brake)) / 2
            self.brake = max(SLOWEST, self._least_share * self._unbraked, slower)
        elif self.brake is not None:
            self.brake *= 1.3
            if self.brake > FASTEST:
                self.brake = None

    def wait_seconds(self, read: int, share: float) -> float:
        """How long to wait after *read* activities by a job that has *share* of the partitions."""
        limits = [limit for limit in (None if self.throttle is None else self.throttle * share, self.brake) if limit is not None]
        now = time.monotonic()
        if not limits:
            self._allowed_at = now
            return 0.0
        self._allowed_at = max(self._allowed_at, now - 0.5) + read / min(limits)
        return max(0.0, self._allowed_at - now)


class Recalculator:
    """One job. `run()` works until *stop* is set. Raises ReaderError and KafkaException only at the start."""

    def __init__(self, settings: Settings, stop: threading.Event) -> None:
        self.settings = settings
        self._stop = stop
        self._topic = settings.topic_prefix + "activities"
        self._control = Control(settings)
        self._membership = Membership(settings)
        self._delay = LivingDelay(settings)
        self._pace = Pace(settings.background_share)
        self._producer = Producer(
            _client(settings) | {"acks": "all", "enable.idempotence": True, "linger.ms": 5, "compression.type": "lz4",
                                 "message.max.bytes": 16 << 20, "queue.buffering.max.messages": 500_000}
        )  # fmt: skip
        self._written: dict[int, int] = {}
        self._flushed: dict[int, int] = {}  # by partition, up to where the evidence of what was read is written
        self._undelivered: list[str] = []

    def run(self) -> None:
        """Works until told to stop. Whatever fails is tried again."""
        try:
            while not self._stop.is_set():
                try:
                    self._work()
                except BROKER_ERRORS as error:
                    log.warning("trying again after: %s", error)
                    self._stop.wait(RETRY_SECONDS)
                except Exception:
                    log.exception("failed, trying again in %g s", FAULT_SECONDS)
                    self._stop.wait(FAULT_SECONDS)
        finally:
            self._producer.flush(5)
            for part in (self._membership, self._control, self._delay):
                part.close()

    def _work(self) -> None:
        """Take what the control topics say, and read the log where a recalculation needs it."""
        self._membership.poll()
        self._control.read(0.1)
        active = self._control.catalog.recalculations.active()
        one = next((one for one in active if one.state == FILLING), None)
        todo = {} if one is None else self._todo(one)
        if one is None or not todo:
            return
        try:
            self._fill(one, todo)
        except BROKER_ERRORS:
            raise
        except Incomplete as error:
            log.error("recalculation %s fails: %s", one.id, error)
            self._fail(one, todo, str(error))
        except Exception as error:  # of ours, or of a rule type: tried again it would fail again
            log.exception("recalculation %s fails", one.id)
            self._fail(one, todo, f"{type(error).__name__}: {error}")

    def _todo(self, one: Recalculation) -> dict[int, tuple[int, int]]:
        """Partition -> (from, to), of this job's that are not read to where workers record by themselves."""
        reports, found = self._control.catalog.reports, {}
        for p in sorted(self._membership.mine):
            worker, job = reports.worker(one.id, p), reports.job(one.id, p)
            if worker is not None:
                read = max(worker.log_begin, 0 if job is None else job.read)
                if read < worker.recording_from:
                    found[p] = read, worker.recording_from
        return found

    def _fill(self, one: Recalculation, todo: dict[int, tuple[int, int]]) -> None:
        """Reads *todo* to its end, or until the recalculation or the partitions are no longer ours."""
        rules = self._control.catalog.recalculations.rules(one.id)
        matcher = rebuilding.finder(one, rules)
        self._pace.throttle = one.throttle or self.settings.recalculation_events_per_second
        share = len(self._membership.mine) / self.settings.partitions
        self._written = self._control.catalog.reports.written(one.id)
        self._flushed, reported = {p: begin for p, (begin, _) in todo.items()}, time.monotonic()
        hits: rebuilding.Hits = {}
        pending, began, flushed = 0, time.monotonic(), time.monotonic()
        log.info("recalculation %s: reading %s", one.id, {p: f"{a}..{b - 1}" for p, (a, b) in todo.items()})
        starts, ends = {p: a for p, (a, _) in todo.items()}, {p: b for p, (_, b) in todo.items()}
        coverage = Coverage(starts)
        blocks = read_blocks(self.settings, self._topic, sorted(todo), start=starts, ends=ends)
        try:
            for number, block in blocks:
                for found in rebuilding.hits(block, matcher, self.settings.max_future_ms, hits):
                    pending += found
                    if pending >= FLUSH_HITS:  # the block counts as read once all of it is
                        self._flush(one, hits, coverage)
                        self._wait_for_workers(one)
                        pending = 0
                coverage.take(number, block)
                if pending >= FLUSH_HITS or time.monotonic() - flushed > FLUSH_SECONDS:
                    self._flush(one, hits, coverage)
                    self._wait_for_workers(one)
                    pending, flushed = 0, time.monotonic()  # only now: flushed soon after waiting, each hit would go by itself
                if time.monotonic() - reported > LOOK_SECONDS:
                    self._report_seen(one, coverage, len(hits))
                    reported = time.monotonic()
                if self._delay.look():
                    self._pace.living(self._delay.seconds, coverage.records / max(0.001, time.monotonic() - began))
                until = time.monotonic() + self._pace.wait_seconds(len(block), share)
                while True:
                    self._membership.poll()
                    self._control.read(0)
                    left = until - time.monotonic()
                    if left <= 0 or self._over(one) or self._stop.wait(min(left, 0.1)):
                        break
                if self._over(one) or not set(todo) <= self._membership.mine:
                    break
                if self._stop.is_set():
                    break
            else:
                self._compare(coverage, ends)
                coverage.read_to |= ends  # retention may have removed the last records
        finally:
            blocks.close()  # type: ignore[attr-defined]
        if not self._over(one):
            self._flush(one, hits, coverage)
            took = time.monotonic() - began
            log.info("recalculation %s: read %d activities in %.1f s", one.id, coverage.records, took)

    def _compare(self, coverage: Coverage, ends: Mapping[int, int]) -> None:
        """Compare what was read with what the log holds before *ends*. Raises Incomplete when they differ."""
        if not coverage.doubtful(ends):
            return
        here = [(self._topic, p) for p in coverage.read_to]
        begins = {p: begin for (_, p), begin in begin_offsets(self.settings, here).items()}
        unread = coverage.unread(ends, begins, is_compacted(self.settings, self._topic))
        if unread:
            raise Incomplete(self._topic, unread)
        if ends:
            log.info("the log was read completely; retention or compaction removed the offsets that brought no record")

    def _over(self, one: Recalculation) -> bool:
        now = self._control.catalog.recalculations.records.get(one.id)
        return now is None or now.state != FILLING

    def _flush(self, one: Recalculation, hits: rebuilding.Hits, coverage: Coverage) -> None:
        """Writes the evidence gathered, and when the broker has it, how far the log was read. Raises Incomplete, Undelivered."""
        self._compare(coverage, {})
        topic, count, produce = self.settings.topic_prefix + "rebuilt-evidence", self.settings.partitions, self._producer.produce
        for contact, mine in hits.items():
            key = contact.encode()
            for value in handoffs.encode_all(intake.as_join(contact, mine)):
                while True:
                    try:
                        produce(topic, value, key, partition_of(key, count), on_delivery=self._delivered)
                        break
                    except BufferError:
                        self._producer.poll(0.1)
        hits.clear()
        while self._producer.flush(1) > 0:
            self._membership.poll()
            if self._stop.is_set():
                raise Undelivered("told to end")
        if self._undelivered:
            why, self._undelivered = self._undelivered[0], []
            raise Undelivered(why)
        self._flushed |= coverage.read_to
        self._report(one, {p: (read, 0, None) for p, read in coverage.read_to.items()})

    def _fail(self, one: Recalculation, todo: Mapping[int, tuple[int, int]], reason: str) -> None:
        """Report that *one* cannot be completed, and wait until it is over."""
        self._report(one, {p: (read, 0, reason[:MAX_REASON]) for p, (read, _) in todo.items()})
        self._await_end(one)

    def _delivered(self, error: Any, record: Any) -> None:
        if error is not None:
            self._undelivered.append(error.str())
        else:
            number = record.partition()
            self._written[number] = max(self._written.get(number, 0), record.offset() + 1)

    def _report(self, one: Recalculation, said: dict[int, tuple[int, int, str | None]]) -> None:
        now_ms, reports = time.time_ns() // 1_000_000, self._control.catalog.reports
        for p, (read, _, error) in said.items():
            worker = reports.worker(one.id, p)
            report = JobReport(0 if worker is None else worker.log_begin, read, now_ms, dict(self._written), error)
            self._producer.produce(self.settings.topic_prefix + REPORTS, encode_report(report), report_key(one.id, JOB, p), 0)
        self._producer.flush(10)

    def _report_seen(self, one: Recalculation, coverage: Coverage, pending: int) -> None:
        """Says how far the log is read, for others to show, while the evidence of *pending* contacts is not written yet."""
        now_ms, reports = time.time_ns() // 1_000_000, self._control.catalog.reports
        for p, seen in coverage.read_to.items():
            worker = reports.worker(one.id, p)
            begin = 0 if worker is None else worker.log_begin
            report = JobReport(begin, self._flushed[p], now_ms, dict(self._written), None, seen, pending)
            self._producer.produce(self.settings.topic_prefix + REPORTS, encode_report(report), report_key(one.id, JOB, p), 0)
        self._producer.poll(0)

    def _wait_for_workers(self, one: Recalculation) -> None:
        """Waits while the workers have more of it before them than they should."""
        while not self._stop.is_set() and not self._over(one):
            reports = self._control.catalog.reports
            behind = 0
            for p, end in self._written.items():
                worker = reports.worker(one.id, p)
                behind += max(0, end - (0 if worker is None else worker.joined))
            if behind <= MAX_BEHIND:
                return
            self._membership.poll()
            self._control.read(0.05)

    def _await_end(self, one: Recalculation) -> None:
        while not self._over(one) and not self._stop.is_set():
            self._membership.poll()
            self._control.read(0.2)


class Undelivered(Exception):
    """Evidence that the broker did not take: it is read again."""


BROKER_ERRORS = (ReaderError, TopicsError, KafkaException, Undelivered)
"""After these the same is tried again."""


class Incomplete(Exception):
    """Part of the log could not be read: the message is the reason that operators see."""

    def __init__(self, topic: str, unread: Sequence[Unread]) -> None:
        shown = ", ".join(map(str, unread[:SHOWN])) + (f" and {len(unread) - SHOWN:,} more ranges" if len(unread) > SHOWN else "")
        super().__init__(
            f"the log was not read completely: {sum(one.size for one in unread):,} records of {topic} are missing: {shown}. They are neither "
            "removed by retention nor by compaction. Results stay as they were. See the logs of the broker and of the recalculator, then "
            "recalculate again"
        )


def main(settings: Settings) -> int:
    """`waypost recalculator`: works until SIGTERM or SIGINT. Returns the exit code: 0 ended, 1 could not begin."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        job = Recalculator(settings, stop)
    except (ReaderError, KafkaException) as error:
        log.critical("the recalculator cannot begin: %s", error)
        return 1
    job.run()
    return 0


def _client(settings: Settings) -> dict[str, Any]:
    return librdkafka_config(settings) | {"log_level": 3}
