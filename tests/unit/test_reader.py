"""Reading a topic to its end, where a real cluster does not show it on demand."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from workers.errors import WorkerError
from workers.kafka import reader
from workers.kafka.client import ClientState
from workers.lifecycle import Shutdown


class Client:
    """A consumer that has messages in some of its polls, which last as long as they may."""

    def __init__(self, polls: list[Message | None]) -> None:
        self.now_s = 1000.0
        self.polls = polls

    def assign(self, _places: list[TopicPartition]) -> None: ...

    def poll(self, timeout_s: float) -> Message | None:
        self.now_s += timeout_s
        return self.polls.pop(0) if self.polls else None

    def consume(self, _count: int, _timeout_s: float) -> list[Message]:
        return []


def message(partition: int, offset: int) -> Message:
    return Message(topic="t.dlq", partition=partition, offset=offset)


def reading(client: Any, monkeypatch: pytest.MonkeyPatch, ends: dict[int, int]) -> Any:
    monkeypatch.setattr(reader, "time", SimpleNamespace(monotonic=lambda: client.now_s))
    return reader.read_to_end(client, ClientState(), "t.dlq", dict.fromkeys(ends, 0), Shutdown(0), 60.0, ends)


def test_partitions_that_send_nothing_end_the_reading_with_their_numbers_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client([message(1, 0)])
    says = "partitions [0, 2] have sent nothing for 60 s; check that they have leaders, and try again"
    with pytest.raises(WorkerError, match=f"^t.dlq cannot be read to its end: {re.escape(says)}$"):
        for _ in reading(client, monkeypatch, {0: 5, 1: 1, 2: 5}):
            pass


def test_a_partition_that_grows_behind_its_end_does_not_hide_that_another_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client([message(0, offset) for offset in range(1000)])
    with pytest.raises(WorkerError, match=r"partitions \[1\] have sent nothing"):
        for _ in reading(client, monkeypatch, {0: 1, 1: 5}):
            pass
    assert client.polls


def test_the_time_in_which_messages_are_worked_off_is_no_time_without_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when `replay` waits for the leader of the topic that it sends to."""
    client = Client([message(0, 0), None, message(0, 1)])
    found = []
    for messages in reading(client, monkeypatch, {0: 2}):
        found += [each.offset() for each in messages]
        client.now_s += 100 if messages else 0

    assert found == [0, 1]


def refused(offset: int) -> Message:
    error = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED, "denied")
    return Message(topic="t.dlq", partition=0, offset=offset, error=error)


def test_a_topic_that_may_not_be_read_is_named_with_the_right_to_grant(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkerError, match=r"^the user has no right to read t\.dlq; grant Read on it: denied$"):
        list(reading(Client([refused(0)]), monkeypatch, {0: 3}))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "the user has no right to read t; grant Read on it: why"),
        (
            KafkaError.LEADER_NOT_AVAILABLE,
            "the end offset of t[2] is unknown: why; check that the partition has a leader, and try again",
        ),
    ],
)
def test_an_end_that_is_not_known_is_said_with_the_remedy(code: int, says: str) -> None:
    def ask(*_: Any, **__: Any) -> None:
        raise KafkaException(KafkaError(code, "why"))

    client: Any = SimpleNamespace(get_watermark_offsets=ask)
    with pytest.raises(WorkerError) as raised:
        reader.watermarks(client, "t", 2, Shutdown(0))
    assert str(raised.value) == says


def end_at(offset: int) -> Message:
    return Message(topic="t.dlq", partition=0, offset=offset, error=KafkaError(KafkaError._PARTITION_EOF))


def test_a_new_leader_that_does_not_know_the_end_yet_ends_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells an earlier end until it has heard from the other replicas: `verify` would call what follows lost."""
    client = Client([message(0, 0), end_at(1), message(0, 1), message(0, 2)])
    found = [each.offset() for messages in reading(client, monkeypatch, {0: 3}) for each in messages]
    assert found == [0, 1, 2]


def test_a_reading_ends_where_the_last_offsets_hold_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client([message(0, 0), end_at(3)])
    found = [each.offset() for messages in reading(client, monkeypatch, {0: 3}) for each in messages]
    assert found == [0]
