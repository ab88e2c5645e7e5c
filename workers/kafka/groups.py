"""A consumer group as the brokers see it: who is in it, who owns what, how far behind it is, who idles.

A member's own view is in its metrics; this is the view from outside, also of a group with no member left.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from confluent_kafka import (
    OFFSET_INVALID,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConsumerGroupDescription, ListOffsetsResultInfo, OffsetSpec

from workers.accounting.offset_metadata import OffsetMetadata, decode
from workers.errors import ConfigError, WorkerError

REQUEST_TIMEOUT_S = 10.0
# A broker that has just started may show leaders of before its stop for as long.
SETTLING_S = 30.0
# Errors while a group's coordinator, or a leader, starts or moves, also for the very first group: one that has gone, or
# that a busy machine holds up, does not answer in time.
MOVES = frozenset(
    {
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._TIMED_OUT,
    }
)
# Errors of brokers for a group or a topic that does not exist.
GONE = frozenset({KafkaError.GROUP_ID_NOT_FOUND, KafkaError.UNKNOWN_TOPIC_OR_PART})

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_Result = TypeVar("_Result")
# A topic's name and a partition's number.
PartitionKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Answers(Generic[_Key, _Value]):
    """The brokers' answers to one batch: values, keys that do not exist, and errors for keys without an answer."""

    values: dict[_Key, _Value]
    gone: frozenset[_Key]
    errors: dict[_Key, KafkaError]

    def check(self) -> None:
        """Raises KafkaException with the first error."""
        for error in self.errors.values():
            raise KafkaException(error)


@dataclass(frozen=True, slots=True)
class Member:
    """One member and the partitions assigned to it."""

    member_id: str
    client_id: str
    host: str
    partitions: tuple[PartitionKey, ...]


class Committed(NamedTuple):
    """The committed offset of a partition, and what was committed beside it."""

    offset: int
    metadata: OffsetMetadata

    @property
    def furthest(self) -> int:
        """The end of the furthest messages that were completed beyond the offset."""
        return self.metadata.furthest(self.offset)


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """One partition: `committed` is None where the group has committed nothing, and then so is `lag_messages`.

    Lag counts messages that can still be read: those deleted before the group committed them are in `deleted_messages`.
    """

    topic: str
    partition: int
    committed: int | None
    furthest: int | None
    beginning: int
    end: int
    member: str | None

    @property
    def next_offset(self) -> int | None:
        """The offset from which a member that takes this partition over can read."""
        return None if self.committed is None else max(self.committed, self.beginning)

    @property
    def lag_messages(self) -> int | None:
        return None if self.next_offset is None else max(0, self.end - self.next_offset)

    @property
    def distance(self) -> int:
        """How far members with --concurrency have completed messages beyond the committed offset, in offsets."""
        return (self.furthest or 0) - (self.committed or 0)

    @property
    def deleted_messages(self) -> int:
        return 0 if self.committed is None else max(0, self.beginning - self.committed)


@dataclass(frozen=True, slots=True)
class Group:
    """A group at one moment. `protocol` is classic or consumer (KIP-848)."""

    group_id: str
    state: str
    protocol: str
    members: tuple[Member, ...]
    partitions: tuple[PartitionLag, ...]

    @property
    def total_lag(self) -> int:
        return sum(partition.lag_messages or 0 for partition in self.partitions)

    @property
    def unread(self) -> tuple[PartitionLag, ...]:
        """Partitions with messages and no committed offset: their lag is not known."""
        return tuple(each for each in self.partitions if each.committed is None and each.end > each.beginning)

    @property
    def deleted(self) -> int:
        """How many messages were deleted before the group committed them, by retention for one."""
        return sum(partition.deleted_messages for partition in self.partitions)

    @property
    def idle(self) -> tuple[Member, ...]:
        """Members without partitions. While the group rebalances that says nothing, and none is named."""
        return tuple(member for member in self.members if self.state == "stable" and not member.partitions)


def describe(admin: AdminClient, group_id: str, topics: list[str] | None = None) -> Group:
    """The group, restricted to `topics` if any are given. Waits while its coordinator or a leader moves.

    Raises ConfigError when the brokers know no such group, WorkerError when they do not answer.
    """
    return while_settling(lambda: _describe(admin, group_id, topics), f"group {group_id} cannot be described")


def while_settling(ask: Callable[[], _Result], failure: str) -> _Result:
    """Return what `ask` returns, asking again while a coordinator or a leader moves; raises WorkerError, beginning with
    `failure`, when the brokers do not answer.
    """
    deadline = time.monotonic() + SETTLING_S
    while True:
        try:
            return ask()
        except KafkaException as raised:
            error = raised.args[0]
            if error.code() not in MOVES or time.monotonic() > deadline:
                raise WorkerError(f"{failure}: {error.name()} {error.str()}") from None
            time.sleep(0.2)


