"""A real Kafka for tests, which can be broken, and workers as processes against it."""

import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from workers.deadletters.headers import SUFFIX
from workers.kafka import groups
from workers.kafka.client import ClientState
from workers.kafka.reader import PROPERTIES, read_to_end
from workers.lifecycle import Shutdown
from workers.local.cluster import Cluster
from workers.testing.killing import VARIABLE, chosen
from workers.testing.processes import DEADLINE_S, Process, Processes, eventually

# pytest shows no frames of this module: a fault is the handler's, and stands in the error's message.
__tracebackhide__ = True

# A killed member is missed after a second, not after ten; KIP-848 leaves that to the brokers.
QUICK = ("--property", "session.timeout.ms=1000", "--property", "heartbeat.interval.ms=300")
FLUSH_S = 60.0
IN_FLIGHT_MESSAGES = 50_000
POLL_S = 0.1


class Kafka:
    """Three brokers. Acknowledged messages survive the loss of one: kill it, or let it hang."""

    def __init__(self) -> None:
        self._cluster = Cluster()

    def __enter__(self) -> Self:
        self._cluster.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.stop()

    @property
    def bootstrap_servers(self) -> str:
        return self._cluster.bootstrap_servers

    def create_topic(self, name: str | None = None, partitions: int = 3, **config: str) -> str:
        """Create a topic and its dead-letter topic; return its name."""
        name = name or f"test-{secrets.token_hex(4)}"
        self._cluster.create_topic(name, partitions, **config)
        self._cluster.create_topic(name + SUFFIX, partitions)
        return name

    def produce(self, topic: str, messages: Iterable[Message | str | bytes]) -> None:
        """Write messages, of which a text or bytes is a value without a key; raises AssertionError unless brokers have
        acknowledged all of them.
        """
        failed: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        producer = Producer({"bootstrap.servers": self.bootstrap_servers, "enable.idempotence": True})
        for each in messages:
            # The client takes no more than it has room for.
            while len(producer) >= IN_FLIGHT_MESSAGES:
                producer.poll(POLL_S)
            if isinstance(each, Message):
                record: Any = {"value": each.value(), "key": each.key(), "headers": each.headers() or []}
            else:
                record = {"value": each}
            producer.produce(topic, on_delivery=on_delivery, **record)
        left = producer.flush(FLUSH_S)
        assert not left, f"{left} messages to {topic} were not acknowledged within {FLUSH_S:g} s"
        assert not failed, f"{len(failed)} messages were not written to {topic}, the first one because: {failed[0]}"

    def messages(self, topic: str) -> list[Message]:
        """All messages of a topic, partition by partition; raises ValueError when there is no such topic."""
        client_state = ClientState()
        properties: dict[str, Any] = {
            **PROPERTIES, **client_state.callbacks(), "bootstrap.servers": self.bootstrap_servers, "group.id": "reader",
        }  # fmt: skip
        client = Consumer(properties)
        try:
            # All topics: to ask for one may create it.
            known = client.list_topics(timeout=FLUSH_S).topics
            if topic not in known:
                raise ValueError(f"topic {topic} does not exist; correct the name, or create it with create_topic")
            starts = dict.fromkeys(known[topic].partitions, OFFSET_BEGINNING)
            batches = read_to_end(client, client_state, topic, starts, Shutdown(0), FLUSH_S)
            found = [message for batch in batches for message in batch]
        finally:
            client.close()
        return sorted(found, key=lambda each: (each.partition() or 0, each.offset() or 0))

    def lag(self, group_id: str, topic: str) -> int:
        """How many messages of a topic the group has not committed, as the brokers know it; raises KafkaException while
        they do not answer.
        """
        admin = self._cluster.admin()
        numbers = groups.partitions_of(admin, [topic])
        numbers.check()
        places = [TopicPartition(topic, number) for number in numbers.values[topic]]
        # An admin client may crash where coordinators move (librdkafka#5040), and with it the tests.
        client = Consumer({"bootstrap.servers": self.bootstrap_servers, "group.id": group_id, "log_level": 0})
        try:
            committed = client.committed(places, timeout=groups.REQUEST_TIMEOUT_S)
        finally:
            client.close()
        if errors := [place.error for place in committed if place.error is not None]:
            raise KafkaException(errors[0])
        offsets = {(place.topic, place.partition): max(0, place.offset) for place in committed}
        ranges = groups.offset_ranges(admin, [(topic, number) for number in numbers.values[topic]])
        return sum(max(0, end - max(beginning, offsets[key])) for key, (beginning, end) in ranges.items())

    def kill_broker(self, number: int = 0) -> None:
        """Kill a broker with SIGKILL; it stays away until `recover`."""
        self._cluster.kill_broker(number)

    def hang_broker(self, number: int = 0) -> None:
        """Stop a broker with SIGSTOP: its connections stay open, and it does not answer until `recover`."""
        self._cluster.brokers[number].send(signal.SIGSTOP)

    def recover(self) -> None:
        """Let all brokers run again, and wait until they do."""
        for broker in self._cluster.brokers:
            if broker.running:
                # It does nothing to one that does not hang.
                broker.send(signal.SIGCONT)
            else:
                self._cluster.start_broker(broker.node_id)
        self._cluster.wait_until_ready()


