"""The consumer's loop: receive messages, have them handled, commit what was handled.

    poll -> Assignment.buffer -> Scheduler.take -> Executor -> decide -> Assignment.complete -> StoredOffsets.stage

At least once: an offset becomes committable only after the handler returned for its message and for all before it. A
message whose handler fails is tried again after a growing pause; meanwhile the others of its partition, or of its key,
wait and all else goes on. The loop keeps polling however long a handler takes, so the group does not lose this member.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from workers.config import ClientConfig
from workers.consumer.assignment import Assignment, PartitionState, names
from workers.consumer.batching import BatchSize
from workers.consumer.committing import StoredOffsets
from workers.consumer.execution import Executor
from workers.consumer.failures import ErrorPolicy, Isolate, RetryLater, SendDeadLetter, decide
from workers.consumer.fetching import FetchWatch
from workers.consumer.scheduling import Order, Scheduler, Shard, Work
from workers.consumer.starting import Starts
from workers.consumer.status import ConsumerStatus, PartitionStatus
from workers.deadletters.writer import DeadLetter, DeadLetters
from workers.errors import ConfigError, WorkerError
from workers.handlers import Lifespan, OutputClosedError, OutputError, Retry
from workers.kafka.client import ClientState, create_client, wait_for_topics
from workers.kafka.credentials import CredentialsWatch
from workers.kafka.statistics import Statistics
from workers.kafka.watermarks import Watermarks
from workers.lifecycle import Shutdown, call_with_timeout
from workers.loading import named

log = logging.getLogger(__name__)

BATCH_MESSAGES = 2000
# So much may wait for the handler, about.
MAX_WAITING_BYTES = 64 * 1024 * 1024
# So far may the messages of a partition be ahead of its low-water mark, done or not.
MAX_DISTANCE_MESSAGES = 10_000
# A signal is noticed when a poll returns.
POLL_S = 0.2
# While the handler is busy the loop turns at this interval.
KEEP_ALIVE_S = 0.1
# With --concurrency, messages are looked for at this interval while handlers are at work and more could be.
ACTIVE_POLL_S = 0.005
# After so long the handler is to come back when it is done with its message: a retry may be due, or other partitions.
SLICE_S = 0.5
# When nothing was handled for so long and enough waits, all partitions are paused: each turn takes a message from the
# client, and these would pile up. Not sooner, as a client that pauses throws away what it has fetched.
PAUSE_AFTER_S = 10.0
# How long a rebalance waits for the messages at hand; then they are redelivered to the next owner.
REVOKE_WAIT_S = 10.0
# How long a stop waits for dead letters that are under way.
DEAD_LETTERS_TIMEOUT_S = 5.0
STATISTICS_AGE_S = 15.0
STATUS_INTERVAL_S = 0.25


class Consumer:
    """One member of a group: `start`, then `run`. `status` is there at any time, for whoever watches."""

    def __init__(
        self,
        config: ClientConfig,
        topics: Sequence[str],
        lifespan: Lifespan,
        shutdown: Shutdown,
        *,
        policy: ErrorPolicy,
        dead_letters: DeadLetters,
        watermarks: Watermarks,
        max_messages: int | None = None,
        idle_timeout_s: float | None = None,
        stall_timeout_s: float = 300.0,
        concurrency: int = 1,
        order: Order = "partition",
        batch_size: int = BATCH_MESSAGES,
        max_distance: int = MAX_DISTANCE_MESSAGES,
        stop_on_deleted: bool = False,
        auth_timeout_s: float = 0.0,
        connect: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self.client_state = ClientState(config, auth_timeout_s)
        self.group_id = config.get("group.id")
        self.assignment = Assignment(topics, in_order=order == "partition")
        self.status = ConsumerStatus(topics=self.assignment.topics)
        self.trouble: str | None = None
        self._config = config
        self._topics = list(topics)
        self._shutdown = shutdown
        self._policy = policy
        self._dead_letters = dead_letters
        self._watermarks = watermarks
        self._max_messages = max_messages
        self._idle_timeout_s = idle_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._max_distance = max_distance
        self._scheduler = Scheduler(order)
        self._executor = Executor(lifespan, concurrency)
        self._batch_size = BatchSize(batch_size)
        self._committer = StoredOffsets(lambda: self._client, self.client_state.say)
        self._starts = Starts(config, stop_on_deleted=stop_on_deleted)
        self._fetching = FetchWatch()
        self._rebalances = {"assign": 0, "revoke": 0, "lost": 0}
        self._joined = False
        self._noted: Statistics | None = None
        self._idle_since = 0.0
        # Before the loop begins there is nothing to be stuck: brokers and the handler's start are waited for.
        self._turned_at = float("inf")
        self._published_at = float("-inf")
        self._progress_at = 0.0
        self._broker_assigns = config.get("group.protocol") == "consumer"
        # Strategies other than cooperative-sticky take everything away in a rebalance and give it back.
        strategy = config.get("partition.assignment.strategy", "cooperative-sticky")
        self._eager = not self._broker_assigns and strategy != "cooperative-sticky"
        self._credentials = CredentialsWatch(config, self.client_state)
        self._connect = connect or (
            lambda own: create_client(confluent_kafka.Consumer, config, own, self._credentials.credentials)
        )
        self._client = self._connect(self._own_properties())

    def _own_properties(self) -> dict[str, Any]:
        return {
            **self.client_state.callbacks(),
            "on_commit": self._on_commit,
            "enable.partition.eof": True,
            # librdkafka would move on without a word where retention, truncation or a new topic took the offset away;
            # `Starts` decides, counts and says so.
            "auto.offset.reset": "error",
        }

    def start(self, timeout_s: float | None) -> None:
        """Wait for the brokers and the topics, and start the handler; raises as `wait_for_topics` does."""
        self._starts.partition_counts = wait_for_topics(
            self._client,
            self._topics,
            self._config,
            self.client_state,
            timeout_s=timeout_s,
            shutdown=self._shutdown,
            refresh=self._refreshed,
        )
        if self._policy.on_error != "stop" and not self._shutdown.requested:
            self._dead_letters.check(self._client, self._topics)
        self._executor.start(self._shutdown)
        self._scheduler.batches = self._executor.batch
        self._watermarks.start()

    def run(self) -> None:
        """Handle messages until a stop is asked for or the limits are reached; raises WorkerError when it cannot go
        on.
        """
        self._turned_at = self._idle_since = self._progress_at = time.monotonic()
        if not self._shutdown.requested:
            self._subscribe()
        try:
            while not self._finished():
                self._receive()
                self._collect()
                self._dispatch()
                self._maintain()
        except KafkaException as error:
            # So the binding tells of a fatal error; it has no callback for it.
            raise WorkerError(f"the Kafka client cannot go on: {error.args[0].str()}") from None
        finally:
            self._leave()

    # What others ask from their threads

    def ready(self) -> str | None:
        """Why this member is not ready, or None: it knows its brokers and has joined its group, even with no
        partition.
        """
        statistics = self.client_state.statistics
        if statistics is None:
            return "no statistics yet"
        if time.time() - statistics.timestamp_s > STATISTICS_AGE_S:
            return "the poll loop is not turning"
        if not statistics.brokers_up:
            return self.client_state.refused() or "no broker can be reached"
        if not self.status.joined:
            return f"has not joined group {self.group_id} yet"
        return None

    def live(self) -> str | None:
        """What is stuck, or None. Waiting for brokers, for one's turn or for a retry is not being stuck."""
        return self.status.stalled(self._stall_timeout_s)

    # The loop

    def _subscribe(self) -> None:
        self._client.subscribe(
            self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _finished(self) -> bool:
        self._note_the_turn()
        if self._shutdown.requested:
            return True
        if self._max_messages is not None and self.assignment.handled >= self._max_messages:
            return True
        if not self._joined or any(state.count for state in self.assignment.partitions.values()):
            # Before that nothing can come, and to a partition that is paused nothing does.
            self._idle_since = time.monotonic()
        return self._idle_timeout_s is not None and time.monotonic() - self._idle_since > self._idle_timeout_s

    def _receive(self) -> None:
        """Take what has arrived. `consume` alone would wait for a full batch, so the first message is polled for."""
        first = self._client.poll(self._poll_timeout_s())
        if first is None:
            self._fetching.drained_at = time.monotonic()
            return
        if self._full():
            # The handler does not keep up: what it has yet to do must not pile up here.
            self._take([first])
            return
        before = self.assignment.find(first)
        following = self._client.consume(BATCH_MESSAGES - 1, 0)
        # A rebalance can happen in there. What a partition had before it comes again, if the partition comes again.
        self._take([first, *following] if self.assignment.find(first) is before else following)

    def _poll_timeout_s(self) -> float:
        if self._executor.in_flight:
            # The handler's end is waited for, not more messages, unless it could be given more at once.
            return ACTIVE_POLL_S if self._free_slots() and self._executor.concurrency > 1 else 0.0
        if self._scheduler.runnable and self._room() != 0:
            return 0.0
        timeout_s = POLL_S
        retry_s = self._scheduler.next_retry_s()
        if retry_s is not None:
            timeout_s = min(timeout_s, retry_s)
        if any(shard.dead_letter is not None for shard in self._scheduler.dead_letters):
            timeout_s = min(timeout_s, 0.01)
        return timeout_s

    def _full(self) -> bool:
        """Whether enough waits that the handler can be given, and does not have in its hands yet."""
        ready = [state for state in self.assignment.partitions.values() if not self._scheduler.blocks(state)]
        in_hand = sum(len(work) - work.accounted for work in self._executor.in_flight)
        beyond = sum(state.tracker.distance for state in ready)
        waiting = sum(state.count for state in ready) - in_hand - beyond
        return waiting >= self._enough() or sum(state.bytes for state in ready) >= MAX_WAITING_BYTES

    def _enough(self) -> int:
        return (
            BATCH_MESSAGES if self._executor.concurrency == 1 else max(BATCH_MESSAGES, 40 * self._executor.concurrency)
        )

    def _holds_too_much(self, state: PartitionState) -> bool:
        most = 2 * BATCH_MESSAGES if state.in_order else self._max_distance
        return state.count >= most or state.bytes >= self._share_bytes()

    def _share_bytes(self) -> int:
        return MAX_WAITING_BYTES // len(self.assignment.partitions)

    def _take(self, messages: list[Message]) -> None:
        others: list[Message] = []
        if any(map(Message.error, messages)):
            others = [message for message in messages if message.error()]
            messages = [message for message in messages if not message.error()]
        if messages:
            self._idle_since = time.monotonic()
            for state, received in self.assignment.buffer(messages):
                self._scheduler.add(state, received)
                if not state.in_order and self._holds_too_much(state):
                    # Not only while the handler is busy: quick ones would run ahead of a poisoned message without end.
                    self._pause([state])
        for other in others:
            self._on_event(other)

    def _on_event(self, message: Message) -> None:
        """Take what is no message: an error, or that all of a partition was read."""
        error = message.error()
        assert error is not None
        state = self.assignment.find(message)
        if error.code() == KafkaError._PARTITION_EOF:
            if state is not None:
                self.assignment.end_of_partition(state, message.offset() or 0)
        elif error.code() == KafkaError._AUTO_OFFSET_RESET:
            if state is not None:
                self._starts.need(state, error, message.offset())
        else:
            self.client_state.on_error(error)

    def _collect(self) -> None:
        """Account for what the handler is done with; while it is busy, wait for it a moment."""
        if not self._executor.in_flight:
            return
        wait = self._executor.concurrency == 1 or not self._free_slots() or not self._scheduler.runnable
        timeout_s = KEEP_ALIVE_S if wait and not self._active() else 0.0
        # Those that were not handled yet are first again: their partitions have waited while the others' were.
        for work in sorted(self._executor.collect(timeout_s), key=lambda work: work.handled > 0):
            self._settle(work)
        if self._executor.in_flight:
            self._keep_alive()

    def _active(self) -> bool:
        """Whether messages are waited for in `poll`, not results here: handlers are at work and more could be."""
        return self._executor.concurrency > 1 and self._free_slots() > 0 and not self._full()

    def _settle(self, work: Work) -> None:
        """Account for a finished work, and decide about what failed."""
        self._account(work)
        self._scheduler.release(work)
        if self._executor.batch and work.begun_at is not None and work.error is None:
            self._batch_size.took(len(work), time.monotonic() - work.begun_at)
        if not work.partition.owned:
            return
        if work.error is not None:
            self._on_failure(work, work.error)
            return
        for shard in work.shards:
            self._scheduler.resume(shard)

    def _account(self, work: Work, *, revoked: bool = False) -> None:
        handled = work.handled
        if handled == work.accounted:
            return
        self._progress_at = work.progress_at = time.monotonic()
        state = work.partition
        assert isinstance(state, PartitionState)
        self.assignment.complete(state, work.received, work.accounted, handled, revoked=revoked)
        work.accounted = handled

    def _keep_alive(self) -> None:
        """One turn while the handler is busy: progress is accounted for, and others get their turn."""
        now = time.monotonic()
        for work in self._executor.in_flight:
            self._account(work)
            if work.begun_at is not None and now - work.begun_at > SLICE_S:
                work.interrupted = True
        hangs = now - self._progress_at > PAUSE_AFTER_S and self._full()
        self._pause([state for state in self.assignment.partitions.values() if hangs or self._holds_too_much(state)])
        self._executor.warn_if_blocked()
        if self._shutdown.requested:
            self._executor.interrupt()

    def _dispatch(self) -> None:
        """Give the handler what may be handled now; it works while the loop goes on to receive."""
        works: list[Work] = []
        room = self._room()
        size = self._work_size()
        for _ in range(self._free_slots()):
            work = self._scheduler.take(size, room)
            if work is None:
                break
            works.append(work)
            if room is not None:
                room -= len(work)
        if works:
            if not self._executor.in_flight:
                self._progress_at = time.monotonic()
            self._executor.submit(works)

    def _work_size(self) -> int:
        """How many messages a work may have."""
        if not self._executor.batch:
            return BATCH_MESSAGES
        # Several batches at once share what waits.
        waiting = sum(state.count for state in self.assignment.partitions.values())
        return max(1, min(self._batch_size.messages, -(-waiting // self._executor.concurrency)))

    def _free_slots(self) -> int:
        """How many works the handler can be given: one for each partition to one thread, two for each call to more, so
        that the next is there when one ends.
        """
        concurrency = self._executor.concurrency
        most = len(self.assignment.partitions) if concurrency == 1 else 2 * concurrency
        return max(0, most - len(self._executor.in_flight))

    def _room(self) -> int | None:
        """How many messages may still be begun (--max-messages), None without a limit."""
        if self._max_messages is None:
            return None
        begun = sum(len(work) - work.accounted for work in self._executor.in_flight)
        return self._max_messages - self.assignment.handled - begun - len(self._scheduler.dead_letters)

    # Failures

    def _on_failure(self, work: Work, error: Exception) -> None:
        """Decide what becomes of the messages for which the handler raised: the first that was not handled, or all of a
        batch.
        """
        if isinstance(error, OutputClosedError):
            self._shutdown.request()
            return
        if isinstance(error, OutputError):
            raise WorkerError(f"standard output cannot be written: {error}; what was not printed is redelivered")
        state = work.partition
        assert isinstance(state, PartitionState)
        work.received.part(work.handled).restore(state.topic.name)
        messages = len(work) if self._executor.batch else 1
        isolated = False
        for shard, part in zip(work.shards, work.parts, strict=True):
            shard.backoff_step += 1
            shard.attempts += not isinstance(error, Retry)
            decision = decide(
                self._policy,
                error,
                messages=messages,
                attempts=shard.attempts,
                backoff_step=shard.backoff_step,
                jitter=random.random(),  # noqa: S311  (not a secret)
            )
            where = f"{state} offset {work.received.offset(work.handled)}"
            if isinstance(decision, Isolate):
                # The batch's failure is nobody's own yet.
                shard.forget_failures()
                shard.isolating = len(part)
                self._scheduler.resume(shard)
                isolated = True
            elif isinstance(decision, RetryLater):
                state.topic.retried += 1
                log.warning(
                    "%s: attempt %d failed, next in %.1f s: %s",
                    where,
                    shard.backoff_step,
                    decision.pause_s,
                    named(error),
                )
                self._block(state, shard, decision.pause_s)
            elif isinstance(decision, SendDeadLetter):
                log.warning("%s: to the dead-letter topic after %d attempts: %s", where, shard.attempts, named(error))
                self._scheduler.condemn(shard, error)
                self._send_dead_letter(state, shard)
            else:
                raise WorkerError(
                    f"stopping as --on-error says: handler failed at {where}, attempt {shard.attempts}: {named(error)}"
                )
        if isolated:
            log.info("%s: a batch of %d failed (%s), trying its messages one by one", state, messages, named(error))

    def _block(self, state: PartitionState, shard: Shard, pause_s: float) -> None:
        self._scheduler.block(shard, time.monotonic() + pause_s)
        if state.in_order:
            self._pause([state])
            self._give_back(state)

    def _give_back(self, state: PartitionState) -> None:
        """Leave to the client what is beyond a blocked partition's share, to be received again: other partitions go on,
        and fail in their turn when it is what the handler needs that is away.
        """
        fit = max(1, state.count * self._share_bytes() // max(1, state.bytes))
        if fit >= state.count:
            return
        beyond = self._scheduler.cut(state, fit)
        if beyond is None:
            return
        try:
            self._client.seek(state.topic_partition(beyond.offset(0)))
        except KafkaException as error:
            log.debug("%s: kept, and not left to the client: %s", state, error)
            self._scheduler.add(state, beyond)
            return
        self.assignment.give_back(state, beyond)

    def _send_dead_letter(self, state: PartitionState, shard: Shard) -> None:
        assert shard.error is not None
        if state.in_order:
            self._pause([state])
        shard.dead_letter = self._dead_letters.send(shard.queue[0].messages[0], shard.error, shard.attempts)

    def _look_after_dead_letters(self) -> None:
        """Hear of dead letters that are under way, and send those again that were not written."""
        self._dead_letters.poll(0)
        for shard in [*self._scheduler.dead_letters]:
            state = shard.partition
            assert isinstance(state, PartitionState)
            if isinstance(shard.dead_letter, DeadLetter):
                self._on_dead_letter(state, shard, shard.dead_letter)
            elif shard.retry_at <= time.monotonic():
                self._send_dead_letter(state, shard)

    def _on_dead_letter(self, state: PartitionState, shard: Shard, letter: DeadLetter) -> None:
        if letter.delivered is None:
            return
        shard.dead_letter = None
        if letter.delivered:
            first = self._scheduler.absolve(shard)
            state.topic.dead_lettered += 1
            self._progress_at = time.monotonic()
            self.assignment.complete(state, first, 0, 1)
            return
        message = shard.queue[0].messages[0]
        topic = self._dead_letters.topic_for(message)
        if letter.too_large:
            raise WorkerError(
                f"stopping at {state} offset {message.offset()}, as nothing is skipped: topic {topic} takes no dead "
                f"letter of that size, raise its max.message.bytes: {letter.error}"
            )
        shard.backoff_step += 1
        pause_s = self._policy.pause_s(shard.backoff_step, random.random())  # noqa: S311  (not a secret)
        log.error(
            "%s offset %s: not written to the dead-letter topic %s, next try in %.1f s, nothing is skipped: %s",
            state, message.offset(), topic, pause_s, letter.error,
        )  # fmt: skip
        shard.retry_at = time.monotonic() + pause_s
        if state.in_order:
            self._give_back(state)

    # What does not come from a message

    def _maintain(self) -> None:
        self.client_state.check()
        if self._credentials.refresh(self._client):
            self.renew()
        self._look_after_dead_letters()
        self._restart_partitions()
        self._resume()
        self._committer.stage(self.assignment.partitions.values())
        if self._committer.forgotten():
            log.warning("group %s does not know this member any more, joining again", self.group_id)
            self._client.unsubscribe()
            self._subscribe()

    def _restart_partitions(self) -> None:
        """Have partitions whose offset is not in the log any more begin where `Starts` says."""
        for start in self._starts.decided(self._client):
            state = start.state
            if start.anew:
                self._scheduler.drop(state)
                state = self.assignment.reset(state, start.offset)
            else:
                self.assignment.skip_to(state, start.offset)
            self._reassign(state, start.offset)
            if start.commit:
                self._committer.commit([state.to_commit()])
            self._committer.stage([state], now=True)

    def _reassign(self, state: PartitionState, offset: int) -> None:
        """Begin to fetch anew: a partition without a valid offset cannot be sought."""
        place = state.topic_partition(offset)
        if self._eager:
            others = [
                each.topic_partition(each.position if each.position is not None else confluent_kafka.OFFSET_INVALID)
                for each in self.assignment.partitions.values()
                if each is not state
            ]
            self._client.assign([place, *others])
            return
        self._client.incremental_unassign([place])
        self._client.incremental_assign([place])

    def _pause(self, states: list[PartitionState]) -> None:
        fetching = [state for state in states if not state.paused]
        if fetching:
            self._client.pause([state.topic_partition() for state in fetching])
            for state in fetching:
                state.paused = True

    def _resume(self) -> None:
        done = [state for state in self.assignment.partitions.values() if state.paused and self._has_room(state)]
        if done:
            self._client.resume([state.topic_partition() for state in done])
            for state in done:
                state.paused = False

    def _has_room(self, state: PartitionState) -> bool:
        """Whether a paused partition may be fetched again."""
        if state.in_order:
            return state.count == 0 and not self._scheduler.blocks(state)
        return state.count < self._max_distance // 2 and state.bytes < self._share_bytes() // 2

    def _note_the_turn(self) -> None:
        """What the probes and the metrics ask for."""
        now = self._turned_at = time.monotonic()
        statistics = self.client_state.statistics
        if statistics is not None and statistics is not self._noted:
            self._noted = statistics
            if statistics.coordinator_up and not self._joined:
                # A KIP-848 member that never owned a partition stays in the join state "init".
                self._joined = statistics.group_steady or self._broker_assigns
                self._published_at = float("-inf")
            for key, seen in statistics.partitions.items():
                state = self.assignment.partitions.get(key)
                # The last entry of a partition that began anew since is of its old log.
                if state is not None and not state.paused and seen.end_offset >= 0 and now - state.started_at > 2:
                    state.update_end_offset(seen.end_offset)
        if now - self._published_at >= STATUS_INTERVAL_S:
            self._published_at = now
            self._look_at_fetching(now)
            self._publish(now)

    def _look_at_fetching(self, now: float) -> None:
        """Note what brokers say of beginnings and ends, and heal partitions that are not fetched any more."""
        partitions = self.assignment.partitions
        self._watermarks.wanted = tuple(partitions)
        if self._fetching.note(partitions, self._watermarks):
            for state in self.assignment.of_other_topics(self._watermarks.topic_ids, self._watermarks.asked_at):
                self._starts.other_topic(state)
        for state in self._fetching.to_seek(partitions, now):
            try:
                self._client.seek(state.topic_partition(state.position or 0))
            except KafkaException as error:
                log.warning("%s: not sought to offset %s: %s", state, state.position, error)
        if self._fetching.rejoin_due(partitions, now):
            self.renew()

    def _publish(self, now: float) -> None:
        in_flight = self._executor.in_flight
        begun = [work.begun_at for work in in_flight if work.begun_at is not None]
        self.status = ConsumerStatus(
            at=now,
            joined=self._joined,
            stuck=self._stuck(now),
            partitions=tuple(map(self._partition_status, self.assignment.partitions.values())),
            topics=self.assignment.topics,
            handled=self.assignment.handled,
            rebalances=dict(self._rebalances),
            commits={"success": self._committer.successes, "failure": self._committer.failures},
            fetch_recoveries=dict(self._fetching.recoveries),
            in_flight=min(len(in_flight), self._executor.concurrency),
            waiting=sum(state.count for state in self.assignment.partitions.values()),
            buffered_bytes=sum(state.bytes for state in self.assignment.partitions.values()),
            shards=self._scheduler.shards(),
            blocked_shards=self._scheduler.blocked_shards(),
            oldest_in_flight_s=now - min(begun) if begun else 0.0,
            event_loop_lag_s=self._executor.loop_lag_s,
        )

    def _partition_status(self, state: PartitionState) -> PartitionStatus:
        handled = state.next_offset
        if handled is None:
            known = self.client_state.statistics.partitions if self.client_state.statistics is not None else {}
            handled = known[state.key].fetch_offset if state.key in known else -1
        messages = max(0, state.end_offset - handled) if state.end_offset >= 0 and handled >= 0 else None
        seconds = None if messages is None else state.age_s() if messages else 0.0
        stalled_s = self._fetching.stalled_s(state.key, time.monotonic())
        return PartitionStatus(*state.key, messages, seconds, state.tracker.distance, stalled_s)

    def _stuck(self, now: float) -> str | None:
        """What has made no progress for longer than the stall timeout, or None."""
        for work in self._executor.in_flight:
            if work.begun_at is not None and now - max(work.begun_at, work.progress_at) > self._stall_timeout_s:
                return (
                    f"{work.partition} has made no progress for {now - max(work.begun_at, work.progress_at):.0f} s at "
                    f"offset {work.received.offset(min(work.handled, len(work) - 1))}: the handler has not returned"
                )
        waits = not self._executor.in_flight and self._scheduler.runnable and self._room() != 0
        if waits and now - self._progress_at > self._stall_timeout_s:
            return f"messages wait, and none was given to the handler for {now - self._progress_at:.0f} s"
        return self._fetching.stuck(self.assignment.partitions, now)

    # Rebalances: called from inside poll and close

    def _on_assign(self, client: Any, partitions: list[TopicPartition]) -> None:
        self._rebalances["assign"] += 1
        self._idle_since = time.monotonic()
        self._committer.forgotten_since = None
        assigned, begins = self._starts.at_assignment(client, partitions) if partitions else ([], [])
        self.assignment.assign(assigned)
        places = [*map(_without_metadata, assigned)]
        if self._eager:
            client.assign(places)
        else:
            client.incremental_assign(places)
        if begins:
            self._committer.commit(begins)
        self._watermarks.wanted = tuple(self.assignment.partitions)
        self._watermarks.ask()
        log.info("assigned %s", names(partitions) or "nothing: idle")

    def _on_revoke(self, client: Any, partitions: list[TopicPartition]) -> None:
        """Store what is handled by now. Unassigning commits it, and librdkafka joins again only after that.

        A commit of our own would block this thread, and signals with it, for as long as the coordinator is away
        (rd_kafka_assignment_serve_removals in librdkafka's rdkafka_assignment.c).
        """
        self._rebalances["revoke"] += 1
        revoked = self._take_away(partitions)
        self._await_works(revoked)
        self._committer.stage(revoked, now=True)
        self._unassign(client, partitions)
        log.info("revoked %s", names(partitions))

    def _await_works(self, states: Sequence[PartitionState]) -> None:
        """Wait for the messages at hand of some partitions, bounded, and account for them; no other is begun."""
        until = time.monotonic() + min(REVOKE_WAIT_S, max(0.5, self._shutdown.remaining_s()))
        works = [work for work in self._executor.in_flight if work.partition in states]
        late = []
        for work in works:
            # One that has not begun does not begin any more.
            while work.begun_at is not None and not work.finished and time.monotonic() < until:
                time.sleep(0.005)
            self._account(work, revoked=True)
            if work.begun_at is not None and not work.finished:
                late.append(work)
        if late:
            self._executor.forsake(late)

    def _on_lost(self, client: Any, partitions: list[TopicPartition]) -> None:
        """Others may own them already, so nothing is committed: what was handled since is redelivered there."""
        self._rebalances["lost"] += 1
        gone = self._take_away(partitions)
        self._executor.forsake([work for work in self._executor.in_flight if work.partition in gone])
        self._unassign(client, partitions)
        log.warning("lost %s: this member did not answer its group in time", names(partitions))

    def _take_away(self, partitions: list[TopicPartition]) -> list[PartitionState]:
        gone = self.assignment.remove(partitions)
        for state in gone:
            self._scheduler.drop(state)
            self._starts.forget(state)
        paused = [state.topic_partition() for state in gone if state.paused]
        if paused:
            # librdkafka keeps the pause of a partition that leaves: if it came back, nothing would be fetched from it.
            self._client.resume(paused)
        return gone

    def _unassign(self, client: Any, partitions: list[TopicPartition]) -> None:
        if self._eager:
            client.unassign()
        else:
            client.incremental_unassign(partitions)

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        self._committer.on_commit(error, partitions, self.assignment.partitions)

    # The end, and a new beginning

    def renew(self) -> None:
        """Leave the group cleanly, make a new client and join again: for credentials that have changed, and for a fetch
        that hangs. Called by the loop's thread. What is at hand is waited for as at a rebalance.
        """
        try:
            fresh = self._connect(self._own_properties())
        except ConfigError as error:
            self._credentials.postpone(error)
            return
        self._executor.interrupt()
        if not call_with_timeout(self._close_client, REVOKE_WAIT_S):
            raise WorkerError("the group was not left in time to join it anew; a restart joins it")
        # Where brokers do not answer, closing has called back for nothing.
        self._take_away([state.topic_partition() for state in self.assignment.partitions.values()])
        self._joined = False
        self._client = fresh
        self._renewed()
        self._subscribe()

    def _refreshed(self) -> Any:
        """The client to begin with: another one when its certificates have changed meanwhile."""
        if self._credentials.refresh(self._client):
            try:
                fresh = self._connect(self._own_properties())
            except ConfigError as error:
                self._credentials.postpone(error)
                return self._client
            call_with_timeout(self._client.close, 0.0)
            self._client = fresh
            self._renewed()
        return self._client

    def _renewed(self) -> None:
        self._credentials.renewed()
        self._watermarks.reconnect()

    def _leave(self) -> None:
        """End the handler, commit and leave the group, within what is left of the time to stop."""
        self._shutdown.request()
        self._watermarks.stop()
        self.trouble = self._executor.stop(self._shutdown.remaining_s())
        for work in self._executor.in_flight:
            self._account(work)
        try:
            self._await_dead_letters()
        except WorkerError as error:
            self.trouble = str(error)
        self._dead_letters.close(1.0)
        self._committer.stage(self.assignment.partitions.values(), now=True)
        left = call_with_timeout(self._close_client, max(1.0, self._shutdown.remaining_s()))
        if not left and self.trouble is None:
            self.trouble = "the group was not left in time; what was not committed is redelivered"
        self._publish(time.monotonic())

    def _await_dead_letters(self) -> None:
        """A dead letter that is under way is written all the same, so its message shall not be redelivered."""
        until = time.monotonic() + min(DEAD_LETTERS_TIMEOUT_S, self._shutdown.remaining_s())
        while self._dead_letters_under_way() and time.monotonic() < until and self.client_state.fatal is None:
            self._dead_letters.poll(0.05)
        for shard in [*self._scheduler.dead_letters]:
            state = shard.partition
            assert isinstance(state, PartitionState)
            if isinstance(shard.dead_letter, DeadLetter) and shard.dead_letter.delivered:
                self._on_dead_letter(state, shard, shard.dead_letter)

    def _dead_letters_under_way(self) -> bool:
        letters = [shard.dead_letter for shard in self._scheduler.dead_letters]
        return any(isinstance(letter, DeadLetter) and letter.delivered is None for letter in letters)

    def _close_client(self) -> None:
        # With cooperative-sticky, close() of librdkafka 2.16 sends no LeaveGroup for a member without partitions:
        # the group would wait for it until its session times out.
        self._client.unsubscribe()
        self._client.close()


def _without_metadata(each: TopicPartition) -> TopicPartition:
    """The same place for an assignment. With metadata librdkafka 2.16 leaks that at every commit, as it puts the stored
    offset's in its place (rd_kafka_topic_partition_list_set_offsets in rdkafka_partition.c).
    """
    epoch = -1 if each.leader_epoch is None else each.leader_epoch  # type: ignore[redundant-expr]  # it can be None
    return TopicPartition(each.topic, each.partition, each.offset, leader_epoch=epoch)
