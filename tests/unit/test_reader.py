"""Reading a topic to its end, where a real cluster does not show it on demand."""

from typing import Any

from confluent_kafka import KafkaError, Message

from workers.kafka.client import ClientState
from workers.kafka.reader import read_to_end
from workers.lifecycle import Shutdown


class Arriving:
    """A client that returns these messages, one after the other."""

    def __init__(self, *arriving: Message) -> None:
        self._arriving = [*arriving]

    def assign(self, _places: object) -> None: ...

    def poll(self, _timeout_s: float) -> Message | None:
        return self._arriving.pop(0) if self._arriving else None

    def consume(self, _most: int, _timeout_s: float) -> list[Message]:
        return []


def at(offset: int) -> Message:
    return Message(topic="t", partition=0, offset=offset, value=b"")


def end_at(offset: int) -> Message:
    return Message(topic="t", partition=0, offset=offset, error=KafkaError(KafkaError._PARTITION_EOF))


def read(*arriving: Message) -> list[int | None]:
    client: Any = Arriving(*arriving)
    batches = read_to_end(client, ClientState(), "t", {0: 0}, Shutdown(0), 0.0, {0: 5})
    return [message.offset() for batch in batches for message in batch]


def test_a_new_leader_that_does_not_know_the_end_yet_ends_no_reading() -> None:
    """It tells an earlier end until it has heard from the other replicas: `verify` would call what follows lost."""
    assert read(at(0), at(1), end_at(2), at(2), at(3), at(4)) == [0, 1, 2, 3, 4]


def test_a_reading_ends_where_the_last_offsets_hold_no_message() -> None:
    assert read(at(0), at(1), end_at(5)) == [0, 1]
