"""Backend: what the HTTP API asks: journeys, workers, the broker, put together. Knows no HTTP request; the arithmetic is in `results`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from agents import metrics
from schemas.errors import Refused
from schemas.journey import Journey, parse_journey
from schemas.times import format_ms
from state import totals
from streams import batches
from streams.reader import broker_kind
from streams.settings import Settings, aiokafka_kwargs
from streams.supervision import in_daemon_thread

from . import edits, results, statistics
from .audit import Audit
from .errors import ApiError
from .facts import Checked
from .journeys import JourneyStore
from .kafka import Offsets, Writer, now_ms
from .live import Live
from .recalculations import RecalculationStore
from .rejected import RejectedReader
from .resending import Resender
from .results import Choice
from .seen import Seen
from .sessions import Sessions
from .watch import Watch
from .workers import Answers, GroupDirectory, Workers, fixed

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0  # for each part, when the console ends
STEADY_TRIES = 3  # how often an answer is asked for again because partitions were between two versions
MOVING_SECONDS = (0.1, 0.2, 0.4, 0.8)  # waits while a contact's evidence is on its way to another partition
MAX_POINTERS = 1000


class Backend:
    """Everything behind the API. `start()` connects; raises KafkaError, ReaderError or SettingsError when it cannot."""

    def __init__(self, settings: Settings) -> None:
        batches.install()
        self.settings = settings
        self.broker_kind = "kafka"
        self.topics = {short: settings.topic_prefix + short for short in (*results.SOURCES, "journeys", "recalculations", "rejected")}
        kafka = aiokafka_kwargs(settings)
        self.partition_count = settings.partitions
        self.writer = Writer(kafka, self.partition_count)
        self.offsets = Offsets({s: self.topics[s] for s in results.SOURCES}, kafka, self.partition_count)
        self.store = JourneyStore(self.topics["journeys"], kafka, self._write_journey, now_ms)
        self.recalculations = RecalculationStore(self.topics["recalculations"], kafka, self.writer.control, now_ms)
        self.rejected = RejectedReader(self.topics["rejected"], kafka)
        self.seen = Seen(self.topics["activities"], kafka, self.partition_count)
        self.resender = Resender(self.rejected, self.writer, settings.topic_prefix, self.partition_count, settings.max_future_ms)
        self._directory = None if settings.workers else GroupDirectory(settings.group, kafka)
        find = fixed(settings.workers) if self._directory is None else self._directory.find
        secret = settings.internal_secret
        self.workers = Workers(find, self.partition_count, None if secret is None else secret.get_secret_value())
        self.audit = Audit(settings.topic_prefix + "audit", self.writer.control, now_ms)
        self.sessions = None if settings.users_file is None and settings.oidc_issuer is None else self._sessions(settings, kafka)
        self.live = Live(settings.live_streams, settings.live_streams_per_session)
        self.watch = Watch(self.state)
        self._begins: results.Ends = {}

    async def start(self) -> None:
        self.broker_kind = await in_daemon_thread(lambda: broker_kind(self.settings))
        self.offsets.exact_ends = self.rejected.exact_ends = self.broker_kind == "kafka"
        await self.workers.start()
        await self.writer.start()
        await self.offsets.start()
        await self.store.start()
        await self.recalculations.start()
        if self.sessions is not None:
            await self.sessions.start()
        self.audit.start()
        self.watch.start()

    async def stop(self) -> None:
        """Stop every part, whatever becomes of the others."""
        followers = (self.watch, self.audit, self.sessions, self.store, self.recalculations)
        for part in (*followers, self.offsets, self.writer, self.workers, self._directory):
            if part is None:
                continue
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await part.stop()
            except Exception as error:
                log.warning("%s could not be stopped: %r", type(part).__name__, error)

    def _sessions(self, settings: Settings, kafka: dict[str, Any]) -> Sessions:
        secret = None if settings.session_secret is None else settings.session_secret.get_secret_value()
        return Sessions(settings.topic_prefix + "sessions", kafka, self.writer.control, settings.session_hours * 3600, secret, now_ms)

    async def _write_journey(self, key: bytes, value: bytes | None, headers: list[tuple[str, bytes]]) -> int:
        return await self.writer.control(self.topics["journeys"], key, value, headers)

    # ------------------------------------------------------------------ questions

    async def _ask(self, path: str, query: Mapping[str, str]) -> tuple[Answers, int]:
        """The answers of all partitions, and how far they are behind (see `results.lag`)."""
        before = await self.offsets.ends(results.SOURCES)
        answers = await self.workers.all_partitions(path, query)
        after = await self.offsets.ends(("handoffs",))
        return answers, await self._lag(before, answers.partitions, after)

    async def _lag(self, before: results.Ends, partitions: Mapping[int, Mapping[str, Any]], after: results.Ends) -> int:
        behind = results.lag(before, partitions, after, self._begins)
        if behind:  # what is gone from the topics by retention is not behind: look where they begin now
            self._begins = await self.offsets.begins(results.SOURCES)
            behind = results.lag(before, partitions, after, self._begins)
        metrics.LAG.set(behind)
        return behind

    async def _settled(
        self, journey: Journey, asked: int | None, group: str | None, path: str = "/internal/results"
    ) -> tuple[results.Choice, Answers, int]:
        """Which view all partitions can answer for, and what they say of it, from one state of each partition."""
        version, generation = asked, None
        for _ in range(STEADY_TRIES):
            query = _query(journey=journey.id, version=version, generation=generation, group=group)
            answers, behind = await self._ask(path, query)
            choice = results.choose(self.recalculations.wanted(journey), answers.partitions, asked)
            if choice.view is None or all((said["version"], said["generation"]) == choice.view for said in answers.partitions.values()):
                return choice, answers, behind
            version, generation = choice.view
        raise _later("partitions_unavailable", "the partitions are switching between versions; try again")

    def _body(self, journey: Journey, version: int | None, answers: Answers) -> Journey:
        """The journey as *version* says."""
        if version is None or version == journey.version:
            return journey
        kept = self.store.version(journey.id, version)
        if kept is not None:
            return kept
        return parse_journey(next(iter(answers.partitions.values()))["journey"])

    async def results(self, id_: str, asked: int | None = None, group: str | None = None) -> dict[str, Any]:
        """The results of a journey (contract, section 4). Raises `ApiError`: 404, 503."""
        return (await self.summary(id_, asked, group))[0]

    async def summary(self, id_: str, asked: int | None = None, group: str | None = None) -> tuple[dict[str, Any], float | None]:
        """The results, and the median time from the first stage to the last, in seconds, from the same state. Raises `ApiError`: 404, 503."""
        journey = self.store.known(id_)
        if asked is not None and asked > (journey.version or 1):
            raise _unknown_version(journey, asked)
        choice, answers, behind = await self._settled(journey, asked, group)
        if asked is not None and choice.version is None and asked != journey.version:
            raise _unknown_version(journey, asked)
        body = self._body(journey, choice.version, answers)
        cells = None if choice.version is None else totals.summed(part["cells"] for part in answers.partitions.values())
        median = None if cells is None else totals.median_wait_seconds(cells, len(body.stages), since_first=True)
        return {**self._head(body, choice, answers, behind), "group": group, "stages": results.rows(body, cells)}, median

    def _head(self, body: Journey, choice: Choice, answers: Answers, behind: int) -> dict[str, Any]:
        """What every answer about a journey begins with."""
        return {
            "journey": body.id,
            "version": body.version,
            "status": choice.status,
            "progress": choice.progress,
            "lag": behind,
            "as_of": format_ms(answers.as_of_ms),
            "recalculated_at": self.recalculations.finished_at(body),
        }

    async def groups(self, id_: str) -> dict[str, Any]:
        """How each group does at each stage. Raises `ApiError`: 404, 503."""
        journey = self.store.known(id_)
        choice, answers, behind = await self._settled(journey, None, None, "/internal/groups")
        body = self._body(journey, choice.version, answers)
        found = [] if choice.version is None else statistics.by_group(body, answers.partitions.values())
        return {**self._head(body, choice, answers, behind), "groups": found}

    async def days(self, id_: str, group: str | None) -> dict[str, Any]:
        """How many reached each stage on which day. Raises `ApiError`: 404, 503."""
        head, body, cells = await self._cells(id_, group)
        return {**head, "group": group, "days": statistics.days(body, cells)}

    async def waits(self, id_: str, group: str | None) -> dict[str, Any]:
        """How long contacts took from stage to stage. Raises `ApiError`: 404, 503."""
        head, body, cells = await self._cells(id_, group)
        return {**head, "group": group, "stages": statistics.waits(body, cells), "overall": statistics.overall(body, cells)}

    async def _cells(self, id_: str, group: str | None) -> tuple[dict[str, Any], Journey, dict[totals.Cell, int]]:
        journey = self.store.known(id_)
        choice, answers, behind = await self._settled(journey, None, group)
        body = self._body(journey, choice.version, answers)
        cells = {} if choice.version is None else totals.summed(part["cells"] for part in answers.partitions.values())
        return self._head(body, choice, answers, behind), body, cells

    async def listed(
        self, id_: str, stage: int, who: str, group: str | None, limit: int, cursor: str | None, order: str = "oldest"
    ) -> dict[str, Any]:
        """A page of the contacts behind a number. Raises `ApiError`: 404, 422, 503."""
        newest = order == "newest"
        after = results.decode_cursor(cursor, newest).hex() if cursor is not None else None
        journey = self.store.known(id_)
        version, generation = journey.version, self.recalculations.wanted(journey).generation
        for _ in range(STEADY_TRIES):
            body = self.store.version(id_, version) if version is not None else journey
            if body is not None and stage > len(body.stages):
                many = "1 stage" if len(body.stages) == 1 else f"{len(body.stages)} stages"
                raise ApiError(404, "unknown_stage", f'journey "{id_}" has {many}, not {stage}; count from 1', "stage")
            where = {"journey": id_, "version": version, "generation": generation, "stage": stage, "who": who, "group": group}
            query = _query(**where, limit=limit, after=after, order=order)
            answers = await self.workers.all_partitions("/internal/list", query)
            view = version, generation
            if None not in view and all((said["version"], said["generation"]) == view for said in answers.partitions.values()):
                total, rows, following = results.page(answers.partitions.values(), limit, newest)
                return {"total": total, "contacts": rows, "cursor": following}
            choice, _, _ = await self._settled(journey, None, group)
            if choice.view is None:
                return {"total": None, "contacts": [], "cursor": None}
            version, generation = choice.view
        raise _later("partitions_unavailable", "the partitions are switching between versions; try again")

    async def checksums(self, id_: str, share: float, cursor: str | None) -> dict[str, Any]:
        """Counts and checksums of a page of a journey's lists. Raises `ApiError`: 404, 503."""
        journey, count = self.store.known(id_), self.workers.partition_count
        partition, after = (0, b"") if cursor is None else results.decode_place(cursor, count)
        wanted = self.recalculations.wanted(journey)
        where = {"partition": partition, "journey": id_, "version": wanted.version, "generation": wanted.generation}
        query = _query(**where, share=share, after=after.hex() or None)
        said = await self._of_partition("/internal/checksums", query, f"partition {partition}")
        following = None
        if said["last"] is not None:
            following = results.encode_place(partition, bytes.fromhex(said["last"]))
        elif said["version"] is not None and partition + 1 < count:
            following = results.encode_place(partition + 1, b"")
        return results.checksums(said, following)

    async def contact(self, asked: str) -> dict[str, Any]:
        """What is known of a contact, whichever of its person's ids is asked for. Raises `ApiError`: 404, 503."""
        before = await self.offsets.ends(results.SOURCES)
        said = await self._holder(asked)
        states = await self.workers.all_partitions("/internal/partitions", {})
        after = await self.offsets.ends(("handoffs",))
        return results.contact(asked, said, await self._lag(before, states.partitions, after))

    async def _holder(self, asked: str) -> dict[str, Any]:
        """What the partition says where the evidence of the contact's person lives: pointers are followed (design, section 6, a merge)."""
        id_, waits = asked, iter(MOVING_SECONDS)
        for _ in range(MAX_POINTERS):
            said = await self._said_of(id_)
            if said["state"] == "holder":
                return said
            if said["state"] == "alias":
                id_ = said["pointer"]
            elif id_ == asked:
                raise ApiError(404, "unknown_contact", _nothing_known(asked))
            else:  # the evidence was sent to it and has not come yet
                wait = next(waits, None)
                if wait is None:
                    break
                await asyncio.sleep(wait)
        raise _later("contact_moving", f'the evidence of contact "{asked}" is on its way to another partition; try again')

    async def _said_of(self, id_: str) -> dict[str, Any]:
        return await self._of_partition("/internal/contact", {"id": id_}, f'the partition of contact "{id_}"')

    async def _of_partition(self, path: str, query: Mapping[str, str], what: str) -> dict[str, Any]:
        """The answer of the worker that has the partition in question. Raises `ApiError` (503)."""
        for wait in (0.3, None):
            found = [a for a in await self.workers.one(path, query) if a.get("state") != "elsewhere"]
            if found:
                return max(found, key=lambda a: sum(p or 0 for p in (a.get("positions") or {}).values()))
            if wait is not None:
                await asyncio.sleep(wait)
        raise _later("partitions_unavailable", f"no worker answers for {what} at the moment; try again")

    async def statuses(self, journeys: list[Journey]) -> dict[str, str | None]:
        """Return for each journey whether its newest version is complete on all partitions: live, calculating, or None when partitions do
        not answer. Workers are not asked where a recalculation is to come first.
        """
        targets = {j.id: self.recalculations.wanted(j) for j in journeys}
        found: dict[str, str | None] = {
            id_: "calculating" for id_, wanted in targets.items() if wanted.generation is None or wanted.recalculation is not None
        }
        if len(found) == len(targets):
            return found
        try:
            answers = await self.workers.all_partitions("/internal/journeys", {"journey": journeys[0].id} if len(journeys) == 1 else {})
        except ApiError:
            return dict.fromkeys(targets, None) | found
        built = [said["journeys"] for said in answers.partitions.values()]
        for id_ in targets.keys() - found.keys():
            target = [*targets[id_].target]
            found[id_] = "live" if all(b.get(id_, [0, 0]) >= target for b in built) else "calculating"
        return found

    async def state(self) -> tuple[int | None, dict[str, dict[str, Any] | None]]:
        """How many records the workers are behind (None: it cannot be known), and what each says, by URL; None of one that says nothing."""
        behind: int | None = None
        told: dict[str, dict[str, Any] | None] = {}
        try:
            before = await self.offsets.ends(results.SOURCES)
            told = await self.workers.each("/internal/partitions", {}, refresh=True)
            after = await self.offsets.ends(("handoffs",))
            states = {int(n): s for answer in told.values() if answer for n, s in answer["partitions"].items() if s["state"] == "live"}
            if len(states) == self.partition_count:
                behind = await self._lag(before, states, after)
        except ApiError:
            behind = None
        return behind, told

    async def health(self) -> dict[str, Any]:
        """State of the whole (contract, section 4). Raises nothing: what does not answer is what it tells."""
        behind, told = await self.state()
        rates = self.watch.rates()
        lost = {url: None for url in self.watch.lost() if url not in told}
        return {
            "status": "ok" if behind is not None else "degraded",
            "lag": behind,
            "workers": [_worker(url, answer, rates.get(url)) for url, answer in (told | lost).items()],
            "broker": {"bootstrap": self.settings.bootstrap, "kind": self.broker_kind},
        }

    async def cost(self, journey: Journey) -> dict[str, Any]:
        """What saving *journey* brings (see `edits.cost`). Raises `ApiError` (503)."""
        table = self.recalculations.table
        rates = [
            one.events_read * 1000 / (one.switched_at - one.started_at)
            for one in table.all()
            if one.switched_at and one.started_at and one.switched_at > one.started_at and one.events_read and one.throttle is None
        ]
        activities = None
        if edits.new_rules(table, journey):
            ends, begins = await self.offsets.ends(("activities",)), await self.offsets.begins(("activities",))
            activities = sum(max(0, end - begins.get(key, 0)) for key, end in ends.items())
        return edits.cost(table, journey, activities, max(rates[-5:], default=None))

    async def ready(self) -> bool:
        """Whether this console can answer."""
        if not self.store.loaded:
            return False
        try:
            await self.offsets.ends(("handoffs",))
        except ApiError:
            return False
        return True

    # ------------------------------------------------------------------ facts

    async def take(self, source: str, checked: Checked) -> dict[int, Refused]:
        """Brings checked facts to their topic; by index, what the broker refused. Raises `ApiError` (503)."""
        return await self.writer.facts(self.topics[source], checked.good)

    async def erase(self, contact: str) -> None:
        """Writes the null profile that erases the person. Raises `ApiError` (503)."""
        await self.writer.erase(self.topics["contacts"], contact)


def _later(code: str, message: str) -> ApiError:
    return ApiError(503, code, message, headers={"Retry-After": "1"})


def _nothing_known(contact: str) -> str:
    return f'nothing is known of contact "{contact}": none of its activities meets a rule, and it has no profile and no merge'


def _query(**values: Any) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _unknown_version(journey: Journey, asked: int) -> ApiError:
    return ApiError(
        404, "unknown_version", f'there are no results of version {asked} of journey "{journey.id}", which is at version {journey.version}', "version"
    )


def _worker(url: str, answer: dict[str, Any] | None, rate: float | None) -> dict[str, Any]:
    if answer is None:
        nothing = dict.fromkeys(("activities_per_second", "disk_bytes", "started_at"))
        return {"url": url, "state": "silent", "partitions": [], **nothing}
    live = sorted(int(n) for n, said in answer["partitions"].items() if said["state"] == "live")
    process = answer["process"]
    return {
        "url": url,
        "state": "live" if len(live) == len(answer["partitions"]) else "recovering",
        "partitions": live,
        "activities_per_second": None if rate is None else round(rate, 1),
        "disk_bytes": process["disk_bytes"],
        "started_at": format_ms(process["started_ms"]),
    }
