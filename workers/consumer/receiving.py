"""Takes from the client what has arrived: messages for the scheduler, and events. Called by the loop's thread."""

import time
from collections.abc import Callable

from confluent_kafka import KafkaError, Message

from workers.consumer.dispatching import Dispatcher
from workers.consumer.flow import FlowControl
from workers.consumer.parts import Parts
from workers.kafka import fields

# A signal is noticed when a poll returns.
POLL_S = 0.2
# With --concurrency, messages are looked for at this interval while handlers are at work and more could be.
ACTIVE_POLL_S = 0.005
# While a dead letter is under way: its partition, or its key, waits for it.
DEAD_LETTER_POLL_S = 0.01


class Receiver:
    """`idle_since` (time.monotonic) is when the last message arrived, or nothing could."""

    def __init__(
        self, parts: Parts, flow: FlowControl, dispatcher: Dispatcher, check_refusal: Callable[[KafkaError], None]
    ) -> None:
        self.idle_since = 0.0
        self._check_refusal = check_refusal
        self._parts = parts
        self._flow = flow
        self._dispatcher = dispatcher

    def receive(self) -> None:
        """Take what has arrived, or wait for it: `consume` would wait for a full batch, so that is left to `poll`."""
        client, assignment = self._parts.client, self._parts.assignment
        # Where the handler does not keep up, what it has yet to do must not pile up here.
        full = self._flow.full()
        limit = 1 if full else self._flow.receive_limit
        if limit > 1:
            messages = client.consume(limit, 0)
            if messages:
                self._take(messages)
                return
        timeout_s = self._poll_timeout_s()
        if full and not self._parts.executor.in_flight and self._dispatcher.waits:
            # A message that is there would end the wait at once, and each turn would bring one more.
            time.sleep(timeout_s)
            timeout_s = 0.0
        first = client.poll(timeout_s)
        if first is None:
            self._parts.fetching.drained_at = time.monotonic()
            return
        before = assignment.find(first)
        following = client.consume(limit - 1, 0) if limit > 1 else []
        # A rebalance can happen in there. If the partition returns to us, its earlier messages are fetched again.
        self._take([first, *following] if assignment.find(first) is before else following)

    def _poll_timeout_s(self) -> float:
        scheduler = self._parts.scheduler
        if self._parts.executor.in_flight:
            # The handler's end is waited for, not more messages, unless it could be given more at once.
            return ACTIVE_POLL_S if self._dispatcher.wants_more else 0.0
        outputs = self._parts.outputs
        waits = outputs.full or outputs.only_next
        if outputs.works or (scheduler.runnable and self._dispatcher.may_begin and not waits):
            # Outputs are waited for in the poll of their own client.
            return 0.0
        timeout_s = min(POLL_S, self._parts.committer.due_s, self._dispatcher.next_s)
        retry_s = scheduler.next_retry_s()
        if retry_s is not None:
            timeout_s = min(timeout_s, retry_s)
        if any(shard.dead_letter is not None for shard in scheduler.dead_letters):
            timeout_s = min(timeout_s, DEAD_LETTER_POLL_S)
        return timeout_s

    def _take(self, messages: list[Message]) -> None:
        others: list[Message] = []
        if fields.has_error(messages):
            others = [message for message in messages if message.error()]
            messages = [message for message in messages if not message.error()]
        if messages:
            self.idle_since = time.monotonic()
            for state, received in self._parts.assignment.buffer(messages):
                self._parts.scheduler.add(state, received)
                if not state.in_order and self._flow.holds_too_much(state):
                    # Not only while the handler is busy: quick ones would run ahead of a poisoned message without end.
                    self._flow.pause([state])
        for other in others:
            self._on_event(other)

    def _on_event(self, message: Message) -> None:
        """Take what is no message: an error, or that all of a partition was read."""
        error = message.error()
        assert error is not None
        state = self._parts.assignment.find(message)
        if error.code() == KafkaError._PARTITION_EOF:
            if state is not None:
                self._parts.assignment.end_of_partition(state, message.offset() or 0)
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            if state is not None:
                self._parts.starts.need(state, error)
        else:
            self._check_refusal(error)
            self._parts.client_state.on_error(error)
