"""Which dead letters are sent back, and which are committed or recorded: with a client and a sender that only take
notes.
"""

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import cast

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from workers.deadletters.headers import (
    ERROR_CLASS,
    ORIGINAL_PARTITION,
    ORIGINAL_TOPIC,
    TREATED,
    invalid_line_headers,
)
from workers.deadletters.replay import Replayed, Replayer, Rules, allowed_topics, commit
from workers.deadletters.sender import Sender
from workers.deadletters.stored import EVERYTHING, Origin, Place, Selection
from workers.deadletters.treated import Record, State, Treated, record_of
from workers.errors import ConfigError, WorkerError
from workers.lifecycle import Shutdown

LETTERS = "orders.dlq"


def letter(offset: int, topic: str | None = "orders", partition: int = 0, error: str = "ValueError") -> Message:
    headers: list[tuple[str, str | bytes | None]] = [(ORIGINAL_PARTITION, b"0"), (ERROR_CLASS, error.encode())]
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


class Notes:
    """A sender whose letters and records are acknowledged at once, except those that are to fail."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes | None]] = []
        self.records: list[tuple[int, Record]] = []
        self.unsent: set[bytes | None] = set()
        self.refuses_records = False

    def send(self, letters: Sequence[tuple[Message, Origin | None]]) -> list[str | None]:
        outcomes = [
            "away" if origin is not None and message.value() in self.unsent else None for message, origin in letters
        ]
        self.sent += [
            (origin.topic, message.value())
            for (message, origin), outcome in zip(letters, outcomes, strict=True)
            if origin is not None and outcome is None
        ]
        return outcomes

    def record(self, topic: str, records: Sequence[tuple[int, Record]]) -> Mapping[int, str]:
        assert topic == LETTERS
        if self.refuses_records:
            return {partition: "no right" for partition, _ in records}
        self.records += records
        return {}

    def check(self) -> None:
        pass


class Scene:
    def __init__(
        self,
        *,
        to_topics: Sequence[str] = (),
        skip_others: bool = False,
        limit: int | None = None,
        selection: Selection = EVERYTHING,
        again: bool = False,
        dry_run: bool = False,
        treated: Treated | None = None,
        held: set[int] | None = None,
    ) -> None:
        self.reader = Reader()
        self.sender = Notes()
        self.done = Replayed()
        rules = Rules(
            topic=LETTERS,
            allowed=allowed_topics(LETTERS, to_topics),
            group_id="g",
            by="me",
            selection=selection,
            skip_others=skip_others,
            limit=limit,
            again=again,
            dry_run=dry_run,
        )
        self.replayer = Replayer(
            cast(confluent_kafka.Consumer, self.reader),
            None if dry_run else cast(Sender, self.sender),
            rules,
            treated or Treated("g", {}),
            held or set(),
            self.done,
            Shutdown(1),
        )

    def replay(self, *letters: Message) -> None:
        self.replayer.replay(letters)

    @property
    def records(self) -> list[tuple[int, State, tuple[tuple[int, int], ...], str]]:
        return [(partition, each.state, each.offsets, each.reason) for partition, each in self.sender.records]


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
    [(partition, state, offsets, reason)] = scene.records
    assert (partition, state, offsets) == (0, State.DISCARDED, ((1, 2),))
    assert "payments" in reason


@pytest.mark.parametrize("name", [None, "", "a topic", "..", "x" * 250])
def test_a_letter_that_names_no_topic_is_passed_over_and_counted(name: str | None) -> None:
    scene = Scene()
    scene.replay(letter(0, name), letter(1))

    assert scene.sender.sent == [("orders", b"1")]
    assert scene.reader.committed == {0: 2}
    assert (scene.done.sent, scene.done.without_origin) == (1, 1)
    assert [record[:3] for record in scene.records] == [(0, State.DISCARDED, ((0, 1),))]


def test_a_line_that_could_not_be_produced_waits_and_those_behind_it_are_sent() -> None:
    scene = Scene()
    line = Message(topic=LETTERS, partition=0, offset=1, value=b"no JSON", headers=invalid_line_headers("no JSON"))
    scene.replay(letter(0), line, letter(2))

    assert scene.sender.sent == [("orders", b"0"), ("orders", b"2")]
    assert scene.reader.committed == {0: 1}
    assert (scene.done.sent, scene.done.without_origin, scene.done.invalid_lines) == (2, 0, 1)
    assert [record[:3] for record in scene.records] == [(0, State.REPLAYED, ((2, 3),))]


def test_a_limit_counts_what_was_sent_or_passed_over_and_commits_no_more() -> None:
    scene = Scene(limit=2)
    scene.replay(letter(0, "payments", partition=1), letter(0), letter(1, None), letter(2))

    assert scene.sender.sent == [("orders", b"0")]
    assert scene.reader.committed == {0: 2}


ONLY_KEY_ERRORS = Selection(errors=frozenset({"KeyError"}))


def test_a_letter_that_is_sent_before_one_that_waits_is_recorded_and_the_offset_stays() -> None:
    scene = Scene(selection=ONLY_KEY_ERRORS)
    scene.replay(letter(0, error="KeyError"), letter(1), letter(2, error="KeyError"))
    scene.replay(letter(3, error="KeyError"), letter(0, partition=1, error="KeyError"))

    assert [value for _, value in scene.sender.sent] == [b"0", b"2", b"3", b"0"]
    assert scene.reader.committed == {0: 1, 1: 1}
    assert scene.records == [(0, State.REPLAYED, ((2, 3),), ""), (0, State.REPLAYED, ((3, 4),), "")]


def test_letters_behind_a_start_that_leaves_others_out_are_recorded() -> None:
    scene = Scene(selection=Selection(letters=frozenset({Place(0, 7)})), held={0})
    scene.replay(letter(7))

    assert scene.reader.committed == {}
    assert scene.records == [(0, State.REPLAYED, ((7, 8),), "")]


def treated(*records: tuple[State, int, int], committed: int = 0) -> Treated:
    found = Treated("g", {0: committed})
    for state, first, end in records:
        found.add(0, Record(state, ((first, end),), "g", "", "", ""))
    return found


def test_what_was_treated_is_not_sent_again_and_the_offset_passes_it() -> None:
    scene = Scene(treated=treated((State.REPLAYED, 1, 2), (State.DISCARDED, 2, 3)))
    scene.replay(letter(0), letter(1), letter(2), record(3, State.REPLAYED, 1), record(4, State.DISCARDED, 2))

    assert scene.sender.sent == [("orders", b"0")]
    assert scene.done.sent == 1
    assert scene.reader.committed == {0: 5}
    assert scene.records == []


def test_what_was_treated_is_sent_again_when_asked_and_a_discard_ends_with_that() -> None:
    scene = Scene(treated=treated((State.REPLAYED, 2, 3), (State.DISCARDED, 1, 2), committed=2), again=True)
    scene.replay(letter(0), letter(1), letter(2))

    assert [value for _, value in scene.sender.sent] == [b"0", b"1", b"2"]
    assert scene.records == [(0, State.REPLAYED, ((1, 2),), "")]
    assert scene.reader.committed == {0: 3}


def test_an_offset_is_never_committed_backwards() -> None:
    scene = Scene(treated=treated(committed=5), again=True)
    scene.replay(letter(0), letter(1))

    assert scene.done.sent == 2
    assert scene.reader.committed == {}


def test_a_letter_whose_record_is_refused_is_said_to_be_sent_again() -> None:
    scene = Scene(selection=ONLY_KEY_ERRORS)
    scene.sender.refuses_records = True
    with pytest.raises(WorkerError, match=r"^1 dead letters were sent, and that could not be recorded.*no right"):
        scene.replay(letter(0), letter(1, error="KeyError"))

    assert scene.done.sent == 0


def test_a_letter_that_is_passed_over_and_cannot_be_recorded_is_not_committed() -> None:
    scene = Scene()
    scene.sender.refuses_records = True
    with pytest.raises(WorkerError, match=r"^1 dead letters were sent, and that could not be recorded"):
        scene.replay(letter(0), letter(1, None))

    assert scene.reader.committed == {}


def test_where_only_what_is_passed_over_cannot_be_recorded_nothing_is_said_to_be_sent() -> None:
    scene = Scene()
    scene.sender.refuses_records = True
    with pytest.raises(WorkerError, match=r"^what is passed over could not be recorded in orders.dlq, so it waits"):
        scene.replay(letter(0, None))


def test_a_letter_that_is_not_acknowledged_is_not_recorded_and_neither_are_those_behind_it() -> None:
    scene = Scene(held={0})
    scene.sender.unsent = {b"1"}
    with pytest.raises(WorkerError, match="1 of 3 dead letters were not acknowledged: away"):
        scene.replay(letter(0), letter(1), letter(2))

    assert scene.records == [(0, State.REPLAYED, ((0, 1),), "")]


def test_a_dry_run_counts_and_changes_nothing() -> None:
    scene = Scene(dry_run=True, selection=ONLY_KEY_ERRORS)
    scene.replay(letter(0), letter(1, error="KeyError"), letter(2, "payments", error="KeyError"))

    assert (scene.done.sent, scene.done.by_topic) == (1, {"orders": 1})
    assert scene.done.refused == {0: "payments"}
    assert (scene.sender.sent, scene.records, scene.reader.committed) == ([], [], {})


def record(offset: int, state: State = State.DISCARDED, *about: int, value: bytes | None = None) -> Message:
    told = Record(state, tuple((each, each + 1) for each in about), "g", "now", "me", "because")
    return Message(
        topic=LETTERS, partition=0, offset=offset, headers=told.headers, value=told.value if value is None else value
    )


def test_a_record_is_read_as_it_was_written() -> None:
    found = record_of(record(9, State.DISCARDED, 2, 5))

    assert found == Record(State.DISCARDED, ((2, 3), (5, 6)), "g", "now", "me", "because")


@pytest.mark.parametrize(
    "message",
    [
        letter(9),
        record(9, State.WAITING, 2),
        record(9, State.DISCARDED, 9),
        record(9, State.DISCARDED, -1),
        record(9, value=b"{"),
        record(9, value=b"[]"),
        record(9, value=b'{"offsets": [[3, 2]], "group": "", "at": "", "by": "", "reason": ""}'),
        record(9, value=b'{"offsets": [[1, 2]]}'),
        record(9, value=b'{"offsets": [[1e999, 1]], "group": "", "at": "", "by": "", "reason": ""}'),
        record(9, value=b'{"offsets": [[NaN, 1]], "group": "", "at": "", "by": "", "reason": ""}'),
        record(9, value=b"[" * 100_000),
        Message(topic=LETTERS, offset=9, headers=[(TREATED, b"discarded"), (ORIGINAL_TOPIC, b"orders")]),
    ],
)
def test_what_is_no_whole_record_hides_no_dead_letter(message: Message) -> None:
    assert record_of(message) is None


def test_a_replay_counts_for_its_group_and_a_discard_for_every_group() -> None:
    found = Treated("another", {})
    found.add(0, Record(State.REPLAYED, ((0, 1),), "g", "", "", ""))
    found.add(0, Record(State.DISCARDED, ((1, 2),), "g", "", "", ""))

    assert [found.state_of(Place(0, offset)) for offset in range(3)] == ["waiting", "discarded", "waiting"]
    assert found.record_about(Place(0, 0)) is None


def test_a_commit_that_fails_for_one_partition_is_an_error_that_names_it() -> None:
    reader = Reader({1: KafkaError.OFFSET_METADATA_TOO_LARGE})
    with pytest.raises(WorkerError, match=r"partition 1.* the next replay sends them again: ") as failed:
        commit(cast(confluent_kafka.Consumer, reader), [letter(0), letter(4, partition=1)], Shutdown(1))

    assert "partition 0" not in str(failed.value)
    assert reader.committed == {0: 1}


def test_a_commit_that_fails_as_a_whole_is_an_error() -> None:
    class Away(Reader):
        def commit(self, **_: object) -> list[TopicPartition]:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    with pytest.raises(WorkerError, match="the next replay sends them again"):
        commit(cast(confluent_kafka.Consumer, Away()), [letter(0)], Shutdown(1))


def test_a_stop_ends_a_commit_that_brokers_do_not_answer(signal_handlers: None) -> None:
    """Neither the first signal nor the second ended it: the main thread waited for the brokers."""
    shutdown, gate = Shutdown(0.05), threading.Event()
    shutdown.install()

    class Silent(Reader):
        def commit(self, **_: object) -> list[TopicPartition]:
            os.kill(os.getpid(), signal.SIGTERM)
            gate.wait(5)
            return []

    try:
        with pytest.raises(WorkerError, match=r"^1 dead letters .* may send them again: the brokers did not answer"):
            commit(cast(confluent_kafka.Consumer, Silent()), [letter(0)], shutdown)
    finally:
        gate.set()


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
