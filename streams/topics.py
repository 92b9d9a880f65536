"""Topics: the table of topics, making them, checking them; it must never write a record (design, section 4).

The table is read by the code and by the documentation. What the broker has is compared with it, in sentences; only missing topics are
made, existing ones are never changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from streams.reader import ReaderError, begin_offsets, partitions_of_topics
from streams.settings import DAY_MS, Settings, librdkafka_config

log = logging.getLogger(__name__)

FOR_EVER_MS = 100 * 365 * DAY_MS  # where Kafka adds the number to a clock, so that its own -1 or maximum would not do
VERSIONS_MS = 5 * 365 * DAY_MS  # for so long the console can show versions of a journey that were replaced
MIB = 1 << 20
REQUEST_SECONDS = 15.0
SEGMENT_BYTES = 128 * MIB  # a log is compacted only in closed segments: smaller ones keep the changelog, and so recovery, short


class TopicsError(RuntimeError):
    """Topics that cannot be made, or do not fit; `problems` are sentences, each with a way out."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True)
class TopicSpec:
    """One row of the table."""

    name: str  # without the prefix
    key: str
    value: str
    written_by: str
    by_contact: bool  # keyed by contact id: all of these have the same number of partitions; the others have one
    cleanup: Literal["delete", "compact"]
    retention: str  # in words, for people
    max_message_bytes: int
    internal: bool = False

    def partitions(self, settings: Settings) -> int:
        return settings.partitions if self.by_contact else 1

    def config(self, settings: Settings) -> dict[str, str]:
        """The topic's configuration on the broker."""
        config = {"cleanup.policy": self.cleanup, "max.message.bytes": str(self.max_message_bytes)}
        if self.cleanup == "delete":
            config["retention.ms"] = str(_retention_ms(self.name, settings))
        if settings.replication_factor > 1:
            config["min.insync.replicas"] = str(settings.replication_factor - 1)
        if self.name == "contacts":
            # Compaction may not forget what a replay still needs: an erasure followed by a new profile is one record to compaction, but
            # two facts to whoever walks the log. So only what lies behind the reach of a replay is compacted.
            reach_ms = str(FOR_EVER_MS if settings.activities_retention_ms < 0 else settings.activities_retention_ms)
            config |= {"min.compaction.lag.ms": reach_ms, "delete.retention.ms": reach_ms}
        if self.name == "journeys":
            config["min.compaction.lag.ms"] = str(VERSIONS_MS)
        if self.name == "evidence-changelog":
            config["segment.bytes"] = str(SEGMENT_BYTES)
        return config


def _retention_ms(name: str, settings: Settings) -> int:
    match name:
        case "activities":
            return settings.activities_retention_ms
        case "stage-changes":
            return settings.stage_changes_retention_ms
        case "rejected":
            return settings.rejected_retention_ms
        case "audit":
            return settings.audit_retention_ms
        case "contact-merges":
            return -1
        case _:
            return 7 * DAY_MS


TABLE: tuple[TopicSpec, ...] = (
    # name, key, value, written by, by contact?, cleanup, retention, largest record
    TopicSpec("activities", "contact id", "Activity", "platform", True, "delete",
              "`activities_retention_ms`: how far a replay can see", 4 * MIB),
    TopicSpec("contact-merges", "`from`", "ContactMerge", "platform", True, "delete", "for ever", 4 * MIB),
    TopicSpec("contacts", "contact id", "ContactProfile; null erases the contact", "platform", True, "compact",
              "the newest of each contact, and all within `activities_retention_ms`", 4 * MIB),
    TopicSpec("journeys", "journey id", "Journey, a version of it; null deletes", "console, command line", False, "compact",
              "the newest of each journey, and all versions of 5 years", 4 * MIB),
    TopicSpec("stage-changes", "contact id", "StageChange", "workers", True, "delete", "`stage_changes_retention_ms`", MIB),
    TopicSpec("totals", "`journey/version/partition`", "absolute totals of one partition", "workers", False, "compact",
              "the newest of each key", 16 * MIB),
    TopicSpec("handoffs", "contact id of the addressee", "Handoff", "workers", True, "delete", "7 days", 16 * MIB, internal=True),
    TopicSpec("recalculations", "recalculation id", "Recalculation: its state and progress", "console, workers, recalculator", False,
              "compact", "the newest of each recalculation", 16 * MIB),
    TopicSpec("recalculation-reports", "`recalculation/worker or job/partition`", "how far a partition is with a recalculation",
              "workers, recalculator", False, "compact", "the newest of each key", MIB, internal=True),
    TopicSpec("rebuilt-evidence", "contact id", "evidence under an epoch", "recalculator", True, "delete", "7 days", 16 * MIB,
              internal=True),
    # Larger than what the input topics take: the record comes with its key and headers, and ours on top.
    TopicSpec("rejected", "as it came", "as it came", "workers", False, "delete", "`rejected_retention_ms`", 8 * MIB),
    TopicSpec("audit", "who", "who changed what: edits, recalculations, erasures, resends, logins", "console", False, "delete",
              "`audit_retention_ms`", MIB),
    TopicSpec("sessions", "`key/…`, `session/…`, `person/…`, `row/…`", "keys that sign sessions of the console; sessions that were ended",
              "console, command line", False, "compact", "the newest of each key", MIB, internal=True),
    TopicSpec("evidence-changelog", "contact id", "evidence record", "workers", True, "compact", "the newest of each contact", 16 * MIB,
              internal=True),
)
BY_NAME: Mapping[str, TopicSpec] = {spec.name: spec for spec in TABLE}


