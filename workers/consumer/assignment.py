"""The partitions that this member of the group owns, and how far each of them is.

`Assignment` alone moves a partition's `position` and `next_offset`. `CommitState` has the fields about commits. Other
parts set the fields that they decide about: flow `paused`; fetching the ends of the log; membership and starting those
about the beginning. Failing and starting add to the counts of its topic. All of them run in the loop's thread, also the
rebalance callbacks, which run inside `poll` and `close`. No client is used here.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from confluent_kafka import OFFSET_INVALID, Message, TopicPartition

from workers.accounting.histogram import LatencyHistogram
from workers.accounting.offset_metadata import OffsetMetadata, decode, encode, room_for_ledger
from workers.accounting.order import OrderCounts, OrderLedger
from workers.accounting.stamps import none_is_stamp
from workers.consumer.commit_state import CommitState
from workers.consumer.offsets import OffsetTracker
from workers.consumer.received import Received
from workers.kafka import fields
from workers.kafka.statistics import PartitionStatistics

Key = tuple[str, int]

# Statistics are made once a second; those from before a partition began are not newer than this.
STALE_S = 2.0


class TopicCounts:
    """Counts of one topic's messages, over all partitions that this member ever owned."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.handled = 0
        # Of those: handled in transactions that were aborted, so they are handled again.
        self.rolled_back = 0
        self.retried = 0
        self.dead_lettered = 0
        # Retention had deleted them before they were handled.
        self.deleted = 0
        self.order = OrderCounts()
        self.latencies = LatencyHistogram()


