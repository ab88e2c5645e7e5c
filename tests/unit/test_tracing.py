"""Spans of messages: of each kind of handler, of failures, and of what a producer sends."""

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from io import StringIO
from typing import Any

import pytest
from confluent_kafka import Message
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.semconv._incubating.attributes import messaging_attributes
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanKind, StatusCode

from tests.unit.members import BY_KEY, QUICK, Group
from tests.unit.test_producer import AWAY, MOCK, producer_with
from workers.consumer.failures import ErrorPolicy
from workers.errors import ConfigError
from workers.handlers import Reject, Retry, batch
from workers.kafka.messages import headers_of
from workers.lifecycle import Shutdown, set_up_logging
from workers.producer.generator import StampedSource
from workers.producer.prefetch import ThreadedSource
from workers.sources import Delivery, Outgoing, call_source
from workers.testing.handling import Member
from workers.testing.memory import FakeBroker
from workers.testing.processes import eventually
from workers.tracing import consuming, conventions, sdk
from workers.tracing.consuming import HandlerSpans
from workers.tracing.producing import TracedSource
from workers.tracing.sdk import ExportWatch, Tracing, add_ids

# Of the message that is consumed: its trace, and the span that it was sent in.
TRACE, SENT = 0xABCD, 0x1234
SENT_IN = [("traceparent", f"00-{TRACE:032x}-{SENT:016x}-01".encode()), ("own", b"kept")]


