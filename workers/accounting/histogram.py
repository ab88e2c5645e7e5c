"""A histogram of times with a known error, small enough to fill on the hot path.

Buckets are spaced by a constant ratio, 16 to a doubling, so that a percentile read back is off by 2.2 % at most
(half a bucket), whatever the distribution. Every 16th bound is a power of two milliseconds: these are the bounds
that Prometheus gets, exactly.
"""

from math import ceil, log2

PER_DOUBLING = 16
_FIRST_MS = 0.25
_DOUBLINGS = 20  # 0.25 ms to 262 s
PROMETHEUS_BOUNDS_S = tuple(_FIRST_MS * 2**doubling / 1000 for doubling in range(_DOUBLINGS + 1))


class LatencyHistogram:
    """Counts of times; `total_s` is their sum."""

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0
        self._counts = [0] * (PER_DOUBLING * _DOUBLINGS + 2)

    def add(self, seconds: float) -> None:
        """Counts one time. A negative one, from a clock that is ahead of ours, counts as 0: a sum must never fall."""
        self.count += 1
        self.total_s += max(0.0, seconds)
        bucket = ceil(PER_DOUBLING * log2(seconds * 1000 / _FIRST_MS)) if seconds * 1000 > _FIRST_MS else 0
        self._counts[min(bucket, len(self._counts) - 1)] += 1

    def percentile(self, percent: float) -> float | None:
        """The time in seconds that `percent` of the counted ones do not exceed, or None when there are none."""
        if self.count == 0:
            return None
        wanted = max(1, ceil(self.count * percent / 100))
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if seen >= wanted:
                middle = 0.5 if bucket else 0.0
                return float(_FIRST_MS * 2 ** ((bucket - middle) / PER_DOUBLING) / 1000)
        return None

    def cumulative(self) -> list[tuple[str, float]]:
        """Buckets as Prometheus wants them: upper bound in seconds and the count up to it."""
        result = []
        seen = at = 0
        for doubling, bound in enumerate(PROMETHEUS_BOUNDS_S):
            end = doubling * PER_DOUBLING + 1
            seen += sum(self._counts[at:end])
            at = end
            result.append((repr(bound), float(seen)))
        return [*result, ("+Inf", float(self.count))]
