"""The handlers under test: they write down what they handle before they return, and now and then they fail instead.

Beside it stands how much memory their process has allocated: resident memory has in it what the heap holds free.
"""

import asyncio
import ctypes
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.books import NO_KEY
from workers import Outgoing, batch, lifespan
from workers.accounting.stamps import STAMP_BYTES
from workers.handlers import Handler, Message
from workers.kafka.messages import headers_of, raw_stamp

# Environment variable that names the file.
FILE = "RECORDER_FILE"
HOLD = "hold"
OUTPUTS = "-outputs"
# Of the calls, so that retries and paused partitions meet every fault.
FAILING = 0.01
HEAP_SUFFIX = ".heap"
LOOK_S = 1.0
# Of a call of a handler that has company, at most.
CALL_S = 0.02


class MallInfo(ctypes.Structure):
    """The result of glibc's mallinfo2(3), in bytes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


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


@lifespan
def threads() -> Iterator[Handler]:
    """For many threads: a call takes as long as one of a database, so that others overtake it."""
    descriptor = _open()

    def write(message: Message) -> None:
        _fail_at_times()
        time.sleep(random.random() * CALL_S)
        _write(descriptor, [message])

    yield write
    os.close(descriptor)


@lifespan
def outputs() -> Iterator[Handler]:
    """For an event loop: gives back what others write down, as a message to the topic with OUTPUTS behind its name."""
    os.close(_open())

    async def give_back(message: Message) -> Outgoing:
        _fail_at_times()
        await asyncio.sleep(random.random() * CALL_S)
        return Outgoing(_line(message), key=message.key(), topic=f"{message.topic()}{OUTPUTS}")

    yield give_back


@lifespan
def held() -> Iterator[Handler]:
    """Handles nothing while there is a file HOLD beside its own."""
    descriptor = _open()
    hold = Path(os.environ[FILE]).with_name(HOLD)

    def write(message: Message) -> None:
        while hold.exists():
            time.sleep(0.05)
        _write(descriptor, [message])

    yield write
    os.close(descriptor)


def _open() -> int:
    threading.Thread(target=_look_at_heap, args=(Path(os.environ[FILE] + HEAP_SUFFIX),), daemon=True).start()
    return os.open(os.environ[FILE], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _look_at_heap(path: Path) -> None:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo
    while True:
        heap = mallinfo2()
        # At once, for whoever reads it.
        written = path.with_suffix(".new")
        written.write_text(f"{heap.uordblks + heap.hblkhd}")
        written.replace(path)
        time.sleep(LOOK_S)


def _fail_at_times() -> None:
    if random.random() < FAILING:
        raise ValueError("as it happens")


def _write(descriptor: int, messages: list[Message]) -> None:
    # Unbuffered, so that what a killed member handled is known up to the last call; and in one write with O_APPEND, so
    # that the lines of many threads stay whole.
    os.write(descriptor, b"".join(_line(message) + b"\n" for message in messages))


def _line(message: Message) -> bytes:
    stamp = (raw_stamp(headers_of(message), message.value()) or b"")[:STAMP_BYTES]
    key = message.key() or NO_KEY
    assert isinstance(key, bytes)
    return b"%d %d %b %b" % (message.partition() or 0, message.offset() or 0, key, stamp)