def topic_name(settings: Settings, name: str) -> str:
    """The full name of a topic of the table; KeyError for others."""
    return settings.topic_prefix + BY_NAME[name].name


def names(settings: Settings) -> dict[str, str]:
    """Short name -> full name, of all topics of the table."""
    return {spec.name: topic_name(settings, spec.name) for spec in TABLE}


def limits(settings: Settings) -> dict[str, int]:
    """Full name -> the largest record batch of a topic, in bytes, of all topics of the table."""
    return {topic_name(settings, spec.name): spec.max_message_bytes for spec in TABLE}


# ---------------------------------------------------------------- deciding


@dataclass(frozen=True)
class FoundTopic:
    """What the broker says of one topic. A broker may leave out of `config` what is at its default."""

    partitions: int
    replicas: int
    config: Mapping[str, str]


def problems(settings: Settings, found: Mapping[str, FoundTopic]) -> list[str]:
    """What does not fit between the table and *found* (full name -> topic), as sentences; empty: all is well."""
    said = []
    for spec in TABLE:
        name = topic_name(settings, spec.name)
        if (topic := found.get(name)) is None:
            said.append(f"topic {name} is missing; make it with `waypost topics`")
            continue
        said += _partition_problems(settings, spec, name, topic)
        said += _config_problems(settings, spec, name, topic)
    return said


def _partition_problems(settings: Settings, spec: TopicSpec, name: str, topic: FoundTopic) -> list[str]:
    said = []
    wanted = spec.partitions(settings)
    if topic.partitions != wanted:
        if spec.by_contact:
            said.append(f"topic {name} has {topic.partitions} partitions, the setting `partitions` says {wanted}; all topics keyed by "
                        f"contact need the same number: set WAYPOST_PARTITIONS={topic.partitions} if all of them have that many, or make "
                        "the topic anew")
        else:
            said.append(f"topic {name} has {topic.partitions} partitions, but needs exactly 1, so that its order is one; make it anew")
    if topic.replicas < settings.replication_factor:
        said.append(f"topic {name} is kept {topic.replicas} times, the setting `replication_factor` says {settings.replication_factor}; "
                    "add replicas with Kafka's kafka-reassign-partitions.sh, or lower the setting")
    return said


_WHY = {
    "cleanup.policy": "records would be lost, or kept for ever",
    "retention.ms": "records would be lost, or kept, other than the settings say",
    "max.message.bytes": "large records would be refused",
    "min.compaction.lag.ms": "a replay could miss an erasure",
    "delete.retention.ms": "a replay could miss an erasure",
}


def _config_problems(settings: Settings, spec: TopicSpec, name: str, topic: FoundTopic) -> list[str]:
    said = []
    wanted = spec.config(settings)
    for key, why in _WHY.items():
        if key not in wanted or key not in topic.config:
            continue
        have, want = topic.config[key], wanted[key]
        if have == want or (key not in ("cleanup.policy", "retention.ms") and int(have) >= int(want)):
            continue
        said.append(f"topic {name} has {key}={have}, it should be {want}: {why}. Change it with Kafka's `kafka-configs.sh --alter "
                    f"--entity-type topics --entity-name {name} --add-config {key}={want}`")
    return said


# ---------------------------------------------------------------- acting


def check(settings: Settings) -> list[str]:
    """Compares the broker's topics with the table: `problems`. Raises TopicsError when the broker cannot be asked."""
    return problems(settings, found_topics(_admin(settings), settings))


def provision(settings: Settings) -> list[str]:
    """Makes the topics that are missing; returns their full names. Others may do the same at the same time.

    Raises TopicsError when the broker refuses, or when what is there does not fit (then nothing is made).
    """
    admin = _admin(settings)
    before = found_topics(admin, settings)
    if wrong := [problem for problem in problems(settings, before) if " is missing; " not in problem]:
        raise TopicsError(wrong)
    missing = [spec for spec in TABLE if topic_name(settings, spec.name) not in before]
    made = _create(admin, settings, missing) if missing else []
    _await_there(admin, settings)
    return made


