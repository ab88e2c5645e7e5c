"""Handlers for measuring: two do nothing, so that the worker around them is measured; others wait, or take notes."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

from workers import Message, Outgoing, batch, lifespan
from workers.accounting.stamps import SENT_AT

# Where `record` writes what it saw.
RECORD = "BENCH_RECORD"
# Where `forward` writes.
TARGET = "BENCH_TARGET"
BUSY_TURNS = 2400
# How long a handler waits of which many are called at once.
WAIT_S = 0.01
# How many keys `poisoned` fails for, and after how many other messages it says how long these took.
POISONED = "BENCH_POISONED"
WINDOW = "BENCH_WINDOW"
# It fails until it has been called for no other key so long.
STAND_S = 1.0

AsyncHandler: TypeAlias = Callable[[Message], Coroutine[Any, Any, None]]


@batch
def each_batch(messages: Sequence[Message]) -> None:
    """Counting is the worker's own business."""


def each(message: Message) -> None:
    """Counting is the worker's own business."""


def forward(message: Message) -> Outgoing:
    """Gives back what it gets, for another topic."""
    return Outgoing(message.value(), key=message.key(), topic=os.environ[TARGET])


async def forward_async(message: Message) -> Outgoing:
    """The same, in an event loop."""
    return forward(message)


@batch
def forward_batch(messages: Sequence[Message]) -> list[Outgoing]:
    """The same, for many at once."""
    return [*map(forward, messages)]


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


def key_of(number: int) -> bytes:
    """The name of a key."""
    return b"key-%d" % number


class Calls:
    """The calls of a handler: how many, when they ended, and whether those of a key came one after the other in order.

    Threads may share it: each change is one operation on a list, a set or a dict.
    """

    def __init__(self) -> None:
        self.began_at: list[float] = []
        self.ended_at: list[float] = []
        self._too_early: list[int] = []
        self._newest: dict[bytes, int] = {}
        self._busy: set[bytes] = set()

    def begin(self, key: bytes | None, offset: int) -> None:
        key = key or b""
        if key in self._busy or self._newest.get(key, -1) > offset:
            self._too_early.append(offset)
        self._busy.add(key)
        self._newest[key] = offset
        if not self.began_at:
            self.began_at.append(perf_counter())

    def end(self, key: bytes | None, *, handled: bool = True) -> None:
        self._busy.discard(key or b"")
        if handled:
            self.ended_at.append(perf_counter())

    def say(self, **more: float) -> None:
        """Prints the account. Too early: calls that began before the one before them, of the same key, had ended."""
        seconds = self.ended_at[-1] - self.began_at[0]
        account = {"calls": len(self.ended_at), "seconds": seconds, "too_early": len(self._too_early)}
        print(json.dumps({**account, **more}), flush=True)


@lifespan
async def ten_ms() -> AsyncIterator[AsyncHandler]:
    """Waits as for a service, in the event loop."""
    calls = Calls()

    async def wait(message: Message) -> None:
        calls.begin(message.key(), message.offset() or 0)
        await asyncio.sleep(WAIT_S)
        calls.end(message.key())

    yield wait
    calls.say()


@lifespan
def ten_ms_in_threads() -> Iterator[Callable[[Message], None]]:
    """Waits as for a service, in a thread."""
    calls = Calls()

    def wait(message: Message) -> None:
        calls.begin(message.key(), message.offset() or 0)
        time.sleep(WAIT_S)
        calls.end(message.key())

    yield wait
    calls.say()


@lifespan
async def poisoned() -> AsyncIterator[AsyncHandler]:
    """Fails for some keys until the bound stops all others: then it is mended, and must be called for what is left."""
    calls = Calls()
    window = int(os.environ[WINDOW])
    sick = {key_of(number) for number in range(int(os.environ[POISONED]))}
    # How many had been handled when it was mended, and when that was.
    mended: list[tuple[int, float]] = []

    async def wait(message: Message) -> None:
        key = message.key()
        calls.begin(key, message.offset() or 0)
        await asyncio.sleep(WAIT_S)
        if key in sick and not mended:
            if not calls.ended_at or perf_counter() - calls.ended_at[-1] < STAND_S:
                calls.end(key, handled=False)
                raise ValueError("poisoned")
            mended.append((len(calls.ended_at), perf_counter()))
        calls.end(key)

    yield wait
    ended, begin = calls.ended_at, calls.began_at[0]
    account = {"window_per_s": window / (ended[window - 1] - begin)}
    for before, at in mended:
        account |= {"before": before, "after_per_s": (len(ended) - before) / (ended[-1] - at)}
    calls.say(**account)


@lifespan
async def noted() -> AsyncIterator[AsyncHandler]:
    """Writes down at once when each call begins and ends, for a process that is killed."""
    file = os.open(os.environ[RECORD], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(what: bytes, message: Message) -> None:
        os.write(file, b"%b %d %d %.6f\n" % (what, message.partition() or 0, message.offset() or 0, perf_counter()))

    async def wait(message: Message) -> None:
        note(b"begin", message)
        await asyncio.sleep(WAIT_S)
        note(b"end", message)

    yield wait
    os.close(file)
