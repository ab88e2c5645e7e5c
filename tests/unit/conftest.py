"""Settings and fixtures of the unit tests."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
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


@pytest.fixture
def ca_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of CA certificates, which is looked at in each turn."""
    monkeypatch.setattr("workers.kafka.credentials.INTERVAL_S", 0.0)
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path
