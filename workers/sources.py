"""What is produced: the stamped test messages, the lines of a file, or whatever a user's own function yields.

A source hands the producer a batch whenever it is asked. The user's function and the reading of files run in a
thread of their own behind a bounded buffer: they may block for as long as they like, while the producer goes on
taking delivery reports and can stop in time.
"""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeAlias

from workers.config import ConfigError
from workers.loading import named
from workers.messages import STAMP_HEADER, encode, encode_batch, stream_of

# One message: value and key, and maybe partition, timestamp, headers, `on_delivery`, and `invalid`, the reason why
# it belongs into the dead-letter topic.
Record: TypeAlias = dict[str, Any]
# With any of these a message needs `produce`: of a message's own fields `produce_batch` (2.16) heeds value and key
# only, whatever its documentation says of partition and timestamp.
_BEYOND_PLAIN = frozenset({"headers", "partition", "timestamp", "on_delivery", "invalid"})

# Test messages, when nothing else is said: how many, and bytes of each value.
DEFAULT_COUNT = 100
DEFAULT_SIZE = 100
BATCH_MESSAGES = 1000
# How far a reading thread may run ahead of the producer.
AHEAD_MESSAGES = 10_000
AHEAD_BYTES = 16 * 1024 * 1024
# A longer line is no message but a mistake: brokers refuse more than 1 MB unless told otherwise.
MAX_LINE_BYTES = 64 * 1024 * 1024


class SourceError(Exception):
    """The source cannot go on; the text says where and why. What it gave before is not affected."""


class SourceRaisedError(SourceError):
    """The user's code raised: another try may go well, as it would not with a wrong line or item."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one message: `outcome` is success, failure or unknown (it may still be in the log).

    The offset of a success is None where the brokers had the message already when its retry came.
    """

    outcome: str
    topic: str
    partition: int | None
    offset: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that a source yields. `timestamp_ms` is Unix time in milliseconds, now when it is left out.

    `on_delivery` is called once, in the producer's thread, when the outcome is known: a source that reads a queue or
    an outbox table can mark there what was delivered. Not any more when the time to stop is up (--shutdown-timeout).
    """

    value: bytes | str | None
    key: bytes | str | None = None
    headers: list[tuple[str, bytes]] | None = None
    partition: int | None = None
    timestamp_ms: int | None = None
    on_delivery: Callable[[Delivery], None] | None = None


class Batch(NamedTuple):
    """Messages to send together. `partition` -1 leaves the choice to the partitioner.

    `plain` says that no message needs more than `produce_batch` gives. `stream` is set when the batch is
    stamped, with sequences in the order of its messages.
    """

    records: list[Record]
    largest_bytes: int
    partition: int = -1
    plain: bool = True
    stream: bytes | None = None


class Source(Protocol):
    """Where the producer takes its messages from."""

    def take(self, limit: int, timeout_s: float) -> Batch | None:
        """At most `limit` messages, an empty batch when none came within `timeout_s`, None at the end.

        Raises SourceError when the source cannot go on.
        """

    def close(self) -> None:
        """Nothing more will be taken."""


class StampedSource:
    """Test messages of one size, each batch bound for the next partition in turn. `count` None is without end."""

    def __init__(self, run: str, producer: int, size: int, count: int | None, partitions: Callable[[], int]) -> None:
        self._run = run
        self._producer = producer
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
        pass


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


def call_source(function: Callable[[], Iterable[Any]], name: str) -> Iterator[Record]:
    """The records of what the user's function yields: bytes, str or Outgoing. Raises SourceError for anything else."""
    items = function()
    # A generator holds resources (a cursor, a connection) that it releases when it is closed.
    with closing(items) if isinstance(items, Generator) else nullcontext():
        for number, item in enumerate(items, start=1):
            match item:
                case Outgoing():
                    yield _record(item, f"{name}, message {number}")
                case bytes() | str():
                    yield _record(Outgoing(item), name)
                case _:
                    raise SourceError(
                        f"{name} yielded a {type(item).__name__} as message {number}; yield bytes, str or Outgoing"
                    )


def _record(outgoing: Outgoing, where: str) -> Record:
    """Raises SourceError, naming `where`, for what the client would not take."""
    _check(outgoing, where)
    record: Record = {"value": _bytes(outgoing.value), "key": _bytes(outgoing.key)}
    if outgoing.partition is not None:
        record["partition"] = outgoing.partition
    if outgoing.timestamp_ms is not None:
        record["timestamp"] = outgoing.timestamp_ms
    if outgoing.headers:
        record["headers"] = list(outgoing.headers)
    if outgoing.on_delivery is not None:
        record["on_delivery"] = outgoing.on_delivery
    return record


