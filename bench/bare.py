"""The peers in Python: the shortest loops that do the same work with confluent-kafka, and account for nothing.

They have the librdkafka properties that the workers ship, so that what a comparison shows is our own code.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, Producer

from bench import handlers
from workers.config import CLASSIC_DEFAULTS, CONSUMER_DEFAULTS, PRODUCER_DEFAULTS, Default
from workers.messages import encode, stream_of

BATCH = 1000


def properties(defaults: tuple[Default, ...], servers: str, **extra: str) -> dict[str, Any]:
    """What a worker would give librdkafka, without the statistics that only a worker reads."""
    shipped = {default.name: default.value for default in defaults}
    return {**shipped, "statistics.interval.ms": "0", "bootstrap.servers": servers, **extra}


def produce(servers: str, topic: str, count: int, size: int) -> int:
    """`produce_batch` with a callback that counts. Returns how many were acknowledged."""
    producer = Producer(properties(PRODUCER_DEFAULTS, servers))
    acknowledged = 0

    def on_delivery(error: KafkaError | None, _: Message) -> None:
        nonlocal acknowledged
        if error is None:
            acknowledged += 1

    value = b"x" * size
    sent = 0
    while sent < count:
        batch = [{"value": value} for _ in range(min(BATCH, count - sent))]
        taken = producer.produce_batch(topic, batch, on_delivery=on_delivery)
        sent += taken
        producer.poll(0 if taken == len(batch) else 0.05)
    producer.flush()
    return acknowledged


def consume(servers: str, topic: str, count: int, group: str) -> int:
    """`consume(1000)`, each batch's offsets stored. Returns how many came."""
    consumer = Consumer(_member(servers, group))
    consumer.subscribe([topic])
    seen = 0
    while seen < count:
        messages = consumer.consume(BATCH, 0.2)
        for message in messages:
            assert message.error() is None
        last = {message.partition(): message for message in messages}
        for message in last.values():
            consumer.store_offsets(message=message)
        seen += len(messages)
    consumer.close()
    return seen


def consume_each(servers: str, topic: str, count: int, group: str) -> int:
    """`poll`, and each message's offset stored. Returns how many came."""
    consumer = Consumer(_member(servers, group))
    consumer.subscribe([topic])
    seen = 0
    while seen < count:
        message = consumer.poll(0.2)
        if message is None:
            continue
        assert message.error() is None
        consumer.store_offsets(message=message)
        seen += 1
    consumer.close()
    return seen


def trickle(servers: str, topic: str, count: int, rate: int) -> int:
    """`produce` at a rate, each message stamped as the worker does."""
    producer = Producer(properties(PRODUCER_DEFAULTS, servers))
    stream = stream_of("bare", 0, None)
    begin = time.monotonic()
    for number in range(count):
        while (ahead_s := begin + number / rate - time.monotonic()) > 0:
            producer.poll(ahead_s)
        producer.produce(topic, encode(stream, number, time.time_ns() // 1000).ljust(100, b"~"))
    producer.flush()
    return count


def record(servers: str, topic: str, count: int, group: str) -> int:
    """`poll`, and a note of each message, as the handler of that name."""
    consumer = Consumer(_member(servers, group))
    consumer.subscribe([topic])
    notes: list[tuple[float, int, float]] = []
    while len(notes) < count:
        message = consumer.poll(0.2)
        if message is not None:
            notes.append(handlers.seen(message))
            consumer.store_offsets(message=message)
    consumer.close()
    Path(os.environ[handlers.RECORD]).write_text(json.dumps(notes))
    return len(notes)


def _member(servers: str, group: str) -> dict[str, Any]:
    extra = {"group.id": group, "auto.offset.reset": "earliest"}
    return properties((*CONSUMER_DEFAULTS, *CLASSIC_DEFAULTS), servers, **extra)


PROGRAMS: dict[str, Callable[..., int]] = {
    each.__name__: each for each in (produce, consume, consume_each, trickle, record)
}

if __name__ == "__main__":
    name, servers, topic, count, *rest = sys.argv[1:]
    extra = [int(each) if each.isdecimal() else each for each in rest]
    assert PROGRAMS[name](servers, topic, int(count), *extra) == int(count)
