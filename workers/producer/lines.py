"""The lines of a file as messages."""

import json
import select
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

from workers.errors import ConfigError, RegistryAwayError, UnencodableError
from workers.json_text import parse_json
from workers.schemas.codecs import NO_CODECS, Codecs
from workers.sources import Record, SourceError, SourceRaisedError

# A longer line is no message but a mistake: brokers refuse more than 1 MB unless told otherwise.
MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LineFormat:
    """How a line becomes a message: as it is, split at a separator, or as a JSON object with a key field."""

    key_separator: bytes | None = None
    key_field: str | None = None
    dead_letter_invalid: bool = False
    codecs: Codecs = NO_CODECS
    topic: str = ""

    @property
    def can_refuse(self) -> bool:
        """Whether a line could be invalid."""
        return self.key_field is not None or bool(self.codecs)

    def record(self, line: bytes) -> Record:
        """The message; raises UnencodableError for a line that is none, and as `Codec.encode`."""
        key, value = self._split(line)
        codec = self.codecs.key
        if self.key_field is not None:
            found = _field_of(line, self.key_field)
            key = _key_text(found, self.key_field) if codec is None else codec.encode(found, self.topic)
        elif codec is not None and key is not None:
            key = codec.encode_json(key, self.topic)
        if self.codecs.value is None:
            return {"value": value, "key": key}
        return {"value": self.codecs.value.encode_json(value, self.topic), "key": key}

    def _split(self, line: bytes) -> tuple[bytes | None, bytes]:
        if self.key_separator is None:
            return None, line
        before, separator, after = line.partition(self.key_separator)
        return (before, after) if separator else (None, line)


class LineReader(Iterable[Record]):
    """The records of a stream's lines, each as soon as it is there; iterating raises SourceError naming the line.

    After `stop` a file ends at once: a line that was not sent is still in it. A pipe ends after the lines that were
    read from it, so that none is lost and the next reader begins with a whole one. `waiting` says that it waits for the
    writer of a pipe; it takes nothing from that after `stop`, so it can be left then. `begun` is how many bytes of a
    line it has whose end has not come.
    """

    def __init__(self, stream: BinaryIO, name: str, line_format: LineFormat) -> None:
        self.name = name
        self.begun = 0
        self._stream = stream
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
        try:
            return self._format.record(line)
        except UnencodableError as error:
            reason = f"{self.name} line {number}: {error}"
        except RegistryAwayError as error:
            raise SourceRaisedError(f"{self.name} line {number}: {error}") from None
        if self._format.dead_letter_invalid:
            return {"value": line, "key": None, "invalid": reason}
        raise SourceError(reason)

    def _lines(self) -> Iterator[bytes]:
        """Lines without their ends, each as soon as it is there: `readlines` would wait for a full buffer on a pipe."""
        pieces: list[bytes] = []
        number = 1
        read = getattr(self._stream, "read1", self._stream.read)
        while self._await_readable() and (chunk := read(1 << 16)):
            first, *lines = chunk.split(b"\n")
            pieces.append(first)
            self.begun += len(first)
            if self.begun > MAX_LINE_BYTES:
                raise SourceError(f"{self.name} line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; is it text?")
            if lines:
                yield b"".join(pieces)
                *whole, last = lines
                yield from whole
                number += len(lines)
                pieces, self.begun = [last], len(last)
        if self.begun and self._stopped:
            pieces.append(self._rest_of_line())
        if self.begun:
            self.begun = 0
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
        if sys.stdin is None:
            raise ConfigError("--input -: standard input is closed; connect a file or a pipe to it")
        return LineReader(sys.stdin.buffer, "standard input", line_format)
    try:
        stream = Path(path).open("rb")  # noqa: SIM115  (read until the process ends)
        if line_format.can_refuse and not line_format.dead_letter_invalid and stream.seekable():
            for _ in LineReader(stream, path, line_format):
                pass
            stream.seek(0)
        return LineReader(stream, path, line_format)
    except OSError as error:
        raise ConfigError(f"--input {path} cannot be read: {error.strerror}") from None
    except SourceError as error:
        stream.close()
        raise ConfigError(f"{error}; nothing was sent. Mend it, or use --on-invalid dead-letter") from None


def _field_of(line: bytes, field: str) -> Any:
    """The field of a JSON object; raises UnencodableError for a line that is none."""
    document = parse_json(line, UnencodableError)
    if not isinstance(document, dict) or field not in document:
        raise UnencodableError(f"a JSON object with the field {field!r} was expected")
    return document[field]


def _key_text(key: Any, field: str) -> bytes:
    try:
        return (key if isinstance(key, str) else json.dumps(key)).encode()
    except UnicodeEncodeError:
        raise UnencodableError(f"the field {field!r} is no text: half of a surrogate pair") from None
