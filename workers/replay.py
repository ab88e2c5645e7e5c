"""Sends dead letters back to where they came from: a consumer of the dead-letter topic whose handler is a producer.

At least once, as every consumer: a letter is committed when the brokers have acknowledged its replay.
"""

from collections.abc import Iterator, Sequence

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message

from workers.client import Events, make
from workers.config import ClientConfig
from workers.deadletters import ORIGINAL_PARTITION, ORIGINAL_TOPIC, own_headers
from workers.handlers import Handler, Lifespan, Reject, batch, lifespan
from workers.lifecycle import bounded
from workers.messages import headers_of

CLOSE_TIMEOUT_S = 2.0


class ReplayError(Exception):
    """A letter was not acknowledged; it stays uncommitted."""


def replayer(config: ClientConfig) -> Lifespan:
    """The handler that sends letters to the topic and partition that their headers name."""

    @lifespan
    def replay() -> Iterator[Handler]:
        events = Events()
        client = make(confluent_kafka.Producer, config, events.callbacks())

        @batch
        def send(letters: Sequence[Message]) -> None:
            errors: list[str] = []

            def on_delivery(error: KafkaError | None, _message: Message) -> None:
                if error is not None:
                    errors.append(error.str())

            for letter in letters:
                _send(client, letter, on_delivery)
            while len(client) and events.fatal is None:
                client.poll(0.1)
            events.check()
            if errors:
                raise ReplayError(f"{len(errors)} of {len(letters)} not acknowledged: {errors[0]}")

        yield send
        bounded(client.close, CLOSE_TIMEOUT_S)

    return replay


def _send(client: confluent_kafka.Producer, letter: Message, on_delivery: object) -> None:
    story = dict(headers_of(letter))
    topic = story.get(ORIGINAL_TOPIC)
    if topic is None:
        raise Reject(f"no header {ORIGINAL_TOPIC}: {letter.topic()} is no dead-letter topic of ours")
    partition = story.get(ORIGINAL_PARTITION)
    assert callable(on_delivery)
    try:
        client.produce(
            topic.decode(),
            letter.value(),
            letter.key(),
            partition=int(partition) if partition is not None else -1,
            headers=list(own_headers(letter)),
            on_delivery=on_delivery,
        )
    except (KafkaException, BufferError) as error:
        raise ReplayError(f"not taken for {topic.decode()}: {error}") from None
