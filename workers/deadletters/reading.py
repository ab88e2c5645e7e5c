"""Reads a dead-letter topic, and tells which of its dead letters wait and which were replayed or discarded.

It reads twice: what became of a dead letter is in a record behind it.
"""

import heapq
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import confluent_kafka
from confluent_kafka import KafkaException, Message, TopicPartition

from workers.config import ClientConfig
from workers.deadletters.headers import ORIGINAL_TOPIC, SUFFIX
from workers.deadletters.stored import Place, Selection, StoredDeadLetter
from workers.deadletters.treated import State, Treated, record_of
from workers.errors import ConfigError, WorkerError
from workers.kafka.client import TOPIC_GRACE_S, ClientState, create_client, wait_for_topics
from workers.kafka.reader import PROPERTIES, read_to_end, watermarks
from workers.lifecycle import Shutdown, call_with_timeout

CLOSE_TIMEOUT_S = 2.0
COMMITTED_TIMEOUT_S = 10.0
ALL_STATES = frozenset(State)


class DeadLetterTopic:
    """A dead-letter topic from where its reader begins to where it ended when it was opened."""

    def __init__(
        self,
        client: confluent_kafka.Consumer,
        client_state: ClientState,
        topic: str,
        ranges: dict[int, tuple[int, int]],
        treated: Treated,
        shutdown: Shutdown,
        timeout_s: float,
    ) -> None:
        self.client = client
        self.topic = topic
        self.treated = treated
        self.ranges = ranges
        self._client_state = client_state
        self._shutdown = shutdown
        self._timeout_s = timeout_s

    def starts(self, selection: Selection, *, treated: bool) -> dict[int, int]:
        """Where to begin in each partition: at the first that can match, and that may wait unless `treated` are wanted
        too. Of one that is named it is told whether it waits.

        Raises ConfigError for a partition that is not there.
        """
        absent = selection.partitions.union(place.partition for place in selection.letters).difference(self.ranges)
        if absent:
            raise ConfigError(f"{self.topic} has no partition {min(absent)}; it has {len(self.ranges)}, counted from 0")
        lowest = {} if treated or selection.letters else self.treated.committed
        return {
            partition: max(low, selection.first_offset(partition), lowest.get(partition, 0))
            for partition, (low, _) in self.ranges.items()
            if selection.includes_partition(partition)
        }

    def partitions_begun_later(self, starts: dict[int, int]) -> set[int]:
        """The partitions of which `starts` leaves out dead letters that may wait."""
        return {
            partition
            for partition, start in starts.items()
            if start > max(self.ranges[partition][0], self.treated.first_waiting(partition))
        }

    def read(self, starts: dict[int, int]) -> Iterator[list[Message]]:
        """Batches of messages, dead letters and records; raises as `read_to_end`."""
        ends = {partition: end for partition, (_, end) in self.ranges.items()}
        return read_to_end(self.client, self._client_state, self.topic, starts, self._shutdown, self._timeout_s, ends)

    def survey(self, starts: dict[int, int], selection: Selection) -> "Survey":
        """Read for the first time: take note of the records, and of the dead letters that `selection` names."""
        survey = Survey(self.topic)
        for messages in self.read(starts):
            for message in messages:
                record = record_of(message)
                if record is not None:
                    self.treated.add(message.partition() or 0, record)
                    continue
                survey.messages += 1
                letter = StoredDeadLetter(message)
                survey.with_story += letter.has_story
                if letter.place in selection.letters:
                    survey.named.add(letter.place)
        return survey

    def find(self, selection: Selection, states: frozenset[State]) -> "Iterator[Found]":
        """Read twice: the dead letters in `states` that `selection` matches.

        Raises ConfigError for a topic of other messages, and for a named dead letter that is not there; and as `starts`
        and `read`.
        """
        starts = self.starts(selection, treated=states != {State.WAITING})
        survey = self.survey(starts, selection)
        survey.check()
        self.check_named(selection, survey, treated=True)
        for batch in self.letters(starts, selection, states):
            yield from batch

    def letters(
        self, starts: dict[int, int], selection: Selection, states: frozenset[State]
    ) -> "Iterator[list[Found]]":
        """Read for the second time: batches of the dead letters that `selection` matches, with their states."""
        named = set(selection.letters)
        for messages in self.read(starts):
            batch = []
            for message in messages:
                if record_of(message) is None:
                    letter = StoredDeadLetter(message)
                    named.discard(letter.place)
                    state = self.treated.state_of(letter.place)
                    if state in states and selection.matches(letter):
                        batch.append(Found(letter, state))
            yield batch
            if selection.letters and not named:
                return

    def check_named(self, selection: Selection, survey: "Survey", *, treated: bool) -> None:
        """Raise ConfigError for a named dead letter that is not there, or that was treated, unless these are wanted."""
        for place in sorted(selection.letters):
            state = self.treated.state_of(place)
            low, end = self.ranges[place.partition]
            if place in survey.named:
                if state is not State.WAITING and not treated:
                    raise ConfigError(
                        f"--letter {place}: it was {state} already; look at it with `dead-letters show`, and send it "
                        "once more with `dead-letters replay --again`"
                    )
            elif not low <= place.offset < end:
                there = f"offsets {low} to {end - 1}" if end > low else "no message"
                raise ConfigError(f"--letter {place}: partition {place.partition} of {self.topic} has {there}")
            else:
                raise ConfigError(
                    f"--letter {place}: no dead letter of {self.topic} has this offset; `dead-letters list` shows "
                    "those that are there"
                )


