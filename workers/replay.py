"""Sends dead letters back to where they came from: those that are there when it begins, and that no replay has sent.

At least once, as every consumer: a letter is committed when the brokers have acknowledged its replay. What the handler
rejects again while this runs is a letter for the next replay, so it ends.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from workers.client import Events, make, wait_for_topics
from workers.config import ClientConfig
from workers.deadletters import ANY_SIZE, ORIGINAL_PARTITION, ORIGINAL_TOPIC, own_headers
from workers.lifecycle import Shutdown, WorkerError, bounded
from workers.messages import headers_of
from workers.reading import PROPERTIES, read_to_end

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 2.0
COMMITTED_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Replayed:
    """How many letters were sent back, and how many were passed over because they do not say where they came from."""

    sent: int = 0
    without_origin: int = 0


def replay(
    config: ClientConfig,
    producer_config: ClientConfig,
    topic: str,
    shutdown: Shutdown,
    *,
    timeout_s: float | None,
    limit: int | None,
) -> Replayed:
    """Replays the letters of `topic`, `limit` at the most, and commits them to the group of `config`.

    Raises WorkerError when one cannot be sent, which then is the first of the next replay, and as `read_to_end` does.
    """
    events = Events()
    reader = make(confluent_kafka.Consumer, config, {**events.callbacks(), **PROPERTIES})
    sender = Sender(producer_config, shutdown)
    done = Replayed()
    try:
        count = wait_for_topics(reader, [topic], config, events, timeout_s=timeout_s, shutdown=shutdown).get(topic, 0)
        starts = _committed(reader, topic, count)
        for letters in read_to_end(reader, events, topic, starts, shutdown, timeout_s):
            chosen = letters if limit is None else letters[: limit - done.sent - done.without_origin]
            if chosen:
                done.sent += sender.send([letter for letter in chosen if _origin(letter) is not None])
                done.without_origin += sum(_origin(letter) is None for letter in chosen)
                _commit(reader, chosen)
            if limit is not None and done.sent + done.without_origin >= limit:
                break
    finally:
        sender.close()
        bounded(reader.close, CLOSE_TIMEOUT_S)
        log.info("%d dead letters replayed from %s", done.sent, topic)
    return done


def _committed(reader: confluent_kafka.Consumer, topic: str, count: int) -> dict[int, int]:
    partitions = [TopicPartition(topic, number) for number in range(count)]
    try:
        places = reader.committed(partitions, timeout=COMMITTED_TIMEOUT_S)
        errors = [each.error for each in places if each.error is not None]
    except KafkaException as error:
        errors = [error.args[0]]
    if errors:
        # librdkafka tries on where the right is missing, and says only that its time was up.
        raise WorkerError(f"what was replayed already is not known, may the user read the group? {errors[0].str()}")
    # Negative where nothing was replayed yet: librdkafka's word for the beginning of a partition.
    return {each.partition: each.offset if each.offset >= 0 else confluent_kafka.OFFSET_BEGINNING for each in places}


def _commit(reader: confluent_kafka.Consumer, letters: Sequence[Message]) -> None:
    following = {letter.partition() or 0: (letter.offset() or 0) + 1 for letter in letters}
    topic = letters[0].topic() or ""
    try:
        reader.commit(
            offsets=[TopicPartition(topic, number, offset) for number, offset in following.items()], asynchronous=False
        )
    except KafkaException as error:
        raise WorkerError(
            f"{len(letters)} letters were sent and could not be committed, the next replay sends them again: "
            f"{error.args[0].str()}"
        ) from None


def _origin(letter: Message) -> tuple[str, int] | None:
    """The topic and the partition that a letter came from, -1 for any; None when it does not say."""
    story = dict(headers_of(letter))
    topic, partition = story.get(ORIGINAL_TOPIC), story.get(ORIGINAL_PARTITION)
    if topic is None:
        return None
    return topic.decode(), int(partition) if partition is not None else -1


class Sender:
    """Sends letters and waits until the brokers have them."""

    def __init__(self, config: ClientConfig, shutdown: Shutdown) -> None:
        self._events = Events()
        self._client = make(confluent_kafka.Producer, config, {**self._events.callbacks(), **ANY_SIZE})
        self._shutdown = shutdown
        self._errors: list[str] = []

    def send(self, letters: Sequence[Message]) -> int:
        """Returns how many were sent, which is all; raises WorkerError when one was not acknowledged."""
        self._errors.clear()
        for letter in letters:
            self._send(letter)
        while len(self._client) and self._shutdown.remaining_s():
            self._client.poll(0.1)
            self._events.check()
        unsent = len(self._client)
        if unsent or self._errors:
            reason = self._errors[0] if self._errors else "stopped meanwhile"
            raise WorkerError(f"{unsent + len(self._errors)} of {len(letters)} letters were not acknowledged: {reason}")
        return len(letters)

    def close(self) -> None:
        self._client.purge()
        bounded(self._client.close, CLOSE_TIMEOUT_S)

    def _send(self, letter: Message) -> None:
        topic, partition = _origin(letter) or ("", -1)
        try:
            # With the time of now: one of long ago could be past what the topic keeps.
            self._client.produce(
                topic,
                letter.value(),
                letter.key(),
                partition=partition,
                headers=list(own_headers(letter)),
                on_delivery=self._on_delivery,
            )
        except (KafkaException, BufferError) as error:
            raise WorkerError(f"not taken for {topic}: {error}") from None

    def _on_delivery(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._errors.append(error.str())
