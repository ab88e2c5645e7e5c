"""Answers whatever is sent to it over HTTP, on a free port that it prints: a collector that is never the bottleneck."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Request(BaseHTTPRequestHandler):
    """Takes a body, and answers an empty one."""

    # So that the connection stays.
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Request) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
