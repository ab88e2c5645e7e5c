"""Exactly once: what handlers give back, dead letters and offsets, together in one Kafka transaction per interval.

An output is written when the low-water mark of its partition passes its message: in the order of offsets, whatever the
order in which messages were handled. So the offsets of a transaction are exactly those of the messages whose outputs it
has. Where it cannot be committed it is aborted, and all partitions begin again at what the group has committed.

The calls of a transaction run in a thread of their own while the loop goes on: the handler gets more, and what it gives
back is held for the next transaction. Everything here is called by the loop's thread, which looks in each turn whether
they have ended.

Sources: KIP-98 (transactions), KIP-447 (one producer a member, fenced by the group's metadata).
"""

import heapq
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from workers.config import ClientConfig
from workers.consumer.answers import MAX_BYTES, MAX_MESSAGES, Output
from workers.consumer.assignment import Assignment, Key, PartitionState
from workers.consumer.committing import FORGOTTEN, FORGOTTEN_S
from workers.consumer.failures import ErrorPolicy, RetryLater, SendDeadLetter, Stop, decide
from workers.consumer.outputs import failure_of, produce
from workers.consumer.scheduling import Partition, Work
from workers.deadletters.headers import dead_letter_headers, dead_letter_topic
from workers.deadletters.writer import ANY_SIZE, DeadLetter, missing_topics
from workers.errors import ConfigError, WorkerError
from workers.handlers import Retry
from workers.kafka.client import TOO_LARGE, ClientState
from workers.kafka.messages import MessagePlace
from workers.kafka.transactional import TransactionalProducer
from workers.lifecycle import Shutdown
from workers.producer.deliveries import LATENCY_SAMPLE, DeliveriesByTopic
from workers.sources import size_of

log = logging.getLogger(__name__)

# How long a rebalance waits for outputs to be acknowledged.
NOW_S = 10.0
LOOK_S = 0.02
# How often the loop looks whether a step of a commit has ended: each step takes at most this much longer.
COMMIT_LOOK_S = 0.005
# Outputs that are not acknowledged by then are left to the commit: it knows of errors that no report tells.
FLUSH_S = 2.0
# librdkafka cannot abort while it asks for the first partition of a transaction (its issue 4849).
SETTLE_S = 0.5
# Reports of what an abort has taken from the client.
PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
# Of the calls of a transaction: no output to such a topic is written.
TOPIC_REFUSED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
# Commits that are refused after so long a time are not of the same trouble.
FORGOTTEN_WITHIN_S = 60.0

# A message: its partition and its offset.
Place = tuple[Key, int]


