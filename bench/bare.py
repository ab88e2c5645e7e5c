"""The peers in Python: the tightest loops that do the same work with confluent-kafka, and account for nothing.

They have the librdkafka properties that the workers ship, their settings of the garbage collector and their spread
over partitions, so that what a comparison shows is our own code.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, Producer

from bench import handlers
from workers.accounting.stamps import encode, encode_batch, stream_of
from workers.config import CLASSIC_DEFAULTS, CONSUMER_DEFAULTS, PRODUCER_DEFAULTS, Default
from workers.lifecycle import settle_memory

BATCH = 1000
PARTITIONS = 3
QUEUE = 100_000
# A bare member says this on standard error once it owns its partitions.
ASSIGNED = "assigned"


def properties(defaults: tuple[Default, ...], servers: str, **extra: str) -> dict[str, str]:
    """The properties that a worker would give librdkafka, without the statistics that only a worker reads."""
    shipped = {default.name: default.value for default in defaults}
    return {**shipped, "statistics.interval.ms": "0", "bootstrap.servers": servers, **extra}


def producer_properties(servers: str, **extra: str) -> dict[str, str]:
    return properties(PRODUCER_DEFAULTS, servers, **extra)


def consumer_properties(servers: str, group: str) -> dict[str, str]:
    extra = {"group.id": group, "auto.offset.reset": "earliest"}
    return properties((*CONSUMER_DEFAULTS, *CLASSIC_DEFAULTS), servers, **extra)


def produce(servers: str, topic: str, count: int, size: int, *extra: str) -> int:
    """`produce_batch` of one list again and again, with a callback that counts; `extra` are properties, NAME=VALUE.
    Returns how many were acknowledged.
    """
    producer = Producer(_any(producer_properties(servers, **dict(each.split("=", 1) for each in extra))))
    acknowledged = 0

    def on_delivery(error: KafkaError | None, _: Message) -> None:
        nonlocal acknowledged
        if error is None:
            acknowledged += 1

    batch = [{"value": b"x" * size}] * BATCH
    settle_memory()
    sent = 0
    while sent < count:
        wanted = min(BATCH, count - sent)
        part = batch if wanted == BATCH else batch[:wanted]
        taken = producer.produce_batch(topic, part, partition=sent // BATCH % PARTITIONS, on_delivery=on_delivery)
        sent += taken
        producer.poll(0 if taken == wanted else 0.05)
    producer.flush()
    return acknowledged


def consume(servers: str, topic: str, count: int, group: str) -> int:
    """`consume(1000)`, each batch's offsets stored. Returns how many came."""
    consumer = _member(servers, topic, group)
    seen = 0
    while seen < count:
        messages = consumer.consume(min(BATCH, count - seen), 0.2)
        if any(map(Message.error, messages)):
            raise RuntimeError("an error instead of a message")
        for message in dict(zip(map(Message.partition, messages), messages, strict=False)).values():
            consumer.store_offsets(message=message)
        seen += len(messages)
    consumer.close()
    return seen


def consume_calls(servers: str, topic: str, count: int, group: str) -> int:
    """`consume(1000)`, and a call of a function for each message. Returns how many came."""
    consumer = _member(servers, topic, group)
    handler = handlers.each
    seen = 0
    while seen < count:
        messages = consumer.consume(min(BATCH, count - seen), 0.2)
        if any(map(Message.error, messages)):
            raise RuntimeError("an error instead of a message")
        for message in messages:
            handler(message)
        for message in dict(zip(map(Message.partition, messages), messages, strict=False)).values():
            consumer.store_offsets(message=message)
        seen += len(messages)
    consumer.close()
    return seen


def consume_each(servers: str, topic: str, count: int, group: str) -> int:
    """`poll`, and each message's offset stored. Returns how many came."""
    consumer = _member(servers, topic, group)
    seen = 0
    while seen < count:
        message = consumer.poll(0.2)
        if message is None:
            continue
        if message.error() is not None:
            raise RuntimeError("an error instead of a message")
        consumer.store_offsets(message=message)
        seen += 1
    consumer.close()
    return seen