class Found(NamedTuple):
    """A dead letter with its state."""

    letter: StoredDeadLetter
    state: State


def oldest(found: Iterable[Found], limit: int) -> tuple[list[Found], int]:
    """The `limit` oldest dead letters, the oldest first, and how many there are in all. Holds no more than these."""
    count = 0

    def counted() -> Iterator[Found]:
        nonlocal count
        for each in found:
            count += 1
            yield each

    rows = heapq.nsmallest(limit, counted(), key=lambda each: (each.letter.timestamp_ms, each.letter.place))
    return rows, count


class Survey:
    """The results of the first reading."""

    def __init__(self, topic: str) -> None:
        self.messages = 0
        self.with_story = 0
        self.named: set[Place] = set()
        self._topic = topic

    def check(self) -> None:
        """Raise ConfigError when this is a topic of other messages."""
        if self.messages and not self.with_story and not self._topic.endswith(SUFFIX):
            raise ConfigError(
                f"--topic {self._topic}: it is no dead-letter topic, as none of its messages has the header "
                f"{ORIGINAL_TOPIC}; name the topic that its dead letters go to, by default {self._topic}{SUFFIX}"
            )


@contextmanager
def open_topic(
    config: ClientConfig, topic: str, group_id: str, shutdown: Shutdown, timeout_s: float
) -> Iterator[DeadLetterTopic]:
    """The dead-letter topic as the group of `config`, which is `group_id`, sees it.

    Raises as `wait_for_topics`, and WorkerError when the committed offsets are not known, or are of another topic.
    """
    client_state = ClientState()
    client = create_client(confluent_kafka.Consumer, config, {**client_state.callbacks(), **PROPERTIES})
    try:
        found = wait_for_topics(
            client, [topic], config, client_state, timeout_s=timeout_s, shutdown=shutdown, grace_s=TOPIC_GRACE_S
        )
        committed = _committed(client, topic, found.get(topic, 0), shutdown)
        ranges = {number: watermarks(client, topic, number, shutdown) for number in range(found.get(topic, 0))}
        for number, offset in committed.items():
            if offset > ranges[number][1]:
                raise WorkerError(
                    f"group {group_id} has committed offset {offset} of {topic}[{number}], which ends at "
                    f"{ranges[number][1]}: the log was truncated, and what was replayed of it is "
                    f"not known; choose where replays begin with `kafka-workers offsets reset --group-id {group_id} "
                    f"--topic {topic} --to beginning`"
                )
        yield DeadLetterTopic(client, client_state, topic, ranges, Treated(group_id, committed), shutdown, timeout_s)
    finally:
        call_with_timeout(client.close, CLOSE_TIMEOUT_S)


def _committed(client: confluent_kafka.Consumer, topic: str, count: int, shutdown: Shutdown) -> dict[int, int]:
    """The committed offset of each partition that has one."""
    partitions = [TopicPartition(topic, number) for number in range(count)]
    try:
        places = client.committed(partitions, timeout=COMMITTED_TIMEOUT_S)
        errors = [each.error for each in places if each.error is not None]
    except KafkaException as error:
        errors = [error.args[0]]
    if errors and shutdown.requested:
        raise WorkerError("stopped before the earlier replays were known")
    if errors:
        # librdkafka goes on trying where the right is missing, and reports only a timeout.
        raise WorkerError(f"what was replayed already is not known, may the user read the group? {errors[0].str()}")
    return {each.partition: each.offset for each in places if each.offset >= 0}
