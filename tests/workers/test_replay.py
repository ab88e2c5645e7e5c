"""`dead-letters replay`: each letter goes back to where it came from, once, and only where the user allows it."""

import json

import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient

from tests.conftest import Topics
from tests.reading import values
from workers.deadletters.headers import ORIGINAL_PARTITION, ORIGINAL_TOPIC
from workers.local.cluster import finish
from workers.testing.processes import Processes, eventually

REJECTS = """
from workers import Reject

def poison(message):
    if message.value() == b"poison":
        raise Reject("never")
"""


@pytest.fixture
def rejecting(processes: Processes) -> tuple[str, ...]:
    """The option of a handler that makes dead letters."""
    processes.write("rejects.py", REJECTS)
    return "--handler", "rejects:poison"


def write_letters(bootstrap_servers: str, letters: str, *origins: str) -> None:
    """Write dead letters into one partition, each with the origin that it says; their values are 1, 2 and so on."""
    writer = Producer({"bootstrap.servers": bootstrap_servers})
    for number, origin in enumerate(origins, start=1):
        writer.produce(letters, str(number), partition=0, headers=[(ORIGINAL_TOPIC, origin), (ORIGINAL_PARTITION, "0")])
    assert writer.flush(30) == 0


def test_a_replayed_dead_letter_is_back_where_it_came_from_once(
    processes: Processes, topics: Topics, group: str, rejecting: tuple[str, ...]
) -> None:
    topic = topics.create()
    topics.create_named(f"{topic}.dlq")
    processes.produce(topic, "--input", "-", "--key-separator", ":", stdin=b"k:poison\n")
    limits = ["--max-messages", "1"]
    assert processes.consume(topic, group, *rejecting, *limits).wait() == 0
    first = processes.run("dead-letters", "replay", "--topic", f"{topic}.dlq")
    second = processes.run("dead-letters", "replay", "--topic", f"{topic}.dlq")

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "1 dead letters replayed" in first.stdout
    assert "0 dead letters replayed" in second.stdout
    again = processes.consume(topic, group, *limits, "--format", "json")
    assert again.wait() == 0
    line = json.loads(again.lines[0])
    assert (line["topic"], line["key"], line["value"]) == (topic, "k", "poison")
    assert "headers" not in line


def test_a_replay_that_fails_half_way_sends_nothing_twice_that_came_before(
    processes: Processes, topics: Topics, admin: AdminClient, bootstrap_servers: str
) -> None:
    topic, gone = topics.create(), topics.create()
    letters = f"{topic}.letters"
    topics.create_named(letters, partitions=1)
    write_letters(bootstrap_servers, letters, topic, gone, topic)
    finish(admin.delete_topics([gone])[gone], KafkaError.UNKNOWN_TOPIC_OR_PART)
    options = ["--to-topic", topic, "--to-topic", gone, "--property", "delivery.timeout.ms=3000"]
    results = [processes.run("dead-letters", "replay", "--topic", letters, *options) for _ in range(2)]

    assert [result.returncode for result in results] == [1, 1]
    assert "1 of 3 dead letters were not acknowledged" in results[0].stderr
    assert f"1 of 2 dead letters were not acknowledged: {gone}: " in results[1].stderr
    # The last one twice: it came after the one that failed.
    assert sorted(values(bootstrap_servers, topic)) == ["1", "3", "3"]


def test_a_letter_of_another_topic_waits_until_the_user_decides(
    processes: Processes, topics: Topics, bootstrap_servers: str
) -> None:
    """Whoever may write to the dead-letter topic may write any origin."""
    topic, other = topics.create(), topics.create()
    letters = f"{topic}.dlq"
    topics.create_named(letters, partitions=1)
    write_letters(bootstrap_servers, letters, topic, other, topic)
    replay = ["dead-letters", "replay", "--topic", letters, "--replay-group", "first"]
    refused = [processes.run(*replay) for _ in range(2)]
    allowed = processes.run(*replay, "--to-topic", topic, "--to-topic", other)
    others = ["--replay-group", "second", "--skip-other-topics"]
    skipped = processes.run("dead-letters", "replay", "--topic", letters, *others)

    assert [result.returncode for result in refused] == [1, 1]
    assert [result.stdout.split()[0] for result in refused] == ["1", "0"]
    complaint = refused[1].stderr.splitlines()[-1]
    assert f"{letters} that say they came from {other} may not be sent there" in complaint
    assert all(f"--to-topic {name}" in complaint for name in (topic, other))
    assert (allowed.returncode, allowed.stdout.split()[0]) == (0, "2"), allowed.stderr
    assert (skipped.returncode, skipped.stdout.splitlines()[1]) == (0, "1 dead letters of other topics passed over")
    # Once by the group that was told to send it, once by the other.
    assert sorted(values(bootstrap_servers, topic)) == ["1", "1", "3", "3"]
    assert values(bootstrap_servers, other) == ["2"]


def test_a_replay_ends_though_all_that_it_sends_is_rejected_again(
    processes: Processes, topics: Topics, group: str, rejecting: tuple[str, ...]
) -> None:
    topic = topics.create()
    topics.create_named(f"{topic}.dlq")
    processes.produce(topic, "--input", "-", stdin=b"poison\n" * 30)
    consumer = processes.consume(topic, group, *rejecting)
    eventually(
        lambda: consumer.metric("kafka_consumer_messages_total", outcome="dead_letter") == 30, "all are dead letters"
    )
    # A queue that has room for three of them.
    small = ["--property", "queue.buffering.max.messages=3"]
    first = processes.run("dead-letters", "replay", "--topic", f"{topic}.dlq", "--max-messages", "10", *small)
    second = processes.run("dead-letters", "replay", "--topic", f"{topic}.dlq")

    assert "10 dead letters replayed" in first.stdout
    replayed = int(second.stdout.split()[0])
    assert replayed >= 20
    eventually(
        lambda: consumer.metric("kafka_consumer_messages_total", outcome="dead_letter") == 30 + 10 + replayed,
        "each was sent back once",
    )


def test_an_invalid_line_says_what_it_is_and_waits_until_it_is_discarded(
    processes: Processes, topics: Topics, bootstrap_servers: str
) -> None:
    topic = topics.create()
    letters = f"{topic}.dlq"
    topics.create_named(letters)
    options = ["--key-field", "id", "--on-invalid", "dead-letter"]
    processes.produce(topic, "--input", "-", *options, stdin=b"no JSON\nnone either\n")
    write_letters(bootstrap_servers, letters, topic)
    result = processes.run("dead-letters", "replay", "--topic", letters)

    assert result.returncode == 1
    assert "1 dead letters replayed" in result.stdout
    assert f"2 dead letters of {letters} are lines that `produce` could not send" in result.stderr.splitlines()[-1]
    listed = processes.run("dead-letters", "list", "--topic", letters)
    assert listed.stdout.count("a line  -    InvalidLine: standard input line ") == 2
    assert processes.run("dead-letters", "discard", "--topic", letters, "--error", "InvalidLine").returncode == 0
    last = processes.run("dead-letters", "replay", "--topic", letters)
    assert (last.returncode, last.stdout) == (0, f"0 dead letters replayed from {letters}\n")
