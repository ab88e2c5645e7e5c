"""Sends dead letters back to where they came from: those that are there when it begins, and that no replay has sent.

At least once, as every consumer: a dead letter is committed when the brokers have acknowledged its replay. What the
handler rejects again while this runs is a dead letter for the next replay, so it ends.

Whoever may write to the dead-letter topic may write any origin into a header. So dead letters go only to the topics
whose dead-letter topic it is: TOPIC for TOPIC.dlq, or those that the user names. A dead letter of another topic is not
sent, and neither are those behind it in its partition; none of them is committed. So nothing is lost, and the order
stays, whether the user then allows its topic or passes it over.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from workers.config import ClientConfig
from workers.deadletters.headers import ORIGINAL_PARTITION, ORIGINAL_TOPIC, SUFFIX, own_headers
from workers.deadletters.writer import ANY_SIZE
from workers.errors import ConfigError, WorkerError
from workers.kafka.client import ClientState, create_client, poll_producer, wait_for_topics
from workers.kafka.messages import headers_of, is_topic_name
from workers.kafka.reader import PROPERTIES, read_to_end
from workers.lifecycle import Shutdown, call_with_timeout

log = logging.getLogger(__name__)
CLOSE_TIMEOUT_S = 2.0
COMMITTED_TIMEOUT_S = 10.0
MAX_PARTITION = 2**31 - 1


class Origin(NamedTuple):
    """Where a dead letter came from; the partition is -1 where it does not say."""

    topic: str
    partition: int


@dataclass(slots=True)
class Replayed:
    """What became of the dead letters so far."""

    sent: int = 0
    # Passed over: they do not say where they came from.
    without_origin: int = 0
    # Passed over: they came from topics that are not allowed, and this was asked for.
    skipped: int = 0
    # The topic of the first dead letter, in each partition, that came from one that is not allowed.
    refused: dict[int, str] = field(default_factory=dict)

    @property
    def committed(self) -> int:
        return self.sent + self.without_origin + self.skipped


def allowed_topics(topic: str, to_topics: Sequence[str]) -> frozenset[str]:
    """The topics that dead letters of the dead-letter topic `topic` may be sent to: `to_topics`, or by its name.

    Raises ConfigError when there is neither, or when one of them is `topic` itself.
    """
    if topic in to_topics:
        raise ConfigError(
            f"--to-topic {topic}: this is the dead-letter topic itself; name where its dead letters came from"
        )
    if to_topics:
        return frozenset(to_topics)
    original = topic.removesuffix(SUFFIX)
    if original in ("", topic):
        raise ConfigError(
            f"--topic {topic}: the name is not that of a topic with {SUFFIX} behind it; name the topics that its "
            "dead letters may be sent back to with --to-topic"
        )
    return frozenset([original])


def replay(
    config: ClientConfig,
    producer_config: ClientConfig,
    topic: str,
    shutdown: Shutdown,
    *,
    timeout_s: float | None,
    limit: int | None,
    allowed: frozenset[str],
    skip_others: bool = False,
) -> Replayed:
    """Replays the dead letters of `topic`, `limit` at the most, and commits them to the group of `config`.

    With `skip_others` dead letters of topics that are not `allowed` are passed over, otherwise the result has them as
    refused. Raises WorkerError when a dead letter cannot be sent, which then is the first of its partition in the next
    replay, and as `read_to_end` does.
    """
    client_state = ClientState()
    reader = create_client(confluent_kafka.Consumer, config, {**client_state.callbacks(), **PROPERTIES})
    sender = Sender(producer_config, shutdown)
    done = Replayed()
    try:
        found = wait_for_topics(reader, [topic], config, client_state, timeout_s=timeout_s, shutdown=shutdown)
        count = found.get(topic, 0)
        starts = _committed(reader, topic, count, shutdown)
        for dead_letters in read_to_end(reader, client_state, topic, starts, shutdown, timeout_s):
            replay_batch(reader, sender, dead_letters, done, allowed=allowed, skip_others=skip_others, limit=limit)
            if limit is not None and done.committed >= limit:
                break
    finally:
        sender.close()
        call_with_timeout(reader.close, CLOSE_TIMEOUT_S)
        log.info("%d dead letters replayed from %s", done.sent, topic)
    return done


def replay_batch(
    reader: confluent_kafka.Consumer,
    sender: "Sender",
    dead_letters: Sequence[Message],
    done: Replayed,
    *,
    allowed: frozenset[str],
    skip_others: bool,
    limit: int | None,
) -> None:
    """Sends dead letters, and commits those of each partition that come before one that is refused or not acknowledged.

    `done` counts up to `limit`. Raises WorkerError when a dead letter was not acknowledged, or a commit failed.
    """
    chosen: list[tuple[Message, Origin | None]] = []
    skipped: set[int] = set()
    for dead_letter in dead_letters:
        if limit is not None and done.committed + len(chosen) >= limit:
            break
        partition = dead_letter.partition() or 0
        if partition in done.refused:
            continue
        origin = _origin(dead_letter)
        if origin is not None and origin.topic not in allowed:
            if not skip_others:
                done.refused[partition] = origin.topic
                continue
            skipped.add(len(chosen))
            origin = None
        chosen.append((dead_letter, origin))
    outcomes = sender.send(chosen)
    unsent: set[int | None] = set()
    over = []
    for number, ((dead_letter, origin), outcome) in enumerate(zip(chosen, outcomes, strict=True)):
        if outcome is not None:
            unsent.add(dead_letter.partition())
        elif dead_letter.partition() not in unsent:
            done.sent += origin is not None
            done.skipped += number in skipped
            done.without_origin += origin is None and number not in skipped
            over.append(dead_letter)
    if over:
        commit(reader, over)
    reasons = [outcome for outcome in outcomes if outcome is not None]
    if reasons:
        sender.check()
        raise WorkerError(f"{len(reasons)} of {len(chosen)} dead letters were not acknowledged: {reasons[0]}")


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


def commit(reader: confluent_kafka.Consumer, dead_letters: Sequence[Message]) -> None:
    """Commits dead letters of one topic that were sent; raises WorkerError when that fails in one or all."""
    following = {dead_letter.partition() or 0: (dead_letter.offset() or 0) + 1 for dead_letter in dead_letters}
    topic = dead_letters[0].topic() or ""
    offsets = [TopicPartition(topic, number, offset) for number, offset in following.items()]
    try:
        answers = reader.commit(offsets=offsets, asynchronous=False)
        errors = {each.partition: each.error for each in answers if each.error is not None}
    except KafkaException as error:
        errors = dict.fromkeys(following, error.args[0])
    if errors:
        again = sum(dead_letter.partition() in errors for dead_letter in dead_letters)
        names = ", ".join(map(str, sorted(errors)))
        raise WorkerError(
            f"{again} dead letters were sent and could not be committed in partition {names}, the next replay sends "
            f"them again: {next(iter(errors.values())).str()}"
        )


def _origin(dead_letter: Message) -> Origin | None:
    """The topic and the partition that a dead letter came from; None when it does not say, or not what can be."""
    story = dict(headers_of(dead_letter))
    topic, partition = story.get(ORIGINAL_TOPIC), story.get(ORIGINAL_PARTITION)
    if topic is None:
        return None
    try:
        name, number = topic.decode(), int(partition) if partition is not None else -1
    except ValueError:  # UnicodeDecodeError is one
        return None
    return Origin(name, number) if is_topic_name(name) and -1 <= number <= MAX_PARTITION else None


class Sender:
    """Sends dead letters and waits until the brokers have them."""

    def __init__(self, config: ClientConfig, shutdown: Shutdown) -> None:
        self._client_state = ClientState()
        self._client = create_client(confluent_kafka.Producer, config, {**self._client_state.callbacks(), **ANY_SIZE})
        self._shutdown = shutdown

    def send(self, dead_letters: Sequence[tuple[Message, Origin | None]]) -> list[str | None]:
        """Why each was not acknowledged; None where it was, or where it has no origin and is passed over."""
        outcomes: list[str | None] = ["no answer before the end"] * len(dead_letters)
        for number, (dead_letter, origin) in enumerate(dead_letters):
            if origin is None:
                outcomes[number] = None
            else:
                self._send(dead_letter, origin, partial(_note, outcomes, number))
        while len(self._client) and self._going_on():
            poll_producer(self._client, self._client_state, 0.1)
        return outcomes

    def _going_on(self) -> bool:
        return self._shutdown.remaining_s() > 0 and self._client_state.fatal is None

    def check(self) -> None:
        """Raises WorkerError when the client cannot go on, which says more than that dead letters have no answer."""
        self._client_state.check()

    def close(self) -> None:
        self._client.purge()
        call_with_timeout(self._client.close, CLOSE_TIMEOUT_S)

    def _send(
        self, dead_letter: Message, origin: Origin, on_delivery: Callable[[KafkaError | None, Message], None]
    ) -> None:
        topic, partition = origin
        while True:
            try:
                # With the time of now: one of long ago could be past what the topic keeps.
                self._client.produce(
                    topic,
                    dead_letter.value(),
                    dead_letter.key(),
                    partition=partition,
                    headers=list(own_headers(dead_letter)),
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
