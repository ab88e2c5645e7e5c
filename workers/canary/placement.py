"""The canary's topic: which broker leads which partition, and the changes after which each broker leads one."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from confluent_kafka import ElectionType, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic, OffsetSpec

from workers.errors import ConfigError
from workers.kafka import groups
from workers.kafka.credentials import CredentialsWatch
from workers.lifecycle import PLACEMENT_THREAD

log = logging.getLogger("workers")
INTERVAL_S = 2.0
REQUEST_TIMEOUT_S = 10.0
# Of the client; requests that take no timeout have this one.
PROPERTIES = {"socket.timeout.ms": int(REQUEST_TIMEOUT_S * 1000)}
# A change that failed is tried again after this long: brokers start, and replicas catch up.
RETRY_S = 10.0
# A broker that has just started leads no partition for a moment.
UNCOVERED_GRACE_S = 30.0
# The canary reads its messages at once; they are kept for whoever looks into the topic.
RETENTION_MS = 600_000
CREATE, ADD, ELECT = CHANGES = ("create_topic", "add_partitions", "elect_leaders")
_REFUSALS = frozenset({KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED})


@dataclass(frozen=True, slots=True)
class Rules:
    """How the topic is to be. Without `create` it is left as it is."""

    topic: str
    create: bool
    replication_factor: int
    min_insync_replicas: int

    def replicas(self, brokers: int) -> int:
        """The replication factor where there are `brokers` brokers."""
        return min(self.replication_factor, brokers)

    def in_sync(self, brokers: int) -> int:
        """min.insync.replicas; lowered with the replication factor, so that one broker may stop."""
        replicas = self.replicas(brokers)
        lowered = replicas < self.replication_factor
        return min(self.min_insync_replicas, max(1, replicas - 1) if lowered else replicas)


@dataclass(frozen=True, slots=True)
class Placed:
    """A partition's leader, -1 for none, and its replicas; the first one is the preferred leader."""

    leader: int
    replicas: tuple[int, ...]
    in_sync: frozenset[int]


@dataclass(frozen=True, slots=True)
class Layout:
    """The topic at one moment: live brokers, partitions, and the offsets that a new reader of them begins at."""

    brokers: frozenset[int] = frozenset()
    partitions: Mapping[int, Placed] = field(default_factory=dict)
    starts: Mapping[int, int] = field(default_factory=dict)

    @property
    def members(self) -> frozenset[int]:
        """All brokers: those that live, and those that hold a replica."""
        return self.brokers | {broker for each in self.partitions.values() for broker in each.replicas}

    @property
    def uncovered(self) -> frozenset[int]:
        """Live brokers that lead no partition, so that no message goes through them."""
        return self.brokers - {each.leader for each in self.partitions.values()}

    def led_by(self, broker: int) -> list[int]:
        """The partitions that a broker leads."""
        return sorted(number for number, each in self.partitions.items() if each.leader == broker)


def assignment(preferred: int, brokers: Iterable[int], replicas: int) -> list[int]:
    """The replicas of a partition whose preferred leader is `preferred`: the brokers that follow it, in a circle."""
    ring = sorted(brokers)
    at = ring.index(preferred)
    return (ring[at:] + ring[:at])[:replicas]


def missing_partitions(layout: Layout, replicas: int) -> list[list[int]]:
    """The replicas of the partitions to add, so that each live broker is the preferred leader of one."""
    preferred = {each.replicas[0] for each in layout.partitions.values() if each.replicas}
    return [assignment(broker, layout.brokers, replicas) for broker in sorted(layout.brokers - preferred)]


def misled_partitions(layout: Layout) -> list[int]:
    """The partitions that are led by another broker than the preferred one, which is live and in sync."""
    return [
        number
        for number, each in sorted(layout.partitions.items())
        if each.replicas
        and each.leader != each.replicas[0]
        and each.replicas[0] in layout.brokers & each.in_sync
        and each.leader >= 0
    ]