def _describe(admin: AdminClient, group_id: str, topics: list[str] | None) -> Group:
    described = describe_groups(admin, [group_id])
    if described.gone:
        raise ConfigError(f"group {group_id} is not known to the brokers; check --group-id")
    described.check()
    answer = committed_offsets(admin, described)
    answer.check()
    description, committed = described.values[group_id], answer.values[group_id]
    if not description.members and not committed:
        raise ConfigError(f"group {group_id} has no member and no committed offset; check --group-id")
    touched = {topic for topic in topics_of(description, committed) if not topics or topic in topics}
    numbers = partitions_of(admin, touched)
    numbers.check()
    keys = [(topic, number) for topic, found in numbers.values.items() for number in found]
    return combine(description, committed, keys, offset_ranges(admin, keys))


def list_groups(admin: AdminClient) -> Answers[str, None]:
    """Every consumer group that we may describe; an error stands for a broker that did not answer, by its text."""
    try:
        listed = admin.list_consumer_groups(request_timeout=REQUEST_TIMEOUT_S).result()
    except KafkaException as raised:
        return Answers({}, frozenset(), {"": raised.args[0]})
    # confluent-kafka 2.16 says that these are KafkaException.
    failed: list[KafkaError] = listed.errors
    errors = {str(error): error for error in failed}
    return Answers({each.group_id: None for each in listed.valid}, frozenset(), errors)


def describe_groups(admin: AdminClient, group_ids: list[str]) -> Answers[str, ConsumerGroupDescription]:
    """State and members of groups of either protocol."""
    if not group_ids:
        return Answers({}, frozenset(), {})
    futures = admin.describe_consumer_groups(group_ids, request_timeout=REQUEST_TIMEOUT_S)
    answers = _gather("DescribeGroups", futures, lambda seen: seen)
    # Kafka before 4.0 calls a group that is not there dead.
    dead = {group_id for group_id, seen in answers.values.items() if seen.state == ConsumerGroupState.DEAD}
    known = {group_id: seen for group_id, seen in answers.values.items() if group_id not in dead}
    return Answers(known, answers.gone | dead, answers.errors)


def committed_offsets(
    admin: AdminClient, described: Answers[str, ConsumerGroupDescription]
) -> Answers[str, dict[PartitionKey, Committed]]:
    """The offsets that groups have committed, for which `described` must be fresh.

    Only coordinators that have just answered are asked: an admin client of librdkafka 2.16 crashes where a broker
    refuses this request because it is not the coordinator, as while a broker restarts (librdkafka#5040). It sends one
    request a group; all are under way at once.
    """
    futures: dict[str, Future[ConsumerGroupTopicPartitions]] = {}
    for group_id in described.values:
        request = [ConsumerGroupTopicPartitions(group_id)]
        futures |= admin.list_consumer_group_offsets(request, request_timeout=REQUEST_TIMEOUT_S)
    answers = _gather("OffsetFetch", futures, _offsets_of)
    return Answers(answers.values, answers.gone | described.gone, described.errors | answers.errors)


def _offsets_of(answer: ConsumerGroupTopicPartitions) -> dict[PartitionKey, Committed]:
    return {
        (each.topic, each.partition): Committed(each.offset, decode(each.offset, each.metadata))
        for each in answer.topic_partitions or ()
        if each.offset >= 0
    }


def partitions_of(admin: AdminClient, topics: Collection[str]) -> Answers[str, list[int]]:
    """The partitions of topics, from the metadata of all topics.

    `list_topics` with a name may create the topic. librdkafka sends `describe_topics` to the controller in its last
    metadata: with KRaft that is any broker, and while it is unreachable the request times out for minutes.
    """
    if not topics:
        return Answers({}, frozenset(), {})
    try:
        known = admin.list_topics(timeout=REQUEST_TIMEOUT_S).topics
    except KafkaException as raised:
        return Answers({}, frozenset(), dict.fromkeys(topics, raised.args[0]))
    values = {topic: sorted(known[topic].partitions) for topic in topics if topic in known}
    return Answers(values, frozenset(topics) - values.keys(), {})


