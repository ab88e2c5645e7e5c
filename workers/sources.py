"""The contract of a source, and the messages of a user's own function.

A source hands the producer a batch whenever it is asked (`Source`); those that are shipped are in `producer/`. A user's
function yields bytes, text or `Outgoing`, which `call_source` checks and turns into records.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from workers.errors import RegistryAwayError, UnencodableError
from workers.loading import kind_of

# One message: value and key, and maybe partition, timestamp, headers, `on_delivery`, and `invalid`, the reason why
# it belongs into the dead-letter topic.
Record: TypeAlias = dict[str, Any]
BATCH_MESSAGES = 1000
# How far a reading thread may run ahead of the producer.
AHEAD_MESSAGES = 10_000
AHEAD_BYTES = 16 * 1024 * 1024
# Bytes of the objects of one header beside its text: a tuple, a str and a bytes.
HEADER_BYTES = 150


class SourceError(Exception):
    """The source cannot go on; the text says where and why. Messages that it gave before are not affected."""


class SourceRaisedError(SourceError):
    """The user's code raised: another try may go well, as it would not with a wrong line or item."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery of one message: `outcome` is success, failure or unknown (it may still be in the log).

    The offset of a success is None where the brokers had the message already when its retry came.
    """

    outcome: str
    topic: str
    partition: int | None
    offset: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that a source yields, or that a handler gives back: the handler's has a `topic`, the source's has not.

    `value` and `key` are bytes, str or None. Where a format is set for them (--value-format of `produce`,
    --output-value-format of `consume`, and the same for keys), they are any object that the format can hold, and
    only bytes and None are written as they are.

    `timestamp_ms` is Unix time in milliseconds from 1 on, now when it is left out.

    `on_delivery` is for sources. It is called once, in the producer's thread, when the outcome is known: a source that
    reads a queue or an outbox table can mark there what was delivered. Not any more when the time to stop is up
    (--shutdown-timeout): messages that are left then were failures (never sent) or are unknown (sent without an
    answer), in the account too.
    """

    value: Any
    key: Any = None
    headers: Sequence[tuple[str, bytes | str | None]] | None = None
    partition: int | None = None
    timestamp_ms: int | None = None
    on_delivery: Callable[[Delivery], None] | None = None
    topic: str | None = None


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
    """Where the producer takes its messages from. `complete` says that it came to its own end and all was taken."""

    @property
    def complete(self) -> bool: ...

    def take(self, limit: int, timeout_s: float) -> Batch | None:
        """At most `limit` messages, an empty batch when none came within `timeout_s`, None at the end.

        Raises SourceError when the source cannot go on.
        """

    def close(self) -> None:
        """Read no more: `take` gives what was read already, and then None. May be called again."""


def size_of(record: Record) -> int:
    """The bytes that a message takes: key, value and headers."""
    size = len(record["value"] or b"") + len(record["key"] or b"")
    if "headers" in record:
        size += sum(HEADER_BYTES + len(name) + len(value or b"") for name, value in record["headers"])
    return size


def call_source(
    function: Callable[[], Iterable[Any]], name: str, encode: Callable[["Outgoing"], "Outgoing"] | None = None
) -> Iterator[Record]:
    """The records of what the user's function yields: bytes, str or Outgoing, and with `encode` any object.

    Raises SourceError for anything else.
    """
    items: Any = function()
    # Text is an iterable of its letters, and a dictionary one of its keys.
    if not isinstance(items, Iterable) or isinstance(items, str | bytes | bytearray | Mapping):
        raise SourceError(f"{name} returned {kind_of(items)}; yield messages, or return a list of them")
    # A generator holds resources (a cursor, a connection) that it releases when it is closed.
    with closing(items) if isinstance(items, Generator) else nullcontext():
        for number, item in enumerate(items, start=1):
            match item:
                case _ if encode is not None:
                    outgoing = item if isinstance(item, Outgoing) else Outgoing(item)
                    yield _encoded(outgoing, f"{name}, message {number}", encode)
                case Outgoing():
                    yield _record(item, f"{name}, message {number}")
                case bytes() | str():
                    yield _record(Outgoing(item), name)
                case _:
                    raise SourceError(
                        f"{name} yielded {kind_of(item)} as message {number}; yield bytes, str or Outgoing"
                    )


def _encoded(outgoing: Outgoing, where: str, encode: Callable[[Outgoing], Outgoing]) -> Record:
    try:
        return _record(encode(outgoing), where)
    except UnencodableError as error:
        raise SourceError(f"{where}: {error}") from None
    except RegistryAwayError as error:
        raise SourceRaisedError(f"{where}: {error}") from None


def _record(outgoing: Outgoing, where: str) -> Record:
    """Raises SourceError, naming `where`, for what the client would not take."""
    if outgoing.topic is not None:
        raise SourceError(f"{where}: topic is {outgoing.topic!r}, and a source writes to --topic; leave it out")
    try:
        return record_of(outgoing)
    except ValueError as error:
        raise SourceError(f"{where}: {error}") from None


def record_of(outgoing: Outgoing) -> Record:
    """The message as the client takes it; raises ValueError, naming the field, for what it would not take."""
    _check(outgoing)
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


def _check(outgoing: Outgoing) -> None:
    wanted = {
        "value": (bytes | str | None, "text, bytes or None where no format is set for it"),
        "key": (bytes | str | None, "text, bytes or None where no format is set for it"),
        "partition": (int | None, "a whole number or None"),
        "timestamp_ms": (int | None, "whole milliseconds or None"),
        "headers": (list | tuple | None, "pairs of a name and bytes"),
    }
    for field, (kind, remedy) in wanted.items():
        value = getattr(outgoing, field)
        if not isinstance(value, kind):
            raise ValueError(f"{field} is {kind_of(value)}; give {remedy}")
    # librdkafka takes a timestamp of 0 for now.
    for field, least, most in (("partition", -1, 2**31 - 1), ("timestamp_ms", 1, 2**63 - 1)):
        number = getattr(outgoing, field)
        if number is not None and not least <= number <= most:
            remedy = "; leave it out for now" if field == "timestamp_ms" else ""
            raise ValueError(f"{field} is {number}{remedy}")
    for header in outgoing.headers or ():
        match header:
            case (str() as title, bytes() | str() | None as text):
                if "\0" in title or not (_is_text(title) and _is_text(text)):
                    raise ValueError(f"header {header!r} holds what cannot be sent")
            case _:
                raise ValueError(f"a header is a name (str) and a value (bytes), not {header!r}")


def _is_text(data: object) -> bool:
    """Whether it can be encoded, if it is text: half of a surrogate pair cannot."""
    return not isinstance(data, str) or not any("\ud800" <= character <= "\udfff" for character in data)


def _bytes(data: bytes | str | None) -> bytes | None:
    return data.encode() if isinstance(data, str) else data
