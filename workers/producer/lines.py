"""The lines of a file as messages."""

import json
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from workers.errors import ConfigError
from workers.sources import Record, SourceError

# A longer line is no message but a mistake: brokers refuse more than 1 MB unless told otherwise.
MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LineFormat:
    """How a line becomes a message: as it is, split at a separator, or as a JSON object with a key field."""

    key_separator: bytes | None = None
    key_field: str | None = None
    dead_letter_invalid: bool = False


class LineReader(Iterable[Record]):
    """The records of a stream's lines, each as soon as it is there; iterating raises SourceError naming the line.

    After `stop` a file ends at once: a line that was not sent is still in it. A pipe ends after the lines that were
    read from it, so that none is lost and the next reader begins with a whole one. `waiting` says that it waits for the
    writer of a pipe; it takes nothing from that after `stop`, so it can be left then.
    """

    def __init__(self, stream: BinaryIO, name: str, line_format: LineFormat) -> None:
        self._stream = stream
        self._name = name
        self._format = line_format
        self._stopped = self._ends_at_once = False
        self.waiting = False
        self._poll: select.poll | None = None
        # A stream without a descriptor is in memory and never waits.
        with suppress(OSError):
            descriptor = stream.fileno()
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLIN)

    def stop(self) -> None:
        """Read nothing more than the end of a line that has begun. For any thread."""
        self._ends_at_once = self._stream.seekable()
        self._stopped = True

    def __iter__(self) -> Iterator[Record]:
        for number, line in enumerate(self._lines(), start=1):
            if self._ends_at_once:
                return
            yield self._record(number, line)

    def _record(self, number: int, line: bytes) -> Record:
        if self._format.key_field is not None:
            key, reason = _json_key(line, self._format.key_field)
            if reason is None:
                return {"value": line, "key": key}
            reason = f"{self._name} line {number}: {reason}"
            if self._format.dead_letter_invalid:
                return {"value": line, "key": None, "invalid": reason}
            raise SourceError(reason)
        if self._format.key_separator is not None:
            before, separator, after = line.partition(self._format.key_separator)
            return {"value": after, "key": before} if separator else {"value": line, "key": None}
        return {"value": line, "key": None}

    def _lines(self) -> Iterator[bytes]:
        """Lines without their ends, each as soon as it is there: `readlines` would wait for a full buffer on a pipe."""
        pieces: list[bytes] = []
        held = 0
        number = 1
        read = getattr(self._stream, "read1", self._stream.read)
        while self._await_readable() and (chunk := read(1 << 16)):
            first, *lines = chunk.split(b"\n")
            pieces.append(first)
            held += len(first)
            if held > MAX_LINE_BYTES:
                raise SourceError(f"{self._name} line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; is it text?")
            if lines:
                yield b"".join(pieces)
                *whole, last = lines
                yield from whole
                number += len(lines)
                pieces, held = [last], len(last)
        if held and self._stopped:
            pieces.append(self._rest_of_line())
        if held:
            yield b"".join(pieces)

    def _await_readable(self) -> bool:
        """Whether to read on: `read` itself would take from a pipe what came after a stop."""
        if self._poll is not None:
            self.waiting = True
            self._poll.poll()
            self.waiting = False
        return not self._stopped

    def _rest_of_line(self) -> bytes:
        """Byte by byte and past the buffer, which would take more out of a pipe than the line."""
        raw = getattr(self._stream, "raw", self._stream)

        def read() -> bytes:
            self._await_readable()
            return bytes(raw.read(1))

        return b"".join(takewhile(lambda byte: byte not in (b"", b"\n"), iter(read, None)))


def read_file(path: str, line_format: LineFormat) -> LineReader:
    """The messages in a file's lines, `-` for standard input.

    Opened, and where a line could be invalid read through, before this returns: a broken file sends nothing. Standard
    input cannot be read twice, so there the messages before a broken line are sent. Raises ConfigError when the file
    cannot be read or line N of it is not what the format asks for.
    """
    if path == "-":
        return LineReader(sys.stdin.buffer, "standard input", line_format)
    try:
        stream = Path(path).open("rb")  # noqa: SIM115  (read until the process ends)
        if line_format.key_field is not None and not line_format.dead_letter_invalid and stream.seekable():
            for _ in LineReader(stream, path, line_format):
                pass
            stream.seek(0)
        return LineReader(stream, path, line_format)
    except OSError as error:
        raise ConfigError(f"--input {path} cannot be read: {error.strerror}") from None
    except SourceError as error:
        stream.close()
        raise ConfigError(f"{error}; nothing was sent. Mend it, or use --on-invalid dead-letter") from None


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
