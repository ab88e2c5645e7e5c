"""The consumer against real brokers: each message is handled, offsets follow, members share, and leave in time."""

import base64
import json
import subprocess
import time

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, Producer
from confluent_kafka.admin import AdminClient
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Topics
from workers.testing.processes import COMMAND, DEADLINE_S, Process, Processes, eventually


def committed(admin: AdminClient, group: str) -> dict[int, int]:
    """The committed offset of each partition of a group that reads one topic."""
    answer = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result()
    return {each.partition: each.offset for each in answer.topic_partitions}


def assigned(process: Process) -> int:
    return int(process.metric("kafka_consumer_assigned_partitions") or 0)


def test_every_message_is_printed_once_and_committed(
    processes: Processes, topic: str, group: str, admin: AdminClient
) -> None:
    processes.produce(topic, "--count", "3000")
    consumer = processes.consume(topic, group, "--max-messages", "3000")

    assert consumer.wait() == 0, consumer.stderr
    places = [line.split(" ", 1)[0] for line in consumer.lines]
    assert sorted(places) == sorted(f"{topic}[{p}]@{o}" for p in range(3) for o in range(1000))
    assert committed(admin, group) == {0: 1000, 1: 1000, 2: 1000}


def test_max_messages_handles_no_more_and_the_next_member_goes_on_there(
    processes: Processes, topic: str, group: str
) -> None:
    processes.produce(topic, "--count", "100")
    first = processes.consume(topic, group, "--max-messages", "30")
    assert first.wait() == 0
    second = processes.consume(topic, group, "--max-messages", "70")
    assert second.wait() == 0

    assert (len(first.lines), len(second.lines)) == (30, 70)
    assert len({line.split(" ", 1)[0] for line in [*first.lines, *second.lines]}) == 100


def test_each_format_shows_any_bytes_on_one_line(
    processes: Processes, topic: str, group: str, bootstrap_servers: str
) -> None:
    client = Producer({"bootstrap.servers": bootstrap_servers})
    client.produce(topic, b"a\x00b\n\xff", "k\u00e9y", partition=0, headers=[("h", b"\xfe")])
    client.produce(topic, None, None, partition=0)
    client.flush()
    printed = {}
    for form in ("text", "json", "value"):
        consumer = processes.consume(topic, f"{group}-{form}", "--max-messages", "2", "--format", form)
        assert consumer.wait() == 0, consumer.stderr
        printed[form] = consumer.out.read_bytes()

    assert printed["text"].decode().splitlines() == [
        f"{topic}[0]@0 key=k\u00e9y a\\x00b\\n\\xff",
        f"{topic}[0]@1 key=null null",
    ]
    assert printed["value"] == b"a\x00b\n\xff\n\n"
    first, second = map(json.loads, printed["json"].splitlines())
    assert base64.b64decode(first["value_base64"]) == b"a\x00b\n\xff"
    assert (first["key"], first["partition"], first["offset"]) == ("k\u00e9y", 0, 0)
    assert base64.b64decode(first["headers"][0]["value_base64"]) == b"\xfe"
    assert (second["key"], second["value"]) == (None, None)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_of_four_members_on_three_partitions_one_idles_and_is_ready(
    processes: Processes, topic: str, group: str, protocol: str
) -> None:
    members = [processes.consume(topic, group, "--group-protocol", protocol) for _ in range(4)]
    eventually(lambda: sorted(map(assigned, members)) == [0, 1, 1, 1], "three members with a partition and an idle one")
    eventually(lambda: all(member.get("/readyz")[0] == 200 for member in members), "every member ready")
    processes.produce(topic, "--count", "300")
    eventually(lambda: sum(len(member.lines) for member in members) == 300, "all messages are printed")

    idle = next(member for member in members if assigned(member) == 0)
    assert idle.lines == []
    assert idle.metric("kafka_consumer_lag_messages") is None
    listing = processes.run("lag", "--group-id", group)
    assert listing.stdout.count("idle: ") == 1
    members.remove(idle)
    for member in [idle, *members]:
        assert member.stop() == 0, member.stderr
    # An idle member leaves too, or the group would wait for its session to time out.
    assert json.loads(processes.run("lag", "--group-id", group, "--json").stdout)["members"] == []


def test_order_is_checked_by_stamps_in_headers_too(processes: Processes, topics: Topics, group: str) -> None:
    topic = topics.create(partitions=1)
    for _ in range(2):
        options = ["--input", "-", "--stamp", "--run", "again"]
        processes.produce(topic, *options, stdin=b"a\nb\nc\n")
    consumer = processes.consume(topic, group, "--max-messages", "6", "--summary", "json")

    assert consumer.wait() == 0
    counts = json.loads(consumer.stderr.splitlines()[-1])["topics"][topic]
    # The second run began again at 0: three messages stand behind a later one of their stream.
    assert (counts["missing"], counts["reordered"]) == (0, 3)


