"""Handlers for measuring: two that do nothing, so that what is measured is what is around them, two that take their
time, and one that notes.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from workers import Message, batch, lifespan
from workers.accounting.stamps import SENT_AT

# Where `record` writes what it saw.
RECORD = "BENCH_RECORD"
BUSY_TURNS = 2400


@batch
def each_batch(messages: Sequence[Message]) -> None:
    """Counting is the worker's own business."""


def each(message: Message) -> None:
    """Counting is the worker's own business."""


def millisecond(_: Message) -> None:
    """As one that waits for a database."""
    time.sleep(0.001)


def busy(_: Message) -> None:
    """As one that computes, in Python, for about 50 us."""
    total = 0
    for number in range(BUSY_TURNS):
        total += number * number


@lifespan
def leave() -> Iterator[Callable[[Message], None]]:
    """Ends the process where a worker would go on to its first poll: how long it took to come here is its start-up."""
    os._exit(0)
    yield each


def seen(message: Message) -> tuple[float, int, float]:
    """When a message came, from which partition, and when it was sent; in seconds after the epoch."""
    return time.time(), message.partition() or 0, int((message.value() or b"")[SENT_AT]) / 1e6


@lifespan
def record() -> Iterator[Callable[[Message], None]]:
    """Notes every message, and writes the notes at the end."""
    notes: list[tuple[float, int, float]] = []

    def note(message: Message) -> None:
        notes.append(seen(message))

    yield note
    Path(os.environ[RECORD]).write_text(json.dumps(notes))
