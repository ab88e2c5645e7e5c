"""The worker's HTTP port: `/metrics` for Prometheus, `/livez` and `/readyz` for the kubelet.

It runs in threads of its own, so that a scrape is answered while the worker waits for Kafka or for a handler.
"""

import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from workers.errors import ConfigError

# A check returns None when all is well, otherwise the reason in a few words.
Check = Callable[[], str | None]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        # "::" is every address of both families.
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class _QuietHandler(WSGIRequestHandler):
    # A peer that opens a connection and says nothing does not hold a thread for ever.
    timeout = 10

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name it has in the base class)
        """A probe every few seconds is no event."""


class _Answer(list[bytes]):
    """A response that says when it was sent: a process that waits to be scraped must not end before."""

    def __init__(self, body: Iterable[bytes], sent: Callable[[], None]) -> None:
        super().__init__(body)
        self.close = sent


class Server:
    """Serves from `start` to the end of the `with` block. `scraped` is set by the first scrape after it was cleared."""

    def __init__(self, registry: CollectorRegistry, ready: Check, live: Check) -> None:
        self.scraped = threading.Event()
        self._metrics = make_wsgi_app(registry)
        self._checks = {"/readyz": ready, "/livez": live}
        self._server: WSGIServer | None = None

    def start(self, host: str, port: int, *, any_port_if_taken: bool = False) -> int:
        """Binds and returns the port, 0 for any free one. Raises ConfigError when it cannot be bound."""
        try:
            self._server = make_server(host, port, self._answer, _Server, _QuietHandler)
        except OSError as error:
            if any_port_if_taken:
                return self.start(host, 0)
            raise ConfigError(
                f"--metrics-port: cannot listen on {host}:{port}: {error.strerror}; 0 takes any free port"
            ) from None
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="metrics", daemon=True).start()
        return int(self._server.server_port)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return _Answer(self._metrics(environ, start_response), self.scraped.set)
        check = self._checks.get(path)
        if check is None:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"try /metrics, /livez or /readyz\n"]
        reason = check()
        start_response("503 Service Unavailable" if reason else "200 OK", [("Content-Type", "text/plain")])
        return [f"{reason or 'ok'}\n".encode()]