class PartitionState:
    """A partition while this member owns it.

    Invariant: every message before `next_offset` was handled; what was received from there on is counted by `count` and
    `bytes`. `next_offset` is None until the first message, or the committed offset, tells it. `position` is the offset
    that is received next.
    """

    def __init__(self, topic: TopicCounts, number: int, committed: TopicPartition | None, *, in_order: bool) -> None:
        known = committed is not None and committed.offset >= 0
        offset = committed.offset if committed is not None and known else None
        metadata = decode(offset or 0, committed.metadata if committed is not None and known else None)
        self.topic = topic
        # Of the topic that the offsets are of: a topic that is created again has its name, and another id.
        self.topic_id = metadata.topic_id
        # How many partitions the topic had when the group began at its end, 0 where it did not.
        self.partitions_at_begin = metadata.partitions
        self.number = number
        self.owned = True
        self.in_order = in_order
        self.tracker = OffsetTracker(offset)
        self.position = offset
        self.ledger = OrderLedger(topic.order, metadata.ledger, number)
        self.count = 0
        self.bytes = 0
        # Received messages that the low-water mark has not passed, where messages are completed in any order.
        self.window: deque[Received] = deque()
        self.window_place = 0
        # Offsets that an earlier owner has completed beyond what it had committed.
        self.completed_earlier = metadata if metadata.ahead else None
        # With `next_offset` and with `position`, librdkafka asks by them whether the log was cut; -1 is not known. A
        # wrong one would tell of a cut that never was: it is that of the message just before the offset, or of the one
        # at it. A marker of a transaction in between may be of a later leader.
        epoch = committed.leader_epoch if committed is not None and known else None
        self.leader_epoch = self.position_epoch = -1 if epoch is None else epoch
        # Whether what the group has committed is not known yet: what is received meanwhile is not handled.
        self.awaits_committed = committed is not None and committed.offset == OFFSET_INVALID
        # Whether the client still asks where the end is, at which it was assigned: the answer would undo a seek
        # (rd_kafka_toppar_handle_Offset in librdkafka's rdkafka_partition.c).
        self.seeks_end = False
        # The highest of what was completed, in any order.
        self.completed_epoch = metadata.leader_epoch if metadata.ahead else -1
        self.paused = False
        self.commit = CommitState(offset)
        self.begin_offset = -1
        self.end_offset = -1
        self.behind_since_s = 0.0
        self.waiting_since_ms = 0
        self.last_timestamp_ms = 0
        self.assigned_at_s = time.time()
        self.started_at = self.progress_at = time.monotonic()
        self.received_at = float("-inf")

    def __str__(self) -> str:
        return f"{self.topic.name}[{self.number}]"

    @property
    def log_fields(self) -> dict[str, object]:
        """Its fields in a log line of JSON."""
        return {"topic": self.topic.name, "partition": self.number}

    @property
    def key(self) -> Key:
        return self.topic.name, self.number

    @property
    def next_offset(self) -> int | None:
        """The offset to commit: the low-water mark."""
        return self.tracker.next_offset

    def topic_partition(self, offset: int = OFFSET_INVALID, epoch: int = -1) -> TopicPartition:
        """The partition for the client; with a leader epoch it asks whether the log was cut before `offset`."""
        return TopicPartition(self.topic.name, self.number, offset, "", epoch)

    def at_position(self) -> TopicPartition:
        """The partition for the client, which is to fetch what follows the messages that it has given us."""
        return self.topic_partition(OFFSET_INVALID if self.position is None else self.position, self.position_epoch)

    def move_to(self, position: int, epoch: int = -1) -> None:
        """Receive from `position` on; `epoch` is of the message before or at it."""
        if position != self.position:
            self.position, self.position_epoch = position, epoch

    def advance_to(self, next_offset: int, epoch: int = -1) -> None:
        """Move the low-water mark where nothing is outstanding; `epoch` is of the message before or at it."""
        if next_offset != self.next_offset:
            self.tracker.advance_to(next_offset)
            self.leader_epoch = epoch

    def to_commit(self, *, ahead: bool = True) -> TopicPartition:
        """The offset to commit, with the metadata for the next owner; the offset must be known.

        The metadata lists the offsets done beyond the low-water mark, and the next owner skips them; without `ahead`
        only those that an earlier owner has completed.
        """
        offset = self.tracker.next_offset
        assert offset is not None
        told = OffsetMetadata(self.topic_id, self.partitions_at_begin)
        if done := self.tracker.ahead(own=ahead):
            told = told._replace(ahead=done, leader_epoch=self.completed_epoch, time_ms=int(time.time() * 1000))
        if self.completed_earlier is not None:
            told = _with_rest(told, self.completed_earlier, max(offset + 1, self.position or 0))
        metadata = told._replace(ledger=self.ledger.as_text(room_for_ledger(told, offset)))
        return TopicPartition(self.topic.name, self.number, offset, encode(offset, metadata), self.leader_epoch)

    def age_s(self) -> float:
        """How old its oldest message is that was not handled yet, in seconds."""
        waiting_s, last_s = self.waiting_since_ms / 1000, self.last_timestamp_ms / 1000
        since_s = (waiting_s if waiting_s > 0 else 0.0) or self.behind_since_s or (last_s if last_s > 0 else 0.0)
        return max(0.0, time.time() - (since_s or self.assigned_at_s))

    def update_end_offset(self, offset: int) -> None:
        """Note where it ends now."""
        if self.next_offset is not None and self.end_offset <= self.next_offset < offset:
            self.behind_since_s = time.time()
        self.end_offset = offset


