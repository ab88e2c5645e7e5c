"""One image and one stack for all tests here, where there is an engine. A test leaves the stack as it found it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.engine import IMAGE, PROJECT, Stack, build, docker, image_of, there, why_not
from workers.testing.processes import Processes

HOST_LISTENERS = "localhost:19092,localhost:29092,localhost:39092"


# Debian's, configured and asked as the image of docker-compose.yml.
PROMETHEUS = """
FROM debian:trixie-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus wget
ENTRYPOINT ["prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""


@pytest.fixture(scope="session")
def engine() -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session", params=[True, False], ids=["BuildKit", "classic"])
def buildkit(request: pytest.FixtureRequest) -> bool:
    """Which of Docker's two builders."""
    return bool(request.param)


@pytest.fixture(scope="session")
def image(engine: None, buildkit: bool) -> Iterator[str]:
    tag = f"{PROJECT}:{'buildkit' if buildkit else 'classic'}"
    build(tag, buildkit=buildkit)
    yield tag
    docker("image", "rm", tag)


@pytest.fixture(scope="module")
def stack(engine: None) -> Iterator[Stack]:
    """Not for longer than its tests: its brokers and health checks would take from all that come later."""
    running = docker("ps", "--quiet", "--filter", "label=com.docker.compose.project=kafka-workers").stdout
    assert not running, "your own stack is up and has the ports; docker compose down, then run the tests again"
    stack = Stack()
    stack.down()  # what an interrupted run has left
    stack.pull()
    docker("image", "rm", "--force", IMAGE)  # as in a clean checkout: `up` builds it
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


@pytest.fixture
def monitoring(stack: Stack, tmp_path: Path) -> Iterator[list[str]]:
    """The options of `docker compose` for the profile, with Debian's Prometheus where the real one cannot be pulled."""
    profile = ["--profile", "monitoring"]
    if there(stack.config()["services"]["prometheus"]["image"]):
        yield profile
        return
    with image_of(PROMETHEUS, tmp_path) as image:
        override = tmp_path / "compose.json"
        override.write_text(json.dumps({"services": {"prometheus": {"image": image}}}))
        yield ["--file", "docker-compose.yml", "--file", str(override), *profile]
