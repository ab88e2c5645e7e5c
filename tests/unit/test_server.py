"""The HTTP port, signals, and what librdkafka's statistics become."""

import json
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from prometheus_client import CollectorRegistry, Gauge, Metric
from prometheus_client.registry import Collector

from workers.errors import ConfigError
from workers.kafka.statistics import parse
from workers.lifecycle import Shutdown, call_with_timeout
from workers.monitoring import server as monitoring
from workers.monitoring.server import Server
from workers.testing.processes import eventually


class Probes:
    """Answers of the checks behind the probes."""

    not_ready: str | None = None
    stuck: str | None = None


@pytest.fixture
def probes() -> Probes:
    return Probes()


@pytest.fixture
def server(probes: Probes) -> Iterator[tuple[Server, str]]:
    registry = CollectorRegistry()
    Gauge("answer", "Of everything.", registry=registry).set(42)
    with Server(registry, lambda: probes.not_ready, lambda: probes.stuck) as running:
        port = running.start("127.0.0.1", 0)
        yield running, f"http://127.0.0.1:{port}"


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_are_served_and_a_scrape_is_noticed_when_it_was_sent(server: tuple[Server, str]) -> None:
    running, url = server
    assert not running.scraped.is_set()
    status, text = get(f"{url}/metrics")

    assert status == 200
    assert "answer 42.0" in text
    assert running.scraped.wait(5)


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_both_families_of_addresses_can_be_listened_on(address: str) -> None:
    with Server(CollectorRegistry(), lambda: None, lambda: None) as running:
        port = running.start("::", 0)

        assert get(f"http://{address}:{port}/livez") == (200, "ok\n")


def test_probes_say_why_not(server: tuple[Server, str], probes: Probes) -> None:
    _, url = server
    assert get(f"{url}/readyz") == (200, "ok\n")
    probes.not_ready = "no broker can be reached"

    assert get(f"{url}/readyz") == (503, "no broker can be reached\n")
    assert get(f"{url}/livez") == (200, "ok\n")
    assert get(f"{url}/other")[0] == 404


# More than the kernel buffers on both sides of a connection.
LARGE = 8_000_000
# Long enough for a busy machine to make the metrics.
LIMIT_S = 5.0


@pytest.fixture
def large_registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("large", "x" * LARGE, registry=registry)
    return registry


@pytest.fixture
def large_server(
    large_registry: CollectorRegistry, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Server, int]]:
    """A server whose metrics fill every buffer, and that gives a connection LIMIT_S."""
    monkeypatch.setattr(monitoring, "REQUEST_TIMEOUT_S", LIMIT_S)
    with Server(large_registry, lambda: probes.not_ready, lambda: probes.stuck) as running:
        yield running, running.start("127.0.0.1", 0)


def connect(port: int, request: bytes = b"") -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(30)
    client.connect(("127.0.0.1", port))
    client.sendall(request)
    return client