class Spans:
    """Spans in memory, when they have ended, and a consumer or a producer that makes them."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider)
        self.of_handlers = HandlerSpans(self.tracing, "g", "me")

    @property
    def ended(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.ended if span.name == name]

    @property
    def options(self) -> dict[str, Any]:
        return {"middlewares": [self.of_handlers.middleware], "on_decision": self.of_handlers.on_decision}


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker(t=1, out=1)


def parent(span: ReadableSpan) -> int:
    return span.parent.span_id if span.parent is not None else 0


def context_of(span: ReadableSpan) -> trace.SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def trace_of(span: ReadableSpan) -> int:
    return context_of(span).trace_id


def id_of(span: ReadableSpan) -> int:
    return context_of(span).span_id


def events(span: ReadableSpan) -> list[str]:
    return [event.name for event in span.events]


def context_in(headers: Any) -> tuple[int, int]:
    """The trace and the span of the only traceparent in headers."""
    [value] = [value for name, value in headers if name == "traceparent"]
    _, trace_id, span_id, _ = value.decode().split("-")
    return int(trace_id, 16), int(span_id, 16)


def handled(group: Group, member: Member, count: int = 1) -> None:
    member.start()
    group.until(lambda: group.broker.offset() == count, "all is committed")
    member.stop()


# One by one, in threads, in an event loop, as a batch

PROBE = logging.getLogger("tests.probe")


def give(message: Message) -> Outgoing:
    PROBE.warning("at %s", message.offset())
    return Outgoing(message.value(), topic="out", headers=[(name, value or b"") for name, value in headers_of(message)])


def give_generated(message: Message) -> Iterator[Outgoing]:
    yield give(message)


async def give_async(message: Message) -> Outgoing:
    await asyncio.sleep(0)
    return await asyncio.to_thread(give, message)


async def yield_async(message: Message) -> AsyncIterator[Outgoing]:
    await asyncio.sleep(0)
    yield give(message)


@batch
def give_batch(messages: list[Message]) -> list[Outgoing]:
    return [*map(give, messages)]


@batch
async def give_batch_async(messages: list[Message]) -> AsyncIterator[Outgoing]:
    for message in messages:
        await asyncio.sleep(0)
        yield give(message)


class LogLines:
    """The log lines, as the JSON formatter writes them."""

    def __init__(self) -> None:
        root = logging.getLogger()
        before, level = root.handlers[:], root.level
        set_up_logging("json", "info")
        [handler] = root.handlers
        assert isinstance(handler, logging.StreamHandler)
        self._stream = handler.stream = StringIO()
        handler.addFilter(add_ids)

        def restore() -> None:
            root.handlers[:] = before
            root.setLevel(level)

        self.restore = restore

    def about(self, logger: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [line for line in lines if line["logger"] == logger]


@pytest.fixture
def log_lines() -> Iterator[LogLines]:
    lines = LogLines()
    yield lines
    lines.restore()


@pytest.mark.parametrize("options", [{}, BY_KEY], ids=["one", "eight"])
@pytest.mark.parametrize("handler", [give, give_generated, give_async, yield_async], ids=lambda each: each.__name__)
def test_a_message_continues_its_trace_and_its_outputs_and_log_lines_are_of_its_span(
    group: Group, spans: Spans, log_lines: LogLines, handler: Any, options: dict[str, Any]
) -> None:
    for number in range(20):
        sent = [("traceparent", f"00-{TRACE + number:032x}-{SENT:016x}-01".encode()), ("own", b"kept")]
        group.broker.produce([b"%d" % number], key=b"%d" % (number % 5), headers=sent)
    handled(group, group.member(handler, **options, **spans.options), 20)

    processed = {int(str((span.attributes or {})[conventions.OFFSET])): span for span in spans.named("process t")}
    created = {parent(span): span for span in spans.named("create out")}
    assert len(spans.ended) == len(processed) + len(created) == 40
    written = {int(record.value): record.headers for record in group.broker.logs["out", 0].records}
    lines = {line["message"]: line for line in log_lines.about("tests.probe")}
    for number, span in processed.items():
        assert (trace_of(span), parent(span), span.kind) == (TRACE + number, SENT, SpanKind.CONSUMER)
        output = created[id_of(span)]
        assert (trace_of(output), output.kind) == (TRACE + number, SpanKind.PRODUCER)
        assert context_in(written[number]) == (TRACE + number, id_of(output))
        assert ("own", b"kept") in written[number]
        line = lines[f"at {number}"]
        assert (int(line["trace_id"], 16), int(line["span_id"], 16)) == (
            TRACE + number, id_of(span)
        )  # fmt: skip
    # Lines of the worker's own are of no span.
    assert all("trace_id" not in line for line in log_lines.about("workers.consumer.membership"))


@pytest.mark.parametrize("handler", [give_batch, give_batch_async], ids=lambda each: each.__name__)
def test_a_batch_has_one_span_with_a_link_to_each_message_and_its_outputs_are_of_that(
    group: Group, spans: Spans, log_lines: LogLines, handler: Any
) -> None:
    group.broker.produce([b"1"])
    group.broker.produce([b"2", b"3"], headers=SENT_IN)
    handled(group, group.member(handler, **spans.options), 3)

    of_batches = spans.named("process t")
    links = [link for span in of_batches for link in span.links]
    assert [(link.context.trace_id, link.context.span_id) for link in links] == [(TRACE, SENT)] * 2
    assert [(link.attributes or {})[conventions.OFFSET] for link in links] == [1, 2]
    assert sum(int(str((span.attributes or {})[conventions.BATCH_COUNT])) for span in of_batches) == 3
    assert {parent(span) for span in of_batches} == {0}
    assert TRACE not in map(trace_of, of_batches)
    created = spans.named("create out")
    ids = {id_of(span) for span in of_batches}
    assert len(created) == 3
    assert {parent(span) for span in created} == ids
    assert {int(line["span_id"], 16) for line in log_lines.about("tests.probe")} == ids


def test_the_attributes_are_those_of_the_conventions(group: Group, spans: Spans) -> None:
    group.broker.produce([b"1"], headers=SENT_IN)
    group.broker.produce([None], headers=SENT_IN)
    handled(group, group.member(lambda _: Outgoing(b"x", topic="out"), **spans.options), 2)

    first, second = spans.named("process t")
    common = {"messaging.system": "kafka", "messaging.client.id": "me"}
    of_message = {
        **common, "messaging.operation.type": "process", "messaging.operation.name": "process",
        "messaging.destination.name": "t", "messaging.destination.partition.id": "0",
        "messaging.consumer.group.name": "g",
    }  # fmt: skip
    assert first.attributes == {**of_message, "messaging.kafka.offset": 0}
    assert second.attributes == {**of_message, "messaging.kafka.offset": 1, "messaging.kafka.message.tombstone": True}
    assert spans.named("create out")[0].attributes == {
        **common, "messaging.operation.type": "create", "messaging.operation.name": "create",
        "messaging.destination.name": "out",
    }  # fmt: skip


def test_the_names_are_those_of_the_version_that_they_cite() -> None:
    known = [*vars(messaging_attributes).values(), error_attributes.ERROR_TYPE]
    ours = {value for name, value in vars(conventions).items() if name.isupper() and value.startswith("messaging.")}
    assert all(name in known for name in (*ours, conventions.ERROR_TYPE))
    assert len(ours) == 10
    assert Schemas.V1_44_0.value == conventions.SCHEMA_URL


def test_what_is_not_sampled_passes_on_its_context_and_makes_no_span(group: Group, spans: Spans) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    of_handlers = HandlerSpans(Tracing(provider), "g", "me")
    group.broker.produce([b"1"], headers=SENT_IN)
    member = group.member(give, middlewares=[of_handlers.middleware], on_decision=of_handlers.on_decision)
    handled(group, member)
    [record] = group.broker.logs["out", 0].records
    trace_id, _ = context_in(record.headers)
    assert trace_id == TRACE
    assert record.headers[-1][1].endswith(b"-00")


# Failures


def test_a_retry_and_a_dead_letter_are_events_of_the_attempts_and_the_letter_keeps_its_trace(
    group: Group, spans: Spans
) -> None:
    def fail(message: Message) -> None:
        message.set_headers([("traceparent", b"spoilt")])
        raise ValueError("no such order")

    group.broker.produce([b"1"], headers=SENT_IN)
    policy = ErrorPolicy(max_attempts=2, backoff_s=QUICK.backoff_s, backoff_max_s=QUICK.backoff_max_s)
    member = group.member(fail, policy=policy, **spans.options)
    handled(group, member)

    first, second = spans.named("process t")
    assert events(first) == ["exception", "kafka_workers.retry"]
    assert events(second) == ["exception", "kafka_workers.dead_letter"]
    for attempts, span in enumerate((first, second), start=1):
        assert (trace_of(span), parent(span)) == (TRACE, SENT)
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "ValueError: no such order"
        assert (span.attributes or {})["error.type"] == "ValueError"
        exception, decision = span.events
        assert (exception.attributes or {})["exception.message"] == "no such order"
        assert (decision.attributes or {})["kafka_workers.attempts"] == attempts
    # The decision is no part of the call's time.
    assert first.end_time is not None
    assert first.end_time <= first.events[1].timestamp
    [letter] = member.dead_letters.sent
    assert letter.headers == SENT_IN


def test_reject_and_retry_of_a_handler_are_told_apart(group: Group, spans: Spans) -> None:
    asked = iter([Retry("away", after_s=0.001), Reject("never")])

    def ask(_: Message) -> None:
        raise next(asked)

    group.broker.produce([b"1"], headers=SENT_IN)
    handled(group, group.member(ask, **spans.options))
    first, second = spans.named("process t")
    assert events(first) == ["exception", "kafka_workers.retry"]
    assert (first.events[1].attributes or {})["kafka_workers.pause_s"] == 0.001
    assert events(second) == ["exception", "kafka_workers.reject", "kafka_workers.dead_letter"]


def test_a_batch_that_fails_says_that_it_is_taken_apart(group: Group, spans: Spans) -> None:
    @batch
    def refuse_two(messages: list[Message]) -> None:
        if any(message.value() == b"2" for message in messages):
            raise Reject("two")

    group.broker.produce([b"1", b"2", b"3"])
    handled(group, group.member(refuse_two, **spans.options), 3)
    told = [events(span) for span in spans.named("process t") if span.events]
    assert told[0][-1] == "kafka_workers.isolate"
    assert told[-1] == ["exception", "kafka_workers.reject", "kafka_workers.dead_letter"]


def test_an_output_that_is_not_written_has_its_decision_in_a_span_of_its_own(group: Group, spans: Spans) -> None:
    def nowhere(message: Message) -> Outgoing | None:
        if spans.named("retry t"):
            return None
        return Outgoing(message.value())

    group.broker.produce([b"1"], headers=SENT_IN)
    handled(group, group.member(nowhere, **spans.options))
    [retry] = spans.named("retry t")
    assert (trace_of(retry), parent(retry)) == (TRACE, SENT)
    assert events(retry) == ["exception", "kafka_workers.retry"]
    assert (retry.attributes or {})["messaging.operation.type"] == "settle"
    assert retry.status.status_code is StatusCode.ERROR
    assert all(span.status.status_code is StatusCode.UNSET for span in spans.named("process t"))


def test_an_error_whose_text_cannot_be_had_is_handled_as_without_tracing(group: Group, spans: Spans) -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def fail(_: Message) -> None:
        raise MuteError

    group.broker.produce([b"1"])
    member = group.member(fail, policy=ErrorPolicy(max_attempts=1), **spans.options)
    handled(group, member)
    assert len(member.dead_letters.sent) == 1
    [span] = spans.named("process t")
    assert events(span) == ["exception", "kafka_workers.dead_letter"]


def test_a_call_that_fails_when_its_partition_has_gone_ends_its_span_without_a_decision(
    group: Group, spans: Spans
) -> None:
    there, hold = group.hold_at(0)

    def fail(message: Message) -> None:
        hold(message)
        raise LookupError

    group.broker.produce([b"1"])
    group.member(fail, **spans.options).start()
    assert there.wait(20)
    group.broker.lose(("t", 0))
    group.until(lambda: ("t", 0) not in group.broker.owners, "the partition has gone")
    assert spans.ended == ()
    group.gate.set()
    group.until(lambda: spans.ended, "the span has ended")
    assert [*map(events, spans.ended)] == [["exception"]]


def test_a_span_processor_that_raises_changes_no_decision_and_is_reported_once(
    group: Group, log_lines: LogLines
) -> None:
    class Broken(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise RuntimeError(f"no room for {span.name}")

    def fail(_: Message) -> None:
        raise LookupError

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Broken())
    of_handlers = HandlerSpans(Tracing(provider), "g", "me")
    group.broker.produce([b"1", b"2"])
    member = group.member(
        fail,
        policy=ErrorPolicy(max_attempts=1),
        middlewares=[of_handlers.middleware],
        on_decision=of_handlers.on_decision,
    )
    handled(group, member, 2)
    assert [letter.value for letter in member.dead_letters.sent] == [b"1", b"2"]
    errors = [line["message"] for line in log_lines.about("workers.consumer.failing") if line["level"] == "ERROR"]
    assert len(errors) == 1
    assert "RuntimeError: no room" in errors[0]


def test_a_call_of_which_nothing_is_decided_ends_its_span_at_the_next_failure_or_at_the_end(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Message) -> None:
        raise LookupError

    call: Any = spans.of_handlers.middleware(fail)
    message = Message(topic="t", partition=0, offset=7)
    for _ in range(2):
        with pytest.raises(LookupError):
            call(message)
    assert spans.ended == ()
    monkeypatch.setattr(consuming, "UNDECIDED_S", 0.0)
    with pytest.raises(LookupError):
        call(message)
    before = len(spans.ended)
    assert before >= 2
    spans.of_handlers.close(5)
    assert len(spans.ended) == 3


def test_wrong_answers_are_refused_as_without_tracing(group: Group, spans: Spans) -> None:
    group.broker.produce([b"1"])
    member = group.member(lambda _: "text", **spans.options)
    with pytest.raises(ConfigError, match="returned a str"):
        member.finish()


# The producer


def drained(source: TracedSource) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    while (batch := source.take(1000, 0.01)) is not None:
        records += batch.records
    return records


def traced(spans: Spans, source: Any) -> TracedSource:
    return TracedSource(source, spans.tracing, "orders", "orders.dlq", "me")


def test_each_message_of_a_source_has_a_span_until_its_delivery_and_may_continue_a_trace(spans: Spans) -> None:
    told: list[Delivery] = []

    def rows() -> Iterator[Outgoing]:
        yield Outgoing(b"1", headers=SENT_IN, on_delivery=told.append)
        yield Outgoing(b"2")

    first, second = drained(traced(spans, ThreadedSource(call_source(rows, "rows"))))
    assert spans.ended == ()
    first["on_delivery"](Delivery("success", "orders", 2, 17, None))
    second["on_delivery"](Delivery("failure", "orders", None, None, "too large"))

    [continued, begun] = spans.named("send orders")
    assert (trace_of(continued), parent(continued), continued.kind) == (TRACE, SENT, SpanKind.PRODUCER)
    assert context_in(first["headers"]) == (TRACE, id_of(continued))
    assert ("own", b"kept") in first["headers"]
    assert continued.attributes == {
        "messaging.system": "kafka", "messaging.client.id": "me", "messaging.operation.type": "send",
        "messaging.operation.name": "send", "messaging.destination.name": "orders",
        "messaging.destination.partition.id": "2", "messaging.kafka.offset": 17,
    }  # fmt: skip
    assert [delivery.offset for delivery in told] == [17]
    assert (parent(begun), begun.status.status_code, begun.status.description) == (0, StatusCode.ERROR, "too large")
    assert context_in(second["headers"]) == (trace_of(begun), id_of(begun))


def test_test_messages_keep_their_partition_their_account_and_their_end(spans: Spans) -> None:
    shutdown = Shutdown(5)
    producer = producer_with(shutdown, {**AWAY, **MOCK})
    source = traced(spans, StampedSource("run", 0, 100, 40, lambda: 4))
    producer.start(10)
    producer.run(source)
    producer.close()
    assert (producer.deliveries.acknowledged, producer.interrupted, source.complete) == (40, False, True)
    sent = spans.named("send orders")
    partitions = Counter(str((span.attributes or {})["messaging.destination.partition.id"]) for span in sent)
    assert partitions == {"0": 10, "1": 10, "2": 10, "3": 10}
    assert [each.sent for each in producer.deliveries.streams.values()] == [10] * 4
    assert len({trace_of(span) for span in sent}) == 40


def test_an_invalid_line_has_a_span_to_the_dead_letter_topic_with_its_reason(spans: Spans) -> None:
    records = [{"value": b"x", "key": None, "invalid": "no JSON"}]
    [record] = drained(traced(spans, ThreadedSource(records)))
    record["on_delivery"](Delivery("success", "orders.dlq", 0, 1, None))
    [span] = spans.named("send orders.dlq")
    assert events(span) == ["kafka_workers.dead_letter"]
    assert (span.events[0].attributes or {})["kafka_workers.reason"] == "no JSON"


def test_headers_of_any_kind_are_no_reason_to_fail(spans: Spans) -> None:
    extract = spans.tracing.extract
    for value in (b"\xff\xfe", b"", b"00-0-0-00", None):
        context = extract([("traceparent", value), ("tracestate", b"=,=")])
        assert not trace.get_current_span(context).get_span_context().is_valid


# The SDK


class Collector(SpanExporter):
    """Takes spans only when `open` is set, and says so as the SDK's exporter does."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.taken = 0
        self.log = logging.getLogger("opentelemetry.exporter.otlp.tests")

    def export(self, spans: Any) -> SpanExportResult:
        if not self.open.is_set():
            self.log.warning("Transient error connection refused")
            return SpanExportResult.FAILURE
        self.taken += len(spans)
        return SpanExportResult.SUCCESS


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExportWatch]:
    watch = ExportWatch()
    sdk_log = logging.getLogger("opentelemetry")
    sdk_log.addHandler(watch)
    monkeypatch.setattr(sdk_log, "propagate", False)
    yield watch
    sdk_log.removeHandler(watch)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "workers.tracing.sdk"]


