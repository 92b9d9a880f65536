"""Models: the shapes of the answers of the HTTP API (contract, section 4), from which the OpenAPI document is made. Computes nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-01-02T03:04:05.678Z"])]
Ratio = Annotated[float | None, Field(description="fraction, unrounded; null where the divisor is 0")]


class ErrorDetails(_Answer):
    code: str = Field(description="for programs, snake_case")
    message: str = Field(description="for people: the broken rule, where it was found, the way out")
    path: str | None = Field(description="the place inside what was sent; null when the whole of it is meant", examples=["stages[2].condition"])


class ErrorAnswer(_Answer):
    """What every error looks like."""

    error: ErrorDetails


class JourneyAnswer(BaseModel):
    """A journey as it was saved, text parameters written as `{operator: value}`, with what the console knows of it."""

    model_config = ConfigDict(extra="forbid")

    id: str
    name: str
    scheduled_recalculation: bool
    stages: list[dict[str, Any]]
    version: int = Field(ge=1, description="counts saved edits from 1")
    saved_at: Time
    status: Literal["live", "calculating"] | None = Field(description="null while not every partition has a worker that answers")


class Journeys(_Answer):
    journeys: list[JourneyAnswer] = Field(description="ordered by id")


class VersionInfo(_Answer):
    version: int = Field(ge=1)
    saved_at: Time | None
    changes: list[str] = Field(description="about the version before, in sentences; empty when that is not kept")


class Versions(_Answer):
    journey: str
    versions: list[VersionInfo] = Field(description="the newest first")


class JourneyVersion(BaseModel):
    """A journey as a version of it said."""

    model_config = ConfigDict(extra="forbid")

    id: str
    name: str
    scheduled_recalculation: bool
    stages: list[dict[str, Any]]
    version: int = Field(ge=1)
    saved_at: Time


class Preview(_Answer):
    journey: str
    version: int = Field(ge=1, description="which it would be")
    changes: list[str] = Field(description="in sentences; empty when the body says what is saved")
    recalculation: bool = Field(description="whether the log has to be read for it; else it is live at once")
    rules: list[str] = Field(description="the rules for which it has to be read, in words")
    activities: int | None = Field(description="how many there are on the log; null when it has not to be read")
    seconds: float | None = Field(description="about how long that takes, by the last recalculations; null when it is not known")


class KnownValue(_Answer):
    value: str
    activities: int = Field(description="how many of those looked at have it")


class Values(_Answer):
    field: str
    values: list[KnownValue]


class StageRow(_Answer):
    stage: int = Field(ge=1)
    name: str
    converted: int | None = Field(description="contacts that reached the stage; null while nothing is calculated yet")
    converted_ratio: Ratio
    dropped_off: int | None = Field(description="contacts that reached the stage and not the next; null on the last stage")
    dropped_off_ratio: Ratio
    kpi: int | None
    kpi_ratio: Ratio
    median_seconds_from_previous: float | None = Field(description="null on the first stage, and while nobody reached it")


class Results(_Answer):
    journey: str
    version: int = Field(ge=1, description="the version that the numbers belong to")
    status: Literal["live", "calculating"] = Field(description="calculating: a newer version is not complete on every partition yet")
    progress: float = Field(ge=0, le=1, description="of the newest version, over all partitions")
    lag: int = Field(ge=0, description="records of the input topics that these numbers do not reflect yet; 0 = all that was sent is in them")
    as_of: Time
    recalculated_at: Time | None
    group: str | None
    stages: list[StageRow]


class GroupRow(_Answer):
    stage: int = Field(ge=1)
    name: str
    converted: int
    converted_ratio: Ratio


class GroupResults(_Answer):
    group: str | None = Field(description="null: all contacts")
    stages: list[GroupRow]


class _OfJourney(_Answer):
    journey: str
    version: int = Field(ge=1, description="the version that the numbers belong to")
    status: Literal["live", "calculating"]
    progress: float = Field(ge=0, le=1)
    lag: int = Field(ge=0, description="records of the input topics that these numbers do not reflect yet")
    as_of: Time
    recalculated_at: Time | None


class Groups(_OfJourney):
    """Groups overlap: a contact in two counts in both."""

    groups: list[GroupResults] = Field(description="all contacts first, then at most 1,000 groups, the largest first; empty while nothing is known")


class DayRow(_Answer):
    day: str = Field(description="of UTC", json_schema_extra={"format": "date"}, examples=["2026-01-02"])
    reached: list[int] = Field(description="how many contacts reached each stage on that day")


class Days(_OfJourney):
    group: str | None
    days: list[DayRow] = Field(description="those on which anybody reached a stage, the earliest first")


class Interval(_Answer):
    from_seconds: int
    to_seconds: int | None = Field(description="exclusive; null: without end")
    contacts: int


class Waited(_Answer):
    contacts: int
    median_seconds: float | None
    p10_seconds: int | None
    p90_seconds: int | None
    intervals: list[Interval]


class WaitRow(Waited):
    stage: int = Field(ge=2)
    name: str


class Waits(_OfJourney):
    """How long contacts took: exact to the second under 512 s, to 1/256 above."""

    group: str | None
    stages: list[WaitRow] = Field(description="from the second on: the time since the stage before")
    overall: Waited | None = Field(description="the time from the first stage to the last; null of a journey of one stage")


class ListRow(_Answer):
    contact_id: str
    name: str | None = Field(description="of the profile, where it has one")
    reached_at: Time
    groups: list[str]


class ContactList(_Answer):
    total: int | None = Field(ge=0, description="equals the number in the results; null while nothing is calculated yet")
    contacts: list[ListRow]
    cursor: str | None = Field(description="give it back for the next page; null on the last one")


class ListChecksum(_Answer):
    group: str = Field(description="the hash of the group's name: blake2b of 8 bytes, as hex; zeros: all contacts")
    furthest: int = Field(ge=1, description="the stage that these contacts reached, and no further one")
    contacts: int
    sampled: int = Field(description="those of them that are in the sample")
    checksum: str = Field(description="of the sample: the sum modulo 2^64 of the hashes of contact and time, as hex")


class StageChecksum(_Answer):
    stage: int = Field(ge=1)
    sampled: int = Field(description="contacts of the sample that reached the stage")
    checksum: str = Field(description="as above, of contact, groups, time, and the activities by which the stage was met")


class Checksums(_Answer):
    """A page of the sums over all lists of a journey: add up the pages."""

    version: int | None = Field(description="null while nothing is calculated yet")
    generation: int | None = Field(description="grows when results are switched to other evidence: pages of two generations do not add up")
    lists: list[ListChecksum]
    stages: list[StageChecksum]
    cursor: str | None = Field(description="give it back for the next page; null on the last one")


class MetBy(_Answer):
    at: Time
    activity: str = Field(description="the hash of the activity's id: blake2b of 8 bytes, as hex")
    rule: str


class ReachedStage(_Answer):
    stage: int = Field(ge=1)
    name: str
    reached_at: Time
    met_by: list[MetBy]


class Hit(_Answer):
    at: Time
    activity: str = Field(description="the hash of the activity's id: blake2b of 8 bytes, as hex")


class UsedHit(Hit):
    stage: int = Field(description="the stage that it was counted for")


class UnmetRule(_Answer):
    rule: str
    met_by: Hit | None = Field(description="the activity that meets it since the stage before")
    too_early: list[Hit] = Field(description="at most 5 activities that would meet it but came before the stage before was reached, the newest first")
    used: list[UsedHit] = Field(description="activities that meet it and were counted for an earlier stage already")


class UnmetCondition(_Answer):
    op: Literal["any", "all"]
    members: list[UnmetRule | UnmetCondition]


class Missing(_Answer):
    stage: int = Field(ge=1)
    name: str
    not_before: Time | None = Field(description="activities before this moment do not count; null on the first stage")
    rules: list[str] = Field(description="what would have to happen, in sentences")
    condition: UnmetCondition


class Standing(_Answer):
    journey: str
    version: int
    stage: int = Field(ge=0, description="the furthest stage reached; 0 = none")
    stages: list[ReachedStage]
    missing: Missing | None = Field(description="what the next stage still needs; null when all are reached")
    bounded: bool = Field(description="whether some hits were given up because there were too many of a rule")


class Profile(_Answer):
    attributes: dict[str, Any]
    at: Time


class MergeInfo(_Answer):
    from_: str = Field(alias="from")
    into: str
    at: Time
    merge: str = Field(description="the hash of the merge's id")


class CountedStage(_Answer):
    journey: str
    stage: int


class CountedActivity(Hit):
    rules: list[str] = Field(description="the rules of journeys that it meets")
    stages: list[CountedStage] = Field(description="the stages that it was counted for; none: it came too early, or too late")


class ContactAnswer(_Answer):
    contact_id: str = Field(description="as asked for")
    survivor: str = Field(description="the contact by which the person is named")
    aliases: list[str] = Field(description="the other contacts of the person")
    merges: list[MergeInfo] = Field(description="the newest 100, the earliest first")
    profile: Profile | None
    groups: list[str]
    erased_at: Time | None
    lag: int = Field(ge=0, description="records of the input topics that this answer does not reflect yet")
    journeys: list[Standing]
    activities: list[CountedActivity] = Field(description="the newest 200 that meet a rule, the newest first")


class RefusedItem(_Answer):
    index: int = Field(ge=0, description="place in the array that was sent, from 0")
    error: ErrorDetails


class Taken(_Answer):
    taken: int = Field(ge=0, description="how many are on the topic now")
    refused: list[RefusedItem]


class RuleInfo(_Answer):
    name: str
    category: str
    sentence: str
    parameters: dict[str, Any] = Field(description="a JSON Schema")


class Rules(_Answer):
    rules: list[RuleInfo]


class WorkerInfo(_Answer):
    url: str
    state: Literal["live", "recovering", "silent"] = Field(description="silent: it does not answer; listed for ten minutes")
    partitions: list[int]
    activities_per_second: float | None = Field(description="over the last half minute; null while it is not known")
    disk_bytes: int | None = Field(description="of its RocksDB")
    started_at: Time | None


class BrokerInfo(_Answer):
    bootstrap: str
    kind: Literal["embedded", "kafka"]


class Health(_Answer):
    status: Literal["ok", "degraded"]
    lag: int | None = Field(description="null when it cannot be known, because the broker or a partition does not answer")
    workers: list[WorkerInfo]
    broker: BrokerInfo


class HealthPoint(_Answer):
    at: Time
    lag: int | None
    activities: float | None = Field(description="a second, of all workers")
    stage_changes: float | None = Field(description="a second")
    rejected: float | None = Field(description="a second")


class HealthHistory(_Answer):
    """What this console saw of the workers in the last hour; it begins anew when the console does."""

    every_seconds: float
    visible_seconds: float | None = Field(description="within how long 99 % of the batches were in the numbers: the bound of a histogram's bucket")
    points: list[HealthPoint] = Field(description="the earliest first")


class RecordHeader(_Answer):
    name: str
    value: str | None


class RejectedRecord(_Answer):
    """A record as it came. Key and value are texts when they are UTF-8, else null with the bytes in base64 beside them."""

    id: str = Field(description="names it when it is sent again: its partition and offset on the rejected topic", examples=["0-17"])
    topic: str | None = Field(description="the topic it came from")
    partition: int | None
    offset: int | None
    rejected_at: Time | None
    error: str = Field(description="the broken rule")
    key: str | None
    key_base64: str | None
    value: str | None
    value_base64: str | None
    headers: list[RecordHeader]


class Rejected(_Answer):
    rejected: list[RejectedRecord] = Field(description="newest first")
    cursor: str | None


class SentAgain(_Answer):
    index: int = Field(ge=0, description="place in the list that was sent, from 0")
    id: str
    topic: str
    partition: int
    offset: int = Field(description="where it stands now")


class Resent(_Answer):
    sent: list[SentAgain] = Field(description="on their topics now")
    refused: list[RefusedItem]


class Alive(_Answer):
    status: Literal["ok"]


class Ready(_Answer):
    ready: bool


class RecalculationPhase(_Answer):
    """A phase of a recalculation. While the log is read, what was written already is joined."""

    name: Literal["reading", "joining", "comparing", "building"]
    progress: float = Field(ge=0, le=1)
    seconds: float = Field(ge=0, description="for how long it has gone on")
    total: int = Field(
        ge=0, description="activities to read, messages to join, contacts to compare or to build results of; 0 while unknown"
    )


class RecalculationDifference(_Answer):
    """How many contacts reach a stage by what is visible, and by what was rebuilt."""

    journey: str
    version: int
    stage: int
    visible: int = Field(ge=0)
    expected: int = Field(ge=0, description="the visible ones without what the log no longer holds")
    rebuilt: int = Field(ge=0)


class Recalculation(_Answer):
    """A rebuilding of evidence from the log. Times are null until they come."""

    id: str
    state: Literal["planned", "filling", "switching", "live", "cancelled", "failed"]
    cause: Literal["request", "edit", "schedule"]
    journeys: list[str] = Field(description="for which it was asked; others with the same rules follow")
    rules: list[str] = Field(description="whose evidence is rebuilt, in words")
    progress: float = Field(ge=0, le=1)
    events_read: int = Field(ge=0, description="activities of the log read so far")
    events_total: int | None = Field(description="activities of the log to read; null until it is known")
    events_per_second: float | None = Field(description="how fast it reads at present")
    throttle: float | None = Field(description="how many activities a second it may read, as asked")
    eta_seconds: float | None = Field(description="for how long it will still go on, all phases together; null while that is unknown")
    phase: Literal["reading", "joining", "comparing", "confirming", "building", "cancelling"] | None = Field(
        description="what goes on. confirming: it waits for somebody, see differences; cancelling: what was announced of it is taken back"
    )
    phases: list[RecalculationPhase]
    differences: list[RecalculationDifference] = Field(
        description="why it waits, or waited, for a confirmation: all stages of the journeys that differ, those that differ most first"
    )
    confirmed_at: Time | None
    changed: int | None = Field(description="contacts that stand elsewhere than before; null until it is live")
    reason: str | None = Field(description="why it failed, or waits for a confirmation")
    planned_at: Time
    started_at: Time | None
    finished_at: Time | None
    log_from: Time | None = Field(description="the time of the oldest activity the log had; what happened before counts no longer")


class Recalculations(_Answer):
    recalculations: list[Recalculation] = Field(description="the newest first")
    cursor: str | None
    log_from: Time | None = Field(description="the time of the oldest activity on the log: what a recalculation begun now would see")


class Schedule(_Answer):
    cron: str | None = Field(description="null when there is no schedule")
    time_zone: str
    next_run: Time | None
    last_run: Time | None