class Assignment:
    """The partitions of this member. `in_order` says that each is handled in the order of its offsets."""

    def __init__(self, topics: Iterable[str], *, in_order: bool = True) -> None:
        self.topics = {name: TopicCounts(name) for name in topics}
        self.partitions: dict[Key, PartitionState] = {}
        self.handled = 0
        # When a message was handled last, or the handler was given one after it had none.
        self.progress_at = time.monotonic()
        self._in_order = in_order

    # Rebalances

    def assign(self, partitions: Iterable[TopicPartition]) -> list[PartitionState]:
        """Own partitions, which begin at their offsets where these are committed ones; OFFSET_INVALID says that it is
        not known what is committed.
        """
        return [self.adopt(each) for each in partitions]

    def adopt(self, place: TopicPartition) -> PartitionState:
        """Own a partition from `place` on; the state that it had before, if any, is not owned any more."""
        topic = self.topics.setdefault(place.topic, TopicCounts(place.topic))
        before = self.partitions.get((place.topic, place.partition))
        if before is not None:
            before.owned = False
        state = PartitionState(topic, place.partition, place, in_order=self._in_order)
        if before is not None and place is before.commit.restart_at:
            state.commit.restart_at = place
            state.topic_id = state.topic_id or before.topic_id
        if before is not None and before.awaits_committed:
            state.begin_offset, state.end_offset = before.begin_offset, before.end_offset
        self.partitions[state.key] = state
        return state

    def remove(self, partitions: Iterable[TopicPartition]) -> list[PartitionState]:
        """Own them no more; return their last states. Work that is under way for them is not counted afterwards,
        except by `complete` with `revoked`.
        """
        taken = [self.partitions.pop((each.topic, each.partition), None) for each in partitions]
        gone = [state for state in taken if state is not None]
        for state in gone:
            state.owned = False
        return gone

    def reset(self, state: PartitionState, offset: int) -> PartitionState:
        """Begin a partition anew at `offset`, as its log has other messages now; return its new state.

        Messages that were received and not handled are dropped with the old state; their works do not count any more.
        """
        state.owned = False
        fresh = PartitionState(state.topic, state.number, None, in_order=self._in_order)
        fresh.ledger = state.ledger
        fresh.partitions_at_begin = state.partitions_at_begin
        fresh.position = offset
        fresh.tracker.advance_to(offset)
        fresh.commit.rewound = state.commit.rewound or (state.next_offset is not None and offset < state.next_offset)
        fresh.commit.dirty = True
        fresh.commit.restart_at = fresh.to_commit()
        self.partitions[state.key] = fresh
        return fresh

    def rewind(self, state: PartitionState) -> PartitionState:
        """Begin a partition again at the group's committed offset, which is not known here; return its new state.

        Messages that were handled since that commit count as not handled.
        """
        self.discount(state)
        fresh = self.adopt(TopicPartition(*state.key, OFFSET_INVALID))
        fresh.commit.restart_at, fresh.seeks_end = state.commit.restart_at, state.seeks_end
        fresh.partitions_at_begin, fresh.topic_id = state.partitions_at_begin, state.topic_id
        fresh.begin_offset, fresh.end_offset = state.begin_offset, state.end_offset
        return fresh

    def settle(self, state: PartitionState, messages: int, dead_letters: int) -> None:
        """Count `messages` of a partition as committed in a transaction, `dead_letters` of them as dead letters; also
        messages that were discounted before the commit was known.
        """
        state.topic.dead_lettered += dead_letters
        discounted = max(0, messages - state.commit.uncommitted)
        state.commit.uncommitted -= messages - discounted
        state.commit.deleted = 0
        self.handled += discounted
        state.topic.rolled_back -= discounted

    def discount(self, state: PartitionState) -> None:
        """Messages of a partition that were handled and not committed are handled again, so they do not count."""
        self.handled -= state.commit.uncommitted
        state.topic.rolled_back += state.commit.uncommitted
        state.topic.deleted -= state.commit.deleted
        state.commit.uncommitted = state.commit.deleted = 0

    # Messages from the client

    def find(self, message: Message) -> PartitionState | None:
        return self.partitions.get((message.topic() or "", message.partition() or 0))

    def buffer(self, messages: list[Message]) -> Iterator[tuple[PartitionState, Received]]:
        """Take messages without errors, and return them by partition, without those that an earlier owner completed."""
        for run in _runs(messages, len(self.topics) == 1):
            state = self.find(run[0])
            if state is None:
                continue
            if state.awaits_committed:
                state.seeks_end = False
                continue
            received = self._receive(state, run)
            if received is not None:
                yield state, received

    def _receive(self, state: PartitionState, run: list[Message]) -> Received | None:
        now = state.received_at = time.monotonic()
        if not state.count:
            state.waiting_since_ms = run[0].timestamp()[1] or 0
            state.progress_at = now
            state.advance_to(run[0].offset() or 0, leader_epoch(run[0]))
        position = (run[-1].offset() or 0) + 1
        state.move_to(position, leader_epoch(run[-1]))
        if state.end_offset >= 0:
            state.end_offset = max(state.end_offset, position)
        received = Received(run)
        state.count += len(run)
        state.bytes += received.bytes
        if state.in_order:
            return received
        state.window.append(received)
        state.tracker.received([received.offset(place) for place in range(len(run))])
        return received if state.completed_earlier is None else self._without_completed(state, received)

    def _without_completed(self, state: PartitionState, received: Received) -> Received | None:
        earlier = state.completed_earlier
        assert earlier is not None
        todo = [place for place, message in enumerate(received.messages) if not _was_completed(earlier, message)]
        if earlier.ahead[-1][1] <= (state.position or 0):
            state.completed_earlier = None
        done = sorted({*range(len(received))}.difference(todo))
        if not done:
            return received
        rest = received.pick(todo) if todo else None
        for place in done:
            self._pass(state, state.tracker.skip(received.offset(place)))
        return rest

    def end_of_partition(self, state: PartitionState, offset: int) -> None:
        """All messages before `offset` were received. The other offsets before it hold transaction markers or aborted
        messages.
        """
        if state.awaits_committed:
            state.seeks_end = False
            return
        state.move_to(max(state.position or 0, offset))
        if not state.count and offset > (state.next_offset or 0):
            state.advance_to(offset)
            state.commit.dirty = True
        if offset > state.end_offset:
            state.update_end_offset(offset)

    def give_back(self, state: PartitionState, beyond: Received) -> None:
        """The last messages that were received are left to the client, to be received again (in order only)."""
        state.count -= len(beyond)
        state.bytes -= beyond.bytes
        state.move_to(beyond.offset(0), leader_epoch(beyond.messages[0]))

    def skip_to(self, state: PartitionState, offset: int) -> None:
        """Receive from `offset` on, behind what was received: what lies between is not in the log any more."""
        if offset != state.position:
            # All before it was deleted.
            state.begin_offset = max(state.begin_offset, offset)
            state.move_to(offset)
        if not state.count:
            state.advance_to(offset)
            state.commit.dirty = True

    def of_other_topics(self, topic_ids: Mapping[str, str], asked_at: float) -> list[PartitionState]:
        """The partitions whose offsets are of another topic than the one that has its name now. Ids not known yet are
        noted. `topic_ids` are the brokers' answer to a request after `asked_at` (time.monotonic).
        """
        others = []
        for state in self.partitions.values():
            current = topic_ids.get(state.topic.name)
            if current is None or current == state.topic_id or state.started_at > asked_at or state.awaits_committed:
                continue
            if state.topic_id:
                # The id stays with the offsets: a crash before they are new must not pass them off as the new topic's.
                others.append(state)
            else:
                state.topic_id = current
                if state.next_offset is not None:
                    # The brokers must have it before the topic can be another one.
                    state.commit.make_explicit()
        return others

    def note_ends(self, seen: Mapping[Key, PartitionStatistics], now: float) -> None:
        """Take the ends of partitions that the client's statistics tell.

        They stand still there while a partition is paused, or its fetch hangs: what the brokers said may be later.
        """
        for key, statistics in seen.items():
            state = self.partitions.get(key)
            # The last entry of a partition that began anew since is of its old log.
            if state is None or now - state.started_at < STALE_S:
                continue
            end = max(statistics.end_offset, state.position or 0)
            if statistics.end_offset >= 0 and end > state.end_offset:
                state.update_end_offset(end)

    # Handled messages

    def complete(
        self, state: PartitionState, received: Received, begin: int, end: int, *, revoked: bool = False
    ) -> None:
        """Messages `begin` to `end` of `received` are done with. Counts for a partition that has gone only while it is
        being revoked.
        """
        count = end - begin
        if count == 0 or not (state.owned or revoked):
            return
        last = received.messages[end - 1]
        self.handled += count
        state.topic.handled += count
        state.commit.uncommitted += count
        self.progress_at = state.progress_at = time.monotonic()
        timestamp_ms = last.timestamp()[1] or 0
        if timestamp_ms > 0:
            state.topic.latencies.add(time.time() - timestamp_ms / 1000)
        state.behind_since_s = 0.0
        if state.in_order:
            done = received if count == len(received) else received.part(begin, end)
            self._observe(state, done)
            state.count -= count
            state.bytes -= done.bytes
            state.tracker.advance_to((last.offset() or 0) + 1)
            self._passed(state, last, received.messages[end] if end < len(received) else None)
            return
        state.completed_epoch = max(state.completed_epoch, leader_epoch(last))
        for place in range(begin, end):
            passed = state.tracker.complete(received.offset(place))
            if passed:
                self._pass(state, passed)
        # The commit lists the offsets done beyond the low-water mark, so it changes also while the mark stands.
        state.commit.dirty = True

    def _pass(self, state: PartitionState, count: int) -> None:
        """The low-water mark passes the first `count` messages of the window: in the order of offsets, whatever the
        order in which they were completed.
        """
        while count:
            first = state.window[0]
            begin = state.window_place
            end = min(len(first), begin + count)
            count -= end - begin
            self._observe(state, first.part(begin, end))
            state.count -= end - begin
            last = first.messages[end - 1]
            if end == len(first):
                state.window.popleft()
                state.window_place = 0
                state.bytes -= first.bytes
            else:
                state.window_place = end
            following = state.window[0].messages[state.window_place] if state.window else None
            self._passed(state, last, following)

    def _observe(self, state: PartitionState, received: Received) -> None:
        if received.stamped_in_headers:
            state.ledger.observe(received.stamps())
        elif not (none_is_stamp(received.values) or state.ledger.observe_consecutive(received.values)):
            state.ledger.observe(received.values)

    def _passed(self, state: PartitionState, last: Message, following: Message | None) -> None:
        state.commit.dirty = True
        behind_last = state.next_offset == (last.offset() or 0) + 1
        state.leader_epoch = leader_epoch(last) if behind_last else -1 if following is None else leader_epoch(following)
        state.last_timestamp_ms = last.timestamp()[1] or 0
        # The message that comes next, or about as old as that: the last one that was handled.
        # A message is false where its value is empty, and cannot be asked where a handler has put its own object there.
        waiting = last if following is None else following
        state.waiting_since_ms = (waiting.timestamp()[1] or 0) if state.count else 0
        if not state.count and state.position is not None and (state.next_offset or 0) < state.position:
            # The offsets between the last message and the end that the client has reached hold no message.
            state.advance_to(state.position)


