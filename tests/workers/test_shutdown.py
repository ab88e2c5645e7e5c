"""A stop is heard in every state, takes no longer than was allowed, and a second signal ends at once."""

import json
import signal
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Proxy
from workers.local.cluster import Cluster
from workers.producer.loop import MAX_QUEUE_MESSAGES
from workers.sources import BATCH_MESSAGES
from workers.testing.processes import Process, Processes, eventually

BOUND_S = 3.0
# On top of the bound: closing the client is given a second or two, and the machine may be busy. 25 s is the default.
MORE_S = 15.0


# At its end this source says how many messages it has yielded, and of how many it was told that they were delivered.
ENDLESS = """
import atexit
import itertools
from workers import Outgoing

taken = told = 0
atexit.register(lambda: print("taken and told:", taken, told))

def on_delivery(delivery):
    global told
    told += delivery.outcome == "success"

def rows():
    global taken
    for taken in itertools.count(1):
        yield Outgoing("order", on_delivery=on_delivery)
"""


# A module of the user that says when the first signal is heard.
TELLS = """
import itertools
import time
from workers import Outgoing
from workers.lifecycle import Shutdown

request = Shutdown.request

def told(shutdown):
    request(shutdown)
    print("asked to stop", flush=True)

Shutdown.request = told

def handle(message):
    print("busy", flush=True)
    time.sleep(3600)

def rows():
    for number in itertools.count():
        yield Outgoing(str(number))
"""


@pytest.fixture
def away(cluster: Cluster) -> Iterator[Cluster]:
    """The brokers; what a test stops with SIGSTOP goes on after it."""
    yield cluster
    _signal(cluster, signal.SIGCONT)


def _signal(cluster: Cluster, number: signal.Signals) -> None:
    for broker in cluster.brokers:
        broker.send(number)


def _stop(process: Process) -> int:
    began = time.monotonic()
    code = process.stop()
    assert time.monotonic() - began < BOUND_S + MORE_S
    return code


def _bounded(*arguments: str) -> list[str]:
    return [*arguments, "--shutdown-timeout", f"{BOUND_S:g}"]


def test_a_producer_with_a_full_queue_stops_in_time_and_every_message_has_an_outcome(
    processes: Processes, topic: str, away: Cluster
) -> None:
    producer = processes.start("produce", "--topic", topic, *_bounded("--forever", "--summary", "json"))
    eventually(lambda: (producer.metric("kafka_producer_deliveries_total", outcome="success") or 0) > 0, "deliveries")
    _signal(away, signal.SIGSTOP)
    full = MAX_QUEUE_MESSAGES - BATCH_MESSAGES
    eventually(lambda: (producer.metric("kafka_producer_queue_messages") or 0) > full, "the queue is full for good")

    assert _stop(producer) == 1
    account = json.loads(producer.stdout)
    assert account["unknown"] + account["failed"] > 0
    assert account["sent"] == account["acknowledged"] + account["failed"] + account["unknown"]


@pytest.mark.parametrize("rate", [[], ["--rate", "200"]])
def test_a_producer_that_is_stopped_tells_its_source_of_every_message(
    processes: Processes, topic: str, rate: list[str]
) -> None:
    processes.write("endless.py", ENDLESS)
    producer = processes.start("produce", "--topic", topic, "--source", "endless:rows", "--forever", *rate)
    eventually(lambda: (producer.metric("kafka_producer_deliveries_total", outcome="success") or 0) > 200, "deliveries")

    assert _stop(producer) == 0, producer.stderr
    taken, told, *_ = map(int, producer.stdout.split("taken and told: ")[1].split())
    assert taken == told > 200


