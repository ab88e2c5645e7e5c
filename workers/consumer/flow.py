"""How much is received: what waits for the handler is bounded in messages and bytes. Called by the loop's thread."""

import logging

from confluent_kafka import KafkaException

from workers.consumer.assignment import PartitionState, leader_epoch
from workers.consumer.parts import Parts
from workers.consumer.received import Received
from workers.consumer.seeking import seek

log = logging.getLogger(__name__)

BATCH_MESSAGES = 2000
# Messages that may wait in all partitions that are handled in order; each of many partitions may have two batches. A
# client that pauses a partition throws away what it has fetched, so fewer would be slower.
MAX_WAITING_MESSAGES = 12 * BATCH_MESSAGES
# With --concurrency, at least this many messages may wait.
FEW_MESSAGES = 500
# Approximate bytes that may wait for the handler.
MAX_WAITING_BYTES = 64 * 1024 * 1024
# So far may the messages of a partition be ahead of its low-water mark, done or not.
MAX_DISTANCE_MESSAGES = 10_000


class FlowControl:
    """Pauses partitions that hold too much, and resumes them. Only this changes `PartitionState.paused`."""

    def __init__(self, parts: Parts, max_distance: int) -> None:
        self._parts = parts
        self._max_distance = max_distance
        # How many messages may be received in one turn.
        in_order = parts.scheduler.order == "partition"
        self.receive_limit = BATCH_MESSAGES if in_order else max(1, min(BATCH_MESSAGES, max_distance // 4))
        # Nothing was handled for long and enough waits: partitions stay paused until that is over.
        self.hangs = False

    def full(self) -> bool:
        """Whether enough waits that the handler can be given, and does not have in its hands yet."""
        scheduler, partitions = self._parts.scheduler, self._parts.assignment.partitions.values()
        in_hand = sum(
            len(work) - work.accounted for work in (*self._parts.executor.in_flight, *self._parts.outputs.works)
        )
        received = sum(state.count - state.tracker.distance for state in partitions)
        if received - in_hand - scheduler.blocked_messages >= self._enough():
            return True
        return sum(state.bytes for state in partitions if not scheduler.blocks(state)) >= MAX_WAITING_BYTES

    def _enough(self) -> int:
        executor = self._parts.executor
        if executor.concurrency == 1:
            return BATCH_MESSAGES
        most = max(BATCH_MESSAGES, 40 * executor.concurrency)
        if executor.batch or self._parts.scheduler.waiting_shards() < executor.concurrency:
            return most
        # Where the next call of each has a key of its own, more would only carry completed messages further beyond the
        # low-water mark, until the partition has to be paused.
        return min(most, max(FEW_MESSAGES, 10 * executor.concurrency))

    def holds_too_much(self, state: PartitionState) -> bool:
        # The next turn may bring `receive_limit` more.
        most = self._share_messages() if state.in_order else self._max_distance - self.receive_limit
        return state.count >= most or state.bytes >= self._share_bytes()

    def _share_messages(self) -> int:
        return max(2 * BATCH_MESSAGES, MAX_WAITING_MESSAGES // len(self._parts.assignment.partitions))

    def _share_bytes(self) -> int:
        return MAX_WAITING_BYTES // len(self._parts.assignment.partitions)

    def pause(self, states: list[PartitionState]) -> None:
        fetching = [state for state in states if not state.paused]
        if fetching:
            self._parts.client.pause([state.topic_partition() for state in fetching])
            for state in fetching:
                state.paused = True

    def pause_what_holds_too_much(self) -> None:
        """Pause those, or all of them while the handler hangs."""
        states = self._parts.assignment.partitions.values()
        self.pause([state for state in states if self.hangs or self.holds_too_much(state)])

    def resume(self) -> None:
        if self.hangs:
            return
        done = [state for state in self._parts.assignment.partitions.values() if state.paused and self._has_room(state)]
        if done:
            self._parts.client.resume([state.topic_partition() for state in done])
            for state in done:
                state.paused = False

    def _has_room(self, state: PartitionState) -> bool:
        """Whether a paused partition may be fetched again."""
        if state.in_order and self._parts.scheduler.blocks(state):
            return False
        # The next batch is there while others are fetched.
        few = BATCH_MESSAGES if state.in_order else self._max_distance // 2
        return state.count <= few and state.bytes < self._share_bytes() // 2

    def give_back(self, state: PartitionState) -> None:
        """Give messages beyond a blocked partition's share back to the client, to be received again. So other
        partitions go on; where a dependency of the handler is unavailable, they fail in their turn.
        """
        fit = max(1, state.count * self._share_bytes() // max(1, state.bytes))
        if fit >= state.count:
            return
        beyond = self._parts.scheduler.cut(state, fit)
        if beyond is None:
            return
        if self._left_to_client(state, beyond):
            self._parts.assignment.give_back(state, beyond)
        else:
            self._parts.scheduler.add(state, beyond)

    def _left_to_client(self, state: PartitionState, beyond: Received) -> bool:
        """Have the client fetch messages again; return False where it cannot, or where retention has deleted them."""
        if beyond.offset(0) < state.begin_offset:
            return False
        try:
            seek(self._parts.client, state.topic_partition(beyond.offset(0), leader_epoch(beyond.messages[0])))
        except KafkaException as error:
            log.debug("%s: kept, and not left to the client: %s", state, error)
            return False
        return True
