"""Handlers that raise, hang or reject: what only real brokers or a real process show.

tests/unit/test_consumer.py has the rest.
"""

import json
import time
from contextlib import nullcontext

import pytest
from confluent_kafka import IsolationLevel, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.conftest import Topics
from tests.reading import read
from tests.workers.test_consume import committed
from workers import Retry
from workers.accounting.order import OrderCounts
from workers.config import CLASSIC_DEFAULTS, CONSUMER_DEFAULTS, ClientConfig, Precedence, Setting
from workers.consumer import loop
from workers.consumer.assignment import Assignment, PartitionState
from workers.consumer.options import Handling, Limits
from workers.consumer.outputs import Outputs
from workers.consumer.received import Received
from workers.deadletters.writer import DeadLetters
from workers.kafka.messages import headers_of
from workers.kafka.watermarks import Watermarks
from workers.lifecycle import Shutdown
from workers.local.cluster import finish
from workers.testing.kafka import QUICK
from workers.testing.processes import Processes, eventually

HANDLERS = """
import time
from workers import Reject
from workers import Retry
from workers import batch

def note(text):
    with open("{directory}/notes.txt", "a") as file:
        file.write(text + "\\n")

def poison(message):
    if message.value() == b"poison":
        note(f"poison {{time.monotonic()}}")
        raise ValueError("cannot take this")
    note(message.value().decode())

def reject(message):
    if message.value() == b"poison":
        note("poison")
        raise Reject("never")
    note(message.value().decode())

def slow(message):
    note("begin " + message.value().decode())
    time.sleep(4)
    note("end " + message.value().decode())

def takes_long(message):
    time.sleep(0.1)

def hang(message):
    note("begin")
    time.sleep(3600)

calls = 0
def later(message):
    global calls
    calls += 1
    note(f"call {{message.value().decode()}}")
    if calls == 1:
        raise Retry("a long time from now", after_s=3600)

@batch
def one_by_one(messages):
    if len(messages) > 1:
        raise ValueError("somewhere in this batch")
    time.sleep(0.001)
"""


@pytest.fixture
def notes(processes: Processes) -> "Notes":
    processes.write("mine.py", HANDLERS.format(directory=processes.directory))
    return Notes(processes)


class Notes:
    """Lines that the handlers wrote."""

    def __init__(self, processes: Processes) -> None:
        self._path = processes.directory / "notes.txt"

    @property
    def lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []


def put(processes: Processes, topic: str, *values: str) -> None:
    processes.produce(topic, "--input", "-", stdin="".join(f"{value}\n" for value in values).encode())


def dead_letters(bootstrap_servers: str, topic: str) -> list[tuple[bytes | None, dict[str, str]]]:
    return [
        (bytes(message.value() or b""), {name: (value or b"").decode() for name, value in headers_of(message)})
        for message in read(bootstrap_servers, topic)
    ]


