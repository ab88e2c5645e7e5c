"""A price service to try the example with: `GET /prices/tea` answers {"cents": 450}. It fails as often as it is told.

python prices.py --port 8080 --failing 0.1 --hanging 0.01
"""

import argparse
import json
import random
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

PRICES = {"tea": 450, "coffee": 725, "cocoa": 610}


class Prices(BaseHTTPRequestHandler):
    """Answers 404 for an article that it does not have.

    `failing` is the share of requests that it answers with 503, `hanging` of those that it answers after `hang_s`.
    """

    protocol_version = "HTTP/1.1"
    # An answer is sent in two parts, and the second would wait for the first to be acknowledged.
    disable_nagle_algorithm = True
    failing = hanging = hang_s = 0.0

    def do_GET(self) -> None:
        """Called by the server, in a thread for each connection."""
        chance = random.random()  # noqa: S311  (not a secret)
        if chance < self.failing:
            self._answer(503, {"error": "try again"})
            return
        if chance < self.failing + self.hanging:
            time.sleep(self.hang_s)
        article = unquote(self.path.removeprefix("/prices/"))
        if article in PRICES:
            self._answer(200, {"cents": PRICES[article]})
        else:
            self._answer(404, {"error": f"no article {article}"})

    def _answer(self, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


class Server(ThreadingHTTPServer):
    """Takes as many connections at once as the example makes."""

    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Callers that have given up are no news."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--failing", type=float, default=0.0, help="share of requests that are answered with 503")
    parser.add_argument("--hanging", type=float, default=0.0, help="share of requests that are answered late")
    parser.add_argument("--hang-s", type=float, default=30.0, help="how late, in seconds")
    options = parser.parse_args()
    Prices.failing, Prices.hanging, Prices.hang_s = options.failing, options.hanging, options.hang_s
    with Server((options.host, options.port), Prices) as server:
        print(f"prices at http://{options.host}:{server.server_port}/prices/tea", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
