"""The handlers under test: they write down what they handle before they return, and now and then they fail instead."""

import os
import random
from collections.abc import Iterator

from workers import batch, lifespan
from workers.handlers import Handler, Message
from workers.messages import STAMP_BYTES

# Environment variable that names the file.
FILE = "RECORDER_FILE"
# Of the calls, so that retries and paused partitions meet every fault.
FAILING = 0.01


@lifespan
def batches() -> Iterator[Handler]:
    descriptor = _open()

    @batch
    def write(messages: list[Message]) -> None:
        _fail_at_times()
        _write(descriptor, messages)

    yield write
    os.close(descriptor)


@lifespan
def each() -> Iterator[Handler]:
    descriptor = _open()

    def write(message: Message) -> None:
        _fail_at_times()
        _write(descriptor, [message])

    yield write
    os.close(descriptor)


def _open() -> int:
    return os.open(os.environ[FILE], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _fail_at_times() -> None:
    if random.random() < FAILING:
        raise ValueError("as it happens")


def _write(descriptor: int, messages: list[Message]) -> None:
    lines = [
        b"%d %d %b\n" % (message.partition() or 0, message.offset() or 0, (message.value() or b"")[:STAMP_BYTES])
        for message in messages
    ]
    # Unbuffered: what a killed member handled is known up to the last call.
    os.write(descriptor, b"".join(lines))
