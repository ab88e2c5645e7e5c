"""Fields of many messages at once, and the bytes that they take.

The first three functions are in `_fields.c` too, where `take` needs a third of the time. Those are used where they were
compiled (hatch_build.py).
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from confluent_kafka import Message

from workers.kafka.messages import drop_headers

Fields: TypeAlias = tuple[list[Any], list[Any], list[Any] | None, int]


def has_error(messages: list[Message]) -> bool:
    """Whether one of them is no message, but an error."""
    return any(map(Message.error, messages))


def of_one_partition(messages: list[Message]) -> bool:
    """Whether all have the same number of a partition."""
    partitions = [*map(Message.partition, messages)]
    return not partitions or partitions.count(partitions[0]) == len(partitions)


def take(messages: list[Message]) -> Fields:
    """Values, keys and headers of messages, and how many bytes they have. Headers are None where no message has any."""
    values: list[Any] = [*map(Message.value, messages)]
    keys: list[Any] = [*map(Message.key, messages)]
    headers: list[Any] | None = _headers(messages)
    return values, keys, headers, size(values, keys, headers)


def size(values: list[Any], keys: list[Any], headers: list[Any] | None) -> int:
    """How many bytes they have, with the names of headers."""
    try:
        found = sum(map(len, values))
    except TypeError:  # one is None
        found = sum(map(len, filter(None, values)))
    if keys.count(None) < len(keys):
        found += sum(map(len, filter(None, keys)))
    return found if headers is None else found + sum(map(len, filter(None, chain.from_iterable(each(headers)))))


def each(headers: list[Any]) -> Iterator[tuple[str, Any]]:
    """The headers of all messages, one after the other."""
    return chain.from_iterable(filter(None, headers))


def _headers(messages: list[Message]) -> list[Any] | None:
    found: list[Any] = []
    rest = iter(messages)
    while len(found) < len(messages):
        try:
            # Headers read before an error stay in the list.
            found.extend(map(Message.headers, rest))
        except SystemError:
            drop_headers(messages[len(found)])
            found.append(None)
    # A message returns the same list each time, which a handler may change in place.
    return [None if headers is None else [*headers] for headers in found] if any(found) else None


COMPILED = False
if not TYPE_CHECKING:
    with suppress(ImportError):
        from workers.kafka._fields import has_error, of_one_partition, take  # noqa: F401

        COMPILED = True
