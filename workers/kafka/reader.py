"""Reads a topic from given offsets to its end as of now, with explicit offsets and outside of any group."""

import time
from collections.abc import Iterator, Mapping

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, TopicPartition

from workers.accounting.verify import Observations
from workers.config import ClientConfig
from workers.errors import WorkerError
from workers.kafka.client import TOPIC_GRACE_S, ClientState, create_client, wait_for_topics
from workers.kafka.messages import stamp_of
from workers.lifecycle import Shutdown

BATCH_MESSAGES = 1000
POLL_S = 0.5
END_TIMEOUT_S = 5.0
END_ATTEMPTS = 10
# Properties of a client that reads to the end.
PROPERTIES = {"enable.partition.eof": True, "enable.auto.commit": False, "auto.offset.reset": "earliest"}


def read_to_end(
    client: confluent_kafka.Consumer,
    client_state: ClientState,
    topic: str,
    starts: Mapping[int, int],
    shutdown: Shutdown,
    timeout_s: float,
    ends: Mapping[int, int] | None = None,
) -> Iterator[list[Message]]:
    """Batches of the messages between `starts`, an offset for each partition, and `ends`, or the ends of now.

    Later messages belong to the next reading. Raises WorkerError when no message is received for `timeout_s`, in which
    the caller's work on a batch does not count, or when a stop was requested.
    """
    if shutdown.requested:
        # Asked to stop before the brokers had answered: what is there is not known.
        raise WorkerError(f"stopped before the end of {topic}")
    if ends is None:
        ends = {number: watermarks(client, topic, number, shutdown)[1] for number in starts}
    left = {number: ends[number] for number in starts if ends[number] > max(0, starts[number])}
    client.assign([TopicPartition(topic, number, starts[number]) for number in left])
    last = time.monotonic()
    while left:
        if shutdown.requested:
            raise WorkerError(f"stopped before the end of {topic}")
        # `consume` would wait for a full batch as long as it may.
        first = client.poll(POLL_S)
        messages = [] if first is None else [first, *client.consume(BATCH_MESSAGES - 1, 0)]
        client_state.check()
        # Partitions that were read to their ends may go on to grow.
        heard = any(message.partition() in left for message in messages)
        if not heard and time.monotonic() - last > timeout_s:
            raise WorkerError(
                f"{topic} cannot be read to its end: partitions {sorted(left)} have sent nothing for {timeout_s:g} s; "
                "check that they have leaders, and try again"
            )
        yield [message for message in messages if _is_before_end(message, left)]
        if heard:
            last = time.monotonic()


def watermarks(client: confluent_kafka.Consumer, topic: str, partition: int, shutdown: Shutdown) -> tuple[int, int]:
    """The offsets of a partition's first message and of the one that comes next; raises WorkerError when they are not
    known.
    """
    for _ in range(END_ATTEMPTS):
        if shutdown.requested:
            raise WorkerError(f"stopped before the end of {topic}")
        try:
            low, high = client.get_watermark_offsets(TopicPartition(topic, partition), timeout=END_TIMEOUT_S)
            return int(low), int(high)
        except KafkaException as raised:
            error: KafkaError = raised.args[0]
            if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise _no_right(topic, error) from None
    raise WorkerError(
        f"the end offset of {topic}[{partition}] is unknown: {error.str()}; check that the partition has a leader, and "
        "try again"
    )


def _no_right(topic: str | None, error: KafkaError) -> WorkerError:
    return WorkerError(f"the user has no right to read {topic}; grant Read on it: {error.str()}")


def _is_before_end(message: Message, left: dict[int, int]) -> bool:
    """Whether it is to be read; takes its partition out of `left` when that is at its end."""
    number = message.partition()
    error = message.error()
    if number is None or number not in left:
        return False
    if error is not None:
        # Aborted or compacted messages can be the last: then only the end-of-partition event tells. A leader that has
        # just been elected may not know how far all replicas are, and tells an earlier end.
        if error.code() == KafkaError._PARTITION_EOF and (message.offset() or 0) >= left[number]:
            del left[number]
        elif error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise _no_right(message.topic(), error)
        return False
    following = (message.offset() or 0) + 1
    wanted = following <= left[number]
    if following >= left[number]:
        del left[number]
    return wanted


def read_topic(config: ClientConfig, topic: str, shutdown: Shutdown, timeout_s: float) -> Observations:
    """Everything stamped in `topic`; raises as `read_to_end` and `wait_for_topics` do."""
    client_state = ClientState()
    client = create_client(confluent_kafka.Consumer, config, {**client_state.callbacks(), **PROPERTIES})
    observations = Observations()
    try:
        found = wait_for_topics(
            client, [topic], config, client_state, timeout_s=timeout_s, shutdown=shutdown, grace_s=TOPIC_GRACE_S
        )
        count = found.get(topic, 0)
        starts = dict.fromkeys(range(count), OFFSET_BEGINNING)
        for messages in read_to_end(client, client_state, topic, starts, shutdown, timeout_s):
            for message in messages:
                observations.add(message.partition() or 0, stamp_of(message))
        # Afterwards: what is deleted meanwhile is not lost either.
        observations.trimmed = {n for n in starts if watermarks(client, topic, n, shutdown)[0] > 0}
        return observations
    finally:
        client.close()
