"""The built-in source of stamped test messages."""

import time
from collections.abc import Callable

from workers.accounting.stamps import encode_batch, stream_of
from workers.sources import AHEAD_BYTES, BATCH_MESSAGES, Batch

# Test messages, when nothing else is said: how many, and bytes of each value.
DEFAULT_COUNT = 100
DEFAULT_SIZE = 100


class StampedSource:
    """Test messages of one size, each batch bound for the next partition in turn. `count` None is without end."""

    def __init__(self, run: str, producer: int, size: int, count: int | None, partitions: Callable[[], int]) -> None:
        self._run = run
        self._producer = producer
        self.complete = self._closed = False
        self._size = size
        self._left = count
        # A small run is shared out too, so that every partition gets a part of it.
        self._share = BATCH_MESSAGES if count is None else -(-count // max(1, partitions()))
        self._partitions = partitions
        self._next: dict[int, int] = {}
        self._turn = 0

    def take(self, limit: int, timeout_s: float) -> Batch | None:  # noqa: ARG002  (it never waits)
        count = min(limit, BATCH_MESSAGES, self._share, max(1, AHEAD_BYTES // self._size))
        if self._left is not None:
            count = min(count, self._left)
            if count == 0:
                return None
            self._left -= count
        partition = self._turn % self._partitions()
        self._turn += 1
        first = self._next.get(partition, 0)
        self._next[partition] = first + count
        stream = stream_of(self._run, self._producer, partition)
        records = encode_batch(stream, first, count, time.time_ns() // 1000, self._size)
        return Batch(records, self._size, partition, True, stream)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.complete = self._left == 0
            self._left = 0
