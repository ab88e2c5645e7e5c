"""Answers of brokers about a group that a real cluster does not give on demand."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from workers.errors import WorkerError
from workers.kafka.group_offsets import Move, commit
from workers.kafka.groups import MOVES, offset_ranges, while_settling


def admin(error: int) -> Any:
    answer: Future[Any] = Future()
    answer.set_exception(KafkaException(KafkaError(error)))
    return SimpleNamespace(list_offsets=lambda *_, **__: {TopicPartition("t", 0): answer})


def test_the_end_of_a_partition_that_its_leader_does_not_know_is_asked_for_again() -> None:
    """Or else it would have no lag, and `offsets reset --to end` would commit 0: a leader that has just started may not
    know its partitions yet.
    """
    with pytest.raises(KafkaException, match=r"the leader of t\[0\] does not know it") as raised:
        offset_ranges(admin(KafkaError.UNKNOWN_TOPIC_OR_PART), [("t", 0)])
    assert raised.value.args[0].code() in MOVES


def test_the_end_of_a_partition_without_a_leader_is_not_known() -> None:
    """Or else it would have no lag just when brokers are down."""
    with pytest.raises(KafkaException):
        offset_ranges(admin(KafkaError.LEADER_NOT_AVAILABLE), [("t", 0)])


def test_the_end_of_a_partition_whose_leader_did_not_answer_is_not_known() -> None:
    """For librdkafka that is no error, but the offset -1001, which made the lag 0."""
    answer: Future[Any] = Future()
    answer.set_result(SimpleNamespace(offset=OFFSET_INVALID, timestamp=-1))
    brokers: Any = SimpleNamespace(list_offsets=lambda *_, **__: {TopicPartition("t", 0): answer})
    with pytest.raises(KafkaException) as raised:
        offset_ranges(brokers, [("t", 0)])
    assert raised.value.args[0].code() in MOVES


@pytest.mark.parametrize(
    "moving",
    [
        KafkaError.NOT_COORDINATOR,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError._TIMED_OUT,
    ],
)
def test_while_a_leader_moves_the_brokers_are_asked_again(moving: int) -> None:
    """The brokers answer so for a moment after each election, also one that only balances leaders; a busy one may be
    late.
    """
    answers = iter([moving, moving])

    def ask() -> str:
        for error in answers:
            raise KafkaException(KafkaError(error))
        return "found"

    assert while_settling(ask, "not found") == "found"


def test_a_request_that_is_not_answered_is_named() -> None:
    with pytest.raises(KafkaException, match="ListOffsets was not answered within 10 s"):
        offset_ranges(admin(KafkaError._TIMED_OUT), [("t", 0)])


def test_another_error_is_said_at_once() -> None:
    def ask() -> None:
        raise KafkaException(KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED))

    with pytest.raises(WorkerError, match="group g cannot be described: GROUP_AUTHORIZATION_FAILED"):
        while_settling(ask, "group g cannot be described")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (KafkaError.GROUP_AUTHORIZATION_FAILED, "grant Read on the group and on its topics"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "grant Read on the group and on its topics"),
        (KafkaError.UNKNOWN_MEMBER_ID, "stop the members of the group first"),
        (KafkaError._TIMED_OUT, "try again"),
    ],
)
@pytest.mark.parametrize("of_all", [True, False])
def test_offsets_that_the_brokers_do_not_change_are_said_with_the_remedy(code: int, remedy: str, of_all: bool) -> None:
    error = KafkaError(code, "why")
    answer: Future[Any] = Future()
    if of_all:
        answer.set_exception(KafkaException(error))
    else:
        place = SimpleNamespace(topic="t", partition=1, error=error)
        answer.set_result(SimpleNamespace(topic_partitions=[place]))
    brokers: Any = SimpleNamespace(alter_consumer_group_offsets=lambda *_, **__: {"g": answer})
    with pytest.raises(WorkerError) as raised:
        commit(brokers, "g", [Move("t", 1, None, 5, 0, 9)])
    what = "the offsets of group g were" if of_all else "the offsets of 1 of 1 partitions were"
    assert str(raised.value) == f"{what} not changed{'' if of_all else ', as of t[1]'}: why; {remedy}"
