"""Dead letters as they stand in their topic, and which of them a command is about."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import NamedTuple

from confluent_kafka import Message

from workers.deadletters import headers
from workers.kafka.messages import Headers, headers_of, is_topic_name

MAX_PARTITION = 2**31 - 1
EPOCH = datetime.fromtimestamp(0, UTC)


class Origin(NamedTuple):
    """Where a dead letter came from; the partition is -1 where it does not say."""

    topic: str
    partition: int


class Place(NamedTuple):
    """A dead letter's partition and offset in the dead-letter topic; `0:12` for people."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


class StoredDeadLetter:
    """One message of a dead-letter topic. Anybody may have written it: what it does not say, or says wrongly, is None
    or empty.
    """

    def __init__(self, message: Message) -> None:
        self.message = message
        self.place = Place(message.partition() or 0, message.offset() or 0)
        self.timestamp_ms: int = message.timestamp()[1]

    @cached_property
    def _all_headers(self) -> Headers:
        return headers_of(self.message)

    @cached_property
    def _story(self) -> Mapping[str, bytes]:
        return {
            name: value or b"" for name, value in self._all_headers if name.startswith(headers.PREFIX)
        }  # the last one of a name, as own_headers drops those of the message

    @property
    def has_story(self) -> bool:
        """Whether a worker wrote it: with its origin, or as a line of `produce --on-invalid dead-letter`."""
        return headers.ORIGINAL_TOPIC in self._story or headers.ERROR_MESSAGE in self._story

    @property
    def is_invalid_line(self) -> bool:
        """Whether it is a line that `produce` could not send."""
        return headers.ORIGINAL_TOPIC not in self._story and self.error_class == headers.INVALID_LINE

    @property
    def own_headers(self) -> Headers:
        return [(name, value) for name, value in self._all_headers if not name.startswith(headers.PREFIX)]

    @property
    def origin(self) -> Origin | None:
        """The topic and the partition that it came from; None when it does not say, or not what can be."""
        topic, partition = self._story.get(headers.ORIGINAL_TOPIC), self._story.get(headers.ORIGINAL_PARTITION)
        if topic is None:
            return None
        try:
            name, number = topic.decode(), int(partition) if partition is not None else -1
        except ValueError:  # UnicodeDecodeError is one
            return None
        return Origin(name, number) if is_topic_name(name) and -1 <= number <= MAX_PARTITION else None

    @property
    def origin_offset(self) -> int | None:
        return self._number(headers.ORIGINAL_OFFSET)

    @property
    def origin_timestamp_ms(self) -> int | None:
        return self._number(headers.ORIGINAL_TIMESTAMP)

    @property
    def attempts(self) -> int | None:
        return self._number(headers.ATTEMPTS)

    @property
    def group(self) -> str:
        return self._text(headers.GROUP)

    @property
    def error_class(self) -> str:
        return self._text(headers.ERROR_CLASS)

    @property
    def error_message(self) -> str:
        return self._text(headers.ERROR_MESSAGE)

    @property
    def error_traceback(self) -> str:
        return self._text(headers.ERROR_TRACEBACK)

    def _text(self, name: str) -> str:
        return self._story.get(name, b"").decode(errors="backslashreplace")

    def _number(self, name: str) -> int | None:
        try:
            return int(self._story[name])
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which dead letters: those that each given filter matches. An empty one matches all of them."""

    letters: frozenset[Place] = frozenset()
    partitions: frozenset[int] = frozenset()
    errors: frozenset[str] = frozenset()
    keys: frozenset[bytes] = frozenset()
    source_topics: frozenset[str] = frozenset()
    source_partitions: frozenset[int] = frozenset()
    source_offsets: frozenset[int] = frozenset()
    # When it became a dead letter: from `since` on, and before `until`.
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_empty(self) -> bool:
        return self == EVERYTHING

    def includes_partition(self, partition: int) -> bool:
        """Whether a dead letter in this partition of the dead-letter topic can match."""
        if self.letters and all(place.partition != partition for place in self.letters):
            return False
        return not self.partitions or partition in self.partitions

    def first_offset(self, partition: int) -> int:
        """The lowest offset in this partition of the dead-letter topic that can match."""
        return min((place.offset for place in self.letters if place.partition == partition), default=0)

    def matches(self, letter: StoredDeadLetter) -> bool:
        origin = letter.origin or Origin("", -1)
        chosen: tuple[tuple[frozenset[object], object], ...] = (
            (self.letters, letter.place),
            (self.partitions, letter.place.partition),
            (self.errors, letter.error_class),
            (self.keys, letter.message.key()),
            (self.source_topics, origin.topic),
            (self.source_partitions, origin.partition),
            (self.source_offsets, letter.origin_offset),
        )
        if any(wanted and found not in wanted for wanted, found in chosen):
            return False
        at_ms = max(0, letter.timestamp_ms)
        return (self.since is None or _ms(self.since) <= at_ms) and (self.until is None or at_ms < _ms(self.until))


def _ms(at: datetime) -> float:
    """Unix time in milliseconds: a message may have a time that no datetime can be."""
    return (at - EPOCH) / timedelta(milliseconds=1)


EVERYTHING = Selection()
