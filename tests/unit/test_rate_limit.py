"""--rate: as many messages as a second allows, in slices, and no burst after a pause."""

import pytest

from workers.producer import rate_limit
from workers.producer.rate_limit import RateLimiter


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rate_limit, "time", clock)
    return clock


def run(limiter: RateLimiter, clock: Clock, seconds: float, at_most: int = 1000) -> tuple[int, int]:
    """Messages and turns of a loop that takes all it may, `at_most` in a turn, and waits as it is told."""
    until, messages, turns = clock.now + seconds, 0, 0
    while clock.now < until:
        count = min(limiter.allowance(), at_most)
        if count:
            messages += count
            turns += 1
            limiter.took(count)
        else:
            clock.now += limiter.wait_s()
    return messages, turns


@pytest.mark.parametrize("rate", [0.5, 5, 50, 250, 5_000, 200_000])
@pytest.mark.parametrize("slice_s", [0.0, 0.02])
def test_the_rate_is_kept(clock: Clock, rate: float, slice_s: float) -> None:
    messages, _ = run(RateLimiter(rate, slice_s), clock, 20)

    # A slice more at the most, and the first at once.
    assert rate * 20 * 0.99 <= messages <= rate * 20 * 1.001 + 1


def test_messages_go_in_slices(clock: Clock) -> None:
    _, turns = run(RateLimiter(250, 0.02), clock, 10)

    assert turns <= 10 / 0.02 + 1


def test_a_loop_that_is_behind_does_not_wait_for_the_next_slice(clock: Clock) -> None:
    messages, _ = run(RateLimiter(200_000, 0.02), clock, 10, at_most=100)

    assert messages >= 200_000 * 10 * 0.99


def test_a_pause_is_not_made_up_for_in_a_burst_longer_than_a_second(clock: Clock) -> None:
    limiter = RateLimiter(100, 0.02)
    limiter.took(limiter.allowance())
    clock.now += 60

    assert limiter.allowance() == 101


def test_messages_given_back_may_go_at_once(clock: Clock) -> None:
    limiter = RateLimiter(100)
    clock.now += 0.5
    limiter.took(limiter.allowance())
    assert limiter.allowance() == 0
    limiter.took(-10)

    assert limiter.allowance() in (10, 11)
