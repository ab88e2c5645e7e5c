"""The consumer's loop: receive messages, have them handled, commit what was handled.

    Receiver -> Assignment.buffer -> Scheduler -> Dispatcher -> Executor (-> Outputs) -> Assignment.complete
             -> StoredOffsets.stage, or with --exactly-once Transaction.stage

At least once: an offset becomes committable only after the handler returned for its message and for all before it, and
brokers have acknowledged what it gave back; transactions.py says how it is exactly once. A message whose handler fails
is tried again after a growing pause; meanwhile the others of its partition, or of its key, wait and all else goes on.
The loop keeps polling however long a handler takes, so the group does not lose this member.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from workers.config import ClientConfig
from workers.consumer.assignment import Assignment
from workers.consumer.breaker import DeadLetterBreaker
from workers.consumer.committing import StoredOffsets
from workers.consumer.dispatching import Dispatcher
from workers.consumer.execution import Executor
from workers.consumer.failing import FailedMessages
from workers.consumer.fetching import FetchWatch
from workers.consumer.flow import FlowControl
from workers.consumer.membership import Membership
from workers.consumer.observing import Observer
from workers.consumer.options import Handling, Limits
from workers.consumer.parts import DeadLetterWriter, OutputSender, Parts
from workers.consumer.receiving import Receiver
from workers.consumer.scheduling import Scheduler
from workers.consumer.seeking import ClientHangsError
from workers.consumer.starting import Starts
from workers.consumer.status import ConsumerStatus, Publisher
from workers.errors import WorkerError
from workers.kafka.client import ClientState, create_client, fatal_error, topics_are_created, wait_for_topics
from workers.kafka.credentials import CredentialsWatch
from workers.kafka.watermarks import Watermarks
from workers.lifecycle import Shutdown, call_with_timeout

log = logging.getLogger(__name__)

STATISTICS_AGE_S = 15.0
STATUS_INTERVAL_S = 0.25


class Consumer:
    """One member of a group: `start`, then `run`. `status` is there at any time, for whoever watches."""

    def __init__(
        self,
        config: ClientConfig,
        topics: Sequence[str],
        handling: Handling,
        limits: Limits,
        shutdown: Shutdown,
        *,
        dead_letters: DeadLetterWriter,
        outputs: OutputSender,
        watermarks: Watermarks,
        stop_on_deleted: bool = False,
        auth_timeout_s: float = 0.0,
        connect: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        self.group_id = config.get("group.id")
        self.client_state = ClientState(config, auth_timeout_s)
        self.trouble: str | None = None
        self._config = config
        self._topics = list(topics)
        self._handling = handling
        self._limits = limits
        self._dead_letters = dead_letters
        self._published_at = float("-inf")
        credentials = self._credentials = CredentialsWatch(config, self.client_state)
        own = {
            **self.client_state.callbacks(),
            "enable.partition.eof": True,
            # librdkafka would move on without a word where retention, truncation or a new topic took the offset away;
            # `Starts` decides, counts and says so.
            "auto.offset.reset": "error",
        }
        parts: Parts
        transaction = outputs.transaction
        stored = StoredOffsets(lambda: parts.client, self.client_state.say)
        if transaction is not None:
            own["enable.auto.commit"] = False
        make = connect or (lambda own: create_client(confluent_kafka.Consumer, config, own, credentials.credentials))

        def connected() -> Any:
            # Its callback with a reference to it would keep a client that is not used until the garbage collector runs.
            identity: int | None = None

            # One that was given up may close late, in another thread: what it tells is of another member.
            def on_commit(error: KafkaError | None, places: list[TopicPartition]) -> None:
                if identity == id(parts.client):
                    stored.on_commit(error, places, parts.assignment.partitions)

            def on_error(error: KafkaError) -> None:
                if identity is None or identity == id(parts.client):
                    self.client_state.on_error(error)

            def on_statistics(text: str) -> None:
                if identity == id(parts.client):
                    self.client_state.on_statistics(text)

            callbacks: dict[str, Any] = {"error_cb": on_error, "stats_cb": on_statistics}
            if transaction is None:
                callbacks["on_commit"] = on_commit
            client = make({**own, **callbacks})
            identity = id(client)
            return client

        parts = self._parts = Parts(
            client=connected(),
            client_state=self.client_state,
            assignment=Assignment(topics, in_order=handling.order == "partition"),
            scheduler=Scheduler(handling.order),
            executor=Executor(handling.lifespan, handling.concurrency, handling.middlewares),
            outputs=outputs,
            committer=transaction or stored,
            starts=Starts(config, stop_on_deleted=stop_on_deleted, exactly_once=transaction is not None),
            fetching=FetchWatch(),
            watermarks=watermarks,
            shutdown=shutdown,
        )
        self._flow = FlowControl(parts, limits.max_distance)
        breaker = DeadLetterBreaker(limits.max_dead_letter_share)
        self._failed = FailedMessages(parts, self._flow, handling.policy, dead_letters, breaker, handling.on_decision)
        self._dispatcher = dispatcher = Dispatcher(parts, self._flow, self._failed, limits)
        self._membership = Membership(parts, config, topics, credentials, connect=connected, account=dispatcher.account)
        self._receiver = Receiver(parts, self._flow, dispatcher, self._membership.check_refusal)
        if transaction is not None:
            transaction.attach(lambda: parts.client, parts.assignment, self._membership.rewind, shutdown)
        self._observer = Observer(parts, self._membership)
        self._publisher = Publisher(parts, self._membership, limits.stall_timeout_s)
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
        if self._handling.policy.on_error != "stop" and not self._parts.shutdown.requested:
            self._check_dead_letters(timeout_s)
        self._parts.executor.start(self._parts.shutdown)
        self._parts.scheduler.batches = self._parts.executor.batch
        transaction = self._parts.outputs.transaction
        if transaction is not None:
            in_order = self._handling.order == "partition"
            transaction.start(timeout_s, batch=self._parts.executor.batch, in_order=in_order)
        self._parts.watermarks.start()

    def run(self) -> None:
        """Handle messages until a stop is asked for or the limits are reached; raises WorkerError when it cannot go
        on.
        """
        self._receiver.idle_since = self._parts.assignment.progress_at = time.monotonic()
        if not self._parts.shutdown.requested:
            self._membership.join()
        try:
            while not self._finished():
                try:
                    self._turn()
                except ClientHangsError as error:
                    self._parts.fetching.note_rejoin()
                    self._membership.give_up_client(str(error))
        except KafkaException as error:
            # So the binding tells of a fatal error; it has no callback for it.
            raise fatal_error(error.args[0]) from None
        finally:
            self._leave()

    def _check_dead_letters(self, timeout_s: float | None) -> None:
        """Say which dead-letter topics are not there; raise ConfigError where the user has named it and brokers create
        none, once it was waited for as for any topic.
        """
        client, dead_letters = self._parts.client, self._dead_letters
        for name in dead_letters.missing(client, self._topics):
            if name == dead_letters.named and topics_are_created(self._config) is False:
                wait_for_topics(
                    client,
                    [name],
                    self._config,
                    self.client_state,
                    timeout_s=timeout_s,
                    shutdown=self._parts.shutdown,
                    option="--dead-letter-topic",
                )
            else:
                log.warning("no dead-letter topic %s, or no right to it; create it, or see --on-error", name)

    # Queries from other threads

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
        """The part that is stuck, or None. Waiting for brokers, for a turn or for a retry does not count."""
        return self.status.stalled(self._limits.stall_timeout_s)

    # Its turns

    def _turn(self) -> None:
        self._note_the_turn()
        self._receiver.receive()
        self._dispatcher.collect()
        self._dispatcher.dispatch()
        self._maintain()

    def _finished(self) -> bool:
        pending = self._parts.committer.pending
        if self._parts.shutdown.requested or (self._dispatcher.finished and not pending):
            return True
        states = self._parts.assignment.partitions.values()
        waits = pending or not self._membership.joined or self._membership.restarting
        if waits or any(state.count or state.awaits_committed for state in states):
            # Before that nothing can come, and to a partition that is paused nothing does.
            self._receiver.idle_since = time.monotonic()
        idle_s = time.monotonic() - max(self._receiver.idle_since, self._membership.assigned_at)
        return self._limits.idle_timeout_s is not None and idle_s > self._limits.idle_timeout_s

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
        idle = not (self._parts.executor.in_flight or self._parts.scheduler.runnable)
        self._parts.committer.stage(self._parts.assignment.partitions.values(), idle=idle)
        if self._parts.committer.forgotten():
            self._membership.rejoin()

    def _note_the_turn(self) -> None:
        """Note new statistics, and publish the state for probes and metrics when it is due."""
        now = time.monotonic()
        self._observer.note_statistics(now)
        if now - self._published_at >= STATUS_INTERVAL_S or self._membership.joined != self.status.joined:
            self._observer.look_at_fetching(now)
            self._publish(now)

    def _publish(self, now: float) -> None:
        self._published_at = now
        self.status = self._publisher.take(now, may_begin=self._dispatcher.may_begin)

    def _leave(self) -> None:
        """End the handler, await its outputs, commit and leave the group, within what is left of the time to stop."""
        self._parts.shutdown.request()
        # A transaction may not last as long as the handler may take to end.
        self._parts.committer.stage(self._parts.assignment.partitions.values(), now=True)
        trouble = self._parts.executor.stop(self._parts.shutdown.remaining_s())
        missing = self._dispatcher.finish()
        self.trouble = trouble or missing
        try:
            self._failed.await_dead_letters()
        except WorkerError as error:
            self.trouble = str(error)
        self._dead_letters.close(1.0)
        self._parts.watermarks.close(1.0)
        self._parts.committer.stage(self._parts.assignment.partitions.values(), now=True)
        # An abort that is not confirmed fails the stop, and leaving the group takes time too.
        unfinished = self._parts.outputs.close(max(1.0, self._parts.shutdown.remaining_s() / 2))
        self.trouble = self.trouble or unfinished
        left = call_with_timeout(self._membership.close_client, max(1.0, self._parts.shutdown.remaining_s()))
        if not left and self.trouble is None:
            self.trouble = "the group was not left in time; what was not committed is redelivered"
        self._publish(time.monotonic())
