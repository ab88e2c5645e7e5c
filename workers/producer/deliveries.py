"""The outcome of every delivery."""

from collections import Counter

from confluent_kafka import KafkaError, Message

from workers.accounting.accounts import StreamSent
from workers.accounting.histogram import LatencyHistogram
from workers.kafka.client import reason_of
from workers.kafka.messages import stamp_of

# Every 16th delivery is timed.
LATENCY_SAMPLE = 16
# Errors after which a message is not in the log. After any other it may be: librdkafka may have sent it and lost the
# answer (INTRODUCTION.md of librdkafka, "Message reliability"; RD_KAFKA_MSG_STATUS_POSSIBLY_PERSISTED). So _PURGE_QUEUE
# is not among them: what waits for its second attempt is purged with it.
NOT_WRITTEN = frozenset(
    {
        KafkaError._INTR,  # NOT_SENT; no delivery report of librdkafka's has it
        KafkaError._QUEUE_FULL,
        KafkaError._INVALID_ARG,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.POLICY_VIOLATION,
    }
)


class NotSentError(KafkaError):
    """The error of a message that was taken from the source and never handed to the client."""

    def name(self) -> str:
        return "_STOPPED"


NOT_SENT = NotSentError(KafkaError._INTR, "the producer stopped before it could send the message")


class Deliveries:
    """Counts of the messages sent to one topic, by outcome. Plain integers, as every message is counted.

    Once nothing is queued, `enqueued == acknowledged + failed + unknown`.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.enqueued = 0
        self.acknowledged = 0
        self.unknown = 0
        self.failed = 0
        self.errors: Counter[str] = Counter()
        # Of the first message that was not acknowledged.
        self.first_error = ""
        self.latencies = LatencyHistogram()
        self.streams: dict[bytes, StreamSent] = {}

    @property
    def outstanding(self) -> int:
        return self.enqueued - self.acknowledged - self.failed - self.unknown

    def on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """The delivery report, once for each message, from inside `poll`."""
        if error is None:
            self.acknowledged = count = self.acknowledged + 1
            if count % LATENCY_SAMPLE == 1:
                self.latencies.add(message.latency() or 0.0)
        else:
            self._not_acknowledged(error, message)

    def _not_acknowledged(self, error: KafkaError, message: Message) -> None:
        self.errors[error.name()] += 1
        if not self.first_error:
            size = len(message.value() or b"") + len(message.key() or b"")
            self.first_error = f"{error.name()}: {reason_of(error, size)}"
        certain = error.code() in NOT_WRITTEN
        if certain:
            self.failed += 1
        else:
            self.unknown += 1
        stamp = stamp_of(message)
        # Stamped messages of an earlier run can be sent again, from a file: they belong to no stream of this one.
        stream = self.streams.get(stamp.stream) if stamp is not None else None
        if stamp is not None and stream is not None:
            (stream.failed if certain else stream.unknown).add(stamp.sequence)


class DeliveriesByTopic(dict[str, Deliveries]):
    """Those of each topic; they begin with the first message to it."""

    def __missing__(self, topic: str) -> Deliveries:
        made = self[topic] = Deliveries(topic)
        return made


def outcome_of(error: KafkaError | None) -> str:
    """success, failure or unknown, as in the metrics."""
    if error is None:
        return "success"
    return "failure" if error.code() in NOT_WRITTEN else "unknown"
