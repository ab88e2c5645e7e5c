"""How many messages may be sent now (--rate)."""

import time

from workers.sources import BATCH_MESSAGES

POLL_S = 0.1
# With --rate, messages are let go at this interval.
TICK_S = 0.001


class RateLimiter:
    """How many messages may go now. Time lost to a full queue is not made up for in a burst longer than a second."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._next = time.monotonic()

    def allowance(self) -> int:
        if self._rate is None:
            return BATCH_MESSAGES
        now = time.monotonic()
        self._next = max(self._next, now - 1.0)
        return int((now - self._next) * self._rate) + 1 if now >= self._next else 0

    def took(self, count: int) -> None:
        if self._rate is not None:
            self._next += count / self._rate

    def wait_s(self) -> float:
        return min(POLL_S, max(TICK_S, self._next - time.monotonic()))
