"""Messages per second and CPU of whole processes: the workers beside bare loops, Java's tools and kcat."""

import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import cache

from bench.measure import Program, Sample, in_turns
from workers.cluster import KAFKA_VERSION, Cluster, kafka_classpath

SIZE = 100
WORKER = (sys.executable, "-m", "workers")
BARE = (sys.executable, "-m", "bench.bare")
# Its own producer has a linger of 0 since 0.x and of 5 ms since 4.0; the rest are the settings of its own guarantees.
JAVA_PRODUCER = ("acks=all", "enable.idempotence=true")


def produce(cluster: Cluster, count: int, rounds: int, say: Callable[[str], None]) -> list[Sample]:
    servers = cluster.bootstrap_servers
    topic = _topic(cluster)
    ours = (*WORKER, "produce", "--bootstrap-servers", servers, "--topic", topic, "--metrics-port", "0")
    java = java_tool(cluster, "ProducerPerformance", "--topic", topic, "--record-size", str(SIZE))
    java += ["--num-records", str(count), "--throughput", "-1", "--producer-props", f"bootstrap.servers={servers}"]
    programs = [
        _fixed("kafka-workers produce", *ours, "--count", str(count), "--size", str(SIZE)),
        _fixed("bare produce_batch with a callback", *BARE, "produce", servers, topic, str(count), str(SIZE)),
        _fixed("Java ProducerPerformance", *java, *JAVA_PRODUCER),
    ]
    return in_turns(programs, rounds, say)


def consume(cluster: Cluster, count: int, rounds: int, say: Callable[[str], None]) -> list[Sample]:
    servers = cluster.bootstrap_servers
    topic = _filled(cluster, count)
    config = cluster.brokers[0].directory / "consumer.properties"
    config.write_text("isolation.level=read_committed\nauto.offset.reset=earliest\n")

    def java() -> Sequence[str]:
        arguments = ("--bootstrap-server", servers, "--topic", topic, "--messages", str(count), "--group", _group())
        return java_tool(cluster, "ConsumerPerformance", *arguments, "--consumer.config", str(config))

    programs = [
        Program("kafka-workers consume, batch handler", lambda: _ours(servers, topic, count, "each_batch")),
        Program("bare consume(1000)", lambda: (*BARE, "consume", servers, topic, str(count), _group())),
        Program("Java ConsumerPerformance", java),
    ]
    return in_turns(programs, rounds, say)


def consume_each(cluster: Cluster, count: int, rounds: int, say: Callable[[str], None]) -> list[Sample]:
    servers = cluster.bootstrap_servers
    topic = _filled(cluster, count)
    programs = [
        Program("kafka-workers consume, handler per message", lambda: _ours(servers, topic, count, "each")),
        Program("bare poll()", lambda: (*BARE, "consume_each", servers, topic, str(count), _group())),
    ]
    return in_turns(programs, rounds, say)


def print_messages(cluster: Cluster, count: int, rounds: int, say: Callable[[str], None]) -> list[Sample]:
    kcat = shutil.which("kcat")
    if kcat is None:
        say("  there is no kcat: printing is not compared")
        return []
    servers = cluster.bootstrap_servers
    topic = _filled(cluster, count)

    def member(form: str) -> Callable[[], Sequence[str]]:
        return lambda: (*_consume(servers, topic, count), "--format", form)

    def other(form: str) -> Callable[[], Sequence[str]]:
        group = ("-b", servers, "-G", _group(), "-X", "auto.offset.reset=earliest", "-X", "fetch.queue.backoff.ms=10")
        return lambda: (kcat, *group, "-q", "-u", "-c", str(count), "-f", form, topic)

    programs = [
        Program("kafka-workers consume --format value", member("value")),
        Program("kcat -f '%s\\n'", other("%s\\n")),
        Program("kafka-workers consume --format text", member("text")),
        Program("kcat -f '%t[%p]@%o key=%k %s\\n'", other("%t[%p]@%o key=%k %s\\n")),
    ]
    return in_turns(programs, rounds, say)


def java_tool(cluster: Cluster, name: str, *arguments: str) -> list[str]:
    """The command line of one of Kafka's own tools, with Java's own defaults for the heap and the collector."""
    java, *_ = cluster.java()
    return [java, "-cp", _tools(), f"org.apache.kafka.tools.{name}", *arguments]


@cache
def _tools() -> str:
    coordinates = f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
    return os.pathsep.join(kafka_classpath(print, coordinates))


def _ours(servers: str, topic: str, count: int, handler: str) -> Sequence[str]:
    return (*_consume(servers, topic, count), "--handler", f"bench.handlers:{handler}")


def _consume(servers: str, topic: str, count: int) -> Sequence[str]:
    options = ("--bootstrap-servers", servers, "--topic", topic, "--group-id", _group(), "--metrics-port", "0")
    return (*WORKER, "consume", *options, "--from-beginning", "--max-messages", str(count))


def _fixed(name: str, *command: str) -> Program:
    return Program(name, lambda: command)


def _group() -> str:
    return f"bench-{secrets.token_hex(4)}"


def _topic(cluster: Cluster, partitions: int = 3) -> str:
    name = f"bench-{secrets.token_hex(4)}"
    cluster.create_topic(name, partitions)
    return name


def _filled(cluster: Cluster, count: int) -> str:
    """A topic with `count` stamped messages, so that reading it verifies something."""
    import subprocess

    topic = _topic(cluster)
    command = (*WORKER, "produce", "--bootstrap-servers", cluster.bootstrap_servers, "--topic", topic)
    subprocess.run(
        [*command, "--count", str(count), "--size", str(SIZE), "--metrics-port", "0"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return topic
