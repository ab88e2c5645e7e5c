"""The producer against real brokers: what it is given arrives, and the account says so."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.conftest import Topics
from tests.programs import run_in_bash
from workers.local.cluster import Cluster
from workers.testing.processes import COMMAND, DEADLINE_S, Processes, eventually


def read_all(bootstrap_servers: str, topic: str, count: int) -> list[tuple[bytes | None, bytes | None]]:
    """Key and value of `count` messages, read with the bare client."""
    client = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "reader", "auto.offset.reset": "earliest"})
    try:
        partitions = client.list_topics(topic, 10).topics[topic].partitions
        client.assign([TopicPartition(topic, number, 0) for number in partitions])
        messages: list[tuple[bytes | None, bytes | None]] = []
        while len(messages) < count:
            batch = client.consume(count - len(messages), 10)
            assert batch, f"{len(messages)} of {count} messages arrived"
            messages += [(message.key(), message.value()) for message in batch]
        assert client.poll(0.2) is None
        return messages
    finally:
        client.close()


def test_every_message_is_acknowledged_and_shared_out_over_partitions(processes: Processes, topic: str) -> None:
    account = processes.produce(topic, "--count", "1000")

    assert (account["sent"], account["acknowledged"], account["failed"], account["unknown"]) == (1000, 1000, 0, 0)
    assert [stream["sent"] for stream in account["streams"]] == [334, 334, 332]
    assert 0 < account["latency_s"]["p50"] <= account["latency_s"]["p99"] < 60


def test_verbose_prints_each_delivery_with_its_place(processes: Processes, topic: str) -> None:
    result = processes.run("produce", "--topic", topic, "--count", "9", "--verbose")

    deliveries = sorted(line for line in result.stdout.splitlines() if line.startswith("delivered"))
    assert deliveries == sorted(f"delivered {topic}[{p}]@{o}" for p in range(3) for o in range(3))
    assert "sent 9: 9 acknowledged, 0 failed, 0 unknown" in result.stdout


def test_size_is_the_size_of_the_value(processes: Processes, topic: str, bootstrap_servers: str) -> None:
    processes.produce(topic, "--count", "3", "--size", "57")
    processes.produce(topic, "--count", "3", "--size", "5000")

    sizes = sorted(len(value or b"") for _, value in read_all(bootstrap_servers, topic, 6))
    assert sizes == [57, 57, 57, 5000, 5000, 5000]


def test_rate_and_duration_bound_what_is_sent(processes: Processes, topic: str) -> None:
    account = processes.produce(topic, "--rate", "200", "--duration", "2")

    # One second of slack would be 200 messages; a rate that is ignored would send some hundred thousand.
    assert 300 <= account["sent"] <= 450


def test_a_stop_sends_what_was_taken_and_ends_cleanly(processes: Processes, topic: str) -> None:
    producer = processes.start("produce", "--topic", topic, "--forever", "--rate", "500", "--summary", "json")
    eventually(lambda: (producer.metric("kafka_producer_deliveries_total", outcome="success") or 0) > 100, "deliveries")

    assert producer.stop() == 0, producer.stderr
    account = json.loads(producer.stdout)
    assert account["sent"] == account["acknowledged"] > 100


def test_lines_arrive_as_they_are(processes: Processes, topic: str, bootstrap_servers: str, tmp_path: Path) -> None:
    lines = [b"plain", b"", b"\xff\xfe not UTF-8", b"nul \x00 byte", b"ends with CR\r", b"no newline at the end"]
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\n".join(lines))

    account = processes.produce(topic, "--input", str(path))

    assert account["acknowledged"] == len(lines)
    assert sorted(value or b"" for _, value in read_all(bootstrap_servers, topic, len(lines))) == sorted(lines)


def test_keys_are_split_off_at_the_separator(processes: Processes, topic: str, bootstrap_servers: str) -> None:
    processes.produce(topic, "--input", "-", "--key-separator", "::", stdin=b"a::1\nb::2::3\nno key\n")

    assert sorted(read_all(bootstrap_servers, topic, 3), key=repr) == sorted(
        [(b"a", b"1"), (b"b", b"2::3"), (None, b"no key")], key=repr
    )


def test_json_lines_have_the_key_of_their_field(processes: Processes, topic: str, bootstrap_servers: str) -> None:
    lines = b'{"id": "x", "n": 1}\n{"id": 7}\n'
    processes.produce(topic, "--input", "-", "--key-field", "id", stdin=lines)

    found = sorted(read_all(bootstrap_servers, topic, 2), key=repr)
    assert found == [(b"7", b'{"id": 7}'), (b"x", b'{"id": "x", "n": 1}')]


def test_a_broken_line_of_a_file_sends_nothing(
    processes: Processes, topic: str, tmp_path: Path, bootstrap_servers: str
) -> None:
    path = tmp_path / "orders.jsonl"
    path.write_text('{"id": 1}\n{"id": 2}\nnot json\n')
    result = processes.run("produce", "--topic", topic, "--input", str(path), "--key-field", "id")

    assert result.returncode == 2
    assert f"{path} line 3: not JSON" in result.stderr
    assert read_all(bootstrap_servers, topic, 0) == []


def test_a_broken_line_can_go_to_the_dead_letter_topic(
    processes: Processes, topics: Topics, bootstrap_servers: str, tmp_path: Path
) -> None:
    topic = topics.create()
    topics.create_named(f"{topic}.dlq")
    path = tmp_path / "orders.jsonl"
    path.write_text('{"id": 1}\nnot json\n{"id": 3}\n')
    account = processes.produce(topic, "--input", str(path), "--key-field", "id", "--on-invalid", "dead-letter")

    assert account["acknowledged"] == 2
    assert account["dead_letters"]["acknowledged"] == 1
    assert read_all(bootstrap_servers, f"{topic}.dlq", 1) == [(None, b"not json")]


def test_an_invalid_line_takes_no_stamp_so_that_nothing_is_missing(
    processes: Processes, topics: Topics, tmp_path: Path
) -> None:
    topic = topics.create()
    topics.create_named(f"{topic}.dlq")
    options = ["--input", "-", "--key-field", "id", "--on-invalid", "dead-letter", "--stamp", "--summary", "json"]
    result = processes.run("produce", "--topic", topic, *options, stdin=b'{"id": 1}\nnot json\n{"id": 3}\n')
    path = processes.write("account.json", result.stdout)
    verified = processes.run("verify", "--topic", topic, "--account", str(path), "--json")

    assert verified.returncode == 0, verified.stderr
    assert (json.loads(verified.stdout)["sent"], json.loads(verified.stdout)["missing"]) == (2, 0)


def test_a_message_that_brokers_refuse_fails_and_the_others_arrive(
    processes: Processes, topic: str, bootstrap_servers: str
) -> None:
    lines = b"first\n" + b"x" * 20_000_000 + b"\nlast\n"
    result = processes.run("produce", "--topic", topic, "--input", "-", "--summary", "json", stdin=lines)

    assert result.returncode == 1
    account = json.loads(result.stdout)
    assert (account["acknowledged"], account["failed"]) == (2, 1)
    assert account["errors"] == {"MSG_SIZE_TOO_LARGE": 1}
    assert sorted(value or b"" for _, value in read_all(bootstrap_servers, topic, 2)) == [b"first", b"last"]


def test_a_message_above_the_topics_limit_fails_with_the_brokers_word(processes: Processes, topics: Topics) -> None:
    topic = topics.create(config={"max.message.bytes": "2000"})
    result = processes.run("produce", "--topic", topic, "--input", "-", "--summary", "json", stdin=b"y" * 5000)

    assert result.returncode == 1
    assert json.loads(result.stdout)["errors"] == {"MSG_SIZE_TOO_LARGE": 1}


SOURCE = """
from workers import Outgoing

