"""The test bed: one cluster, and the command lines of the workers and their peers against it."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import which

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException

from bench.measure import TIMEOUT_S, Program, run
from workers.local.cluster import Cluster, finish
from workers.local.jars import KAFKA_VERSION, kafka_classpath

SIZE = 100
PYTHON = sys.executable


class Bed:
    """A cluster to measure on. `say` gets a line for each run; `rounds` is how often a comparison is repeated, `scale`
    what numbers of messages are multiplied by.
    """

    def __init__(self, cluster: Cluster, rounds: int, scale: float, say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.servers = cluster.bootstrap_servers
        self.rounds = rounds
        self.scale = scale
        self.say = say
        self._topics: list[str] = []

    def count(self, messages: int) -> int:
        return max(1000, int(messages * self.scale))

    def topic(self, partitions: int = 3) -> str:
        name = f"bench-{secrets.token_hex(4)}"
        # The messages of a deleted topic leave the disk at once instead of after a minute.
        self.cluster.create_topic(name, partitions, **{"file.delete.delay.ms": "1000"})
        self._topics.append(name)
        return name

    def only_topic(self) -> str:
        """A new topic, and no other: what earlier runs wrote must not fill the disk and the page cache."""
        self.clear()
        return self.topic()

    def clear(self) -> None:
        """Deletes every topic that was made here."""
        if not self._topics:
            return
        admin = self.cluster.admin()
        for deleted in admin.delete_topics(self._topics).values():
            try:
                finish(deleted, KafkaError.UNKNOWN_TOPIC_OR_PART)
            except KafkaException as error:
                self.say(f"  a topic was not deleted: {error.args[0].str()}")
        self._topics.clear()

    def filled(self, count: int, partitions: int = 3) -> str:
        """A topic with `count` stamped messages, so that whoever reads it has something to verify."""
        topic = self.topic(partitions)
        run(Program("filling a topic", lambda: self.producer(topic, "--count", str(count))))
        return topic

    def filled_with_keys(self, count: int, keys: int, partitions: int = 3, size: int = SIZE) -> str:
        """A topic with `count` stamped messages, each with one of `keys` keys by chance."""
        topic = self.topic(partitions)
        run(Program("filling a topic", lambda: self.bare("spread_keys", topic, count, str(size), str(keys))))
        return topic

    def producer(self, topic: str, *options: str) -> list[str]:
        return [*self._worker("produce"), "--topic", topic, "--size", str(SIZE), *options]

    def consumer(self, *topics: str, options: tuple[str, ...] = (), group: str = "") -> list[str]:
        """A member of a group of its own, unless one is named."""
        names = [word for topic in topics for word in ("--topic", topic)]
        member = ("--group-id", group or self.group(), "--from-beginning")
        return [*self._worker("consume"), *names, *member, *options]

    def bare(self, name: str, topic: str, count: int, *more: str) -> list[str]:
        return [PYTHON, "-m", "bench.bare", name, self.servers, topic, str(count), *more]

    def async_peer(self, name: str, *arguments: str) -> list[str]:
        """One of those that call a handler for many messages at once."""
        return [PYTHON, "-m", "bench.peers", name, self.servers, *arguments]

    def peer(self, *arguments: str) -> list[str] | None:
        """The loop in C, None where there is no compiler."""
        program = _compiled()
        return [program, *arguments] if program else None

    def java(self, name: str, *arguments: str) -> list[str]:
        """One of Kafka's own tools, with Java's own defaults for the heap and the collector."""
        java, *_ = self.cluster.java()
        return [java, "-cp", _tools(), f"org.apache.kafka.tools.{name}", *arguments]

    def group(self) -> str:
        return f"bench-{secrets.token_hex(4)}"

    def _worker(self, command: str) -> list[str]:
        options = ("--bootstrap-servers", self.servers, "--metrics-port", "0", "--summary", "json")
        return [PYTHON, "-m", "workers", command, *options]


@cache
def _tools() -> str:
    coordinates = f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
    return os.pathsep.join(kafka_classpath(print, coordinates))


@cache
def _compiled() -> str | None:
    """peer.c, with the very librdkafka that is in the wheel of confluent-kafka; None where it cannot be compiled."""
    compiler = which("cc")
    libraries = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    found = sorted(libraries.glob("librdkafka*.so*"))
    if compiler is None or not found:
        return None
    program = Path(tempfile.mkdtemp(prefix="kafka-workers-bench-")) / "peer"
    source = Path(__file__).with_name("peer.c")
    command = [compiler, "-O2", "-o", str(program), str(source), str(found[0]), f"-Wl,-rpath,{libraries}"]
    # The wheel's library brings what it needs beside it.
    command += [f"-Wl,-rpath-link,{libraries}"]
    subprocess.run(command, check=True, timeout=TIMEOUT_S)
    return str(program)
