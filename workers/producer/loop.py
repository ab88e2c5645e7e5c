"""The producer: takes messages from a source, sends them, and accounts for every delivery.

Each message ends as acknowledged, failed with its error, or unknown: the delivery timed out with an attempt in flight,
so the message may be in the log. The queue is bounded here, below the client's own bound, so that a full one slows the
source and nothing is refused or reordered.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from confluent_kafka import KafkaError, KafkaException, Message

from workers.accounting.accounts import StreamSent
from workers.config import ClientConfig
from workers.deadletters.headers import invalid_line_headers
from workers.errors import ConfigError, WorkerError
from workers.kafka.client import purge_producer, wait_for_topics
from workers.kafka.renewed import RenewedProducer
from workers.lifecycle import Shutdown, call_with_timeout
from workers.loading import located
from workers.producer.deliveries import NOT_SENT, Deliveries, outcome_of
from workers.producer.rate_limit import POLL_S, RateLimiter
from workers.sources import BATCH_MESSAGES, Batch, Delivery, Record, Source

log = logging.getLogger(__name__)
# A delivery report: None and the message that was acknowledged, or the error and the message that was not.
Report: TypeAlias = Callable[[KafkaError | None, Message], None]
Headers: TypeAlias = list[tuple[str, str | bytes | None]]
# Messages and bytes that may wait for their acknowledgement.
MAX_QUEUE_MESSAGES = 100_000
MAX_QUEUE_BYTES = 64 * 1024 * 1024
# With --rate: a tenth of a core goes into a turn of the loop for each of 250 messages a second.
SLICE_S = 0.02
# Of the time to stop, this share and no more than TELL_S is kept for telling the source of what could not be sent.
TELL_SHARE = 0.1
TELL_S = 1.0
# The loop turns at least every POLL_S, unless the source's on_delivery hangs.
STALL_S = 60.0
# How long a client with old certificates may take to deliver what it has; as long as delivery.timeout.ms by default.
DRAIN_TIMEOUT_S = 120.0


class Producer:
    """One run of the producer: `start`, then `run`; the accounts are there at any time, for whoever watches."""

    def __init__(
        self,
        config: ClientConfig,
        topic: str,
        shutdown: Shutdown,
        *,
        rate: float | None = None,
        dead_letter_topic: str | None = None,
        report: Report | None = None,
        auth_timeout_s: float = 0.0,
    ) -> None:
        self._producer = RenewedProducer(config, auth_timeout_s, properties={}, topic=topic)
        self._producer.made()
        self.client_state = self._producer.state
        self.deliveries = Deliveries(topic)
        self.dead_letters = Deliveries(dead_letter_topic or f"{topic}.dlq")
        self.writes_dead_letters = dead_letter_topic is not None
        self.buffer_full = 0
        self.last_success_s = 0.0
        self.turned_at = time.monotonic()
        self.started_at = self.finished_at = time.monotonic()
        self.running = False
        self.interrupted = False
        self._config = config
        self._shutdown = shutdown
        self._rate_limiter = RateLimiter(rate, SLICE_S)
        self._on_delivery, self._on_letter = (
            each.on_delivery if report is None else partial(_both, each, report)
            for each in (self.deliveries, self.dead_letters)
        )
        _check_queue(config)
        self._partitions = 1

    def partitions(self) -> int:
        """How many partitions the topic has, as far as the client knows."""
        return self._partitions

    def start(self, timeout_s: float | None) -> None:
        """Waits for the brokers and the topic; raises as `wait_for_topics` does."""
        topic = self.deliveries.topic
        self._partitions = self._wait_for(topic, "--topic", timeout_s).get(topic, 1)
        if self.writes_dead_letters:
            self._wait_for(self.dead_letters.topic, "--dead-letter-topic", timeout_s)
        self.running = True

    def _wait_for(self, topic: str, option: str, timeout_s: float | None) -> dict[str, int]:
        return wait_for_topics(
            self._producer.client,
            [topic],
            self._config,
            self.client_state,
            timeout_s=timeout_s,
            shutdown=self._shutdown,
            refresh=self._refreshed,
            option=option,
        )

    def ready(self) -> str | None:
        """Why this producer is not ready, or None."""
        if self.client_state.statistics is None:
            return "no statistics yet"
        refused = self.client_state.refused()
        return refused if refused or self.client_state.brokers_up else "no broker can be reached"

    def live(self) -> str | None:
        """A stuck producer, or None. Waiting for brokers or for the source is not being stuck."""
        if not self.running:
            return None
        stuck_s = time.monotonic() - self.turned_at
        if stuck_s > STALL_S:
            return f"the loop has not turned for {stuck_s:.0f} s"
        silent_s = self.client_state.silent_s
        return f"the Kafka client has sent no statistics for {silent_s:.0f} s" if silent_s > STALL_S else None

    def run(
        self, source: Source, duration_s: float | None = None, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Sends what the source gives until it ends, `duration_s` is over or a stop is asked for, then waits for
        the outcomes.

        At the end, whatever brought it, nothing more is taken from the source, and what was taken is sent while time
        remains (--shutdown-timeout once a stop was asked for). Not at the pace of --rate, which would take as long as
        the source has run ahead: that is a second's worth at the most (`ahead_at`).

        Raises WorkerError on a fatal client error and SourceError when the source fails, in both cases after the
        outcome of every message is known.
        """
        self.started_at = time.monotonic()
        until = self.started_at + duration_s if duration_s is not None else float("inf")
        try:
            self._send_until(until, source, progress)
        finally:
            source.close()
            try:
                while self._take(source, BATCH_MESSAGES, progress):
                    self._hear(0)
            finally:
                self._finish()
                self.client_state.check()
                self.interrupted = self.interrupted and not source.complete

    def close(self) -> None:
        call_with_timeout(self._producer.client.close, 2.0)

    def _send_until(self, until: float, source: Source, progress: Callable[[int], None]) -> None:
        """Sends until the source is at its end, the time `until` has come, or a stop is asked for."""
        while time.monotonic() < until:
            if self._shutdown.requested:
                self.interrupted = True
                return
            self._renew()
            allowed = self._rate_limiter.allowance()
            if allowed == 0:
                self._poll(self._rate_limiter.wait_s())
            elif self._take(source, allowed, progress):
                self._poll(0)
            else:
                return

    def _take(self, source: Source, limit: int, progress: Callable[[int], None]) -> bool:
        """Takes messages from the source and sends them; False when it is at its end."""
        batch = source.take(limit, POLL_S)
        if batch is None:
            return False
        if batch.records:
            self._rate_limiter.took(len(batch.records))
            self._send(batch, source)
            progress(len(batch.records))
        return True

    def _renew(self) -> None:
        self._producer.renew(lambda: self._drain(DRAIN_TIMEOUT_S))

    def _refreshed(self) -> Any:
        """The client to use while nothing was sent yet."""
        # Not polled: `wait_for_topics` says what a fatal error is about.
        self._producer.refresh()
        self._producer.renew()
        return self._producer.client

    def _send(self, batch: Batch, source: Source) -> None:
        self._account_for(batch)
        if not self._wait_for_room(batch, source):
            for record in batch.records:
                self._report(NOT_SENT, record)
        elif batch.plain:
            self._send_plain(batch)
        else:
            for record in batch.records:
                self._send_one(record)

    def _gives_up(self) -> bool:
        """Whether what is not sent yet has failed. A part of the time to stop is left for telling the source so."""
        if self.client_state.fatal is not None:
            return True
        return self._shutdown.requested and (
            self._shutdown.remaining_s() <= min(TELL_S, self._shutdown.timeout_s * TELL_SHARE)
        )

    def _account_for(self, batch: Batch) -> None:
        invalid = 0 if batch.plain else sum("invalid" in record for record in batch.records)
        self.dead_letters.enqueued += invalid
        self.deliveries.enqueued += len(batch.records) - invalid
        if batch.stream is not None:
            self.deliveries.streams.setdefault(batch.stream, StreamSent()).sent += len(batch.records) - invalid

    def _wait_for_room(self, batch: Batch, source: Source) -> bool:
        """Blocks while the queue is full. Returns False when the time to stop runs out, or the client gave up."""
        limit = min(MAX_QUEUE_MESSAGES, max(1, MAX_QUEUE_BYTES // max(1, batch.largest_bytes)))
        waiting = self._outstanding() - len(batch.records)
        if waiting > 0 and waiting + len(batch.records) > limit:
            self.buffer_full += 1
            while self._outstanding() > max(limit, len(batch.records)) and not self._gives_up():
                self._hear(POLL_S)
                if self._shutdown.requested:
                    # It would go on to read ahead.
                    source.close()
        return not self._gives_up()

    def _outstanding(self) -> int:
        return self.deliveries.outstanding + self.dead_letters.outstanding

    def _send_plain(self, batch: Batch) -> None:
        sent = self._producer.client.produce_batch(
            self.deliveries.topic, batch.records, partition=batch.partition, on_delivery=self._on_delivery
        )
        if sent != len(batch.records):
            for record in batch.records:
                if "_error" in record:
                    self._report(record["_error"], record)

    def _send_one(self, record: Record) -> None:
        topic, on_delivery = self._route(record)
        headers = record.get("headers", [])
        if "invalid" in record:
            headers = [*headers, *invalid_line_headers(record["invalid"])]
        try:
            self._producer.client.produce(
                topic,
                record["value"],
                record["key"],
                partition=record.get("partition", -1),
                timestamp=record.get("timestamp", 0),
                headers=headers,
                on_delivery=on_delivery,
            )
        except (KafkaException, BufferError) as error:
            self._report(
                error.args[0] if isinstance(error, KafkaException) else KafkaError(KafkaError._QUEUE_FULL), record
            )

    def _route(self, record: Record) -> tuple[str, Report]:
        """The topic that a record is sent to, and the callback for its delivery report."""
        report: Report = self._on_delivery
        topic = self.deliveries.topic
        if "invalid" in record:
            topic, report = self.dead_letters.topic, self._on_letter
        if "headers" in record:
            report = partial(_with_headers, report, record["headers"])
        if "on_delivery" in record:
            report = partial(self._tell_source, report, record["on_delivery"])
        return topic, report

    def _report(self, error: KafkaError, record: Record) -> None:
        """The delivery report of a message that the client never took."""
        topic, report = self._route(record)
        message = Message(topic=topic, value=record["value"], key=record.get("key"), headers=record.get("headers"))
        report(error, message)

    def _poll(self, timeout_s: float) -> None:
        self._hear(timeout_s)
        self.client_state.check()

    def _hear(self, timeout_s: float) -> None:
        """Serves the callbacks: delivery reports, statistics, errors. A full queue may wait for a changed password."""
        self.turned_at = time.monotonic()
        self.client_state.note_turn()
        before = self.deliveries.acknowledged
        self._producer.poll(timeout_s)
        if self.deliveries.acknowledged != before:
            self.last_success_s = time.time()
        statistics = self.client_state.statistics
        if statistics is not None:
            self._partitions = statistics.topic_partitions.get(self.deliveries.topic, 0) or self._partitions

    def _tell_source(
        self,
        account: Report,
        tell: Callable[[Delivery], None],
        error: KafkaError | None,
        message: Message,
    ) -> None:
        account(error, message)
        # A slow function is progress too, and when time is up nobody waits for it.
        self.turned_at = time.monotonic()
        if self._shutdown.remaining_s() == 0:
            return
        reason = error.str() if error else None
        try:
            tell(Delivery(outcome_of(error), message.topic() or "", message.partition(), message.offset(), reason))
        except BaseException as raised:  # the user's code may raise anything; SystemExit is no end of the account
            self.client_state.fatal = self.client_state.fatal or WorkerError(
                f"the source's on_delivery raised {located(raised)}"
            )

    def _finish(self) -> None:
        """Waits until every message has its outcome; what has none at the deadline is purged, which gives it one."""
        self._drain(float("inf"))
        self.finished_at = time.monotonic()
        self.running = False

    def _drain(self, timeout_s: float) -> None:
        """Waits until the client's messages have their outcomes; purges the rest after `timeout_s`, or at a stop."""
        until = time.monotonic() + timeout_s
        while len(self._producer.client) and not self.client_state.fatal:
            wait_s = min(POLL_S, self._shutdown.remaining_s(), until - time.monotonic())
            if wait_s <= 0:
                break
            self._hear(wait_s)
        if len(self._producer.client):
            log.warning("giving up on %d messages that were not acknowledged in time", len(self._producer.client))
            purge_producer(self._producer.client, self._hear)


def _check_queue(config: ClientConfig) -> None:
    """Raises ConfigError when the client's queue is smaller than ours: it would refuse messages."""
    for name, least in (
        ("queue.buffering.max.messages", MAX_QUEUE_MESSAGES + BATCH_MESSAGES),
        ("queue.buffering.max.kbytes", MAX_QUEUE_BYTES // 1024),
    ):
        # 0 is without a limit.
        if 0 < int(config.get(name, "0")) < least:
            raise ConfigError(
                f"{config.settings[name].origin}: {name} must be at least {least}; the producer's own queue is smaller"
            )


def _with_headers(report: Report, headers: Headers, error: KafkaError | None, message: Message) -> None:
    """A delivery report comes without them (confluent-kafka 2.16), and the stamp of what has failed may be there."""
    if error is not None:
        message.set_headers(headers)
    report(error, message)


def _both(
    deliveries: Deliveries,
    report: Report,
    error: KafkaError | None,
    message: Message,
) -> None:
    deliveries.on_delivery(error, message)
    report(error, message)
