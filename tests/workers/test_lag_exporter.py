"""The lag of groups from outside, on real brokers: with members, without any, and while brokers are unreachable."""

import time
from concurrent.futures import Future

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests.conftest import Topics
from workers.local.cluster import Cluster
from workers.testing.processes import Process, Processes, eventually

HANGS = "import time\ndef handle(message):\n    time.sleep(3600)\n"
INTERVAL_S = 0.5
# The metrics that the alert KafkaGroupWithoutMembers reads.
LAG, LAG_SECONDS, MEMBERS = "kafka_group_lag_messages", "kafka_group_lag_seconds", "kafka_group_members"


def export(processes: Processes, *arguments: str) -> Process:
    return processes.start("lag-exporter", "--interval", str(INTERVAL_S), *arguments)


def has(exporter: Process, metric: str, value: float | None, **labels: str) -> None:
    """Waits until the sum of a metric has a value, None for no series."""
    what = f"{metric}{labels} is {value}"
    eventually(lambda: exporter.metric(metric, **labels) == value, what)


def read_all(processes: Processes, topic: str, group: str, count: int) -> None:
    assert processes.consume(topic, group, "--max-messages", str(count)).wait() == 0


def end_sessions_early(admin: AdminClient, group: str) -> None:
    """A member of the new protocol has the brokers' session timeout, which can be set for a group."""
    entry = ConfigEntry("consumer.session.timeout.ms", "3000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=[entry])
    done: Future[None] = admin.incremental_alter_configs([resource])[resource]
    done.result()


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_the_lag_of_a_group_stays_when_its_last_member_was_killed_until_it_is_worked_off(
    processes: Processes, admin: AdminClient, topic: str, group: str, protocol: str
) -> None:
    processes.produce(topic, "--count", "90")
    read_all(processes, topic, group, 90)
    settings = ["--group-protocol", protocol]
    if protocol == "classic":
        settings += ["--property", "session.timeout.ms=3000"]
    else:
        end_sessions_early(admin, group)
    exporter = export(processes, "--group-id", group)
    has(exporter, LAG, 0, group=group)
    assert exporter.metric(LAG_SECONDS, group=group) == 0

    processes.write("hangs.py", HANGS)
    member = processes.consume(topic, group, "--handler", "hangs:handle", *settings)
    has(exporter, MEMBERS, 1, group=group)
    eventually(lambda: exporter.metric("kafka_group_info", group=group, state="stable", protocol=protocol), "stable")
    written_at = time.time()
    processes.produce(topic, "--count", "30")
    has(exporter, LAG, 30, group=group, topic=topic)
    assert exporter.metric(LAG, group=group, topic=topic, partition="0") == 10
    older = (exporter.metric(LAG_SECONDS, group=group, partition="0") or 0) + 2
    eventually(lambda: (exporter.metric(LAG_SECONDS, group=group, partition="0") or 0) > older, "messages get older")

    member.kill()
    has(exporter, MEMBERS, 0, group=group)
    assert exporter.metric(LAG, group=group) == 30
    lag_s = exporter.metric(LAG_SECONDS, group=group, partition="0")
    assert lag_s is not None
    assert older < lag_s <= time.time() - written_at + 1
    assert exporter.metric("kafka_group_committed_offset", group=group, partition="0") == 30
    assert exporter.metric("kafka_topic_end_offset", topic=topic, partition="0") == 40
    assert exporter.get("/readyz") == (200, "ok\n")

    read_all(processes, topic, group, 30)
    has(exporter, LAG, 0, group=group)
    assert exporter.metric(LAG_SECONDS, group=group) == 0
    assert exporter.stop() == 0


def test_a_rebalance_leaves_no_gap_in_the_lag(processes: Processes, topic: str, group: str) -> None:
    processes.produce(topic, "--count", "90")
    read_all(processes, topic, group, 90)
    exporter = export(processes, "--group-id", group)
    has(exporter, LAG, 0, group=group)
    processes.consume(topic, group)
    processes.consume(topic, group)
    while exporter.metric(MEMBERS, group=group) != 2:
        for partition in "012":
            assert exporter.metric(LAG, group=group, partition=partition) is not None


def test_the_age_of_messages_from_before_the_start_comes_from_their_timestamps(
    processes: Processes, topics: Topics, group: str, bootstrap_servers: str
) -> None:
    topic = topics.create(2)
    client = Producer({"bootstrap.servers": bootstrap_servers})
    now_ms = int(time.time() * 1000)

    def write(partition: int, *ages_s: int) -> None:
        for age_s in ages_s:
            client.produce(topic, b"", partition=partition, timestamp=now_ms - age_s * 1000)
        assert client.flush(30) == 0

    for partition in (0, 1):
        write(partition, 10_000)
    read_all(processes, topic, group, 2)
    write(0, 7200, 3600, 1800)
    # As far ahead as brokers take it by default: less than an hour.
    write(1, -1800)
    exporter = export(processes, "--group-id", group)
    has(exporter, LAG, 4, group=group)

    assert exporter.metric(LAG_SECONDS, partition="0") == pytest.approx(7200, rel=0.05)
    ahead = exporter.metric(LAG_SECONDS, partition="1")
    assert ahead is not None
    assert 0 <= ahead < 60


def test_a_group_that_retention_has_overtaken_shows_how_many_messages_it_missed(
    processes: Processes, admin: AdminClient, topics: Topics, group: str
) -> None:
    topic = topics.create(1)
    processes.produce(topic, "--count", "30")
    read_all(processes, topic, group, 30)
    processes.produce(topic, "--count", "70")
    exporter = export(processes, "--group-id", group)
    has(exporter, LAG, 70, group=group)
    assert exporter.metric("kafka_group_deleted_messages_total", group=group) == 0
    admin.delete_records([TopicPartition(topic, 0, 80)])[TopicPartition(topic, 0)].result()

    has(exporter, "kafka_group_deleted_messages_total", 50, group=group)
    assert exporter.metric(LAG, group=group) == 20
    assert exporter.metric("kafka_topic_beginning_offset", topic=topic) == 80
    table = processes.run("lag", "--group-id", group).stdout
    assert "lag 20" in table
    assert "50 messages were deleted before the group committed them" in table
    read_all(processes, topic, group, 20)
    has(exporter, LAG, 0, group=group)
    assert exporter.metric("kafka_group_deleted_messages_total", group=group) == 50


def test_partitions_in_which_a_group_has_committed_nothing_are_counted(
    processes: Processes, topic: str, group: str
) -> None:
    processes.produce(topic, "--count", "90")
    read_all(processes, topic, group, 1)
    exporter = export(processes, "--group-id", group)

    has(exporter, "kafka_group_uncommitted_partitions", 2, group=group, topic=topic)
    assert exporter.metric(LAG, group=group) == 29


def test_groups_and_topics_are_chosen_and_vanish_when_they_are_deleted(
    processes: Processes, admin: AdminClient, topics: Topics, group: str
) -> None:
    kept, deleted, other = topics.create(1), topics.create(1), f"{group}-other"
    for topic in (kept, deleted):
        processes.produce(topic, "--count", "5")
        for each in (group, other):
            read_all(processes, topic, each, 5)
    every = export(processes, "--group-filter", f"{group}.*")
    chosen = export(processes, "--group-id", group, "--topic-filter", f"{kept}|nothing")
    has(every, "kafka_group_committed_offset", 20)
    has(chosen, "kafka_group_committed_offset", 5, group=group, topic=kept)
    assert chosen.metric("kafka_group_committed_offset") == 5

    admin.delete_topics([deleted])[deleted].result()
    has(every, LAG, None, topic=deleted)
    has(every, "kafka_topic_end_offset", None, topic=deleted)
    assert every.metric("kafka_group_committed_offset", topic=kept) == 10
    admin.delete_consumer_groups([other])[other].result()
    has(every, MEMBERS, None, group=other)
    assert every.metric(LAG, group=group, topic=kept) == 0
    # Asked for by its name too a group that is gone is no trouble.
    gone = export(processes, "--group-id", other)
    eventually(lambda: gone.get("/readyz")[0] == 200, "ready")
    assert gone.metric(MEMBERS) is None
    assert deleted not in admin.list_topics().topics


def test_while_a_broker_is_away_the_lag_stays(processes: Processes, cluster: Cluster, topic: str, group: str) -> None:
    processes.produce(topic, "--count", "90")
    read_all(processes, topic, group, 90)
    processes.produce(topic, "--count", "30")
    exporter = export(processes, "--group-id", group)
    has(exporter, LAG, 30, group=group)
    try:
        cluster.kill_broker(1)
        rounds = exporter.metric("kafka_lag_exporter_rounds_total") or 0
        while (exporter.metric("kafka_lag_exporter_rounds_total") or 0) < rounds + 6:
            assert exporter.metric(LAG, group=group) == 30
            assert exporter.get("/livez")[0] == 200
    finally:
        cluster.start_broker(1)
        cluster.wait_until_ready()
    eventually(lambda: exporter.get("/readyz")[0] == 200, "ready again")
    assert exporter.metric(LAG, group=group) == 30


def test_an_exporter_that_reaches_no_broker_is_alive_not_ready_and_stops_at_once(processes: Processes) -> None:
    exporter = processes.start("lag-exporter", env={"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})
    eventually(lambda: exporter.get("/readyz")[0] == 503, "not ready")
    assert exporter.get("/livez")[0] == 200

    assert exporter.stop() == 0
    gives_up = processes.run("lag-exporter", "--timeout", "1", env={"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})
    assert gives_up.returncode == 1
    assert "no answer from 127.0.0.1:1 within 1 s" in gives_up.stderr
    wrong = processes.run("lag-exporter", "--group-filter", "(")
    assert wrong.returncode == 2
    assert "'(' is no regular expression" in wrong.stderr
