"""The dead-letter topic: where a message goes that its handler will never take, with all that is needed to replay
it.
"""

import logging
from collections.abc import Iterable

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message

from workers.client import Events, make, serve
from workers.config import ClientConfig
from workers.lifecycle import bounded
from workers.loading import text_of
from workers.messages import headers_of

log = logging.getLogger(__name__)

PREFIX = "kafka-workers."
ORIGINAL_TOPIC = PREFIX + "original-topic"
ORIGINAL_PARTITION = PREFIX + "original-partition"
ORIGINAL_OFFSET = PREFIX + "original-offset"
ORIGINAL_TIMESTAMP = PREFIX + "original-timestamp"
GROUP = PREFIX + "group"
ERROR_CLASS = PREFIX + "error-class"
ERROR_MESSAGE = PREFIX + "error-message"
ATTEMPTS = PREFIX + "attempts"

# A letter is larger than its message. How large it may be is the topic's business, not the client's.
ANY_SIZE = {"message.max.bytes": "1000000000"}
CHECK_TIMEOUT_S = 2.0
TOO_LARGE = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)

Header = tuple[str, str | bytes | None]


def letter_headers(message: Message, group_id: str, error: BaseException, attempts: int) -> list[Header]:
    """The message's own headers and those that tell its story. Timestamps are Unix time in milliseconds."""
    story: dict[str, object] = {
        ORIGINAL_TOPIC: message.topic(),
        ORIGINAL_PARTITION: message.partition(),
        ORIGINAL_OFFSET: message.offset(),
        ORIGINAL_TIMESTAMP: message.timestamp()[1],
        GROUP: group_id,
        ERROR_CLASS: type(error).__name__,
        ERROR_MESSAGE: text_of(error)[:1000],
        ATTEMPTS: attempts,
    }
    # An error may quote half of a surrogate pair, which UTF-8 cannot hold.
    told = [(name, str(value).encode(errors="backslashreplace")) for name, value in story.items()]
    return [*own_headers(message), *told]


def own_headers(message: Message) -> Iterable[Header]:
    """The headers that the message had before it became a dead letter."""
    return [(name, value) for name, value in headers_of(message) if not name.startswith(PREFIX)]


class Letter:
    """One dead letter under way: `delivered` is None until the brokers have answered."""

    def __init__(self) -> None:
        self.delivered: bool | None = None
        self.error = ""
        self.too_large = False

    def on_delivery(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self.error = error.str()
            self.too_large = error.code() in TOO_LARGE
        self.delivered = error is None


class DeadLetters:
    """Writes dead letters. Its client is made with the first one: most workers never need it."""

    def __init__(self, config: ClientConfig, topic: str | None, group_id: str) -> None:
        self._config = config
        self._topic = topic
        self._group_id = group_id
        self._events = Events()
        self._client: confluent_kafka.Producer | None = None

    def topic_for(self, message: Message) -> str:
        return self._name(message.topic() or "")

    def _name(self, topic: str) -> str:
        return self._topic or f"{topic}.dlq"

    def check(self, client: confluent_kafka.Consumer, topics: Iterable[str]) -> None:
        """Says which dead-letter topics are not there: a message that needs one would wait for it."""
        for name in set(map(self._name, topics)):
            try:
                found = client.list_topics(name, timeout=CHECK_TIMEOUT_S).topics[name]
            except KafkaException:
                continue
            if not found.partitions:
                log.warning("there is no dead-letter topic %s (or no right to it); create it, or see --on-error", name)

    def send(self, message: Message, error: BaseException, attempts: int) -> Letter:
        """Hands the message to the client; look at the letter after later calls of `poll`."""
        if self._client is None:
            self._client = make(confluent_kafka.Producer, self._config, {**self._events.callbacks(), **ANY_SIZE})
        letter = Letter()
        try:
            self._client.produce(
                self.topic_for(message),
                message.value(),
                message.key(),
                headers=letter_headers(message, self._group_id, error, attempts),
                on_delivery=letter.on_delivery,
            )
        except KafkaException as refused:
            letter.on_delivery(refused.args[0], message)
        except BufferError as full:
            letter.delivered, letter.error = False, str(full)
        return letter

    def poll(self, timeout_s: float) -> None:
        """Hears of the letters that are under way; raises WorkerError when the client cannot go on."""
        if self._client is not None:
            serve(self._client, self._events, timeout_s)
            self._events.check()

    def close(self, timeout_s: float) -> None:
        """What was not delivered by then is redelivered to the group, because its offset was not stored."""
        if self._client is not None:
            client = self._client
            client.purge()
            bounded(client.close, timeout_s)
