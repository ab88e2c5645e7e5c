"""Whether a topic is the canary's own: the last message of each partition tells."""

import logging
import time
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from workers.accounting.stamps import STAMP_BYTES, decode
from workers.errors import ConfigError

log = logging.getLogger("workers")
# For all partitions; one without a leader is passed over, as the canary runs while brokers are down.
LOOK_S = 5.0
REQUEST_S = 1.0
# The last offsets may be those of a transaction's marker, or of aborted messages.
LAST_OFFSETS = 10


def check_ownership(client: Any, topic: str, partitions: int) -> None:
    """Read the last message of each partition, with a consumer that is assigned nothing else; takes LOOK_S at most.

    Raises ConfigError when one is no probe, or when the user may not read the topic.
    """
    until = time.monotonic() + LOOK_S
    left = _ends(client, topic, partitions, until)
    starts = {number: max(low, high - LAST_OFFSETS) for number, (low, high) in left.items()}
    client.assign([TopicPartition(topic, number, offset) for number, offset in starts.items()])
    last: dict[int, Message] = {}
    while left and time.monotonic() < until:
        for message in client.consume(LAST_OFFSETS, 0.1):
            number, error = message.partition(), message.error()
            if error is None:
                last[number] = message
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                _check_right(error, topic)
            elif number in left and (error is not None or message.offset() + 1 >= left[number][1]):
                del left[number]
    client.unassign()
    for number, message in sorted(last.items()):
        if not is_probe(message):
            raise ConfigError(
                f"--topic: {topic}[{number}] has messages that are no probes of the canary, which writes to a topic of "
                "its own; name another one, or a new one"
            )
    if left:
        log.warning("%s: whether partitions %s hold only probes is not known", topic, ", ".join(map(str, sorted(left))))


def is_probe(message: Message) -> bool:
    """Whether the canary may have sent a message: a stamp and nothing else."""
    value = message.value()
    return message.key() is None and value is not None and len(value) == STAMP_BYTES and decode(value) is not None


def _ends(client: Any, topic: str, partitions: int, until: float) -> dict[int, tuple[int, int]]:
    """Beginning and end of the partitions that hold something; one that does not answer is not among them."""
    found = {}
    for number in range(partitions):
        left_s = until - time.monotonic()
        if left_s <= 0:
            break
        try:
            low, high = client.get_watermark_offsets(TopicPartition(topic, number), timeout=min(REQUEST_S, left_s))
        except KafkaException as raised:
            _check_right(raised.args[0], topic)
            log.debug("%s[%d]: its end is not known: %s", topic, number, raised.args[0].str())
        else:
            if high > low:
                found[number] = (low, high)
    return found


def _check_right(error: KafkaError, topic: str) -> None:
    if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        raise ConfigError(f"--topic: the user has no right to read {topic}, as the canary has to; grant it")