def reset(client: socket.socket) -> None:
    """Close so that the peer gets a reset, as from a process that was killed with data unread."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def is_closed(client: socket.socket) -> bool:
    """Whether the server has closed the connection; reads what it has sent before."""
    client.settimeout(0.01)
    try:
        while client.recv(1_000_000):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


def test_a_probe_is_answered_while_slow_readers_and_idle_connections_hang(large_server: tuple[Server, int]) -> None:
    _, port = large_server
    threads = threading.active_count()
    with ExitStack() as held:
        for _ in range(8):
            slow = held.enter_context(connect(port, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"))
            assert slow.recv(1) == b"H"
            held.enter_context(connect(port))
            held.enter_context(connect(port, b"GET /live"))

        assert get(f"http://127.0.0.1:{port}/livez") == (200, "ok\n")
        assert threading.active_count() <= threads + 1


def test_connections_are_bounded_and_the_newest_is_served(server: tuple[Server, str]) -> None:
    running, url = server
    port = int(url.rsplit(":", 1)[1])
    with ExitStack() as held:
        clients = [held.enter_context(connect(port)) for _ in range(200)]

        assert get(f"http://127.0.0.1:{port}/livez") == (200, "ok\n")
        assert running.connections <= monitoring.MAX_CONNECTIONS
        assert sum(not is_closed(client) for client in clients) <= monitoring.MAX_CONNECTIONS


def test_a_request_that_never_ends_is_given_up(large_server: tuple[Server, int]) -> None:
    _, port = large_server

    def send(client: socket.socket) -> bool:
        """Send a byte more; return whether the server has given up."""
        try:
            client.sendall(b"X")
        except (ConnectionResetError, BrokenPipeError):
            return True
        return False

    with connect(port, b"GET /livez HTTP/1.1\r\n") as client:
        eventually(lambda: send(client), "the server gives up")


def test_a_response_that_is_read_byte_by_byte_is_given_up(large_server: tuple[Server, int]) -> None:
    running, port = large_server
    with connect(port, b"GET /metrics HTTP/1.1\r\n\r\n") as client:
        assert client.recv(1) == b"H"
        eventually(lambda: client.recv(1) and not running.connections, "the server gives up")
        received = 0
        with suppress(ConnectionResetError):
            while data := client.recv(1_000_000):
                received += len(data)
    assert received < LARGE
    assert not running.scraped.is_set()


@pytest.mark.parametrize("request_", [b"G", b"GET /livez HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\n\r\n"])
def test_a_connection_that_is_reset_is_no_traceback(
    large_registry: CollectorRegistry, capfd: pytest.CaptureFixture[str], request_: bytes
) -> None:
    with Server(large_registry, lambda: None, lambda: None) as running:
        port = running.start("127.0.0.1", 0)
        for _ in range(10):
            client = connect(port, request_)
            if b"metrics" in request_:
                assert client.recv(1) == b"H"
            reset(client)
        assert get(f"http://127.0.0.1:{port}/livez") == (200, "ok\n")

    assert "Traceback" not in capfd.readouterr().err


def test_a_scrape_that_was_not_received_does_not_count(large_server: tuple[Server, int]) -> None:
    running, port = large_server
    client = connect(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert client.recv(1) == b"H"
    assert not running.scraped.is_set()
    reset(client)
    # Whoever comes later is served later than the end of the first was noticed.
    assert get(f"http://127.0.0.1:{port}/livez") == (200, "ok\n")
    assert not running.scraped.wait(1)

    assert get(f"http://127.0.0.1:{port}/metrics")[0] == 200
    assert running.scraped.wait(5)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 200 + b"\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"\xff\x00 \r\n \r\n\r\n", 400),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
    ],
)
def test_what_is_no_request_of_ours_is_refused(server: tuple[Server, str], request_: bytes, status: int) -> None:
    running, url = server
    with connect(int(url.rsplit(":", 1)[1]), request_) as client:
        assert client.recv(12) == f"HTTP/1.1 {status}".encode()
    assert not running.scraped.is_set()


def test_a_head_request_gets_no_body(server: tuple[Server, str]) -> None:
    _, url = server
    with connect(int(url.rsplit(":", 1)[1]), b"HEAD /livez HTTP/1.1\r\n\r\n") as client:
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


def test_metrics_that_cannot_be_made_are_an_error_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Collector):
        def collect(self) -> Iterator[Metric]:
            raise ValueError("no numbers")
            yield

        def describe(self) -> Iterator[Metric]:
            return iter(())

    registry = CollectorRegistry()
    registry.register(Broken())
    with Server(registry, lambda: None, lambda: None) as running:
        port = running.start("127.0.0.1", 0)

        assert get(f"http://127.0.0.1:{port}/metrics")[0] == 500
        assert get(f"http://127.0.0.1:{port}/livez")[0] == 200
    assert "no numbers" in caplog.text


def test_an_end_does_not_wait_for_connections() -> None:
    with Server(CollectorRegistry(), lambda: None, lambda: None) as running:
        port = running.start("127.0.0.1", 0)
        idle = connect(port)
        assert get(f"http://127.0.0.1:{port}/livez")[0] == 200
        begun = time.monotonic()
    assert time.monotonic() - begun < monitoring.REQUEST_TIMEOUT_S / 2
    assert is_closed(idle)
    idle.close()


def test_a_taken_port_is_refused_or_replaced_as_asked(server: tuple[Server, str]) -> None:
    _, url = server
    port = int(url.rsplit(":", 1)[1])
    with Server(CollectorRegistry(), lambda: None, lambda: None) as second:
        with pytest.raises(ConfigError, match=f"--metrics-port.*{port}"):
            second.start("127.0.0.1", port)
        assert second.start("127.0.0.1", port, any_port_if_taken=True) != port


def test_a_port_is_not_blamed_for_too_many_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Server(CollectorRegistry(), lambda: None, lambda: None) as refused:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                refused.start("127.0.0.1", 0, any_port_if_taken=True)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


SIGNALS = """
import signal, sys, time
from workers.lifecycle import Shutdown
shutdown = Shutdown(60)
shutdown.install()
print("ready", flush=True)
while True:
    time.sleep(0.01)
    if shutdown.requested:
        print("asked", flush=True)
        break
