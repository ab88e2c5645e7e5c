"""The lines of a file as messages."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
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
