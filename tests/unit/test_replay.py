"""Which dead letters are sent back, and which are committed: with a client and a sender that only take notes."""

from collections.abc import Sequence
from typing import cast

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from workers.deadletters.headers import ORIGINAL_PARTITION, ORIGINAL_TOPIC
from workers.deadletters.replay import Origin, Replayed, Sender, allowed_topics, commit, replay_batch
from workers.errors import ConfigError, WorkerError

LETTERS = "orders.dlq"


def letter(offset: int, topic: str | None = "orders", partition: int = 0) -> Message:
    headers: list[tuple[str, str | bytes | None]] = [(ORIGINAL_PARTITION, b"0")]
    if topic is not None:
        headers.append((ORIGINAL_TOPIC, topic.encode()))
    return Message(topic=LETTERS, partition=partition, offset=offset, value=b"%d" % offset, headers=headers)


class Reader:
    """Takes commits, except those of partitions with an error."""

    def __init__(self, errors: dict[int, int] | None = None) -> None:
        self.errors = errors or {}
        self.committed: dict[int, int] = {}

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        assert not asynchronous
        answers = []
        for each in offsets:
            error = KafkaError(self.errors[each.partition]) if each.partition in self.errors else None
            if error is None:
                self.committed[each.partition] = each.offset
            answers.append(Answer(each.partition, error))
        return cast(list[TopicPartition], answers)


class Answer:
    """A partition of a commit's answer; the error of the client's own class cannot be set."""

    def __init__(self, partition: int, error: KafkaError | None) -> None:
        self.partition = partition
        self.error = error


class TakesAll:
    """A sender whose letters are acknowledged at once."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes | None]] = []

    def send(self, letters: Sequence[tuple[Message, Origin | None]]) -> list[str | None]:
        self.sent += [(origin.topic, message.value()) for message, origin in letters if origin is not None]
        return [None] * len(letters)

    def check(self) -> None:
        pass


class Scene:
    def __init__(self, *, to_topics: Sequence[str] = (), skip_others: bool = False) -> None:
        self.reader = Reader()
        self.sender = TakesAll()
        self.done = Replayed()
        self.allowed = allowed_topics(LETTERS, to_topics)
        self.skip_others = skip_others

    def replay(self, *letters: Message, limit: int | None = None) -> None:
        replay_batch(
            cast(confluent_kafka.Consumer, self.reader),
            cast(Sender, self.sender),
            letters,
            self.done,
            allowed=self.allowed,
            skip_others=self.skip_others,
            limit=limit,
        )


def test_a_letter_of_another_topic_and_those_behind_it_are_neither_sent_nor_committed() -> None:
    scene = Scene()
    scene.replay(letter(0), letter(1, "payments"), letter(2), letter(0, partition=1))
    scene.replay(letter(3), letter(1, partition=1))

    assert scene.sender.sent == [("orders", b"0"), ("orders", b"0"), ("orders", b"1")]
    assert scene.reader.committed == {0: 1, 1: 2}
    assert scene.done.sent == 3
    assert scene.done.refused == {0: "payments"}


def test_a_letter_of_a_topic_that_is_named_is_sent_there() -> None:
    scene = Scene(to_topics=["orders", "payments"])
    scene.replay(letter(0), letter(1, "payments"))

    assert scene.sender.sent == [("orders", b"0"), ("payments", b"1")]
    assert scene.reader.committed == {0: 2}
    assert not scene.done.refused


def test_letters_of_other_topics_are_passed_over_and_counted_when_asked() -> None:
    scene = Scene(skip_others=True)
    scene.replay(letter(0), letter(1, "payments"), letter(2))

    assert scene.sender.sent == [("orders", b"0"), ("orders", b"2")]
    assert scene.reader.committed == {0: 3}
    assert (scene.done.sent, scene.done.skipped) == (2, 1)


@pytest.mark.parametrize("name", [None, "", "a topic", "..", "x" * 250])
def test_a_letter_that_names_no_topic_is_passed_over_and_counted(name: str | None) -> None:
    scene = Scene()
    scene.replay(letter(0, name), letter(1))

    assert scene.sender.sent == [("orders", b"1")]
    assert scene.reader.committed == {0: 2}
    assert (scene.done.sent, scene.done.without_origin) == (1, 1)


def test_a_limit_counts_what_was_sent_or_passed_over_and_commits_no_more() -> None:
    scene = Scene()
    scene.replay(letter(0, "payments", partition=1), letter(0), letter(1, None), letter(2), limit=2)

    assert scene.sender.sent == [("orders", b"0")]
    assert scene.reader.committed == {0: 2}


def test_a_commit_that_fails_for_one_partition_is_an_error_that_names_it() -> None:
    reader = Reader({1: KafkaError.OFFSET_METADATA_TOO_LARGE})
    with pytest.raises(WorkerError, match=r"partition 1.* the next replay sends them again: ") as failed:
        commit(cast(confluent_kafka.Consumer, reader), [letter(0), letter(4, partition=1)])

    assert "partition 0" not in str(failed.value)
    assert reader.committed == {0: 1}


def test_a_commit_that_fails_as_a_whole_is_an_error() -> None:
    class Away(Reader):
        def commit(self, **_: object) -> list[TopicPartition]:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    with pytest.raises(WorkerError, match="the next replay sends them again"):
        commit(cast(confluent_kafka.Consumer, Away()), [letter(0)])


def test_the_letters_of_a_dead_letter_topic_go_to_the_topic_of_its_name() -> None:
    assert allowed_topics("orders.dlq", []) == {"orders"}
    assert allowed_topics("a.dlq.dlq", []) == {"a.dlq"}
    assert allowed_topics("letters", ["orders", "payments"]) == {"orders", "payments"}


@pytest.mark.parametrize(
    ("topic", "to_topics", "says"),
    [("letters", [], "--to-topic"), (".dlq", [], "--to-topic"), ("letters", ["letters"], "--to-topic letters")],
)
def test_a_dead_letter_topic_that_says_no_topic_needs_one(topic: str, to_topics: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        allowed_topics(topic, to_topics)
