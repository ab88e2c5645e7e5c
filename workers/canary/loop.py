"""The canary: sends a stamped message to each partition every interval, and reads them back.

It assigns the partitions to itself, outside of any group: a rebalance or a slow coordinator would look like a broker
that fails. The consumers export what becomes of their commits themselves.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from workers.accounting.stamps import encode, new_run, stream_of
from workers.canary.placement import Layout
from workers.canary.probes import Probes
from workers.config import ClientConfig
from workers.kafka.client import ClientState, create_client
from workers.kafka.credentials import Credentials, CredentialsWatch
from workers.kafka.messages import stamp_of
from workers.kafka.renewed import RenewedProducer
from workers.lifecycle import Shutdown, call_with_timeout

log = logging.getLogger("workers")
# How long a turn of the loop waits for a message, and while an acknowledgement is due for either: the client measures a
# latency until it is asked.
POLL_S = 0.05
SHORT_POLL_S = 0.002
BATCH_MESSAGES = 500
STALL_S = 60.0
CLOSE_TIMEOUT_S = 2.0
# Of the time to stop; the rest is for ending the clients.
ACKNOWLEDGED_SHARE = 0.8
# A consumer that does not read a partition is replaced no more often than this.
RECONNECT_INTERVAL_S = 30.0
# Of the consumer: where an offset does not exist any more, all messages that are left count. It stores no offset, so
# that none is committed.
CONSUMER_PROPERTIES = {"auto.offset.reset": "earliest"}
# The client does not know the partition yet that brokers have.
_NOT_YET = frozenset({KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC})


@dataclass(frozen=True, slots=True)
class Options:
    """Times in seconds."""

    topic: str
    interval_s: float
    max_latency_s: float
    lost_after_s: float


@dataclass(frozen=True, slots=True)
class Status:
    """The state at the end of a round; `brokers` has the share of a broker's partitions that is available.

    Shares are 0 to 1; a broker of which nothing is known is not in `brokers`. `availability` is None before the first
    result.
    """

    availability: float | None = None
    brokers: Mapping[int, float] = field(default_factory=dict)
    partitions: int = 0
    uncovered: int = 0


class Canary:
    """One run of the canary. The loop's thread calls `run`; any thread may read `status`, `ready` and `live`.

    `config` is the consumer's, and `connect` makes a consumer of the properties that are given besides; `layout`
    returns the latest layout of the topic.
    """

    def __init__(
        self,
        producer: RenewedProducer,
        config: ClientConfig,
        layout: Callable[[], Layout],
        options: Options,
        shutdown: Shutdown,
        *,
        auth_timeout_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        connect: Callable[[dict[str, Any]], Any] | None = None,
        accepted: Callable[[Credentials], bool] = lambda _: True,
    ) -> None:
        self.run_name = new_run()
        self.probes = Probes(options.max_latency_s, options.lost_after_s)
        self.status = Status()
        self.client_state, self._consumer_state = producer.state, ClientState(config, auth_timeout_s)
        self._credentials = CredentialsWatch(config, self._consumer_state, accepted)
        self.duration_s = 0.0
        self._producer = producer
        self._connect = connect or (
            lambda own: create_client(confluent_kafka.Consumer, config, own, self._credentials.credentials)
        )
        self._latest_layout = layout
        self._layout = Layout()
        self._options = options
        self._shutdown = shutdown
        self._clock = clock
        self._streams: dict[int, bytes] = {}
        # The offsets that follow those received.
        self._positions: dict[int, int] = {}
        self.reconnects = 0
        self._reconnected_at = float("-inf")
        self._was_available: dict[int, bool] = {}
        # None before the first turn.
        self._turned_at: float | None = None

    def start(self) -> None:
        """Create the clients; raises ConfigError. Statistics of clients that nobody polls would pile up before."""
        self._producer.made()
        self._consumer = self._create_consumer()

    def ready(self) -> str | None:
        """Why the canary is not ready, or None."""
        if self.client_state.statistics is None:
            return "no statistics yet"
        if refused := self.client_state.refused() or self._consumer_state.refused():
            return refused
        if not self.client_state.brokers_up:
            return "no broker can be reached"
        return None if self._streams else f"no partition of {self._options.topic} can be read yet"

    def live(self) -> str | None:
        """Why the loop is stuck, or None. Brokers that do not answer do not stop it."""
        stuck_s = 0.0 if self._turned_at is None else self._clock() - self._turned_at
        return f"the loop has not turned for {stuck_s:.0f} s" if stuck_s > STALL_S else None

    def run(self) -> None:
        """Probe until a stop is requested, then wait for the messages under way; raises WorkerError as the clients."""
        began = following = self._clock()
        try:
            while not self._shutdown.requested:
                if self._clock() >= following:
                    self.begin_round()
                    # Rounds that took too long are left out, not made up for.
                    following = max(following + self._options.interval_s, self._clock())
                self.serve(max(0.0, min(POLL_S, following - self._clock())))
            self._await_outcomes()
            self.probes.look(self._clock())
        finally:
            self.duration_s = self._clock() - began

    def close(self) -> None:
        """Close both clients, or leave them behind after CLOSE_TIMEOUT_S."""
        self._close_consumer()
        call_with_timeout(self._producer.made().close, CLOSE_TIMEOUT_S)

    def begin_round(self) -> None:
        """Judge the messages so far, and send a new one to each partition that can be read.

        None is sent while the producer is to be renewed.
        """
        now = self._clock()
        layout = self._latest_layout()
        if layout.partitions:
            self._layout = layout
        self._assign(self._layout)
        self.probes.look(now)
        for number, placed in self._layout.partitions.items():
            self.probes.expect(number, now)
            # A probe in each interval would keep a client in use that brokers refuse.
            if number in self._streams and not self._producer.due:
                self._send(number, placed.leader)
        self._reconnect_if_stuck(now)
        self._publish(self._layout)

    def serve(self, timeout_s: float) -> None:
        """Take delivery reports and messages; waits for a message up to `timeout_s`. Raises WorkerError."""
        self._turned_at = self._clock()
        short_s = min(timeout_s, SHORT_POLL_S)
        due = self._under_way > 0
        self._producer.serve(short_s if due else 0, self._options.max_latency_s)
        self._renew_consumer()
        message = self._consumer.poll(short_s if due else timeout_s)
        while message is not None:
            now = self._clock()
            for each in (message, *self._consumer.consume(BATCH_MESSAGES, 0)):
                self._receive(each, now)
            message = self._consumer.poll(0)
        self.client_state.check()
        self._consumer_state.check()

    def _await_outcomes(self) -> None:
        """Wait for the messages under way; those that are not acknowledged in the time to stop have failed."""
        received_until = self._clock() + self._options.max_latency_s
        acknowledged_until = self._clock() + ACKNOWLEDGED_SHARE * self._shutdown.remaining_s()
        while (self._under_way and self._clock() < acknowledged_until) or (
            self.probes.outstanding and self._clock() < min(received_until, acknowledged_until)
        ):
            self.serve(POLL_S)
        if self._under_way:
            self._producer.purge()

    @property
    def _under_way(self) -> int:
        """How many messages have no acknowledgement yet."""
        return len(self._producer.made())

    def _create_consumer(self) -> Any:
        return self._connect({**self._consumer_state.callbacks(), **CONSUMER_PROPERTIES})

    def _renew_consumer(self) -> None:
        """Have a new consumer take the place of the old one, where credentials have changed and brokers accept it."""
        fresh = self._credentials.renew(self._consumer, self._create_consumer, self._options.topic)
        if fresh is not None:
            self._replace_consumer(fresh, self._positions)

    def _replace_consumer(self, fresh: Any, offsets: Mapping[int, int]) -> None:
        self._close_consumer()
        self._consumer = fresh
        self._read_from(offsets)

    def _close_consumer(self) -> None:
        self._consumer.unassign()
        call_with_timeout(self._consumer.close, CLOSE_TIMEOUT_S)

    def _assign(self, layout: Layout) -> None:
        new = {number: start for number, start in layout.starts.items() if number not in self._streams}
        if new:
            self._positions |= new
            self._read_from(new)
            self._streams |= {number: stream_of(self.run_name, 0, number) for number in new}

    def _read_from(self, offsets: Mapping[int, int]) -> None:
        places = [TopicPartition(self._options.topic, number, offset) for number, offset in offsets.items()]
        self._consumer.incremental_assign(places)

    def _reconnect_if_stuck(self, now: float) -> None:
        """Replace the consumer when it does not read a partition that its leader has acknowledged messages of.

        librdkafka ignores a topic that was created again while its leader epoch is lower than before, and a fetch can
        hang.
        """
        if now - self._reconnected_at < RECONNECT_INTERVAL_S:
            return
        # A topic that was created again may have fewer partitions.
        unread = {number: self.probes.unread(number) for number in self._streams if number in self._layout.partitions}
        stuck = [
            number
            for number, each in unread.items()
            if each is not None
            and now - each.since > self._options.lost_after_s
            and self._layout.partitions[number].leader in self._layout.brokers
        ]
        if not stuck:
            return
        log.warning(
            "%s[%s]: acknowledged messages were not received for %g s; reading them with a new client",
            self._options.topic,
            ", ".join(map(str, stuck)),
            self._options.lost_after_s,
        )
        self.reconnects += 1
        self._reconnected_at = now
        lowest = {
            number: each.offset for number, each in unread.items() if each is not None and each.offset is not None
        }
        self._replace_consumer(self._create_consumer(), self._positions | lowest)

    def _send(self, partition: int, broker: int) -> None:
        now = self._clock()
        sequence = self.probes.send(partition, broker, now)
        try:
            self._producer.made().produce(
                self._options.topic,
                encode(self._streams[partition], sequence, time.time_ns() // 1000),
                partition=partition,
                on_delivery=partial(self._on_delivery, partition, broker, sequence),
            )
        except KafkaException as raised:
            if raised.args[0].code() in _NOT_YET:
                self.probes.withdraw(partition)
            else:
                self.probes.fail(partition, broker, sequence)
                self.client_state.say(raised.args[0].name(), raised.args[0].str())
        except BufferError:
            self.probes.fail(partition, broker, sequence)

    def _on_delivery(
        self, partition: int, broker: int, sequence: int, error: KafkaError | None, message: Message
    ) -> None:
        if error is None:
            latency_s = message.latency() or 0.0
            self.probes.acknowledge(partition, broker, sequence, message.offset(), latency_s, self._clock())
        else:
            self.probes.fail(partition, broker, sequence)
            self.client_state.say(f"{self._options.topic}[{partition}] {error.name()}", error.str())

    def _receive(self, message: Message, now: float) -> None:
        error = message.error()
        if error is not None:
            self._consumer_state.say(error.name(), error.str())
            return
        stamp, partition, offset = stamp_of(message), message.partition(), message.offset()
        if partition is not None and offset is not None:
            self._positions[partition] = offset + 1
        if stamp is not None and partition is not None and stamp.stream == self._streams.get(partition):
            self.probes.receive(partition, stamp.sequence, now)

    def _publish(self, layout: Layout) -> None:
        brokers = {}
        for broker in sorted(layout.members):
            share = self.probes.availability(layout.led_by(broker)) if broker in layout.brokers else 0.0
            if share is not None:
                brokers[broker] = share
                self._log_change(layout, broker, share)
        availability = self.probes.availability(layout.partitions)
        self.status = Status(availability, brokers, len(layout.partitions), len(layout.uncovered))

    def _log_change(self, layout: Layout, broker: int, share: float) -> None:
        available = share == 1
        if self._was_available.get(broker) == available:
            return
        self._was_available[broker] = available
        if available:
            log.info("broker %d: available", broker)
        elif broker not in layout.brokers:
            log.warning("broker %d: unavailable: the other brokers do not list it", broker)
        else:
            missed = [number for number in layout.led_by(broker) if not self.probes.available(number)]
            log.warning(
                "broker %d: unavailable: the latest message to %s[%s] was not received within %g s",
                broker,
                self._options.topic,
                ", ".join(map(str, missed)),
                self._options.max_latency_s,
            )