def test_a_collector_that_is_away_is_said_once_until_it_is_back(
    watch: ExportWatch, caplog: pytest.LogCaptureFixture
) -> None:
    collector = Collector()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(sdk._Exporter(collector, watch), max_queue_size=4, max_export_batch_size=2,
                           schedule_delay_millis=1)
    )  # fmt: skip
    tracer = Tracing(provider).tracer
    with caplog.at_level(logging.INFO, logger="workers.tracing.sdk"):
        for _ in range(100):
            tracer.start_span("x").end()
        eventually(lambda: watch.failing, "the collector is missed", 20)
        # The queue may have been full before.
        [line] = [line for line in said(caplog) if not line.startswith("spans are dropped")]
        assert line.startswith("spans are not exported")
        assert "OTEL_EXPORTER_OTLP_ENDPOINT" in line
        assert line.endswith("connection refused")
        collector.open.set()

        def came() -> bool:
            tracer.start_span("x").end()
            return not watch.failing

        eventually(came, "it is back", 20)
        assert said(caplog)[-1] == "spans are exported again"
    provider.shutdown()


def test_spans_that_come_too_fast_are_said_once(watch: ExportWatch, caplog: pytest.LogCaptureFixture) -> None:
    queue = logging.getLogger("opentelemetry.sdk._shared_internal.tests")
    with caplog.at_level(logging.WARNING, logger="workers.tracing.sdk"):
        for _ in range(3):
            queue.warning("Queue full, dropping %s.", "Span")
        queue.warning("something else")
    first, other = said(caplog)
    assert "OTEL_TRACES_SAMPLER" in first
    assert other == "something else"
    assert not watch.failing


