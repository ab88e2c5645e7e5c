"""Exactly once: what handlers give back, dead letters and offsets, together in one Kafka transaction per interval.

An output is written when the low-water mark of its partition passes its message: in the order of offsets, whatever the
order in which messages were handled. So the offsets of a transaction are exactly those of the messages whose outputs it
has. Where it cannot be committed it is aborted, and all partitions begin again at what the group has committed.

Sources: KIP-98 (transactions), KIP-447 (one producer a member, fenced by the group's metadata). Called by the loop's
thread.
"""

import heapq
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from workers.config import ClientConfig
from workers.consumer.answers import MAX_BYTES, MAX_MESSAGES, Output
from workers.consumer.assignment import Key, PartitionState
from workers.consumer.committing import FORGOTTEN, FORGOTTEN_S
from workers.consumer.failures import ErrorPolicy, RetryLater, SendDeadLetter, Stop, decide
from workers.consumer.outputs import failure_of
from workers.consumer.scheduling import Partition, Work
from workers.deadletters.headers import dead_letter_headers
from workers.deadletters.writer import ANY_SIZE, TOO_LARGE, DeadLetter, DeadLetters
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.handlers import Retry
from workers.kafka.client import ClientState, create_client
from workers.kafka.credentials import CredentialsWatch
from workers.lifecycle import Shutdown, call_with_timeout
from workers.producer.deliveries import LATENCY_SAMPLE, Deliveries
from workers.sources import size_of

log = logging.getLogger(__name__)

# How long one turn of the loop may wait for the brokers; what is not done by then goes on in the next turn.
SLICE_S = 0.25
# How long a rebalance waits for the commit of what was handled.
NOW_S = 10.0
INIT_SLICE_S = 1.0
LOOK_S = 0.02
# A producer that was fenced is made again. One that is fenced again so soon has a rival with its transactional id.
FENCED_AGAIN_S = 60.0
# Brokers have ended the transaction of this producer, or another one has begun with its id.
FENCED = frozenset(
    {
        KafkaError._FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.UNKNOWN_PRODUCER_ID,
        KafkaError.INVALID_TXN_STATE,
    }
)
# Reports of what an abort has taken from the client.
PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})
REFUSED = frozenset(
    {KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED}
)  # fmt: skip


