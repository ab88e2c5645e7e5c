"""Requests of the admin client that it has sent twice: the second answer says that the work is done already."""

from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from tests.conftest import Topics
from workers.errors import ClusterError
from workers.local.cluster import Cluster, finish


def refused(code: int) -> "Future[Any]":
    answer: Future[Any] = Future()
    answer.set_exception(KafkaException(KafkaError(code)))
    return answer


class Known:
    """A topic as the metadata has it."""

    def __init__(self, partitions: int) -> None:
        self.partitions = dict.fromkeys(range(partitions))


class Metadata:
    def __init__(self, topics: dict[str, Known]) -> None:
        self.topics = topics


class SentTwice:
    """An admin client whose first request did its work, and whose answer to the second is passed on."""

    def __init__(self, code: int, partitions: int = 3) -> None:
        self.code = code
        self.partitions = partitions

    def create_topics(self, topics: Iterable[NewTopic]) -> dict[str, "Future[Any]"]:
        return {topic.topic: refused(self.code) for topic in topics}

    def list_topics(self, name: str, **_: float) -> Metadata:
        return Metadata({name: Known(self.partitions)})


def test_a_fresh_topic_that_is_there_already_was_created_by_the_first_try() -> None:
    name = Topics(cast(AdminClient, SentTwice(KafkaError.TOPIC_ALREADY_EXISTS))).create()

    assert name.startswith("test-")


def test_a_fresh_topic_that_is_refused_fails_the_test() -> None:
    with pytest.raises(KafkaException):
        Topics(cast(AdminClient, SentTwice(KafkaError.POLICY_VIOLATION))).create()


def cluster_with(admin: SentTwice, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(cluster, "admin", lambda: admin)
    return cluster


def test_a_topic_that_the_first_try_has_created_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_with(SentTwice(KafkaError.TOPIC_ALREADY_EXISTS), monkeypatch).create_topic("a", partitions=3)


@pytest.mark.parametrize("partitions", [2, 4])
def test_another_topic_of_that_name_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch, partitions: int) -> None:
    cluster = cluster_with(SentTwice(KafkaError.TOPIC_ALREADY_EXISTS, partitions), monkeypatch)
    with pytest.raises(ClusterError, match=f"topic a is there already with {partitions} partitions"):
        cluster.create_topic("a", partitions=3)


def test_only_the_answer_to_a_second_try_is_taken_for_success() -> None:
    finish(refused(KafkaError.UNKNOWN_TOPIC_OR_PART), KafkaError.UNKNOWN_TOPIC_OR_PART)
    with pytest.raises(KafkaException):
        finish(refused(KafkaError.UNKNOWN_TOPIC_OR_PART), KafkaError.TOPIC_ALREADY_EXISTS)
