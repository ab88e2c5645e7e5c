"""One image and one stack for all tests here, where there is an engine. A test leaves the stack as it found it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.engine import Stack, build, docker, why_not
from tests.processes import Processes

HOST_LISTENERS = "localhost:19092,localhost:29092,localhost:39092"


@pytest.fixture(scope="session")
def image() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    build()


@pytest.fixture(scope="session")
def stack(image: None) -> Iterator[Stack]:
    running = docker("ps", "--quiet", "--filter", "label=com.docker.compose.project=kafka-workers").stdout
    assert not running, "your own stack is up and has the ports; docker compose down, then run the tests again"
    stack = Stack()
    stack.down()  # what an interrupted run has left
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Processes]:
    """`kafka-workers` as a program outside the containers."""
    runner = Processes(HOST_LISTENERS, tmp_path)
    yield runner
    runner.kill_all()
