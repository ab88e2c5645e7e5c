"""The stamp: what makes a message countable.

A stamp names a stream of messages and the place of one message in it, so that whoever reads a topic can tell what
is missing, duplicated or out of order without asking the sender. It is fixed-width ASCII, readable in any tool, and
cheap to take apart:

    kw1 3f9c0a7be512 0000 00002 000000000042 1763930001234567 ~~~~~~~~
        run          |    |     sequence     sent at, us      padding
                     |    partition the stream is bound to, or -----
                     producer

The sequence counts from 0 without gaps within a stream. A stream that is bound to a partition lives in that
partition only, so a gap there is noticed as soon as the next message is read. It travels as the value of the
messages that the built-in source makes, and in a header of the user's own messages: `produce_batch` drops headers.
"""

import re
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import repeat
from operator import ge, itemgetter, lt
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

Header = TypeVar("Header", bound=tuple[str, Any])
MAGIC = b"kw1 "
# Every stamp, and all that begins like one, sorts below this.
_BEHIND_STAMPS = b"kw1!"
STAMP_HEADER = "kafka-workers-stamp"
# Where each field stands; everything that reads a stamp uses these.
STREAM = slice(4, 27)
SEQUENCE = slice(28, 40)
SENT_AT = slice(41, 57)
STAMP_BYTES = 57
RUN_CHARACTERS = 12
MAX_PRODUCERS = 10_000
# Of a sequence; formatting each anew would take twice as long as all else that a test message costs to make.
_LAST_DIGITS = [b"%03d" % number for number in range(1000)]
_UNBOUND = "-----"
_LAST_DIGIT: Callable[[bytes], int] = itemgetter(SEQUENCE.stop - 1)
_RUN = re.compile(rf"[A-Za-z0-9.-]{{1,{RUN_CHARACTERS}}}")
STREAM_PATTERN = rb"[A-Za-z0-9._-]{12} \d{4} (?:\d{5}|-----)"
_STREAM = re.compile(STREAM_PATTERN)
_STAMP = re.compile(b"kw1 %b %b" % (STREAM_PATTERN, rb"\d{12} \d{16}"))


class Stamp(NamedTuple):
    """One message's place: `sequence` in `stream`, sent at `sent_at_us` microseconds after the epoch."""

    stream: bytes
    sequence: int
    sent_at_us: int


def new_run() -> str:
    """A name for a run that no other run has."""
    return secrets.token_hex(RUN_CHARACTERS // 2)


def check_run(name: str) -> str:
    """Returns `name`; raises ValueError when it cannot stand in a stamp."""
    if not _RUN.fullmatch(name):
        raise ValueError(f"a run is named by 1 to {RUN_CHARACTERS} letters, digits, dots or dashes, not {name!r}")
    return name


def stream_of(run: str, producer: int, partition: int | None) -> bytes:
    """The name of a stream as it stands in a stamp; `partition` is None for a stream spread over partitions."""
    bound = _UNBOUND if partition is None else f"{partition:05d}"
    return f"{run.ljust(RUN_CHARACTERS, '_')} {producer:04d} {bound}".encode()


class StreamName(NamedTuple):
    """A stream's name taken apart."""

    run: str
    producer: int
    partition: int | None

    @classmethod
    def of(cls, stream: bytes) -> "StreamName":
        run, producer, partition = stream.decode().split()
        return cls(run.rstrip("_"), int(producer), None if partition == _UNBOUND else int(partition))


def is_stream(name: bytes) -> bool:
    """Whether a stream can have this name; what begins like a stamp may hold anything."""
    return _STREAM.fullmatch(name) is not None


def is_bound(stream: bytes) -> bool:
    """Whether the stream lives in one partition."""
    return stream[-1:] != b"-"


def is_bound_elsewhere(stream: bytes, partition: int) -> bool:
    """Whether the stream lives in one partition, which is not this one."""
    return is_bound(stream) and stream[-5:] != b"%05d" % partition


def without_stamp(headers: Iterable[Header]) -> list[Header]:
    """The headers of a message that is passed on: its stamp counts it in the topic that it came from."""
    return [header for header in headers if header[0] != STAMP_HEADER]


def head(stream: bytes, sequence: int) -> bytes:
    """A stamp without its time. The heads of a stream's messages sort as their sequences do."""
    return b"%b%b %012d" % (MAGIC, stream, sequence)


def encode(stream: bytes, sequence: int, sent_at_us: int) -> bytes:
    """The stamp of one message, `STAMP_BYTES` long."""
    return b"%b %016d" % (head(stream, sequence), sent_at_us)


def encode_batch(stream: bytes, first: int, count: int, sent_at_us: int, size: int) -> list[dict[str, bytes]]:
    """`count` stamped messages of `size` bytes from sequence `first` on, as `produce_batch` takes them."""
    tail = (b" %016d " % sent_at_us).ljust(size - SEQUENCE.stop, b"~")[: size - SEQUENCE.stop]
    records: list[dict[str, bytes]] = []
    while len(records) < count:
        thousands, at = divmod(first + len(records), 1000)
        begin = b"%b%b %09d" % (MAGIC, stream, thousands)
        records += [{"value": begin + digits + tail} for digits in _LAST_DIGITS[at : at + count - len(records)]]
    return records


def decode(data: bytes | None) -> Stamp | None:
    """The stamp at the beginning of `data`, or None where there is none."""
    if data is None or data[:4] != MAGIC or not _STAMP.match(data):
        return None
    return Stamp(data[STREAM], int(data[SEQUENCE]), int(data[SENT_AT]))


def none_is_stamp(values: list[Any]) -> bool:
    """Whether all values sort on one side of every stamp, as those of JSON and of most binary formats do; False says
    nothing. It takes less than half the time of looking at the beginning of each.
    """
    first = next(filter(None, values), None)
    if first is None:
        return True
    if first < MAGIC:
        return all(map(lt, filter(None, values), repeat(MAGIC)))
    return first >= _BEHIND_STAMPS and all(map(ge, filter(None, values), repeat(_BEHIND_STAMPS)))


def are_consecutive(values: list[Any], begin: bytes) -> bool:
    """Whether `values` are the stamps of one stream that begin with the one whose head is `begin`, none left out.

    They are if they are sorted, the first and the last are the right ones, and each last digit follows the one before:
    then no step is 0 or below, and there are just as many as lead from the first to the last. This makes no new object
    for a message, which would take longer than all else that is done for it.
    """
    if not values:
        return False
    first = int(begin[SEQUENCE])
    last = head(begin[STREAM], first + len(values) - 1)
    digits = (b"0123456789" * (len(values) // 10 + 2))[first % 10 :][: len(values)]
    try:
        return (
            values[0].startswith(begin)
            and values[-1].startswith(last)
            and sorted(values) == values
            and bytes(map(_LAST_DIGIT, values)) == digits
        )
    except (AttributeError, IndexError, TypeError):  # a value is None, or too short for a stamp
        return False


# Both are in `_stamps.c` too, where they need a quarter of the time or less; those are used where they were compiled.
if not TYPE_CHECKING:
    with suppress(ImportError):
        from workers.accounting._stamps import are_consecutive, none_is_stamp  # noqa: F401
