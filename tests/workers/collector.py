"""A collector of OTLP over HTTP, for tests: keeps the spans that it is sent."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Span:
    """One span as it came."""

    def __init__(self, span: Any, service: str) -> None:
        self.name: str = span.name
        self.service = service
        self.trace: str = span.trace_id.hex()
        self.id: str = span.span_id.hex()
        self.parent: str = span.parent_span_id.hex()
        self.failed: bool = span.status.code == span.status.STATUS_CODE_ERROR
        self.events: list[str] = [event.name for event in span.events]
        self.links: list[tuple[str, str]] = [(link.trace_id.hex(), link.span_id.hex()) for link in span.links]
        self.attributes: dict[str, str | int] = {
            each.key: each.value.string_value or each.value.int_value for each in span.attributes
        }


class Collector:
    """The spans so far; `endpoint` is for OTEL_EXPORTER_OTLP_ENDPOINT."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.schemas: set[str] = set()
        self._spans: list[Span] = []
        self._lock = threading.Lock()

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a worker that exports to it. A worker that ends sends its spans at once."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint, "KAFKA_TRACING": "true", "NO_PROXY": "127.0.0.1"}

    def named(self, name: str) -> list[Span]:
        """The spans of this name, in the order in which they came."""
        with self._lock:
            return [span for span in self._spans if span.name == name]

    def take(self, body: bytes) -> None:
        """Keep the spans of a request; called by the server's threads."""
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            for resource in request.resource_spans:
                [service] = [each for each in resource.resource.attributes if each.key == "service.name"]
                for scope in resource.scope_spans:
                    self.schemas.add(scope.schema_url)
                    self._spans += [Span(span, service.value.string_value) for span in scope.spans]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port of loopback."""

    class Request(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Request) as server:
        collector = Collector(server.server_address[1])
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield collector
        server.shutdown()
