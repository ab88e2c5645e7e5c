"""The kit for users' tests on real brokers, here those of this suite. test_release.py and test_new_project.py have the
fixture `kafka` as it is, which starts its own.
"""

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from workers.local.cluster import Cluster
from workers.testing.kafka import Kafka, Workers

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"

# A handler that returns before its message is written. Of 100 messages it writes 80.
FORGETFUL = """
import os
import sqlite3

from workers import lifespan


@lifespan
def store():
    with sqlite3.connect(os.environ["DATABASE"], timeout=30) as database:
        kept = []

        def handle(message):
            kept.append((message.value().decode(),))
            if len(kept) == 40:
                database.executemany("insert into orders(id) values (?)", kept)
                database.commit()
                kept.clear()

        yield handle
"""
# User code that prints JSON as accounts are, and takes its time.
CHATTY = """
import json
import sys
import time

from shop import store


def handle(message):
    time.sleep(0.02)
    for stream in (sys.stdout, sys.stderr):
        print(json.dumps({"acknowledged": -1, "handled": -1}), file=stream, flush=True)


def numbers():
    for number in range(3):
        print(json.dumps({"topics": {}, "acknowledged": -1}), file=sys.stderr, flush=True)
        yield str(number)
"""


class Started(Kafka):
    """The brokers of this suite."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster


@pytest.fixture
def kafka(cluster: Cluster) -> Kafka:
    return Started(cluster)


@pytest.fixture
def topic(kafka: Kafka) -> Iterator[str]:
    yield kafka.create_topic()
    kafka.recover()


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that a test and its workers find; the first is that of the tutorial."""
    (shop, *_) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for name, text in {"shop": shop, "forgetful": FORGETFUL, "chatty": CHATTY}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sqlite3.Connection]:
    path = str(tmp_path / "orders.db")
    monkeypatch.setenv("DATABASE", path)
    with closing(sqlite3.connect(path, timeout=30)) as database:
        database.execute("create table orders (id text primary key, customer text)")
        yield database


def orders(database: sqlite3.Connection) -> set[int]:
    return {int(number) for (number,) in database.execute("select id from orders")}


def test_a_handler_that_keeps_messages_is_seen_to_lose_them(
    kafka: Kafka, topic: str, worker: Workers, database: sqlite3.Connection
) -> None:
    kafka.produce(topic, map(str, range(100)))
    first = worker.consume("forgetful:store")
    first.until_handled(100)
    first.until_done()
    first.kill()
    second = worker.consume("forgetful:store")
    second.until_done()
    second.stop()
    assert len(orders(database)) == 80


def test_a_topic_that_is_not_there_is_named(kafka: Kafka) -> None:
    with pytest.raises(ValueError, match=r"^topic typo does not exist; correct the name, or create it"):
        kafka.messages("typo")


def test_a_broker_that_hangs_and_is_killed_comes_back(kafka: Kafka, topic: str) -> None:
    kafka.hang_broker(2)
    kafka.kill_broker(2)
    kafka.hang_broker(1)
    kafka.recover()
    kafka.produce(topic, ["1"])
    assert [each.value() for each in kafka.messages(topic)] == [b"1"]


def test_more_messages_than_the_client_has_room_for_are_produced(kafka: Kafka, topic: str) -> None:
    kafka.produce(topic, map(str, range(120_000)))
    assert len(kafka.messages(topic)) == 120_000


def test_what_user_code_prints_is_no_account(worker: Workers) -> None:
    assert worker.produce("chatty:numbers").wait()["acknowledged"] == 3
    assert worker.consume("chatty:handle", "--max-messages", "3").wait()["handled"] == 3


def test_done_is_what_the_group_has_committed(kafka: Kafka, topic: str, worker: Workers) -> None:
    kafka.produce(topic, map(str, range(20)))
    first = worker.consume("chatty:handle", kill=("after", "10"))
    first.until_killed()
    second = worker.consume("chatty:handle")
    second.until_done()
    kafka.produce(topic, map(str, range(20, 60)))
    second.until_done()
    # Read before anything else can be handled.
    assert second.handled() >= 41
    second.stop()


def test_the_other_protocol_may_be_chosen_in_one_word(
    kafka: Kafka, topic: str, worker: Workers, database: sqlite3.Connection
) -> None:
    kafka.produce(topic, ["1"])
    member = worker.consume("shop:store", "--group-protocol=consumer")
    member.until_done()
    member.stop()
    assert orders(database) == {1}


def test_a_worker_that_has_ended_is_not_waited_for(kafka: Kafka, topic: str, worker: Workers) -> None:
    kafka.produce(topic, ["1"])
    begun_at = time.monotonic()
    with pytest.raises(AssertionError, match=r"(?s)ended.*importing missing raised ModuleNotFoundError"):
        worker.consume("missing:handle").until_done(120)
    with pytest.raises(AssertionError, match="has ended before 9 messages are handled"):
        worker.consume("chatty:handle", "--max-messages", "1").until_handled(9, 120)
    assert time.monotonic() - begun_at < 100


@pytest.mark.parametrize("kill", [("while", "9"), ("during", 9), "during"])
def test_when_a_worker_is_killed_is_one_of_three_words_and_a_text(worker: Workers, kill: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^kill is .*; give 'before', 'during' or 'after', and the value of a message"
    ):
        worker.consume("shop:store", kill=kill)
