"""A real Kafka for tests, which can be broken, and workers as processes against it."""

import json
import os
import secrets
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer

from workers.deadletters.headers import SUFFIX
from workers.kafka.client import ClientState
from workers.kafka.reader import PROPERTIES, read_to_end
from workers.lifecycle import Shutdown
from workers.local.cluster import Cluster
from workers.testing.killing import VARIABLE
from workers.testing.processes import DEADLINE_S, Process, Processes, eventually

# A killed member is missed after a second, not after ten; KIP-848 leaves that to the brokers.
QUICK = ("--property", "session.timeout.ms=1000", "--property", "heartbeat.interval.ms=300")
FLUSH_S = 60.0


class Kafka:
    """Three brokers. What is acknowledged survives one of them: kill it, or let it hang."""

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
            if isinstance(each, Message):
                record: Any = {"value": each.value(), "key": each.key(), "headers": each.headers() or []}
            else:
                record = {"value": each}
            producer.produce(topic, on_delivery=on_delivery, **record)
        left = producer.flush(FLUSH_S)
        assert not left, f"{left} messages to {topic} were not acknowledged within {FLUSH_S:g} s"
        assert not failed, f"{len(failed)} messages were not written to {topic}, the first one because: {failed[0]}"

    def messages(self, topic: str) -> list[Message]:
        """All messages of a topic, partition by partition."""
        client_state = ClientState()
        properties: dict[str, Any] = {
            **PROPERTIES, **client_state.callbacks(), "bootstrap.servers": self.bootstrap_servers, "group.id": "reader",
        }  # fmt: skip
        client = Consumer(properties)
        try:
            starts = dict.fromkeys(
                client.list_topics(topic, timeout=FLUSH_S).topics[topic].partitions, OFFSET_BEGINNING
            )
            batches = read_to_end(client, client_state, topic, starts, Shutdown(0), FLUSH_S)
            found = [message for batch in batches for message in batch]
        finally:
            client.close()
        return sorted(found, key=lambda each: (each.partition() or 0, each.offset() or 0))

    def kill_broker(self, number: int = 0) -> None:
        """Kill a broker with SIGKILL; it stays away until `recover`."""
        self._cluster.kill_broker(number)

    def hang_broker(self, number: int = 0) -> None:
        """Stop a broker with SIGSTOP: its connections stay open, and it does not answer until `recover`."""
        self._cluster.brokers[number].send(signal.SIGSTOP)

    def recover(self) -> None:
        """Let all brokers run again, and wait until they do."""
        down = [broker.node_id for broker in self._cluster.brokers if not broker.running]
        for broker in self._cluster.brokers:
            if broker.running:
                # It does nothing to one that does not hang.
                broker.send(signal.SIGCONT)
        for number in down:
            self._cluster.start_broker(number)
        if down:
            self._cluster.wait_until_ready()


class Worker:
    """One worker process."""

    def __init__(self, process: Process, topic: str) -> None:
        self.process = process
        self._topic = topic

    def handled(self) -> int:
        """How many messages its handler has handled so far."""
        return int(self.process.metric("kafka_consumer_messages_total", outcome="success") or 0)

    def until_handled(self, count: int, timeout_s: float = DEADLINE_S) -> None:
        """Wait until it has handled so many."""
        eventually(lambda: self.handled() >= count, f"{count} messages are handled", timeout_s)

    def until_done(self, timeout_s: float = DEADLINE_S) -> None:
        """Wait until it owns partitions and has no lag."""

        def done() -> bool:
            with suppress(OSError):
                return self.process.metric("kafka_consumer_lag_messages") == 0
            return False

        eventually(done, "nothing is left to handle", timeout_s)

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
        lines = [*self.process.stderr.splitlines(), *self.process.lines]
        account: dict[str, Any] = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
        found: dict[str, Any] = account["topics"].get(self._topic, {}) if "topics" in account else account
        return found


class Workers:
    """Starts workers that find every module that the test finds. Consumers are members of one group."""

    def __init__(self, kafka: Kafka, topic: str, directory: Path) -> None:
        self._processes = Processes(kafka.bootstrap_servers, directory)
        self._topic = topic
        self._group = f"group-{secrets.token_hex(4)}"

    def consume(
        self, handler: str, *options: str, kill: tuple[str, str] | None = None, env: Mapping[str, str] | None = None
    ) -> Worker:
        """Start a consumer with a handler, MODULE:NAME, and any options of `kafka-workers consume`.

        `kill`, (when, value), kills it at the first message with that value: "before" its call, "during" it, or
        "after" it and before its offset is committed.
        """
        variables = dict(env or {})
        own = ["--group-id", self._group, "--handler", handler]
        if kill is not None:
            variables[VARIABLE] = ":".join(kill)
            own += ["--middleware", "workers.testing.killing:kill"]
        if "--group-protocol" not in options:
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
        return Worker(process, self._topic)
