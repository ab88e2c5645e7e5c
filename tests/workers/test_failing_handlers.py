"""Handlers that raise, hang or reject: other partitions go on, nothing is skipped, and dead letters tell their
story.
"""

import json
import time
from contextlib import nullcontext

import pytest
from confluent_kafka import Consumer, IsolationLevel, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.conftest import Topics
from tests.workers.test_consume import committed
from workers import Retry
from workers.accounting.order import OrderCounts
from workers.config import CLASSIC_DEFAULTS, CONSUMER_DEFAULTS, ClientConfig, Precedence, Setting
from workers.consumer import loop
from workers.consumer.assignment import Assignment, PartitionState
from workers.consumer.failures import ErrorPolicy
from workers.consumer.outputs import Outputs
from workers.consumer.received import Received
from workers.deadletters.headers import ORIGINAL_PARTITION, ORIGINAL_TOPIC
from workers.deadletters.writer import DeadLetters
from workers.kafka.messages import headers_of
from workers.kafka.watermarks import Watermarks
from workers.lifecycle import Shutdown
from workers.local.cluster import finish
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

@batch
def batched(messages):
    if any(message.value() == b"poison" for message in messages):
        raise ValueError("somewhere in this batch")
    note(" ".join(message.value().decode() for message in messages))

tries = 0
def away_at_first(message):
    global tries
    tries += 1
    if tries <= 4:
        raise Retry("the database is away", after_s=0.1)
    note(message.value().decode())

def slow(message):
    note("begin " + message.value().decode())
    time.sleep(8)
    note("end " + message.value().decode())

def takes_long(message):
    time.sleep(0.15)

def hang(message):
    note("begin")
    time.sleep(3600)

def upper_case(message):
    message.set_value({{"upper": message.value().decode().upper()}})
    if message.value()["upper"] == "POISON":
        raise Reject("never")
    note(message.value()["upper"])

calls = 0
def later(message):
    global calls
    calls += 1
    note(f"call {{message.value().decode()}}")
    if calls == 1:
        raise Retry("a long time from now", after_s=3600)

failures = 0
def slow_beside_failing(message):
    global failures
    if message.value() == b"fails at first":
        failures += 1
        if failures < 4:
            raise ValueError("not yet")
    else:
        time.sleep(0.05)
    note(message.value().decode())

@batch
def one_by_one(messages):
    if len(messages) > 1:
        raise ValueError("somewhere in this batch")
    time.sleep(0.001)

def leave(message):
    raise SystemExit(5)
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
    def poisoned(self) -> int:
        return sum(line.startswith("poison") for line in self.lines)

    @property
    def lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []


QUICK = ["--retry-backoff", "0.1", "--retry-backoff-max", "1"]


def put(processes: Processes, topic: str, *values: str) -> None:
    processes.produce(topic, "--input", "-", stdin="".join(f"{value}\n" for value in values).encode())


def dead_letters(bootstrap_servers: str, topic: str, count: int) -> list[tuple[bytes | None, dict[str, str]]]:
    client = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "reader"})
    client.assign([TopicPartition(topic, number, 0) for number in range(3)])
    letters: list[tuple[bytes | None, dict[str, str]]] = []
    while len(letters) < count:
        message = client.poll(10)
        assert message is not None, "a dead letter is missing"
        assert message.error() is None
        letters.append((message.value(), {name: (value or b"").decode() for name, value in headers_of(message)}))
    assert client.poll(0.3) is None
    client.close()
    return letters


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
    [(value, headers)] = dead_letters(bootstrap_servers, f"{topic}.dlq", 1)
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


