"""Where partitions begin, and how long the loop waits for the brokers to say so."""

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from workers.config import CONSUMER_DEFAULTS, ClientConfig
from workers.consumer import starting
from workers.consumer.assignment import PartitionState, TopicCounts
from workers.consumer.starting import ASK_AGAIN_S, ASK_ALONE_S, ASK_TIMEOUT_S, Starts


class Silent:
    """A client whose coordinator does not answer; it passes the time that it is given."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[list[int]] = []

    def monotonic(self) -> float:
        return self.now

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.asked.append([each.partition for each in places])
        self.now += timeout
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def test_partitions_without_an_answer_hold_up_a_turn_for_a_bounded_time_and_are_all_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client: Any = Silent()
    monkeypatch.setattr(starting, "time", SimpleNamespace(monotonic=client.monotonic))
    starts = Starts(ClientConfig(CONSUMER_DEFAULTS, []), stop_on_deleted=False, exactly_once=True)
    topic = TopicCounts("t")
    for number in range(40):
        place = TopicPartition("t", number, OFFSET_INVALID)
        starts.await_committed(PartitionState(topic, number, place, in_order=True))

    for _ in range(10):
        before = client.now
        assert list(starts.decided(client)) == []
        assert client.now - before <= 2 * ASK_TIMEOUT_S + ASK_ALONE_S
        client.now += ASK_AGAIN_S
    assert {asked[0] for asked in client.asked if len(asked) == 1} == set(range(40))
