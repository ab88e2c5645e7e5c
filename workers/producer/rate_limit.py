"""How many messages may be sent now (--rate)."""

import time

from workers.sources import BATCH_MESSAGES

POLL_S = 0.1
# The shortest wait.
TICK_S = 0.001


class RateLimiter:
    """How many messages may go now. Time lost to a full queue is not made up for in a burst longer than a second.

    Messages go in slices of `slice_s` seconds' worth, which spares a quick loop a turn for each message.
    """

    def __init__(self, rate: float | None, slice_s: float = 0.0) -> None:
        self._rate = rate
        self._slice_s = slice_s
        self._next = self._due = time.monotonic()

    def allowance(self) -> int:
        if self._rate is None:
            return BATCH_MESSAGES
        now = time.monotonic()
        self._next = max(self._next, now - 1.0)
        return int((now - self._next) * self._rate) + 1 if now >= self._due else 0

    def took(self, count: int) -> None:
        if self._rate is not None:
            self._next += count / self._rate
            now = time.monotonic()
            behind = now - self._next >= 1 / self._rate
            self._due = now if behind else max(self._next, now + self._slice_s)

    def wait_s(self) -> float:
        return min(POLL_S, max(TICK_S, self._due - time.monotonic()))
