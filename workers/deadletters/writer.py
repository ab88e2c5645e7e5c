"""The dead-letter topic: where a message goes that its handler will never take, with all that is needed to replay
it.
"""

from collections.abc import Iterable

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message

from workers.config import ClientConfig
from workers.deadletters.headers import dead_letter_headers, dead_letter_topic
from workers.errors import WorkerError
from workers.kafka.client import BESIDE_A_CONSUMER, TOO_LARGE, reason_of
from workers.kafka.messages import MessagePlace
from workers.kafka.renewed import RenewedProducer
from workers.lifecycle import call_with_timeout

# A dead letter is larger than its message. How large it may be is the topic's business, not the client's.
ANY_SIZE = {"message.max.bytes": "1000000000"}
CHECK_TIMEOUT_S = 2.0
RENEWING = "credentials have changed, so its client is about to be renewed"


class DeadLetter:
    """One dead letter under way: `delivered` is None until the brokers have answered."""

    def __init__(self) -> None:
        self.delivered: bool | None = None
        self.error = ""
        self.too_large = False

    def on_delivery(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self.error = reason_of(error)
            self.too_large = error.code() in TOO_LARGE
        self.delivered = error is None


def too_large(where: MessagePlace, topic: str, error: str) -> WorkerError:
    """The error that ends a worker whose dead letter no topic takes: to go on would skip its message."""
    return WorkerError(
        f"stopping at {where}, as nothing is skipped: topic {topic} takes no dead letter of that size, raise its "
        f"max.message.bytes: {error}"
    )


def missing_topics(client: confluent_kafka.Consumer, topics: Iterable[str], named: str | None) -> list[str]:
    """The dead-letter topics of `topics` that are not there, without those that brokers tell nothing of."""
    missing = []
    for name in sorted({dead_letter_topic(topic, named) for topic in topics}):
        try:
            found = client.list_topics(name, timeout=CHECK_TIMEOUT_S).topics[name]
        except KafkaException:
            continue
        if not found.partitions:
            missing.append(name)
    return missing


class DeadLetters:
    """Writes dead letters. Its client is made with the first one: most workers never need it."""

    held = False

    def __init__(self, config: ClientConfig, topic: str | None, group_id: str, auth_timeout_s: float = 0.0) -> None:
        self.named = topic
        self._group_id = group_id
        self._producer = RenewedProducer(config, auth_timeout_s, properties={**BESIDE_A_CONSUMER, **ANY_SIZE})

    def missing(self, client: confluent_kafka.Consumer, topics: Iterable[str]) -> list[str]:
        return missing_topics(client, topics, self.named)

    def send(self, message: Message, error: BaseException, attempts: int) -> DeadLetter:
        """Hands the message to the client; look at the dead letter after later calls of `poll`."""
        dead_letter = DeadLetter()
        if self._producer.due:
            # One after the other would keep the old client in use, whose credentials brokers may refuse.
            dead_letter.delivered, dead_letter.error = False, RENEWING
            return dead_letter
        client = self._producer.made()
        try:
            client.produce(
                dead_letter_topic(message.topic() or "", self.named),
                message.value(),
                message.key(),
                headers=dead_letter_headers(message, self._group_id, error, attempts),
                on_delivery=dead_letter.on_delivery,
            )
        except KafkaException as refused:
            dead_letter.on_delivery(refused.args[0], message)
        except BufferError as full:
            dead_letter.delivered, dead_letter.error = False, str(full)
        return dead_letter

    def poll(self, timeout_s: float) -> None:
        """Serve delivery reports of dead letters; raises WorkerError when the client cannot go on."""
        self._producer.serve(timeout_s)
        self._producer.state.check()

    def close(self, timeout_s: float) -> None:
        """Purge and close the client. The messages of undelivered dead letters are redelivered: their offsets were not
        stored.
        """
        client = self._producer.client
        if client is not None:
            client.purge()
            call_with_timeout(client.close, timeout_s)
