"""Spans of what a handler does: one for each message, or for a batch with links to the spans of its messages.

A call that raises has its span ended when the loop's thread has decided what becomes of the message: the decision is
an event of it. The span ends at the time when the call did.
"""

import threading
import time
from collections.abc import Callable, Mapping
from contextvars import Token
from dataclasses import replace
from types import TracebackType
from typing import Any

from confluent_kafka import Message
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import SpanLimits
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from workers.consumer.answers import listed
from workers.consumer.failures import Decision, Isolate, RetryLater, SendDeadLetter
from workers.handlers import Handler, Reject, around, is_batch
from workers.kafka.messages import headers_of
from workers.loading import named, text_of
from workers.sources import Outgoing
from workers.tracing import conventions as names
from workers.tracing.sdk import NO_CONTEXT, Tracing

# Decisions take milliseconds, or until the outcome of outputs is known. A call whose partition goes while outputs
# of the same work are under way has none.
UNDECIDED_S = 300.0
_CALL = "_kafka_workers_call"


class HandlerSpans:
    """`middleware` makes the spans, in the handler's threads; `on_decision` ends those of calls that failed, in the
    loop's thread.
    """

    def __init__(self, tracing: Tracing, group_id: str, client_id: str) -> None:
        self.tracing = tracing
        self._common = {names.SYSTEM: "kafka", names.CLIENT_ID: client_id}
        self._group = {names.GROUP: group_id}
        # A span holds no more; OTEL_SPAN_LINK_COUNT_LIMIT, 128 by default.
        self._most_links = SpanLimits().max_links
        self._lock = threading.Lock()
        # Calls that failed and are not decided, the oldest first.
        self._undecided: dict[_Call, None] = {}

    def middleware(self, handler: Any) -> Handler:
        """A handler of the same kind whose calls have spans."""
        begin: Callable[[Any], _Call] = self._batch if is_batch(handler) else self._single
        return around(handler, begin, _Call.outputs)

    def on_decision(self, message: Message, error: Exception, decision: Decision | None, attempts: int) -> None:
        """Tell the span of the failed call what becomes of its message.

        An output that was not written fails when the span of the call has ended: then the decision has a span of its
        own. Without a decision the span of the call just ends.
        """
        call: _Call | None = error.__dict__.get(_CALL)
        if decision is None:
            if call is not None and self._forget(call):
                call.end()
            return
        name, attributes = _event(decision, attempts)
        if call is None:
            span = self._settle(message, name.partition(".")[2])
            record_error(span, error)
            span.add_event(name, attributes)
            span.end()
        elif self._forget(call):
            call.span.add_event(name, attributes)
            call.end()

    def close(self, timeout_s: float) -> None:
        """End all spans, and send them as `Tracing.close`."""
        with self._lock:
            calls = [*self._undecided]
            self._undecided.clear()
        for call in calls:
            call.end()
        self.tracing.close(timeout_s)

    def note_failure(self, call: "_Call", error: Exception) -> None:
        """Keep the span of a call that raised until it is decided what follows, for UNDECIDED_S at the most."""
        error.__dict__[_CALL] = call
        with self._lock:
            self._undecided[call] = None
            given_up = []
            for each in self._undecided:
                if call.ended_ns - each.ended_ns < UNDECIDED_S * 1e9:
                    break
                given_up.append(each)
            for each in given_up:
                del self._undecided[each]
        for each in given_up:
            each.end()

    def create(self, outgoing: Outgoing, context: Context) -> Outgoing:
        """An output with a span of its own, whose context is in its headers."""
        topic: Any = outgoing.topic
        headers: Any = outgoing.headers
        if not isinstance(topic, str) or not isinstance(headers, list | tuple | None):
            return outgoing  # it is refused, with the reason
        span = self.tracing.tracer.start_span(
            f"create {topic}",
            context,
            SpanKind.PRODUCER,
            {**self._common, names.OPERATION_TYPE: "create", names.OPERATION_NAME: "create", names.DESTINATION: topic},
        )
        with_context = self.tracing.inject(headers or (), trace.set_span_in_context(span, context))
        span.end()
        return replace(outgoing, headers=with_context)

    def _single(self, message: Message) -> "_Call":
        context = self.tracing.extract(headers_of(message))
        return _Call(self, self._start("process", SpanKind.CONSUMER, message, context, _place(message)), context)

    def _batch(self, messages: list[Message]) -> "_Call":
        links: list[Link] = []
        for message in messages:
            if len(links) == self._most_links:
                break
            sent_in = trace.get_current_span(self.tracing.extract(headers_of(message))).get_span_context()
            if sent_in.is_valid:
                links.append(Link(sent_in, {names.OFFSET: message.offset() or 0}))
        count = {names.BATCH_COUNT: len(messages)}
        return _Call(self, self._start("process", SpanKind.CONSUMER, messages[0], NO_CONTEXT, count, links), NO_CONTEXT)

    def _settle(self, message: Message, operation: str) -> Span:
        context = self.tracing.extract(headers_of(message))
        more = {**_place(message), names.OPERATION_TYPE: "settle"}
        return self._start(operation, SpanKind.INTERNAL, message, context, more)

    def _start(
        self,
        operation: str,
        kind: SpanKind,
        message: Message,
        context: Context,
        more: Mapping[str, Any],
        links: list[Link] | None = None,
    ) -> Span:
        topic = message.topic() or ""
        attributes = {
            **self._common,
            **self._group,
            names.OPERATION_TYPE: operation,
            names.OPERATION_NAME: operation,
            names.DESTINATION: topic,
            names.PARTITION: str(message.partition()),
            **more,
        }
        return self.tracing.tracer.start_span(f"{operation} {topic}", context, kind, attributes, links)

    def _forget(self, call: "_Call") -> bool:
        with self._lock:
            return self._undecided.pop(call, call) is None


