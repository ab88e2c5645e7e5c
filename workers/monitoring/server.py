"""The worker's HTTP port: `/metrics` for Prometheus, `/livez` and `/readyz` for the kubelet.

One thread runs an event loop for all connections, so that a scrape is answered while the worker waits for Kafka or for
a handler; a second one renders the metrics, so that a probe does not wait for a scrape. A connection costs no thread,
and has bounds in number, size and time: whoever reads slowly or says nothing holds up nobody.

This is asyncio's stream server, because no library has all the bounds. The servers of prometheus_client and wsgiref
take a thread for each connection, without a bound. wsgiref with a bounded pool, and cheroot, are full when as many
clients hang as there are threads. waitress holds no thread for them, but a client that sends a byte now and then holds
a connection for ever, and waitress does not say when a response was sent. `http.client` reads the request's headers,
prometheus_client makes the metrics.
"""

import asyncio
import errno
import http.client
import logging
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from io import BytesIO
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, make_wsgi_app

from workers.errors import TOO_MANY_FILES, ConfigError

log = logging.getLogger("workers")
# A check returns None when all is well, otherwise the reason in a few words. It must not block.
Check = Callable[[], str | None]
# Prometheus, the kubelet and a person need three. Above it the oldest connection is closed, so the newest is served.
MAX_CONNECTIONS = 32
# For the whole request and its response; Prometheus gives up after 10 s by default.
REQUEST_TIMEOUT_S = 10.0
MAX_REQUEST_BYTES = 16 * 1024
# A connection that finds the kernel's queue full is tried again after a second, which is late for a probe.
BACKLOG = 128
END_OF_REQUEST = b"\r\n\r\n"
TEXT = ("Content-Type", "text/plain; charset=utf-8")


@dataclass(frozen=True, slots=True)
class Response:
    status: str
    headers: list[tuple[str, str]]
    body: bytes

    @classmethod
    def text(cls, status: HTTPStatus, text: str) -> Self:
        return cls(f"{status.value} {status.phrase}", [TEXT], f"{text}\n".encode())

    def encode(self, *, with_body: bool) -> bytes:
        headers = [*self.headers, ("Content-Length", str(len(self.body))), ("Connection", "close")]
        lines = [f"HTTP/1.1 {self.status}", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join(lines).encode() + END_OF_REQUEST + (self.body if with_body else b"")


class Server:
    """Serves from `start` to the end of the `with` block.

    `scraped` is set by the first scrape after it was cleared, when its response was sent.
    """

    def __init__(self, registry: CollectorRegistry, ready: Check, live: Check) -> None:
        self.scraped = threading.Event()
        self._metrics = make_wsgi_app(registry)
        self._checks = {"/readyz": ready, "/livez": live}
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="metrics-renderer")
        self._connections: dict[asyncio.StreamWriter, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._thread: threading.Thread | None = None

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._connections)

    def start(self, host: str, port: int, *, any_port_if_taken: bool = False) -> int:
        """Binds and returns the port, 0 for any free one.

        Raises ConfigError when it cannot be bound, and OSError when the process may open no more files.
        """
        try:
            listener = _listen(host, port)
        except OSError as error:
            if error.errno in TOO_MANY_FILES:
                raise
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise ConfigError(
                    f"--metrics-host: cannot listen on {host}: {error.strerror}; give an address of this machine, or "
                    "0.0.0.0 for all"
                ) from None
            if any_port_if_taken:
                return self.start(host, 0)
            raise ConfigError(
                f"--metrics-port: cannot listen on {host}:{port}: {error.strerror}; 0 takes any free port"
            ) from None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(self._loop, listener), name="metrics", daemon=True)
        self._thread.start()
        return int(listener.getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
        self._renderer.shutdown(wait=False, cancel_futures=True)

    def _run(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        # The runner closes the loop, after it has cancelled what is still being served.
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._connected, sock=listener, limit=MAX_REQUEST_BYTES, backlog=BACKLOG)
        await self._stopping.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection; it ends in any case when its time is up."""
        self._connections[writer] = None
        if len(self._connections) > MAX_CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.transport.abort()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._exchange(reader, writer)
        except (OSError, EOFError):
            # The peer has gone, or its time is up (TimeoutError is an OSError): what it has not read is dropped.
            writer.transport.abort()
        finally:
            self._connections.pop(writer, None)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads a request and sends its response, all of it."""
        method = path = ""
        try:
            head = await reader.readuntil(END_OF_REQUEST)
            method, path, query, headers = _parse(head)
        except (asyncio.LimitOverrunError, http.client.HTTPException):
            response = Response.text(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request is too large")
        except ValueError:
            response = Response.text(HTTPStatus.BAD_REQUEST, "this is not an HTTP request")
        else:
            response = await self._answer(method, path, query, headers)
        # So that drain() returns when the kernel has taken all of it.
        writer.transport.set_write_buffer_limits(0)
        writer.write(response.encode(with_body=method != "HEAD"))
        await writer.drain()
        if (method, path) == ("GET", "/metrics"):
            self.scraped.set()

    async def _answer(self, method: str, path: str, query: str, headers: http.client.HTTPMessage) -> Response:
        if method not in ("GET", "HEAD"):
            return Response.text(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered")
        if path == "/metrics":
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._renderer, self._render, query, headers)
        check = self._checks.get(path)
        if check is None:
            return Response.text(HTTPStatus.NOT_FOUND, "try /metrics, /livez or /readyz")
        reason = check()
        return Response.text(HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK, reason or "ok")

    def _render(self, query: str, headers: http.client.HTTPMessage) -> Response:
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": query,
            "HTTP_ACCEPT": headers.get("Accept"),
            "HTTP_ACCEPT_ENCODING": headers.get("Accept-Encoding"),
        }
        begun: list[tuple[str, list[tuple[str, str]]]] = []
        try:
            body = b"".join(self._metrics(environ, lambda *status_and_headers: begun.append(status_and_headers)))
        except Exception:
            log.exception("the metrics cannot be made")
            return Response.text(HTTPStatus.INTERNAL_SERVER_ERROR, "the metrics cannot be made; the log says why")
        [(status, sent_headers)] = begun
        return Response(status, sent_headers, body)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" is every address of both families. asyncio would make it one of IPv6 alone.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, port))
        # Connections that come before the thread runs wait.
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _parse(head: bytes) -> tuple[str, str, str, http.client.HTTPMessage]:
    """Method, path, query and headers of a request; raises ValueError, and HTTPException for too many headers."""
    line, _, rest = head.partition(b"\r\n")
    method, target, version = line.decode("ascii").split(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(version)
    url = urlsplit(target)
    return method, url.path, url.query, http.client.parse_headers(BytesIO(rest))
