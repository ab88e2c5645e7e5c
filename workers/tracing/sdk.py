"""Sets up OpenTelemetry's SDK as the standard variables OTEL_* say, and ends it.

The SDK sends spans from a thread of its own. Its queue is bounded: while the collector is unreachable or slow, spans
are dropped, and no message waits.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from workers import __version__
from workers.errors import ConfigError
from workers.lifecycle import call_with_timeout
from workers.loading import named
from workers.tracing.conventions import SCHEMA_URL

log = logging.getLogger(__name__)

# A stop waits no longer for a collector, whatever time is left.
FLUSH_S = 5.0
# The warning that spans are dropped comes again only after this long.
REPEAT_S = 60.0
# By the name that OTEL_EXPORTER_OTLP_PROTOCOL gives it: the exporter's name among the entry points.
PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
NO_CONTEXT = Context()

Headers = Sequence[tuple[str, Any]]


class Tracing:
    """Makes spans, and carries their context from headers and into headers. Its methods may be called from any thread.

    `provider` is the SDK's, or one that the user's code has set.
    """

    def __init__(self, provider: trace.TracerProvider) -> None:
        self.tracer = provider.get_tracer("kafka-workers", __version__, SCHEMA_URL)
        self._provider = provider
        self._propagator = propagate.get_global_textmap()
        self._fields = frozenset(self._propagator.fields)

    def extract(self, headers: Headers) -> Context:
        """The context that a message was sent in; an empty one where its headers have none."""
        return self._propagator.extract(headers, NO_CONTEXT, _HEADERS) if headers else NO_CONTEXT

    def inject(self, headers: Iterable[Any], context: Context) -> list[Any]:
        """The headers with `context` in them, in place of one that they had."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context)
        kept = [each for each in headers if not (isinstance(each, tuple) and each and each[0] in self._fields)]
        return [*kept, *((name, value.encode()) for name, value in carrier.items())]

    def close(self, timeout_s: float) -> None:
        """Send the spans that wait, within `timeout_s` seconds and FLUSH_S at the most; drop the rest."""
        end: Any = getattr(self._provider, "shutdown", None)
        within_s = min(FLUSH_S, timeout_s)
        if end is not None and not call_with_timeout(end, within_s):
            log.warning("the last spans are dropped: they were not exported within %.1f s", within_s)


class _Headers(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        return [_text(value) for name, value in carrier if name == key and value is not None] or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name for name, _ in carrier]


_HEADERS = _Headers()


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def start() -> Tracing:
    """Set up the SDK, unless the user's code has done so; put the ids of the current span into log lines.

    Raises ConfigError for variables OTEL_* that cannot be used.
    """
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        provider = _create_provider()
        trace.set_tracer_provider(provider)
    for handler in logging.getLogger().handlers:
        handler.addFilter(add_ids)
    return Tracing(provider)


def add_ids(record: logging.LogRecord) -> bool:
    """Give a log line the ids of the current span, by the names of OpenTelemetry's convention for logs in JSON."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record.trace_id = trace.format_trace_id(context.trace_id)
        record.span_id = trace.format_span_id(context.span_id)
        record.trace_flags = f"{context.trace_flags:02x}"
    return True


def _create_provider() -> TracerProvider:
    watch = ExportWatch()
    sdk_log = logging.getLogger("opentelemetry")
    sdk_log.addHandler(watch)
    sdk_log.propagate = False
    with _settings():
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    for name in _exporter_names():
        provider.add_span_processor(_processor(name, watch))
    return provider


@contextmanager
def _settings() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the SDK makes of a value
        raise ConfigError(
            f"tracing cannot begin: OpenTelemetry raised {named(error)}; correct the variables OTEL_*"
        ) from None


def _resource() -> Resource:
    """The resource by OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES. The default of the service is kafka-workers."""
    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: "kafka-workers"}))
    return resource


def _exporter_names() -> Iterator[str]:
    """The entry points of the exporters that are asked for; raises ConfigError for a protocol that there is not."""
    for name in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(","):
        if name.strip() == "otlp":
            variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
            variable = next((each for each in variables if os.environ.get(each)), variables[-1])
            protocol = os.environ.get(variable, "").strip() or "http/protobuf"
            if protocol not in PROTOCOLS:
                raise ConfigError(f"variable {variable}: {protocol!r} is none of {', '.join(PROTOCOLS)}")
            yield PROTOCOLS[protocol]
        elif name.strip() != "none":
            yield name.strip()


def _processor(name: str, watch: "ExportWatch") -> BatchSpanProcessor:
    found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
    if found is None:
        package = f"opentelemetry-exporter-{name.replace('_', '-')}"
        raise ConfigError(f"tracing: the exporter {name} is not installed; pip install {package}, or choose another")
    with _settings():
        return BatchSpanProcessor(_Exporter(found.load()(), watch))


class ExportWatch(logging.Handler):
    """Receives the SDK's log lines, and logs once that spans are not exported, and once that they are again.

    It logs at most every REPEAT_S seconds that spans are dropped because too many wait. It passes other warnings on.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.failing = False
        self._dropped_at = float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        """Called in any thread, under the handler's lock."""
        if record.name.startswith("opentelemetry.exporter"):
            if not self.failing:
                self.failing = True
                log.warning(
                    "spans are not exported, and dropped when too many wait; messages are not affected; check the "
                    "collector and OTEL_EXPORTER_OTLP_ENDPOINT: %s", record.getMessage(),
                )  # fmt: skip
        elif str(record.msg).startswith("Queue full"):
            now = time.monotonic()
            if not self.failing and now - self._dropped_at >= REPEAT_S:
                self._dropped_at = now
                log.warning(
                    "spans are dropped, as they come faster than they are exported; messages are not affected; set "
                    "OTEL_TRACES_SAMPLER to record fewer"
                )
        else:
            log.log(record.levelno, "%s", record.getMessage())

    def exported(self) -> None:
        """Note that the collector has taken spans."""
        if self.failing:
            self.failing = False
            log.info("spans are exported again")


class _Exporter(SpanExporter):
    """An exporter whose successes are noted; of its failures the SDK's logs tell, with the cause and at once."""

    def __init__(self, exporter: SpanExporter, watch: ExportWatch) -> None:
        self._exporter = exporter
        self._watch = watch

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._watch.exported()
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
