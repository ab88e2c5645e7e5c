"""A source that may block, read ahead in a thread of its own."""

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing, nullcontext
from itertools import islice

from workers.accounting.stamps import STAMP_HEADER, encode
from workers.loading import named
from workers.sources import AHEAD_BYTES, AHEAD_MESSAGES, BATCH_MESSAGES, Batch, Record, SourceError, SourceRaisedError

# With any of these a message needs `produce`: of a message's own fields `produce_batch` (2.16) heeds value and key
# only, whatever its documentation says of partition and timestamp.
_BEYOND_PLAIN = frozenset({"headers", "partition", "timestamp", "on_delivery", "invalid"})


class ThreadedSource:
    """Messages from an iterable that may block, `count` at the most, read ahead within AHEAD_MESSAGES and AHEAD_BYTES.

    With `stamp`, the name of an unbound stream, each message gets a stamp in its headers.
    """

    def __init__(self, records: Iterable[Record], stamp: bytes | None = None, count: int | None = None) -> None:
        self._records = records
        self._count = count
        self._stamp = stamp
        self._sequence = 0
        self._buffer: deque[Record] = deque()
        # Each is written by one thread only, so that their difference needs no lock.
        self._bytes_in = self._bytes_out = 0
        self._ready = threading.Event()
        self._room = threading.Event()
        self._ended = self._closed = False
        self._error: SourceError | None = None
        threading.Thread(target=self._read, name="source", daemon=True).start()

    def take(self, limit: int, timeout_s: float) -> Batch | None:
        if not self._buffer:
            if self._ended and not self._buffer:
                if self._error is not None:
                    raise self._error
                return None
            self._ready.wait(timeout_s)
        self._ready.clear()
        records = [self._buffer.popleft() for _ in range(min(limit, BATCH_MESSAGES, len(self._buffer)))]
        sizes = [len(record["value"] or b"") + len(record["key"] or b"") for record in records]
        self._bytes_out += sum(sizes)
        self._room.set()
        plain = self._stamp is None and all(_BEYOND_PLAIN.isdisjoint(record) for record in records)
        if self._stamp is not None:
            for record in records:
                if "invalid" in record:
                    # It goes to another topic: in the account of this one it would be missing.
                    continue
                stamp = encode(self._stamp, self._sequence, time.time_ns() // 1000)
                # One that it came with, when it is passed on, is of another run.
                others = [header for header in record.get("headers", ()) if header[0] != STAMP_HEADER]
                record["headers"] = [*others, (STAMP_HEADER, stamp)]
                self._sequence += 1
        return Batch(records, max(sizes, default=0), -1, plain, self._stamp)

    def close(self) -> None:
        self._closed = True
        self._room.set()

    def _read(self) -> None:
        try:
            # A generator is closed in the thread that has run it.
            with closing(self._records) if isinstance(self._records, Generator) else nullcontext():
                self._read_all()
        except SourceError as error:
            self._error = error
        except BaseException as error:  # the user's code may raise anything; SystemExit is no end of the source
            self._error = SourceRaisedError(f"the source raised {named(error)}")
        finally:
            self._ended = True
            self._ready.set()

    def _read_all(self) -> None:
        for record in islice(self._records, self._count):
            size = len(record["value"] or b"") + len(record["key"] or b"")
            while not self._has_room() and not self._closed:
                self._room.wait()
                self._room.clear()
            if self._closed:
                break
            self._bytes_in += size
            self._buffer.append(record)
            self._ready.set()

    def _has_room(self) -> bool:
        return len(self._buffer) < AHEAD_MESSAGES and self._bytes_in - self._bytes_out < AHEAD_BYTES
