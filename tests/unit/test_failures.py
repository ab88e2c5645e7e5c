"""Decisions about messages whose handler raised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.consumer.failures import (
    Decision,
    ErrorPolicy,
    Isolate,
    RetryLater,
    SendDeadLetter,
    Stop,
    decide,
)
from workers.handlers import Reject, Retry

FAILED = ValueError("it failed")
PAUSE = RetryLater(1.0)


@pytest.mark.parametrize(
    ("on_error", "error", "messages", "attempts", "decision"),
    [
        # One message, or the first that a single handler has not handled.
        ("dead-letter", FAILED, 1, 1, PAUSE),
        ("dead-letter", FAILED, 1, 2, PAUSE),
        ("dead-letter", FAILED, 1, 3, SendDeadLetter()),
        ("dead-letter", FAILED, 1, 4, SendDeadLetter()),
        ("stop", FAILED, 1, 2, PAUSE),
        ("stop", FAILED, 1, 3, Stop()),
        ("retry", FAILED, 1, 3, PAUSE),
        ("retry", FAILED, 1, 10**6, PAUSE),
        # It will never work: no other try.
        ("dead-letter", Reject("never"), 1, 1, SendDeadLetter()),
        ("retry", Reject("never"), 1, 1, SendDeadLetter()),
        ("stop", Reject("never"), 1, 1, Stop()),
        # Not now: such a call is not counted, so it never exhausts the attempts by itself.
        ("dead-letter", Retry("away"), 1, 0, PAUSE),
        ("dead-letter", Retry("away"), 1, 2, PAUSE),
        ("stop", Retry("away"), 1, 0, PAUSE),
        ("retry", Retry("away"), 1, 0, PAUSE),
        ("dead-letter", Retry("away", after_s=7), 1, 0, RetryLater(7)),
        ("dead-letter", Retry("away", after_s=0), 1, 0, RetryLater(0)),
        # A batch: the failing message must be found first, except when a dependency of all of them is unavailable.
        ("dead-letter", FAILED, 2, 1, Isolate()),
        ("dead-letter", FAILED, 2, 3, Isolate()),
        ("retry", FAILED, 2, 1, Isolate()),
        ("stop", FAILED, 2, 3, Isolate()),
        ("dead-letter", Reject("one of them"), 2, 1, Isolate()),
        ("stop", Reject("one of them"), 2, 1, Isolate()),
        ("dead-letter", Retry("away"), 2, 0, PAUSE),
        ("dead-letter", Retry("away", after_s=7), 2, 0, RetryLater(7)),
    ],
)
def test_an_error_leads_to_its_decision(
    on_error: str, error: Exception, messages: int, attempts: int, decision: Decision
) -> None:
    policy = ErrorPolicy(on_error, max_attempts=3, backoff_s=1.0, backoff_max_s=30.0)

    assert decide(policy, error, messages=messages, attempts=attempts, backoff_step=1, jitter=1.0) == decision


def test_pauses_double_up_to_their_bound() -> None:
    policy = ErrorPolicy("retry", backoff_s=0.1, backoff_max_s=1.0)
    pauses = [
        decide(policy, FAILED, messages=1, attempts=step, backoff_step=step, jitter=1.0) for step in (1, 2, 3, 4, 5, 50)
    ]

    assert pauses == [RetryLater(pause_s) for pause_s in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0)]


@given(st.floats(0, 1000), st.floats(0, 1000), st.integers(1, 10**6), st.floats(0, 1))
def test_a_pause_is_half_to_whole_of_its_step_however_often_it_failed(
    backoff_s: float, backoff_max_s: float, step: int, jitter: float
) -> None:
    policy = ErrorPolicy(backoff_s=backoff_s, backoff_max_s=backoff_max_s)
    whole = policy.pause_s(step, 1.0)

    assert whole <= backoff_max_s
    assert whole >= min(backoff_s, backoff_max_s)
    assert 0.5 * whole <= policy.pause_s(step, jitter) <= whole
