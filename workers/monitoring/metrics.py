"""Every metric of the workers, with its meaning; docs/metrics.md is made from this table.

The workers count in plain integers. The collectors here read those when Prometheus scrapes, so that the hot path
pays nothing, and label values that are known in advance are there with 0 from the start.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import confluent_kafka
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from workers import __version__
from workers.accounting.histogram import LatencyHistogram
from workers.kafka.fields import COMPILED
from workers.producer.deliveries import LATENCY_SAMPLE

if TYPE_CHECKING:
    # A worker starts without the modules of the other workers.
    from workers.canary.loop import Canary, Status
    from workers.canary.placement import Placement
    from workers.consumer.loop import Consumer
    from workers.consumer.status import ConsumerStatus
    from workers.kafka.client import ClientState
    from workers.monitoring.group_lag import GroupLag, Picture
    from workers.producer.deliveries import Deliveries
    from workers.producer.loop import Producer


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric: its type in Prometheus' words, its labels, and its meaning."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


PRODUCER = (
    Definition("kafka_producer_messages_enqueued_total", "counter", ("topic",), "Messages handed to the client."),
    Definition(
        "kafka_producer_deliveries_total",
        "counter",
        ("topic", "outcome"),
        "Delivery reports: success (every in-sync replica has the message), failure (it is not in the log), "
        "unknown (the delivery timed out with an attempt in flight, so it may be in the log).",
    ),
    Definition(
        "kafka_producer_delivery_failures_total",
        "counter",
        ("topic", "error"),
        "Failed and unknown deliveries, by librdkafka's name of the error; `_STOPPED` for messages that a stop left "
        "unsent.",
    ),
    Definition(
        "kafka_producer_delivery_latency_seconds",
        "histogram",
        ("topic",),
        f"Time from handing a message to the client to its acknowledgement, for one delivery in {LATENCY_SAMPLE}.",
    ),
    Definition("kafka_producer_queue_messages", "gauge", (), "Messages waiting for their acknowledgement."),
    Definition("kafka_producer_queue_bytes", "gauge", (), "Bytes of these messages, as of the last statistics."),
    Definition("kafka_producer_buffer_full_total", "counter", (), "Times that a full queue made the source wait."),
    Definition(
        "kafka_producer_last_success_timestamp_seconds",
        "gauge",
        (),
        "Unix time of the last acknowledgement, 0 before the first.",
    ),
)
CONSUMER = (
    Definition(
        "kafka_consumer_lag_messages",
        "gauge",
        ("group", "topic", "partition"),
        "Messages of a partition that are not handled yet. Exported while this member owns the partition and knows "
        "its end.",
    ),
    Definition(
        "kafka_consumer_lag_seconds",
        "gauge",
        ("group", "topic", "partition"),
        "Age of the oldest message that is not handled yet, 0 when there is none.",
    ),
    Definition(
        "kafka_consumer_messages_total",
        "counter",
        ("topic", "outcome"),
        "Messages by outcome: success (the handler returned), retry (it raised and will be called again), dead_letter "
        "(written to the dead-letter topic).",
    ),
    Definition(
        "kafka_consumer_end_to_end_latency_seconds",
        "histogram",
        ("topic",),
        "Time from a message's timestamp to its handler's return, for one message of each batch. Clocks must agree.",
    ),
    Definition(
        "kafka_consumer_offset_distance",
        "gauge",
        ("group", "topic", "partition"),
        "Messages that are done beyond the first one that is not done (--concurrency), at most --max-offset-distance.",
    ),
    Definition(
        "kafka_consumer_fetch_stalled_seconds",
        "gauge",
        ("group", "topic", "partition"),
        "Time without a message while the broker has messages and the client's queue is empty; 0 is normal.",
    ),
    Definition(
        "kafka_consumer_fetch_recoveries_total",
        "counter",
        ("action",),
        "Recoveries of partitions whose fetch hung: seek, rejoin (join the group with a new client).",
    ),
    Definition(
        "kafka_consumer_deleted_messages_total",
        "counter",
        ("topic",),
        "Offsets that retention deleted before their messages were handled.",
    ),
    Definition(
        "kafka_consumer_outputs_total",
        "counter",
        ("topic", "outcome"),
        "Outputs of the handler, by their topic: success (every in-sync replica has the output), failure (it is not in "
        "the log), unknown (the delivery timed out with an attempt in flight, so it may be in the log).",
    ),
    Definition(
        "kafka_consumer_outputs_in_flight",
        "gauge",
        (),
        "Outputs of the handler that are not acknowledged yet.",
    ),
    Definition("kafka_consumer_in_flight", "gauge", (), "Running calls of the handler."),
    Definition("kafka_consumer_waiting_messages", "gauge", (), "Received messages that are not committable yet."),
    Definition(
        "kafka_consumer_buffered_bytes", "gauge", (), "Bytes of the keys, values and headers of these messages."
    ),
    Definition("kafka_consumer_shards", "gauge", (), "Keys, or partitions, with messages that wait for the handler."),
    Definition(
        "kafka_consumer_blocked_shards", "gauge", (), "Keys, or partitions, that wait for a retry or a dead letter."
    ),
    Definition("kafka_consumer_oldest_in_flight_seconds", "gauge", (), "Age of the oldest running call."),
    Definition("kafka_consumer_event_loop_lag_seconds", "gauge", (), "Delay of the event loop of an async handler."),
    Definition(
        "kafka_consumer_assigned_partitions", "gauge", (), "Partitions that this member owns; 0 is an idle member."
    ),
    Definition(
        "kafka_consumer_rebalances_total",
        "counter",
        ("event",),
        "Rebalance events: assign, revoke, lost (the group took the partitions away before this member could commit).",
    ),
    Definition(
        "kafka_consumer_commits_total",
        "counter",
        ("outcome",),
        "Offset commits: success or failure. With --exactly-once transactions: success (committed), failure (aborted, "
        "or of unknown outcome).",
    ),
    Definition(
        "kafka_consumer_missing_total",
        "counter",
        ("topic",),
        "Sequence numbers skipped in stamped messages. A message that comes late counts as reordered too.",
    ),
    Definition(
        "kafka_consumer_duplicates_total", "counter", ("topic",), "Stamped messages that are in the log a second time."
    ),
    Definition(
        "kafka_consumer_reordered_total", "counter", ("topic",), "Stamped messages that come after a later one."
    ),
    Definition(
        "kafka_consumer_stats_timestamp_seconds", "gauge", (), "Unix time of the last statistics, 0 before the first."
    ),
)
_BY_PARTITION = ("group", "topic", "partition")
LAG = (
    Definition(
        "kafka_group_lag_messages",
        "gauge",
        _BY_PARTITION,
        "Messages up to the last stable offset that the group has not committed, without deleted ones. Counted in "
        "offsets, so transaction markers and compacted messages count too. Absent where the group has committed "
        "nothing.",
    ),
    Definition(
        "kafka_group_lag_seconds",
        "gauge",
        _BY_PARTITION,
        "Age of the oldest message that the group has not committed, 0 when there is none, as of the last round. "
        "Estimated from the end offsets of earlier rounds; for older messages from timestamps, to a twentieth; without "
        "timestamps since the exporter's first round.",
    ),
    Definition("kafka_group_committed_offset", "gauge", _BY_PARTITION, "Offset that the group has committed."),
    Definition(
        "kafka_group_deleted_messages_total",
        "counter",
        _BY_PARTITION,
        "Messages that were deleted, by retention for example, before the group had committed them. Messages deleted "
        "before the exporter's start count if the group has not passed them yet.",
    ),
    Definition(
        "kafka_group_uncommitted_partitions",
        "gauge",
        ("group", "topic"),
        "Partitions with messages and no committed offset of the group: their lag is not known.",
    ),
    Definition("kafka_group_members", "gauge", ("group",), "Members of the group, 0 when there are none."),
    Definition(
        "kafka_group_info", "gauge", ("group", "state", "protocol"), "State and protocol of the group, always 1."
    ),
    Definition("kafka_topic_beginning_offset", "gauge", ("topic", "partition"), "Offset of the first message."),
    Definition(
        "kafka_topic_end_offset",
        "gauge",
        ("topic", "partition"),
        "Last stable offset, at which a consumer with isolation.level=read_committed has read everything.",
    ),
    Definition(
        "kafka_lag_exporter_complete_timestamp_seconds",
        "gauge",
        (),
        "Unix time of the last round in which all brokers answered, 0 before the first. Values of brokers that do not "
        "answer stay for --keep seconds.",
    ),
    Definition("kafka_lag_exporter_round_seconds", "gauge", (), "Duration of the last round."),
    Definition("kafka_lag_exporter_rounds_total", "counter", (), "Rounds, complete or not."),
)
_BY_LEADER = ("partition", "broker")
CANARY = (
    Definition(
        "kafka_canary_sent_total",
        "counter",
        _BY_LEADER,
        "Messages sent to a partition. Here and below, broker is the partition's leader at that time, -1 for none.",
    ),
    Definition("kafka_canary_acknowledged_total", "counter", _BY_LEADER, "Messages that every in-sync replica has."),
    Definition(
        "kafka_canary_failed_total",
        "counter",
        _BY_LEADER,
        "Messages without an acknowledgement: failed (not in the log), or unknown (the delivery timed out).",
    ),
    Definition("kafka_canary_received_total", "counter", _BY_LEADER, "Messages read back, each counted once."),
    Definition(
        "kafka_canary_lost_total",
        "counter",
        _BY_LEADER,
        "Acknowledged messages that were not received within --lost-after, although a later one of the partition was.",
    ),
    Definition("kafka_canary_recovered_total", "counter", _BY_LEADER, "Lost messages that were received after all."),
    Definition("kafka_canary_duplicates_total", "counter", _BY_LEADER, "Messages read a second time or more."),
    Definition(
        "kafka_canary_produce_latency_seconds",
        "histogram",
        _BY_LEADER,
        "Time from handing a message to the client to its acknowledgement.",
    ),
    Definition(
        "kafka_canary_end_to_end_latency_seconds",
        "histogram",
        _BY_LEADER,
        "Time from handing a message to the client to its reception, on one clock.",
    ),
    Definition(
        "kafka_canary_availability_ratio",
        "gauge",
        (),
        "Share of partitions whose latest message was received within --max-latency. Absent before the first result.",
    ),
    Definition(
        "kafka_canary_broker_availability_ratio",
        "gauge",
        ("broker",),
        "The same share of the partitions that a broker leads; 0 for a broker that the others do not list. Absent for "
        "a broker that leads none.",
    ),
    Definition("kafka_canary_partitions", "gauge", (), "Partitions of the topic."),
    Definition(
        "kafka_canary_uncovered_brokers",
        "gauge",
        (),
        "Live brokers that lead no partition of the topic, so the canary does not measure them.",
    ),
    Definition(
        "kafka_canary_reconnects_total",
        "counter",
        (),
        "Times that the canary replaced its consumer, which had not received acknowledged messages for --lost-after.",
    ),
    Definition(
        "kafka_canary_topic_changes_total",
        "counter",
        ("change", "outcome"),
        "Changes of the topic: create_topic, add_partitions or elect_leaders (preferred leaders); success or failure.",
    ),
)
CLIENT = (
    Definition(
        "kafka_client_broker_rtt_seconds",
        "summary",
        ("broker", "quantile"),
        "Round trip of requests to a broker over the last statistics interval.",
    ),
    Definition(
        "kafka_client_credentials_renewals_total",
        "counter",
        ("kind",),
        "Changed credentials that the running worker picked up: ca, certificate, password (also a client secret).",
    ),
    Definition(
        "kafka_client_certificate_expiry_timestamp_seconds",
        "gauge",
        ("kind",),
        "Expiry of the certificates in use, as Unix time: certificate (the client's), ca (of the trusted ones the last "
        "to expire). Only for PEM files, not for a keystore.",
    ),
    Definition(
        "kafka_client_refusing_brokers",
        "gauge",
        (),
        "Brokers that refused the credentials, or whose certificate is not trusted, at the last attempt.",
    ),
    Definition("kafka_client_info", "info", (), "Versions, client id, and whether the package was compiled, always 1."),
)
_BY_NAME = {definition.name: definition for definition in (*PRODUCER, *CONSUMER, *LAG, *CANARY, *CLIENT)}


def _counter(name: str) -> CounterMetricFamily:
    definition = _BY_NAME[name]
    return CounterMetricFamily(name.removesuffix("_total"), definition.meaning, labels=definition.labels)


def _gauge(name: str) -> GaugeMetricFamily:
    definition = _BY_NAME[name]
    return GaugeMetricFamily(name, definition.meaning, labels=definition.labels)


def _family(name: str) -> CounterMetricFamily | GaugeMetricFamily:
    return _counter(name) if _BY_NAME[name].kind == "counter" else _gauge(name)


def _one(name: str, value: float | None) -> Metric:
    """A metric without labels; without a sample where its value is not known."""
    family = _family(name)
    if value is not None:
        family.add_metric([], value)
    return family


def _by(name: str, values: Mapping[str, float] | Mapping[tuple[str, str], float]) -> Metric:
    """A metric with a sample for each value of its label, or of its labels."""
    family = _family(name)
    for labels, value in values.items():
        family.add_metric([labels] if isinstance(labels, str) else labels, value)
    return family


def _histogram(name: str, by_labels: Iterable[tuple[Sequence[str], LatencyHistogram]]) -> HistogramMetricFamily:
    definition = _BY_NAME[name]
    family = HistogramMetricFamily(name, definition.meaning, labels=definition.labels)
    for labels, latencies in by_labels:
        family.add_metric(labels, latencies.cumulative(), latencies.total_s)
    return family


def _client(client_state: "ClientState", client_id: str) -> Iterator[Metric]:
    name = "kafka_client_broker_rtt_seconds"
    rtt = Metric(name, _BY_NAME[name].meaning, "summary")
    if client_state.statistics is not None:
        for broker, quantiles in client_state.statistics.broker_rtt_s.items():
            for quantile, seconds in quantiles.items():
                rtt.add_sample(name, {"broker": broker, "quantile": quantile}, seconds)
    yield rtt
    yield _by("kafka_client_credentials_renewals_total", client_state.renewals)
    yield _by("kafka_client_certificate_expiry_timestamp_seconds", client_state.certificate_expiries_s)
    yield _one("kafka_client_refusing_brokers", client_state.refusing_brokers)
    info = InfoMetricFamily("kafka_client", _BY_NAME["kafka_client_info"].meaning)
    versions = {"version": __version__, "librdkafka_version": confluent_kafka.libversion()[0]}
    info.add_metric([], {"client_id": client_id, **versions, "compiled": str(COMPILED).lower()})
    yield info


class ProducerCollector(Collector):
    """Reads a producer's accounts at every scrape."""

    def __init__(self, producer: "Producer", client_id: str) -> None:
        self._producer = producer
        self._client_id = client_id

    def collect(self) -> Iterator[Metric]:
        producer = self._producer
        topics = [producer.deliveries]
        if producer.writes_dead_letters:
            topics.append(producer.dead_letters)
        statistics = producer.client_state.statistics
        yield from _deliveries(topics)
        yield _one("kafka_producer_queue_messages", sum(each.outstanding for each in topics))
        yield _one("kafka_producer_queue_bytes", statistics.queue_bytes if statistics else 0)
        yield _one("kafka_producer_buffer_full_total", producer.buffer_full)
        yield _one("kafka_producer_last_success_timestamp_seconds", producer.last_success_s)
        yield from _client(producer.client_state, self._client_id)


