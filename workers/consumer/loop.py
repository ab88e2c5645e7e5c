"""The consumer's loop: receive messages, have them handled, commit what was handled.

    poll -> Assignment.buffer -> Scheduler.take -> Executor -> decide -> Assignment.complete -> StoredOffsets.stage

At least once: an offset becomes committable only after the handler returned for its message and for all before it. A
message whose handler fails is tried again after a growing pause; meanwhile the others of its partition, or of its key,
wait and all else goes on. The loop keeps polling however long a handler takes, so the group does not lose this member.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from workers.config import ClientConfig
from workers.consumer.assignment import Assignment, Key, PartitionState
from workers.consumer.batching import BatchSize
from workers.consumer.committing import StoredOffsets
from workers.consumer.execution import Executor
from workers.consumer.failing import FailedMessages
from workers.consumer.failures import ErrorPolicy
from workers.consumer.fetching import FetchWatch
from workers.consumer.flow import BATCH_MESSAGES, MAX_DISTANCE_MESSAGES, FlowControl
from workers.consumer.membership import Membership
from workers.consumer.parts import Parts
from workers.consumer.scheduling import Order, Scheduler, Work
from workers.consumer.starting import Starts
from workers.consumer.status import ConsumerStatus, Publisher
from workers.deadletters.writer import DeadLetters
from workers.errors import WorkerError
from workers.handlers import Lifespan
from workers.kafka.client import ClientState, create_client, wait_for_topics
from workers.kafka.credentials import CredentialsWatch
from workers.kafka.statistics import Statistics
from workers.kafka.watermarks import Watermarks
from workers.lifecycle import Shutdown, call_with_timeout

log = logging.getLogger(__name__)

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
        self.group_id = config.get("group.id")
        self.client_state = ClientState(config, auth_timeout_s)
        self.trouble: str | None = None
        self._config = config
        self._topics = list(topics)
        self._policy = policy
        self._dead_letters = dead_letters
        self._max_messages = max_messages
        self._idle_timeout_s = idle_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._batch_size = BatchSize(batch_size)
        self._noted: Statistics | None = None
        self._idle_since = 0.0
        self._published_at = float("-inf")
        credentials = self._credentials = CredentialsWatch(config, self.client_state)
        own = {
            **self.client_state.callbacks(),
            "on_commit": self._on_commit,
            "enable.partition.eof": True,
            # librdkafka would move on without a word where retention, truncation or a new topic took the offset away;
            # `Starts` decides, counts and says so.
            "auto.offset.reset": "error",
        }
        make = connect or (lambda own: create_client(confluent_kafka.Consumer, config, own, credentials.credentials))
        parts = self._parts = Parts(
            client=make(own),
            client_state=self.client_state,
            assignment=Assignment(topics, in_order=order == "partition"),
            scheduler=Scheduler(order),
            executor=Executor(lifespan, concurrency),
            committer=StoredOffsets(lambda: parts.client, self.client_state.say),
            starts=Starts(config, stop_on_deleted=stop_on_deleted),
            fetching=FetchWatch(),
            watermarks=watermarks,
            shutdown=shutdown,
        )
        self._flow = FlowControl(parts, max_distance)
        self._failed = FailedMessages(parts, self._flow, policy, dead_letters)
        self._membership = Membership(
            parts, config, topics, credentials, connect=lambda: make(own), account=self._account
        )
        self._publisher = Publisher(parts, self._membership, stall_timeout_s)
        self.status = ConsumerStatus(topics=parts.assignment.topics)

    def start(self, timeout_s: float | None) -> None:
        """Wait for the brokers and the topics, and start the handler; raises as `wait_for_topics` does."""
        self._parts.starts.partition_counts = wait_for_topics(
            self._parts.client,
            self._topics,
            self._config,
            self.client_state,
            timeout_s=timeout_s,
            shutdown=self._parts.shutdown,
            refresh=self._membership.refreshed,
        )
        if self._policy.on_error != "stop" and not self._parts.shutdown.requested:
            self._dead_letters.check(self._parts.client, self._topics)
        self._parts.executor.start(self._parts.shutdown)
        self._parts.scheduler.batches = self._parts.executor.batch
        self._parts.watermarks.start()

    def run(self) -> None:
        """Handle messages until a stop is asked for or the limits are reached; raises WorkerError when it cannot go
        on.
        """
        self._idle_since = self._parts.assignment.progress_at = time.monotonic()
        if not self._parts.shutdown.requested:
            self._membership.join()
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
        refused = self.client_state.refused()
        if statistics is None:
            return refused or "no statistics yet"
        if time.time() - statistics.timestamp_s > STATISTICS_AGE_S:
            return "the poll loop is not turning"
        if not statistics.brokers_up:
            return refused or "no broker can be reached"
        if refused is not None:
            return refused
        if not self.status.joined:
            return f"has not joined group {self.group_id} yet"
        return None

    def live(self) -> str | None:
        """What is stuck, or None. Waiting for brokers, for one's turn or for a retry is not being stuck."""
        return self.status.stalled(self._stall_timeout_s)

    # Its turns

    def _finished(self) -> bool:
        self._note_the_turn()
        if self._parts.shutdown.requested:
            return True
        if self._max_messages is not None and self._parts.assignment.handled >= self._max_messages:
            return True
        if not self._membership.joined or any(state.count for state in self._parts.assignment.partitions.values()):
            # Before that nothing can come, and to a partition that is paused nothing does.
            self._idle_since = time.monotonic()
        idle_s = time.monotonic() - max(self._idle_since, self._membership.assigned_at)
        return self._idle_timeout_s is not None and idle_s > self._idle_timeout_s

    def _receive(self) -> None:
        """Take what has arrived. `consume` alone would wait for a full batch, so the first message is polled for."""
        first = self._parts.client.poll(self._poll_timeout_s())
        if first is None:
            self._parts.fetching.drained_at = time.monotonic()
            return
        if self._flow.full():
            # The handler does not keep up: what it has yet to do must not pile up here.
            self._take([first])
            return
        before = self._parts.assignment.find(first)
        following = self._parts.client.consume(self._flow.receive_limit - 1, 0)
        # A rebalance can happen in there. What a partition had before it comes again, if the partition comes again.
        self._take([first, *following] if self._parts.assignment.find(first) is before else following)

    def _poll_timeout_s(self) -> float:
        if self._parts.executor.in_flight:
            # The handler's end is waited for, not more messages, unless it could be given more at once.
            return ACTIVE_POLL_S if self._free_slots() and self._parts.executor.concurrency > 1 else 0.0
        if self._parts.scheduler.runnable and self._room() != 0:
            return 0.0
        timeout_s = POLL_S
        retry_s = self._parts.scheduler.next_retry_s()
        if retry_s is not None:
            timeout_s = min(timeout_s, retry_s)
        if any(shard.dead_letter is not None for shard in self._parts.scheduler.dead_letters):
            timeout_s = min(timeout_s, 0.01)
        return timeout_s

    def _take(self, messages: list[Message]) -> None:
        others: list[Message] = []
        if any(map(Message.error, messages)):
            others = [message for message in messages if message.error()]
            messages = [message for message in messages if not message.error()]
        if messages:
            self._idle_since = time.monotonic()
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
            self.client_state.on_error(error)

    def _collect(self) -> None:
        """Account for what the handler is done with; while it is busy, wait for it a moment."""
        if not self._parts.executor.in_flight:
            return
        wait = self._parts.executor.concurrency == 1 or not self._free_slots() or not self._parts.scheduler.runnable
        timeout_s = KEEP_ALIVE_S if wait and not self._active() else 0.0
        # Those that were not handled yet are first again: their partitions have waited while the others' were.
        finished = self._parts.executor.collect(timeout_s)
        for work in finished:
            # All of them first: what one has failed with may end the worker.
            self._account(work)
        for work in sorted(finished, key=lambda work: work.handled > 0):
            self._settle(work)
        self._flow.hangs = False
        if self._parts.executor.in_flight:
            self._keep_alive()

    def _active(self) -> bool:
        """Whether messages are waited for in `poll`, not results here: handlers are at work and more could be."""
        return self._parts.executor.concurrency > 1 and self._free_slots() > 0 and not self._flow.full()

    def _settle(self, work: Work) -> None:
        """Let the shards of a finished work run again, or decide about what failed."""
        self._parts.scheduler.release(work)
        if self._parts.executor.batch and work.begun_at is not None and work.error is None:
            self._batch_size.took(len(work), time.monotonic() - work.begun_at)
        if not work.partition.owned:
            return
        if work.error is not None:
            self._failed.on_failure(work, work.error)
            return
        for shard in work.shards:
            self._parts.scheduler.resume(shard)

    def _account(self, work: Work, revoked: bool = False) -> None:
        handled = work.handled
        if handled == work.accounted:
            return
        work.progress_at = time.monotonic()
        state = work.partition
        assert isinstance(state, PartitionState)
        self._parts.assignment.complete(state, work.received, work.accounted, handled, revoked=revoked)
        work.accounted = handled

    def _keep_alive(self) -> None:
        """One turn while the handler is busy: progress is accounted for, and others get their turn."""
        now = time.monotonic()
        for work in self._parts.executor.in_flight:
            self._account(work)
            if work.begun_at is not None and now - work.begun_at > SLICE_S:
                work.interrupted = True
        self._flow.hangs = now - self._parts.assignment.progress_at > PAUSE_AFTER_S and self._flow.full()
        self._flow.pause(
            [
                state
                for state in self._parts.assignment.partitions.values()
                if self._flow.hangs or self._flow.holds_too_much(state)
            ]
        )
        self._parts.executor.warn_if_blocked()
        if self._parts.shutdown.requested:
            self._parts.executor.interrupt()

    def _dispatch(self) -> None:
        """Give the handler what may be handled now; it works while the loop goes on to receive."""
        works: list[Work] = []
        room = self._room()
        size = self._work_size()
        held = self._held()
        for _ in range(self._free_slots()):
            work = self._parts.scheduler.take(size, room, held)
            if work is None:
                break
            works.append(work)
            if room is not None:
                room -= len(work)
        if works:
            if not self._parts.executor.in_flight:
                self._parts.assignment.progress_at = time.monotonic()
            self._parts.executor.submit(works)

    def _held(self) -> set[Key]:
        """Partitions that went and came back while a message of theirs is still in the handler's hands: it must not be
        handled a second time beside that.
        """
        works = self._parts.executor.in_flight
        return {work.partition.key for work in works if not work.partition.owned and work.begun_at is not None}

    def _work_size(self) -> int:
        """How many messages a work may have."""
        if not self._parts.executor.batch:
            return BATCH_MESSAGES
        # Several batches at once share what waits.
        waiting = sum(state.count for state in self._parts.assignment.partitions.values())
        return max(1, min(self._batch_size.messages, -(-waiting // self._parts.executor.concurrency)))

    def _free_slots(self) -> int:
        """How many works the handler can be given: one for each partition to one thread, two for each call to more, so
        that the next is there when one ends.
        """
        concurrency = self._parts.executor.concurrency
        most = len(self._parts.assignment.partitions) if concurrency == 1 else 2 * concurrency
        return max(0, most - len(self._parts.executor.in_flight))

    def _room(self) -> int | None:
        """How many messages may still be begun (--max-messages), None without a limit."""
        if self._max_messages is None:
            return None
        begun = sum(len(work) - work.accounted for work in self._parts.executor.in_flight)
        return self._max_messages - self._parts.assignment.handled - begun - len(self._parts.scheduler.dead_letters)

    def _maintain(self) -> None:
        self.client_state.check()
        passwords = self.client_state.renewals["password"]
        if self._credentials.refresh(self._parts.client):
            self._membership.renew()
        elif self.client_state.renewals["password"] != passwords:
            self._parts.watermarks.reconnect()
        self._failed.look_after_dead_letters()
        self._membership.restart_partitions()
        self._flow.resume()
        self._parts.committer.stage(self._parts.assignment.partitions.values())
        if self._parts.committer.forgotten():
            self._membership.rejoin()

    def _note_the_turn(self) -> None:
        """What the probes and the metrics ask for."""
        now = time.monotonic()
        statistics = self.client_state.statistics
        if statistics is not None and statistics is not self._noted:
            self._noted = statistics
            self._membership.note(statistics)
            self._parts.assignment.note_ends(statistics.partitions, now)
        if now - self._published_at >= STATUS_INTERVAL_S or self._membership.joined != self.status.joined:
            self._look_at_fetching(now)
            self._publish(now)

    def _publish(self, now: float) -> None:
        self._published_at = now
        self.status = self._publisher.take(now, may_begin=self._room() != 0)

    def _look_at_fetching(self, now: float) -> None:
        """Note what brokers say of beginnings and ends, and heal partitions that are not fetched any more."""
        partitions = self._parts.assignment.partitions
        self._parts.watermarks.wanted = tuple(partitions)
        if self._parts.fetching.note(partitions, self._parts.watermarks):
            for state in self._parts.assignment.of_other_topics(
                self._parts.watermarks.topic_ids, self._parts.watermarks.asked_at
            ):
                self._parts.starts.other_topic(state)
        for state in self._parts.fetching.to_seek(partitions, now):
            try:
                self._parts.client.seek(state.topic_partition(state.position or 0))
            except KafkaException as error:
                log.warning("%s: not sought to offset %s: %s", state, state.position, error)
        if self._parts.fetching.rejoin_due(partitions, now):
            self._membership.renew()

    def _leave(self) -> None:
        """End the handler, commit and leave the group, within what is left of the time to stop."""
        self._parts.shutdown.request()
        self._parts.watermarks.stop()
        self.trouble = self._parts.executor.stop(self._parts.shutdown.remaining_s())
        for work in self._parts.executor.in_flight:
            self._account(work)
        try:
            self._failed.await_dead_letters()
        except WorkerError as error:
            self.trouble = str(error)
        self._dead_letters.close(1.0)
        self._parts.committer.stage(self._parts.assignment.partitions.values(), now=True)
        left = call_with_timeout(self._membership.close_client, max(1.0, self._parts.shutdown.remaining_s()))
        if not left and self.trouble is None:
            self.trouble = "the group was not left in time; what was not committed is redelivered"
        self._publish(time.monotonic())

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        self._parts.committer.on_commit(error, partitions, self._parts.assignment.partitions)
