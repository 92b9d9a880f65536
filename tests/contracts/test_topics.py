"""The comparison of topics with the table, without a broker; with one: test_broker.py."""

import dataclasses
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.settings import Settings
from streams.topics import BY_NAME, TABLE, FoundTopic, TopicsError, found_topics, problems, topic_name

SETTINGS = Settings.load({"broker": "localhost:9092", "partitions": 6, "replication_factor": 3}, environ={})


def as_wanted(settings=SETTINGS):
    return {topic_name(settings, spec.name): FoundTopic(spec.partitions(settings), settings.replication_factor, spec.config(settings))
            for spec in TABLE}


def test_what_fits_is_said_in_no_words():
    assert problems(SETTINGS, as_wanted()) == []


def test_the_table_is_the_designs():
    assert [spec.name for spec in TABLE] == [
        "activities", "contact-merges", "contacts", "journeys", "stage-changes", "totals", "handoffs", "recalculations",
        "recalculation-reports", "rebuilt-evidence", "rejected", "audit", "sessions", "evidence-changelog"]
    assert {spec.name for spec in TABLE if spec.cleanup == "compact"} == {
        "contacts", "journeys", "totals", "recalculations", "recalculation-reports", "sessions", "evidence-changelog"}


def test_what_is_rejected_fits_on_the_rejected_topic():
    inputs = [BY_NAME[name].max_message_bytes for name in ("activities", "contact-merges", "contacts")]
    assert BY_NAME["rejected"].max_message_bytes > max(inputs) >= 4 << 20


@pytest.mark.parametrize(("name", "change", "sentence"), [
    ("activities", {"partitions": 4}, "has 4 partitions, the setting `partitions` says 6"),
    ("journeys", {"partitions": 6}, "needs exactly 1"),
    ("handoffs", {"replicas": 1}, "is kept 1 times, the setting `replication_factor` says 3"),
    ("evidence-changelog", {"config": {"cleanup.policy": "delete"}}, "cleanup.policy=delete, it should be compact"),
    ("contact-merges", {"config": {"retention.ms": "604800000"}}, "retention.ms=604800000, it should be -1"),
    ("handoffs", {"config": {"max.message.bytes": "1048588"}}, "max.message.bytes=1048588, it should be 16777216"),
    ("contacts", {"config": {"min.compaction.lag.ms": "0"}}, "a replay could miss an erasure"),
])
def test_each_difference_is_a_sentence_with_a_way_out(name, change, sentence):
    found = as_wanted()
    full = topic_name(SETTINGS, name)
    found[full] = dataclasses.replace(found[full], **change)
    [said] = problems(SETTINGS, found)
    assert said.startswith(f"topic {full} ")
    assert sentence in said


def test_more_than_needed_is_no_problem():
    found = as_wanted()
    full = topic_name(SETTINGS, "handoffs")
    found[full] = FoundTopic(6, 5, {**found[full].config, "max.message.bytes": str(64 << 20)})
    assert problems(SETTINGS, found) == []


def test_a_missing_topic_is_named_with_the_command_that_makes_it():
    found = as_wanted()
    del found["waypost.totals"]
    assert problems(SETTINGS, found) == ["topic waypost.totals is missing; make it with `waypost topics`"]


def of_cluster(refused, code):
    """What librdkafka's client says of a cluster with all topics, one broker of which refuses to describe the topic *refused*."""
    topic = SimpleNamespace(partitions={number: SimpleNamespace(replicas=(1, 2, 3)) for number in range(6)})

    def described(resources, **_):
        found = {resource: Future() for resource in resources}
        for resource, future in found.items():
            if resource.name == refused:
                future.set_exception(KafkaException(KafkaError(code)))
            else:
                future.set_result({})
        return found

    listed = SimpleNamespace(topics={topic_name(SETTINGS, spec.name): topic for spec in TABLE})
    return SimpleNamespace(list_topics=lambda **_: listed, describe_configs=described)


def test_a_topic_that_another_broker_does_not_know_of_yet_is_not_there_yet():
    found = found_topics(of_cluster("waypost.totals", KafkaError.UNKNOWN_TOPIC_OR_PART), SETTINGS)
    assert set(as_wanted()) - set(found) == {"waypost.totals"}
    with pytest.raises(TopicsError, match="does not answer"):
        found_topics(of_cluster("waypost.totals", KafkaError.TOPIC_AUTHORIZATION_FAILED), SETTINGS)


def test_an_endless_replay_keeps_every_erasure():
    settings = Settings.load({"activities_retention_ms": -1}, environ={})
    config = BY_NAME["contacts"].config(settings)
    assert int(config["min.compaction.lag.ms"]) > 10**12
    assert BY_NAME["activities"].config(settings)["retention.ms"] == "-1"
