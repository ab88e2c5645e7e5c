"""What a consumer makes of what its client tells it."""

from contextlib import nullcontext

import pytest
from confluent_kafka import KafkaError

from workers.config import CONSUMER_DEFAULTS, ClientConfig, Rank, Setting
from workers.consumer import Consumer, ErrorPolicy
from workers.deadletters import DeadLetters
from workers.lifecycle import Shutdown, WorkerError


@pytest.fixture
def consumer() -> Consumer:
    told = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": "0"}
    config = ClientConfig(CONSUMER_DEFAULTS, [Setting(*each, Rank.COMMAND_LINE, "") for each in told.items()])
    letters = DeadLetters(config, None, "g")
    return Consumer(config, ["t"], lambda: nullcontext(print), Shutdown(1), policy=ErrorPolicy(), dead_letters=letters)


def test_a_member_that_its_group_has_forgotten_for_long_ends(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer._on_commit(KafkaError(KafkaError.UNKNOWN_MEMBER_ID), [])
    consumer._check_membership()  # its client may not have heard of it yet
    monkeypatch.setattr("workers.consumer.FORGOTTEN_S", 0.0)

    with pytest.raises(WorkerError, match="group g does not know this member any more"):
        consumer._check_membership()


def test_a_member_whose_commits_are_taken_again_goes_on(consumer: Consumer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.consumer.FORGOTTEN_S", 0.0)
    consumer._on_commit(KafkaError(KafkaError.STALE_MEMBER_EPOCH), [])
    consumer._on_commit(None, [])

    consumer._check_membership()
