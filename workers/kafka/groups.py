"""A consumer group as the brokers see it: who is in it, who owns what, how far behind it is, who idles.

What a member says of itself is in its metrics; this is the view from outside, also of a group with no member left.
"""

import time
from dataclasses import dataclass

from confluent_kafka import ConsumerGroupTopicPartitions, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from workers.errors import ConfigError, WorkerError

REQUEST_TIMEOUT_S = 10.0
# What brokers answer while a group's coordinator, or a leader, starts or moves, also when the very first group is asked
# for.
MOVES = frozenset(
    {
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
    }
)


@dataclass(frozen=True, slots=True)
class Member:
    """One member and the partitions assigned to it."""

    member_id: str
    client_id: str
    host: str
    partitions: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """One partition: `committed` is None where the group has committed nothing, and then so is `lag_messages`."""

    topic: str
    partition: int
    committed: int | None
    end: int
    member: str | None

    @property
    def lag_messages(self) -> int | None:
        return None if self.committed is None else max(0, self.end - self.committed)


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
    def unread(self) -> int:
        """How many partitions have messages and no committed offset: their lag is not known."""
        return sum(partition.committed is None and partition.end > 0 for partition in self.partitions)

    @property
    def idle(self) -> tuple[Member, ...]:
        """Members without partitions. While the group rebalances that says nothing, and none is named."""
        return tuple(member for member in self.members if self.state == "stable" and not member.partitions)


def describe(admin: AdminClient, group_id: str, topics: list[str] | None = None) -> Group:
    """The group, restricted to `topics` if any are given. Waits while its coordinator or a leader moves.

    Raises ConfigError when the brokers know no such group, WorkerError when they do not answer.
    """
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    while True:
        try:
            return _describe(admin, group_id, topics)
        except KafkaException as raised:
            error = raised.args[0]
            if error.code() == KafkaError.GROUP_ID_NOT_FOUND:
                raise ConfigError(f"group {group_id} is not known to the brokers; check --group-id") from None
            if error.code() not in MOVES or time.monotonic() > deadline:
                raise WorkerError(f"group {group_id} cannot be described: {error.name()} {error.str()}") from None
            time.sleep(0.2)


def _describe(admin: AdminClient, group_id: str, topics: list[str] | None) -> Group:
    seen = admin.describe_consumer_groups([group_id], request_timeout=REQUEST_TIMEOUT_S)[group_id].result()
    committed = _committed(admin, group_id)
    members = tuple(Member(m.member_id, m.client_id, m.host, _partitions_of(m.assignment)) for m in seen.members)
    owners = {key: member.client_id for member in members for key in member.partitions}
    if not members and not committed:
        raise ConfigError(f"group {group_id} has no member and no committed offset; check --group-id")
    # Every partition of the group's topics: one that nobody owns and nothing was committed for is behind too.
    touched = {topic for topic, _ in (*owners, *committed) if not topics or topic in topics}
    known = {topic: admin.list_topics(topic, timeout=REQUEST_TIMEOUT_S).topics[topic] for topic in touched}
    keys = sorted((topic, number) for topic, metadata in known.items() for number in metadata.partitions)
    ends = _ends(admin, keys)
    return Group(
        group_id,
        seen.state.name.lower(),
        seen.type.name.lower(),
        tuple(sorted(members, key=lambda member: (member.client_id, member.member_id))),
        tuple(PartitionLag(*key, committed.get(key), ends[key], owners.get(key)) for key in keys),
    )


def _partitions_of(assignment: object) -> tuple[tuple[str, int], ...]:
    partitions: list[TopicPartition] = getattr(assignment, "topic_partitions", None) or []
    return tuple(sorted((each.topic, each.partition) for each in partitions))


def _committed(admin: AdminClient, group_id: str) -> dict[tuple[str, int], int]:
    request = [ConsumerGroupTopicPartitions(group_id)]
    answer = admin.list_consumer_group_offsets(request, request_timeout=REQUEST_TIMEOUT_S)[group_id].result()
    return {(each.topic, each.partition): each.offset for each in answer.topic_partitions if each.offset >= 0}


def _ends(admin: AdminClient, keys: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """The end of each partition for a consumer that reads what is committed; 0 where the partition is gone.

    Raises KafkaException where it is not known, as without a leader.
    """
    if not keys:
        return {}
    wanted = {TopicPartition(*key): OffsetSpec.latest() for key in keys}
    answers = admin.list_offsets(
        wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=REQUEST_TIMEOUT_S
    )
    ends = {}
    for partition, answer in answers.items():
        try:
            ends[partition.topic, partition.partition] = answer.result().offset
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
            ends[partition.topic, partition.partition] = 0
    return ends


def as_table(group: Group) -> str:
    """The group as text: partitions with their lag, then the idle members."""
    rows = [("TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER")]
    rows += [
        (
            each.topic,
            str(each.partition),
            _dash(each.committed),
            str(each.end),
            _dash(each.lag_messages),
            each.member or "-",
        )
        for each in group.partitions
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if group.unread:
        lines.append(f"{group.unread} partitions have messages and no committed offset: their lag is not counted")
    lines += [f"idle: {member.client_id} ({member.host.lstrip('/')})" for member in group.idle]
    members = f"{len(group.members)} member{'' if len(group.members) == 1 else 's'}"
    head = f"group {group.group_id}: {group.state}, {group.protocol} protocol, {members}, lag {group.total_lag}"
    return "\n".join([head, *lines])


def _dash(number: int | None) -> str:
    return "-" if number is None else str(number)


def as_document(group: Group) -> dict[str, object]:
    """The group for JSON."""
    return {
        "group": group.group_id,
        "state": group.state,
        "protocol": group.protocol,
        "lag": group.total_lag,
        "members": [
            {
                "member_id": member.member_id,
                "client_id": member.client_id,
                "host": member.host,
                "partitions": [{"topic": topic, "partition": number} for topic, number in member.partitions],
                "idle": member in group.idle,
            }
            for member in group.members
        ],
        "partitions": [
            {
                "topic": each.topic,
                "partition": each.partition,
                "committed": each.committed,
                "end": each.end,
                "lag": each.lag_messages,
                "member": each.member,
            }
            for each in group.partitions
        ],
    }
