"""Where faults happen: three brokers, a proxy before them, and loads; and what happens in one round of a fault.

Loads are standing ones, which live through all rounds, or those that a fault starts for itself.
"""

import random
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from tests.documents import load_all
from tests.faults.load import ROOT, Load, Setup, at_once
from tests.faults.proxy import Proxy
from tests.rotating import Rotating
from workers.local.cluster import Cluster, finish
from workers.testing.processes import Processes, eventually

# Each fault meets both group protocols, with one call at a time and with many.
KEYED = ("--source", "tests.faults.keyed:messages", "--stamp")
SETUPS = (
    Setup("classic", "classic", "batches", "group protocol classic, a handler of batches"),
    Setup("kip848", "consumer", "each", "group protocol consumer, a handler of one message"),
    Setup("threads", "classic", "threads", "group protocol classic, `--concurrency 32`, a plain handler in threads",
          by_key=True, produce=KEYED, consume=("--concurrency", "32")),
    Setup("async", "consumer", "outputs",
          "group protocol consumer, `--concurrency 64`, an `async` handler; its outputs are read and counted",
          by_key=True, outputs=True, produce=KEYED, consume=("--concurrency", "64")),
    Setup("once", "consumer", "outputs",
          "group protocol consumer, `--exactly-once --concurrency 16`, 60 messages/s; its outputs are read and counted",
          rate=60, by_key=True, outputs=True, once=True, produce=KEYED,
          consume=("--exactly-once", "--concurrency", "16")),
)  # fmt: skip
KAFKA_YAML = ROOT / "k8s" / "kafka" / "kafka.yaml"
LOOK_S = 0.1
AUDIT_S = 1.0
CALM_S = 1.5
RECOVERY_TIMEOUT_S = 180.0
DRAIN_TIMEOUT_S = 60.0


def shipped_group_properties() -> dict[str, str]:
    """The session settings of KIP-848 groups that k8s/kafka/kafka.yaml gives the brokers."""
    *_, kafka = load_all(KAFKA_YAML.read_text())
    config = kafka["spec"]["kafka"]["config"]
    return {name: str(value) for name, value in config.items() if name.startswith("group.consumer.")}


@dataclass(frozen=True)
class Fault:
    """One fault: `inject` is a generator that injects it, yields, and heals it; `hold_s` is the time between.

    One with `own_loads` breaks nothing but loads that it starts itself, and needs no standing ones.
    """

    name: str
    injected: str
    inject: Callable[["Field"], Generator[None]]
    hold_s: float = 3.0
    own_loads: bool = False


@dataclass(frozen=True)
class Round:
    """The measurements of one load during one fault. Counts are those of the round.

    `recovery_s` is from the fault to when every partition takes messages again and all of them are handled, so that the
    time for which the fault lasts is in it. `longest_stall_s` is the longest for which a partition with acknowledged
    messages was not handled on.
    """

    fault: str
    load: str
    at: str
    produced: int
    acknowledged: int
    failed: int
    unknown: int
    handled: int
    missing: int
    duplicated: int
    reordered: int
    redelivered: int
    committed_too_far: int
    miscounted: int
    rebalances: int
    times_unavailable: int
    longest_unavailable_s: float
    longest_stall_s: float
    recovery_s: float
    producer_rss_mib: float
    consumer_rss_mib: float
    consumer_allocated_mib: float

    def breaches(self) -> list[str]:
        """The promises that were not kept, in words."""
        wrong = [f"{name} {getattr(self, name)}" for name in
                 ("missing", "duplicated", "reordered", "committed_too_far", "miscounted")
                 if getattr(self, name)]  # fmt: skip
        if self.redelivered and not self.rebalances:
            wrong.append(f"redelivered {self.redelivered} without a rebalance")
        if not self.acknowledged:
            wrong.append("nothing was acknowledged")
        return [f"{self.fault}, {self.load}: {each}" for each in wrong]