class Worker:
    """One worker process. `lag` asks the brokers for that of its group, in messages."""

    def __init__(self, process: Process, command: str, topic: str, lag: Callable[[], int]) -> None:
        self.process = process
        self._command = command
        self._topic = topic
        self._lag = lag

    def handled(self) -> int:
        """How many messages its handler has handled so far."""
        return int(self.process.metric("kafka_consumer_messages_total", outcome="success") or 0)

    def until_handled(self, count: int, timeout_s: float = DEADLINE_S) -> None:
        """Wait until it has handled `count` messages; raises AssertionError, also when the worker ends."""
        self._until(lambda: self.handled() >= count, f"{count} messages are handled", timeout_s)

    def until_done(self, timeout_s: float = DEADLINE_S) -> None:
        """Wait until it has joined its group, and brokers say that the group has committed all messages of the topic;
        raises AssertionError, when it ends too.
        """
        self._until(
            lambda: self.process.get("/readyz")[0] == HTTPStatus.OK and self._lag() == 0,
            "the group has committed all messages",
            timeout_s,
        )

    def _until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        def reached() -> bool:
            # Ask again while the worker or the brokers do not answer.
            with suppress(OSError, KafkaException):
                return condition()
            assert self.process.running, f"{self.process.name} has ended before {what}:\n{self.process.stderr[-3000:]}"
            return False

        eventually(reached, what, timeout_s)

    def until_killed(self, timeout_s: float = DEADLINE_S) -> None:
        """Wait until SIGKILL has ended it."""
        code = self.process.wait(timeout_s)
        assert code == -signal.SIGKILL, f"it ended with {code}, and not by SIGKILL:\n{self.process.stderr[-3000:]}"

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.process.kill()

    def stop(self, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """Stop it with SIGTERM, and return its account; raises AssertionError unless it exits 0."""
        return self._account(self.process.stop(timeout_s=timeout_s))

    def wait(self, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """Wait until it ends by itself, and return its account; raises AssertionError unless it exits 0."""
        return self._account(self.process.wait(timeout_s))

    def _account(self, code: int) -> dict[str, Any]:
        assert code == 0, f"it exited with {code}:\n{self.process.stderr[-3000:]}"
        # A consumer's standard output belongs to the messages. User code may print lines of JSON, too, but before that.
        if self._command == "consume":
            lines, field = self.process.stderr.splitlines(), "topics"
        else:
            lines, field = self.process.lines, "acknowledged"
        for line in reversed(lines):
            with suppress(ValueError):
                account = json.loads(line)
                if isinstance(account, dict) and field in account:
                    of_topic: dict[str, Any] = account["topics"].get(self._topic, {}) if field == "topics" else account
                    return of_topic
        raise AssertionError(f"it has given no account:\n{self.process.stderr[-3000:]}")


class Workers:
    """Starts workers that find every module that the test finds. Consumers are members of one group."""

    def __init__(self, kafka: Kafka, topic: str, directory: Path) -> None:
        self._kafka = kafka
        self._processes = Processes(kafka.bootstrap_servers, directory)
        self._topic = topic
        self._group = f"group-{secrets.token_hex(4)}"

    def consume(
        self, handler: str, *options: str, kill: tuple[str, str] | None = None, env: Mapping[str, str] | None = None
    ) -> Worker:
        """Start a consumer with a handler, MODULE:NAME, and any options of `kafka-workers consume`.

        `kill`, (when, value), kills it at the first message with that value: "before" its call, "during" it, or
        "after" it and before its offset is committed. Raises ValueError where it is anything else.
        """
        variables = dict(env or {})
        own = ["--group-id", self._group, "--handler", handler]
        if kill is not None:
            variables[VARIABLE] = chosen(kill)
            own += ["--middleware", "workers.testing.killing:kill"]
        if not any(each.partition("=")[0] == "--group-protocol" for each in options):
            own += QUICK
        return self._start("consume", *own, *options, env=variables)

    def produce(self, source: str, *options: str, env: Mapping[str, str] | None = None) -> Worker:
        """Start a producer with a source, MODULE:NAME, and any options of `kafka-workers produce`."""
        return self._start("produce", "--source", source, *options, env=env or {})

    def kill_all(self) -> None:
        """Kill what still runs."""
        self._processes.kill_all()

    def _start(self, command: str, *arguments: str, env: Mapping[str, str]) -> Worker:
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **env}
        process = self._processes.start(command, "--topic", self._topic, "--summary", "json", *arguments, env=variables)
        return Worker(process, command, self._topic, partial(self._kafka.lag, self._group, self._topic))