def trickle(servers: str, topic: str, count: int, rate: int) -> int:
    """`produce` at a rate, each message stamped as the worker does."""
    producer = Producer(_any(producer_properties(servers)))
    stream = stream_of("bare", 0, None)
    settle_memory()
    begin = time.monotonic()
    for number in range(count):
        while (ahead_s := begin + number / rate - time.monotonic()) > 0:
            # As the worker: a poll of less than a millisecond would be one of none.
            producer.poll(max(ahead_s, 0.001))
        value = encode(stream, number, time.time_ns() // 1000).ljust(100, b"~")
        producer.produce(topic, value, partition=number % PARTITIONS)
    return count if producer.flush(60) == 0 else 0


def record(servers: str, topic: str, count: int, group: str) -> int:
    """`poll`, and a note of each message, as the handler of that name."""
    consumer = _member(servers, topic, group)
    notes: list[tuple[float, int, float]] = []
    while len(notes) < count:
        message = consumer.poll(0.2)
        if message is not None:
            notes.append(handlers.seen(message))
            consumer.store_offsets(message=message)
    consumer.close()
    Path(os.environ[handlers.RECORD]).write_text(json.dumps(notes))
    return len(notes)


def spread(servers: str, topics: str, count: int, run: str) -> int:
    """Fills many topics, named with commas between, with stamped messages, `count` or a few more. Returns `count`."""
    producer = Producer(_any(producer_properties(servers)))
    places = [(topic, partition) for topic in topics.split(",") for partition in range(PARTITIONS)]
    share = -(-count // len(places))
    for topic, partition in places:
        stream = stream_of(run, 0, partition)
        for first in range(0, share, BATCH):
            batch = encode_batch(stream, first, min(BATCH, share - first), time.time_ns() // 1000, 100)
            if producer.produce_batch(topic, batch, partition=partition) != len(batch):
                raise RuntimeError("the queue is full")
            if len(producer) > QUEUE:
                producer.flush(60)
    return count if producer.flush(60) == 0 else 0


def spread_keys(servers: str, topic: str, count: int, size: int, keys: int) -> int:
    """Fill a topic with `count` stamped messages. Each gets one of `keys` keys by chance, the same one in every run."""
    producer = Producer(_any(producer_properties(servers)))
    stream = stream_of("keys", 0, None)
    names = [handlers.key_of(number) for number in range(keys)]
    chance = random.Random(1)
    for first in range(0, count, BATCH):
        batch = encode_batch(stream, first, min(BATCH, count - first), time.time_ns() // 1000, size)
        keyed = [{**each, "key": key} for each, key in zip(batch, chance.choices(names, k=len(batch)), strict=True)]
        if producer.produce_batch(topic, keyed) != len(batch):
            raise RuntimeError("the queue is full")
        if len(producer) > QUEUE // 2:
            producer.flush(60)
    return count if producer.flush(60) == 0 else 0


def _any(properties: dict[str, str]) -> dict[str, Any]:
    # librdkafka takes other types too, and a dictionary is invariant.
    return {**properties}


def _member(servers: str, topic: str, group: str) -> Consumer:
    consumer = Consumer(_any(consumer_properties(servers, group)))
    consumer.subscribe([topic], on_assign=lambda *_: print(ASSIGNED, file=sys.stderr, flush=True))
    settle_memory()
    return consumer


PROGRAMS: dict[str, Callable[..., int]] = {
    each.__name__: each
    for each in (produce, consume, consume_calls, consume_each, trickle, record, spread, spread_keys)
}

if __name__ == "__main__":
    name, servers, topic, count, *rest = sys.argv[1:]
    extra = [int(each) if each.isdecimal() else each for each in rest]
    if PROGRAMS[name](servers, topic, int(count), *extra) != int(count):
        raise SystemExit("not every message was acknowledged")
