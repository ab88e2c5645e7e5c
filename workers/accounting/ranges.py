"""Sets of integers as ranges."""

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeAlias

# How many ranges a CountedRanges lists: 24 bytes each in memory, about 20 in an account.
MAX_ENTRIES = 100_000
# First, last + 1, and how many of the integers between them are meant: all of them in a range.
Entry: TypeAlias = tuple[int, int, int]


class Ranges:
    """A set of integers as half-open ranges."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Raises ValueError for a range that ends before it begins."""
        self._ranges = sorted(ranges)
        if any(start > end for start, end in self._ranges):
            raise ValueError("a range that ends before it begins")

    def merged(self) -> list[tuple[int, int]]:
        """The ranges in order, none touching another."""
        result: list[tuple[int, int]] = []
        for start, end in sorted(self._ranges):
            if result and start <= result[-1][1]:
                result[-1] = (result[-1][0], max(end, result[-1][1]))
            else:
                result.append((start, end))
        return result

    def without(self, others: "Ranges") -> "Ranges":
        """The numbers that are in none of `others`."""
        left = []
        taken = others.merged()
        first = 0
        for start, end in self.merged():
            while first < len(taken) and taken[first][1] <= start:
                first += 1
            at = start
            for begin, until in islice(taken, first, None):
                if begin >= end:
                    break
                if begin > at:
                    left.append((at, begin))
                at = max(at, until)
            if at < end:
                left.append((at, end))
        return Ranges(left)

    def __iter__(self) -> Iterator[int]:
        for start, end in self.merged():
            yield from range(start, end)

    def __len__(self) -> int:
        return sum(end - start for start, end in self.merged())

    def counts_in(self, spans: "Ranges") -> list[int]:
        """How many of its integers are in each of the merged ranges of `spans`."""
        mine = self.merged()
        counts = []
        first = 0
        for begin, until in spans.merged():
            while first < len(mine) and mine[first][1] <= begin:
                first += 1
            count = 0
            for start, end in islice(mine, first, None):
                if start >= until:
                    break
                count += min(end, until) - max(start, begin)
            counts.append(count)
        return counts


class CountedRanges:
    """A set of integers, each added once, in bounded memory.

    Up to `limit` ranges it is exact. Beyond that it joins neighbours into spans, of which it knows exactly how many
    integers are in the set, and not which.
    """

    def __init__(self, entries: Iterable[Entry] = (), limit: int = MAX_ENTRIES) -> None:
        self._limit = limit
        self._starts, self._ends, self._counts = (array("q") for _ in range(3))
        for entry in entries:
            self._append(entry)

    def add(self, number: int) -> None:
        """Cheap while numbers come in rising order."""
        if self._ends and self._ends[-1] == number:
            self._ends[-1] += 1
            self._counts[-1] += 1
            return
        self._append((number, number + 1, 1))
        if len(self._ends) > self._limit:
            self._shrink()

    def entries(self) -> list[Entry]:
        """Ranges and spans in order, none overlapping another, `limit` at the most."""
        result: list[Entry] = []
        for start, end, count in sorted(zip(self._starts, self._ends, self._counts, strict=True)):
            if result:
                begin, until, before = result[-1]
                touches = start == until and count == end - start and before == until - begin
                if start < until or touches:
                    end = max(until, end)
                    # An account may hold overlapping ranges.
                    result[-1] = (begin, end, min(end - begin, before + count))
                    continue
            result.append((start, end, count))
        return result

    def document(self) -> list[list[int]]:
        """For the account: [first, last + 1] of a range, and with the count behind it of a span."""
        return [[start, end] if count == end - start else [start, end, count] for start, end, count in self.entries()]

    @property
    def exact(self) -> Ranges:
        """Those of which is known which they are."""
        return Ranges((start, end) for start, end, count in self.entries() if count == end - start)

    @property
    def spans(self) -> list[Entry]:
        """Those of which only is known how many of them are in the set."""
        return [entry for entry in self.entries() if entry[2] < entry[1] - entry[0]]

    def __len__(self) -> int:
        return sum(count for *_, count in self.entries())

    def _append(self, entry: Entry) -> None:
        for column, number in zip((self._starts, self._ends, self._counts), entry, strict=True):
            column.append(number)

    def _shrink(self) -> None:
        """To half of the limit, so that this is done once in many additions."""
        entries = self.entries()
        while len(entries) > max(1, self._limit // 2):
            pairs = zip(entries[::2], entries[1::2], strict=False)
            joined = [(start, end, one + two) for (start, _, one), (_, end, two) in pairs]
            entries = [*joined, *entries[len(joined) * 2 :]]
        self._starts, self._ends, self._counts = (array("q") for _ in range(3))
        for entry in entries:
            self._append(entry)