def test_what_waits_for_its_second_attempt_when_time_is_up_is_unknown(
    processes: Processes, topic: str, cluster: Cluster, proxy: Proxy
) -> None:
    options = _bounded("--forever", "--rate", "500", "--summary", "json", "--property", "socket.timeout.ms=1000")
    proxied = {"KAFKA_BOOTSTRAP_SERVERS": cluster.proxied_bootstrap_servers}
    producer = processes.start("produce", "--topic", topic, *options, env=proxied)
    eventually(lambda: (producer.metric("kafka_producer_deliveries_total", outcome="success") or 0) > 0, "deliveries")
    proxy.unanswered = True
    producer.says("Timed out ProduceRequest")  # the first attempt is over, and was written

    assert _stop(producer) == 1
    account = json.loads(producer.stdout)
    assert account["unknown"] > 0
    path = processes.write("account.json", producer.stdout)
    result = processes.run("verify", "--topic", topic, "--account", str(path), "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["lost"], report["failed_present"]) == (0, 0)
    assert report["unknown_present"] > 0


def test_a_consumer_stops_in_time_while_the_brokers_are_away(
    processes: Processes, topic: str, group: str, away: Cluster
) -> None:
    processes.produce(topic, "--count", "300")
    consumer = processes.consume(topic, group, *_bounded())
    eventually(lambda: len(consumer.lines) == 300, "the messages are handled")
    _signal(away, signal.SIGSTOP)

    # No broker confirms that the member has left, for which the client would wait longer than the stop may take.
    assert _stop(consumer) == 1
    assert "the group was not left in time" in consumer.stderr.splitlines()[-1]


def test_a_consumer_that_has_found_no_broker_stops_at_once(processes: Processes, group: str) -> None:
    consumer = processes.start("consume", "--group-id", group, env={"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})
    consumer.says("no answer from 127.0.0.1:1 yet")

    assert consumer.stop(timeout_s=MORE_S) == 0


def test_a_thread_that_a_handler_leaves_running_does_not_hold_up_the_end(
    processes: Processes, topic: str, group: str
) -> None:
    processes.write(
        "pool.py",
        "import threading, time\ndef handle(message):\n    threading.Thread(target=time.sleep, args=(3600,)).start()\n",
    )
    processes.produce(topic, "--count", "1")
    consumer = processes.consume(topic, group, "--handler", "pool:handle", "--max-messages", "1")

    assert consumer.wait() == 0


def stop_again(process: Process) -> int:
    """Signal until the process has ended: a signal of the same moment as the first one is none of its own."""

    def has_ended() -> bool:
        process.popen.send_signal(signal.SIGTERM)
        return not process.running

    eventually(has_ended, "the second signal ends it", MORE_S)
    return process.wait()


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_busy_consumer_at_once(
    processes: Processes, topic: str, group: str, first: signal.Signals
) -> None:
    processes.write("tells.py", TELLS)
    processes.produce(topic, "--count", "1")
    consumer = processes.consume(topic, group, "--handler", "tells:handle", "--shutdown-timeout", "600")
    eventually(lambda: "busy" in consumer.stdout, "the handler is busy")
    eventually(lambda: consumer.get("/readyz")[0] == 200, "it is ready")
    consumer.popen.send_signal(first)
    eventually(lambda: "asked to stop" in consumer.stdout, "the first signal is heard")
    # The message at hand is waited for.
    assert consumer.get("/readyz")[0] == 200

    assert stop_again(consumer) == 128 + signal.SIGTERM


def test_a_second_signal_ends_a_producer_with_a_full_queue_at_once(
    processes: Processes, topic: str, away: Cluster
) -> None:
    processes.write("tells.py", TELLS)
    options = ["--source", "tells:rows", "--forever", "--shutdown-timeout", "600"]
    producer = processes.start("produce", "--topic", topic, *options)
    eventually(lambda: (producer.metric("kafka_producer_deliveries_total", outcome="success") or 0) > 0, "deliveries")
    _signal(away, signal.SIGSTOP)
    eventually(lambda: (producer.metric("kafka_producer_queue_messages") or 0) > 1000, "a queue")
    producer.popen.send_signal(signal.SIGTERM)
    eventually(lambda: "asked to stop" in producer.stdout, "the first signal is heard")
    assert producer.get("/livez")[0] == 200

    assert stop_again(producer) == 128 + signal.SIGTERM
