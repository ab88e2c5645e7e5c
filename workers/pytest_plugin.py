"""Fixtures for pytest: a real three-broker Kafka, a topic, and your handler or source as a worker process.

They need the extra `testing`. pytest loads this module in every session, so the kit is imported only when a test asks
for one of them: it lies outside of `workers/testing`, whose import brings in the whole consumer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from workers.testing.kafka import Kafka, Workers


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """Three brokers on loopback, for all tests of the session."""
    from workers.testing.kafka import Kafka

    with Kafka() as cluster:
        yield cluster


@pytest.fixture
def topic(kafka: Kafka) -> Iterator[str]:
    """A topic that no other test has, with its dead-letter topic. Brokers that were killed start after the test."""
    yield kafka.create_topic()
    kafka.recover()


@pytest.fixture
def worker(kafka: Kafka, topic: str, tmp_path: Path) -> Iterator[Workers]:
    """Start consumers and producers; what still runs at the end of the test is killed."""
    from workers.testing.kafka import Workers

    workers = Workers(kafka, topic, tmp_path)
    yield workers
    workers.kill_all()
