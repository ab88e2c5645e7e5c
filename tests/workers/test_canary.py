"""The canary on real brokers: it finds what is injected, and nothing where a broker only stops for a while."""

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.faults.proxy import Proxy
from workers.accounting.stamps import SEQUENCE, STREAM, stream_of
from workers.local.cluster import Cluster
from workers.testing.processes import Process, Processes, eventually

# The bound of the issue; on a busy machine no reason to fail.
FOUND_WITHIN_S = 30.0
RATIO, BY_BROKER = "kafka_canary_availability_ratio", "kafka_canary_broker_availability_ratio"


@pytest.fixture
def name(admin: AdminClient) -> Iterator[str]:
    """A topic for the canary to create."""
    topic = f"canary-{secrets.token_hex(4)}"
    yield topic
    for deleted in admin.delete_topics([topic]).values():
        deleted.exception()


def start(processes: Processes, topic: str, *arguments: str, servers: str | None = None) -> Process:
    """A canary that has received messages of three partitions."""
    env = {} if servers is None else {"KAFKA_BOOTSTRAP_SERVERS": servers}
    options = ("--topic", topic, "--interval", "0.2", "--summary", "json", *arguments)
    canary = processes.start("canary", *options, env=env)
    eventually(
        lambda: all((canary.metric("kafka_canary_received_total", partition=each) or 0) > 2 for each in "012"),
        "messages of each partition are received",
    )
    return canary


def count(canary: Process, name: str) -> float:
    return canary.metric(f"kafka_canary_{name}_total") or 0


def account(canary: Process, code: int = 0) -> dict[str, Any]:
    assert canary.stop() == code, canary.stderr[-3000:]
    document: dict[str, Any] = json.loads(canary.lines[-1])
    assert document["sent"] == document["acknowledged"] + document["failed"]
    return document


def leaders(admin: AdminClient, topic: str) -> dict[int, int]:
    return {
        number: each.leader for number, each in admin.list_topics(topic, timeout=10).topics[topic].partitions.items()
    }


def found(what: str, since: float, canary: Process) -> None:
    """Waits for a counter above 0."""
    eventually(lambda: count(canary, what), f"{what} is found")
    # The machine of a test may be busy: five times the bound is a failure all the same.
    assert time.monotonic() - since < 5 * FOUND_WITHIN_S


def test_it_creates_a_topic_that_each_broker_leads_a_partition_of_and_accounts_for_its_messages(
    processes: Processes, cluster: Cluster, admin: AdminClient, name: str
) -> None:
    canary = start(processes, name)
    assert sorted(leaders(admin, name).values()) == [0, 1, 2]
    eventually(lambda: canary.metric(RATIO) == 1, "all is available")
    # The first statistics come after a second.
    eventually(lambda: canary.get("/readyz") == (200, "ok\n"), "it is ready")
    assert canary.get("/livez") == (200, "ok\n")
    assert canary.metric("kafka_canary_partitions") == 3
    assert canary.metric("kafka_canary_uncovered_brokers") == 0
    eventually(lambda: {canary.metric(BY_BROKER, broker=each) for each in "012"} == {1}, "each broker is available")
    canary.says("broker 0: available")
    document = account(canary)
    assert document["received"] == document["acknowledged"] == document["sent"] > 8
    assert (document["failed"], document["lost"], document["duplicates"]) == (0, 0, 0)
    assert {row["end_to_end_latency_s"]["p50"] > 0 for row in document["partitions"]} == {True}


def test_deleted_messages_and_copies_are_found_and_slow_ones_make_brokers_unavailable(
    processes: Processes, cluster: Cluster, admin: AdminClient, proxy: Proxy, name: str
) -> None:
    options = ("--lost-after", "2", "--max-latency", "0.5", "--create")
    canary = start(processes, name, *options, servers=cluster.proxied_bootstrap_servers)
    eventually(lambda: canary.metric(RATIO) == 1, "all is available")

    began = time.monotonic()
    copy(cluster, name, canary)
    found("duplicates", began, canary)

    # Written and not read yet, then gone.
    began = time.monotonic()
    proxy.hang_fetches()
    eventually(lambda: proxy.hung(), "a fetch hangs")
    acknowledged = count(canary, "acknowledged")
    eventually(lambda: count(canary, "acknowledged") > acknowledged + 6, "messages are written")
    ends = [TopicPartition(name, number, -1) for number in range(3)]
    for deleted in admin.delete_records(ends).values():
        deleted.result()
    proxy.reset()
    found("lost", began, canary)
    eventually(lambda: canary.metric(RATIO) == 1, "all is available again")

    proxy.delay_s = 1.0
    began = time.monotonic()
    eventually(lambda: canary.metric(RATIO) == 0, "nothing arrives in time")
    assert time.monotonic() - began < 5 * FOUND_WITHIN_S
    canary.says("unavailable: the latest message to")
    proxy.delay_s = 0.0
    eventually(lambda: canary.metric(RATIO) == 1, "all is available again")
    assert canary.running
    document = account(canary, code=3)
    assert (document["duplicates"], document["lost"] > 0) == (1, True)
    assert "acknowledged messages were lost" in canary.stderr.splitlines()[-1]


