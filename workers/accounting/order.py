"""The consumer's ledger of each owned partition: gaps, duplicates and order, online and in bounded memory.

Pure bookkeeping, without a client or a clock. The exact counts of a whole log are `StreamSeen` in verify.py.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from workers.accounting.offset_metadata import MAX_BYTES
from workers.accounting.stamps import (
    MAGIC,
    SEQUENCE,
    STREAM,
    are_consecutive,
    head,
    is_bound,
    is_bound_elsewhere,
    is_stream,
)

# Bounds of one partition's OrderLedger. Beyond them an old stream starts anew and an old gap stays counted as missing.
MAX_STREAMS = 64
MAX_GAPS = 128
_GAP = re.compile(r" (\d+)-(\d+)")
_DIGITS = rf"\d{{1,{SEQUENCE.stop - SEQUENCE.start}}}"
_STREAM_LENGTH = STREAM.stop - STREAM.start
_ENTRY = re.compile(
    rf"(?P<stream>.{{{_STREAM_LENGTH}}}) (?P<next>{_DIGITS})(?P<gaps>(?: {_DIGITS}-{_DIGITS})*)", re.ASCII
)


@dataclass(slots=True)
class _Expected:
    """The next sequence of a stream, and the gaps before it that a late message may still fill."""

    next: int
    gaps: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class OrderCounts:
    """Counts of gaps, duplicates and disorder; the ledgers of a topic's partitions share one."""

    missing: int = 0
    duplicates: int = 0
    reordered: int = 0


class OrderLedger:
    """Gaps, duplicates and order of the stamped messages of one partition, as they are read.

    Invariant: a sequence below a stream's `next` was either read or is in one of its gaps. `missing` counts a
    sequence when it is skipped, and does not shrink when the message comes late: that message counts as `reordered`. A
    stream starts where it is first seen. Holds at most MAX_STREAMS streams and MAX_GAPS gaps of each.

    Messages of a stream that is bound to another partition are not counted: they came from another topic, with their
    stamps. `partition` is None where all are counted.
    """

    def __init__(self, counts: OrderCounts, text: str | None = None, partition: int | None = None) -> None:
        self._counts = counts
        self._partition = partition
        self._streams: dict[bytes, _Expected] = _from_text(text)

    def observe_consecutive(self, values: list[Any]) -> bool:
        """Fast path: record values that continue one stream; return whether they did."""
        stream = (values[0] or b"")[STREAM]
        expected = self._streams.get(stream)
        if expected is None or not are_consecutive(values, head(stream, expected.next)):
            return False
        expected.next += len(values)
        return True

    def observe(self, stamps: Iterable[bytes | None]) -> None:
        """Accounts for messages one by one, in the order of their offsets; what is no stamp is passed over."""
        streams = self._streams
        for value in stamps:
            if value is None or value[:4] != MAGIC:
                continue
            try:
                sequence = int(value[SEQUENCE])
            except ValueError:
                continue
            expected = streams.get(value[STREAM])
            if expected is not None and expected.next == sequence:
                expected.next = sequence + 1
            else:
                self._surprise(value[STREAM], expected, sequence)

    def as_text(self, room: int = MAX_BYTES) -> str:
        """The ledger for the next owner of the partition, in at most `room` bytes: the oldest gaps are left out first.
        Empty where not even the streams fit.
        """
        entries = [f"{stream.decode()} {expected.next}" for stream, expected in self._streams.items()]
        room -= sum(map(len, entries)) + len(entries)
        if room < 0:
            return ""
        for at, expected in enumerate(self._streams.values()):
            for start, end in reversed(expected.gaps):
                gap = f" {start}-{end}"
                room -= len(gap)
                if room < 0:
                    return ";".join(entries)
                entries[at] += gap
        return ";".join(entries)

    def _surprise(self, stream: bytes, expected: _Expected | None, sequence: int) -> None:
        if expected is None:
            if not is_stream(stream) or (self._partition is not None and is_bound_elsewhere(stream, self._partition)):
                return
            if len(self._streams) >= MAX_STREAMS:
                del self._streams[next(iter(self._streams))]
            self._streams[stream] = _Expected(sequence + 1)
        elif sequence > expected.next:
            if is_bound(stream):
                self._counts.missing += sequence - expected.next
                expected.gaps.append((expected.next, sequence))
                del expected.gaps[:-MAX_GAPS]
            expected.next = sequence + 1
        elif not is_bound(stream):
            # Its other messages are in other partitions, so an earlier sequence can only be out of order here.
            self._counts.reordered += 1
        elif _fill(expected.gaps, sequence):
            self._counts.reordered += 1
            del expected.gaps[:-MAX_GAPS]
        else:
            self._counts.duplicates += 1


def _fill(gaps: list[tuple[int, int]], sequence: int) -> bool:
    for at, (start, end) in enumerate(gaps):
        if start <= sequence < end:
            gaps[at : at + 1] = [gap for gap in ((start, sequence), (sequence + 1, end)) if gap[0] < gap[1]]
            return True
    return False


def _from_text(text: str | None) -> dict[bytes, _Expected]:
    streams = {}
    for entry in (text or "").split(";"):
        # Somebody else's commit may carry any text, also one that would not fit when it is committed again.
        found = _ENTRY.fullmatch(entry)
        if found is not None and is_stream(found["stream"].encode()):
            gaps = [(int(start), int(end)) for start, end in _GAP.findall(found["gaps"])]
            streams[found["stream"].encode()] = _Expected(int(found["next"]), sorted(gaps))
    return streams
