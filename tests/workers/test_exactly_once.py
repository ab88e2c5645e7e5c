"""`consume --exactly-once`, against real brokers: an independent reader finds each output once."""

import random
import signal
from collections import Counter

import pytest
from confluent_kafka.admin import AdminClient

from tests.conftest import Topics
from tests.reading import read
from tests.workers.test_consume import committed
from tests.workers.test_lag_exporter import end_sessions_early
from workers.testing.kafka import QUICK
from workers.testing.processes import Process, Processes, eventually

HANDLERS = """
import asyncio

from workers import Outgoing, batch

def rows():
    for number in range({count}):
        yield Outgoing(str(number), key="key-%d" % (number % 50))

async def double(message):
    await asyncio.sleep(0.05)
    for _ in range(2):
        yield Outgoing(message.value(), key=message.key(), topic="{topic}")

@batch
def forward(messages):
    return [Outgoing(message.value(), key=message.key(), topic="{topic}") for message in messages]

def to_a_partition_that_is_not_there(message):
    yield Outgoing(message.value(), topic="{topic}")
    if message.value() == b"7":
        yield Outgoing(message.value(), topic="{topic}", partition=99)
"""


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_members_that_are_killed_join_and_leave_write_each_output_once(
    processes: Processes, topics: Topics, group: str, admin: AdminClient, bootstrap_servers: str, protocol: str
) -> None:
    count = 6000
    source, target = topics.create(), topics.create()
    processes.write("giving.py", HANDLERS.format(topic=target, count=count))
    processes.produce(source, "--source", "giving:rows")
    options = ["--handler", "giving:double", "--concurrency", "10", "--exactly-once", "--group-protocol", protocol]
    if protocol == "classic":
        options += QUICK
    else:
        end_sessions_early(admin, group)

    def member(name: str) -> Process:
        return processes.consume(source, group, *options, "--transactional-id", f"{group}-{name}")

    chance = random.Random(7)
    members = {name: member(name) for name in "abc"}
    success = {"topic": target, "outcome": "success"}

    def written() -> float:
        return sum(each.metric("kafka_consumer_outputs_total", **success) or 0 for each in members.values())

    for _ in range(4):
        before = written()
        eventually(lambda before=before: written() > before + 200, "some are written", 90)  # type: ignore[misc]
        name = chance.choice("abc")
        if chance.random() < 0.5:
            members[name].kill()
        else:
            assert members[name].stop() == 0, members[name].stderr
        members[name] = member(name)
    eventually(lambda: sum(committed(admin, group).values()) == count, "all is committed", 120)
    for each in members.values():
        each.popen.send_signal(signal.SIGTERM)
    assert [each.wait() for each in members.values()] == [0, 0, 0]

    messages = read(bootstrap_servers, target)
    found = Counter(int(message.value() or b"") for message in messages)
    assert set(found) == set(range(count))
    assert set(found.values()) == {2}
    by_key: dict[bytes, list[int]] = {}
    for message in messages:
        by_key.setdefault(bytes(message.key() or b""), []).append(int(message.value() or b""))
    for numbers in by_key.values():
        assert numbers == sorted(numbers)


def test_batches_are_written_once_though_their_member_is_killed(
    processes: Processes, topics: Topics, group: str, admin: AdminClient, bootstrap_servers: str
) -> None:
    count = 10_000
    source, target = topics.create(), topics.create()
    processes.write("giving.py", HANDLERS.format(topic=target, count=count))
    processes.produce(source, "--source", "giving:rows")
    options = ["--handler", "giving:forward", "--exactly-once", "--transactional-id", group, "--batch-size", "50"]
    first = processes.consume(source, group, *options, *QUICK)
    success = {"topic": target, "outcome": "success"}
    eventually(lambda: (first.metric("kafka_consumer_outputs_total", **success) or 0) > 100, "some are written")
    first.kill()
    second = processes.consume(source, group, *options, "--summary", "json")
    eventually(lambda: sum(committed(admin, group).values()) == count, "all is committed", 90)
    assert second.stop() == 0, second.stderr

    found = Counter(message.value() for message in read(bootstrap_servers, target))
    assert len(found) == count
    assert set(found.values()) == {1}


def test_a_message_whose_output_brokers_cannot_take_becomes_a_dead_letter_and_the_others_are_written_once(
    processes: Processes, topics: Topics, group: str, bootstrap_servers: str
) -> None:
    source, target = topics.create(), topics.create()
    topics.create_named(f"{source}.dlq")
    processes.write("giving.py", HANDLERS.format(topic=target, count=30))
    processes.produce(source, "--source", "giving:rows")
    options = ["--handler", "giving:to_a_partition_that_is_not_there", "--exactly-once", "--max-attempts", "2"]
    options += ["--property", "topic.metadata.propagation.max.ms=500", "--retry-backoff", "0.1"]
    consumer = processes.consume(source, group, *options, "--max-messages", "30", "--summary", "json")

    assert consumer.wait() == 0, consumer.stderr
    assert "the topic has no such partition; correct it" in consumer.stderr
    found = Counter(int(message.value() or b"") for message in read(bootstrap_servers, target))
    assert found == dict.fromkeys([each for each in range(30) if each != 7], 1)
    [letter] = read(bootstrap_servers, f"{source}.dlq")
    assert letter.value() == b"7"


def test_two_processes_with_one_transactional_id_do_not_write_beside_each_other(
    processes: Processes, topics: Topics, group: str
) -> None:
    source, target = topics.create(), topics.create()
    processes.write("giving.py", HANDLERS.format(topic=target, count=2000))
    processes.produce(source, "--source", "giving:rows")
    options = ["--handler", "giving:double", "--exactly-once", "--transactional-id", group]
    members = [processes.consume(source, group, *options) for _ in range(2)]
    eventually(lambda: not all(each.running for each in members), "one of them has ended", 60)
    ended = next(each for each in members if not each.running)
    assert ended.wait() == 1
    assert "another process has transactional id" in ended.stderr
    assert "give each process its own --transactional-id" in ended.stderr


def test_options_of_transactions_are_refused_without_them(processes: Processes) -> None:
    for option, value in {"--transactional-id": "x", "--commit-interval": "1"}.items():
        told = processes.run("consume", "--topic", "t", "--group-id", "g", option, value)
        assert told.returncode == 2
        assert f"{option} is for --exactly-once; add that, or leave it out" in told.stderr
    told = processes.run("consume", "--topic", "t", "--group-id", "g", "--exactly-once", "--transactional-id", "")
    assert told.returncode == 2
    assert "--transactional-id is empty; give it a name, or leave it out" in told.stderr
    told = processes.run(
        "consume", "--topic", "t", "--group-id", "g", "--exactly-once", "--property", "isolation.level=read_uncommitted"
    )
    assert told.returncode == 2
    assert "--exactly-once needs read_committed; leave it out" in told.stderr
