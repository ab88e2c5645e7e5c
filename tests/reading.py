"""Reads topics with a plain client, independent of the workers."""

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

WAIT_S = 30.0


def read(bootstrap_servers: str, topic: str) -> list[Message]:
    """All messages of a topic that are not of an aborted transaction, partition by partition.

    A transaction that is open holds the end back; it is waited for.
    """
    own = {"bootstrap.servers": bootstrap_servers, "group.id": "reader", "enable.auto.commit": False, "log_level": 0}
    plain = Consumer({**own, "isolation.level": "read_uncommitted"})
    client = Consumer({**own, "isolation.level": "read_committed", "enable.partition.eof": True})
    messages: list[Message] = []
    try:
        numbers = plain.list_topics(topic, timeout=WAIT_S).topics[topic].partitions
        ends = {each: plain.get_watermark_offsets(TopicPartition(topic, each), timeout=WAIT_S)[1] for each in numbers}
        client.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in ends])
        behind = set(ends)
        while behind:
            message = client.poll(WAIT_S)
            assert message is not None, f"{topic}: partitions {behind} are not read to their ends {ends}"
            error = message.error()
            if error is None:
                messages.append(message)
                continue
            assert error.code() == KafkaError._PARTITION_EOF, error
            number = message.partition() or 0
            if (message.offset() or 0) >= ends[number]:
                behind.discard(number)
    finally:
        plain.close()
        client.close()
    return sorted(messages, key=lambda each: (each.partition() or 0, each.offset() or 0))


def values(bootstrap_servers: str, topic: str) -> list[str]:
    """The values of all messages of a topic, partition by partition."""
    return [(message.value() or b"").decode() for message in read(bootstrap_servers, topic)]


def read_as_written(bootstrap_servers: str, count: int, *topics: str) -> list[Message]:
    """Committed messages of topics, read while they are written: `count`, and those of the two seconds that follow."""
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap_servers, "group.id": f"reader-{topics[0]}", "log_level": 0,
            "auto.offset.reset": "earliest", "isolation.level": "read_committed", "enable.auto.commit": False,
        }
    )  # fmt: skip
    reader.subscribe([*topics])
    messages: list[Message] = []
    try:
        while (message := reader.poll(2.0 if len(messages) >= count else WAIT_S)) is not None:
            assert message.error() is None, message.error()
            messages.append(message)
    finally:
        reader.close()
    return messages
