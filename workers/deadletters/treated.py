"""Which dead letters were replayed or discarded, in whatever order, and how that is recorded.

The committed offset of the replaying group says that all before it were replayed. It cannot say that a later one was,
and it is forgotten some time after the group was last used. So a replay out of order, and every discard, is a record in
the dead-letter topic itself, in the partition of its dead letters and behind them: retention deletes it after them, and
whoever may write dead letters may write it. Its value is for people too:

    {"offsets": [[12, 13]], "group": "kafka-workers-replay", "at": "2026-11-25T12:00:00+00:00", "by": "…", "reason": ""}

`offsets` are half-open ranges. A replay counts for the group that it names, as committed offsets do; a discard counts
for every group.
"""

import enum
import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import NamedTuple

from confluent_kafka import Message

from workers.accounting.ranges import Ranges
from workers.deadletters.headers import ORIGINAL_TOPIC, TREATED
from workers.deadletters.stored import Place
from workers.kafka.messages import headers_of


class State(enum.StrEnum):
    """The state of a dead letter."""

    WAITING = "waiting"
    REPLAYED = "replayed"
    DISCARDED = "discarded"


class Record(NamedTuple):
    """That dead letters of one partition were replayed or discarded: at which time, by which client, and why."""

    state: State
    offsets: tuple[tuple[int, int], ...]
    group: str
    at: str
    by: str
    reason: str

    @property
    def headers(self) -> list[tuple[str, str | bytes | None]]:
        return [(TREATED, self.state.encode())]

    @property
    def value(self) -> bytes:
        fields = self._asdict()
        del fields["state"]
        return json.dumps(fields, ensure_ascii=False).encode(errors="backslashreplace")


def now() -> str:
    """The time for a record."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def ranges_of(offsets: Iterable[int]) -> tuple[tuple[int, int], ...]:
    return tuple(Ranges((offset, offset + 1) for offset in offsets).merged())


def record_of(message: Message) -> Record | None:
    """The record that a message of a dead-letter topic is; None for a dead letter, and for one that is not whole."""
    headers = dict(headers_of(message))
    if TREATED not in headers or ORIGINAL_TOPIC in headers:
        return None
    try:
        state = State((headers[TREATED] or b"").decode())
        fields = json.loads(message.value() or b"")
        offsets = tuple(Ranges((int(first), int(end)) for first, end in fields["offsets"]).merged())
        texts = [str(fields[name]) for name in ("group", "at", "by", "reason")]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    # It stands behind what it is about: nothing that comes later can be treated already.
    whole = state != State.WAITING and all(first >= 0 and end <= (message.offset() or 0) for first, end in offsets)
    return Record(state, offsets, *texts) if whole else None


@dataclass(slots=True)
class _Ranges:
    """Ranges that are looked up often once all are there."""

    added: list[tuple[int, int]]
    merged: list[tuple[int, int]] | None = None

    def add(self, offsets: Iterable[tuple[int, int]]) -> None:
        self.added += offsets
        self.merged = None

    def __contains__(self, offset: int) -> bool:
        if self.merged is None:
            self.merged = Ranges(self.added).merged()
        at = bisect_right(self.merged, offset, key=itemgetter(0)) - 1
        return at >= 0 and offset < self.merged[at][1]


class Treated:
    """The states of a topic's dead letters, for one group whose committed offsets are `committed`."""

    def __init__(self, group_id: str, committed: dict[int, int]) -> None:
        self.committed = committed
        self._group_id = group_id
        self._ranges: dict[tuple[int, State], _Ranges] = {}
        self._records: dict[int, list[Record]] = {}

    def add(self, partition: int, record: Record) -> None:
        if record.state is State.REPLAYED and record.group != self._group_id:
            return
        self._records.setdefault(partition, []).append(record)
        self._ranges.setdefault((partition, record.state), _Ranges([])).add(record.offsets)

    def first_waiting(self, partition: int) -> int:
        """The group's committed offset: what is before it does not wait."""
        return self.committed.get(partition, 0)

    def state_of(self, place: Place) -> State:
        """Only what waits can be discarded: one that is recorded as both was replayed after its discard."""
        for state in (State.REPLAYED, State.DISCARDED):
            if place.offset in self._ranges.get((place.partition, state), ()):
                return state
        return State.REPLAYED if place.offset < self.first_waiting(place.partition) else State.WAITING

    def record_about(self, place: Place) -> Record | None:
        """The last record about a dead letter; None where there is none, as for one that was replayed in order."""
        for record in reversed(self._records.get(place.partition, ())):
            if any(first <= place.offset < end for first, end in record.offsets):
                return record
        return None
