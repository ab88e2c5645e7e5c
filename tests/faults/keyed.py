"""A source of messages with keys, for loads whose order is that of keys."""

from collections.abc import Iterator
from itertools import count

from workers import Outgoing

KEYS = 200


def messages() -> Iterator[Outgoing]:
    # Neighbours have different keys, and each key comes again while its last message may be in the handler's hands.
    for number in count():
        yield Outgoing(b"", key=f"key-{number * 7919 % KEYS}")
