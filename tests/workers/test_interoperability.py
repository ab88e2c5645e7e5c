"""Other people's tools on the same topics and the same metrics page: kcat and promtool."""

import os
import shutil
import subprocess

import pytest

from tests.processes import Processes, eventually


def tool(name: str, package: str) -> str:
    """The path of a program; skips, saying how to get it, where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian's package {package} has it)")
    return path


def test_kcat_reads_what_we_write_and_we_read_what_kcat_writes(
    processes: Processes, topic: str, group: str, bootstrap_servers: str
) -> None:
    kcat = tool("kcat", "kcat")
    processes.produce(topic, "--input", "-", "--key-field", "id", stdin=b'{"id": "a", "n": 1}\n{"id": "b", "n": 2}\n')
    read = subprocess.run(
        [kcat, "-b", bootstrap_servers, "-C", "-t", topic, "-e", "-q", "-K", "|"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(read.stdout.splitlines()) == ['a|{"id": "a", "n": 1}', 'b|{"id": "b", "n": 2}']

    subprocess.run(
        [kcat, "-b", bootstrap_servers, "-P", "-t", topic, "-K", ":", "-H", "from=kcat"],
        input="c:written by kcat\n", text=True, check=True,
    )  # fmt: skip
    consumer = processes.consume(topic, group, "--max-messages", "3", "--format", "json")
    assert consumer.wait() == 0, consumer.stderr
    line = next(line for line in consumer.lines if "written by kcat" in line)
    assert '"key": "c"' in line
    assert '"headers": [{"name": "from", "value": "kcat"}]' in line


def test_a_header_name_that_is_not_utf_8_harms_nobody(
    processes: Processes, topic: str, group: str, bootstrap_servers: str
) -> None:
    kcat = tool("kcat", "kcat")
    arguments = [kcat, "-b", bootstrap_servers, "-P", "-t", topic, "-H"]
    subprocess.run([*map(os.fsencode, arguments), b"bad\xff\xfe=1"], input=b"odd\n", check=True)
    processes.produce(topic, "--count", "3")
    for form in ("value", "json"):
        consumer = processes.consume(topic, f"{group}-{form}", "--max-messages", "4", "--format", form)
        assert consumer.wait() == 0, consumer.stderr
        assert "odd" in consumer.stdout
        assert "a header name that is not UTF-8" in consumer.stderr

    assert processes.run("verify", "--topic", topic).returncode == 0


def test_promtool_finds_nothing_wrong_with_the_metrics(processes: Processes, topic: str, group: str) -> None:
    promtool = tool("promtool", "prometheus")
    producer = processes.start("produce", "--topic", topic, "--forever", "--rate", "100")
    consumer = processes.consume(topic, group)
    eventually(lambda: consumer.metric("kafka_consumer_lag_messages") is not None, "lag is exported")
    eventually(lambda: producer.metric("kafka_client_broker_rtt_seconds"), "round trips are exported")

    for worker in (producer, consumer):
        page = worker.get("/metrics")[1]
        check = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False)
        assert check.returncode == 0, check.stdout + check.stderr
