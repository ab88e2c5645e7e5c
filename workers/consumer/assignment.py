"""What a member of a group knows of its partitions: how far they are handled, what waits, how far behind that is."""

import time
from typing import NamedTuple

from confluent_kafka import OFFSET_INVALID, Message, TopicPartition

from workers.accounting.histogram import LatencyHistogram
from workers.accounting.order import OrderCounts, OrderLedger
from workers.deadletters.writer import Letter


class Topic:
    """What was done with the messages of one topic, over all partitions this member ever owned."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.handled = 0
        self.retried = 0
        self.dead_lettered = 0
        self.order = OrderCounts()
        self.latencies = LatencyHistogram()


class Partition:
    """A partition while this member owns it.

    Invariant: every message of it before `next_offset` was handled, and `pending` begins with the message at
    `next_offset`, or, where nothing is pending, with what comes next. `next_offset` is None until the first message
    tells it.
    """

    def __init__(self, topic: Topic, number: int, committed: TopicPartition | None) -> None:
        self.topic = topic
        self.number = number
        self.owned = True
        self.pending: list[Message] = []
        self.next_offset = committed.offset if committed is not None and committed.offset >= 0 else None
        self.ledger = OrderLedger(topic.order, committed.metadata if committed is not None else None)
        self.paused = False
        # The message at the head of `pending` failed: how often it was called, and when it is called again.
        self.tries = 0
        self.attempts = 0
        self.retry_at = 0.0
        self.letter: Letter | None = None
        self.letter_error: BaseException | None = None
        # A batch failed: so many messages are handled one by one, to find the one that fails.
        self.singly = 0
        # So far the client has read. What lies before that and was not pending is no message: the marker of a
        # transaction, or what one has aborted.
        self.read_offset = -1
        # For lag and liveness, read by the server's threads.
        self.end_offset = -1
        self.behind_since_s = 0.0
        self.waiting_since_ms = 0
        self.last_timestamp_ms = 0
        self.progress_at = time.monotonic()
        self.assigned_at_s = time.time()

    def __str__(self) -> str:
        return f"{self.topic.name}[{self.number}]"

    @property
    def blocked(self) -> bool:
        """Whether its next message waits for a pause to end or for its dead letter."""
        return self.letter_error is not None or self.retry_at > time.monotonic()

    @property
    def waits_since(self) -> float:
        """Since when it could have had the handler: it made progress then, or its pause ended."""
        return max(self.progress_at, self.retry_at)

    @property
    def pending_bytes(self) -> int:
        """From the first and the last of its messages: to look at each would take longer than all else."""
        messages = self.pending
        return len(messages) * max(len(messages[0]), len(messages[-1])) if messages else 0

    def age_s(self) -> float:
        """How old its oldest message is that was not handled yet, in seconds."""
        since_s = self.waiting_since_ms / 1000 or self.behind_since_s or self.last_timestamp_ms / 1000
        return max(0.0, time.time() - (since_s or self.assigned_at_s))

    def see_end(self, offset: int) -> None:
        """Notes where it ends now."""
        if self.next_offset is not None and self.end_offset <= self.next_offset < offset:
            self.behind_since_s = time.time()
        self.end_offset = offset

    def at(self, offset: int = OFFSET_INVALID, metadata: str = "", epoch: int | None = None) -> TopicPartition:
        return TopicPartition(self.topic.name, self.number, offset, metadata, -1 if epoch is None else epoch)


class Lag(NamedTuple):
    """How far an owned partition is behind."""

    topic: str
    partition: int
    messages: int
    seconds: float
