"""Where a partition begins: at what the group has committed, and what to do where that is not in the log.

librdkafka's own `auto.offset.reset` moves on without a word. Here each case is decided, counted and said:

- The group has committed nothing for it: at its beginning, or with --from-end at its end. A partition that was added
  after the group had begun to commit is read from its beginning, so that nothing of it is skipped.
- Retention has deleted messages before they were handled: they are counted, and it goes on at the new beginning, or the
  worker stops (--on-deleted).
- The log is shorter than what was read, or its topic is another one of the same name: it begins anew.

Called by the loop's thread, in part from inside `poll`.
"""

import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from workers.accounting.offset_metadata import OffsetMetadata, decode, encode
from workers.config import ClientConfig
from workers.consumer.assignment import Key, PartitionState
from workers.errors import WorkerError

log = logging.getLogger(__name__)

# Committed offsets are asked for when partitions are assigned; without an answer librdkafka asks again by itself.
COMMITTED_TIMEOUT_S = 5.0
# While a partition waits for its beginning the others go on, so a broker that hangs may not hold up the loop.
ASK_TIMEOUT_S = 1.0
ASK_AGAIN_S = 0.5
# For the committed offset of one partition, where brokers have not said those of all.
ASK_ALONE_S = 0.2

_TRUNCATED = re.compile(r"truncation detected at .*broker end offset is (\d+)")
_POLICIES = {
    "earliest": "earliest", "smallest": "earliest", "beginning": "earliest",
    "latest": "latest", "largest": "latest", "end": "latest",
    "error": "error",
}  # fmt: skip


@dataclass(slots=True)
class Need:
    """A partition whose offset is not in the log; `truncated_at` is where librdkafka has seen it diverge."""

    state: PartitionState
    reason: str
    truncated_at: int | None
    anew: bool = False
    ask_at: float = 0.0
    rewound: bool = False
    # Brokers do not say what is committed while a transaction has it (UNSTABLE_OFFSET_COMMIT), nor in the same answer
    # that of others.
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """The offset at which a partition goes on. `anew`: its log has other messages now, so received ones are dropped.
    `committed`: the group's committed offset, where it was not known before. `rewound`: the partition was fetched until
    now.
    """

    state: PartitionState
    offset: int
    anew: bool
    commit: bool = False
    committed: TopicPartition | None = None
    rewound: bool = False