class Field:
    """Starts the brokers and the proxy at the beginning of the `with` block; its end ends what still runs.

    `loads` are those that are at work: the standing ones, and those of the fault that is played.
    """

    def __init__(self, directory: Path, say: Callable[[str], None] = lambda _: None) -> None:
        self.random = random.Random(0)
        self.loads: list[Load] = []
        self.directory = directory
        self._say = say
        self._own_loads_accounted = 0
        self._stack = ExitStack()
        self._watching = True
        self._trouble: Exception | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.credentials = Rotating(self.directory)
            self.cluster = stack.enter_context(
                Cluster(
                    properties={**shipped_group_properties(), **self.credentials.properties},
                    scram_users=self.credentials.scram_users,
                    proxied=True,
                    say=self._say,
                )
            )
            self.proxy = stack.enter_context(Proxy(self.cluster.proxy_routes))
            self.admin: AdminClient = self.cluster.admin()
            stack.callback(self._stop_watching)
            threading.Thread(target=self._watch, name="watcher", daemon=True).start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(self, setups: Sequence[Setup] = SETUPS) -> None:
        """Starts the standing loads."""
        loads = self._loads(setups, self._stack)
        # Not of a fault's own loads: what was committed to a topic that was deleted is of the topic that was.
        threading.Thread(target=self._audit, args=(loads,), name="auditor", daemon=True).start()

    def play(self, fault: Fault) -> list[Round]:
        """Play one round under load: inject, heal, drain, account. Return the measurements of each standing load.

        Raises AssertionError when nothing was under load: without standing loads, a fault that starts none.
        """
        at = datetime.now(UTC).isoformat(timespec="seconds")
        accounted = self._own_loads_accounted
        assert self.loads or fault.own_loads, f"{fault.name}: it starts no loads, and there is no standing one"
        if self.loads:
            self.wait(CALM_S)
        before = [_Moment(load) for load in self.loads]
        for load in self.loads:
            load.take_longest_stall_s()
        began = time.monotonic()
        with closing(fault.inject(self)) as steps:
            next(steps)
            self.wait(fault.hold_s)
            next(steps, None)
        assert self._own_loads_accounted > accounted or not fault.own_loads, f"{fault.name}: it started no load"
        recovered = self._recovery(began)
        self.until(self.whole, "every replica is in sync again")
        self.until(lambda: all(load.settled() for load in self.loads), "every partition has one owner")
        return [
            _Moment(load).since(earlier, fault.name, at, recovery)
            for load, earlier, recovery in zip(self.loads, before, recovered, strict=True)
        ]

    def wait(self, seconds: float) -> None:
        """Lets the load go on for so long."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._check()
            time.sleep(LOOK_S)

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = RECOVERY_TIMEOUT_S) -> None:
        """Lets the load go on until `condition`."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(
                    "\n".join([f"not within {timeout_s:g} s: {what}", *map(Load.described, self.loads)])
                )
            self.wait(LOOK_S)

    # Queries and actions for faults

    def leader(self, load: Load, partition: int = 0) -> int:
        return int(self.admin.list_topics(load.topic, timeout=10).topics[load.topic].partitions[partition].leader)

    def coordinator(self, load: Load) -> int:
        # A client of its own: one that asked a coordinator that was killed since goes on asking it.
        admin = self.cluster.admin()
        answer = admin.describe_consumer_groups([load.group], request_timeout=30)[load.group].result()
        return int(answer.coordinator.id)

    def whole(self) -> bool:
        """Whether every broker runs and every replica is in sync."""
        return all(broker.running for broker in self.cluster.brokers) and self.missing_replicas() == 0

    def missing_replicas(self) -> int | None:
        """How many replicas are not in sync, as the brokers say: those of a killed one are, until they miss it. None
        where they do not answer.
        """
        try:
            topics = self.admin.list_topics(timeout=5).topics.values()
        except KafkaException:
            return None
        partitions = [partition for topic in topics for partition in topic.partitions.values()]
        return sum(len(each.replicas) - len(each.isrs) + (each.leader < 0) for each in partitions)

    @contextmanager
    def own_loads(self, *setups: Setup) -> Iterator[list[Load]]:
        """Loads that live for one fault. At the end of the `with` block they rest, and their books have to be whole."""
        with ExitStack() as stack:
            loads = self._loads([replace(each, name=f"{each.name}-{secrets.token_hex(2)}") for each in setups], stack)
            yield loads
            at_once(loads, Load.rest)
            breaches = [breach for load in loads for breach in load.breaches()]
            assert not breaches, "; ".join(breaches)
            self._own_loads_accounted += len(loads)
        topics = [load.topic for load in loads] + [load.outputs_topic for load in loads if load.setup.outputs]
        for deleted in self.admin.delete_topics(topics).values():
            finish(deleted, KafkaError.UNKNOWN_TOPIC_OR_PART)

    def create_topic(self, load: Load) -> None:
        setup = load.setup
        if setup.replicas:
            replicas = [list(each) for each in setup.replicas]
            topic = NewTopic(load.topic, len(replicas), replica_assignment=replicas, config=dict(setup.topic_config))
            finish(self.admin.create_topics([topic])[load.topic], KafkaError.TOPIC_ALREADY_EXISTS)
        else:
            self.cluster.create_topic(load.topic, setup.partitions, **setup.topic_config)

    # Within

    def _loads(self, setups: Sequence[Setup], stack: ExitStack) -> list[Load]:
        """Starts loads, all at once; they work until the end of `stack`."""
        loads = [self._load(setup, stack) for setup in setups]
        for load in loads:
            load.scale(load.setup.members)
            self.loads.append(load)
            stack.callback(self.loads.remove, load)
        for load in loads:
            eventually(load.settled, f"{load.group} settles")
            load.start_producer()
        self.until(lambda: all(load.acknowledged.outcomes["delivered"] for load in loads), "every topic gets messages")
        return loads

    def _load(self, setup: Setup, stack: ExitStack) -> Load:
        directory = self.directory / f"{setup.name}-{secrets.token_hex(2)}"
        directory.mkdir()
        processes = Processes(self.cluster.proxied_bootstrap_servers, directory)
        load = Load(setup, processes, self.cluster)
        stack.callback(load.close)
        self.create_topic(load)
        if setup.outputs:
            self.cluster.create_topic(load.outputs_topic, setup.partitions)
            load.read_outputs()
        return load

    def _recovery(self, began: float) -> list["_Recovery"]:
        recoveries = [_Recovery(load, began) for load in self.loads]
        # Each is asked at every look, so that each has its own time.
        self.until(lambda: False not in {each.flows() for each in recoveries}, "every partition takes messages again")
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        while False in {each.drained() for each in recoveries} and time.monotonic() < deadline:
            self.wait(LOOK_S)
        return recoveries

    def _watch(self) -> None:
        try:
            while self._watching:
                for load in self.loads:
                    load.look()
                time.sleep(LOOK_S)
        except Exception as error:
            self._trouble = error

    def _audit(self, loads: list[Load]) -> None:
        try:
            while self._watching:
                for load in loads:
                    load.audit()
                time.sleep(AUDIT_S)
        except Exception as error:
            self._trouble = error

    def _stop_watching(self) -> None:
        self._watching = False

    def _check(self) -> None:
        if self._trouble is not None:
            raise self._trouble
        for load in self.loads:
            load.check()


