"""Sources whose clocks are wrong, in the stamps and in the timestamps of the messages."""

import secrets
import time
from collections.abc import Iterator

from workers import Outgoing
from workers.accounting.stamps import encode, stream_of

COUNT = 300
PARTITIONS = 3


def behind() -> Iterator[Outgoing]:
    return _skewed(-24 * 3600)


def ahead() -> Iterator[Outgoing]:
    # Brokers refuse what is more than an hour ahead: message.timestamp.after.max.ms.
    return _skewed(50 * 60)


def _skewed(seconds: int) -> Iterator[Outgoing]:
    run = secrets.token_hex(6)
    for number in range(COUNT):
        sequence, partition = divmod(number, PARTITIONS)
        now_us = time.time_ns() // 1000 + seconds * 1_000_000
        value = encode(stream_of(run, 0, partition), sequence, now_us)
        yield Outgoing(value, partition=partition, timestamp_ms=now_us // 1000)
