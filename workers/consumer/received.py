"""Messages as they were received.

A handler gets confluent-kafka's own messages and may change them. Whatever is decided, counted or written afterwards is
of what was received, so key, value and headers are taken before the handler sees them.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from confluent_kafka import Message

from workers.accounting.stamps import STAMP_HEADER
from workers.kafka import fields
from workers.kafka.messages import raw_stamp

_NAME: Callable[[tuple[str, Any]], str] = itemgetter(0)


class Received:
    """Messages of one partition in the order of their offsets, with their fields as they were received.

    `bytes` counts keys, values and headers. `headers` is None where no message has any.
    """

    __slots__ = ("bytes", "headers", "keys", "messages", "values")

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        self.values, self.keys, self.headers, self.bytes = fields.take(messages)

    def __len__(self) -> int:
        return len(self.messages)

    def part(self, begin: int, end: int | None = None) -> "Received":
        """Some of the messages, by their places."""
        headers = None if self.headers is None else self.headers[begin:end]
        return self._with(self.messages[begin:end], self.values[begin:end], self.keys[begin:end], headers)

    def pick(self, places: Sequence[int]) -> "Received":
        """The messages at `places`, which rise."""
        if len(places) == 1:
            return self.part(places[0], places[0] + 1)
        chosen = itemgetter(*places)
        headers = None if self.headers is None else [*chosen(self.headers)]
        return self._with([*chosen(self.messages)], [*chosen(self.values)], [*chosen(self.keys)], headers)

    @classmethod
    def merged(cls, parts: Sequence["Received"]) -> "Received":
        """All messages of `parts`, which are of one partition, in the order of their offsets."""
        if len(parts) == 1:
            return parts[0]
        rows = [
            (message.offset() or 0, message, value, key, headers)
            for part in parts
            for message, value, key, headers in zip(
                part.messages, part.values, part.keys, part.headers or [None] * len(part), strict=True
            )
        ]
        rows.sort(key=itemgetter(0))
        _, messages, values, keys, headers = map(list, zip(*rows, strict=True))
        return cls._with(messages, values, keys, headers if any(headers) else None)

    @classmethod
    def joined(cls, parts: Sequence["Received"]) -> "Received":
        """All messages of `parts`, each of which follows the one before."""
        if len(parts) == 1:
            return parts[0]
        headers = None
        if any(part.headers is not None for part in parts):
            headers = [*chain.from_iterable(part.headers or [None] * len(part) for part in parts)]
        messages = [*chain.from_iterable(part.messages for part in parts)]
        values = [*chain.from_iterable(part.values for part in parts)]
        keys = [*chain.from_iterable(part.keys for part in parts)]
        return cls._with(messages, values, keys, headers, sum(part.bytes for part in parts))

    def offset(self, place: int) -> int:
        """The offset of a message; a handler cannot change it."""
        return self.messages[place].offset() or 0

    def restore(self, topic: str) -> None:
        """Put back what the handler may have changed: a retry, and a dead letter, are of what was received."""
        for place, message in enumerate(self.messages):
            message.set_topic(topic)  # type: ignore[attr-defined]  # the stubs of 2.16 lack it
            message.set_value(self.values[place])
            message.set_key(self.keys[place])
            headers: Any = self.headers[place] if self.headers is not None else None
            message.set_headers(headers and [*headers])

    @property
    def stamped_in_headers(self) -> bool:
        """Whether a message has its stamp in a header."""
        return self.headers is not None and STAMP_HEADER in map(_NAME, fields.each(self.headers))

    def stamps(self) -> Iterable[bytes | None]:
        """The content of the place where each message may have its stamp."""
        return self.values if self.headers is None else map(raw_stamp, self.headers, self.values)

    @classmethod
    def _with(
        cls,
        messages: list[Message],
        values: list[Any],
        keys: list[Any],
        headers: list[Any] | None,
        size: int | None = None,
    ) -> "Received":
        made = cls.__new__(cls)
        made.messages, made.values, made.keys, made.headers = messages, values, keys, headers
        made.bytes = fields.size(values, keys, headers) if size is None else size
        return made