class Starts:
    """Decides where partitions begin, and goes on asking the brokers until it can."""

    def __init__(self, config: ClientConfig, *, stop_on_deleted: bool, exactly_once: bool) -> None:
        self._policy = _POLICIES.get(config.get("auto.offset.reset", "earliest"), "earliest")
        self._stop_on_deleted = stop_on_deleted
        self._exactly_once = exactly_once
        # Of each topic when the worker began.
        self.partition_counts: Mapping[str, int] = {}
        self._needs: dict[Key, Need] = {}
        # Topics in which the group has committed since the worker began.
        self._begun: set[str] = set()

    def at_assignment(
        self, client: Any, partitions: list[TopicPartition]
    ) -> tuple[list[TopicPartition], list[TopicPartition]]:
        """The partitions with the offsets where they begin, and those of them that are to be committed at once.

        An offset that could not be decided in time is OFFSET_INVALID: librdkafka asks for the committed one, and says
        so where there is none (`need`).
        """
        try:
            # Where the member before was killed its transaction has them for long, and ours of others must not wait.
            timeout_s = ASK_TIMEOUT_S if self._exactly_once else COMMITTED_TIMEOUT_S
            assigned: list[TopicPartition] = client.committed(partitions, timeout=timeout_s)
        except KafkaException as error:
            log.warning("committed offsets are not known yet: %s", error)
            return partitions, []
        begins = []
        until = time.monotonic() + COMMITTED_TIMEOUT_S
        for place, each in enumerate(assigned):
            if each.error is not None:
                each.offset = OFFSET_INVALID
            elif each.offset < 0 and self._policy == "earliest":
                each.offset = OFFSET_BEGINNING
            elif each.offset < 0 and self._policy == "latest":
                left_s = until - time.monotonic()
                # However many there are, a rebalance does not wait longer: `decided` asks for the rest.
                begin = self._first_place(client, each, min(left_s, ASK_TIMEOUT_S)) if left_s > 0 else None
                if begin is None:
                    each.offset = OFFSET_INVALID
                else:
                    assigned[place] = begin
                    begins.append(begin)
        return assigned, begins

    def _first_place(self, client: Any, each: TopicPartition, timeout_s: float) -> TopicPartition | None:
        """The place to commit of `_first_offset`, None where the brokers do not answer."""
        try:
            first, at_begin = self._first_offset(client, each, timeout_s)
        except KafkaException as error:
            log.warning("%s[%d]: the offset to begin at is not known yet: %s", each.topic, each.partition, error)
            return None
        return TopicPartition(each.topic, each.partition, first, encode(first, OffsetMetadata(partitions=at_begin)))

    def _first_offset(self, client: Any, place: TopicPartition, timeout_s: float) -> tuple[int, int]:
        """Where a partition without a committed offset begins under --from-end, and how many partitions the topic had
        when the group began. Raises KafkaException when the brokers do not answer.

        It begins at its end if the group is new to the topic, or if other members of a new group were only quicker to
        commit where theirs begin; at its beginning if it was added since, or if the topic was created again: with a
        topic the brokers delete a group's offsets.
        """
        low, high = client.get_watermark_offsets(TopicPartition(place.topic, place.partition), timeout=timeout_s)
        # list_topics would be the right question; in a rebalance callback the binding's (2.16) crashes the process.
        count = max(self.partition_counts.get(place.topic, 0), place.partition + 1)
        everywhere = client.committed(
            [TopicPartition(place.topic, number) for number in range(count)], timeout=timeout_s
        )
        errors = [each.error for each in everywhere if each.error is not None]
        if errors:
            raise KafkaException(errors[0])
        known = [decode(each.offset, each.metadata) for each in everywhere if each.offset >= 0]
        at_begin = max((metadata.partitions for metadata in known), default=count)
        was_added = place.partition >= at_begin
        if was_added:
            log.info("%s[%d] was added after the group began; reading all of it", place.topic, place.partition)
        was_created_again = not known and place.topic in self._begun
        if was_created_again:
            log.warning(
                "%s[%d]: what the group had committed is gone with the old topic; reading all of the new one",
                place.topic,
                place.partition,
            )
        return int(low if was_added or was_created_again else high), at_begin

    def need(self, state: PartitionState, error: KafkaError) -> None:
        """A partition cannot be fetched where it is, as librdkafka's _AUTO_OFFSET_RESET event says."""
        if state.awaits_committed:
            # It is assigned anew as soon as the committed offset is known.
            state.seeks_end = False
            return
        reason = error.str()
        # Only the text says where (rd_kafka_toppar_handle_OffsetForLeaderEpoch in librdkafka's rdkafka_offset.c).
        cut = _TRUNCATED.search(reason)
        diverged = "truncat" in reason.lower() and cut is None
        self._needs[state.key] = Need(state, reason, int(cut[1]) if cut else None, anew=diverged)

    def not_sought(self, state: PartitionState, error: KafkaError) -> None:
        """A partition that is not fetched cannot be sought either. A need that is known says more."""
        if not state.awaits_committed:
            self._needs.setdefault(state.key, Need(state, error.str(), None))

    def await_committed(self, state: PartitionState, *, rewound: bool = False) -> None:
        """Keep asking for the committed offset of a partition, which is not known."""
        self._needs[state.key] = Need(state, "the committed offset is not known", None, rewound=rewound)

    def other_topic(self, state: PartitionState) -> None:
        """The topic was deleted and created again: none of the offsets known mean anything in it."""
        self._needs.setdefault(state.key, Need(state, "the topic was created again", None, anew=True))

    @property
    def undecided(self) -> bool:
        """Whether partitions wait to be told where they go on."""
        return bool(self._needs)

    def forget(self, state: PartitionState) -> None:
        """A partition is not owned any more, or not with this state."""
        self._needs.pop(state.key, None)
        if state.commit.confirmed_offset is not None:
            self._begun.add(state.topic.name)

    def decided(self, client: Any, leaders: Mapping[Key, int]) -> Iterator[Start]:
        """Where partitions in need go on, as soon as the brokers have said what they hold. However many there are, the
        loop is held up for a bounded time: of each of the `leaders` that hangs one partition is asked for, and the next
        call goes on with the others.

        Raises WorkerError where the user has chosen to stop.
        """
        now = time.monotonic()
        due = [need for need in self._needs.values() if need.ask_at <= now and not need.state.seeks_end]
        known = self._committed(client, [need for need in due if need.state.awaits_committed])
        until = time.monotonic() + ASK_TIMEOUT_S
        silent: set[int] = set()
        asked: list[Need] = []
        skipped: list[Need] = []
        for need in due:
            if self._exactly_once and not need.anew and (need.state.count or need.state.commit.uncommitted):
                # To go on elsewhere this member joins again, so what it was given is handled and committed before.
                continue
            place = need.state.topic_partition()
            leader = leaders.get(need.state.key)
            try:
                if need.state.awaits_committed:
                    committed = known.get(need.state.key)
                    if committed is None:
                        need.ask_at = time.monotonic() + ASK_AGAIN_S
                        continue
                    if committed.offset >= 0:
                        self._needs.pop(need.state.key, None)
                        yield Start(need.state, committed.offset, True, committed=committed, rewound=need.rewound)
                        continue
                    if need.state.commit.restart_at is not None:
                        self._needs.pop(need.state.key, None)
                        begin = need.state.commit.restart_at
                        yield Start(need.state, begin.offset, True, commit=True, committed=begin, rewound=need.rewound)
                        continue
                if leader in silent:
                    skipped.append(need)
                    continue
                if time.monotonic() >= until:
                    continue
                low, high = client.get_watermark_offsets(place, timeout=ASK_TIMEOUT_S)
                start = self._decide(client, need, low, high)
            except KafkaException as error:
                asked.append(need)
                if leader is not None and error.args[0].code() == KafkaError._TIMED_OUT:
                    silent.add(leader)
                log.debug("%s: where it begins is not known yet: %s", need.state, error)
                continue
            self._needs.pop(need.state.key, None)
            yield replace(start, rewound=need.rewound)
        # The others have their turn before them, and of one leader those that were not asked for.
        for need in (*skipped, *asked):
            need.ask_at = time.monotonic() + ASK_AGAIN_S
            self._needs[need.state.key] = self._needs.pop(need.state.key)

    def _committed(self, client: Any, needs: list[Need]) -> dict[Key, TopicPartition]:
        """The group's committed offsets, of the partitions for which the brokers have answered."""
        together = [need for need in needs if not need.alone]
        found = self._ask_committed(client, together, ASK_TIMEOUT_S)
        if found is None and len(together) > 1:
            for need in together:
                need.alone = True
        known = found or []
        until = time.monotonic() + ASK_TIMEOUT_S
        for need in needs:
            if not need.alone or time.monotonic() >= until:
                continue
            known += self._ask_committed(client, [need], ASK_ALONE_S) or []
            # The others have their turn before it.
            self._needs[need.state.key] = self._needs.pop(need.state.key)
        return {(each.topic, each.partition): each for each in known if each.error is None}

    def _ask_committed(self, client: Any, needs: list[Need], timeout_s: float) -> list[TopicPartition] | None:
        if not needs:
            return []
        try:
            found: list[TopicPartition] = client.committed([each.state.topic_partition() for each in needs], timeout_s)
        except KafkaException as error:
            log.debug("committed offsets are not known yet: %s", error)
            return None
        return found

    def _decide(self, client: Any, need: Need, low: int, high: int) -> Start:
        state, position = need.state, need.state.position
        if position is None and not need.anew:
            return self._decide_first(client, need, low)
        if self._policy == "error":
            raise WorkerError(
                f"{state}: offset {position} cannot be read ({need.reason}), the log has {low} to {high}, and "
                "auto.offset.reset is error; choose where the group begins, or set auto.offset.reset to earliest"
            )
        if position is None or need.anew:
            log.warning("%s: %s; it is read from its beginning, offset %d", state, need.reason, low)
            return Start(state, low, anew=True)
        if need.truncated_at is not None:
            offset = min(need.truncated_at, position if state.next_offset is None else state.next_offset)
            offset = offset if low <= offset <= high else low
            log.warning("%s: its log was truncated at offset %d; going on at %d", state, need.truncated_at, offset)
            return Start(state, offset, anew=True)
        if position < low:
            return self._after_deletion(state, position, low)
        if position > high:
            log.warning(
                "%s: offset %d is behind the end, %d: the topic was created again or its log truncated; reading it "
                "from its beginning, offset %d", state, position, high, low,
            )  # fmt: skip
            return Start(state, low, anew=True)
        return Start(state, position, anew=False)

    def _decide_first(self, client: Any, need: Need, low: int) -> Start:
        state = need.state
        if self._policy == "error":
            raise WorkerError(
                f"{state}: the group has committed no offset, and auto.offset.reset is error; choose where the group "
                "begins, or set auto.offset.reset to earliest or latest"
            )
        if self._policy == "latest":
            first, state.partitions_at_begin = self._first_offset(client, state.topic_partition(), ASK_TIMEOUT_S)
            return Start(state, first, anew=True, commit=True)
        return Start(state, low, anew=True)

    def _after_deletion(self, state: PartitionState, position: int, low: int) -> Start:
        deleted = low - position
        if self._stop_on_deleted:
            raise WorkerError(
                f"{state}: {deleted} messages, offsets {position} to {low - 1}, were deleted by retention before they "
                "were handled, and --on-deleted is stop; --on-deleted continue goes on behind them"
            )
        state.topic.deleted += deleted
        state.commit.deleted += deleted
        log.error(
            "%s: %d messages, offsets %d to %d, were deleted by retention before they were handled; going on at %d",
            state, deleted, position, low - 1, low,
        )  # fmt: skip
        return Start(state, low, anew=False)