def copy(cluster: Cluster, topic: str, canary: Process) -> None:
    """Sends the value of a message of the canary again, with another client."""
    servers = cluster.bootstrap_servers
    reader = Consumer({"bootstrap.servers": servers, "group.id": "none", "auto.offset.reset": "earliest"})
    reader.assign([TopicPartition(topic, 0, 0)])
    message = eventually(lambda: reader.poll(1), "a message is read")
    reader.close()
    value = message.value()
    assert value is not None
    run = value[STREAM].split()[0].decode()
    assert (value[STREAM], int(value[SEQUENCE])) == (stream_of(run, 0, 0), 0)
    writer = Producer({"bootstrap.servers": servers})
    writer.produce(topic, value, partition=0)
    assert writer.flush(30) == 0


def test_a_topic_that_is_deleted_is_created_again_and_read_on(
    processes: Processes, cluster: Cluster, admin: AdminClient, name: str
) -> None:
    canary = start(processes, name, "--lost-after", "1", "--max-latency", "1")
    # So that the leader epoch of a partition is higher than in the new topic.
    old = leaders(admin, name)
    admin.delete_topics([name])[name].result()
    canary.says("create topic")
    eventually(lambda: sorted(leaders(admin, name).values()) == sorted(old.values()), "the topic is there again")
    received = count(canary, "received")
    eventually(lambda: count(canary, "received") > received + 9, "its messages are received")
    eventually(lambda: canary.metric(RATIO) == 1, "all is available again")
    assert count(canary, "duplicates") == 0
    canary.kill()


def test_a_broker_that_is_killed_and_started_again_is_unavailable_and_nothing_is_lost(
    processes: Processes, cluster: Cluster, admin: AdminClient, name: str
) -> None:
    canary = start(processes, name, "--lost-after", "2", "--max-latency", "2")
    eventually(lambda: canary.metric(RATIO) == 1, "all is available")
    victim = leaders(admin, name)[1]
    try:
        cluster.kill_broker(victim)
        canary.says(f"broker {victim}: unavailable")
        eventually(lambda: canary.metric(BY_BROKER, broker=str(victim)) == 0, "the broker is unavailable")
        eventually(lambda: canary.metric(RATIO) == 1, "its partitions have other leaders")
    finally:
        cluster.start_broker(victim)
        cluster.wait_until_ready()
    eventually(lambda: canary.metric(BY_BROKER, broker=str(victim)) == 1, "it leads its partition again")
    assert leaders(admin, name)[1] == victim
    assert count(canary, "topic_changes") >= 1
    assert canary.get("/livez")[0] == 200
    document = account(canary)
    assert (document["lost"], document["duplicates"]) == (0, 0)


def test_the_canary_adds_a_partition_for_a_broker_that_leads_none_and_with_no_create_says_so(
    processes: Processes, cluster: Cluster, admin: AdminClient, name: str
) -> None:
    made = NewTopic(name, num_partitions=2, replica_assignment=[[0, 1, 2], [1, 2, 0]])
    admin.create_topics([made])[name].result()
    watching = processes.start("canary", "--topic", name, "--no-create")
    eventually(lambda: watching.metric("kafka_canary_uncovered_brokers") == 1, "a broker leads none")
    assert len(leaders(admin, name)) == 2
    assert watching.stop() == 0

    canary = start(processes, name)
    assert leaders(admin, name) == {0: 0, 1: 1, 2: 2}
    eventually(lambda: canary.metric("kafka_canary_uncovered_brokers") == 0, "each broker leads one")
    assert account(canary)["failed"] == 0


def test_bad_input_and_brokers_that_do_not_answer_are_said_in_one_line(processes: Processes, name: str) -> None:
    nowhere = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    for arguments, code, says in (
        (("--lost-after", "1"), 2, "--lost-after: a message cannot be lost after 1 s and in time after 5 s"),
        (("--timeout", "0.5"), 1, "no answer from 127.0.0.1:1 within 0.5 s"),
    ):
        result = processes.run("canary", *arguments, env=nowhere)
        assert result.returncode == code, result.stderr
        assert says in result.stderr.splitlines()[-1], result.stderr
    missing = processes.run("canary", "--topic", name, "--no-create", "--timeout", "1")
    assert missing.returncode == 2
    assert f"{name} does not exist" in missing.stderr.splitlines()[-1]

    waits = processes.start("canary", env=nowhere)
    eventually(lambda: waits.get("/readyz")[0] == 503, "not ready")
    assert waits.get("/livez")[0] == 200
    assert waits.stop() == 0


def test_a_topic_of_others_is_refused_and_its_own_is_taken_again(processes: Processes, topic: str, name: str) -> None:
    processes.produce(topic, "--count", "30")
    refused = processes.run("canary", "--topic", topic, "--no-metrics")
    assert refused.returncode == 2, refused.stderr
    assert "has messages that are no probes of the canary" in refused.stderr.splitlines()[-1]

    assert start(processes, name).stop() == 0
    again = start(processes, name)
    assert again.stop() == 0
    assert "is not known" not in again.stderr
