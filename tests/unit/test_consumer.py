"""What a consumer makes of what its client tells it."""

from contextlib import nullcontext
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message, TopicPartition

from workers.config import CONSUMER_DEFAULTS, ClientConfig, Precedence, Setting
from workers.consumer.assignment import Partition, Topic
from workers.consumer.failures import ErrorPolicy
from workers.consumer.loop import MAX_WAITING_BYTES, Consumer
from workers.deadletters.headers import letter_headers
from workers.deadletters.writer import DeadLetters
from workers.lifecycle import Shutdown


@pytest.fixture
def consumer() -> Consumer:
    told = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": "0"}
    config = ClientConfig(CONSUMER_DEFAULTS, [Setting(*each, Precedence.COMMAND_LINE, "") for each in told.items()])
    letters = DeadLetters(config, None, "g")
    return Consumer(config, ["t"], lambda: nullcontext(print), Shutdown(1), policy=ErrorPolicy(), dead_letters=letters)


def joins(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the consumer does with its membership."""
    done: list[str] = []
    client = SimpleNamespace(
        unsubscribe=lambda: done.append("unsubscribe"),
        subscribe=lambda *_, **__: done.append("subscribe"),
        close=lambda: done.append("close"),
    )
    monkeypatch.setattr(consumer, "_client", client)
    return done


def test_a_member_that_its_group_has_forgotten_joins_again(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    done = joins(consumer, monkeypatch)
    consumer._on_commit(KafkaError(KafkaError.UNKNOWN_MEMBER_ID), [])
    consumer._check_membership()
    assert done == []  # its client may hear of it by itself
    monkeypatch.setattr("workers.consumer.loop.FORGOTTEN_S", 0.0)
    consumer._check_membership()
    consumer._check_membership()

    assert done == ["unsubscribe", "subscribe"]


def test_a_member_whose_commits_are_taken_again_stays(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    done = joins(consumer, monkeypatch)
    monkeypatch.setattr("workers.consumer.loop.FORGOTTEN_S", 0.0)
    consumer._on_commit(KafkaError(KafkaError.STALE_MEMBER_EPOCH), [])
    consumer._on_commit(None, [])
    consumer._check_membership()

    assert done == []


def test_a_message_that_came_before_a_rebalance_is_not_taken_for_one_after_it(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be handled before those that the new assignment begins with, and its offset stored above theirs."""
    place = TopicPartition("t", 0, 5)

    def consume(*_: object) -> list[Message]:
        consumer._on_revoke(client, [place])
        consumer._on_assign(client, [place])
        return [Message(topic="t", partition=0, offset=5)]

    client: Any = SimpleNamespace(
        poll=lambda _: Message(topic="t", partition=0, offset=7),
        consume=consume,
        committed=lambda *_, **__: [place],
        incremental_assign=lambda _: None,
        incremental_unassign=lambda _: None,
    )
    monkeypatch.setattr(consumer, "_client", client)
    consumer._on_assign(client, [place])
    consumer._fetch()

    assert [message.offset() for message in consumer.partitions["t", 0].pending] == [5]


def owned(consumer: Consumer, *pending: Message) -> Partition:
    """Has the consumer own partition 0, with messages that wait for the handler."""
    partition = consumer.partitions["t", 0] = Partition(Topic("t"), 0, None)
    partition.pending += pending
    return partition


def test_what_the_group_committed_beside_an_offset_is_no_part_of_the_assignment(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With it librdkafka leaks memory at every commit."""
    assigned: list[TopicPartition] = []
    memo = "run_________ 0000 00000 7"
    client: Any = SimpleNamespace(
        committed=lambda *_, **__: [TopicPartition("t", 0, 7, memo, 3)], incremental_assign=assigned.extend
    )
    consumer._on_assign(client, [TopicPartition("t", 0)])

    assert [(each.offset, each.leader_epoch, each.metadata) for each in assigned] == [(7, 3, None)]
    assert consumer.partitions["t", 0].ledger.memo() == memo


def test_a_partition_that_fails_again_and_again_comes_after_those_that_wait(consumer: Consumer) -> None:
    failing, waiting = (Partition(Topic("t"), number, None) for number in (0, 1))
    failing.progress_at = monotonic() - 100
    failing.retry_at = monotonic() - 1
    waiting.progress_at = monotonic() - 10
    for partition in (failing, waiting):
        partition.pending.append(Message(topic="t", partition=partition.number, offset=0))
        consumer.partitions["t", partition.number] = partition

    assert [job.partition.number for job in consumer._next_jobs()] == [1, 0]


def test_a_dead_letter_that_waits_for_its_next_try_takes_its_place_among_the_last_messages(consumer: Consumer) -> None:
    consumer._max_messages = 1
    owned(consumer, Message(topic="t", partition=0, offset=0))
    consumer.partitions["t", 1] = rejected = Partition(Topic("t"), 1, None)
    rejected.letter_error = ValueError()

    assert consumer._next_jobs() == []


def test_the_lag_in_seconds_begins_when_a_message_is_there_and_not_when_the_last_was_sent(consumer: Consumer) -> None:
    partition = owned(consumer)
    partition.next_offset = 5
    partition.last_timestamp_ms = 1
    partition.see_end(5)
    partition.see_end(6)

    [lag] = consumer.lags()
    assert lag.messages == 1
    assert lag.seconds < 60


def test_a_member_that_is_stopped_before_it_has_joined_never_joins(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = joins(consumer, monkeypatch)
    consumer._shutdown.request()
    consumer.run()

    assert done == ["unsubscribe", "close"]


def test_waiting_for_brokers_or_the_handler_at_the_start_is_no_stall(consumer: Consumer) -> None:
    consumer._stall_timeout_s = 0.0

    assert consumer.live() is None


def test_a_pause_between_attempts_is_no_stall(consumer: Consumer) -> None:
    partition = owned(consumer)
    partition.waiting_since_ms = 1
    partition.progress_at = monotonic() - 1000
    assert "no progress" in (consumer.live() or "")
    partition.retry_at = monotonic() - 1

    assert consumer.live() is None


def test_a_consumer_is_not_idle_while_a_partition_waits(consumer: Consumer) -> None:
    """Nothing is received for a partition that is paused, and there may be more behind what waits."""
    consumer._joined = True
    consumer._idle_timeout_s = 5
    partition = owned(consumer, Message(topic="t", partition=0, offset=0))
    consumer._idle_since = monotonic() - 100
    assert not consumer._finished()
    partition.pending.clear()
    assert not consumer._finished()
    consumer._idle_since = monotonic() - 100

    assert consumer._finished()


def test_a_handler_is_given_as_many_bytes_as_fit_however_few_messages_they_are(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Message(topic="t", partition=0, offset=0, value=bytes(MAX_WAITING_BYTES // 8))
    partition = owned(consumer, *[large] * 7)
    paused: list[TopicPartition] = []
    client = SimpleNamespace(pause=paused.extend, poll=lambda _: large, get_watermark_offsets=lambda *_, **__: (0, 100))
    monkeypatch.setattr(consumer, "_client", client)
    consumer._keep_alive(0.1)
    assert not partition.paused
    assert consumer._full()
    consumer._keep_alive(0.1)

    assert partition.paused
    assert [each.partition for each in paused] == [0]


def test_a_dead_letter_can_tell_of_any_error() -> None:
    headers = dict(letter_headers(Message(topic="t", partition=0, offset=0), "g", ValueError("no \ud83d"), 1))

    assert headers["kafka-workers.error-message"] == b"no \\ud83d"

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    headers = dict(letter_headers(Message(topic="t", partition=0, offset=0), "g", MuteError(), 1))
    assert headers["kafka-workers.error-class"] == b"MuteError"