def _add_outcomes(counter: CounterMetricFamily, deliveries: "Deliveries") -> None:
    counter.add_metric([deliveries.topic, "success"], deliveries.acknowledged)
    counter.add_metric([deliveries.topic, "failure"], deliveries.failed)
    counter.add_metric([deliveries.topic, "unknown"], deliveries.unknown)


def _deliveries(topics: "list[Deliveries]") -> Iterator[Metric]:
    enqueued = _counter("kafka_producer_messages_enqueued_total")
    outcomes = _counter("kafka_producer_deliveries_total")
    failures = _counter("kafka_producer_delivery_failures_total")
    for each in topics:
        enqueued.add_metric([each.topic], each.enqueued)
        _add_outcomes(outcomes, each)
        for error, count in list(each.errors.items()):
            failures.add_metric([each.topic, error], count)
    yield from (enqueued, outcomes, failures)
    yield _histogram("kafka_producer_delivery_latency_seconds", [([each.topic], each.latencies) for each in topics])


class ConsumerCollector(Collector):
    """Reads a consumer's accounts at every scrape."""

    def __init__(self, consumer: "Consumer", client_id: str) -> None:
        self._consumer = consumer
        self._client_id = client_id

    def collect(self) -> Iterator[Metric]:
        consumer, status = self._consumer, self._consumer.status
        yield from self._lag(status)
        messages = _counter("kafka_consumer_messages_total")
        deleted = _counter("kafka_consumer_deleted_messages_total")
        missing = _counter("kafka_consumer_missing_total")
        duplicates = _counter("kafka_consumer_duplicates_total")
        reordered = _counter("kafka_consumer_reordered_total")
        topics = list(status.topics.values())
        for topic in topics:
            messages.add_metric([topic.name, "success"], topic.handled)
            messages.add_metric([topic.name, "retry"], topic.retried)
            messages.add_metric([topic.name, "dead_letter"], topic.dead_lettered)
            deleted.add_metric([topic.name], topic.deleted)
            missing.add_metric([topic.name], topic.order.missing)
            duplicates.add_metric([topic.name], topic.order.duplicates)
            reordered.add_metric([topic.name], topic.order.reordered)
        yield from (messages, deleted, missing, duplicates, reordered)
        yield _histogram(
            "kafka_consumer_end_to_end_latency_seconds", [([topic.name], topic.latencies) for topic in topics]
        )
        outputs = _counter("kafka_consumer_outputs_total")
        for deliveries in list(status.outputs.values()):
            _add_outcomes(outputs, deliveries)
        yield outputs
        yield _one("kafka_consumer_assigned_partitions", len(status.partitions))
        yield _one("kafka_consumer_outputs_in_flight", status.outputs_in_flight)
        yield _one("kafka_consumer_in_flight", status.in_flight)
        yield _one("kafka_consumer_waiting_messages", status.waiting)
        yield _one("kafka_consumer_buffered_bytes", status.buffered_bytes)
        yield _one("kafka_consumer_shards", status.shards)
        yield _one("kafka_consumer_blocked_shards", status.blocked_shards)
        yield _one("kafka_consumer_oldest_in_flight_seconds", status.oldest_in_flight_s)
        yield _one("kafka_consumer_event_loop_lag_seconds", status.event_loop_lag_s)
        yield _by("kafka_consumer_fetch_recoveries_total", status.fetch_recoveries)
        yield _by("kafka_consumer_rebalances_total", status.rebalances)
        yield _by("kafka_consumer_commits_total", status.commits)
        statistics = consumer.client_state.statistics
        yield _one("kafka_consumer_stats_timestamp_seconds", statistics.timestamp_s if statistics else 0)
        yield from _client(consumer.client_state, self._client_id)

    def _lag(self, status: "ConsumerStatus") -> Iterator[Metric]:
        in_messages = _gauge("kafka_consumer_lag_messages")
        in_seconds = _gauge("kafka_consumer_lag_seconds")
        distance = _gauge("kafka_consumer_offset_distance")
        stalled = _gauge("kafka_consumer_fetch_stalled_seconds")
        for each in status.partitions:
            labels = [self._consumer.group_id, each.topic, str(each.partition)]
            if each.lag_messages is not None and each.lag_seconds is not None:
                in_messages.add_metric(labels, each.lag_messages)
                in_seconds.add_metric(labels, each.lag_seconds)
            distance.add_metric(labels, each.offset_distance)
            stalled.add_metric(labels, each.fetch_stalled_s)
        yield from (in_messages, in_seconds, distance, stalled)


