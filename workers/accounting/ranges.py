"""Sets of integers as ranges."""

from collections.abc import Iterable, Iterator
from itertools import islice


class Ranges:
    """A set of integers as half-open ranges, cheap while they are added in rising order."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Raises ValueError for a range that ends before it begins."""
        self._ranges = sorted(ranges)
        if any(start > end for start, end in self._ranges):
            raise ValueError("a range that ends before it begins")

    def add(self, number: int) -> None:
        if self._ranges and self._ranges[-1][1] == number:
            self._ranges[-1] = (self._ranges[-1][0], number + 1)
        else:
            self._ranges.append((number, number + 1))

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
        """What is in none of the others."""
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