def test_a_poisoned_message_is_tried_again_then_becomes_a_dead_letter_and_the_next_are_handled(
    processes: Processes, topics: Topics, group: str, admin: AdminClient, bootstrap_servers: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    topics.create_named(f"{topic}.dlq")
    put(processes, topic, "a", "poison", "b", "c")
    consumer = processes.consume(
        topic, group, "--handler", "mine:poison", "--max-messages", "4", "--max-attempts", "3", "--retry-backoff", "0.2"
    )

    assert consumer.wait() == 0, consumer.stderr
    calls = [float(line.split()[1]) for line in notes.lines if line.startswith("poison ")]
    assert [line.split()[0] for line in notes.lines] == ["a", "poison", "poison", "poison", "b", "c"]
    # At least half of 0.2 s, then of 0.4 s: the pauses grow.
    assert calls[1] - calls[0] >= 0.1
    assert calls[2] - calls[1] >= 0.2
    [(value, headers)] = dead_letters(bootstrap_servers, f"{topic}.dlq")
    assert value == b"poison"
    assert headers["kafka-workers.original-topic"] == topic
    assert headers["kafka-workers.original-partition"] == "0"
    assert headers["kafka-workers.original-offset"] == "1"
    assert int(headers["kafka-workers.original-timestamp"]) > 1_700_000_000_000
    assert headers["kafka-workers.error-class"] == "ValueError"
    assert headers["kafka-workers.error-message"] == "cannot take this"
    assert 'raise ValueError("cannot take this")' in headers["kafka-workers.error-traceback"]
    assert headers["kafka-workers.attempts"] == "3"
    assert committed(admin, group) == {0: 4}


def test_what_a_member_has_not_handled_is_not_behind_the_end_that_the_next_begins_at(
    processes: Processes, topics: Topics, admin: AdminClient, group: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    put(processes, topic, "before")
    first = processes.consume(topic, group, "--from-end", "--handler", "mine:hang", *QUICK)
    eventually(lambda: committed(admin, group) == {0: 1}, "where it begins is committed")
    put(processes, topic, "after")
    eventually(lambda: notes.lines == ["begin"], "the handler has the message")
    first.kill()
    second = processes.consume(topic, group, "--from-end", "--format", "value", "--max-messages", "1")

    assert second.wait() == 0
    assert second.lines == ["after"]


def test_a_group_that_begins_at_the_end_skips_nothing_when_what_it_committed_is_deleted(
    processes: Processes, topics: Topics, admin: AdminClient, group: str
) -> None:
    topic = topics.create(partitions=1)
    put(processes, topic, "1", "2", "3")
    assert processes.consume(topic, group, "--max-messages", "1").wait() == 0
    [deleted] = admin.delete_records([TopicPartition(topic, 0, 2)]).values()
    deleted.result()
    consumer = processes.consume(topic, group, "--from-end", "--format", "value", "--max-messages", "1")

    assert consumer.wait() == 0, consumer.stderr
    assert consumer.lines == ["3"]


def test_a_partition_that_is_added_is_read_from_its_beginning_by_a_group_that_began_at_the_end(
    processes: Processes, topics: Topics, admin: AdminClient, group: str
) -> None:
    topic = topics.create(partitions=1)
    put(processes, topic, "before")
    refresh = ["--property", "topic.metadata.refresh.interval.ms=3000"]
    consumer = processes.consume(topic, group, "--from-end", "--format", "value", "--max-messages", "1", *refresh)
    eventually(lambda: committed(admin, group) == {0: 1}, "it has begun")
    finish(admin.create_partitions([NewPartitions(topic, 2)])[topic], KafkaError.INVALID_PARTITIONS)
    processes.write("rows.py", "from workers import Outgoing\ndef rows():\n    yield Outgoing('new', partition=1)\n")
    processes.produce(topic, "--source", "rows:rows")

    assert consumer.wait() == 0, consumer.stderr
    assert consumer.lines == ["new"]


def test_messages_do_not_pile_up_behind_a_handler_that_takes_long(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    # One replica: the brokers write 270 MB, and not three times that.
    topic = topics.create(partitions=1, config={"min.insync.replicas": "1"}, replicas=1)
    processes.produce(topic, "--count", "300", "--size", "900000")
    consumer = processes.consume(topic, group, "--handler", "mine:takes_long")
    eventually(lambda: (consumer.metric("kafka_consumer_messages_total", outcome="success") or 0) > 40, "progress")

    assert consumer.peak_rss_mib < 220  # all of them are 270 MB, beside 60 MB of the process


def test_what_a_blocked_partition_gives_back_to_the_client_is_read_again_in_order(
    processes: Processes, topic: str, group: str, bootstrap_servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.consumer.flow.MAX_WAITING_BYTES", 30_000)
    given_back: list[int] = []
    failed: set[tuple[int | None, int | None]] = set()
    processes.produce(topic, "--count", "3000")

    def fails_at_times(message: Message) -> None:
        place = message.partition(), message.offset()
        if (message.offset() or 0) % 100 == 50 and place not in failed:
            failed.add(place)
            raise Retry("again", after_s=0.05)

    give_back = Assignment.give_back

    def watched(assignment: Assignment, state: PartitionState, beyond: Received) -> None:
        given_back.append(len(beyond))
        give_back(assignment, state, beyond)

    monkeypatch.setattr(Assignment, "give_back", watched)
    told = {"bootstrap.servers": bootstrap_servers, "group.id": group, "log_level": "0"}
    settings = [Setting(*each, Precedence.COMMAND_LINE, "") for each in told.items()]
    config = ClientConfig((*CONSUMER_DEFAULTS, *CLASSIC_DEFAULTS), settings)
    consumer = loop.Consumer(
        config,
        [topic],
        Handling(lambda: nullcontext(fails_at_times)),
        Limits(max_messages=3000),
        Shutdown(10),
        dead_letters=DeadLetters(config, None, group),
        outputs=Outputs(config),
        watermarks=Watermarks(lambda: AdminClient(dict(told)), IsolationLevel.READ_COMMITTED),
    )
    consumer.start(10)
    consumer.run()

    assert len(failed) == 30
    assert sum(given_back) > 1000
    assert (consumer.status.topics[topic].handled, consumer.status.topics[topic].order) == (3000, OrderCounts())


def test_messages_do_not_pile_up_in_a_consumer_that_takes_a_failed_batch_apart(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    processes.produce(topic, "--count", "300000")
    consumer = processes.consume(topic, group, "--handler", "mine:one_by_one")

    eventually(lambda: (consumer.metric("kafka_consumer_messages_total", outcome="success") or 0) > 1000, "progress")
    assert consumer.running
    assert consumer.peak_rss_mib < 120  # three hundred thousand messages in Python take more than two hundred


def test_a_paused_partition_that_leaves_and_comes_back_is_read_on(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    # With this strategy every rebalance takes away what a member has, and maybe gives it back.
    options = ["--handler", "mine:later", "--property", "partition.assignment.strategy=range"]
    consumer = processes.consume(topic, group, *options)
    eventually(lambda: consumer.metric("kafka_consumer_assigned_partitions") == 1, "assigned")
    put(processes, topic, "a")
    eventually(lambda: notes.lines == ["call a"], "the partition is paused")
    # Whichever member has it after each change: in the end it is the first one, whose second call succeeds.
    other = processes.consume(topic, group, *options)
    eventually(lambda: other.get("/readyz")[0] == 200, "the other has joined")
    eventually(lambda: consumer.metric("kafka_consumer_rebalances_total", event="revoke"), "the revocation is counted")
    assert other.stop() == 0
    put(processes, topic, "b")

    eventually(lambda: consumer.metric("kafka_consumer_messages_total", outcome="success") == 2, "both are handled")


def test_a_dead_letter_that_is_too_large_stops_the_worker_and_skips_nothing(
    processes: Processes, topics: Topics, group: str, admin: AdminClient, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    topics.create_named(f"{topic}.dlq", config={"max.message.bytes": "300"})
    put(processes, topic, "a", "poison")
    consumer = processes.consume(topic, group, "--handler", "mine:reject")

    assert consumer.wait() == 1
    assert f"{topic}.dlq takes no dead letter of that size" in consumer.stderr.splitlines()[-1]
    assert committed(admin, group) == {0: 1}


def test_a_dead_letter_that_cannot_be_written_skips_nothing(
    processes: Processes, topics: Topics, group: str, bootstrap_servers: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    put(processes, topic, "poison", "b")
    consumer = processes.consume(
        topic, group, "--handler", "mine:reject", "--max-messages", "2", "--retry-backoff-max", "1",
        "--property", "topic.metadata.propagation.max.ms=1000",
    )  # fmt: skip
    consumer.says("not written to the dead-letter topic")
    (said, *_) = [line for line in consumer.stderr.splitlines() if "not written to the dead-letter topic" in line]
    assert "the topic does not exist; create it" in said
    assert "b" not in notes.lines
    topics.create_named(f"{topic}.dlq")

    assert consumer.wait() == 0, consumer.stderr
    assert notes.lines == ["poison", "b"]
    assert len(dead_letters(bootstrap_servers, f"{topic}.dlq")) == 1


def test_a_named_dead_letter_topic_is_waited_for_at_the_start_and_its_absence_is_an_error(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    put(processes, topic, "a")
    options = ["--handler", "mine:reject", "--max-messages", "1", "--dead-letter-topic", f"{topic}.elsewhere"]
    result = processes.run("consume", "--topic", topic, "--group-id", group, *options, "--timeout", "1")
    assert result.returncode == 2
    assert f"--dead-letter-topic: {topic}.elsewhere does not exist" in result.stderr.splitlines()[-1]
    assert notes.lines == []

    consumer = processes.consume(topic, group, *options, "--timeout", "60")
    consumer.says(f"{topic}.elsewhere does not exist")
    topics.create_named(f"{topic}.elsewhere")
    assert consumer.wait() == 0, consumer.stderr


def test_a_handler_slower_than_the_poll_interval_keeps_its_partition(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    put(processes, topic, "a")
    options = ["--handler", "mine:slow", "--max-messages", "1"]
    for name, milliseconds in {"max.poll.interval": 3000, "session.timeout": 3000, "heartbeat.interval": 300}.items():
        options += ["--property", f"{name}.ms={milliseconds}"]
    consumer = processes.consume(topic, group, *options)

    assert consumer.wait() == 0, consumer.stderr
    assert notes.lines == ["begin a", "end a"]
    assert "lost" not in consumer.stderr


def test_a_busy_handler_is_left_within_the_stated_time_and_its_message_is_redelivered(
    processes: Processes, topics: Topics, group: str, admin: AdminClient, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    put(processes, topic, "a")
    consumer = processes.consume(
        topic, group, "--handler", "mine:hang", "--shutdown-timeout", "2", "--stall-timeout", "1"
    )
    eventually(lambda: notes.lines == ["begin"], "the handler is busy")
    eventually(lambda: consumer.get("/livez")[0] == 503, "the stall is seen")
    eventually(lambda: consumer.get("/readyz")[0] == 200, "it is ready all the same")
    began = time.monotonic()

    assert consumer.stop() == 1
    # Two seconds, and those for closing the client. 25 s is the default.
    assert time.monotonic() - began < 20
    assert committed(admin, group).get(0, 0) == 0
    second = processes.consume(topic, group, "--max-messages", "1")
    assert second.wait() == 0


def test_order_is_checked_right_across_a_restart_of_the_group(
    processes: Processes, topic: str, group: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    processes.produce(topic, "--count", "3000", "--run", "one")
    first = processes.consume(topic, group, "--max-messages", "1000", "--summary", "json")
    assert first.wait() == 0
    second = processes.consume(topic, group, "--max-messages", "2000", "--summary", "json")
    assert second.wait() == 0
    for consumer in (first, second):
        counts = json.loads(consumer.stderr.splitlines()[-1])["topics"][topic]
        assert (counts["missing"], counts["duplicates"], counts["reordered"]) == (0, 0, 0)
    # The same run once more: every sequence is there already, which only a member that remembers can see.
    processes.produce(topic, "--count", "30", "--run", "one")
    third = processes.consume(topic, group, "--max-messages", "30", "--summary", "json")
    assert third.wait() == 0
    assert json.loads(third.stderr.splitlines()[-1])["topics"][topic]["duplicates"] == 30
