"""Outputs of handlers, against real brokers."""

import json

from tests.conftest import Topics
from tests.reading import read
from workers.testing.kafka import QUICK
from workers.testing.processes import Processes, eventually

HANDLERS = """
import asyncio

from workers import Outgoing, batch

def rows():
    for number in range(3000):
        yield Outgoing(str(number), key="key-%d" % (number % 50))

async def double(message):
    await asyncio.sleep(0.02)
    for _ in range(2):
        yield Outgoing(message.value(), key=message.key(), topic="{topic}", headers=[("from", b"double")])

@batch
def to_a_partition_that_is_not_there(messages):
    return [Outgoing(message.value(), topic="{topic}", partition=99) for message in messages]
"""


def test_outputs_are_in_the_order_of_their_keys_and_none_is_lost_in_a_crash(
    processes: Processes, topics: Topics, group: str, bootstrap_servers: str
) -> None:
    source, target = topics.create(), topics.create()
    processes.write("giving.py", HANDLERS.format(topic=target))
    processes.produce(source, "--source", "giving:rows")
    options = ["--handler", "giving:double", "--concurrency", "20", "--summary", "json"]
    first = processes.consume(source, group, *options, *QUICK)
    written = {"topic": target, "outcome": "success"}
    eventually(lambda: (first.metric("kafka_consumer_outputs_total", **written) or 0) > 500, "some are written")
    first.kill()
    second = processes.consume(source, group, *options)
    eventually(lambda: second.metric("kafka_consumer_assigned_partitions") == 3, "it has the partitions")
    eventually(lambda: second.metric("kafka_consumer_lag_messages", topic=source) == 0, "no lag")
    assert second.stop() == 0, second.stderr

    account = json.loads(second.stderr.splitlines()[-1])
    handled = account["topics"][source]["handled"]
    assert account["outputs"] == {target: {"acknowledged": 2 * handled, "failed": 0, "unknown": 0}}
    assert processes.lag(group) == 0
    outputs = read(bootstrap_servers, target)
    assert {tuple(each.headers() or ()) for each in outputs} == {(("from", b"double"),)}
    by_key: dict[bytes, list[int]] = {}
    for each in outputs:
        by_key.setdefault(bytes(each.key() or b""), []).append(int(each.value() or b""))
    assert {number for numbers in by_key.values() for number in numbers} == {*range(3000)}
    for numbers in by_key.values():
        begun = [*dict.fromkeys(numbers)]
        assert begun == sorted(begun)


def test_an_output_that_brokers_cannot_take_becomes_a_dead_letter_of_its_message(
    processes: Processes, topics: Topics, group: str
) -> None:
    source, target = topics.create(), topics.create()
    topics.create_named(f"{source}.dlq")
    processes.write("giving.py", HANDLERS.format(topic=target))
    processes.produce(source, "--count", "2")
    options = ["--handler", "giving:to_a_partition_that_is_not_there", "--max-attempts", "2", "--summary", "json"]
    consumer = processes.consume(source, group, *options, "--max-messages", "2")

    assert consumer.wait() == 0, consumer.stderr
    assert (
        f"an output to topic {target} was not written: the topic has no such partition; correct it" in consumer.stderr
    )
    account = json.loads(consumer.stderr.splitlines()[-1])
    assert sum(topic["dead_lettered"] for topic in account["topics"].values()) == 2
    assert account["outputs"][target]["acknowledged"] == 0