def test_a_rejected_message_is_not_tried_again(
    processes: Processes, topics: Topics, group: str, bootstrap_servers: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    topics.create_named(f"{topic}.dlq")
    put(processes, topic, "poison", "b")
    consumer = processes.consume(topic, group, "--handler", "mine:reject", "--max-messages", "2")

    assert consumer.wait() == 0, consumer.stderr
    assert notes.lines == ["poison", "b"]
    assert len(dead_letters(bootstrap_servers, f"{topic}.dlq", 1)) == 1


def test_what_a_handler_does_to_a_message_is_not_in_its_dead_letter(
    processes: Processes, topics: Topics, group: str, bootstrap_servers: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    topics.create_named(f"{topic}.dlq")
    put(processes, topic, "poison", "b")
    consumer = processes.consume(topic, group, "--handler", "mine:upper_case", "--max-messages", "2")

    assert consumer.wait() == 0, consumer.stderr
    assert notes.lines == ["B"]
    assert dead_letters(bootstrap_servers, f"{topic}.dlq", 1)[0][0] == b"poison"


def test_of_a_failing_batch_only_the_poisoned_message_becomes_a_dead_letter(
    processes: Processes, topics: Topics, group: str, bootstrap_servers: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    topics.create_named(f"{topic}.dlq")
    put(processes, topic, "a", "b", "poison", "c", "d")
    consumer = processes.consume(
        topic,
        group,
        "--handler",
        "mine:batched",
        "--max-messages",
        "5",
        "--max-attempts",
        "2",
        "--retry-backoff",
        "0.1",
    )

    assert consumer.wait() == 0, consumer.stderr
    assert " ".join(notes.lines).split() == ["a", "b", "c", "d"]
    assert dead_letters(bootstrap_servers, f"{topic}.dlq", 1)[0][0] == b"poison"


def test_a_failing_partition_does_not_stall_the_others(
    processes: Processes, topic: str, group: str, bootstrap_servers: str, notes: Notes, admin: AdminClient
) -> None:
    consumer = processes.consume(
        topic,
        group,
        "--handler",
        "mine:poison",
        "--on-error",
        "retry",
        "--retry-backoff",
        "0.2",
        "--retry-backoff-max",
        "1",
    )
    eventually(lambda: consumer.metric("kafka_consumer_assigned_partitions") == 3, "assigned")
    processes.write(
        "rows.py",
        "from workers import Outgoing\n"
        "def rows():\n"
        "    yield Outgoing('poison', partition=0)\n"
        "    for number in range(300):\n"
        "        yield Outgoing(str(number), partition=number % 3)\n",
    )
    processes.produce(topic, "--source", "rows:rows")

    eventually(
        lambda: len([line for line in notes.lines if not line.startswith("poison")]) == 200, "the other partitions"
    )
    eventually(
        lambda: len([line for line in notes.lines if line.startswith("poison")]) >= 4, "it is tried again and again"
    )
    eventually(lambda: consumer.metric("kafka_consumer_lag_messages", partition="0") == 101, "the lag where it fails")
    eventually(lambda: consumer.metric("kafka_consumer_lag_messages", partition="1") == 0, "no lag where nothing fails")
    assert (consumer.metric("kafka_consumer_messages_total", outcome="retry") or 0) >= 3
    assert consumer.get("/livez")[0] == 200
    assert consumer.stop() == 0
    assert committed(admin, group).get(0, 0) == 0


def test_a_retry_does_not_wait_for_all_that_a_slow_partition_holds(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = topics.create(partitions=2)
    processes.write(
        "rows.py",
        "from workers import Outgoing\n"
        "def rows():\n"
        "    yield Outgoing('fails at first', partition=0)\n"
        "    for number in range(150):\n"
        "        yield Outgoing('slow', partition=1)\n",
    )
    processes.produce(topic, "--source", "rows:rows")
    consumer = processes.consume(
        topic, group, "--handler", "mine:slow_beside_failing", "--max-messages", "151", "--retry-backoff", "0.2"
    )

    assert consumer.wait() == 0, consumer.stderr
    before, after = (" ".join(notes.lines) + " ").split("fails at first")
    assert before.count("slow") + after.count("slow") == 150
    assert before.count("slow") > 0
    assert after.count("slow") > 20


def test_what_a_member_has_not_handled_is_not_behind_the_end_that_the_next_begins_at(
    processes: Processes, topics: Topics, admin: AdminClient, group: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    put(processes, topic, "before")
    session = ["--property", "session.timeout.ms=6000"]
    first = processes.consume(topic, group, "--from-end", "--handler", "mine:hang", *session)
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
    topic = topics.create(partitions=1)
    processes.produce(topic, "--count", "400", "--size", "900000")
    consumer = processes.consume(topic, group, "--handler", "mine:takes_long")
    eventually(lambda: (consumer.metric("kafka_consumer_messages_total", outcome="success") or 0) > 40, "progress")

    assert consumer.peak_rss_mib < 220  # all of them are 360 MB


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
        lambda: nullcontext(fails_at_times),
        Shutdown(10),
        policy=ErrorPolicy(),
        dead_letters=DeadLetters(config, None, group),
        outputs=Outputs(config),
        watermarks=Watermarks(lambda: AdminClient(dict(told)), IsolationLevel.READ_COMMITTED),
        max_messages=3000,
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


def test_a_stop_hook_that_fails_is_said_and_fails_the_worker(processes: Processes, topic: str, group: str) -> None:
    processes.write(
        "hooks.py",
        "from workers import lifespan\n"
        "@lifespan\n"
        "def flushes():\n"
        "    yield lambda message: None\n"
        "    raise OSError('the last rows were not written')\n",
    )
    processes.produce(topic, "--count", "1")
    consumer = processes.consume(topic, group, "--handler", "hooks:flushes", "--max-messages", "1")

    assert consumer.wait() == 1
    assert "OSError: the last rows were not written" in consumer.stderr.splitlines()[-1]


def test_stop_on_error_ends_the_worker_and_commits_only_what_was_handled(
    processes: Processes, topics: Topics, group: str, admin: AdminClient, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    put(processes, topic, "a", "poison", "b")
    consumer = processes.consume(
        topic, group, "--handler", "mine:poison", "--on-error", "stop", "--max-attempts", "2", *QUICK
    )

    assert consumer.wait() == 1
    assert f"{topic}[0] offset 1" in consumer.stderr.splitlines()[-1]
    assert "ValueError: cannot take this" in consumer.stderr.splitlines()[-1]
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
    assert len(dead_letters(bootstrap_servers, f"{topic}.dlq", 1)) == 1


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


def test_a_retry_that_was_asked_for_is_not_counted(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    put(processes, topic, "a")
    consumer = processes.consume(
        topic, group, "--handler", "mine:away_at_first", "--max-messages", "1", "--max-attempts", "2"
    )

    assert consumer.wait() == 0, consumer.stderr
    assert notes.lines == ["a"]


def poll_interval(seconds: float) -> list[str]:
    return ["--property", f"max.poll.interval.ms={seconds * 1000:.0f}", "--property", "session.timeout.ms=6000",
            "--property", "heartbeat.interval.ms=500"]  # fmt: skip


def test_a_handler_slower_than_the_poll_interval_keeps_its_partition(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    put(processes, topic, "a")
    consumer = processes.consume(topic, group, "--handler", "mine:slow", "--max-messages", "1", *poll_interval(7))

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


def test_a_handler_that_exits_ends_the_worker_with_its_reason(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = topics.create(partitions=1)
    put(processes, topic, "a")
    consumer = processes.consume(topic, group, "--handler", "mine:leave")

    assert consumer.wait() == 1
    assert "SystemExit: 5" in consumer.stderr.splitlines()[-1]


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


def test_a_replayed_dead_letter_is_back_where_it_came_from_once(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = topics.create()
    topics.create_named(f"{topic}.dlq")
    processes.produce(topic, "--input", "-", "--key-separator", ":", stdin=b"k:poison\n")
    limits = ["--max-messages", "1"]
    assert processes.consume(topic, group, "--handler", "mine:reject", *limits).wait() == 0
    first = processes.run("dead-letters", "replay", "--topic", f"{topic}.dlq")
    second = processes.run("dead-letters", "replay", "--topic", f"{topic}.dlq")

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "1 dead letters replayed" in first.stdout
    assert "0 dead letters replayed" in second.stdout
    again = processes.consume(topic, group, *limits, "--format", "json")
    assert again.wait() == 0
    line = json.loads(again.lines[0])
    assert (line["topic"], line["key"], line["value"]) == (topic, "k", "poison")
    assert "headers" not in line


def test_a_replay_that_fails_half_way_sends_nothing_twice_that_came_before(
    processes: Processes, topics: Topics, admin: AdminClient, group: str, notes: Notes
) -> None:
    topic, gone = topics.create(), topics.create()
    letters = f"{topic}.letters"
    topics.create_named(letters, partitions=1)
    # One after the other, so that the letter in the middle is of the other topic.
    for number, origin in enumerate((topic, gone, topic)):
        put(processes, origin, "poison")
        options = ["--max-messages", "1", "--handler", "mine:reject", "--dead-letter-topic", letters]
        assert processes.consume(origin, group, *options).wait() == 0, number
    finish(admin.delete_topics([gone])[gone], KafkaError.UNKNOWN_TOPIC_OR_PART)
    options = ["--to-topic", topic, "--to-topic", gone, "--property", "delivery.timeout.ms=3000"]
    results = [processes.run("dead-letters", "replay", "--topic", letters, *options) for _ in range(2)]

    assert [result.returncode for result in results] == [1, 1]
    assert "1 of 3 dead letters were not acknowledged" in results[0].stderr
    assert f"1 of 2 dead letters were not acknowledged: {gone}: " in results[1].stderr
    # The two of before, one for each letter, and the last letter's once more: it came after the one that failed.
    reader = processes.consume(topic, f"{group}-reader", "--format", "value", "--idle-timeout", "5")
    assert reader.wait() == 0
    assert reader.lines == ["poison"] * 5


def test_a_letter_of_another_topic_waits_until_the_user_decides(
    processes: Processes, topics: Topics, bootstrap_servers: str
) -> None:
    """Whoever may write to the dead-letter topic may write any origin."""
    topic, other = topics.create(), topics.create()
    letters = f"{topic}.dlq"
    topics.create_named(letters, partitions=1)
    writer = Producer({"bootstrap.servers": bootstrap_servers})
    for name, value in ((topic, "1"), (other, "2"), (topic, "3")):
        writer.produce(letters, value, headers=[(ORIGINAL_TOPIC, name), (ORIGINAL_PARTITION, "0")])
    writer.flush()
    replay = ["dead-letters", "replay", "--topic", letters, "--replay-group", "first"]
    refused = [processes.run(*replay) for _ in range(2)]
    allowed = processes.run(*replay, "--to-topic", topic, "--to-topic", other)
    others = ["--replay-group", "second", "--skip-other-topics"]
    skipped = processes.run("dead-letters", "replay", "--topic", letters, *others)

    assert [result.returncode for result in refused] == [1, 1]
    assert [result.stdout.split()[0] for result in refused] == ["1", "0"]
    complaint = refused[1].stderr.splitlines()[-1]
    assert f"{letters} that say they came from {other} may not be sent there" in complaint
    assert all(f"--to-topic {name}" in complaint for name in (topic, other))
    assert (allowed.returncode, allowed.stdout.split()[0]) == (0, "2"), allowed.stderr
    assert (skipped.returncode, skipped.stdout.splitlines()[1]) == (0, "1 dead letters of other topics passed over")
    sent = {
        name: processes.consume(name, f"reader-{name}", "--format", "value", "--idle-timeout", "5")
        for name in (topic, other)
    }
    assert [reader.wait() for reader in sent.values()] == [0, 0]
    # Once by the group that was told to send it, once by the other.
    assert {name: sorted(reader.lines) for name, reader in sent.items()} == {topic: ["1", "1", "3", "3"], other: ["2"]}


def test_a_replay_ends_though_all_that_it_sends_is_rejected_again(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = topics.create()
    topics.create_named(f"{topic}.dlq")
    put(processes, topic, *["poison"] * 30)
    consumer = processes.consume(topic, group, "--handler", "mine:reject")
    eventually(
        lambda: consumer.metric("kafka_consumer_messages_total", outcome="dead_letter") == 30, "all are dead letters"
    )
    # A queue that has room for three of them.
    small = ["--property", "queue.buffering.max.messages=3"]
    first = processes.run("dead-letters", "replay", "--topic", f"{topic}.dlq", "--max-messages", "10", *small)
    second = processes.run("dead-letters", "replay", "--topic", f"{topic}.dlq")

    assert "10 dead letters replayed" in first.stdout
    replayed = int(second.stdout.split()[0])
    assert replayed >= 20
    eventually(
        lambda: consumer.metric("kafka_consumer_messages_total", outcome="dead_letter") == 30 + 10 + replayed,
        "each was sent back once",
    )


def test_an_invalid_line_says_what_it_is_and_waits_until_it_is_discarded(
    processes: Processes, topics: Topics, group: str, notes: Notes
) -> None:
    topic = topics.create()
    letters = f"{topic}.dlq"
    topics.create_named(letters)
    options = ["--key-field", "id", "--on-invalid", "dead-letter"]
    processes.produce(topic, "--input", "-", *options, stdin=b"no JSON\nnone either\n")
    put(processes, topic, "poison")
    assert processes.consume(topic, group, "--handler", "mine:reject", "--max-messages", "1").wait() == 0
    result = processes.run("dead-letters", "replay", "--topic", letters)

    assert result.returncode == 1
    assert "1 dead letters replayed" in result.stdout
    assert f"2 dead letters of {letters} are lines that `produce` could not send" in result.stderr.splitlines()[-1]
    listed = processes.run("dead-letters", "list", "--topic", letters)
    assert listed.stdout.count("a line  -    InvalidLine: standard input line ") == 2
    assert processes.run("dead-letters", "discard", "--topic", letters, "--error", "InvalidLine").returncode == 0
    last = processes.run("dead-letters", "replay", "--topic", letters)
    assert (last.returncode, last.stdout) == (0, f"0 dead letters replayed from {letters}\n")
