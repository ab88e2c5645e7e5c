"""Both workers at work on one topic, as processes, with the books kept on them from outside."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from tests.faults.books import Acknowledged, Handled, Tail
from tests.faults.recorder import FILE, HEAP_SUFFIX, HOLD, OUTPUTS
from workers.local.cluster import Cluster
from workers.testing.processes import Process, Processes, eventually

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
MEMBERS = 2
# As in the Dockerfile, for memory is measured.
IMAGE_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}
# The bound in docs/guarantees.md for a stop of a worker that is not stuck.
STOP_TIMEOUT_S = 15.0
READER_S = 10.0
# Not as shipped: that partitions were added is seen after two seconds instead of a minute.
PROPERTIES = ["--property", "topic.metadata.refresh.interval.ms=2000"]
# Not as shipped: a request for each message would take half of what two cores can do.
LINGER = ["--property", "linger.ms=50"]
# A failing call is tried again until it succeeds: a dead letter would not be handled.
RETRIES = ["--on-error", "retry", "--retry-backoff", "0.05", "--retry-backoff-max", "1"]
ORDER_METRICS = ("kafka_consumer_missing_total", "kafka_consumer_duplicates_total", "kafka_consumer_reordered_total")


@dataclass(frozen=True)
class Setup:
    """How the workers of a load are set up. `by_key` says that the order is that of keys, and messages have one.

    `outputs` says that its handler gives back what it was given, and that the books are kept on that; `once` that none
    may be there twice, with --exactly-once.
    `replicas` are the brokers of each partition; without them a topic is on every broker. `environment` is that of the
    workers.
    """

    name: str
    group_protocol: str
    handler: str
    description: str
    rate: int = 250
    partitions: int = 3
    members: int = MEMBERS
    by_key: bool = False
    outputs: bool = False
    once: bool = False
    produce: tuple[str, ...] = ()
    consume: tuple[str, ...] = ()
    topic_config: Mapping[str, str] = field(default_factory=dict)
    replicas: tuple[tuple[int, ...], ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Account:
    """The outcome of every message, as the workers and `kafka-workers verify` report it once all is at rest."""

    load: str
    producer: dict[str, Any]
    verified: list[dict[str, Any]]
    missing: int
    repeated: int
    handled: int
    redelivered: int
    exit_codes: list[int]

    def breaches(self) -> list[str]:
        """The promises that were not kept, in words."""
        wrong = [f"run {run['run']}: {name} {run[name]}" for run in self.verified
                 for name in ("lost", "duplicated", "reordered", "failed_present") if run[name]]  # fmt: skip
        if self.missing:
            wrong.append(f"acknowledged and not handled: {self.missing}")
        if self.repeated:
            wrong.append(f"outputs that are there twice: {self.repeated}")
        outcomes = [self.producer[name] for name in ("acknowledged", "failed", "unknown")]
        if self.producer["sent"] != sum(outcomes):
            wrong.append(f"sent {self.producer['sent']}, but outcomes {outcomes}")
        if any(self.exit_codes):
            wrong.append(f"exit codes {self.exit_codes}")
        return [f"{self.load}: {each}" for each in wrong]


class Committed:
    """The messages that transactions have committed to a topic since the last look, as its own reader sees them."""

    def __init__(self, cluster: Cluster, topic: str, partitions: int) -> None:
        # In no group: one whose offsets are refused while coordinators move reads nothing ever after (librdkafka#5586).
        self._consumer = Consumer(
            {
                "bootstrap.servers": cluster.bootstrap_servers, "log_level": 0, "group.id": "reader",
                "auto.offset.reset": "earliest", "isolation.level": "read_committed", "enable.auto.commit": False,
            }
        )  # fmt: skip
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)])

    def lines(self) -> list[bytes]:
        lines: list[bytes] = []
        while messages := self._consumer.consume(1000, 0.01):
            lines += [bytes(message.value() or b"") for message in messages if message.error() is None]
        return lines

    def close(self) -> None:
        self._consumer.close()


class Load:
    """One producer and a group of consumers that run until `final_accounts` or `close`.

    The first member and the first producer live as long as the load: faults that kill take others.
    """

    def __init__(self, setup: Setup, processes: Processes, cluster: Cluster) -> None:
        self.setup = setup
        self.topic = f"load-{setup.name}"
        self.group = f"group-{setup.name}"
        # A fault that adds some says so here.
        self.partitions = setup.partitions
        self.members: list[Process] = []
        self.retired: list[Process] = []
        self._watched: list[Process] = []
        self.acknowledged = Acknowledged()
        self.handled = Handled(setup.by_key, once=setup.once)
        self._outputs: Committed | None = None
        self.lock = threading.Lock()
        self.membership_changes = 0
        self.seen_too_far = 0
        self._rests = False
        self._processes = processes
        self._cluster = cluster
        self._tails: list[tuple[str | None, Tail]] = []
        self._heap_of_first = processes.directory / f"{setup.name}-0.handled{HEAP_SUFFIX}"
        # It asks for the group's offsets and never joins. An admin client would go on asking a coordinator that is
        # gone.
        servers = {"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0}
        self._reader = Consumer({**servers, "group.id": self.group})

    def close(self) -> None:
        self._processes.kill_all()
        for process in self._watched:
            self._cluster.forget(process.popen.pid)
        self._reader.close()
        # Whoever looks has begun before, or finds none.
        with self.lock:
            if self._outputs is not None:
                self._outputs.close()
            self._outputs = None

    def read_outputs(self) -> None:
        """Keeps the books on the topic of the outputs, which has to exist."""
        self._outputs = Committed(self._cluster, self.outputs_topic, self.setup.partitions)

    @property
    def outputs_topic(self) -> str:
        return self.topic + OUTPUTS

    def start_producer(self) -> None:
        """Starts the producer that lives as long as the load, or a new one after `stop_producer`."""
        self._rests = False
        self.producer = self.produce("--forever", "--rate", str(self.setup.rate))

    def stop_producer(self) -> None:
        """Has every message that was sent booked, and none under way."""
        self._rests = True
        assert self.producer.stop(timeout_s=40) == 0, self.producer.stderr
        self.look()

    def burst(self, count: int) -> None:
        """Sends `count` messages more, as fast as it goes."""
        producer = self.produce("--count", str(count))
        assert producer.wait(120) == 0, producer.stderr
        self.look()

    def produce(self, *arguments: str) -> Process:
        """Starts a producer, of which every delivery is booked."""
        producer = self._processes.start(
            "produce", "--topic", self.topic, "--verbose", "--summary", "json", *PROPERTIES, *LINGER,
            *self.setup.produce, *arguments,
            env={**IMAGE_ENVIRONMENT, **self.setup.environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._watch(producer)
        self._tails.append((None, Tail(producer.out)))
        return producer

    def scale(self, count: int) -> None:
        """Starts or stops members until there are `count`; those that were there longest stay."""
        while len(self.members) < count:
            self._start_member()
        while len(self.members) > count:
            self.stop_member(self.members[-1])

    def stop_member(self, member: Process) -> None:
        self.ask_to_stop(member)
        self.await_stopped(member)

    def ask_to_stop(self, member: Process) -> None:
        self.members.remove(member)
        self.retired.append(member)
        self.membership_changes += 1
        member.popen.send_signal(signal.SIGTERM)

    def await_stopped(self, member: Process) -> None:
        code = member.wait(STOP_TIMEOUT_S)
        assert code == 0, f"{member.name} did not leave cleanly: {member.stderr}"

    def kill_member(self) -> None:
        """SIGKILL for the youngest member."""
        self.membership_changes += 1
        self.members.pop().kill()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Has the handler `held` handle nothing meanwhile."""
        hold = self._processes.directory / HOLD
        hold.touch()
        yield
        hold.unlink()

    def look(self) -> None:
        """Reads what the processes have written since the last look."""
        with self.lock:
            for member, tail in self._tails:
                if member is None:
                    self.acknowledged.observe(tail.lines())
            handled = [(member, tail.lines()) for member, tail in self._tails if member is not None]
            if self._outputs is not None:
                handled.append(("outputs", self._outputs.lines()))
            self.handled.look(self.acknowledged, handled)

    def forget(self) -> None:
        """Begin new records, for a topic that was deleted with everything in it."""
        self.look()
        with self.lock:
            self.acknowledged, self.handled = Acknowledged(), Handled(self.setup.by_key, once=self.setup.once)

    def forgive(self, partition: int, beginning: int) -> None:
        """Record that the messages before `beginning` were deleted, handled or not."""
        with self.lock:
            self.handled.forgive(partition, beginning)

    def never_handled(self, ends: dict[int, int]) -> int:
        """How many messages before `ends` nobody has handled."""
        with self.lock:
            return sum(self.handled.never_handled(partition, end) for partition, end in ends.items())

    def truncate(self, partition: int, end: int) -> None:
        """Record that an unclean election has truncated the log at `end`; messages written there later are new."""
        self.look()
        with self.lock:
            self.acknowledged.truncate(partition, end)
            self.handled.truncate(partition, end)

    def backlog(self) -> int:
        """How many messages are acknowledged and not handled."""
        with self.lock:
            return sum(end - self.handled.next[partition] for partition, end in self.acknowledged.ends().items())

    def settled(self) -> bool:
        """Whether every partition has an owner among the members."""
        owned = [member.metric("kafka_consumer_assigned_partitions") or 0 for member in self.members]
        return sum(owned) == self.partitions

    def workers(self) -> list[Process]:
        """The processes that live now."""
        return [self.producer, *self.members]

    def metric(self, name: str) -> float:
        """The sum of a metric over the members; a counter's of those that were stopped or killed is not in it."""
        return sum(member.metric(name) or 0 for member in self.members)

    def take_longest_stall_s(self) -> float:
        """The longest time since the last call for which a partition with messages was not handled on."""
        with self.lock:
            longest, self.handled.longest_stall_s = self.handled.longest_stall_s, 0.0
        return longest

    def rebalances(self) -> Counter[str]:
        """Rebalance events by the member that saw them, and the changes of the membership that were made here."""
        seen = {member.name: int(member.metric("kafka_consumer_rebalances_total") or 0) for member in self.members}
        return Counter({**seen, "membership": self.membership_changes})

    def caught_up(self, ends: dict[int, int]) -> bool:
        """Whether everything before `ends` was handled."""
        with self.lock:
            return all(self.handled.next[partition] >= end for partition, end in ends.items())

    def described(self) -> str:
        """How far it is, for whoever looks for what has not happened."""
        with self.lock:
            ends = self.acknowledged.ends()
            behind = {
                each: end - self.handled.next[each] for each, end in ends.items() if self.handled.next[each] < end
            }
        said = "\n".join(f"  {each.name}: {each.stderr[-1500:]}" for each in (*self.members, self.producer))
        return f"{self.group}: ends {ends}, behind {behind}\n{said}"

    def ends(self) -> dict[int, int]:
        with self.lock:
            return self.acknowledged.ends()

    def committed(self) -> dict[int, int]:
        places: list[TopicPartition] = eventually(self._ask_committed, f"the committed offsets of {self.group}")
        return {place.partition: place.offset for place in places if place.topic == self.topic and place.offset >= 0}

    def all_committed(self) -> bool:
        return self.committed() == self.ends()

    def committed_too_far(self) -> int:
        """Partitions whose committed offset is above what was handled: a message there would be skipped."""
        committed = self.committed()
        # Later than the commit: a member writes down what it handles before it stores the offset.
        self.look()
        if self.setup.outputs:
            # Outputs that are committed together with the offset may reach their reader a moment later.
            wait_until(lambda: self.caught_up(committed), READER_S)
        with self.lock:
            return sum(offset > self.handled.next[partition] for partition, offset in committed.items())

    def audit(self) -> None:
        """Count committed offsets that are above the handled messages; skip this while brokers do not answer."""
        if self.setup.outputs:
            # Its reader may be behind for as long as a broker is unreachable.
            return
        committed = self._ask_committed()
        self.look()
        with self.lock:
            self.seen_too_far += sum(
                place.topic == self.topic and place.offset > self.handled.next[place.partition]
                for place in committed or ()
            )

    def miscounted(self) -> Counter[str]:
        """How many gaps, duplicates and messages out of order each member has counted; the books have none."""
        return Counter(
            {member.name: int(sum(member.metric(name) or 0 for name in ORDER_METRICS)) for member in self.members}
        )

    def check(self) -> None:
        """Fails when a worker has ended that nobody stopped."""
        for process in [*self.members] if self._rests else self.workers():
            assert process.running, f"{process.name} ended by itself: {process.stderr[-2000:]}"

    def memory_mib(self) -> dict[str, float]:
        """Memory of the two workers that live as long as the load: resident, and what the consumer has allocated."""
        return {
            "producer_rss_mib": _rss_mib(self.producer),
            "consumer_rss_mib": _rss_mib(self.members[0]),
            "consumer_allocated_mib": round(int(self._heap_of_first.read_text()) / 2**20, 1),
        }

    def rest(self) -> None:
        """Stops the producer and waits until the group has handled the rest; does nothing to a load that rests."""
        self._rests = True
        self.producer.stop(timeout_s=40)
        self.look()
        ends = self.ends()
        eventually(lambda: self.caught_up(ends), f"{self.group} handles the rest")

    def breaches(self) -> list[str]:
        """The promises that were not kept, in words, as the books have it; for a load at rest."""
        wrong = []
        if too_far := self.committed_too_far():
            wrong.append(f"committed_too_far {too_far}")
        with self.lock:
            wrong += self.handled.breaches(self.acknowledged)
        return [f"{self.setup.name}: {each}" for each in wrong]

    def drain(self) -> None:
        """Lets the load rest, and waits until the group has committed all of it."""
        self.rest()
        ends = self.ends()
        # The command takes a second of processor time, which the books' own reader does not.
        eventually(lambda: _reaches(self.committed(), ends), f"{self.group} commits what it has handled")
        eventually(lambda: self._lag() == 0, f"the lag of {self.group} is 0: {self.committed()} of {ends}", 180)

    def stop_group(self) -> None:
        """Stops all members at once."""
        for member in self.members:
            member.popen.send_signal(signal.SIGTERM)
        for member in self.members:
            member.wait(STOP_TIMEOUT_S)
        self.look()

    def account(self) -> Account:
        """The account that the commands give of a load whose workers have stopped."""
        ends = self.ends()
        with self.lock:
            missing, repeated = self.handled.missing(self.acknowledged, ends), self.handled.repeated
        assert self.committed_too_far() == 0
        return Account(
            self.setup.name, json.loads(self.producer.lines[-1]), self._verify(), missing, repeated,
            self.handled.total, self.handled.redelivered, [each.wait() for each in self.workers()],
        )  # fmt: skip

    def _start_member(self) -> None:
        name = f"{self.setup.name}-{len(self._tails)}"
        path = self._processes.directory / f"{name}.handled"
        member = self._processes.consume(
            self.topic, self.group, "--handler", f"tests.faults.recorder:{self.setup.handler}", "--group-protocol",
            self.setup.group_protocol, "--summary", "json", *PROPERTIES, *RETRIES, *self.setup.consume,
            env={**IMAGE_ENVIRONMENT, **self.setup.environment, FILE: str(path), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._watch(member)
        self._tails.append((name, Tail(path)))
        self.members.append(member)
        self.membership_changes += 1

    def _watch(self, process: Process) -> None:
        """Has it ended with the cluster; those that have ended by now are let go."""
        for other in [each for each in self._watched if not each.running]:
            self._watched.remove(other)
            self._cluster.forget(other.popen.pid)
        self._cluster.watch(process.popen.pid)
        self._watched.append(process)

    def _ask_committed(self) -> list[TopicPartition] | None:
        try:
            numbers = self._reader.list_topics(self.topic, timeout=3).topics[self.topic].partitions
            return list(self._reader.committed([TopicPartition(self.topic, number) for number in numbers], timeout=3))
        except KafkaException:
            return None

    def _lag(self) -> int:
        return self._processes.lag(self.group, "--topic", self.topic)

    def _verify(self) -> list[dict[str, Any]]:
        path = self._processes.directory / f"{self.topic}.account.json"
        path.write_text(self.producer.lines[-1])
        answer = self._processes.run("verify", "--topic", self.topic, "--account", str(path), "--json", timeout_s=300)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return [json.loads(line) for line in answer.stdout.splitlines()]


def final_accounts(loads: Sequence[Load]) -> list[Account]:
    """Ends loads, and returns the account of each. All do each step at once: most of it is waiting for processes."""
    at_once(loads, Load.drain)
    at_once(loads, Load.stop_group)
    return at_once(loads, Load.account)


def at_once(loads: Sequence[Load], act: Callable[[Load], T]) -> list[T]:
    """Calls `act` for every load, each in a thread; raises what the first of them raises."""
    with ThreadPoolExecutor(len(loads)) as pool:
        return list(pool.map(act, loads))


def _reaches(committed: dict[int, int], ends: dict[int, int]) -> bool:
    return all(committed.get(partition, 0) >= end for partition, end in ends.items())


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Waits for `condition`, or for `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def _rss_mib(process: Process) -> float:
    pages = int(Path(f"/proc/{process.popen.pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
