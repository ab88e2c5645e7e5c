"""Reads a topic from its beginning to its end and observes every stamped message."""

import confluent_kafka
from confluent_kafka import OFFSET_BEGINNING

from workers.accounts import Observations, RunReport
from workers.client import Events, make, wait_for_topics
from workers.config import ClientConfig
from workers.lifecycle import Shutdown
from workers.messages import stamp_of
from workers.reading import PROPERTIES, read_to_end, watermarks


def read_topic(config: ClientConfig, topic: str, shutdown: Shutdown, timeout_s: float | None) -> Observations:
    """Everything stamped in `topic`; raises as `read_to_end` and `wait_for_topics` do."""
    events = Events()
    client = make(confluent_kafka.Consumer, config, {**events.callbacks(), **PROPERTIES})
    observations = Observations()
    try:
        count = wait_for_topics(client, [topic], config, events, timeout_s=timeout_s, shutdown=shutdown).get(topic, 0)
        starts = dict.fromkeys(range(count), OFFSET_BEGINNING)
        for messages in read_to_end(client, events, topic, starts, shutdown, timeout_s):
            for message in messages:
                observations.add(message.partition() or 0, stamp_of(message))
        # Afterwards: what is deleted meanwhile is not lost either.
        observations.trimmed = {n for n in starts if watermarks(client, topic, n, shutdown)[0] > 0}
        return observations
    finally:
        client.close()


def as_table(reports: list[RunReport], observations: Observations) -> str:
    """The reports as text, one line for each run, and which messages were lost."""
    titles = ("RUN", "SENT", "PRESENT", "MISSING", "LOST", "FAILED", "UNKNOWN", "DUPLICATED", "REORDERED", "ACCOUNT")
    rows: list[tuple[str, ...]] = [titles]
    for each in reports:
        account = "producer's" if each.from_account else "log only"
        numbers = map(str, (each.sent, each.present, each.missing, each.lost))
        failed = _with_present(each.failed, each.failed_present)
        unknown = _with_present(each.unknown, each.unknown_present)
        rows.append((each.run, *numbers, failed, unknown, str(each.duplicated), str(each.reordered), account))
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"lost: stream and sequences {example}" for each in reports for example in each.examples]
    deleted = sum(each.deleted for each in reports)
    if deleted:
        trimmed = ", ".join(map(str, sorted(observations.trimmed)))
        lines.append(f"{deleted} of the missing may have been deleted with the beginning of partitions {trimmed}")
    if observations.unstamped:
        lines.append(f"{observations.unstamped} messages carry no stamp")
    return "\n".join(lines)


def _with_present(count: int, present: int) -> str:
    return f"{count} ({present} present)" if count else "0"