class LagCollector(Collector):
    """Reads the last round's picture at every scrape; asks no broker."""

    def __init__(self, group_lag: "GroupLag", client_state: "ClientState", client_id: str) -> None:
        self._group_lag = group_lag
        self._client_state = client_state
        self._client_id = client_id

    def collect(self) -> Iterator[Metric]:
        picture = self._group_lag.picture
        yield from _group_partitions(picture)
        yield from _groups(picture)
        beginnings, ends = _gauge("kafka_topic_beginning_offset"), _gauge("kafka_topic_end_offset")
        for (topic, partition), (beginning, end) in picture.ranges.items():
            beginnings.add_metric([topic, str(partition)], beginning)
            ends.add_metric([topic, str(partition)], end)
        yield from (beginnings, ends)
        yield _one("kafka_lag_exporter_complete_timestamp_seconds", picture.complete_at_s)
        yield _one("kafka_lag_exporter_round_seconds", picture.round_s)
        yield _one("kafka_lag_exporter_rounds_total", picture.rounds)
        yield from _client(self._client_state, self._client_id)


def _group_partitions(picture: "Picture") -> Iterator[Metric]:
    in_messages, in_seconds = _gauge("kafka_group_lag_messages"), _gauge("kafka_group_lag_seconds")
    committed, deleted = _gauge("kafka_group_committed_offset"), _counter("kafka_group_deleted_messages_total")
    for group in picture.groups:
        for each in group.partitions:
            if each.committed is None or each.lag_messages is None:
                continue
            labels = [group.group_id, each.topic, str(each.partition)]
            at = (group.group_id, (each.topic, each.partition))
            in_messages.add_metric(labels, each.lag_messages)
            in_seconds.add_metric(labels, picture.lag_s[at])
            committed.add_metric(labels, each.committed)
            deleted.add_metric(labels, picture.deleted[at])
    yield from (in_messages, in_seconds, committed, deleted)


