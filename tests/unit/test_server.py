"""The HTTP port, signals, and what librdkafka's statistics become."""

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from workers.errors import ConfigError
from workers.kafka.statistics import parse
from workers.lifecycle import Shutdown, call_with_timeout
from workers.monitoring.server import Server


class Probes:
    """What the checks answer."""

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
        with urllib.request.urlopen(url, timeout=5) as answer:
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


def test_a_silent_connection_holds_up_nobody(server: tuple[Server, str]) -> None:
    import socket

    _, url = server
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))):
        assert get(f"{url}/livez")[0] == 200


def test_a_taken_port_is_refused_or_replaced_as_asked(server: tuple[Server, str]) -> None:
    _, url = server
    port = int(url.rsplit(":", 1)[1])
    with Server(CollectorRegistry(), lambda: None, lambda: None) as second:
        with pytest.raises(ConfigError, match=f"--metrics-port.*{port}"):
            second.start("127.0.0.1", port)
        assert second.start("127.0.0.1", port, any_port_if_taken=True) != port


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
        time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_ends_at_once(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", SIGNALS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(number)
        assert process.wait(10) == 128 + number


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
        return {"desired": True, "fetch_state": "active", "ls_offset": 9, "next_offset": 4, **fields}

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