class Presence:
    """Notices, from look to look, which topics were deleted or made anew while they were used."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._admin = settings, _admin(settings)
        self._ids: dict[str, str] = {}
        self._missed: set[str] = set()

    def look(self) -> list[str]:
        """What was lost, as sentences; empty when nothing was, or the broker cannot be asked. What is missing is looked for twice: a broker that
        begins does not know of everything at once."""
        wanted = list(names(self._settings).values())
        try:
            listed = self._admin.list_topics(timeout=REQUEST_SECONDS)
            missing = {name for name in wanted if name not in listed.topics or not listed.topics[name].partitions}
            there = [name for name in wanted if name not in missing]
            described = self._admin.describe_topics(TopicCollection(there), request_timeout=REQUEST_SECONDS)
            ids = {name: str(future.result().topic_id) for name, future in described.items()}
        except KafkaException as error:
            log.debug("topics cannot be looked for: %s", error.args[0].str())
            return []
        said = [f"topic {name} is missing; what was on it is lost. Make it with `waypost topics`, and recalculate" for name in missing & self._missed]
        said += [
            f"topic {name} was made anew while it was used; what was on it is lost. Start the workers again, and recalculate"
            for name, id_ in ids.items()
            if self._ids.setdefault(name, id_) != id_
        ]
        self._missed = missing
        return sorted(said)


def _create(admin: AdminClient, settings: Settings, missing: Sequence[TopicSpec]) -> list[str]:
    wanted = [NewTopic(topic_name(settings, spec.name), num_partitions=spec.partitions(settings),
                       replication_factor=settings.replication_factor, config=spec.config(settings)) for spec in missing]
    made, refused = [], []
    for name, future in admin.create_topics(wanted, operation_timeout=REQUEST_SECONDS, request_timeout=REQUEST_SECONDS).items():
        try:
            future.result()
            made.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # else somebody was quicker: as good
                refused.append(f"topic {name} cannot be made: {error.args[0].str()}; see to the rights of this user and to "
                               "`replication_factor`, or make it by other means and run `waypost topics --check`")
    if refused:
        raise TopicsError(refused)
    return made


def _await_there(admin: AdminClient, settings: Settings) -> None:
    """Waits until the broker shows all topics, they fit, and every partition has a leader that answers. Raises TopicsError.

    Each question may go to another broker, and brokers learn of new topics one by one: what is missing is asked for again.
    """
    until = time.monotonic() + REQUEST_SECONDS
    while True:
        wrong = problems(settings, found_topics(admin, settings))
        if not wrong:
            try:
                begin_offsets(settings, partitions_of_topics(settings, names(settings).values()))
                return
            except ReaderError as error:
                wrong = [str(error)]
        if time.monotonic() > until or any(" is missing; " not in problem for problem in wrong):
            raise TopicsError(wrong)
        time.sleep(0.1)


def is_compacted(settings: Settings, name: str) -> bool:
    """Return True if compaction removes records of the topic *name* (in full). Raises TopicsError when the broker cannot be asked."""
    found = found_topics(_admin(settings), settings).get(name)
    return found is not None and "compact" in found.config.get("cleanup.policy", "delete")


def found_topics(admin: AdminClient, settings: Settings) -> dict[str, FoundTopic]:
    """What the broker has of the table's topics: full name -> topic. Raises TopicsError when it does not answer."""
    wanted = set(names(settings).values())
    try:
        # All topics, since asking for a missing one by name would create it on brokers with auto-creation.
        listed = admin.list_topics(timeout=REQUEST_SECONDS).topics
        there = {name: topic for name, topic in listed.items() if name in wanted and topic.partitions}
        configs = _configs(admin, list(there))
    except KafkaException as error:
        raise TopicsError([f"the broker at {settings.bootstrap} does not answer: {error.args[0].str()}; see that it runs and that "
                           "`broker` and the login settings are right"]) from None
    return {name: FoundTopic(len(topic.partitions), min(len(part.replicas) for part in topic.partitions.values()), configs[name])
            for name, topic in there.items() if name in configs}


def _configs(admin: AdminClient, wanted: Sequence[str]) -> dict[str, dict[str, str]]:
    """By topic; without those that the broker which was asked does not know of yet, as a cluster's brokers learn of a new topic one by one."""
    if not wanted:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in wanted]
    answers = admin.describe_configs(resources, request_timeout=REQUEST_SECONDS)
    found = {}
    for resource, future in answers.items():
        try:
            found[resource.name] = {key: entry.value for key, entry in future.result().items() if entry.value is not None}
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
    return found


def _admin(settings: Settings) -> AdminClient:
    config: dict[str, Any] = librdkafka_config(settings)
    return AdminClient(config, logger=log)