class _Recovery:
    """When one load is as before the fault that `began`: each partition takes messages and all of them are handled."""

    def __init__(self, load: Load, began: float) -> None:
        self._load = load
        self._began = began
        self._healed = load.ends()
        self.seconds: float | None = None
        self.ends: dict[int, int] = {}

    def flows(self) -> bool:
        ends = self._load.ends()
        if not self.ends and all(ends[partition] > end for partition, end in self._healed.items()):
            self.ends = ends
        return bool(self.ends)

    def drained(self) -> bool:
        if self.seconds is None and self._load.caught_up(self.ends):
            self.seconds = time.monotonic() - self._began
        return self.seconds is not None


class _Moment:
    """The books of one load at one time."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.produced = int(load.producer.metric("kafka_producer_messages_enqueued_total") or 0)
        self.rebalances = load.rebalances()
        self.miscounted = load.miscounted()
        self.committed_too_far = load.committed_too_far()
        with load.lock:
            self.seen_too_far = load.seen_too_far
            self.outcomes = load.acknowledged.outcomes.copy()
            self.pauses = len(load.acknowledged.pauses)
            self.handled = load.handled.total
            self.duplicated = load.handled.duplicated
            self.reordered = load.handled.reordered
            self.redelivered = load.handled.redelivered

    def since(self, earlier: "_Moment", fault: str, at: str, recovery: _Recovery) -> Round:
        outcomes = self.outcomes - earlier.outcomes
        pauses = self.load.acknowledged.pauses[earlier.pauses :]
        with self.load.lock:
            missing = self.load.handled.missing(self.load.acknowledged, recovery.ends)
        return Round(
            fault=fault,
            load=self.load.setup.name,
            at=at,
            produced=self.produced - earlier.produced,
            acknowledged=outcomes["delivered"],
            failed=outcomes["failure"],
            unknown=outcomes["unknown"],
            handled=self.handled - earlier.handled,
            missing=missing,
            duplicated=self.duplicated - earlier.duplicated,
            reordered=self.reordered - earlier.reordered,
            redelivered=self.redelivered - earlier.redelivered,
            committed_too_far=self.committed_too_far + self.seen_too_far - earlier.seen_too_far,
            miscounted=(self.miscounted - earlier.miscounted).total(),
            rebalances=(self.rebalances - earlier.rebalances).total(),
            times_unavailable=len(pauses),
            longest_unavailable_s=round(max(pauses, default=0.0), 1),
            longest_stall_s=round(self.load.take_longest_stall_s(), 1),
            recovery_s=round(recovery.seconds or RECOVERY_TIMEOUT_S, 1),
            **self.load.memory_mib(),
        )
