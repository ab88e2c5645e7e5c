"""Settings and fixtures of the unit tests."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.unit.members import Group
from workers.testing.memory import FakeBroker

# Where many tests share a processor, how long an example takes says nothing.
settings.register_profile("kafka-workers", deadline=None)
settings.load_profile("kafka-workers")


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """The signal handlers of the test runner come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker(t=1)


@pytest.fixture
def group(broker: FakeBroker) -> Iterator[Group]:
    group = Group(broker)
    yield group
    group.end()