def _place(message: Message) -> dict[str, Any]:
    offset = {names.OFFSET: message.offset() or 0}
    return {**offset, names.TOMBSTONE: True} if message.value() is None else offset


class _Call:
    """One call of the handler, as a context manager: its span is the current one inside."""

    __slots__ = ("_context", "_spans", "_token", "ended_ns", "span")

    def __init__(self, spans: HandlerSpans, span: Span, context: Context) -> None:
        self.span = span
        self.ended_ns = 0
        self._spans = spans
        self._context = trace.set_span_in_context(span, context)
        self._token: Token[Context] | None = None

    def __enter__(self) -> "_Call":
        self._token = attach(self._context)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        detach(self._token)
        self.ended_ns = time.time_ns()
        if error is not None:
            record_error(self.span, error)
            if isinstance(error, Reject):
                self.span.add_event(names.REJECT, {names.REASON: text_of(error)})
            if isinstance(error, Exception) and self.span.is_recording():
                self._spans.note_failure(self, error)
                return
        self.end()

    def outputs(self, answer: object) -> object:
        """The messages that the handler gave back, each with a span. The executor checks everything else."""
        answer = listed(answer)
        if not isinstance(answer, list):
            return answer
        return [self._spans.create(each, self._context) if isinstance(each, Outgoing) else each for each in answer]

    def end(self) -> None:
        self.span.end(self.ended_ns)


def record_error(span: Span, error: BaseException) -> None:
    """Record an exception as OpenTelemetry has it, and the status that follows."""
    if not span.is_recording():
        return
    try:
        span.record_exception(error)
    except Exception:  # it calls the user's __str__ and __cause__
        span.add_event("exception", {"exception.type": type(error).__qualname__})
    span.set_attribute(names.ERROR_TYPE, type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, named(error)))


def _event(decision: Decision, attempts: int) -> tuple[str, dict[str, Any]]:
    attributes: dict[str, Any] = {names.ATTEMPTS: attempts}
    if isinstance(decision, RetryLater):
        return names.RETRY, {**attributes, names.PAUSE_S: decision.pause_s}
    if isinstance(decision, SendDeadLetter):
        return names.DEAD_LETTER, attributes
    return names.ISOLATE if isinstance(decision, Isolate) else names.STOP, attributes
