"""Contents of confluent-kafka's messages: headers, the stamp in them, and bytes as text for a person or a machine."""

import base64
import logging
import re
from functools import cache
from typing import NamedTuple, TypeAlias

from confluent_kafka import Message

from workers.accounting.stamps import STAMP_HEADER, Stamp, decode

log = logging.getLogger(__name__)

Headers: TypeAlias = list[tuple[str, bytes | None]]


class MessagePlace(NamedTuple):
    """Where a message is. A log has it as text, and in JSON each field beside that."""

    topic: str
    partition: int
    offset: int | None

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}] offset {self.offset}"

    @property
    def log_fields(self) -> dict[str, object]:
        return self._asdict()


def headers_of(message: Message) -> Headers:
    """The headers of a message, none where it has none; librdkafka has their values as bytes."""
    try:
        headers = message.headers() or []
    except SystemError:
        drop_headers(message)
        return []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in pairs]


def drop_headers(message: Message) -> None:
    """Empty the headers of a message for which the binding has raised SystemError: one has a name that is not UTF-8.

    When asked again, the binding (2.16) hands out the list that it had broken off with, which crashes the process.
    """
    message.set_headers([])
    _tell_of_names(message.topic())


@cache
def _tell_of_names(topic: str | None) -> None:
    log.warning("%s has messages with a header name that is not UTF-8: their headers cannot be read", topic)


def raw_stamp(headers: Headers | None, value: bytes | None) -> bytes | None:
    """The content of the place where a message may have its stamp: the header, or else the value.

    The header first: the value of a user's message may be anything, a stamp of another run too.
    """
    for name, stamp in headers or ():
        if name == STAMP_HEADER:
            return stamp
    return value


def stamp_of(message: Message) -> Stamp | None:
    """The stamp of a message, in its header or in its value."""
    return decode(raw_stamp(headers_of(message), message.value()))


def is_topic_name(name: str) -> bool:
    """Whether Kafka takes `name` for a topic. The rule is that of Topic.validate in Kafka."""
    return re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", name) is not None and name not in (".", "..")


def json_field(name: str, data: bytes | None) -> dict[str, str | None]:
    """JSON strings hold text; anything else is said to be base64 in the field's name."""
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}