def find_offsets(
    admin: AdminClient, wanted: Mapping[PartitionKey, OffsetSpec]
) -> Answers[PartitionKey, tuple[int, int]]:
    """Offset and timestamp in ms of what is wanted of each partition, -1 where there is none; one request a leader.

    For a consumer with isolation.level=read_committed.
    """
    if not wanted:
        return Answers({}, frozenset(), {})
    futures = admin.list_offsets(
        {TopicPartition(*key): spec for key, spec in wanted.items()},
        isolation_level=IsolationLevel.READ_COMMITTED,
        request_timeout=REQUEST_TIMEOUT_S,
    )
    by_key = {(each.topic, each.partition): future for each, future in futures.items()}
    return _gather("ListOffsets", by_key, _found)


def _found(answer: ListOffsetsResultInfo) -> tuple[int, int]:
    # For an unreachable leader librdkafka reports an invalid offset and no error.
    if answer.offset == OFFSET_INVALID:
        raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, "the leader did not answer"))
    return answer.offset, answer.timestamp


def offset_ranges(admin: AdminClient, keys: Collection[PartitionKey]) -> dict[PartitionKey, tuple[int, int]]:
    """Beginning and end of each partition. Raises KafkaException where they are not known: without a leader, or with
    one that does not know the partition, as after a restart or while its topic is deleted.
    """
    found = find_ranges(admin, keys)
    check_known(found)
    return found.values


def find_ranges(admin: AdminClient, keys: Collection[PartitionKey]) -> Answers[PartitionKey, tuple[int, int]]:
    """Beginning and end of each partition; an error stands for one of which either is not known."""
    beginnings = find_offsets(admin, dict.fromkeys(keys, OffsetSpec.earliest()))
    ends = find_offsets(admin, dict.fromkeys(keys, OffsetSpec.latest()))
    both = beginnings.values.keys() & ends.values.keys()
    ranges = {key: (beginnings.values[key][0], ends.values[key][0]) for key in keys if key in both}
    return Answers(ranges, beginnings.gone | ends.gone, {**beginnings.errors, **ends.errors})


def check_known(answers: Answers[PartitionKey, _Value]) -> None:
    """Raises KafkaException with the first error, or for a partition that its leader does not know."""
    answers.check()
    for topic, number in answers.gone:
        reason = f"the leader of {topic}[{number}] does not know it"
        raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, reason))


def _gather(
    request: str, futures: Mapping[_Key, Future[_Result]], read: Callable[[_Result], _Value]
) -> Answers[_Key, _Value]:
    """Wait for the answers. librdkafka does not say which request was not answered in time."""
    values: dict[_Key, _Value] = {}
    gone: set[_Key] = set()
    errors: dict[_Key, KafkaError] = {}
    for key, future in futures.items():
        try:
            values[key] = read(future.result())
        except KafkaException as raised:
            error: KafkaError = raised.args[0]
            if error.code() in GONE:
                gone.add(key)
            elif error.code() == KafkaError._TIMED_OUT:
                errors[key] = KafkaError(error.code(), f"{request} was not answered within {REQUEST_TIMEOUT_S:g} s")
            else:
                errors[key] = error
    return Answers(values, frozenset(gone), errors)


def topics_of(description: ConsumerGroupDescription, committed: Iterable[PartitionKey]) -> set[str]:
    """The topics that a group has committed offsets of, or that its members own partitions of."""
    owned = (key for member in description.members for key in _assigned(member.assignment))
    return {topic for topic, _ in (*committed, *owned)}


def combine(
    description: ConsumerGroupDescription,
    committed: Mapping[PartitionKey, Committed],
    keys: Iterable[PartitionKey],
    ranges: Mapping[PartitionKey, tuple[int, int]],
) -> Group:
    """The group, with its lag in `keys`, whose beginnings and ends are `ranges`.

    Give every partition of the group's topics: one that nobody owns and nothing was committed for is behind too.
    """
    members = tuple(Member(m.member_id, m.client_id, m.host, _assigned(m.assignment)) for m in description.members)
    owners = {key: member.client_id for member in members for key in member.partitions}
    return Group(
        description.group_id,
        description.state.name.lower(),
        description.type.name.lower(),
        tuple(sorted(members, key=lambda member: (member.client_id, member.member_id))),
        tuple(_lag_of(key, committed.get(key), ranges[key], owners.get(key)) for key in sorted(keys)),
    )


def _lag_of(
    key: PartitionKey, committed: Committed | None, range_: tuple[int, int], member: str | None
) -> PartitionLag:
    offset, furthest = (None, None) if committed is None else (committed.offset, committed.furthest)
    return PartitionLag(*key, offset, furthest, *range_, member)


def _assigned(assignment: object) -> tuple[PartitionKey, ...]:
    partitions: list[TopicPartition] = getattr(assignment, "topic_partitions", None) or []
    return tuple(sorted((each.topic, each.partition) for each in partitions))