def _check(outgoing: Outgoing, where: str) -> None:
    wanted = {
        "value": bytes | str | None,
        "key": bytes | str | None,
        "partition": int | None,
        "timestamp_ms": int | None,
        "headers": list | tuple | None,
    }
    for field, kind in wanted.items():
        value = getattr(outgoing, field)
        if not isinstance(value, kind):
            raise SourceError(f"{where}: {field} is a {type(value).__name__}")
    for field, least, most in (("partition", -1, 2**31 - 1), ("timestamp_ms", 0, 2**63 - 1)):
        number = getattr(outgoing, field)
        if number is not None and not least <= number <= most:
            raise SourceError(f"{where}: {field} is {number}")
    for header in outgoing.headers or ():
        match header:
            case (str() as title, bytes() | str() | None as text):
                if "\0" in title or not (_is_text(title) and _is_text(text)):
                    raise SourceError(f"{where}: header {header!r} holds what cannot be sent")
            case _:
                raise SourceError(f"{where}: a header is a name (str) and a value (bytes), not {header!r}")


def _is_text(data: object) -> bool:
    """Whether it can be encoded, if it is text: half of a surrogate pair cannot."""
    return not isinstance(data, str) or not any("\ud800" <= character <= "\udfff" for character in data)


def _bytes(data: bytes | str | None) -> bytes | None:
    return data.encode() if isinstance(data, str) else data


@dataclass(frozen=True, slots=True)
class LineFormat:
    """How a line becomes a message: as it is, split at a separator, or as a JSON object with a key field."""

    key_separator: bytes | None = None
    key_field: str | None = None
    dead_letter_invalid: bool = False


def read_file(path: str, line_format: LineFormat) -> Iterator[Record]:
    """The messages in a file's lines, `-` for standard input.

    Opened, and where a line could be invalid read through, before this returns: a broken file sends nothing. Standard
    input cannot be read twice, so there the messages before a broken line are sent. Raises ConfigError when the file
    cannot be read or line N of it is not what the format asks for.
    """
    if path == "-":
        return parse_lines(sys.stdin.buffer, "standard input", line_format)
    try:
        stream = Path(path).open("rb")  # noqa: SIM115  (read until the process ends)
        if line_format.key_field is not None and not line_format.dead_letter_invalid and stream.seekable():
            for _ in parse_lines(stream, path, line_format):
                pass
            stream.seek(0)
        return parse_lines(stream, path, line_format)
    except OSError as error:
        raise ConfigError(f"--input {path} cannot be read: {error.strerror}") from None
    except SourceError as error:
        stream.close()
        raise ConfigError(f"{error}; nothing was sent. Mend it, or use --on-invalid dead-letter") from None


def parse_lines(stream: BinaryIO, name: str, line_format: LineFormat) -> Iterator[Record]:
    """The records of a stream's lines; raises SourceError naming the line."""
    for number, line in enumerate(_lines(stream, name), start=1):
        if line_format.key_field is not None:
            key, reason = _json_key(line, line_format.key_field)
            if reason is None:
                yield {"value": line, "key": key}
            elif line_format.dead_letter_invalid:
                yield {"value": line, "key": None, "invalid": f"{name} line {number}: {reason}"}
            else:
                raise SourceError(f"{name} line {number}: {reason}")
        elif line_format.key_separator is not None:
            before, separator, after = line.partition(line_format.key_separator)
            yield {"value": after, "key": before} if separator else {"value": line, "key": None}
        else:
            yield {"value": line, "key": None}


def _lines(stream: BinaryIO, name: str) -> Iterator[bytes]:
    """Lines without their ends, each as soon as it is there: `readlines` would wait for a full buffer on a pipe."""
    pieces: list[bytes] = []
    held = 0
    number = 1
    read = getattr(stream, "read1", stream.read)
    while chunk := read(1 << 16):
        first, *lines = chunk.split(b"\n")
        pieces.append(first)
        held += len(first)
        if held > MAX_LINE_BYTES:
            raise SourceError(f"{name} line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; is it text?")
        if lines:
            yield b"".join(pieces)
            *whole, last = lines
            yield from whole
            number += len(lines)
            pieces, held = [last], len(last)
    if held:
        yield b"".join(pieces)


def _json_key(line: bytes, field: str) -> tuple[bytes | None, str | None]:
    """The key of a JSON line, or why it has none."""
    try:
        document = json.loads(line)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError both are
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is not UTF-8"
        return None, f"not JSON: {reason}"
    except RecursionError:
        return None, "not JSON: nested too deeply"
    if not isinstance(document, dict) or field not in document:
        return None, f"a JSON object with the field {field!r} was expected"
    key = document[field]
    try:
        return (key if isinstance(key, str) else json.dumps(key)).encode(), None
    except UnicodeEncodeError:
        return None, f"the field {field!r} is no text: half of a surrogate pair"