def _groups(picture: "Picture") -> Iterator[Metric]:
    members, info = _gauge("kafka_group_members"), _gauge("kafka_group_info")
    uncommitted = _gauge("kafka_group_uncommitted_partitions")
    for group in picture.groups:
        members.add_metric([group.group_id], len(group.members))
        info.add_metric([group.group_id, group.state, group.protocol], 1)
        unread = dict.fromkeys((each.topic for each in group.partitions), 0)
        for each in group.unread:
            unread[each.topic] += 1
        for topic, count in unread.items():
            uncommitted.add_metric([group.group_id, topic], count)
    yield from (members, info, uncommitted)


class CanaryCollector(Collector):
    """Reads the canary's account at every scrape."""

    def __init__(self, canary: "Canary", placement: "Placement", client_id: str) -> None:
        self._canary = canary
        self._placement = placement
        self._client_id = client_id

    def collect(self) -> Iterator[Metric]:
        # A copy: the loop adds partitions meanwhile.
        counts = {
            (str(partition), str(broker)): each
            for (partition, broker), each in self._canary.probes.counts.copy().items()
        }
        from workers.canary.probes import COUNTS

        for name in COUNTS:
            yield _by(f"kafka_canary_{name}_total", {labels: getattr(each, name) for labels, each in counts.items()})
        for name in ("produce_latency", "end_to_end_latency"):
            histograms = ((labels, getattr(each, name)) for labels, each in counts.items())
            yield _histogram(f"kafka_canary_{name}_seconds", histograms)
        yield from self._status(self._canary.status)
        yield _one("kafka_canary_reconnects_total", self._canary.reconnects)
        yield _by("kafka_canary_topic_changes_total", self._placement.changes)
        yield from _client(self._canary.client_state, self._client_id)

    def _status(self, status: "Status") -> Iterator[Metric]:
        brokers = {str(broker): share for broker, share in status.brokers.items()}
        yield _one("kafka_canary_availability_ratio", status.availability)
        yield _by("kafka_canary_broker_availability_ratio", brokers)
        yield _one("kafka_canary_partitions", status.partitions)
        yield _one("kafka_canary_uncovered_brokers", status.uncovered)


def markdown() -> str:
    """The tables of docs/metrics.md."""
    parts = []
    sections = {
        "Producer": PRODUCER, "Consumer": CONSUMER, "Lag exporter": LAG, "Canary": CANARY, "All": CLIENT,
    }  # fmt: skip
    for title, definitions in sections.items():
        rows = [f"| `{d.name}` | {d.kind} | {', '.join(d.labels) or '-'} | {d.meaning} |" for d in definitions]
        parts.append(
            "\n".join([f"## {title}", "", "| metric | type | labels | meaning |", "| --- | --- | --- | --- |", *rows])
        )
    return "\n\n".join(parts) + "\n"
