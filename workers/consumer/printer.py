"""The built-in handlers, which print messages on standard output."""

import base64
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

# confluent-kafka's own message: copying it into one of ours costs more than all else that a consumer does.
from confluent_kafka import Message as Message

from workers.errors import ConfigError
from workers.handlers import Lifespan, OutputClosedError, OutputError, batch
from workers.kafka.messages import headers_of

_PRINTABLE = bytes(range(ord(" "), ord("~") + 1))


def printer(name: str) -> Lifespan:
    """The handler that prints messages on standard output as text, json or value."""
    lines = FORMATS.get(name)
    if lines is None:
        raise ConfigError(f"--format {name}: expected one of {', '.join(FORMATS)}")

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
    return b"".join([(value or b"") + b"\n" for value in map(Message.value, messages)])


def _as_text(messages: Sequence[Message]) -> bytes:
    where = f"{messages[0].topic()}[{messages[0].partition()}]@".encode()
    offsets = map(Message.offset, messages)
    keys, values = (_readable([*map(field, messages)]) for field in (Message.key, Message.value))
    rows = zip(offsets, keys, values, strict=True)
    return b"".join([b"%b%d key=%b %b\n" % (where, offset or 0, key, value) for offset, key, value in rows])


def _readable(fields: list[bytes | None]) -> list[bytes]:
    """What a terminal can show in one line, whatever is in it."""
    # Nothing but printable ASCII, as nearly always: to look at all of them at once takes a tenth of the time.
    if not b"".join(filter(None, fields)).translate(None, _PRINTABLE):
        return [b"null" if field is None else field for field in fields]
    return [b"null" if field is None else _escaped(field) for field in fields]


def _escaped(data: bytes) -> bytes:
    text = data.decode("utf-8", "backslashreplace")
    return (text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)).encode()


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


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
        document["headers"] = [{"name": name, **_json_field("value", value)} for name, value in headers]
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"


def _json_field(name: str, data: bytes | None) -> dict[str, str | None]:
    """JSON strings hold text; anything else is said to be base64 in the field's name."""
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


FORMATS: dict[str, Callable[[Sequence[Message]], bytes]] = {"text": _as_text, "json": _as_json, "value": _as_value}
