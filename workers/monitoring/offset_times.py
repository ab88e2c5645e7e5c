"""When the message at an offset was written, from the end offsets of its partition as they were seen over time.

Brokers say where a group has committed, not how old the next message is. Reading that message would need the right to
read, and a fetch for each partition behind. The end of a partition is asked for anyway: the message at an offset was
written between the last time that the end was at or below it and the first time that the end was above. Only what was
written before the first look, or between two looks that lie far apart, is looked up by the messages' own timestamps.
"""

from bisect import bisect_right
from collections.abc import Generator
from dataclasses import dataclass
from math import sqrt

# Bounds the memory of a partition to about 8 KiB.
MAX_POINTS = 64
# A time is good enough when it is known to a twentieth of the message's age.
TOLERANCE = 0.05
# Timestamps of 0 and -1 say that there is none.
FIRST_TIMESTAMP_MS = 1


@dataclass(slots=True)
class _Point:
    """The end was `offset` from `first_s` to `last_s`, Unix times."""

    offset: int
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class WriteTime:
    """A message was written between `earliest_s`, None where nothing says, and `latest_s`, Unix times."""

    earliest_s: float | None
    latest_s: float
    estimate_s: float

    def is_good(self, now_s: float, interval_s: float) -> bool:
        """Whether it is known to the interval between two looks, or well enough for its age."""
        if self.earliest_s is None:
            return False
        return self.latest_s - self.earliest_s <= max(2 * interval_s, TOLERANCE * (now_s - self.latest_s))


class OffsetTimes:
    """The ends of one partition over time.

    From point to point the offset rises and the time does not fall. At most MAX_POINTS are kept, fewer of older times.
    """

    __slots__ = ("_points", "untimed_offset")

    def __init__(self) -> None:
        self._points: list[_Point] = []
        # The last message whose time no timestamp tells: not to be looked up in every round.
        self.untimed_offset: int | None = None

    def __len__(self) -> int:
        return len(self._points)

    def add_end(self, offset: int, now_s: float) -> None:
        """Record that the partition's end is `offset` now.

        An end that fell is that of another log (topic recreated, log truncated): what was seen before is dropped.
        """
        points = self._points
        if points and offset < points[-1].offset:
            points.clear()
            self.untimed_offset = None
        if points:
            # A clock that was set back.
            now_s = max(now_s, points[-1].last_s)
        if points and offset == points[-1].offset:
            points[-1].last_s = now_s
        else:
            points.append(_Point(offset, now_s, now_s))
            self._thin()

    def add_message(self, offset: int, written_s: float) -> None:
        """Record that the message at `offset`, below the last end, was written at `written_s`.

        The observed ends win over a timestamp that contradicts them.
        """
        points = self._points
        at = bisect_right(points, offset, key=_offset_of)
        written_s = min(written_s, points[at].first_s)
        if at:
            written_s = max(written_s, points[at - 1].last_s)
        # The end was `offset` until then, and one more from then on.
        if points[at].offset == offset + 1:
            points[at].first_s = written_s
        else:
            points.insert(at, _Point(offset + 1, written_s, written_s))
        if at and points[at - 1].offset == offset:
            points[at - 1].last_s = written_s
        else:
            points.insert(at, _Point(offset, written_s, written_s))
        self._thin()

    def written(self, offset: int) -> WriteTime:
        """When the message at `offset`, below the last end, was written; between two points, linearly."""
        at = bisect_right(self._points, offset, key=_offset_of)
        after = self._points[at]
        if not at:
            return WriteTime(None, after.first_s, after.first_s)
        before = self._points[at - 1]
        share = (offset + 0.5 - before.offset) / (after.offset - before.offset)
        estimate_s = before.last_s + share * (after.first_s - before.last_s)
        return WriteTime(before.last_s, after.first_s, estimate_s)

    def forget_below(self, offset: int) -> None:
        """Drop what is needed only for messages before `offset`, the lowest one that a group has committed."""
        at = bisect_right(self._points, offset, key=_offset_of)
        del self._points[: max(0, at - 1)]

    def _thin(self) -> None:
        """Drop the points whose neighbours lie closest together for their age."""
        points = self._points
        while len(points) > MAX_POINTS:
            newest_s = points[-1].last_s + 1

            def gap(at: int, newest_s: float = newest_s) -> float:
                return (points[at + 1].first_s - points[at - 1].last_s) / (newest_s - points[at - 1].last_s)

            del points[min(range(1, len(points) - 1), key=gap)]


def _offset_of(point: _Point) -> int:
    return point.offset


# The first message that is as new as the timestamp or newer: its offset and its timestamp in ms. None: there is none.
Found = tuple[int, int] | None


def search(offset: int, known: WriteTime, now_s: float) -> Generator[int, Found, float | None]:
    """Search for the time of the message at `offset` by timestamps.

    Yields a timestamp in ms to look up, is sent what the brokers find, and returns a Unix time, or None where
    timestamps say no more than is `known`. Finds the newest timestamp up to `offset`: a message with one that is far
    too new hides the age of those behind it; the result is never later than what is known.
    """
    newest_ms = int(known.latest_s * 1000)
    found = yield FIRST_TIMESTAMP_MS if known.earliest_s is None else int(known.earliest_s * 1000)
    if found is None or found[0] > offset:
        return None
    oldest_ms = found[1]
    if found[0] == offset:
        return oldest_ms / 1000
    # A clock that was set back may be behind what it has seen: ages count from there, and none is negative.
    now_ms = max(int(now_s * 1000), newest_ms)
    while newest_ms - oldest_ms > max(1000, TOLERANCE * (now_ms - newest_ms)):
        # The middle of the ages, not of the times: a few steps from months to seconds.
        middle_ms = now_ms - int(sqrt((now_ms - oldest_ms) * max(1000, now_ms - newest_ms)))
        middle_ms = min(max(middle_ms, oldest_ms + 1), newest_ms - 1)
        found = yield middle_ms
        if found is None or found[0] > offset:
            newest_ms = middle_ms
        elif found[0] == offset:
            return found[1] / 1000
        else:
            oldest_ms = max(middle_ms, found[1])
    return min(oldest_ms, newest_ms) / 1000