class Placement:
    """Looks at the topic every INTERVAL_S in a thread of its own, and changes it where that is allowed.

    `layout` is a new object after each look; any thread may read it, and `changes`. The loop's thread calls `start` and
    `close`. A change that the user has no right to is tried once. `connect` makes a client with `credentials`.
    """

    def __init__(self, connect: Callable[[], AdminClient], rules: Rules, credentials: CredentialsWatch) -> None:
        self.layout = Layout()
        # How often each change was made, by outcome.
        self.changes = {(change, outcome): 0 for change in CHANGES for outcome in ("success", "failure")}
        self._connect = connect
        self._rules = rules
        self._credentials = credentials
        self._starts: dict[int, int] = {}
        self._not_before: dict[str, float] = {}
        self._uncovered: frozenset[int] = frozenset()
        self._uncovered_since = float("inf")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=PLACEMENT_THREAD, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """End the thread. A request that is under way is waited for up to `timeout_s`."""
        self._ended.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        admin = self._connect()
        try:
            while not self._ended.is_set():
                try:
                    admin = self._renewed(admin)
                    self.look(admin)
                except Exception as error:  # the thread must not end: whatever it is, the next look may go well
                    log.debug("the layout of %s is not known: %s", self._rules.topic, error)
                self._ended.wait(INTERVAL_S)
        finally:
            # An answer that came after the interpreter's end would crash the process; this waits for the thread.
            admin.__exit__(None, None, None)

    def _renewed(self, admin: AdminClient) -> AdminClient:
        """A client with the credentials of now, once brokers accept it; the old one until then."""
        fresh = self._credentials.renew(admin, self._connect, self._rules.topic)
        if fresh is None:
            return admin
        admin.__exit__(None, None, None)
        return fresh

    def look(self, admin: AdminClient) -> None:
        """Look at the topic once, and change it if need be. Raises KafkaException when no broker answers."""
        metadata = admin.list_topics(self._rules.topic, timeout=REQUEST_TIMEOUT_S)
        partitions = {
            number: Placed(each.leader, tuple(each.replicas), frozenset(each.isrs))
            for number, each in metadata.topics[self._rules.topic].partitions.items()
        }
        layout = Layout(frozenset(metadata.brokers), partitions)
        if partitions:
            self._find_starts(admin, layout)
        self.layout = layout = Layout(layout.brokers, partitions, dict(self._starts))
        if self._rules.create:
            self._improve(admin, layout)
        self._warn_of_uncovered(layout)

    def _find_starts(self, admin: AdminClient, layout: Layout) -> None:
        """Find the ends of new partitions, where the loop begins to read before it writes."""
        keys = [(self._rules.topic, number) for number in layout.partitions if number not in self._starts]
        found = groups.find_offsets(admin, dict.fromkeys(keys, OffsetSpec.latest())).values
        self._starts |= {number: offset for (_, number), (offset, _) in found.items()}

    def _improve(self, admin: AdminClient, layout: Layout) -> None:
        rules = self._rules
        if not layout.partitions:
            self._change(CREATE, lambda: create_topic(admin, rules))
            return
        added = missing_partitions(layout, rules.replicas(len(layout.brokers)))
        if added:
            total = len(layout.partitions) + len(added)
            new = NewPartitions(rules.topic, total, added)
            self._change(
                ADD, lambda: admin.create_partitions([new], request_timeout=REQUEST_TIMEOUT_S)[rules.topic].result()
            )
        elif misled := misled_partitions(layout):
            self._change(ELECT, lambda: _elect(admin, rules.topic, misled))

    def _change(self, change: str, make: Callable[[], object]) -> None:
        if time.monotonic() < self._not_before.get(change, 0):
            return
        try:
            make()
        except KafkaException as raised:
            error = raised.args[0]
            refused = error.code() in _REFUSALS
            self._not_before[change] = float("inf") if refused else time.monotonic() + RETRY_S
            self.changes[change, "failure"] += 1
            remedy = "grant the right, or use --no-create" if refused else f"the next try is in {RETRY_S:g} s"
            log.warning("%s: %s failed: %s; %s", self._rules.topic, change.replace("_", " "), error.str(), remedy)
        else:
            self.changes[change, "success"] += 1
            log.info("%s: %s", self._rules.topic, change.replace("_", " "))

    def _warn_of_uncovered(self, layout: Layout) -> None:
        """Warn once of the same brokers without a leader, when that has lasted."""
        now = time.monotonic()
        if layout.uncovered != self._uncovered:
            self._uncovered, self._uncovered_since = layout.uncovered, now
        if self._uncovered and now - self._uncovered_since > UNCOVERED_GRACE_S:
            self._uncovered_since = float("inf")
            log.warning(
                "brokers %s lead no partition of %s, so they are not measured; add partitions that they lead, or "
                "move leaders with kafka-leader-election",
                ", ".join(map(str, sorted(self._uncovered))),
                self._rules.topic,
            )


def ensure_topic(admin: AdminClient, rules: Rules) -> bool:
    """Create the topic where it is missing; return whether it was created.

    Raises ConfigError when the brokers refuse to create it, and KafkaException when none answers.
    """
    # All topics: brokers may create one that is asked for by name.
    if rules.topic in admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics:
        return False
    try:
        create_topic(admin, rules)
    except KafkaException as raised:
        raise ConfigError(
            f"--topic: {rules.topic} does not exist and cannot be created: {raised.args[0].str()}; create it, or grant "
            "the user the right to"
        ) from None
    return True


def create_topic(admin: AdminClient, rules: Rules) -> None:
    """Create the topic with a partition for each live broker to lead; raises KafkaException."""
    brokers = admin.list_topics(timeout=REQUEST_TIMEOUT_S).brokers
    count = len(brokers)
    new = NewTopic(
        rules.topic,
        num_partitions=count,
        replica_assignment=[assignment(each, brokers, rules.replicas(count)) for each in sorted(brokers)],
        config={
            "min.insync.replicas": str(rules.in_sync(count)),
            "retention.ms": str(RETENTION_MS),
            "cleanup.policy": "delete",
        },
    )
    try:
        admin.create_topics([new], request_timeout=REQUEST_TIMEOUT_S)[rules.topic].result()
    except KafkaException as raised:
        if raised.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise


def _elect(admin: AdminClient, topic: str, partitions: Iterable[int]) -> None:
    """Have the preferred replicas lead; raises KafkaException."""
    wanted = [TopicPartition(topic, number) for number in partitions]
    # confluent-kafka 2.16 fails with SystemError when it is given a timeout here.
    answers: dict[TopicPartition, KafkaError | None] = admin.elect_leaders(ElectionType.PREFERRED, wanted).result()
    for error in answers.values():
        if error is not None and error.code() != KafkaError.ELECTION_NOT_NEEDED:
            raise KafkaException(error)
