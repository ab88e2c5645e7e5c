"""Settings and fixtures of the unit tests."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.unit.members import Group
from workers.testing.memory import FakeBroker

# Where many tests share a processor, how long an example takes says nothing.
settings.register_profile("kafka-workers", deadline=None)
settings.load_profile("kafka-workers")


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker(t=1)


@pytest.fixture
def group(broker: FakeBroker) -> Iterator[Group]:
    group = Group(broker)
    yield group
    group.end()
