"""Reads a topic from its beginning to its end as of now, outside of any group, and observes every stamped message."""

import time

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, TopicPartition

from workers.accounts import Observations, RunReport
from workers.client import Events, make, wait_for_topics
from workers.config import ClientConfig
from workers.lifecycle import Shutdown, WorkerError
from workers.messages import stamp_of

BATCH_MESSAGES = 1000
POLL_S = 0.5


def read_topic(config: ClientConfig, topic: str, shutdown: Shutdown, timeout_s: float | None) -> Observations:
    """Everything stamped in `topic`.

    Raises WorkerError when a partition gives nothing for `timeout_s` (None waits for ever), or a stop was asked for.
    """
    events = Events()
    client = make(
        confluent_kafka.Consumer,
        config,
        {
            **events.callbacks(),
            "enable.partition.eof": True,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        },
    )
    try:
        count = wait_for_topics(client, [topic], config, events, timeout_s=timeout_s, shutdown=shutdown).get(topic, 0)
        left = {number: _end(client, topic, number) for number in range(count)}
        left = {number: end for number, end in left.items() if end > 0}
        client.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in left])
        observations = Observations()
        last = time.monotonic()
        while left:
            if shutdown.requested:
                raise WorkerError("stopped before the end of the topic; nothing is verified")
            messages = client.consume(BATCH_MESSAGES, POLL_S)
            events.check()
            if messages:
                last = time.monotonic()
            elif timeout_s is not None and time.monotonic() - last > timeout_s:
                raise WorkerError(
                    f"nothing from {topic} partitions {sorted(left)} for {timeout_s:g} s; are their leaders up?"
                )
            for message in messages:
                _observe(message, left, observations)
        return observations
    finally:
        client.close()


def _end(client: confluent_kafka.Consumer, topic: str, partition: int) -> int:
    """The end offset now: what comes later belongs to the next verification."""
    for _ in range(10):
        try:
            return int(client.get_watermark_offsets(TopicPartition(topic, partition), timeout=5.0)[1])
        except KafkaException as error:
            reason = error.args[0].str()
    raise WorkerError(f"the end of {topic}[{partition}] is not known: {reason}")


def _observe(message: Message, left: dict[int, int], observations: Observations) -> None:
    number = message.partition()
    error = message.error()
    if number is None or number not in left:
        return
    if error is not None:
        # Aborted or compacted messages can be the last: then only the end-of-partition event tells.
        if error.code() == KafkaError._PARTITION_EOF:
            del left[number]
        return
    offset = message.offset() or 0
    if offset < left[number]:
        observations.add(number, stamp_of(message))
    if offset + 1 >= left[number]:
        del left[number]


def as_table(reports: list[RunReport], unstamped: int) -> str:
    """The reports as text, one line for each run, and which messages were lost."""
    titles = ("RUN", "SENT", "PRESENT", "MISSING", "LOST", "FAILED", "UNKNOWN", "DUPLICATED", "REORDERED", "ACCOUNT")
    rows: list[tuple[str, ...]] = [titles]
    for each in reports:
        unknown = f"{each.unknown} ({each.unknown_present} present)" if each.unknown else "0"
        account = "producer's" if each.from_account else "log only"
        numbers = (each.sent, each.present, each.missing, each.lost, each.failed)
        rows.append((each.run, *map(str, numbers), unknown, str(each.duplicated), str(each.reordered), account))
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"lost: stream and sequences {example}" for each in reports for example in each.examples]
    if unstamped:
        lines.append(f"{unstamped} messages carry no stamp")
    return "\n".join(lines)
