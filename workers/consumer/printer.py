"""The built-in handlers, which print messages on standard output."""

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

# confluent-kafka's own message: copying it into one of ours costs more than all else that a consumer does.
from confluent_kafka import Message as Message

from workers.accounting.stamps import MAGIC, STREAM_PATTERN, StreamName
from workers.errors import ConfigError
from workers.escaping import escaped
from workers.handlers import Lifespan, OutputClosedError, OutputError, batch
from workers.json_text import json_line
from workers.kafka.messages import headers_of, json_field

_UNDECODED = {bytes, type(None)}
_PRINTABLE = bytes(range(ord(" "), ord("~") + 1))
# The whole value of a message that the built-in source made: a stamp, and padding up to --size.
_TEST_MESSAGE = re.compile(rb"kw1 (%b) (\d{12}) (\d{10})(\d{3})\d{3}(?: ~*)?" % STREAM_PATTERN)
# The topic, partition and offset at the beginning of a line.
_PLACE = re.compile(rb"^(\S+)", re.MULTILINE)


def printer(name: str) -> Lifespan:
    """The handler that prints messages on standard output as text, json or value."""
    lines = FORMATS.get(name)
    if lines is None:
        raise ConfigError(f"--format {name}: expected one of {', '.join(FORMATS)}")
    if name == "text" and sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        lines = _in_colour

    @batch
    def print_batch(messages: Sequence[Message]) -> None:
        try:
            sys.stdout.buffer.write(lines(messages))
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise OutputClosedError from None
        except OSError as error:
            raise OutputError(error.strerror) from None

    return lambda: nullcontext(print_batch)


def _as_value(messages: Sequence[Message]) -> bytes:
    return b"".join([(value or b"") + b"\n" for value in _fields(Message.value, messages)])


def _fields(field: Callable[[Message], Any], messages: Sequence[Message]) -> list[bytes | None]:
    """Keys or values; those that a format has decoded, as JSON."""
    found = [*map(field, messages)]
    if {*map(type, found)} <= _UNDECODED:
        return found
    return [each if type(each) in _UNDECODED else json_line(each) for each in found]


def _as_text(messages: Sequence[Message]) -> bytes:
    where = f"{messages[0].topic()}[{messages[0].partition()}]@".encode()
    offsets = map(Message.offset, messages)
    keys, values = (_readable(_fields(field, messages)) for field in (Message.key, Message.value))
    now_ms = time.time_ns() // 1_000_000
    values = [_as_words(value, now_ms) if value[:4] == MAGIC else value for value in values]
    rows = zip(offsets, keys, values, strict=True)
    return b"".join([b"%b%d key=%b %b\n" % (where, offset or 0, key, value) for offset, key, value in rows])


def _as_words(value: bytes, now_ms: int) -> bytes:
    """A test message for a person: its run, its number, when it was sent, and how long it took until now. A value that
    only begins like one stays as it is.
    """
    stamp = _TEST_MESSAGE.fullmatch(value)
    if stamp is None:
        return value
    stream, sequence, second, milliseconds = stamp.groups()
    took_ms = now_ms - int(second + milliseconds)
    took = b"%dms" % took_ms if took_ms < 10_000 else b"%ds" % (took_ms // 1000)
    words = (_run(stream), int(sequence), _time_of_day(second), milliseconds, took)
    return b"%b message=%d sent=%b.%bZ took=%b" % words


@lru_cache
def _run(stream: bytes) -> bytes:
    name = StreamName.of(stream)
    return f"run={name.run} producer={name.producer}".encode()


@lru_cache
def _time_of_day(second: bytes) -> bytes:
    return time.strftime("%H:%M:%S", time.gmtime(int(second))).encode()


def _in_colour(messages: Sequence[Message]) -> bytes:
    """Text with the place of a message set off from its value, for a terminal."""
    return _PLACE.sub(b"\x1b[36m\\1\x1b[0m", _as_text(messages))


def _readable(fields: list[bytes | None]) -> list[bytes]:
    """Escape fields so that a terminal shows them in one line, whatever they contain."""
    # Nothing but printable ASCII, as nearly always: to look at all of them at once takes a tenth of the time.
    if not b"".join(filter(None, fields)).translate(None, _PRINTABLE):
        return [b"null" if field is None else field for field in fields]
    return [b"null" if field is None else escaped(field) for field in fields]


def _as_json(messages: Sequence[Message]) -> bytes:
    return b"".join(map(_json_line, messages))


def _json_line(message: Message) -> bytes:
    document: dict[str, Any] = {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "timestamp": message.timestamp()[1],
        **_json_field("key", message.key()),
        **_json_field("value", message.value()),
    }
    headers = headers_of(message)
    if headers:
        document["headers"] = [{"name": name, **json_field("value", value)} for name, value in headers]
    return json_line(document) + b"\n"


def _json_field(name: str, value: Any) -> dict[str, Any]:
    return json_field(name, value) if type(value) in _UNDECODED else {name: value}


FORMATS: dict[str, Callable[[Sequence[Message]], bytes]] = {"text": _as_text, "json": _as_json, "value": _as_value}