@dataclass(slots=True)
class _Held:
    """The outputs of messages that the low-water mark has not passed, by offset; `offsets` is a heap of those."""

    state: PartitionState
    offsets: list[int] = field(default_factory=list)
    outputs: dict[int, list[Output]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why brokers do not take an output of a message."""

    output: Output
    error: KafkaError
    failure: Exception


@dataclass(frozen=True, slots=True)
class _Failure:
    """How often the outputs of a message were refused, why, and whether it is to become a dead letter."""

    attempts: int
    error: Exception
    condemned: bool


@dataclass(frozen=True, slots=True)
class _Mark:
    """A partition's part of a transaction: the offset to commit, and how many messages and dead letters that is of."""

    state: PartitionState
    place: TopicPartition
    messages: int
    dead_letters: int


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A transaction whose commit was asked for, and not answered: its marks, and its outputs by topic.

    `ends` are the offsets of its partitions that this member still has: the committed offset of any of them tells
    whether all of it was committed.
    """

    marks: list[_Mark]
    written: Counter[str]
    error: str
    ends: dict[Key, int]


class Transaction:
    """The transaction of this member, begun with the first message that is done and committed after `interval_s`.

    It takes the places of both `Outputs` and `StoredOffsets`. `messages` and `bytes` are those of outputs that are
    held, or without an outcome.
    """

    # No work waits for its outputs: its messages are done when the transaction has them.
    works: Collection[Work] = ()

    def __init__(
        self,
        config: ClientConfig,
        transactional_id: str,
        interval_s: float,
        policy: ErrorPolicy,
        auth_timeout_s: float = 0.0,
        connect: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        # Outcomes of outputs, by topic; acknowledged means committed.
        self.topics = DeliveriesByTopic()
        self.messages = 0
        self.bytes = 0
        # Transactions that were committed; and those that were aborted, or of which that was never known.
        self.successes = 0
        self.failures = 0
        self.forgotten_since: float | None = None
        self._forgotten = False
        self._interval_s = interval_s
        self._policy = policy
        self._aborted_in_row = 0
        self._client_state = ClientState(config, auth_timeout_s)
        self._producer = TransactionalProducer(
            config,
            transactional_id,
            self._client_state,
            lambda: policy.pause_s(self._aborted_in_row + 1, _jitter()),
            ANY_SIZE,
            connect,
        )
        self._batch = False
        # Of the open transaction: its number, whose outputs it has, those to be sent and those under way.
        self._number = 0
        self._open = False
        self._touched: dict[Key, PartitionState] = {}
        self._queue: deque[tuple[Place, Output]] = deque()
        self._under_way: dict[int, tuple[Place, Output]] = {}
        self._sent = 0
        self._written: Counter[str] = Counter()
        self._refusals: dict[Place, _Refusal] = {}
        # The offsets of the commit under way; empty while outputs are written.
        self._marks: list[_Mark] = []
        self._marked_at = 0.0
        # The error of its commit; while there is one nobody knows whether it was committed.
        self._unanswered: KafkaError | None = None
        # Earlier transactions, until a committed offset tells.
        self._doubts: list[_Doubt] = []
        self._abort_reason: str | None = None
        # Called when the calls under way have ended; None while there are none.
        self._on_answer: Callable[[KafkaError | None], None] | None = None
        # Until when an abort waits for outputs that are under way.
        self._settle_until = 0.0
        # Of messages that were handled and are not committed.
        self._held: dict[Key, _Held] = {}
        self._dead_letters: set[Place] = set()
        self._failures: dict[Place, _Failure] = {}
        # Messages of which one was refused: each is in a transaction of its own, to know which.
        self._suspects: set[Place] = set()
        self._pause_until = 0.0

    def attach(
        self,
        consumer: Callable[[], Any],
        assignment: Assignment,
        rewind: Callable[[], None],
        shutdown: Shutdown,
    ) -> None:
        """Say whose transactions these are: `consumer` is the client of the group's member, `rewind` has all partitions
        begin again at what is committed.
        """
        self._consumer = consumer
        self._assignment = assignment
        self._rewind = rewind
        self._shutdown = shutdown

    def start(self, timeout_s: float | None, *, batch: bool, in_order: bool) -> None:
        """Have the brokers take up the transactional id; raises as `TransactionalProducer.start`, and ConfigError for a
        `batch` handler whose batches are not in the order of offsets.
        """
        if batch and not in_order:
            raise ConfigError(
                "--exactly-once commits a batch as a whole, so a @batch handler needs --order partition: add that"
            )
        self._batch = batch
        self._producer.start(self._shutdown, timeout_s)

    # In the place of Outputs

    @property
    def transaction(self) -> "Transaction":
        return self

    @property
    def full(self) -> bool:
        """Whether nothing more shall begin: a transaction is being aborted, or its retry is not due."""
        if self._aborts or self._producer.replacing or time.monotonic() < self._pause_until:
            return True
        # Nothing of what is held goes while calls are under way.
        return self._open and (self._one_by_one or (self._producer.asking and self._holds_much))

    @property
    def only_next(self) -> bool:
        """Whether only messages at the low-water mark may begin.

        This is so while the held outputs have reached their bound, as these messages release some. It is also so while
        a message is to become a dead letter, or may be the one that was refused: that message is committed alone.
        """
        return self._holds_much or self._one_by_one

    @property
    def _holds_much(self) -> bool:
        return self.messages >= MAX_MESSAGES or self.bytes >= MAX_BYTES

    @property
    def _one_by_one(self) -> bool:
        return bool(self._suspects) or any(failure.condemned for failure in self._failures.values())

    @property
    def longest_s(self) -> float:
        """How long a commit in a rebalance may take."""
        return NOW_S + 2 * self._producer.longest_s

    def send(self, work: Work) -> None:
        """Hold the answers of a finished work until its messages are passed by the low-water mark."""
        state = work.partition
        assert isinstance(state, PartitionState)
        if self._failures:
            self._fail_again(state, work)
        if self._producer.client is not None:
            for answer in work.answers:
                # A batch is done when all of it is.
                place = work.handled - 1 if self._batch else answer.place
                self._hold(state, work.received.offset(place), answer.outputs)
        work.answers.clear()

    def try_again(self, work: Work) -> None:
        """A dead letter was due for messages of `work`, and is held back."""
        for place in range(len(work)):
            at = work.partition.key, work.received.offset(place)
            if at in self._failures:
                self._failures[at] = replace(self._failures[at], condemned=False)

    def poll(self, timeout_s: float) -> None:
        """Serve delivery reports of outputs; raises WorkerError when the client cannot go on."""
        self._producer.serve(timeout_s)
        self._client_state.check()

    def take(self) -> list[Work]:
        return []

    def await_outcomes(self, left_s: Callable[[], float], partitions: Collection[Partition] | None = None) -> int:  # noqa: ARG002  (the interface)
        """Wait for nothing: `stage` with `now` does."""
        return 0

    def forsake(self, partitions: Collection[Partition], *, lost: bool = True) -> None:
        """Forget partitions. With `lost` others have them: what the transaction has of them must not be committed, and
        what was handled is handled again there. Without it, what can be is committed before.
        """
        states = [partition for partition in partitions if isinstance(partition, PartitionState)]
        if not lost:
            self.stage(states, now=True)
        for partition in states:
            key = partition.key
            held = self._held.get(key)
            if held is not None and held.state is partition:
                self._drop(self._held.pop(key))
            for places in (self._dead_letters, self._suspects):
                places.difference_update([place for place in places if place[0] == key])
            self._failures = {place: failure for place, failure in self._failures.items() if place[0] != key}
            for doubt in self._doubts:
                doubt.ends.pop(key, None)
            self._assignment.discount(partition)
            if lost and self._touched.get(key) is partition:
                self._abort_later(f"{partition} has gone to another member")
        self._settle_doubts()

    def close(self, timeout_s: float) -> str | None:
        """End the client, and abort what is not committed; return what went wrong, or None: what the brokers have
        confirmed as aborted is redelivered, and neither lost nor there twice.
        """
        producer = self._producer
        if producer.client is None:
            producer.close(timeout_s)
            return None
        self._go_on(wait=True)
        unfinished = self._open or self._abort_reason is not None
        reason = self._abort_reason or "its time was up"
        if self._open and producer.broken is None:
            self._ask_for_abort(timeout_s)
            self._go_on(wait=True)
        confirmed = not self._open and producer.broken is None
        broken = producer.broken
        producer.close(timeout_s)
        self._doubt()
        for doubt in self._doubts:
            self._count_unknown(doubt)
        self._doubts.clear()
        if not unfinished:
            return None
        if confirmed:
            log.warning("the last transaction was aborted, its messages are redelivered: %s", reason)
            return None
        return (
            "the brokers have not confirmed the end of the last transaction: "
            f"{broken.str() if broken else reason}; its messages are redelivered if it was not committed"
        )

    # In the place of StoredOffsets

    @property
    def due_s(self) -> float:
        """In how many seconds `stage` has something to do."""
        if self._producer.asking or self._marks:
            return COMMIT_LOOK_S
        now = time.monotonic()
        if self._aborts or self._producer.replacing:
            return LOOK_S
        if now < self._pause_until:
            return self._pause_until - now
        if self._one_by_one:
            return LOOK_S
        return max(0.0, self._producer.begun_at + self._interval_s - now) if self._open else float("inf")

    @property
    def pending(self) -> bool:
        """Whether there is something that only a later `stage` commits, or has handled again."""
        return self._open or self._aborts or self._producer.replacing

    def forgotten(self) -> bool:
        """Whether the group goes on refusing our offsets, as StoredOffsets.forgotten."""
        forgotten, self._forgotten = self._forgotten, False
        return forgotten

    def stage(self, states: Collection[PartitionState], *, now: bool = False, idle: bool = False) -> None:  # noqa: ARG002  (a transaction costs the brokers as much at any time)
        """Write the outputs of messages that the low-water marks have passed, and commit when it is time to.

        With `now`, inside of a rebalance or at the end, all of it is committed before it returns, or aborted later; it
        raises nothing then. Otherwise it raises WorkerError when the client cannot go on.
        """
        if self._producer.client is None or not self._go_on(wait=now):
            return
        self._settle_doubts()
        if self._aborts or self._producer.replacing:
            # Not inside of a rebalance: the partitions begin anew afterwards.
            if not now:
                self._begin_anew()
                self._client_state.check()
            return
        until = time.monotonic() + (min(NOW_S, max(0.5, self._shutdown.remaining_s())) if now else 0.0)
        while self._advance(states, until, now=now):
            continue
        if now:
            if self._marks:
                self._abort_later("the transaction was not committed in time")
            return
        if not self._producer.asking:
            self._producer.renew(idle=not self._open)
        self._client_state.check()

    def _advance(self, states: Collection[PartitionState], until: float, *, now: bool) -> bool:
        """Go on with the transaction; return whether it was committed and, with `now`, more may be to commit."""
        if not self._marks:
            for state in states:
                if state.dirty:
                    self._pass(state)
            self._send_what_fits()
            due = now or self._one_by_one or time.monotonic() - self._producer.begun_at >= self._interval_s
            if not self._open or self._aborts or not due:
                return False
            self._mark()
        if not self._flush(until):
            return False
        self._commit()
        # Outside of a rebalance the answer is looked for in the next turns.
        return now and self._go_on(wait=True) and not self._aborts

    def _ask(
        self,
        on_answer: Callable[[KafkaError | None], None],
        *calls: Callable[[float], object],
        timeout_s: float | None = None,
    ) -> None:
        """Begin calls of the transaction; `_go_on` calls `on_answer` with what became of them."""
        self._on_answer = on_answer
        self._producer.ask(*calls, timeout_s=timeout_s)

    def _go_on(self, *, wait: bool) -> bool:
        """Take what became of the calls under way; return whether none are any more."""
        if self._on_answer is None:
            return True
        answer = self._producer.answer(wait)
        if answer is None:
            return False
        # Cleared before: what follows may ask again.
        on_answer, self._on_answer = self._on_answer, None
        on_answer(answer.error)
        return True

    # Outputs

    def hold_dead_letter(self, message: Message, topic: str, headers: list[Any]) -> None:
        """Hold the dead letter of a message, as an output of it."""
        state = self._assignment.find(message)
        if state is None or self._producer.client is None:
            return
        record = {"value": message.value(), "key": message.key(), "headers": headers}
        offset = message.offset() or 0
        self._dead_letters.add((state.key, offset))
        self._hold(state, offset, [Output(topic, record, size_of(record))])

    def _hold(self, state: PartitionState, offset: int, outputs: list[Output]) -> None:
        held = self._held.get(state.key)
        if held is None or held.state is not state:
            if held is not None:
                self._drop(held)
            held = self._held[state.key] = _Held(state)
        heapq.heappush(held.offsets, offset)
        held.outputs[offset] = outputs
        self.messages += len(outputs)
        self.bytes += sum(output.size for output in outputs)

    def _drop(self, held: _Held) -> None:
        for outputs in held.outputs.values():
            self.messages -= len(outputs)
            self.bytes -= sum(output.size for output in outputs)

    def _fail_again(self, state: PartitionState, work: Work) -> None:
        """Have a work fail at a message whose outputs brokers have refused before, where that was the last attempt; and
        a batch that has others besides it, which are tried one by one then.
        """
        if self._batch:
            places = [(state.key, work.received.offset(place)) for place in range(work.handled)]
            known = [self._failures[place] for place in places if place in self._failures]
            if known and (known[0].condemned or len(work) > 1):
                self._fail(work, 0, known[0])
            return
        for answer in work.answers:
            failure = self._failures.get((state.key, work.received.offset(answer.place)))
            if failure is not None and failure.condemned:
                self._fail(work, answer.place, failure)
                return

    def _fail(self, work: Work, place: int, failure: _Failure) -> None:
        work.given, work.handled, work.error = work.handled, place, failure.error
        work.earlier_attempts = failure.attempts - 1
        while work.answers and work.answers[-1].place >= place:
            work.answers.pop()

    def _pass(self, state: PartitionState) -> None:
        """Take what is below the low-water mark into the transaction."""
        mark = state.next_offset
        if mark is None or not self._begin():
            return
        state.dirty = False
        self._touched[state.key] = state
        held = self._held.get(state.key)
        if held is None or held.state is not state:
            return
        while held.offsets and held.offsets[0] < mark:
            offset = heapq.heappop(held.offsets)
            self._queue.extend(((state.key, offset), output) for output in held.outputs.pop(offset))

    def _begin(self) -> bool:
        if not self._open and not self._aborts:
            self._open = self._producer.begin()
        return self._open

    def _send_what_fits(self) -> None:
        client, report = self._producer.client, self._producer.note
        while self._queue and not self._aborts and len(client) < MAX_MESSAGES:
            place, output = self._queue[0]
            number = self._sent
            try:
                produce(client, output, partial(report, self._on_delivery, self._number, number))
            except BufferError:
                return
            except KafkaException as error:
                self._on_failure(place, output, error.args[0])
            else:
                self._under_way[number] = place, output
            self._sent += 1
            self._queue.popleft()

    def _on_delivery(self, transaction: int, number: int, error: KafkaError | None, message: Message) -> None:
        """Take the delivery report of an output; called by the loop's thread."""
        if transaction != self._number or self._producer.broken is not None or number not in self._under_way:
            return
        place, output = self._under_way.pop(number)
        self.messages -= 1
        self.bytes -= output.size
        if error is not None:
            self._on_failure(place, output, error)
            return
        self._written[output.topic] += 1
        if self._written[output.topic] % LATENCY_SAMPLE == 1:
            self.topics[output.topic].latencies.add(message.latency() or 0.0)

    def _on_failure(self, place: Place, output: Output, error: KafkaError) -> None:
        if error.code() in PURGED:
            return
        failure = failure_of(error, output)
        if not isinstance(failure, Retry) and not error.fatal():
            self._refusals.setdefault(place, _Refusal(output, error, failure))
        # Otherwise brokers are unreachable, or the transaction has failed: no message's fault.
        self._abort_later(str(failure))

    # Commit

    def _mark(self) -> None:
        """Fix which offsets are committed: those of all partitions that have outputs in the transaction."""
        for state in self._touched.values():
            # Their marks may have moved on since their outputs were written.
            if state.dirty:
                self._pass(state)
        self._marked_at = time.monotonic()
        places = [(state, state.to_commit(ahead=False)) for state in self._touched.values()]
        ends = {state.key: place.offset for state, place in places}
        dead_letters = Counter(key for key, offset in self._dead_letters if offset < ends.get(key, 0))
        self._marks += [
            _Mark(state, place, state.uncommitted - state.tracker.completed_beyond, dead_letters[state.key])
            for state, place in places
        ]

    def _commit(self) -> None:
        """Begin the calls that commit."""
        client, member = self._producer.client, self._member()
        if member is None:
            self._abort_later("this member is not in its group any more")
            return
        places = [mark.place for mark in self._marks]

        def send(timeout_s: float) -> None:
            client.send_offsets_to_transaction(places, member, timeout_s)

        # Until they have ended `_marks` keeps new outputs held, so nothing is produced meanwhile.
        self._ask(self._on_commit_answer, send, client.commit_transaction)

    def _member(self) -> Any | None:
        """Who commits, as the group knows this member now; None where it does not.

        Asked for by the loop's thread, in which partitions come and go: so its generation is one in which this member
        had all that it commits. And the binding (2.16.1) has calls of other threads wait until `poll` has returned,
        which in a rebalance waits for the commit.
        """
        consumer = self._consumer()
        try:
            member = consumer.consumer_group_metadata()
            # Without an id brokers would take the offsets, whoever has the partitions by now. An id that is lost comes
            # back only when the partitions were taken away, so it is looked at afterwards.
            return member if consumer.memberid() else None
        except (KafkaException, RuntimeError) as error:
            log.debug("the group's metadata is not known: %s", error)
            return None

    def _on_commit_answer(self, error: KafkaError | None) -> None:
        if error is None:
            self._on_committed()
        else:
            self._unanswered = error
            self._on_refused(error)

    def _flush(self, until: float) -> bool:
        """Send waiting outputs, and serve delivery reports; return whether the offsets can follow."""
        while True:
            self._send_what_fits()
            left_s = until - time.monotonic()
            self._producer.serve(min(LOOK_S, max(0.0, left_s)) if self._awaits_outcomes else 0.0)
            if self._aborts:
                return False
            if not self._awaits_outcomes:
                return True
            if left_s <= 0:
                return False

    @property
    def _awaits_outcomes(self) -> bool:
        return bool(self._queue) or (bool(self._under_way) and time.monotonic() - self._marked_at < FLUSH_S)

    def _on_committed(self) -> None:
        self._count_committed(self._marks, self._written)
        self.forgotten_since = None
        self._aborted_in_row = 0
        for mark in self._marks:
            mark.state.restart_at = None
            mark.state.rewound = False
        # Partitions that were lost meanwhile were committed before they went.
        self._abort_reason = None
        self._end()

    def _count_committed(self, marks: list[_Mark], written: Counter[str]) -> None:
        self.successes += 1
        for topic, count in written.items():
            deliveries = self.topics[topic]
            deliveries.enqueued += count
            deliveries.acknowledged += count
        for mark in marks:
            self._assignment.settle(mark.state, mark.messages, mark.dead_letters)
        if self._failures or self._dead_letters or self._suspects:
            passed = {mark.state.key: mark.place.offset for mark in marks}

            def remains(place: Place) -> bool:
                return place[1] >= passed.get(place[0], 0)

            self._failures = {place: failure for place, failure in self._failures.items() if remains(place)}
            self._dead_letters = set(filter(remains, self._dead_letters))
            self._suspects = set(filter(remains, self._suspects))

    # A commit without an answer

    def _doubt(self) -> bool:
        """Keep what is to be counted of the transaction if it was committed; return whether nobody knows that."""
        error = self._unanswered
        if error is None:
            return False
        # A partition without a message of its own is where it was, committed or not.
        told = [mark for mark in self._marks if mark.state.owned and mark.messages > 0]
        ends = {mark.state.key: mark.place.offset for mark in told}
        self._doubts.append(_Doubt([*self._marks], Counter(self._written), error.name(), ends))
        return True

    def _settle_doubts(self) -> None:
        """Count what became of transactions in doubt, where a committed offset has told, or none can any more."""
        for doubt in [*self._doubts]:
            states = [self._assignment.partitions.get(key) for key in doubt.ends]
            known = [state for state in states if state is not None and not state.awaits_committed]
            if not known and doubt.ends:
                continue
            self._doubts.remove(doubt)
            if not known:
                self._count_unknown(doubt)
            elif known[0].confirmed_offset == doubt.ends[known[0].key]:
                self._count_committed(doubt.marks, doubt.written)
            else:
                self.failures += 1

    def _count_unknown(self, doubt: _Doubt) -> None:
        self.failures += 1
        for topic, count in doubt.written.items():
            deliveries = self.topics[topic]
            deliveries.enqueued += count
            deliveries.unknown += count
            deliveries.errors[doubt.error] += count

    def _end(self) -> None:
        self._number += 1
        self._open = False
        self._unanswered = None
        self._settle_until = 0.0
        for each in (self._touched, self._queue, self._under_way, self._written, self._refusals, self._marks):
            each.clear()

    # Abort

    @property
    def _aborts(self) -> bool:
        return self._abort_reason is not None or self._producer.broken is not None

    def _abort_later(self, reason: str) -> None:
        if self._abort_reason is None:
            self._abort_reason = reason

    def _begin_anew(self) -> None:
        """Go on with an abort, or with a new client; then have all partitions begin again at what is committed."""
        producer = self._producer
        if producer.broken is not None:
            if self._open:
                self._abort_later(producer.broken.str())
        elif self._aborts and self._open:
            if not self._settle_until:
                self._settle_until = time.monotonic() + SETTLE_S
            if not self._under_way or time.monotonic() >= self._settle_until:
                self._ask_for_abort()
            return
        if not producer.replace():
            return
        reason, self._abort_reason = self._abort_reason, None
        if reason is None:
            return
        if self._doubt():
            outcome = "has no known outcome, what was not committed"
        else:
            self.failures += 1
            outcome = "was aborted, what it had"
        self._aborted_in_row += 1
        self._client_state.say("aborted", f"a transaction {outcome} is handled again: {reason}")
        self._pause(self._policy.pause_s(self._aborted_in_row, _jitter()))
        self._judge()
        self._end()
        self._held.clear()
        self._dead_letters.clear()
        self.messages = self.bytes = 0
        self._rewind()

    def _ask_for_abort(self, timeout_s: float | None = None) -> None:
        self._ask(self._on_abort_answer, self._producer.client.abort_transaction, timeout_s=timeout_s)

    def _on_abort_answer(self, error: KafkaError | None) -> None:
        if error is None:
            self._open, self._unanswered = False, None
        else:
            self._on_refused(error)

    def _pause(self, pause_s: float) -> None:
        self._pause_until = max(self._pause_until, time.monotonic() + pause_s)

    def _judge(self) -> None:
        """Decide what becomes of the message whose output was refused. Where several were, as they are written and
        refused together, it is found out first which.
        """
        # Of a partition that has gone meanwhile nothing is kept: no commit of this member would ever end that.
        refusals = {place: refusal for place, refusal in self._refusals.items() if self._touched[place[0]].owned}
        if len(refusals) > 1 and not self._suspects.issuperset(refusals):
            self._suspects.update(refusals)
            return
        for place, refusal in refusals.items():
            (topic, partition), offset = place
            where = MessagePlace(topic, partition, offset)
            known = self._failures.get(place)
            attempts = 1 if known is None else known.attempts + 1
            deliveries = self.topics[refusal.output.topic]
            deliveries.enqueued += 1
            deliveries.on_delivery(refusal.error, Message(topic=refusal.output.topic))
            decision = decide(
                self._policy, refusal.failure, messages=1, attempts=attempts, backoff_step=attempts, jitter=_jitter()
            )
            log.warning("%s: attempt %d failed, its transaction is aborted: %s", where, attempts, refusal.failure)
            if place in self._dead_letters:
                if refusal.error.code() in TOO_LARGE:
                    self._client_state.fatal = WorkerError(
                        f"stopping at {where}, as nothing is skipped: topic {refusal.output.topic} takes no dead "
                        f"letter of that size, raise its max.message.bytes: {refusal.error.str()}"
                    )
                self._pause(self._policy.pause_s(attempts, _jitter()))
            elif isinstance(decision, Stop):
                self._client_state.fatal = WorkerError(
                    f"stopping as --on-error says: {where}, attempt {attempts}: {refusal.failure}"
                )
            elif isinstance(decision, RetryLater):
                self._pause(decision.pause_s)
            self._failures[place] = _Failure(attempts, refusal.failure, isinstance(decision, SendDeadLetter))

    def _on_refused(self, error: KafkaError) -> None:
        """A call of the transaction has failed."""
        if error.code() in FORGOTTEN:
            self._note_forgotten()
        if error.code() in TOPIC_REFUSED:
            # No report tells: nothing is sent to a topic that the transaction may not have.
            for place, output in self._under_way.values():
                if not self._written[output.topic]:
                    self._on_failure(place, output, error)
                    break
        self._abort_later(error.str())

    def _note_forgotten(self) -> None:
        now = time.monotonic()
        since_s = 0.0 if self.forgotten_since is None else now - self.forgotten_since
        if self.forgotten_since is None or since_s > FORGOTTEN_WITHIN_S:
            self.forgotten_since = now
        elif since_s > FORGOTTEN_S:
            self.forgotten_since, self._forgotten = None, True


def _jitter() -> float:
    return random.random()  # noqa: S311  (not a secret)


class HeldDeadLetters:
    """Dead letters that are written in the transaction: they are as good as delivered when it holds them, and count
    when it is committed.
    """

    held = True

    def __init__(self, topic: str | None, group_id: str, transaction: Transaction) -> None:
        self.named = topic
        self._group_id = group_id
        self._transaction = transaction

    def missing(self, client: Consumer, topics: Iterable[str]) -> list[str]:
        return missing_topics(client, topics, self.named)

    def send(self, message: Message, error: BaseException, attempts: int) -> DeadLetter:
        headers = dead_letter_headers(message, self._group_id, error, attempts)
        topic = dead_letter_topic(message.topic() or "", self.named)
        self._transaction.hold_dead_letter(message, topic, headers)
        dead_letter = DeadLetter()
        dead_letter.delivered = True
        return dead_letter

    def poll(self, timeout_s: float) -> None: ...

    def close(self, timeout_s: float) -> None: ...
