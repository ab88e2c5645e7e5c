"""Exactly once: what handlers give back, dead letters and offsets, together in one Kafka transaction per interval.

    send -> HeldOutputs -> the transaction -> Outcomes, and what brokers refuse -> Refusals

An output is written when the low-water mark of its partition passes its message: in the order of offsets, whatever the
order in which messages were handled. So the offsets of a transaction are exactly those of the messages whose outputs it
has. Where it cannot be committed it is aborted, and all partitions begin again at what the group has committed.

The calls of a transaction run in a thread of their own while the loop goes on: the handler gets more, and what it gives
back is held for the next transaction. Everything here is called by the loop's thread, which looks in each turn whether
they have ended.

Sources: KIP-98 (transactions), KIP-447 (one producer a member, fenced by the group's metadata).
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message

from workers.config import ClientConfig
from workers.consumer.answers import MAX_BYTES, MAX_MESSAGES, Output
from workers.consumer.assignment import Assignment, Key, PartitionState
from workers.consumer.committing import FORGOTTEN, FORGOTTEN_S
from workers.consumer.failures import ErrorPolicy, random_jitter
from workers.consumer.held_outputs import HeldOutputs
from workers.consumer.outcomes import Mark, Outcomes
from workers.consumer.outputs import failure_of, produce
from workers.consumer.refusals import Place, Refusals
from workers.consumer.scheduling import Partition, Work
from workers.deadletters.writer import ANY_SIZE
from workers.errors import ConfigError
from workers.handlers import Retry
from workers.kafka.client import ClientState
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


class Transaction:
    """The transaction of this member, begun with the first message that is done and committed after `interval_s`.

    It takes the places of both `Outputs` and `StoredOffsets`.
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
            lambda: policy.pause_s(self._aborted_in_row + 1, random_jitter()),
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
        self._unanswered_bytes = 0
        self._written: Counter[str] = Counter()
        # The offsets of the commit under way; empty while outputs are written.
        self._marks: list[Mark] = []
        self._marked_at = 0.0
        # The error of its commit; while there is one nobody knows whether it was committed.
        self._unanswered: KafkaError | None = None
        self._abort_reason: str | None = None
        # Called when the calls under way have ended; None while there are none.
        self._on_answer: Callable[[KafkaError | None], None] | None = None
        # Until when an abort waits for outputs that are under way.
        self._settle_until = 0.0
        self._held = HeldOutputs()
        self._outcomes = Outcomes()
        self._refusals = Refusals(policy, self._outcomes.topics)
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
    def topics(self) -> DeliveriesByTopic:
        """The outcomes of outputs, by topic; acknowledged means committed."""
        return self._outcomes.topics

    @property
    def messages(self) -> int:
        """How many outputs are held, or have no outcome."""
        return self._held.messages + len(self._queue) + len(self._under_way)

    @property
    def _bytes(self) -> int:
        return self._held.bytes + self._unanswered_bytes

    @property
    def full(self) -> bool:
        """Whether nothing more shall begin: a transaction is being aborted, or its retry is not due."""
        if self._aborts or self._producer.replacing or time.monotonic() < self._pause_until:
            return True
        # Nothing of what is held goes while calls are under way.
        return self._open and (self._refusals.one_by_one or (self._producer.asking and self._holds_much))

    @property
    def only_next(self) -> bool:
        """Whether only messages at the low-water mark may begin.

        This is so while the held outputs have reached their bound, as these messages release some. It is also so while
        a message is to become a dead letter, or may be the one that was refused: that message is committed alone.
        """
        return self._holds_much or self._refusals.one_by_one

    @property
    def _holds_much(self) -> bool:
        return self.messages >= MAX_MESSAGES or self._bytes >= MAX_BYTES

    @property
    def longest_s(self) -> float:
        """How long a commit in a rebalance may take."""
        return NOW_S + 2 * self._producer.longest_s

    def send(self, work: Work) -> None:
        """Hold the answers of a finished work until its messages are passed by the low-water mark."""
        state = work.partition
        assert isinstance(state, PartitionState)
        self._refusals.fail_again(state, work, batch=self._batch)
        if self._producer.client is not None:
            for answer in work.answers:
                # A batch is done when all of it is.
                place = work.handled - 1 if self._batch else answer.place
                self._held.hold(state, work.received.offset(place), answer.outputs)
        work.answers.clear()

    def try_again(self, work: Work) -> None:
        """A dead letter was due for messages of `work`, and is held back."""
        self._refusals.try_again(work)

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
            self._held.drop(partition)
            self._refusals.forget(key)
            self._outcomes.forget(key)
            self._assignment.discount(partition)
            if lost and self._touched.get(key) is partition:
                self._abort_later(f"{partition} has gone to another member")
        self._settle()

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
        self._outcomes.close()
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
    def successes(self) -> int:
        """Transactions that were committed."""
        return self._outcomes.successes

    @property
    def failures(self) -> int:
        """Transactions that were aborted, or of which nobody knows."""
        return self._outcomes.failures

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
        if self._refusals.one_by_one:
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
        self._settle()
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
                if state.commit.dirty:
                    self._pass(state)
            self._send_what_fits()
            due = now or self._refusals.one_by_one or time.monotonic() - self._producer.begun_at >= self._interval_s
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
        self._refusals.expect_dead_letter((state.key, offset))
        self._held.hold(state, offset, [Output(topic, record, size_of(record))])

    def _pass(self, state: PartitionState) -> None:
        """Take what is below the low-water mark into the transaction."""
        if state.next_offset is None or not self._begin():
            return
        state.commit.dirty = False
        self._touched[state.key] = state
        for offset, output in self._held.release(state):
            self._queue.append(((state.key, offset), output))
            self._unanswered_bytes += output.size

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
        self._unanswered_bytes -= output.size
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
            self._refusals.note(place, output, error, failure)
        # Otherwise brokers are unreachable, or the transaction has failed: no message's fault.
        self._abort_later(str(failure))

    # Commit

    def _mark(self) -> None:
        """Fix which offsets are committed: those of all partitions that have outputs in the transaction."""
        for state in self._touched.values():
            # Their marks may have moved on since their outputs were written.
            if state.commit.dirty:
                self._pass(state)
        self._marked_at = time.monotonic()
        places = [(state, state.to_commit(ahead=False)) for state in self._touched.values()]
        ends = {state.key: place.offset for state, place in places}
        dead_letters = self._refusals.count_dead_letters(ends)
        self._marks += [
            Mark(state, place, state.commit.uncommitted - state.tracker.completed_beyond, dead_letters[state.key])
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
        self._outcomes.committed(self._assignment, self._marks, self._written)
        self._pass_over(self._marks)
        self.forgotten_since = None
        self._aborted_in_row = 0
        for mark in self._marks:
            mark.state.commit.confirm_transaction()
        # Partitions that were lost meanwhile were committed before they went.
        self._abort_reason = None
        self._end()

    def _pass_over(self, marks: Sequence[Mark]) -> None:
        self._refusals.pass_over({mark.state.key: mark.place.offset for mark in marks})

    # A commit without an answer

    def _doubt(self) -> bool:
        """Keep what is to be counted of the transaction if it was committed; return whether nobody knows that."""
        error = self._unanswered
        if error is None:
            return False
        self._outcomes.doubt(self._marks, self._written, error.name())
        return True

    def _settle(self) -> None:
        """Count what became of transactions in doubt."""
        for marks in self._outcomes.settle(self._assignment):
            self._pass_over(marks)

    def _end(self) -> None:
        self._number += 1
        self._open = False
        self._unanswered = None
        self._settle_until = 0.0
        self._unanswered_bytes = 0
        self._refusals.end()
        for each in (self._touched, self._queue, self._under_way, self._written, self._marks):
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
            self._outcomes.aborted()
            outcome = "was aborted, what it had"
        self._aborted_in_row += 1
        self._client_state.say("aborted", f"a transaction {outcome} is handled again: {reason}")
        self._pause(self._policy.pause_s(self._aborted_in_row, random_jitter()))
        verdict = self._refusals.judge(self._touched)
        self._pause(verdict.pause_s)
        if verdict.fatal is not None:
            self._client_state.fatal = verdict.fatal
        self._end()
        self._held.clear()
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