@dataclass(slots=True)
class _Held:
    """The outputs of messages that the low-water mark has not passed, by offset; `offsets` is a heap of those."""

    state: PartitionState
    offsets: list[int] = field(default_factory=list)
    outputs: dict[int, list[Output]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Failure:
    """How often the outputs of a message were refused, why, and whether it is to become a dead letter."""

    attempts: int
    error: Exception
    condemned: bool


@dataclass(frozen=True, slots=True)
class _Mark:
    """The offset of a partition in a commit, and how many of its messages that commit is of."""

    state: PartitionState
    place: TopicPartition
    messages: int


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
        self.topics: dict[str, Deliveries] = {}
        self.messages = 0
        self.bytes = 0
        # Transactions that were committed, and that were aborted.
        self.successes = 0
        self.failures = 0
        self.forgotten_since: float | None = None
        self._id = transactional_id
        self._interval_s = interval_s
        self._policy = policy
        self._client_state = ClientState(config, auth_timeout_s)
        self._watch = CredentialsWatch(config, self._client_state)
        self._connect = connect or (
            lambda own: create_client(confluent_kafka.Producer, config, own, self._watch.credentials)
        )
        self._client: Any = None
        # The client that is to take the place of `_client`, until the brokers know it.
        self._fresh: Any = None
        self._replace_due = False
        self._renewal_due = False
        self._fenced_at = float("-inf")
        self._batch = False
        # Of the open transaction.
        self._open = False
        self._begun_at = 0.0
        self._touched: dict[Key, PartitionState] = {}
        self._queue: deque[tuple[Key, int, Output]] = deque()
        self._written: Counter[str] = Counter()
        # Being committed; empty while outputs are written.
        self._marks: list[_Mark] = []
        self._offsets_sent = False
        self._abort_reason: str | None = None
        # Of messages that were handled and are not committed.
        self._held: dict[Key, _Held] = {}
        self._dead_letters: set[tuple[Key, int]] = set()
        self._failures: dict[tuple[Key, int], _Failure] = {}
        # Of the open transaction.
        self._blamed: set[tuple[Key, int]] = set()
        self._pause_until = 0.0

    def attach(
        self,
        consumer: Callable[[], Any],
        find: Callable[[Message], PartitionState | None],
        rewind: Callable[[], None],
        shutdown: Shutdown,
    ) -> None:
        """Say whose transactions these are: `consumer` is the client of the group's member, `rewind` has all partitions
        begin again at what is committed.
        """
        self._consumer = consumer
        self._find = find
        self._rewind = rewind
        self._shutdown = shutdown

    def start(self, timeout_s: float | None, *, batch: bool, in_order: bool) -> None:
        """Have the brokers end what an earlier process with the same transactional id has begun.

        Raises WorkerError when they refuse, or do not answer within `timeout_s` (None waits for ever), and ConfigError
        for a `batch` handler whose batches are not in the order of offsets.
        """
        if batch and not in_order:
            raise ConfigError(
                "--exactly-once commits a batch as a whole, so a @batch handler needs --order partition: add that"
            )
        self._batch = batch
        client = self._make_client()
        started = time.monotonic()
        while not self._shutdown.requested:
            if self._init(client):
                self._client = client
                return
            client.poll(0)
            self._client_state.check()
            if timeout_s is not None and time.monotonic() - started >= timeout_s:
                raise WorkerError(
                    f"transactional id {self._id} was not taken up by the brokers within {timeout_s:g} s; check that "
                    "their transaction coordinator runs (topic __transaction_state)"
                )
        call_with_timeout(client.close, 0)

    # In the place of Outputs

    @property
    def full(self) -> bool:
        """Whether nothing more shall begin: a transaction is being aborted, or its retry is not due."""
        return self._aborts or self._replace_due or time.monotonic() < self._pause_until

    @property
    def only_next(self) -> bool:
        """Whether so much is held that only messages at the low-water mark shall begin, which let some of it go."""
        return self.messages >= MAX_MESSAGES or self.bytes >= MAX_BYTES

    def send(self, work: Work) -> None:
        """Hold the answers of a finished work until its messages are passed by the low-water mark."""
        state = work.partition
        assert isinstance(state, PartitionState)
        if self._failures:
            self._fail_again(state, work)
        if self._client is not None:
            for answer in work.answers:
                # A batch is done when all of it is.
                place = work.handled - 1 if self._batch else answer.place
                self._hold(state, work.received.offset(place), answer.outputs)
        work.answers.clear()

    def poll(self, timeout_s: float) -> None:
        """Hear of outputs under way; raises WorkerError when the client cannot go on."""
        self._serve(timeout_s)
        self._client_state.check()

    def take(self) -> list[Work]:
        return []

    def await_outcomes(self, until: float, partitions: Collection[Partition] | None = None) -> int:  # noqa: ARG002  (the interface)
        """Wait for nothing: `stage` with `now` does."""
        return 0

    def forsake(self, partitions: Collection[Partition]) -> None:
        """Forget partitions that have gone: what is in the transaction of them must not be committed any more."""
        for partition in partitions:
            held = self._held.get(partition.key)
            if held is not None and held.state is partition:
                self._drop(self._held.pop(partition.key))
            if self._touched.get(partition.key) is partition and not self._offsets_sent:
                self._abort_later(f"{partition} has gone to another member")

    def close(self, timeout_s: float) -> str | None:
        """End the client, and abort what is not committed; return what went wrong, or None."""
        client, self._client = self._client, None
        if client is None:
            return None
        unfinished = self._open
        if unfinished:
            try:
                client.abort_transaction(timeout_s)
            except KafkaException as error:
                log.debug("the last transaction was not aborted: %s", error)
        call_with_timeout(client.close, timeout_s)
        return "the last transaction was not committed; its messages are redelivered" if unfinished else None

    # In the place of StoredOffsets

    @property
    def due_s(self) -> float:
        """In how many seconds `stage` has something to do."""
        now = time.monotonic()
        if self._aborts or self._marks or self._replace_due:
            return LOOK_S
        if now < self._pause_until:
            return self._pause_until - now
        return max(0.0, self._begun_at + self._interval_s - now) if self._open else float("inf")

    @property
    def pending(self) -> bool:
        """Whether there is something that only a later `stage` commits, or has handled again."""
        return self._open or self._aborts or self._replace_due

    def forgotten(self) -> bool:
        """Whether the group has refused our offsets for too long, as StoredOffsets.forgotten."""
        since = self.forgotten_since
        if since is None or time.monotonic() - since <= FORGOTTEN_S:
            return False
        self.forgotten_since = None
        return True

    def stage(self, states: Collection[PartitionState], *, now: bool = False) -> None:
        """Write the outputs of messages that the low-water marks have passed, and commit when it is time to.

        With `now` all of it is committed before it returns, if the brokers take it in time. Raises WorkerError when the
        client cannot go on.
        """
        if self._client is None:
            return
        self._renewal_due = self._watch.refresh(self._client) or self._renewal_due
        if self._aborts or self._replace_due:
            # Not inside of a rebalance: the partitions begin anew afterwards.
            if not now:
                self._end_aborted()
            return
        deadline = time.monotonic() + (min(NOW_S, max(0.5, self._shutdown.remaining_s())) if now else SLICE_S)
        while True:
            if not self._marks:
                self._write(states)
                due = now or time.monotonic() - self._begun_at >= self._interval_s
                if not self._open or not due or self._aborts:
                    break
                self._mark()
            if not self._commit(deadline):
                break
            if not now:
                break
        if now and self._marks and not self._offsets_sent:
            # Others are about to own the partitions. Where offsets were sent, brokers have the next owner wait.
            self._abort_later("the transaction was not committed in time")
        if self._renewal_due and not self._open and not now:
            self._replace_due = True
        self._client_state.check()

    # Outputs

    def hold_dead_letter(self, message: Message, topic: str, headers: list[Any]) -> None:
        """Hold the dead letter of a message, as an output of it."""
        state = self._find(message)
        if state is None or self._client is None:
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
        """Have a work fail at a message whose outputs brokers have refused before, where that was the last attempt, or
        where the batch has others besides.
        """
        if self._batch:
            found = [
                failure
                for place in range(work.handled)
                if (failure := self._failures.get((state.key, work.received.offset(place)))) is not None
                and (failure.condemned or len(work) > 1)
            ]
            if found:
                self._fail(work, 0, found[0])
            return
        for answer in work.answers:
            failure = self._failures.get((state.key, work.received.offset(answer.place)))
            if failure is not None and failure.condemned:
                self._fail(work, answer.place, failure)
                return

    def _fail(self, work: Work, place: int, failure: _Failure) -> None:
        work.handled, work.error = place, failure.error
        work.earlier_attempts = failure.attempts - 1
        while work.answers and work.answers[-1].place >= place:
            work.answers.pop()

    def _write(self, states: Collection[PartitionState]) -> None:
        for state in states:
            if state.dirty:
                self._pass(state)
        self._send_what_fits()

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
            self._queue.extend((state.key, offset, output) for output in held.outputs.pop(offset))

    def _begin(self) -> bool:
        if not self._open and not self._aborts:
            try:
                self._client.begin_transaction()
            except KafkaException as raised:
                self._on_refusal(raised.args[0])
            else:
                self._open, self._begun_at = True, time.monotonic()
        return self._open

    def _send_what_fits(self) -> None:
        while self._queue and not self._aborts and len(self._client) < MAX_MESSAGES:
            key, offset, output = self._queue[0]
            record, on_delivery = output.record, partial(self._on_delivery, key, offset, output)
            try:
                self._client.produce(
                    output.topic,
                    record["value"],
                    record["key"],
                    partition=record.get("partition", -1),
                    timestamp=record.get("timestamp", 0),
                    headers=record.get("headers", []),
                    on_delivery=on_delivery,
                )
            except BufferError:
                return
            except KafkaException as error:
                on_delivery(error.args[0], Message(topic=output.topic))
            self._queue.popleft()

    def _on_delivery(self, key: Key, offset: int, output: Output, error: KafkaError | None, message: Message) -> None:
        """The delivery report, from inside calls of the client: it takes notes, and raises nothing."""
        self.messages -= 1
        self.bytes -= output.size
        if error is None:
            self._written[output.topic] += 1
            if self._written[output.topic] % LATENCY_SAMPLE == 1:
                self._deliveries(output.topic).latencies.add(message.latency() or 0.0)
            return
        if error.code() in PURGED:
            return
        failure = failure_of(error, output)
        if isinstance(failure, Retry) or error.fatal():
            # Brokers are away, or the transaction has failed: no message's fault.
            self._abort_later(str(failure))
            return
        deliveries = self._deliveries(output.topic)
        deliveries.enqueued += 1
        deliveries.on_delivery(error, message)
        self._blame(key, offset, output, error, failure)

    def _blame(self, key: Key, offset: int, output: Output, error: KafkaError, failure: Exception) -> None:
        """Count a failed attempt of the message whose output was refused, and decide what becomes of it."""
        self._abort_later(str(failure))
        if (key, offset) in self._blamed:
            return
        self._blamed.add((key, offset))
        known = self._failures.get((key, offset))
        attempts = 1 if known is None else known.attempts + 1
        where = f"{key[0]}[{key[1]}] offset {offset}"
        jitter = random.random()  # noqa: S311  (not a secret)
        decision = decide(
            self._policy, failure, messages=1, attempts=attempts, backoff_step=attempts, jitter=jitter
        )  # fmt: skip
        if (key, offset) in self._dead_letters:
            if error.code() in TOO_LARGE:
                self._client_state.fatal = WorkerError(
                    f"stopping at {where}, as nothing is skipped: topic {output.topic} takes no dead letter of that "
                    f"size, raise its max.message.bytes: {error.str()}"
                )
            self._pause_until = time.monotonic() + self._policy.pause_s(attempts, jitter)
        elif isinstance(decision, Stop):
            self._client_state.fatal = WorkerError(
                f"stopping as --on-error says: {where}, attempt {attempts}: {failure}"
            )
        elif isinstance(decision, RetryLater):
            self._pause_until = time.monotonic() + decision.pause_s
        log.warning("%s: attempt %d failed, its transaction is aborted: %s", where, attempts, failure)
        self._failures[key, offset] = _Failure(attempts, failure, isinstance(decision, SendDeadLetter))

    def _deliveries(self, topic: str) -> Deliveries:
        known = self.topics.get(topic)
        if known is None:
            known = self.topics[topic] = Deliveries(topic)
        return known

    # Commit and abort

    def _mark(self) -> None:
        """Fix which offsets are committed: those of all partitions that have outputs in the transaction."""
        for state in self._touched.values():
            # Their marks may have moved on since their outputs were written.
            if state.dirty:
                self._pass(state)
        self._marks = [
            _Mark(state, state.to_commit(ahead=False), state.uncommitted - state.tracker.distance)
            for state in self._touched.values()
        ]

    def _commit(self, deadline: float) -> bool:
        """Go on with the commit; return whether it is done."""
        while self._queue and not self._aborts and time.monotonic() < deadline:
            self._send_what_fits()
            if self._queue:
                self._serve(LOOK_S)
        if self._queue or self._aborts:
            return False
        if not self._send_offsets(deadline) or not self._ask(self._client.commit_transaction, deadline):
            return False
        self._on_committed()
        return True

    def _send_offsets(self, deadline: float) -> bool:
        if not self._offsets_sent:
            places = [mark.place for mark in self._marks]
            member = self._consumer().consumer_group_metadata()
            send = partial(self._client.send_offsets_to_transaction, places, member)
            self._offsets_sent = self._ask(send, deadline)
        return self._offsets_sent and not self._aborts

    def _on_committed(self) -> None:
        self.successes += 1
        self.forgotten_since = None
        for topic, count in self._written.items():
            deliveries = self._deliveries(topic)
            deliveries.enqueued += count
            deliveries.acknowledged += count
        for mark in self._marks:
            mark.state.uncommitted -= mark.messages
            mark.state.restart_at = None
            mark.state.rewound = False
        if self._failures or self._dead_letters:
            passed = {mark.state.key: mark.place.offset for mark in self._marks}
            self._failures = {
                (key, offset): failure
                for (key, offset), failure in self._failures.items()
                if offset >= passed.get(key, 0)
            }
            self._dead_letters = {(key, offset) for key, offset in self._dead_letters if offset >= passed.get(key, 0)}
        self._clear()

    def _clear(self) -> None:
        self._open = self._offsets_sent = False
        self._touched.clear()
        self._marks.clear()
        self._written.clear()
        self._blamed.clear()

    @property
    def _aborts(self) -> bool:
        return self._abort_reason is not None

    def _abort_later(self, reason: str) -> None:
        if self._abort_reason is None:
            self._abort_reason = reason

    def _end_aborted(self) -> None:
        """Abort the transaction, or have another client take the place of a fenced one; then begin anew."""
        if self._aborts and not self._replace_due and self._open:
            deadline = time.monotonic() + SLICE_S
            if not self._ask(self._client.abort_transaction, deadline):
                self._client_state.check()
                return
        if self._replace_due and not self._replace():
            self._client_state.check()
            return
        self._client_state.check()
        reason, self._abort_reason = self._abort_reason, None
        if reason is None:
            return
        self.failures += 1
        self._client_state.say("aborted", f"a transaction was aborted, its messages are handled again: {reason}")
        self._clear()
        for _, _, output in self._queue:
            self.messages -= 1
            self.bytes -= output.size
        self._queue.clear()
        for held in self._held.values():
            self._drop(held)
        self._held.clear()
        self._dead_letters.clear()
        self._rewind()

    def _ask(self, call: Callable[[float], object], deadline: float) -> bool:
        """Make one call of the transaction; return whether it has succeeded. What has timed out is asked again."""
        try:
            call(max(0.05, deadline - time.monotonic()))
        except KafkaException as raised:
            self._on_refusal(raised.args[0])
            return False
        return True

    def _on_refusal(self, error: KafkaError) -> None:
        if error.code() in FORGOTTEN:
            self.forgotten_since = self.forgotten_since or time.monotonic()
        if error.code() in FENCED:
            self._on_fenced(error)
        elif error.fatal():
            self._client_state.fatal = WorkerError(f"transactional id {self._id}: {error.str()}")
        elif error.txn_requires_abort():
            self._abort_later(error.str())
        elif error.retriable() or error.code() == KafkaError._TIMED_OUT:
            self._client_state.say("transaction", f"the brokers have not answered yet, asking again: {error.str()}")
        else:
            self._on_fenced(error)

    def _on_fenced(self, error: KafkaError) -> None:
        """Brokers end a transaction that lasts longer than its timeout. Then, and only then, another client goes on."""
        if self._replace_due:
            return
        if time.monotonic() - self._fenced_at < FENCED_AGAIN_S:
            self._client_state.fatal = WorkerError(
                f"another process has transactional id {self._id} too, or transactions take longer than "
                f"transaction.timeout.ms; give each process its own --transactional-id: {error.str()}"
            )
            return
        self._fenced_at = time.monotonic()
        self._replace_due = True
        self._abort_later(error.str())

    # The client

    def _serve(self, timeout_s: float) -> None:
        if self._client is None:
            return
        try:
            self._client.poll(timeout_s)
        except KafkaException as error:
            # So the binding tells of a fatal error.
            self._on_refusal(error.args[0])

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal() and error.code() in FENCED:
            self._on_fenced(error)
        else:
            self._client_state.on_error(error)

    def _make_client(self) -> Any:
        own = {
            **self._client_state.callbacks(), **ANY_SIZE, "error_cb": self._on_error, "transactional.id": self._id
        }  # fmt: skip
        return self._connect(own)

    def _init(self, client: Any) -> bool:
        """Have the brokers take up the transactional id; return whether they have."""
        try:
            client.init_transactions(INIT_SLICE_S)
        except KafkaException as raised:
            error = raised.args[0]
            if error.code() in REFUSED:
                raise WorkerError(
                    f"the user has no right to transactional id {self._id}; grant Write and Describe on it, or on a "
                    f"prefix of it: {error.str()}",
                    ExitCode.USAGE,
                ) from None
            if not error.retriable() and error.code() != KafkaError._TIMED_OUT:
                raise WorkerError(f"the brokers take no transactions of id {self._id}: {error.str()}") from None
            self._client_state.say("transaction", f"transactional id {self._id} is not taken up yet: {error.str()}")
            return False
        return True

    def _replace(self) -> bool:
        """Have a new client go on where this one cannot; return whether it does."""
        if self._fresh is None:
            if self._renewal_due:
                self._fresh = self._watch.connect(self._make_client)
                if self._fresh is None:
                    self._renewal_due = self._replace_due = False
                    return False
            else:
                self._fresh = self._make_client()
        if not self._init(self._fresh):
            return False
        call_with_timeout(self._client.close, 0)
        self._client, self._fresh = self._fresh, None
        if self._renewal_due:
            self._watch.renewed()
        self._renewal_due = self._replace_due = False
        self._open = False
        return True


class HeldDeadLetters(DeadLetters):
    """Dead letters that are written in the transaction: they are as good as delivered when it holds them."""

    def __init__(self, topic: str | None, group_id: str, transaction: Transaction) -> None:
        self._topic = topic
        self._group_id = group_id
        self._transaction = transaction

    def send(self, message: Message, error: BaseException, attempts: int) -> DeadLetter:
        headers = dead_letter_headers(message, self._group_id, error, attempts)
        self._transaction.hold_dead_letter(message, self.topic_for(message), headers)
        dead_letter = DeadLetter()
        dead_letter.delivered = True
        return dead_letter

    def poll(self, timeout_s: float) -> None: ...

    def close(self, timeout_s: float) -> None: ...
