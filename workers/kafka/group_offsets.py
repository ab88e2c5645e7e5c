"""Moves the committed offsets of a group that has no members: what would be skipped or repeated, and doing it."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from workers.accounting.offset_metadata import OffsetMetadata, encode
from workers.errors import ConfigError, WorkerError
from workers.kafka import groups
from workers.kafka.groups import Committed, PartitionKey

# "beginning", "end", an offset, or a time: the first message that is not older.
Target = str | int | datetime


@dataclass(frozen=True, slots=True)
class Move:
    """One partition: what the group has committed (None for nothing), and the offset that it is to begin at."""

    topic: str
    partition: int
    committed: Committed | None
    offset: int
    beginning: int
    end: int

    @property
    def skipped(self) -> int:
        """Messages that no member has handled and none will."""
        return max(0, self.offset - self._next_offset)

    @property
    def repeated(self) -> int:
        """Messages that were handled and will be handled again."""
        if self.committed is None:
            return 0
        done = max(self._next_offset, self.committed.furthest)
        return max(0, min(done, self.end) - self.offset)

    @property
    def _next_offset(self) -> int:
        return self.beginning if self.committed is None else max(self.beginning, self.committed.offset)


def plan(
    admin: AdminClient, group_id: str, topics: Collection[str], numbers: Collection[int], target: Target
) -> list[Move]:
    """Return a move for each partition of `topics`, or of all that the group has committed offsets of; `numbers`, if
    any, restricts it to these partitions.

    Raises ConfigError for a group, a topic, a partition or an offset that is not there, and WorkerError when the group
    has members or the brokers do not answer.
    """
    what = f"the offsets of group {group_id} cannot be read"
    return groups.while_settling(lambda: _plan(admin, group_id, topics, numbers, target), what)


def _plan(
    admin: AdminClient, group_id: str, topics: Collection[str], numbers: Collection[int], target: Target
) -> list[Move]:
    described = groups.describe_groups(admin, [group_id])
    described.check()
    members = [each.client_id for each in described.values[group_id].members] if described.values else []
    if members:
        raise WorkerError(
            f"group {group_id} has {len(members)} member(s), {', '.join(sorted(members))}, which would overwrite the "
            "offsets; stop them first (kubectl scale deploy consumer --replicas=0)"
        )
    answer = groups.committed_offsets(admin, described)
    answer.check()
    committed = answer.values.get(group_id, {})
    wanted = set(topics) or {topic for topic, _ in committed}
    if not wanted:
        raise ConfigError(f"group {group_id} has committed no offset; check --group-id, or name its topic with --topic")
    known = groups.partitions_of(admin, wanted)
    known.check()
    if known.gone:
        raise ConfigError(f"--topic: {', '.join(sorted(known.gone))} does not exist; correct the name")
    keys = [
        (topic, number)
        for topic, found in sorted(known.values.items())
        for number in found
        if not numbers or number in numbers
    ]
    absent = set(numbers).difference(number for _, number in keys)
    if absent:
        raise ConfigError(f"--partition {min(absent)}: {', '.join(sorted(wanted))} has no such partition")
    ranges = groups.offset_ranges(admin, keys)
    offsets = _offsets(admin, keys, ranges, target)
    return [Move(*key, committed.get(key), offsets[key], *ranges[key]) for key in keys]


def _offsets(
    admin: AdminClient, keys: Iterable[PartitionKey], ranges: dict[PartitionKey, tuple[int, int]], target: Target
) -> dict[PartitionKey, int]:
    if isinstance(target, datetime):
        spec = OffsetSpec.for_timestamp(int(target.timestamp() * 1000))
        found = groups.find_offsets(admin, dict.fromkeys(keys, spec))
        groups.check_known(found)
        # -1 says that all messages are older.
        return {key: ranges[key][1] if offset < 0 else offset for key, (offset, _) in found.values.items()}
    if isinstance(target, str):
        place = ("beginning", "end").index(target)
        return {key: ranges[key][place] for key in keys}
    for (topic, number), (beginning, end) in ranges.items():
        if not beginning <= target <= end:
            raise ConfigError(
                f"--to {target}: {topic}[{number}] has offsets {beginning} to {end}; choose one of these, or name "
                "other partitions with --partition"
            )
    return dict.fromkeys(keys, target)


def commit(admin: AdminClient, group_id: str, moves: Iterable[Move]) -> None:
    """Commit the offsets of `moves` for the group; raises WorkerError when the brokers refuse one."""
    places = [
        # Without the topic's id: the offset is of the topic that has the name now. The ranges of done offsets and the
        # order ledger belong to the old offset. The number of partitions that the group began with is still true.
        TopicPartition(each.topic, each.partition, each.offset, encode(each.offset, OffsetMetadata(partitions=(
            0 if each.committed is None else each.committed.metadata.partitions
        ))))
        for each in moves
    ]  # fmt: skip
    request = [ConsumerGroupTopicPartitions(group_id, places)]
    try:
        answered = admin.alter_consumer_group_offsets(request, request_timeout=groups.REQUEST_TIMEOUT_S)
        result = answered[group_id].result()
    except KafkaException as error:
        raise WorkerError(f"the offsets of group {group_id} were not changed: {_reason(error.args[0])}") from None
    refused = [each for each in result.topic_partitions if each.error is not None]
    if refused:
        raise WorkerError(
            f"the offsets of {len(refused)} of {len(places)} partitions were not changed, as of {refused[0].topic}"
            f"[{refused[0].partition}]: {_reason(refused[0].error)}"
        )


def _reason(error: KafkaError) -> str:
    """Why offsets were not changed, with the remedy."""
    remedies = {
        KafkaError.GROUP_AUTHORIZATION_FAILED: "grant Read on the group and on its topics",
        KafkaError.TOPIC_AUTHORIZATION_FAILED: "grant Read on the group and on its topics",
        # A member has joined since the offsets were read.
        KafkaError.UNKNOWN_MEMBER_ID: "stop the members of the group first",
    }
    return f"{error.str()}; {remedies.get(error.code(), 'try again')}"
