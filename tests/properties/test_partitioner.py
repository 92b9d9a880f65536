"""The partitioner gives Java's numbers: alone, in batches, and as aiokafka counts. (Against librdkafka: tests/contracts/test_broker.py.)"""

import pytest
from aiokafka.partitioner import murmur2 as aiokafka_murmur2
from hypothesis import given
from hypothesis import strategies as st

from streams.partitioner import murmur2, murmur2_many, partition_of, partitions_of

# org.apache.kafka.common.utils.UtilsTest.testMurmur2, as unsigned integers
JAVA = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, b"abc": 479470107}


@pytest.mark.parametrize("key", JAVA)
def test_java_agrees(key):
    assert murmur2(key) == JAVA[key] % 2**32
    assert murmur2_many([key]).tolist() == [JAVA[key] % 2**32]


@given(st.lists(st.binary(max_size=40) | st.binary(min_size=250, max_size=300) | st.text(max_size=12).map(str.encode), max_size=50),
       st.integers(1, 1000))
def test_a_batch_is_its_keys_one_by_one(keys, partitions):
    assert murmur2_many(keys).tolist() == [murmur2(key) for key in keys]
    assert partitions_of(keys, partitions).tolist() == [partition_of(key, partitions) for key in keys]


@given(st.binary(max_size=80))
def test_aiokafka_agrees(key):
    assert murmur2(key) == aiokafka_murmur2(key) % 2**32


@given(st.text(max_size=40), st.integers(1, 100))
def test_text_counts_as_its_utf8_bytes(text, partitions):
    number = partition_of(text, partitions)
    assert number == partition_of(text.encode(), partitions)
    assert 0 <= number < partitions
