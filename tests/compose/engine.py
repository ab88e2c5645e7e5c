"""Runs `docker` and `docker compose` as a user does, from the repository's root."""

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE = "kafka-workers"
BASE_IMAGE = "python:3.13-slim-trixie"
# A stack of its own, beside one that a developer may have; only the ports on the host are the same.
PROJECT = "kafka-workers-test"
UP_TIMEOUT_S = 300.0
# For what comes over the network where nothing is there yet.
DOWNLOAD_TIMEOUT_S = 600.0


def docker(
    *arguments: str, timeout_s: float = UP_TIMEOUT_S, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, whatever its exit code."""
    # The developer's own variables for the workers and for Compose must not reach the tests.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "COMPOSE_"))}
    return subprocess.run(
        ["docker", *arguments],
        cwd=REPOSITORY,
        env={**clean, **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def output(*arguments: str, timeout_s: float = UP_TIMEOUT_S, stdin: str = "", env: dict[str, str] | None = None) -> str:
    """The standard output of a command that must succeed."""
    result = docker(*arguments, timeout_s=timeout_s, stdin=stdin, env=env)
    assert result.returncode == 0, f"docker {' '.join(arguments)}: {result.returncode}\n{result.stderr[-4000:]}"
    return result.stdout


def why_not() -> str | None:
    """Why nothing can be run in containers here, or None."""
    try:
        engine = docker("info", "--format", "{{.ServerVersion}}", timeout_s=30)
    except FileNotFoundError:
        return "there is no docker command"
    except subprocess.TimeoutExpired:
        return "the Docker engine does not answer"
    if engine.returncode != 0:
        return f"there is no Docker engine: {engine.stderr.strip()}"
    if docker("compose", "version", timeout_s=30).returncode != 0:
        return "docker has no compose plugin (v2)"
    return None


def there(image: str) -> bool:
    """Whether the engine has an image, or can pull it."""
    if docker("image", "inspect", image).returncode == 0:
        return True
    return docker("pull", "--quiet", image, timeout_s=DOWNLOAD_TIMEOUT_S).returncode == 0


def build(tag: str, context: Path = REPOSITORY, *, buildkit: bool) -> None:
    builder = {"DOCKER_BUILDKIT": "1" if buildkit else "0"}
    output("build", "--tag", tag, str(context), timeout_s=DOWNLOAD_TIMEOUT_S, env=builder)


@contextmanager
def image_of(dockerfile: str, directory: Path) -> Iterator[str]:
    """An image for as long as a test needs it; `directory` has what its Dockerfile copies."""
    tag = f"{PROJECT}:child"
    (directory / "Dockerfile").write_text(dockerfile)
    output("build", "--tag", tag, str(directory), timeout_s=DOWNLOAD_TIMEOUT_S)
    try:
        yield tag
    finally:
        docker("image", "rm", "--force", tag)


def builder_of_compose() -> dict[str, str]:
    """Compose refuses a buildx that does not know its version, which one that was built from source does not."""
    return {"DOCKER_BUILDKIT": "0"} if " v0.0.0" in docker("buildx", "version", timeout_s=30).stdout else {}


class Stack:
    """The services of docker-compose.yml."""

    def __init__(self) -> None:
        self._environment = builder_of_compose()

    def compose(self, *arguments: str, stdin: str = "") -> str:
        return output("compose", "--project-name", PROJECT, *arguments, stdin=stdin, env=self._environment)

    def pull(self) -> None:
        """Pulls what is not there yet, so that `up` does not have to; what cannot be pulled, `up` says."""
        services = self.config()["services"].values()
        for image in {each["image"] for each in services if "profiles" not in each} - {IMAGE}:
            there(image)

    def up(self, *arguments: str) -> None:
        """As a user types it; fails when a service is not healthy."""
        self.compose("up", "--wait", *arguments)

    def down(self) -> None:
        self.compose("--profile", "monitoring", "down", "--volumes", "--remove-orphans", "--timeout", "10")

    def config(self) -> dict[str, Any]:
        """The file as Compose reads it, with every profile."""
        found: dict[str, Any] = json.loads(self.compose("--profile", "monitoring", "config", "--format", "json"))
        return found

    def containers(self, *services: str) -> list[dict[str, Any]]:
        """The engine's description of the services' containers, stopped ones too."""
        identifiers = self.compose("ps", "--all", "--quiet", *services).split()
        found: list[dict[str, Any]] = json.loads(output("inspect", *identifiers)) if identifiers else []
        return found

    def run(self, service: str, *command: str, stdin: str = "") -> str:
        """Runs a command in a container of a service that is up."""
        return self.compose("exec", "-T", service, *command, stdin=stdin)

    def verify(self, *options: str, account: str = "") -> str:
        """`kafka-workers verify` in a container of its own, with memory of its own."""
        return self.compose("run", "--rm", "--no-deps", "-T", "producer", "verify", *options, stdin=account)

    def health(self, service: str) -> str:
        return str(self.containers(service)[0]["State"]["Health"]["Status"])

    def logs(self, service: str, *arguments: str) -> str:
        return self.compose("logs", "--no-log-prefix", *arguments, service)

    def assigned_partitions(self, replica: int) -> float | None:
        """How many partitions a consumer's own metrics port reports, None when it does not answer."""
        address = self.compose("port", "--index", str(replica), "consumer", "8000").strip()
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return None
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "kafka_consumer_assigned_partitions"
        )

    def group(self) -> dict[str, Any]:
        """The consumers' group as the brokers see it."""
        found: dict[str, Any] = json.loads(self.run("producer", "kafka-workers", "lag", "--json"))
        return found


def service_of(container: dict[str, Any]) -> str:
    return str(container["Config"]["Labels"]["com.docker.compose.service"])


def published_addresses(containers: Sequence[dict[str, Any]]) -> set[str]:
    """The addresses of the host that the containers' ports are open on."""
    return {
        binding["HostIp"]
        for container in containers
        for bindings in container["NetworkSettings"]["Ports"].values()
        for binding in bindings or []
    }