def _with_rest(ahead: OffsetMetadata, earlier: OffsetMetadata, begin: int) -> OffsetMetadata:
    """Add the offsets from `begin` on that an earlier owner had completed; they were not received yet.

    One epoch and one time stand for all: the lower ones, with which fewer messages are skipped.
    """
    rest = tuple((max(begin, first), end) for first, end in earlier.ahead if end > begin)
    if not rest:
        return ahead
    if not ahead.ahead:
        return ahead._replace(ahead=rest, leader_epoch=earlier.leader_epoch, time_ms=earlier.time_ms)
    return ahead._replace(
        ahead=ahead.ahead + rest,
        leader_epoch=min(ahead.leader_epoch, earlier.leader_epoch),
        time_ms=min(ahead.time_ms, earlier.time_ms),
    )


def leader_epoch(message: Message) -> int:
    """Of the leader that wrote a message; -1 where it is not known."""
    epoch = message.leader_epoch()
    return -1 if epoch is None else epoch


def _was_completed(earlier: OffsetMetadata, message: Message) -> bool:
    """Whether an earlier owner has handled this very message, and not another one that had its offset before the log
    was truncated or its topic recreated.
    """
    offset = message.offset() or 0
    if not any(begin <= offset < end for begin, end in earlier.ahead):
        return False
    epoch = leader_epoch(message)
    timestamp_ms = message.timestamp()[1] or 0
    return 0 <= epoch <= earlier.leader_epoch and timestamp_ms <= earlier.time_ms


def _runs(messages: list[Message], one_topic: bool) -> Iterator[list[Message]]:
    """Cut where the partition changes: messages arrive in long runs of one partition."""
    if one_topic and fields.of_one_partition(messages):
        yield messages
        return
    partitions = map(Message.partition, messages)
    begin = 0
    for _, run in groupby(partitions if one_topic else zip(map(Message.topic, messages), partitions, strict=True)):
        end = begin + len([*run])
        yield messages[begin:end]
        begin = end


def names(partitions: Sequence[TopicPartition]) -> str:
    """Partitions as a log names them."""
    return ", ".join(f"{each.topic}[{each.partition}]" for each in partitions)
