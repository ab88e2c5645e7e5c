"""Spans of what a producer sends: each from the time when it is taken from the source until its outcome is known."""

from collections.abc import Callable
from functools import partial

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from workers.sources import Batch, Delivery, Record, Source, size_of
from workers.tracing import conventions as names
from workers.tracing.sdk import Tracing


class TracedSource:
    """A source whose messages carry the context of their spans in their headers; called by the loop's thread.

    A message that comes with a context in its headers continues the trace of that.
    """

    def __init__(self, source: Source, tracing: Tracing, topic: str, dead_letter_topic: str, client_id: str) -> None:
        self._source = source
        self._tracing = tracing
        self._topic = topic
        self._dead_letter_topic = dead_letter_topic
        self._common = {
            names.SYSTEM: "kafka",
            names.OPERATION_TYPE: "send",
            names.OPERATION_NAME: "send",
            names.CLIENT_ID: client_id,
        }

    @property
    def complete(self) -> bool:
        """Whether the source came to its own end, and all was taken."""
        return self._source.complete

    def take(self, limit: int, timeout_s: float) -> Batch | None:
        """A batch of the source, with spans; raises as the source does."""
        batch = self._source.take(limit, timeout_s)
        if batch is None or not batch.records:
            return batch
        for record in batch.records:
            if batch.partition >= 0:
                record["partition"] = batch.partition
            self._trace(record)
        return batch._replace(largest_bytes=max(map(size_of, batch.records)), partition=-1, plain=False)

    def close(self) -> None:
        """Read no more, as the source."""
        self._source.close()

    def _trace(self, record: Record) -> None:
        record.setdefault("key", None)  # test messages have none
        headers = record.get("headers", ())
        context = self._tracing.extract(headers)
        topic = self._dead_letter_topic if "invalid" in record else self._topic
        attributes: dict[str, str | bool] = {**self._common, names.DESTINATION: topic}
        if record["value"] is None:
            attributes[names.TOMBSTONE] = True
        span = self._tracing.tracer.start_span(f"send {topic}", context, SpanKind.PRODUCER, attributes)
        record["headers"] = self._tracing.inject(headers, trace.set_span_in_context(span, context))
        if not span.is_recording():
            return
        if "invalid" in record:
            span.add_event(names.DEAD_LETTER, {names.REASON: record["invalid"]})
        record["on_delivery"] = partial(_end, span, record.get("on_delivery"))


def _end(span: Span, tell: Callable[[Delivery], None] | None, delivery: Delivery) -> None:
    """End the span with the outcome, then tell the source."""
    if delivery.partition is not None and delivery.partition >= 0:
        span.set_attribute(names.PARTITION, str(delivery.partition))
    if delivery.offset is not None:
        span.set_attribute(names.OFFSET, delivery.offset)
    if delivery.outcome != "success":
        span.set_attribute(names.ERROR_TYPE, delivery.outcome)
        span.set_status(Status(StatusCode.ERROR, delivery.error))
    span.end()
    if tell is not None:
        tell(delivery)
