"""The example in examples/enrichment: each order is priced once, whatever fails; one without a price is rejected."""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from tests.conftest import Topics
from tests.reading import read_as_written
from workers.local.cluster import Cluster
from workers.testing import handle, message
from workers.testing.kafka import QUICK
from workers.testing.processes import Process, Processes, eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "enrichment"
PRICES = {"tea": 450, "coffee": 725, "cocoa": 610}
ORDERS = 600
# How long the handler waits for the service, and how much longer that takes where it hangs.
TIMEOUT_S = 3.0
FAULTS = ("--failing", "0.1", "--hanging", "0.01", "--hang-s", "6")


@pytest.fixture
def service() -> Iterator[str]:
    """The address of the example's price service, which fails now and then."""
    command = [sys.executable, str(EXAMPLE / "prices.py"), "--port", "0", *FAULTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[2].removesuffix("/prices/tea")
        server.kill()


def order(number: int) -> dict[str, Any]:
    """Every fiftieth is of an article that has no price."""
    article = "gold" if number % 50 == 0 else [*PRICES][number % 3]
    return {"number": number, "article": article, "quantity": 1 + number % 4}


def test_each_order_is_priced_once_though_the_service_fails_and_a_consumer_and_a_broker_are_killed(
    processes: Processes, topics: Topics, cluster: Cluster, admin: AdminClient, group: str, service: str
) -> None:
    source, target = topics.create(), topics.create()
    topics.create_named(f"{source}.dlq")
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "enable.idempotence": True})

    def produce(begin: int, end: int) -> None:
        for number in range(begin, end):
            producer.produce(source, json.dumps(order(number)), f"customer-{number % 200}")
        producer.flush(60)

    env = {
        "PYTHONPATH": str(EXAMPLE), "PRICES_URL": service, "PRICES_TIMEOUT_S": str(TIMEOUT_S), "PRICED_TOPIC": target,
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    options = ["--handler", "enrichment:price", "--exactly-once", "--concurrency", "64", "--order", "key", *QUICK]

    def member() -> Process:
        return processes.consume(source, group, *options, "--transactional-id", group, "--summary", "json", env=env)

    def written(consumer: Process) -> float:
        return consumer.metric("kafka_consumer_outputs_total", topic=target, outcome="success") or 0

    produce(0, ORDERS // 3)
    first = member()
    eventually(lambda: written(first) > ORDERS / 10, "some are written")
    produce(ORDERS // 3, 2 * ORDERS // 3)
    first.kill()
    second = member()
    eventually(lambda: written(second) > ORDERS / 10, "the next member goes on")
    produce(2 * ORDERS // 3, ORDERS)
    leader = admin.list_topics(target, timeout=10).topics[target].partitions[0].leader
    cluster.kill_broker(leader)
    try:
        found = read_as_written(cluster.bootstrap_servers, ORDERS, target, f"{source}.dlq")
        assert second.stop() == 0, second.stderr
    finally:
        cluster.start_broker(leader)
        cluster.wait_until_ready()

    priced = [each for each in found if each.topic() == target]
    letters = [each for each in found if each.topic() != target]
    results = [json.loads(message.value() or b"") for message in priced]
    assert Counter(result["number"] for result in results) == Counter(each for each in range(ORDERS) if each % 50)
    for result in results:
        wanted = order(result["number"])
        assert result == {**wanted, "cents": wanted["quantity"] * PRICES[wanted["article"]]}
    by_key: dict[Any, list[int]] = {}
    for each, result in zip(priced, results, strict=True):
        by_key.setdefault(each.key(), []).append(result["number"])
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
    assert sorted(json.loads(each.value() or b"")["number"] for each in letters) == [*range(0, ORDERS, 50)]
    told = json.loads(second.stderr.splitlines()[-1])["topics"][source]
    assert told["retried"] > 0


class Statuses:
    """The service, as a test says: the HTTP statuses for each article, one after the other; the last one stays."""

    def __init__(self, **statuses: list[int]) -> None:
        self._statuses = statuses

    def take(self, article: str) -> int:
        left = self._statuses[article]
        return left.pop(0) if len(left) > 1 else left[0]


HANGS = 0


@contextmanager
def answering(statuses: Statuses) -> Iterator[str]:
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status = statuses.take(self.path.removeprefix("/prices/"))
            if status == HANGS:
                over.wait(20)
                self.close_connection = True
                return
            body = b'{"cents": 5}'
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            over.set()
            server.shutdown()
            thread.join()


def test_each_answer_of_the_service_has_its_consequence(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = Statuses(tea=[503, 500, 200], coffee=[429, 200], cocoa=[HANGS, 200], gold=[404], odd=[400])
    given = [{"number": 1 + place, "article": article, "quantity": 2}
             for place, article in enumerate(["tea", "coffee", "cocoa", "gold", "odd"])]  # fmt: skip
    messages = [message(json.dumps(each), key=each["article"]) for each in given]
    messages += [message("no order"), message('{"number": 7}'), message(None)]
    with answering(statuses) as url:
        monkeypatch.setenv("PRICES_URL", url)
        monkeypatch.setenv("PRICES_TIMEOUT_S", "0.5")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.syspath_prepend(EXAMPLE)
        try:
            handled = handle("enrichment:price", messages, concurrency=8, timeout_s=60)
        finally:
            sys.modules.pop("enrichment", None)

    priced = [json.loads(each.value() or b"") for each in handled.outputs["orders-priced"]]
    assert sorted(priced, key=lambda each: each["number"]) == [{**each, "cents": 10} for each in given[:3]]
    assert handled.retried >= 4 + 4
    letters = Counter((letter.error.partition(":")[0], letter.attempts) for letter in handled.dead_letters)
    assert letters == {
        ("not an order", 1): 3,
        ("article 'gold' has no price", 1): 1,
        ("the price service does not take the request", 5): 1,
    }
