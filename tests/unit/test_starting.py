"""Where partitions begin, and how long the loop waits for the brokers to say so."""

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from workers.config import CONSUMER_DEFAULTS, ClientConfig, Precedence, Setting
from workers.consumer import starting
from workers.consumer.assignment import PartitionState, TopicCounts
from workers.consumer.starting import ASK_AGAIN_S, ASK_ALONE_S, ASK_TIMEOUT_S, COMMITTED_TIMEOUT_S, Starts


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
        assert list(starts.decided(client, {})) == []
        assert client.now - before <= 2 * ASK_TIMEOUT_S + ASK_ALONE_S
        client.now += ASK_AGAIN_S
    assert {asked[0] for asked in client.asked if len(asked) == 1} == set(range(40))


class Hanging(Silent):
    """A client whose group has committed nothing, and of whose brokers only one answers."""

    def __init__(self, leaders: dict[tuple[str, int], int], alive: int) -> None:
        super().__init__()
        self.leaders = leaders
        self._alive = alive

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:  # noqa: ARG002  (the interface)
        return [TopicPartition(each.topic, each.partition, OFFSET_INVALID) for each in places]

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        self.asked.append([place.partition])
        if self.leaders[place.topic, place.partition] == self._alive:
            return 3, 7
        self.now += timeout
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


FROM_END = ClientConfig(
    CONSUMER_DEFAULTS, [Setting("auto.offset.reset", "latest", Precedence.COMMAND_LINE, "--from-end")]
)


@pytest.mark.parametrize("brokers", [1, 3])
@pytest.mark.parametrize("known", [True, False], ids=["leaders are known", "leaders are not known"])
def test_partitions_whose_leader_hangs_hold_up_neither_the_loop_nor_those_of_others(
    monkeypatch: pytest.MonkeyPatch, brokers: int, known: bool
) -> None:
    """One turn of the loop took a second for each of them, and so did a stop."""
    leaders = {("t", number): number % brokers for number in range(40)} | {("t", 40): 9}
    client: Any = Hanging(leaders, alive=9)
    monkeypatch.setattr(starting, "time", SimpleNamespace(monotonic=lambda: client.now))
    starts = Starts(FROM_END, stop_on_deleted=False, exactly_once=False)
    topic = TopicCounts("t")
    for number in range(41):
        starts.await_committed(
            PartitionState(topic, number, TopicPartition("t", number, OFFSET_INVALID), in_order=True)
        )

    begun = client.now
    found: list[int] = []
    turns = 0
    while not found or {each for [each] in client.asked} != set(range(41)):
        turns += 1
        assert turns < 500
        before = client.now
        for start in starts.decided(client, client.leaders if known else {}):
            assert (start.state.number, start.offset) == (40, 7)
            found.append(turns)
            if known:
                assert client.now - begun <= (brokers + 1) * ASK_TIMEOUT_S
        assert client.now - before <= 2 * ASK_TIMEOUT_S
        client.now += 0.1
    assert len(found) == 1


def test_an_assignment_asks_for_the_ends_of_many_partitions_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    client: Any = Hanging({("t", number): 0 for number in range(400)}, alive=9)
    monkeypatch.setattr(starting, "time", SimpleNamespace(monotonic=lambda: client.now))
    starts = Starts(FROM_END, stop_on_deleted=False, exactly_once=False)
    begun = client.now
    assigned, begins = starts.at_assignment(client, [TopicPartition("t", number) for number in range(400)])

    assert client.now - begun <= COMMITTED_TIMEOUT_S + ASK_TIMEOUT_S
    assert ([each.offset for each in assigned], begins) == ([OFFSET_INVALID] * 400, [])
