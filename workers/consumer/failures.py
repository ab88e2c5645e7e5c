"""The decision about a message whose handler raised: a pure function, which the consumer carries out."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from confluent_kafka import Message

from workers.handlers import Reject, Retry


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """How to treat a message whose handler raises: `on_error` is retry (for ever), dead-letter or stop after
    `max_attempts` calls.

    The pause before call n+1 is `backoff_s` doubled n-1 times, at most `backoff_max_s`, and half of it is random.
    """

    on_error: str = "dead-letter"
    max_attempts: int = 5
    backoff_s: float = 0.1
    backoff_max_s: float = 30.0

    def pause_s(self, backoff_step: int, jitter: float) -> float:
        """Seconds before the next call after `backoff_step` failed ones; `jitter` is 0 to 1."""
        # 2.0 ** 1024 would overflow; the bound is reached long before.
        longest = min(self.backoff_max_s, self.backoff_s * 2.0 ** min(backoff_step - 1, 60))
        return longest * (0.5 + 0.5 * jitter)


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Call the handler again after `pause_s` seconds."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class SendDeadLetter:
    """Write the message to the dead-letter topic, and go on behind it."""


@dataclass(frozen=True, slots=True)
class Isolate:
    """Handle the messages of the batch one by one, to find those that fail."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the worker; the message stays uncommitted."""


Decision = RetryLater | SendDeadLetter | Isolate | Stop
# Is told what becomes of a message: the error of its call, the decision, and how many calls have failed. The decision
# is None where the partition has gone, or begins again after an aborted transaction: the message is handled again.
OnDecision: TypeAlias = Callable[[Message, Exception, Decision | None, int], None]


def random_jitter() -> float:
    """The `jitter` of a pause."""
    return random.random()  # noqa: S311  (not a secret)


def decide(
    policy: ErrorPolicy,
    error: Exception,
    *,
    messages: int,
    attempts: int,
    backoff_step: int,
    jitter: float,
    withheld: bool = False,
) -> Decision:
    """Decide for `messages` that were handled in one call.

    `attempts` counts the calls that failed with other than Retry, `backoff_step` all that failed, both with this one.
    `withheld` says that no dead letter may be written now: the call is made again later.
    """
    if messages > 1 and not isinstance(error, Retry):
        return Isolate()
    exhausted = policy.on_error != "retry" and attempts >= policy.max_attempts
    if isinstance(error, Reject) or exhausted:
        if policy.on_error == "stop":
            return Stop()
        return RetryLater(policy.pause_s(backoff_step, jitter)) if withheld else SendDeadLetter()
    if isinstance(error, Retry) and error.after_s is not None:
        return RetryLater(error.after_s)
    return RetryLater(policy.pause_s(backoff_step, jitter))
