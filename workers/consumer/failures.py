"""What becomes of a message whose handler raised."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """What happens when a handler raises: `on_error` is retry (for ever), dead-letter or stop after `max_attempts`
    calls.

    The pause before call n+1 is `backoff_s` doubled n-1 times, at most `backoff_max_s`, and half of it is random.
    """

    on_error: str = "dead-letter"
    max_attempts: int = 5
    backoff_s: float = 0.1
    backoff_max_s: float = 30.0

    def pause_s(self, tries: int) -> float:
        # 2.0 ** 1024 would overflow; the bound is reached long before.
        longest = min(self.backoff_max_s, self.backoff_s * 2.0 ** min(tries - 1, 60))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311  (jitter, not a secret)