def test_lag_is_exported_by_the_owner_only_and_moves_with_the_partition(
    processes: Processes, topic: str, group: str
) -> None:
    processes.write("slow.py", "import time\ndef handle(message):\n    time.sleep(0.2)\n")
    first = processes.consume(topic, group, "--handler", "slow:handle")
    eventually(lambda: assigned(first) == 3, "the first member owns everything")
    processes.produce(topic, "--count", "300")
    eventually(
        lambda: (first.metric("kafka_consumer_lag_messages", group=group, topic=topic) or 0) > 100, "lag in messages"
    )
    assert (first.metric("kafka_consumer_lag_seconds", group=group, topic=topic) or 0) > 0
    second = processes.consume(topic, group, "--handler", "slow:handle")
    eventually(lambda: {assigned(first), assigned(second)} == {1, 2}, "the partitions are shared")

    def owned(member: Process) -> set[str]:
        return {
            sample.labels["partition"]
            for family in text_string_to_metric_families(member.get("/metrics")[1])
            for sample in family.samples
            if sample.name == "kafka_consumer_lag_messages"
        }

    eventually(lambda: owned(first) | owned(second) == {"0", "1", "2"}, "lag of every partition")
    assert not owned(first) & owned(second)


def test_several_topics_are_read_by_one_member(processes: Processes, topics: Topics, group: str) -> None:
    first, second = topics.create(), topics.create(partitions=1)
    processes.produce(first, "--count", "20")
    processes.produce(second, "--count", "30")
    consumer = processes.consume(first, group, "--topic", second, "--max-messages", "50")

    assert consumer.wait() == 0
    assert sum(line.startswith(first) for line in consumer.lines) == 20
    assert sum(line.startswith(second) for line in consumer.lines) == 30


def test_a_topic_that_is_named_twice_is_read_once(processes: Processes, topic: str, group: str) -> None:
    processes.produce(topic, "--count", "5")
    consumer = processes.consume(topic, group, "--topic", topic, "--max-messages", "5")

    assert consumer.wait() == 0, consumer.stderr
    assert len(consumer.lines) == 5


def test_the_marker_of_a_transaction_and_what_one_has_aborted_are_no_lag(
    processes: Processes, topics: Topics, group: str, admin: AdminClient, bootstrap_servers: str
) -> None:
    topic = topics.create(partitions=1)
    producer = Producer({"bootstrap.servers": bootstrap_servers, "transactional.id": group, "log_level": 0})
    producer.init_transactions()
    consumer = processes.consume(topic, group, "--format", "value")
    for end, value in ((producer.commit_transaction, "a"), (producer.abort_transaction, "b")):
        producer.begin_transaction()
        producer.produce(topic, value)
        assert producer.flush(10) == 0
        end()
    # Two messages, and the markers of what became of them.
    eventually(lambda: committed(admin, group) == {0: 4}, "all is committed")
    eventually(lambda: consumer.metric("kafka_consumer_lag_messages") == 0, "no lag")

    assert processes.run("lag", "--group-id", group, "--topic", topic, "--max-lag", "0").returncode == 0
    assert consumer.lines == ["a"]


def test_idle_timeout_ends_it_when_nothing_comes(processes: Processes, topic: str, group: str) -> None:
    processes.produce(topic, "--count", "10")
    consumer = processes.consume(topic, group, "--idle-timeout", "2")

    assert consumer.wait() == 0
    assert len(consumer.lines) == 10


def test_an_idle_consumer_leaves_in_well_under_a_second(processes: Processes, topic: str, group: str) -> None:
    def seconds_to_leave() -> float:
        consumer = processes.consume(topic, group)
        eventually(lambda: assigned(consumer) == 3, "assigned")
        began = time.monotonic()
        assert consumer.stop() == 0, consumer.stderr
        return time.monotonic() - began

    # Other programs on the machine may delay one of them.
    eventually(lambda: seconds_to_leave() < 1, "one leaves in under a second")