# A signal just before one long sleep would be handled after it.
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_ends_at_once(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", SIGNALS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "asked\n"

        def has_ended() -> bool:
            process.send_signal(number)
            return process.poll() is not None

        eventually(has_ended, "a signal that is not of the same moment ends it")
        assert process.returncode == 128 + number


def test_time_runs_only_after_a_stop_was_asked_for() -> None:
    shutdown = Shutdown(0.2)
    assert shutdown.remaining_s() == float("inf")
    shutdown.request()
    assert 0 < shutdown.remaining_s() <= 0.2
    deadline = time.monotonic() + 5
    while shutdown.remaining_s():
        assert time.monotonic() < deadline


def test_a_call_that_hangs_is_left_behind() -> None:
    never = threading.Event()
    assert call_with_timeout(lambda: None, 5)
    assert not call_with_timeout(lambda: never.wait(20), 0.1)
    never.set()


def statistics() -> str:
    def partition(**fields: object) -> dict[str, object]:
        return {"desired": True, "fetch_state": "active", "ls_offset": 9, "next_offset": 4, "leader": 1, **fields}

    rtt = {"cnt": 3, "p50": 1000, "p95": 2000, "p99": 3000}
    idle = {"cnt": 0, "p50": 0, "p95": 0, "p99": 0}
    return json.dumps(
        {
            "time": 1_700_000_000, "msg_cnt": 5, "msg_size": 700,
            "brokers": {
                "a:9092/0": {"nodeid": 0, "nodename": "a:9092", "state": "UP", "rtt": rtt},
                "b:9092/1": {"nodeid": 1, "nodename": "b:9092", "state": "DOWN", "rtt": idle},
                "a:9092/bootstrap": {"nodeid": -1, "nodename": "a:9092", "state": "UP", "rtt": rtt},
            },
            "topics": {
                "teste": {
                    "partitions": {
                        "0": partition(),
                        "1": partition(desired=False),
                        "2": partition(fetch_state="stopped"),
                        "-1": partition(),
                    }
                }
            },
            "cgrp": {"state": "up", "join_state": "steady"},
        }
    )  # fmt: skip


def test_statistics_keep_only_what_can_be_trusted() -> None:
    found = parse(statistics())

    assert list(found.partitions) == [("teste", 0)]
    assert found.partitions["teste", 0].end_offset == 9
    assert found.topic_partitions == {"teste": 3}
    assert found.broker_rtt_s == {"a:9092": {"0.5": 0.001, "0.95": 0.002, "0.99": 0.003}}
    assert found.brokers_up == 2
    assert found.coordinator_up
    assert found.group_steady


def test_a_producers_statistics_have_no_group() -> None:
    document = json.loads(statistics())
    del document["cgrp"]

    assert not parse(json.dumps(document)).coordinator_up
