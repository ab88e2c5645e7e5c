"""--tracing, against real brokers and a collector of OTLP."""

import json
import socket
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import Topics
from tests.workers.collector import Collector, collecting
from workers.testing.processes import Processes

HANDLERS = """
import logging
import sys
import time

from workers import Outgoing, Reject, batch

log = logging.getLogger("handling")
failed = set()

def rows():
    for number in range(3):
        yield Outgoing(str(number), key="k")

def forward(message):
    value = message.value()
    if value == b"1" and value not in failed:
        failed.add(value)
        raise ValueError("not yet")
    if value == b"2":
        raise Reject("never")
    log.info("handled %s", value.decode())
    yield Outgoing(value, key=message.key(), topic="{topic}")

@batch
def keep(messages):
    log.info("kept %d", len(messages))

def what_is_imported(message):
    print([name for name in sys.modules if name.startswith(("opentelemetry", "workers.tracing"))])
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def test_one_trace_goes_from_the_producer_over_a_handler_with_outputs_to_the_next_consumer(
    processes: Processes, topics: Topics, group: str, collector: Collector
) -> None:
    source, target = topics.create(1), topics.create(1)
    dead = f"{source}.dlq"
    topics.create_named(dead, 1)
    processes.write("handling.py", HANDLERS.format(topic=target))
    env = {**collector.variables, "KAFKA_LOG_FORMAT": "json"}
    processes.produce(source, "--source", "handling:rows", env={**env, "OTEL_SERVICE_NAME": "numbers"})
    options = ["--max-messages", "3", "--retry-backoff", "0.01"]
    first = processes.consume(source, group, "--handler", "handling:forward", *options, env=env)
    assert first.wait() == 0, first.stderr
    second = processes.consume(target, f"{group}-2", "--handler", "handling:keep", "--max-messages", "2", env=env)
    assert second.wait() == 0, second.stderr

    sent = {str(span.attributes["messaging.kafka.offset"]): span for span in collector.named(f"send {source}")}
    assert {span.service for span in sent.values()} == {"numbers"}
    assert len({span.trace for span in sent.values()}) == 3
    attempts = collector.named(f"process {source}")
    assert {span.service for span in attempts} == {"kafka-workers"}
    assert len(attempts) == 4
    for span in attempts:
        origin = sent[str(span.attributes["messaging.kafka.offset"])]
        assert (span.trace, span.parent) == (origin.trace, origin.id)
    retried, rejected = [span for span in attempts if span.failed]
    assert retried.events == ["exception", "kafka_workers.retry"]
    assert rejected.events == ["exception", "kafka_workers.reject", "kafka_workers.dead_letter"]
    handled = [span for span in attempts if not span.failed]
    created = collector.named(f"create {target}")
    assert [(span.trace, span.parent) for span in created] == [(span.trace, span.id) for span in handled]
    batches = collector.named(f"process {target}")
    assert sorted(link for span in batches for link in span.links) == sorted((each.trace, each.id) for each in created)
    assert collector.schemas == {"https://opentelemetry.io/schemas/1.44.0"}

    lines = [json.loads(line) for line in first.stderr.splitlines() if '"logger": "handling"' in line]
    assert [(line["trace_id"], line["span_id"]) for line in lines] == [(span.trace, span.id) for span in handled]
    assert [line["message"] for line in lines] == ["handled 0", "handled 1"]
    # The dead letter has the context in which its message was sent, so a replay goes on with that trace.
    reader = processes.consume(dead, f"{group}-3", "--format", "json", "--max-messages", "1")
    assert reader.wait() == 0, reader.stderr
    [letter] = map(json.loads, reader.lines)
    [traceparent] = [each["value"] for each in letter["headers"] if each["name"] == "traceparent"]
    assert traceparent.split("-")[1:3] == [rejected.trace, rejected.parent]


def test_a_collector_that_is_away_fails_no_message_and_is_said_once(
    processes: Processes, topic: str, group: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    away = {
        "KAFKA_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "NO_PROXY": "127.0.0.1",
        "OTEL_BSP_SCHEDULE_DELAY": "10", "OTEL_BSP_MAX_QUEUE_SIZE": "512",
    }  # fmt: skip
    result = processes.run("produce", "--topic", topic, "--count", "5000", "--summary", "json", env=away)
    assert result.returncode == 0, result.stderr
    account = json.loads(result.stdout.splitlines()[-1])
    assert account["acknowledged"] == 5000
    consumer = processes.consume(
        topic, group, "--max-messages", "5000", "--format", "value", "--summary", "json", env=away
    )
    assert consumer.wait() == 0, consumer.stderr
    assert len(consumer.lines) == 5000
    for text in (result.stderr, consumer.stderr):
        assert text.count("spans are not exported") == 1, text
        assert "Transient error" not in text.replace("OTEL_EXPORTER_OTLP_ENDPOINT: Transient error", "")
        assert "Traceback" not in text


def test_without_tracing_nothing_of_it_is_imported(processes: Processes, topic: str, group: str) -> None:
    processes.write("handling.py", HANDLERS.format(topic=topic))
    processes.produce(topic, "--count", "1")
    consumer = processes.consume(topic, group, "--handler", "handling:what_is_imported", "--max-messages", "1")
    assert consumer.wait() == 0, consumer.stderr
    assert consumer.lines == ["[]"]


@pytest.mark.parametrize("command", ["produce", "consume"])
def test_tracing_without_the_extra_is_one_line_with_the_remedy(processes: Processes, command: str) -> None:
    # As a package that is not installed: nothing is found in its directory.
    hidden = "import sys\nsys.modules['opentelemetry'] = None\n"
    processes.write("sitecustomize.py", hidden)
    result = processes.run(command, "--tracing", "--bootstrap-servers", "127.0.0.1:1")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        f"kafka-workers {command}: --tracing: OpenTelemetry is not installed; pip install 'kafka-workers[tracing]'"
    )
    assert sys.modules["opentelemetry"] is not None