def test_a_closed_pipe_ends_it_quietly(processes: Processes, topic: str, group: str) -> None:
    processes.produce(topic, "--count", "1000")
    consumer = subprocess.Popen(
        ["bash", "-c", 'set -o pipefail; "$@" | head -1', "-", *COMMAND, "consume", "--topic", topic,
         "--group-id", group, "--from-beginning"],
        env=processes.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    # More than fits into the pipe, so that a later write meets the closed end.
    processes.produce(topic, "--count", "5000")
    out, err = consumer.communicate(timeout=DEADLINE_S)

    assert out.startswith(f"{topic}[")
    assert out.count("\n") == 1
    assert consumer.returncode == 0, err
    assert "Traceback" not in err
    assert "Broken pipe" not in err


HANDLERS = """
import time
from workers import Reject
from workers import Retry
from workers import batch
from workers import lifespan

def append(line):
    with open("{directory}/handled.txt", "a") as file:
        file.write(line + "\\n")

@lifespan
def with_hooks():
    append("opened")
    def handle(message):
        append(message.value().decode())
    yield handle
    append("closed")

@batch
def batched(messages):
    assert len({{message.partition() for message in messages}}) == 1
    append(f"batch {{len(messages)}}")
    for message in messages:
        append(message.value().decode())
"""


def test_a_handler_with_hooks_is_opened_called_and_closed(processes: Processes, topic: str, group: str) -> None:
    processes.write("mine.py", HANDLERS.format(directory=processes.directory))
    processes.produce(topic, "--input", "-", stdin=b"a\nb\nc\n")
    consumer = processes.consume(topic, group, "--handler", "mine:with_hooks", "--max-messages", "3")

    assert consumer.wait() == 0, consumer.stderr
    lines = (processes.directory / "handled.txt").read_text().split()
    assert (lines[0], lines[-1]) == ("opened", "closed")
    assert sorted(lines[1:-1]) == ["a", "b", "c"]


def test_a_batch_handler_gets_messages_of_one_partition_in_order(processes: Processes, topic: str, group: str) -> None:
    processes.write("mine.py", HANDLERS.format(directory=processes.directory))
    processes.produce(topic, "--count", "900")
    consumer = processes.consume(topic, group, "--handler", "mine:batched", "--max-messages", "900")

    assert consumer.wait() == 0, consumer.stderr
    lines = (processes.directory / "handled.txt").read_text().splitlines()
    stamps = [line.split()[:5] for line in lines if not line.startswith("batch")]
    assert len(lines) - len(stamps) < 100
    for partition in ("00000", "00001", "00002"):
        assert [int(stamp[4]) for stamp in stamps if stamp[3] == partition] == list(range(300))


OWN_METRICS = """
from prometheus_client import Counter

ORDERS = Counter("orders", "Orders that were handled.", ["country"])

def handle(message):
    ORDERS.labels("pt").inc()
"""


def test_metrics_of_the_handler_are_served_beside_ours(processes: Processes, topic: str, group: str) -> None:
    processes.write("orders.py", OWN_METRICS)
    processes.produce(topic, "--count", "30")
    consumer = processes.consume(topic, group, "--handler", "orders:handle")

    eventually(lambda: consumer.metric("orders_total", country="pt") == 30, "orders are counted")
    eventually(lambda: consumer.metric("kafka_consumer_messages_total", outcome="success") == 30, "and messages")


def test_a_metric_of_the_handler_with_the_name_of_ours_is_one_line(
    processes: Processes, topic: str, group: str
) -> None:
    processes.write("orders.py", OWN_METRICS.replace('"orders"', '"kafka_consumer_missing"'))
    consumer = processes.consume(topic, group, "--handler", "orders:handle")

    assert consumer.wait() == 2, consumer.stderr
    assert "a metric of yours has the name of one of ours; rename it: " in consumer.stderr.splitlines()[-1]
    assert "kafka_consumer_missing" in consumer.stderr.splitlines()[-1]


def test_the_metrics_of_both_workers_are_valid(processes: Processes, topic: str, group: str) -> None:
    producer = processes.start("produce", "--topic", topic, "--forever", "--rate", "200")
    consumer = processes.consume(topic, group)
    eventually(lambda: (consumer.metric("kafka_consumer_messages_total", outcome="success") or 0) > 50, "messages")
    eventually(lambda: consumer.metric("kafka_client_broker_rtt_seconds", quantile="0.99"), "round trips")

    for worker in (producer, consumer):
        status, text = worker.get("/metrics")
        assert status == 200
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert all(family.documentation for family in families.values())
        assert "kafka_client_info" in families
    assert consumer.metric("kafka_consumer_missing_total") == 0
    assert consumer.metric("kafka_consumer_duplicates_total") == 0
    assert consumer.metric("kafka_consumer_commits_total", outcome="failure") == 0
    eventually(lambda: (consumer.metric("kafka_consumer_commits_total", outcome="success") or 0) > 0, "a commit")
    assert consumer.metric("kafka_consumer_end_to_end_latency_seconds_count", topic=topic)
    assert consumer.metric("process_resident_memory_bytes")
    assert producer.metric("kafka_producer_delivery_latency_seconds_count", topic=topic)
    assert consumer.get("/livez")[0] == 200
    assert consumer.get("/")[0] == 404


def test_output_that_cannot_be_written_stops_the_consumer_and_commits_nothing(
    processes: Processes, topic: str, group: str, admin: AdminClient
) -> None:
    processes.produce(topic, "--count", "30")
    command = [*COMMAND, "consume", "--topic", topic, "--group-id", group]
    with open("/dev/full", "wb") as full:
        environment = processes.environment()
        result = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, timeout=DEADLINE_S)

    assert result.returncode == 1
    assert b"standard output cannot be written: No space left on device" in result.stderr.splitlines()[-1]
    assert committed(admin, group) == {}
