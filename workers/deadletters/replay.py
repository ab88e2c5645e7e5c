"""Sends dead letters back to where they came from: those that are there when it begins, and that no replay has sent.

At least once, as every consumer: a letter is committed when the brokers have acknowledged its replay. What the handler
rejects again while this runs is a letter for the next replay, so it ends.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from workers.config import ClientConfig
from workers.deadletters.headers import ORIGINAL_PARTITION, ORIGINAL_TOPIC, own_headers
from workers.deadletters.writer import ANY_SIZE
from workers.errors import WorkerError
from workers.kafka.client import ClientState, create_client, poll_producer, wait_for_topics
from workers.kafka.messages import headers_of
from workers.kafka.reader import PROPERTIES, read_to_end
from workers.lifecycle import Shutdown, call_with_timeout

log = logging.getLogger(__name__)
CLOSE_TIMEOUT_S = 2.0
COMMITTED_TIMEOUT_S = 10.0
MAX_PARTITION = 2**31 - 1


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

    Raises WorkerError when one cannot be sent, which then is the first of its partition in the next replay, and as
    `read_to_end` does.
    """
    client_state = ClientState()
    reader = create_client(confluent_kafka.Consumer, config, {**client_state.callbacks(), **PROPERTIES})
    sender = Sender(producer_config, shutdown)
    done = Replayed()
    try:
        found = wait_for_topics(reader, [topic], config, client_state, timeout_s=timeout_s, shutdown=shutdown)
        count = found.get(topic, 0)
        starts = _committed(reader, topic, count, shutdown)
        for letters in read_to_end(reader, client_state, topic, starts, shutdown, timeout_s):
            chosen = letters if limit is None else letters[: limit - done.sent - done.without_origin]
            if chosen:
                _replay(reader, sender, chosen, done)
            if limit is not None and done.sent + done.without_origin >= limit:
                break
    finally:
        sender.close()
        call_with_timeout(reader.close, CLOSE_TIMEOUT_S)
        log.info("%d dead letters replayed from %s", done.sent, topic)
    return done


def _replay(reader: confluent_kafka.Consumer, sender: "Sender", letters: Sequence[Message], done: Replayed) -> None:
    """Sends some letters, and commits those of each partition that come before one that was not acknowledged."""
    outcomes = sender.send(letters)
    unsent: set[int | None] = set()
    over = []
    for letter, outcome in zip(letters, outcomes, strict=True):
        if outcome is not None:
            unsent.add(letter.partition())
        elif letter.partition() not in unsent:
            done.sent += _origin(letter) is not None
            done.without_origin += _origin(letter) is None
            over.append(letter)
    if over:
        _commit(reader, over)
    reasons = [outcome for outcome in outcomes if outcome is not None]
    if reasons:
        sender.check()
        raise WorkerError(f"{len(reasons)} of {len(letters)} letters were not acknowledged: {reasons[0]}")


def _committed(reader: confluent_kafka.Consumer, topic: str, count: int, shutdown: Shutdown) -> dict[int, int]:
    partitions = [TopicPartition(topic, number) for number in range(count)]
    try:
        places = reader.committed(partitions, timeout=COMMITTED_TIMEOUT_S)
        errors = [each.error for each in places if each.error is not None]
    except KafkaException as error:
        errors = [error.args[0]]
    if errors and shutdown.requested:
        raise WorkerError("stopped before it was known what was replayed already")
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
    try:
        name, number = topic.decode(), int(partition) if partition is not None else -1
    except ValueError:  # UnicodeDecodeError is one
        return None
    return (name, number) if "\0" not in name and -1 <= number <= MAX_PARTITION else None


class Sender:
    """Sends letters and waits until the brokers have them."""

    def __init__(self, config: ClientConfig, shutdown: Shutdown) -> None:
        self._client_state = ClientState()
        self._client = create_client(confluent_kafka.Producer, config, {**self._client_state.callbacks(), **ANY_SIZE})
        self._shutdown = shutdown

    def send(self, letters: Sequence[Message]) -> list[str | None]:
        """Why each letter was not acknowledged, None where it was, or says no origin and was passed over."""
        outcomes: list[str | None] = ["no answer before the end"] * len(letters)
        for number, letter in enumerate(letters):
            self._send(letter, partial(_note, outcomes, number))
        while len(self._client) and self._going_on():
            poll_producer(self._client, self._client_state, 0.1)
        return outcomes

    def _going_on(self) -> bool:
        return self._shutdown.remaining_s() > 0 and self._client_state.fatal is None

    def check(self) -> None:
        """Raises WorkerError when the client cannot go on, which says more than that letters have no answer."""
        self._client_state.check()

    def close(self) -> None:
        self._client.purge()
        call_with_timeout(self._client.close, CLOSE_TIMEOUT_S)

    def _send(self, letter: Message, on_delivery: Callable[[KafkaError | None, Message], None]) -> None:
        origin = _origin(letter)
        if origin is None:
            on_delivery(None, letter)
            return
        topic, partition = origin
        while True:
            try:
                # With the time of now: one of long ago could be past what the topic keeps.
                self._client.produce(
                    topic,
                    letter.value(),
                    letter.key(),
                    partition=partition,
                    headers=list(own_headers(letter)),
                    on_delivery=on_delivery,
                )
            except KafkaException as error:
                on_delivery(error.args[0], Message(topic=topic))
            except BufferError:
                # The client's queue is full: what is in it has to be delivered first.
                if self._going_on():
                    poll_producer(self._client, self._client_state, 0.1)
                    continue
            return


def _note(outcomes: list[str | None], number: int, error: KafkaError | None, message: Message) -> None:
    outcomes[number] = f"{message.topic()}: {error.str()}" if error is not None else None
