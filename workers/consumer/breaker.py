"""Holds dead letters back when too many messages fail: then it is not the messages that are wrong.

An unavailable service, or a new version of the handler that fails for every message, would move a whole topic into the
dead-letter topic. Called by the loop's thread.
"""

import time
from collections import deque

# Dead letters of so long ago do not count: after that time some are let through again, to see.
WINDOW_S = 60.0
# This many in that time are let through however large their share is.
LEAST = 20


class DeadLetterBreaker:
    """Says whether one more dead letter may be written. `most` is the share of the recent messages that may become dead
    letters (0 to 1), None is without a limit.
    """

    def __init__(self, most: float | None) -> None:
        self._most = most
        # Of each recent dead letter: when it was written, and how many messages had been handled by then.
        self._recent: deque[tuple[float, int]] = deque(maxlen=100_000)

    def allows(self, handled: int) -> bool:
        """Whether one more may be written, when `handled` messages were handled or became dead letters in all."""
        if self._most is None:
            return True
        while self._recent and time.monotonic() - self._recent[0][0] > WINDOW_S:
            self._recent.popleft()
        if len(self._recent) < LEAST:
            return True
        _, handled_at_first = self._recent[0]
        return len(self._recent) <= self._most * (handled - handled_at_first + 1)

    def note(self, handled: int) -> None:
        """One more is written."""
        if self._most is not None:
            self._recent.append((time.monotonic(), handled))
