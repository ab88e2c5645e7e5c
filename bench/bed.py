"""The test bed: one cluster, and the command lines of the workers and their peers against it."""

import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from functools import cache

from workers.cluster import KAFKA_VERSION, Cluster, kafka_classpath

SIZE = 100
PYTHON = sys.executable


class Bed:
    """A cluster to measure on. `say` gets a line for each run; `rounds` is how often a comparison is repeated."""

    def __init__(self, cluster: Cluster, rounds: int, say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.servers = cluster.bootstrap_servers
        self.rounds = rounds
        self.say = say

    def topic(self, partitions: int = 3) -> str:
        name = f"bench-{secrets.token_hex(4)}"
        self.cluster.create_topic(name, partitions)
        return name

    def filled(self, count: int) -> str:
        """A topic with `count` stamped messages, so that whoever reads it has something to verify."""
        topic = self.topic()
        self.run(self.producer(topic, "--count", str(count)))
        return topic

    def run(self, command: list[str]) -> None:
        """Runs a command that must succeed and that nobody listens to."""
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def producer(self, topic: str, *options: str) -> list[str]:
        return [*self._worker("produce", topic), "--size", str(SIZE), *options]

    def consumer(self, topic: str, *options: str, group: str = "") -> list[str]:
        """A member of a group of its own, unless one is named."""
        return [*self._worker("consume", topic), "--group-id", group or self.group(), "--from-beginning", *options]

    def bare(self, name: str, topic: str, count: int, *more: str) -> list[str]:
        return [PYTHON, "-m", "bench.bare", name, self.servers, topic, str(count), *more]

    def java(self, name: str, *arguments: str) -> list[str]:
        """One of Kafka's own tools, with Java's own defaults for the heap and the collector."""
        java, *_ = self.cluster.java()
        return [java, "-cp", _tools(), f"org.apache.kafka.tools.{name}", *arguments]

    def group(self) -> str:
        return f"bench-{secrets.token_hex(4)}"

    def _worker(self, command: str, topic: str) -> list[str]:
        options = ("--bootstrap-servers", self.servers, "--topic", topic, "--metrics-port", "0")
        return [PYTHON, "-m", "workers", command, *options]


@cache
def _tools() -> str:
    coordinates = f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
    return os.pathsep.join(kafka_classpath(print, coordinates))
