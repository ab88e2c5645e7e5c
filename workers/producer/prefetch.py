"""A source that may block, read ahead in a thread of its own."""

import logging
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing, nullcontext
from itertools import islice

from workers.accounting.stamps import STAMP_HEADER, encode, without_stamp
from workers.loading import located
from workers.producer.lines import LineReader
from workers.sources import (
    AHEAD_BYTES,
    AHEAD_MESSAGES,
    BATCH_MESSAGES,
    Batch,
    Record,
    SourceError,
    SourceRaisedError,
    size_of,
)

log = logging.getLogger(__name__)
# After `close`, a source that is in the middle of its next message is waited for this long: an idle one may wait there
# for ever, and a stop must not.
GRACE_S = 1.0
# For the end of a line that a pipe has begun: a writer with a buffer writes parts of lines.
LINE_GRACE_S = 2.0
# With any of these a message needs `produce`: of a message's own fields `produce_batch` (2.16) heeds value and key
# only, whatever its documentation says of partition and timestamp.
_BEYOND_PLAIN = frozenset({"headers", "partition", "timestamp", "on_delivery", "invalid"})


def ahead_at(rate: float | None) -> int:
    """How many messages to read ahead at `rate` messages a second: those of one second.

    They are sent at once at a stop, as the rate limiter would let them go after a second of waiting. Ten thousand
    would be a burst that nobody who asks for a rate expects, or a stop of minutes.
    """
    return AHEAD_MESSAGES if rate is None else min(AHEAD_MESSAGES, max(1, int(rate)))


class ThreadedSource:
    """Messages from an iterable that may block, `count` at the most, read ahead within `ahead` and AHEAD_BYTES.

    With `stamp`, the name of an unbound stream, each message gets a stamp in its headers. After `close`, `take` gives
    what was read, the message that the thread has in hand too. A source that does not come back from its next message
    within GRACE_S is left; what it yields later is not taken, and that is logged.
    """

    def __init__(
        self,
        records: Iterable[Record],
        stamp: bytes | None = None,
        count: int | None = None,
        ahead: int = AHEAD_MESSAGES,
    ) -> None:
        self.complete = False
        self._records = records
        self._count = count
        self._stamp = stamp
        self._ahead = ahead
        self._sequence = 0
        self._buffer: deque[tuple[Record, int]] = deque()
        # Each is written by one thread only, so that their difference needs no lock.
        self._bytes_in = self._bytes_out = 0
        self._ready = threading.Event()
        self._room = threading.Event()
        self._ended = self._closed = self._left = False
        self._leave_at = float("inf")
        # Held where the thread adds a message after `close`, and where `take` leaves it.
        self._leaving = threading.Lock()
        self._error: SourceError | None = None
        threading.Thread(target=self._read, name="source", daemon=True).start()

    def take(self, limit: int, timeout_s: float) -> Batch | None:
        if not self._buffer:
            if self._ended and not self._buffer:
                if self._error is not None:
                    raise self._error
                return None
            if self._leave():
                self._check_line()
                return None
            self._ready.wait(timeout_s)
        self._ready.clear()
        taken = [self._buffer.popleft() for _ in range(min(limit, BATCH_MESSAGES, len(self._buffer)))]
        records = [record for record, _ in taken]
        sizes = [size for _, size in taken]
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
                record["headers"] = [*without_stamp(record.get("headers", ())), (STAMP_HEADER, stamp)]
                self._sequence += 1
        return Batch(records, max(sizes, default=0), -1, plain, self._stamp)

    def close(self) -> None:
        if not self._closed:
            self._leave_at = time.monotonic() + GRACE_S
            self._closed = True
            if isinstance(self._records, LineReader):
                self._records.stop()
            self._room.set()

    def _leave(self) -> bool:
        """Whether the thread is left where it is: it has had its time, and has added nothing."""
        reader = self._records if isinstance(self._records, LineReader) else None
        # A reader of lines that does not wait for its writer has taken lines, which are nowhere else.
        busy = reader is not None and not reader.waiting
        leave_at = self._leave_at + (LINE_GRACE_S if reader is not None and reader.begun else 0.0)
        with self._leaving:
            self._left = time.monotonic() >= leave_at and not self._buffer and not busy
        return self._left

    def _check_line(self) -> None:
        """Raises SourceError where a line was left whose end has not come."""
        if isinstance(self._records, LineReader) and self._records.begun:
            raise SourceError(
                f"{self._records.name}: the stop came in the middle of a line, and the rest did not come within "
                f"{LINE_GRACE_S:g} s: its first {self._records.begun} bytes were not sent; send that line again"
            )

    def _read(self) -> None:
        try:
            # A generator is closed in the thread that has run it.
            with closing(self._records) if isinstance(self._records, Generator) else nullcontext():
                self._read_all()
        except SourceError as error:
            self._error = error
        except BaseException as error:  # the user's code may raise anything; SystemExit is no end of the source
            self._error = SourceRaisedError(f"the source raised {located(error)}")
        finally:
            self._ended = True
            self._ready.set()

    def _read_all(self) -> None:
        for number, record in enumerate(islice(self._records, self._count), start=1):
            while not self._has_room() and not self._closed:
                self._room.wait()
                self._room.clear()
            if not self._closed:
                self._add(record)
                continue
            with self._leaving:
                if self._left:
                    log.warning("the source yielded a message after it was left: it was not sent")
                    return
                self._add(record)
            # The lines that were read from a pipe are in no pipe any more.
            if not isinstance(self._records, LineReader):
                self.complete = number == self._count
                return
        # A reader of lines that was stopped has ended without being at its end.
        self.complete = not (self._closed and isinstance(self._records, LineReader))

    def _add(self, record: Record) -> None:
        size = size_of(record)
        self._bytes_in += size
        self._buffer.append((record, size))
        self._ready.set()

    def _has_room(self) -> bool:
        return len(self._buffer) < self._ahead and self._bytes_in - self._bytes_out < AHEAD_BYTES
