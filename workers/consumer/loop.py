"""The consumer: takes messages from its partitions, has them handled, and commits what was handled.

At least once: an offset is stored only after the handler returned for its message, librdkafka commits stored
offsets on a timer, and a revoked partition is committed before it is given up. A message whose handler fails is
tried again after a growing pause; meanwhile its partition is paused and the others go on. The loop keeps polling
however long a handler takes, so the group does not lose this member. A slow handler works in slices, and each begins
with the partition that has waited longest: none has to wait for all that another one holds.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import confluent_kafka
from confluent_kafka import OFFSET_END, KafkaError, KafkaException, Message, TopicPartition

from workers.config import ClientConfig
from workers.consumer.assignment import Lag, Partition, Topic
from workers.consumer.execution import HandlerThread, Job
from workers.consumer.failures import ErrorPolicy
from workers.deadletters.writer import DeadLetters, Letter
from workers.errors import WorkerError
from workers.handlers import Lifespan, OutputClosedError, OutputError, Reject, Retry
from workers.kafka.client import ClientState, create_client, wait_for_topics
from workers.kafka.messages import raw_stamp_of
from workers.kafka.statistics import Statistics
from workers.lifecycle import Shutdown, call_with_timeout
from workers.loading import named

log = logging.getLogger(__name__)
BATCH_MESSAGES = 2000
# So much may wait for the handler, about.
MAX_WAITING_BYTES = 64 * 1024 * 1024
# A signal is noticed when a poll returns.
POLL_S = 0.2
# While the handler is busy the loop turns at this interval.
KEEP_ALIVE_S = 0.1
# After so long the handler is to come back when it is done with its message: a retry may be due, or other partitions.
SLICE_S = 0.5
# A message that takes longer than this has all partitions paused: each turn takes a message from the client, and these
# would pile up. Not sooner, as a client that pauses throws away what it has fetched.
PAUSE_AFTER_S = 10.0
# How long a rebalance waits for the message at hand; then it is redelivered to the next owner.
REVOKE_WAIT_S = 10.0
# How long a stop waits for dead letters that are under way.
LETTERS_TIMEOUT_S = 5.0
# librdkafka learns the end of a partition from fetching it, so that of a paused one is asked for.
PAUSED_LAG_INTERVAL_S = 5.0
# Committed offsets are asked for when partitions are assigned; without an answer librdkafka asks again by itself.
COMMITTED_TIMEOUT_S = 5.0
STATISTICS_AGE_S = 15.0
# What a coordinator answers to the commit of a member that it does not have, or not with that epoch.
FORGOTTEN = frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.FENCED_MEMBER_EPOCH,
    }
)
# Longer than brokers let a KIP-848 member wait between two heartbeats (group.consumer.heartbeat.interval.ms, 5 s).
FORGOTTEN_S = 8.0


class Consumer:
    """One member of a group: `start`, then `run`. The accounts are there at any time, for whoever watches."""

    def __init__(
        self,
        config: ClientConfig,
        topics: Sequence[str],
        lifespan: Lifespan,
        shutdown: Shutdown,
        *,
        policy: ErrorPolicy,
        dead_letters: DeadLetters,
        max_messages: int | None = None,
        idle_timeout_s: float | None = None,
        stall_timeout_s: float = 300.0,
    ) -> None:
        self.client_state = ClientState()
        self.group_id = config.get("group.id")
        self.topics = {name: Topic(name) for name in topics}
        self.partitions: dict[tuple[str, int], Partition] = {}
        self.rebalances = {"assign": 0, "revoke": 0, "lost": 0}
        self.commits = {"success": 0, "failure": 0}
        self.handled = 0
        self.trouble: str | None = None
        self._config = config
        self._handler = HandlerThread(lifespan)
        self._shutdown = shutdown
        self._policy = policy
        self._dead_letters = dead_letters
        self._max_messages = max_messages
        self._idle_timeout_s = idle_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._joined = False
        self._from_end = config.get("auto.offset.reset", "latest") in ("latest", "end", "largest")
        self._partitions_at_start: dict[str, int] = {}
        self._jobs: list[Job[Partition]] = []
        self._noted: Statistics | None = None
        self._forgotten_since: float | None = None
        # Before the loop begins there is nothing to be stuck: brokers and the handler's start are waited for.
        self._turned_at = float("inf")
        self._idle_since = 0.0
        self._paused_lag_at = 0.0
        self._broker_assigns = config.get("group.protocol") == "consumer"
        # Strategies other than cooperative-sticky take everything away in a rebalance and give it back.
        strategy = config.get("partition.assignment.strategy", "cooperative-sticky")
        self._eager = not self._broker_assigns and strategy != "cooperative-sticky"
        own: dict[str, Any] = {"on_commit": self._on_commit, "enable.partition.eof": True}
        if self._from_end:
            # librdkafka would skip to the end also when what was committed is not there any more.
            own["auto.offset.reset"] = "earliest"
        self._client = create_client(confluent_kafka.Consumer, config, {**self.client_state.callbacks(), **own})

    def start(self, timeout_s: float | None) -> None:
        """Waits for the brokers and the topics, and starts the handler; raises as `wait_for_topics` does."""
        self._partitions_at_start = wait_for_topics(
            self._client,
            list(self.topics),
            self._config,
            self.client_state,
            timeout_s=timeout_s,
            shutdown=self._shutdown,
        )
        if self._policy.on_error != "stop" and not self._shutdown.requested:
            self._dead_letters.check(self._client, self.topics)
        self._handler.start(self._shutdown)

    def run(self) -> None:
        """Handles messages until a stop is asked for or the limits are reached; raises WorkerError when it cannot
        go on.
        """
        self._turned_at = self._idle_since = time.monotonic()
        if not self._shutdown.requested:
            self._subscribe()
        try:
            while not self._finished():
                self._fetch()
                self._work()
                self._look_after()
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
            return "no broker can be reached"
        if not self._joined:
            return f"has not joined group {self.group_id} yet"
        return None

    def live(self) -> str | None:
        """Which partition is stuck, or None. Waiting for brokers or for a pause to end is not being stuck."""
        now = time.monotonic()
        if now - self._turned_at > self._stall_timeout_s:
            return f"the poll loop has not turned for {now - self._turned_at:.0f} s"
        for partition in list(self.partitions.values()):
            stuck_s = now - partition.waits_since
            if partition.waiting_since_ms and not partition.blocked and stuck_s > self._stall_timeout_s:
                return f"{partition} has made no progress for {stuck_s:.0f} s at offset {partition.next_offset}"
        return None

    def lags(self) -> list[Lag]:
        """The lag of the partitions owned now, of those whose end is known."""
        statistics = self.client_state.statistics
        known = statistics.partitions if statistics is not None else {}
        lags = []
        for key, partition in list(self.partitions.items()):
            handled = partition.next_offset
            if handled is None:
                handled = known[key].fetch_offset if key in known else -1
            if partition.end_offset < 0 or handled < 0:
                continue
            messages = max(0, partition.end_offset - handled)
            lags.append(Lag(*key, messages, partition.age_s() if messages else 0.0))
        return lags

    # The loop

    def _subscribe(self) -> None:
        self._client.subscribe(
            list(self.topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def _finished(self) -> bool:
        self._note_the_turn()
        if self._shutdown.requested:
            return True
        if self._max_messages is not None and self.handled >= self._max_messages:
            return True
        if not self._joined or any(partition.pending for partition in self.partitions.values()):
            # Before that nothing can come, and to a partition that is paused nothing does.
            self._idle_since = time.monotonic()
        return self._idle_timeout_s is not None and time.monotonic() - self._idle_since > self._idle_timeout_s

    def _fetch(self) -> None:
        """Takes what has arrived. `consume` alone would wait for a full batch, so the first message is polled for."""
        first = self._client.poll(self._poll_timeout_s())
        if first is None:
            return
        if self._full():
            # The handler does not keep up: what it has yet to do must not pile up here.
            self._take([first])
            return
        before = self._partition_of(first)
        following = self._client.consume(BATCH_MESSAGES - 1, 0)
        # A rebalance can happen in there. What a partition had before it comes again, if the partition comes again.
        self._take([first, *following] if self._partition_of(first) is before else following)

    def _partition_of(self, message: Message) -> Partition | None:
        return self.partitions.get((message.topic() or "", message.partition() or 0))

    def _full(self) -> bool:
        """Whether enough waits that the handler can be given, and does not have in its hands yet."""
        ready = [partition for partition in self.partitions.values() if not partition.blocked]
        in_hand = sum(job.count - job.accounted for job in self._jobs)
        waiting = sum(len(partition.pending) for partition in ready) - in_hand
        return waiting >= BATCH_MESSAGES or sum(partition.pending_bytes for partition in ready) >= MAX_WAITING_BYTES

    def _holds_too_much(self, partition: Partition) -> bool:
        return len(partition.pending) >= 2 * BATCH_MESSAGES or partition.pending_bytes >= self._share_bytes()

    def _share_bytes(self) -> int:
        return MAX_WAITING_BYTES // len(self.partitions)

    def _take(self, messages: list[Message]) -> None:
        others: list[Message] = []
        if any(map(Message.error, messages)):
            others = [message for message in messages if message.error()]
            messages = [message for message in messages if not message.error()]
        if messages:
            self._idle_since = time.monotonic()
            for run in _runs(messages, len(self.topics) == 1):
                self._received(run)
        for other in others:
            self._heard(other)

    def _poll_timeout_s(self) -> float:
        if self._jobs:
            # The handler's end is waited for, not more messages.
            return 0.0
        now = time.monotonic()
        timeout_s = POLL_S
        for partition in self.partitions.values():
            if partition.pending:
                wait_s = 0.01 if partition.letter is not None else partition.retry_at - now
                timeout_s = min(timeout_s, max(0.0, wait_s))
        return timeout_s

    def _received(self, messages: list[Message]) -> None:
        """Takes messages of one partition."""
        partition = self._partition_of(messages[0])
        if partition is None:
            return
        if not partition.pending:
            partition.next_offset = messages[0].offset()
            partition.waiting_since_ms = messages[0].timestamp()[1]
            partition.progress_at = time.monotonic()
        partition.pending += messages
        partition.end_offset = max(partition.end_offset, (messages[-1].offset() or 0) + 1)

    def _heard(self, message: Message) -> None:
        """Takes what is no message: an error, or that all of a partition was read."""
        error = message.error()
        assert error is not None
        if error.code() != KafkaError._PARTITION_EOF:
            self.client_state.on_error(error)
            return
        partition = self._partition_of(message)
        if partition is not None:
            partition.read_offset = message.offset() or 0
            if not partition.pending and partition.read_offset > (partition.next_offset or 0):
                partition.next_offset = partition.read_offset
                self._store(partition)

    def _work(self) -> None:
        """Books what the handler is done with and gives it what may be handled now; it works while the loop goes on
        to fetch.
        """
        if self._jobs:
            begin = time.monotonic()
            while not self._handler.wait(KEEP_ALIVE_S):
                self._keep_alive(time.monotonic() - begin)
            self._collect()
        self._jobs = [] if self._shutdown.requested else self._next_jobs()
        if self._jobs:
            self._handler.submit(self._jobs)

    def _collect(self) -> None:
        """Books the jobs that the handler is done with."""
        done, self._jobs = self._jobs, []
        for job in done:
            self._account(job)
        for job in done:
            if job.error is not None and job.partition.owned:
                # A retry, and a dead letter, are of what was received.
                for message, value in zip(job.partition.pending, job.values[job.handled :], strict=False):
                    message.set_value(value)
                self._on_failure(job.partition, job.error, job.count)

    def _next_jobs(self) -> list[Job[Partition]]:
        jobs = []
        room = None
        if self._max_messages is not None:
            letters = sum(partition.letter_error is not None for partition in self.partitions.values())
            room = self._max_messages - self.handled - letters
        for partition in sorted(self.partitions.values(), key=lambda each: each.waits_since):
            if not partition.pending or partition.blocked:
                continue
            count = 1 if partition.singly else BATCH_MESSAGES
            if room is not None:
                count = min(count, room)
                room -= min(count, len(partition.pending))
            if count > 0:
                jobs.append(Job(partition, partition.pending[:count]))
        return jobs

    def _keep_alive(self, busy_s: float) -> None:
        """One turn while the handler is busy: the group hears from us, and progress is stored."""
        self._note_the_turn()
        if busy_s > SLICE_S:
            self._handler.interrupt()
        hangs = busy_s > PAUSE_AFTER_S
        self._pause([partition for partition in self.partitions.values() if hangs or self._holds_too_much(partition)])
        message = self._client.poll(0)
        if message is not None:
            self._take([message])
        for job in self._jobs:
            self._account(job)
        self.client_state.check()
        self._look_after_letters()
        self._refresh_paused_ends()
        if self._shutdown.requested:
            self._handler.interrupt()
            if self._shutdown.remaining_s() == 0:
                raise WorkerError("the handler did not finish its message in time; it will be redelivered")

    def _account(self, job: Job[Partition], *, revoked: bool = False) -> None:
        """Books what a job has handled since the last time: ledger, counters, stored offset.

        `pending` begins with what the job has not accounted for: its own list may have been changed. What is done for a
        partition that was taken away counts only while it is being revoked.
        """
        partition = job.partition
        handled = job.handled
        if handled == job.accounted or not (partition.owned or revoked):
            return
        # As a rule all at once; a copy of a list looks at every object in it.
        whole = handled - job.accounted == job.count
        self._advance(partition, job.values if whole else job.values[job.accounted : handled])
        partition.topic.handled += handled - job.accounted
        job.accounted = handled

    def _advance(self, partition: Partition, values: list[bytes | None]) -> None:
        """The first messages of `pending`, which had these values, are done with: the next offset is behind them."""
        count = len(values)
        last = partition.pending[count - 1]
        if not partition.ledger.follow(values):
            partition.ledger.observe(map(raw_stamp_of, partition.pending, values))
        self.handled += count
        del partition.pending[:count]
        partition.next_offset = (last.offset() or 0) + 1
        if not partition.pending:
            partition.next_offset = max(partition.next_offset, partition.read_offset)
        partition.last_timestamp_ms = last.timestamp()[1]
        partition.waiting_since_ms = partition.pending[0].timestamp()[1] if partition.pending else 0
        partition.behind_since_s = 0.0
        partition.progress_at = time.monotonic()
        partition.tries = partition.attempts = 0
        partition.singly = max(0, partition.singly - count)
        partition.topic.latencies.add(time.time() - partition.last_timestamp_ms / 1000)
        self._store(partition, last.leader_epoch())

    def _store(self, partition: Partition, leader_epoch: int | None = None) -> None:
        """Has the next offset committed."""
        assert partition.next_offset is not None
        at = partition.at(partition.next_offset, partition.ledger.memo(), leader_epoch)
        try:
            self._client.store_offsets(offsets=[at])
        except KafkaException as error:
            # The partition went while the handler was busy; its next owner begins at what was committed.
            log.debug("%s: offset %d not stored: %s", partition, at.offset, error)

    def _on_failure(self, partition: Partition, error: Exception, count: int) -> None:
        """Decides what becomes of the message at the head of `pending`, for which the handler raised."""
        if isinstance(error, OutputClosedError):
            self._shutdown.request()
            return
        if isinstance(error, OutputError):
            raise WorkerError(f"standard output cannot be written: {error}; what was not printed is redelivered")
        if self._handler.batch and count > 1 and not isinstance(error, Retry):
            partition.singly = count
            log.info("%s: a batch of %d failed (%s), trying its messages one by one", partition, count, named(error))
            return
        where = f"{partition} offset {partition.pending[0].offset()}"
        what = named(error)
        partition.tries += 1
        if not isinstance(error, Retry):
            partition.attempts += 1
        hopeless = isinstance(error, Reject)
        if hopeless or (self._policy.on_error != "retry" and partition.attempts >= self._policy.max_attempts):
            if self._policy.on_error == "stop":
                raise WorkerError(
                    f"stopping as --on-error says: handler failed at {where}, attempt {partition.attempts}: {what}"
                )
            log.warning("%s: to the dead-letter topic after %d attempts: %s", where, partition.attempts, what)
            partition.letter_error = error
            self._send_letter(partition)
            return
        partition.topic.retried += 1
        asked = error.after_s if isinstance(error, Retry) else None
        pause_s = asked if asked is not None else self._policy.pause_s(partition.tries)
        log.warning("%s: attempt %d failed, next in %.1f s: %s", where, partition.tries, pause_s, what)
        self._block(partition, pause_s)

    def _block(self, partition: Partition, pause_s: float) -> None:
        partition.retry_at = time.monotonic() + pause_s
        self._pause([partition])
        self._give_back(partition)

    def _give_back(self, partition: Partition) -> None:
        """Leaves to the client what is beyond a blocked partition's share, to be read again: other partitions go on,
        and fail in their turn when it is what the handler needs that is away.
        """
        fit = max(1, len(partition.pending) * self._share_bytes() // max(1, partition.pending_bytes))
        if fit >= len(partition.pending):
            return
        offset = partition.pending[fit].offset() or 0
        try:
            self._client.seek(partition.at(offset))
        except KafkaException as error:
            log.debug("%s: not read again from offset %d: %s", partition, offset, error)
            return
        del partition.pending[fit:]
        partition.read_offset = -1

    def _send_letter(self, partition: Partition) -> None:
        assert partition.letter_error is not None
        self._pause([partition])
        partition.letter = self._dead_letters.send(partition.pending[0], partition.letter_error, partition.attempts)

    def _look_after(self) -> None:
        """What does not come from a message: dead letters, paused partitions, the client's events."""
        self.client_state.check()
        self._check_membership()
        self._look_after_letters()
        done = [each for each in self.partitions.values() if each.paused and not each.pending and not each.blocked]
        if done:
            self._client.resume([partition.at() for partition in done])
            for partition in done:
                partition.paused = False
        self._refresh_paused_ends()

    def _look_after_letters(self) -> None:
        """Hears of dead letters that are under way, and sends those again that were not written."""
        self._dead_letters.poll(0)
        for partition in self.partitions.values():
            if partition.letter is not None:
                self._on_letter(partition, partition.letter)
            elif partition.letter_error is not None and partition.retry_at <= time.monotonic():
                self._send_letter(partition)

    def _note_the_turn(self) -> None:
        """What the probes and the metrics ask for."""
        self._turned_at = time.monotonic()
        statistics = self.client_state.statistics
        if statistics is None or statistics is self._noted:
            return
        self._noted = statistics
        if statistics.coordinator_up:
            # A KIP-848 member that never owned a partition stays in the join state "init".
            self._joined = self._joined or statistics.group_steady or self._broker_assigns
        for key, seen in statistics.partitions.items():
            partition = self.partitions.get(key)
            # Kept for the time when the leader is away: then there are no statistics, and the lag must not vanish.
            if partition is not None and not partition.paused and seen.end_offset >= 0:
                partition.see_end(seen.end_offset)

    def _on_letter(self, partition: Partition, letter: Letter) -> None:
        if letter.delivered is None:
            return
        partition.letter = None
        if letter.delivered:
            partition.letter_error = None
            partition.topic.dead_lettered += 1
            self._advance(partition, [partition.pending[0].value()])
        else:
            partition.tries += 1
            pause_s = self._policy.pause_s(partition.tries)
            topic = self._dead_letters.topic_for(partition.pending[0])
            if letter.too_large:
                raise WorkerError(
                    f"stopping at {partition} offset {partition.pending[0].offset()}, as nothing is skipped: topic "
                    f"{topic} takes no dead letter of that size, raise its max.message.bytes: {letter.error}"
                )
            log.error(
                "%s offset %s: not written to the dead-letter topic %s, next try in %.1f s, nothing is skipped: %s",
                partition, partition.pending[0].offset(), topic, pause_s, letter.error,
            )  # fmt: skip
            self._block(partition, pause_s)

    def _pause(self, partitions: list[Partition]) -> None:
        fetching = [partition for partition in partitions if not partition.paused]
        if fetching:
            self._client.pause([partition.at() for partition in fetching])
            for partition in fetching:
                partition.paused = True

    def _refresh_paused_ends(self) -> None:
        now = time.monotonic()
        paused = [partition for partition in self.partitions.values() if partition.paused]
        if not paused or now - self._paused_lag_at < PAUSED_LAG_INTERVAL_S:
            return
        self._paused_lag_at = now
        try:
            for partition in paused:
                partition.see_end(self._client.get_watermark_offsets(partition.at(), timeout=0.5)[1])
        except KafkaException as error:
            log.debug("the end of paused partitions is not known: %s", error)

    # Rebalances: called from inside poll and close

    def _on_assign(self, client: confluent_kafka.Consumer, partitions: list[TopicPartition]) -> None:
        self.rebalances["assign"] += 1
        self._idle_since = time.monotonic()
        self._forgotten_since = None
        assigned, begins = partitions, []
        if partitions:
            try:
                assigned = client.committed(partitions, timeout=COMMITTED_TIMEOUT_S)
                if self._from_end:
                    begins = self._begin_at_end(client, assigned)
            except KafkaException as error:
                log.warning("committed offsets are not known yet: %s", error)
        for each in assigned:
            topic = self.topics.setdefault(each.topic, Topic(each.topic))
            known = None if each.error is not None else each
            self.partitions[each.topic, each.partition] = Partition(topic, each.partition, known)
        places = [*map(_without_memo, assigned)]
        if self._eager:
            client.assign(places)
        else:
            client.incremental_assign(places)
        if begins:
            client.store_offsets(offsets=begins)
        log.info("assigned %s", _names(partitions) or "nothing: idle")

    def _begin_at_end(self, client: confluent_kafka.Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
        """Has what nobody has committed yet begin at the end of now, and returns it to be committed: a next owner would
        begin at its own end, and skip what came until then. A partition that was added since begins at its beginning.
        """
        begins = []
        until = time.monotonic() + COMMITTED_TIMEOUT_S
        for each in partitions:
            added = each.partition >= self._partitions_at_start.get(each.topic, 0)
            if added or each.offset >= 0 or each.error is not None:
                continue
            try:
                each.offset = client.get_watermark_offsets(each, timeout=max(0.1, until - time.monotonic()))[1]
                begins.append(each)
            except KafkaException as error:
                each.offset = OFFSET_END
                log.warning("%s[%d] begins at its end, which is not known yet: %s", each.topic, each.partition, error)
        return begins

    def _on_revoke(self, client: confluent_kafka.Consumer, partitions: list[TopicPartition]) -> None:
        """Stores what is handled by now. Unassigning commits it, and librdkafka joins again only after that.

        A commit of our own would block this thread, and signals with it, for as long as the coordinator is away
        (rd_kafka_assignment_serve_removals in librdkafka's rdkafka_assignment.c).
        """
        self.rebalances["revoke"] += 1
        revoked = self._take_away(partitions)
        begin = time.monotonic()
        for job in [job for job in self._jobs if job.partition in revoked]:
            # One that has not begun does not begin any more.
            while job.begun and not job.finished and time.monotonic() - begin < self._revoke_wait_s():
                time.sleep(0.005)
            self._account(job, revoked=True)
        self._unassign(client, partitions)
        log.info("revoked %s", _names(partitions))

    def _revoke_wait_s(self) -> float:
        """How long a rebalance may wait for the message at hand; a stop can come meanwhile."""
        return min(REVOKE_WAIT_S, max(0.5, self._shutdown.remaining_s()))

    def _on_lost(self, client: confluent_kafka.Consumer, partitions: list[TopicPartition]) -> None:
        """Others may own them already, so nothing is committed: what was handled since is redelivered there."""
        self.rebalances["lost"] += 1
        self._take_away(partitions)
        self._unassign(client, partitions)
        log.warning("lost %s: this member did not answer its group in time", _names(partitions))

    def _take_away(self, partitions: list[TopicPartition]) -> list[Partition]:
        taken = [self.partitions.pop((each.topic, each.partition), None) for each in partitions]
        gone = [partition for partition in taken if partition is not None]
        for partition in gone:
            partition.owned = False
        paused = [partition.at() for partition in gone if partition.paused]
        if paused:
            # librdkafka keeps the pause of a partition that leaves: if it came back, nothing would be fetched from it.
            self._client.resume(paused)
        return gone

    def _unassign(self, client: confluent_kafka.Consumer, partitions: list[TopicPartition]) -> None:
        if self._eager:
            client.unassign()
        else:
            client.incremental_unassign(partitions)

    def _on_commit(self, error: KafkaError | None, _partitions: list[TopicPartition]) -> None:
        if error is None:
            self.commits["success"] += 1
            self._forgotten_since = None
        elif error.code() != KafkaError._NO_OFFSET:
            self.commits["failure"] += 1
            self.client_state.say(f"commit {error.name()}", f"commit failed, it is tried again: {error.str()}")
            if error.code() in FORGOTTEN:
                self._forgotten_since = self._forgotten_since or time.monotonic()

    def _check_membership(self) -> None:
        """Joins again when the group has refused our commits for too long: others own our partitions by now.

        A client hears that from its next heartbeat. That of librdkafka 2.16 with KIP-848 may send none any more after
        one has timed out while the coordinator changed, and goes on to fetch for ever.
        """
        if self._forgotten_since is not None and time.monotonic() - self._forgotten_since > FORGOTTEN_S:
            log.warning("group %s does not know this member any more, joining again", self.group_id)
            self._forgotten_since = None
            self._client.unsubscribe()
            self._subscribe()

    def _leave(self) -> None:
        """Ends the handler, commits and leaves the group, within what is left of the time to stop."""
        self._shutdown.request()
        self.trouble = self._handler.stop(self._shutdown.remaining_s())
        for job in self._jobs:
            self._account(job)
        try:
            self._await_letters()
        except WorkerError as error:
            self.trouble = str(error)
        self._dead_letters.close(1.0)
        left = call_with_timeout(self._close_client, max(1.0, self._shutdown.remaining_s()))
        if not left and self.trouble is None:
            self.trouble = "the group was not left in time; what was not committed is redelivered"

    def _await_letters(self) -> None:
        """A dead letter that is under way is written all the same, so its message shall not be redelivered."""
        until = time.monotonic() + min(LETTERS_TIMEOUT_S, self._shutdown.remaining_s())
        while self._letters_under_way() and time.monotonic() < until and self.client_state.fatal is None:
            self._dead_letters.poll(0.05)
        for partition in self.partitions.values():
            if partition.letter is not None and partition.letter.delivered:
                self._on_letter(partition, partition.letter)

    def _letters_under_way(self) -> bool:
        letters = [partition.letter for partition in self.partitions.values()]
        return any(letter is not None and letter.delivered is None for letter in letters)

    def _close_client(self) -> None:
        # With cooperative-sticky, close() of librdkafka 2.16 sends no LeaveGroup for a member without partitions:
        # the group would wait for it until its session times out.
        self._client.unsubscribe()
        self._client.close()


def _runs(messages: list[Message], one_topic: bool) -> Iterator[list[Message]]:
    """Cuts where the partition changes: messages arrive in long runs of one partition."""
    partitions = [*map(Message.partition, messages)]
    if one_topic and partitions.count(partitions[0]) == len(partitions):
        yield messages
        return
    begin = 0
    for _, run in groupby(zip(map(Message.topic, messages), partitions, strict=True)):
        end = begin + len([*run])
        yield messages[begin:end]
        begin = end


def _without_memo(each: TopicPartition) -> TopicPartition:
    """The same place for an assignment. With metadata librdkafka 2.16 leaks that at every commit, as it puts the stored
    offset's in its place (rd_kafka_topic_partition_list_set_offsets in rdkafka_partition.c).
    """
    epoch = -1 if each.leader_epoch is None else each.leader_epoch  # type: ignore[redundant-expr]  # it can be None
    return TopicPartition(each.topic, each.partition, each.offset, leader_epoch=epoch)


def _names(partitions: Sequence[TopicPartition]) -> str:
    return ", ".join(f"{each.topic}[{each.partition}]" for each in partitions)
