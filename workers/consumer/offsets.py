"""Which offsets of a partition are done, in any order, and what may be committed."""

from collections import deque
from collections.abc import Sequence

from workers.accounting.offset_metadata import MAX_RANGES


class OffsetTracker:
    """The offsets of one partition from the low-water mark on. Called by the loop's thread.

    Invariant: every received offset below `next_offset` is done; `next_offset` is the first one that is not, or what
    follows the last one. While offsets are completed in order, each call takes constant time and no memory is kept.
    """

    __slots__ = ("_done", "_outstanding", "_skipped", "furthest", "next_offset")

    def __init__(self, next_offset: int | None = None) -> None:
        self.next_offset = next_offset
        # The highest offset that is done, -1 before the first.
        self.furthest = -1
        self._outstanding: deque[int] = deque()
        self._done: set[int] = set()
        # Offsets that an earlier owner has completed; the low-water mark may have passed some of them since.
        self._skipped: set[int] = set()

    def received(self, offsets: Sequence[int]) -> None:
        """Take offsets to be completed, in rising order."""
        if not self._outstanding and offsets:
            self.next_offset = offsets[0]
        self._outstanding += offsets

    def complete(self, offset: int) -> int:
        """Mark one received offset as done; return how many offsets the low-water mark passes with that."""
        outstanding = self._outstanding
        self.furthest = max(self.furthest, offset)
        if outstanding[0] != offset:
            self._done.add(offset)
            return 0
        outstanding.popleft()
        passed = 1
        done = self._done
        while done and outstanding and outstanding[0] in done:
            done.remove(outstanding.popleft())
            passed += 1
        self.next_offset = outstanding[0] if outstanding else self.furthest + 1
        return passed

    def skip(self, offset: int) -> int:
        """As `complete`, for an offset that an earlier owner has completed."""
        passed = self.complete(offset)
        if not passed:
            self._skipped.add(offset)
        return passed

    def advance_to(self, next_offset: int) -> None:
        """Move the low-water mark where nothing is outstanding: all before `next_offset` is done or is no message."""
        self.next_offset = next_offset

    @property
    def distance(self) -> int:
        """How many offsets are done beyond the low-water mark."""
        return len(self._done)

    @property
    def completed_beyond(self) -> int:
        """How many of these this member has completed; an earlier owner has completed the others."""
        self._skipped &= self._done
        return len(self._done) - len(self._skipped)

    def ahead(self, *, own: bool = True) -> tuple[tuple[int, int], ...]:
        """The offsets done beyond the low-water mark, as half-open ranges in order; no more than the nearest
        MAX_RANGES. Without `own`, only those that an earlier owner has completed.
        """
        ranges: list[tuple[int, int]] = []
        for offset in sorted(self._done if own else self._done & self._skipped):
            if ranges and ranges[-1][1] == offset:
                ranges[-1] = (ranges[-1][0], offset + 1)
            elif len(ranges) == MAX_RANGES:
                break
            else:
                ranges.append((offset, offset + 1))
        return tuple(ranges)