def test_a_stop_does_not_wait_for_a_collector_beyond_its_time(caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()

    class Stuck(SpanExporter):
        def export(self, _: Any) -> SpanExportResult:
            released.wait(60)
            return SpanExportResult.FAILURE

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Stuck()))
    tracing = Tracing(provider)
    tracing.tracer.start_span("x").end()
    began = time.monotonic()
    tracing.close(0.1)
    assert time.monotonic() - began < 30
    released.set()
    assert "the last spans are dropped" in caplog.text


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "none"}, []),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["console", "otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
            ["otlp_proto_http"],
        ),
    ],
)
def test_the_exporter_is_the_one_of_the_standard_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], names: list[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert [*sdk._exporter_names()] == names


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}, "variable OTEL_EXPORTER_OTLP_PROTOCOL: 'smoke' is none of"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "pip install opentelemetry-exporter-otlp-proto-grpc"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "pip install opentelemetry-exporter-zipkin"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "correct the variables OTEL_"),
    ],
)
def test_variables_that_cannot_be_used_are_one_line(
    monkeypatch: pytest.MonkeyPatch, watch: ExportWatch, variables: dict[str, str], text: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised:
        sdk._processor(next(sdk._exporter_names()), watch)
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_service_without_a_name_is_called_kafka_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sdk._resource().attributes["service.name"] == "kafka-workers"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=orders,deployment.environment.name=test")
    assert sdk._resource().attributes["service.name"] == "orders"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "prices")
    attributes = sdk._resource().attributes
    assert (attributes["service.name"], attributes["deployment.environment.name"]) == ("prices", "test")
