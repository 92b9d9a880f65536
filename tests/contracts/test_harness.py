"""Without Java or Maven the tests on Apache Kafka fail with a sentence that says what to do; they are never skipped in silence."""

import pytest

from tests.support import kafka
from tests.support.kafka import KafkaBroker, KafkaUnavailable


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine with neither Java nor Maven nor jars."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(kafka.LIB_ENV, raising=False)


def test_without_java(bare, tmp_path):
    with pytest.raises(KafkaUnavailable, match=r'need Java, .* leave these tests out with: pytest -m "not kafka"'):
        KafkaBroker(tmp_path / "kafka").start()


def test_without_maven(bare):
    with pytest.raises(KafkaUnavailable, match=r'need Maven to fetch it, .* leave these tests out with: pytest -m "not kafka"'):
        kafka.jars()


def test_with_a_directory_of_jars_that_holds_none(monkeypatch, tmp_path):
    monkeypatch.setenv(kafka.LIB_ENV, str(tmp_path))
    with pytest.raises(KafkaUnavailable, match="where there are no jars of Kafka; correct it or unset it"):
        kafka.jars()


def test_the_version_stands_in_the_pom():
    assert kafka.version().count(".") == 2


def test_whatever_uses_kafka_is_marked_so(request, pytestconfig):
    for item in request.session.items:
        names = set(getattr(item, "fixturenames", ()))
        if names & {"kafka", "kafka_broker", "secure_kafka"}:
            assert item.get_closest_marker("kafka"), item.nodeid
