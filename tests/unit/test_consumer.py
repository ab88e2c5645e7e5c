"""What a consumer makes of what its client tells it."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message, TopicPartition

from workers.config import CONSUMER_DEFAULTS, ClientConfig, Rank, Setting
from workers.consumer import Consumer, ErrorPolicy
from workers.deadletters import DeadLetters
from workers.lifecycle import Shutdown


@pytest.fixture
def consumer() -> Consumer:
    told = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": "0"}
    config = ClientConfig(CONSUMER_DEFAULTS, [Setting(*each, Rank.COMMAND_LINE, "") for each in told.items()])
    letters = DeadLetters(config, None, "g")
    return Consumer(config, ["t"], lambda: nullcontext(print), Shutdown(1), policy=ErrorPolicy(), dead_letters=letters)


def joins(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the consumer does with its membership."""
    done: list[str] = []
    client = SimpleNamespace(
        unsubscribe=lambda: done.append("unsubscribe"), subscribe=lambda *_, **__: done.append("subscribe")
    )
    monkeypatch.setattr(consumer, "_client", client)
    return done


def test_a_member_that_its_group_has_forgotten_joins_again(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    done = joins(consumer, monkeypatch)
    consumer._on_commit(KafkaError(KafkaError.UNKNOWN_MEMBER_ID), [])
    consumer._check_membership()
    assert done == []  # its client may hear of it by itself
    monkeypatch.setattr("workers.consumer.FORGOTTEN_S", 0.0)
    consumer._check_membership()
    consumer._check_membership()

    assert done == ["unsubscribe", "subscribe"]


def test_a_member_whose_commits_are_taken_again_stays(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    done = joins(consumer, monkeypatch)
    monkeypatch.setattr("workers.consumer.FORGOTTEN_S", 0.0)
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
