"""Signals."""

import os
import signal
from collections.abc import Iterator

import pytest

from workers.lifecycle import Shutdown


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The signal handlers of the test runner come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_signal_does_not_end_a_worker_that_is_stopping_by_itself() -> None:
    shutdown = Shutdown(10)
    shutdown.install()
    shutdown.request()
    os.kill(os.getpid(), signal.SIGTERM)

    assert shutdown.requested  # the second one would have ended this process
