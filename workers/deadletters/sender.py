"""Sends dead letters, and records about them, and waits until the brokers have them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message

from workers.config import ClientConfig
from workers.deadletters.headers import own_headers
from workers.deadletters.stored import Origin
from workers.deadletters.treated import Record
from workers.deadletters.writer import ANY_SIZE
from workers.kafka.client import BESIDE_A_CONSUMER, ClientState, create_client, poll_producer
from workers.lifecycle import Shutdown, call_with_timeout

CLOSE_TIMEOUT_S = 2.0
NO_ANSWER = "no answer before the end"


class Sender:
    """A producer that is waited for after each batch."""

    def __init__(self, config: ClientConfig, shutdown: Shutdown) -> None:
        self._client_state = ClientState()
        self._client = create_client(
            confluent_kafka.Producer, config, {**self._client_state.callbacks(), **BESIDE_A_CONSUMER, **ANY_SIZE}
        )
        self._shutdown = shutdown

    def send(self, dead_letters: Sequence[tuple[Message, Origin | None]]) -> list[str | None]:
        """Why each was not acknowledged; None where it was, or where it has no origin and is passed over."""
        outcomes: list[str | None] = [NO_ANSWER] * len(dead_letters)
        for number, (dead_letter, origin) in enumerate(dead_letters):
            if origin is None:
                outcomes[number] = None
                continue
            # With the time of now: one of long ago could be past what the topic keeps.
            self._produce(
                partial(_note, outcomes, number),
                topic=origin.topic,
                partition=origin.partition,
                value=dead_letter.value(),
                key=dead_letter.key(),
                headers=list(own_headers(dead_letter)),
            )
        self._wait()
        return outcomes

    def record(self, topic: str, records: Sequence[tuple[int, Record]]) -> Mapping[int, str]:
        """Write records, each into a partition of the dead-letter topic; return why which partition has not all."""
        outcomes: list[str | None] = [NO_ANSWER] * len(records)
        for number, (partition, record) in enumerate(records):
            self._produce(
                partial(_note, outcomes, number),
                topic=topic,
                partition=partition,
                value=record.value,
                headers=record.headers,
            )
        self._wait()
        return {
            partition: reason
            for (partition, _), reason in zip(records, outcomes, strict=True)
            if reason is not None
        }  # fmt: skip

    def check(self) -> None:
        """Raises WorkerError when the client cannot go on, which says more than that dead letters have no answer."""
        self._client_state.check()

    def close(self) -> None:
        self._client.purge()
        call_with_timeout(self._client.close, CLOSE_TIMEOUT_S)

    def _going_on(self) -> bool:
        return self._shutdown.remaining_s() > 0 and self._client_state.fatal is None

    def _wait(self) -> None:
        while len(self._client) and self._going_on():
            poll_producer(self._client, self._client_state, 0.1)

    def _produce(self, on_delivery: Callable[[KafkaError | None, Message], None], **message: Any) -> None:
        while True:
            try:
                self._client.produce(**message, on_delivery=on_delivery)
            except KafkaException as error:
                on_delivery(error.args[0], Message(topic=message["topic"]))
            except BufferError:
                # The client's queue is full: what is in it has to be delivered first.
                if self._going_on():
                    poll_producer(self._client, self._client_state, 0.1)
                    continue
            return


def _note(outcomes: list[str | None], number: int, error: KafkaError | None, message: Message) -> None:
    outcomes[number] = f"{message.topic()}: {error.str()}" if error is not None else None