outcomes = []

def rows():
    yield b"bytes"
    yield "text"
    yield Outgoing("value", key="key", headers=[("h", b"1")], partition=2, timestamp_ms=1700000000000,
                   on_delivery=lambda delivery: print("told", delivery.outcome, delivery.partition, flush=True))

def broken():
    yield "one"
    raise RuntimeError("the database is away")

def wrong():
    yield 42

def nothing():
    pass

def with_argument(path):
    yield "one"
"""


def test_a_source_of_ones_own_is_sent_and_told_of_the_delivery(
    processes: Processes, topic: str, bootstrap_servers: str
) -> None:
    processes.write("my_source.py", SOURCE)
    result = processes.run("produce", "--topic", topic, "--source", "my_source:rows")

    assert result.returncode == 0, result.stderr
    assert "told success 2" in result.stdout
    assert sorted(read_all(bootstrap_servers, topic, 3), key=repr) == sorted(
        [(None, b"bytes"), (None, b"text"), (b"key", b"value")], key=repr
    )


def test_a_source_chooses_partition_and_timestamp(processes: Processes, topic: str, group: str) -> None:
    processes.write(
        "placed.py",
        "from workers import Outgoing\n"
        "def rows():\n"
        "    for number in range(30):\n"
        "        yield Outgoing('v', key='same', partition=number % 3, timestamp_ms=1700000000000 + number)\n",
    )
    processes.produce(topic, "--source", "placed:rows")
    consumer = processes.consume(topic, group, "--max-messages", "30", "--format", "json")

    assert consumer.wait() == 0, consumer.stderr
    places = sorted((line["partition"], line["timestamp"]) for line in map(json.loads, consumer.lines))
    assert places == sorted((number % 3, 1_700_000_000_000 + number) for number in range(30))


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("broken", "the source raised RuntimeError: the database is away"),
        ("wrong", "yielded an int as message 1"),
        ("nothing", "returned a NoneType; yield messages, or return a list of them"),
        ("with_argument", "missing 1 required positional argument: 'path'"),
    ],
)
def test_a_source_that_fails_is_named_and_what_came_before_was_sent(
    processes: Processes, topic: str, bootstrap_servers: str, source: str, complaint: str
) -> None:
    """An error that was raised may pass at another try; a wrong value that was yielded will not."""
    processes.write("my_source.py", SOURCE)
    result = processes.run("produce", "--topic", topic, "--source", f"my_source:{source}")

    assert result.returncode == (1 if source in ("broken", "with_argument") else 2)
    assert complaint in result.stderr
    assert ("earlier messages were sent" in result.stderr) == (source == "broken")
    assert "Traceback" not in result.stderr
    assert len(read_all(bootstrap_servers, topic, 1 if source == "broken" else 0)) == (source == "broken")


def test_a_stamped_message_that_fails_is_not_taken_for_lost(processes: Processes, topics: Topics) -> None:
    # Brokers refuse what has no key.
    topic = topics.create(config={"cleanup.policy": "compact"})
    result = processes.run(
        "produce", "--topic", topic, "--input", "-", "--stamp", "--verbose", "--summary", "json", stdin=b"a\nb\nc\n"
    )
    assert result.returncode == 1
    [stream] = json.loads(result.stdout.splitlines()[-1])["streams"]
    assert (stream["sent"], stream["failed"]) == (3, [[0, 3]])

    # The deliveries that --verbose prints stand before it.
    path = processes.write("account.json", result.stdout)
    report = processes.run("verify", "--topic", topic, "--account", str(path), "--json")
    assert report.returncode == 0, report.stderr
    assert {name: json.loads(report.stdout)[name] for name in ("failed", "lost")} == {"failed": 3, "lost": 0}


def test_the_metrics_of_a_run_are_whole_while_it_waits_to_be_scraped(processes: Processes, topics: Topics) -> None:
    topic = topics.create()
    topics.create_named(f"{topic}.dlq")
    producer = processes.start(
        "produce", "--topic", topic, "--input", str(processes.write("line.json", '{"id": 1}')), "--key-field", "id",
        "--on-invalid", "dead-letter", "--linger", "60",
    )  # fmt: skip
    eventually(lambda: "1 acknowledged" in producer.stdout, "all is delivered")

    page = producer.get("/metrics")[1]
    last_success = next(line for line in page.splitlines() if line.startswith("kafka_producer_last_success"))
    assert float(last_success.split()[1]) > 1_700_000_000
    # Or else the first letter would be no increase.
    assert f'kafka_producer_deliveries_total{{outcome="success",topic="{topic}.dlq"}} 0.0' in page


def test_an_endless_producer_that_is_stopped_is_done_except_in_a_job(processes: Processes, topic: str) -> None:
    """A Job whose pod has succeeded is over, and a drained node stops pods."""

    def stopped(**env: str) -> int:
        producer = processes.start("produce", "--topic", topic, "--forever", "--rate", "100", env=env)
        eventually(lambda: producer.metric("kafka_producer_deliveries_total"), "deliveries")
        return producer.stop()

    assert stopped() == 0
    assert stopped(JOB_COMPLETION_INDEX="0") == 1


def test_stamped_input_can_be_verified(processes: Processes, topic: str, tmp_path: Path) -> None:
    account = processes.run(
        "produce", "--topic", topic, "--input", "-", "--key-separator", ":", "--stamp", "--summary", "json",
        stdin=b"".join(b"%d:x\n" % number for number in range(500)),
    )  # fmt: skip
    path = tmp_path / "account.json"
    path.write_text(account.stdout)

    result = processes.run("verify", "--topic", topic, "--account", str(path), "--json")

    report = json.loads(result.stdout)
    assert result.returncode == 0, result.stderr
    assert (report["sent"], report["present"], report["lost"], report["duplicated"]) == (500, 500, 0, 0)


def test_a_closed_pipe_ends_a_verbose_producer_quietly(processes: Processes, topic: str) -> None:
    words = ("produce", "--topic", topic, "--verbose", "--forever")
    result = run_in_bash(processes, '"$@" | head -1', *words)

    assert result.stdout.startswith("delivered")
    assert "Traceback" not in result.stderr
    assert "Broken pipe" not in result.stderr


def test_a_closed_pipe_keeps_no_account_from_the_user_and_is_no_failure(processes: Processes, topic: str) -> None:
    script = 'set -o pipefail; "$@" | true'
    result = run_in_bash(processes, script, "produce", "--topic", topic, "--summary", "json")

    account = json.loads(result.stderr.splitlines()[-1])
    assert (result.returncode, account["acknowledged"]) == (0, 100)


def test_a_message_that_is_too_large_is_said_with_its_size_and_the_remedy(processes: Processes, topic: str) -> None:
    result = processes.run("produce", "--topic", topic, "--count", "1", "--size", "5000000")

    assert result.returncode == 1
    assert "5000000 bytes are too large; raise message.max.bytes (--property)" in result.stderr.splitlines()[-1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_a_verbose_producer_leaves_no_message_without_an_outcome(
    processes: Processes, topic: str
) -> None:
    words = [*COMMAND, "produce", "--topic", topic, "--verbose", "--forever", "--summary", "json"]
    with Path("/dev/full").open("w") as full:
        producer = subprocess.run(
            words, env=processes.environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S
        )

    *_, account, last = producer.stderr.splitlines()
    sent = json.loads(account)
    assert sent["sent"] == sent["acknowledged"] > 0
    assert (producer.returncode, "standard output cannot be written" in last) == (1, True)


def test_the_last_numbers_are_scraped_before_a_job_ends(processes: Processes, topic: str) -> None:
    producer = processes.start("produce", "--topic", topic, "--count", "50", "--linger", "300", "--summary", "json")
    eventually(lambda: producer.stdout, "the account")
    assert producer.running

    assert producer.metric("kafka_producer_deliveries_total", topic=topic, outcome="success") == 50
    assert producer.wait() == 0


def test_a_stop_before_the_source_ended_fails_the_job(processes: Processes, topic: str) -> None:
    producer = processes.start("produce", "--topic", topic, "--count", "1000000", "--rate", "100", "--summary", "json")
    eventually(lambda: (producer.metric("kafka_producer_deliveries_total", outcome="success") or 0) > 10, "deliveries")

    assert producer.stop() == 1
    account = json.loads(producer.stdout)
    assert account["sent"] == account["acknowledged"]
    assert "stopped before the source was at its end" in producer.stderr


@pytest.mark.parametrize(("length", "code"), [(["--forever"], 0), ([], 1)])
def test_a_stop_while_no_broker_answers_is_heard_and_takes_nothing_from_the_source(
    processes: Processes, length: list[str], code: int
) -> None:
    processes.write(
        "endless.py", "import itertools\ndef rows():\n    print('begun')\n    yield from map(str, itertools.count())\n"
    )
    nowhere = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    producer = processes.start("produce", "--source", "endless:rows", "--summary", "json", *length, env=nowhere)
    producer.says("no answer from 127.0.0.1:1 yet")
    assert producer.get("/readyz")[0] == 503

    assert producer.stop(timeout_s=20) == code
    account = json.loads(producer.stdout)
    assert (account["sent"], account["unknown"], account["failed"]) == (0, 0, 0)


def test_what_is_in_flight_when_time_is_up_is_unknown_and_verify_resolves_it(
    processes: Processes, cluster: Cluster, topic: str, tmp_path: Path
) -> None:
    producer = processes.start(
        "produce", "--topic", topic, "--forever", "--rate", "1000", "--summary", "json", "--shutdown-timeout", "2"
    )
    eventually(lambda: (producer.metric("kafka_producer_deliveries_total", outcome="success") or 0) > 100, "deliveries")
    for broker in cluster.brokers:
        broker.send(signal.SIGSTOP)
    try:
        eventually(
            lambda: (producer.metric("kafka_producer_queue_messages") or 0) > 500, "a queue that is not acknowledged"
        )
        assert producer.stop(timeout_s=20) == 1, producer.stderr
    finally:
        for broker in cluster.brokers:
            broker.send(signal.SIGCONT)

    account = json.loads(producer.stdout)
    assert account["unknown"] > 0
    assert account["sent"] == account["acknowledged"] + account["failed"] + account["unknown"]
    path = tmp_path / "account.json"
    path.write_text(producer.stdout)
    result = processes.run("verify", "--topic", topic, "--account", str(path), "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 0, result.stderr
    assert report["lost"] == 0
    assert report["present"] == account["acknowledged"] + report["unknown_present"]


def test_a_dead_letter_topic_that_is_not_there_is_said_before_anything_is_sent(
    processes: Processes, topic: str, bootstrap_servers: str
) -> None:
    options = ["--input", "-", "--key-field", "id", "--on-invalid", "dead-letter", "--timeout", "5"]
    result = processes.run("produce", "--topic", topic, *options, stdin=b'{"id": 1}\nnot json\n')

    assert result.returncode == 2
    assert f"{topic}.dlq does not exist" in result.stderr.splitlines()[-1]
    assert read_all(bootstrap_servers, topic, 0) == []
