"""Bad input: one line that says what to do, a non-zero exit code, and nothing sent."""

import os
import socket
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.conftest import PASSWORD, USER, Certificates, Topics
from tests.programs import run_in_bash
from workers.local.cluster import Cluster
from workers.testing.processes import Processes

MODULE = """
not_callable = 1
def good():
    yield "x"
"""


@pytest.fixture(scope="module")
def untouched(topics: Topics) -> str:
    """A topic for all mistakes, which send nothing to it."""
    return topics.create()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["produce", "--rate", "0"], ["--rate"]),
        (["produce", "--rate", "fast"], ["--rate", "fast"]),
        (["produce", "--count", "-5"], ["--count", "-5"]),
        (["produce", "--size", "10"], ["--size", "57"]),
        (["produce", "--cuont", "5"], ["--cuont", "--count"]),
        (["prodcue"], ["prodcue", "produce"]),
        (["produce", "--count", "1", "--forever"], ["--forever", "--count"]),
        (["produce", "--input", "x", "--source", "m:f"], ["--input", "--source"]),
        (["produce", "--key-field", "id"], ["--key-field", "--input"]),
        (["produce", "--input", "/no/such/file"], ["--input /no/such/file", "No such file"]),
        (["produce", "--input", "/"], ["--input /", "directory"]),
        (["produce", "--run", "a run with spaces"], ["--run", "12 letters"]),
        (["produce", "--property", "no-equals-sign"], ["--property", "NAME=VALUE"]),
        (["produce", "--property", "linger.msec=5"], ["--property", "linger.msec", "no property"]),
        (["produce", "--property", "linger.ms=soon"], ["--property", "linger.ms"]),
        (["produce", "--property", "queue.buffering.max.messages=500"], ["queue.buffering.max.messages", "101000"]),
        (["produce", "--property", "queue.buffering.max.kbytes=1024"], ["queue.buffering.max.kbytes", "65536"]),
        (["produce", "--property", "statistics.interval.ms=0"], ["statistics.interval.ms", "1 to 10000"]),
        (["produce", "--property", "throttle_cb=x"], ["--property", "NAME=VALUE"]),
        (["produce", "--property", "acks=1"], ["--property", "acks", "'all'"]),
        (["produce", "--property", "transactional.id=x"], ["transactional.id", "not supported"]),
        (["produce", "--properties-file", "/no/such/file"], ["/no/such/file", "No such file"]),
        (
            ["produce", "--sasl-password-file", "/no/such/file"],
            ["--sasl-password-file", "No such file", "KAFKA_SASL_PASSWORD"],
        ),
        (["produce", "--source", "nowhere:function"], ["--source nowhere:function", "nowhere"]),
        (["produce", "--source", "my_module"], ["--source", "module:name"]),
        (["produce", "--source", "my_module:missing"], ["--source", "no 'missing'"]),
        (["produce", "--source", "my_module:not_callable"], ["--source", "not callable"]),
        (["produce", "--sasl-mechanism", "OAUTHBEARER"], ["--sasl-mechanism", "--security-protocol sasl_ssl"]),
        (
            ["consume", "--oauth-token-url", "https://login/token"],
            ["--oauth-token-url", "--sasl-mechanism OAUTHBEARER"],
        ),
        (["consume", "--handler", "nowhere:function"], ["--handler nowhere:function"]),
        (["consume", "--format", "xml"], ["--format", "json"]),
        (["consume", "--max-messages", "0"], ["--max-messages"]),
        (["consume", "--idle-timeout", "nan"], ["--idle-timeout", "nan"]),
        (["consume", "--group-protocol", "share"], ["--group-protocol", "classic"]),
        (["consume", "--group-protocol", "consumer", "--property", "session.timeout.ms=6000"], ["session.timeout.ms"]),
        (["lag", "--group-id", "nobody-is-in-it"], ["nobody-is-in-it", "--group-id"]),
        (["lag", "--max-lag", "-1"], ["--max-lag"]),
        (["consume", "--topic", "a b"], ["--topic", "'a b' cannot be a topic"]),
        (["consume", "--topic", "a", "--dead-letter-topic", "a"], ["--dead-letter-topic", "a topic of their own"]),
        (
            [
                "produce",
                "--input",
                "-",
                "--key-field",
                "id",
                "--on-invalid",
                "dead-letter",
                "--topic",
                "a",
                "--dead-letter-topic",
                "a",
            ],
            ["--dead-letter-topic", "a topic of their own"],
        ),
        (["verify", "--account", "/no/such/file"], ["/no/such/file", "No such file"]),
        (["verify", "--account", __file__], [__file__, "line 1", "not an account"]),
    ],
)
def test_a_mistake_gets_one_line_that_names_it(
    processes: Processes, untouched: str, arguments: list[str], words: list[str]
) -> None:
    processes.write("my_module.py", MODULE)
    command, *rest = arguments
    result = processes.run(command, *([] if command in ("lag", "prodcue") else ["--topic", untouched]), *rest)

    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


# Where the limit is met depends on how many files the process inherits: each of these is met somewhere else.
@pytest.mark.parametrize("limit", [7, 8, 9, 10])
def test_too_many_open_files_are_not_taken_for_a_full_disk(processes: Processes, topic: str, limit: int) -> None:
    result = run_in_bash(processes, f'ulimit -n {limit} && exec "$@"', "produce", "--topic", topic)

    assert result.returncode == 1, result.stderr
    assert "Too many open files; raise the limit of the process (ulimit -n)" in result.stderr


def test_a_mistake_in_the_environment_or_a_file_is_named_there(processes: Processes, topic: str) -> None:
    result = processes.run("produce", "--topic", topic, env={"KAFKA_RATE": "fast"})
    assert result.returncode == 2
    assert "(env var: 'KAFKA_RATE')" in result.stderr

    path = processes.write("client.properties", "# comment\nlinger.ms=5\nno.such.property=1\n")
    result = processes.run("produce", "--topic", topic, "--properties-file", str(path))
    assert result.returncode == 2
    assert f"{path} line 3" in result.stderr
    assert "no.such.property" in result.stderr


def test_an_unknown_topic_is_named(processes: Processes) -> None:
    for command, timeout_s in (("produce", "3"), ("consume", "3"), ("verify", "1000")):
        result = processes.run(command, "--topic", "no-such-topic", "--timeout", timeout_s)
        assert result.returncode == 2, result.stderr
        assert "no-such-topic does not exist" in result.stderr.splitlines()[-1]


def test_brokers_that_cannot_be_reached_are_waited_for_as_long_as_asked(processes: Processes) -> None:
    for command in ("produce", "consume", "lag", "verify"):
        result = processes.run(command, "--bootstrap-servers", "127.0.0.1:1", "--timeout", "1.5")
        assert result.returncode == 1, result.stderr
        assert "still trying" in result.stderr
        assert "no answer from 127.0.0.1:1 within 1.5 s" in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


def test_a_missing_dead_letter_topic_of_a_producer_is_named_with_its_option(processes: Processes, topic: str) -> None:
    options = ["--key-field", "id", "--on-invalid", "dead-letter", "--dead-letter-topic", "nowhere.dlq"]
    result = processes.run("produce", "--topic", topic, "--input", "-", *options, "--timeout", "5", stdin=b"{}\n")
    assert result.returncode == 2, result.stderr
    assert "--dead-letter-topic: nowhere.dlq does not exist" in result.stderr.splitlines()[-1]


def test_a_port_in_use_is_named_when_it_was_asked_for(processes: Processes, topic: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = processes.run("produce", "--topic", topic, "--metrics-port", port)
        assert result.returncode == 2
        assert "--metrics-port" in result.stderr
        assert port in result.stderr


def test_two_workers_with_default_ports_get_along(processes: Processes, topic: str, group: str) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("something else listens on the default port of this machine")
    first = processes.consume(topic, group, env={"KAFKA_METRICS_PORT": ""})
    second = processes.consume(topic, group, env={"KAFKA_METRICS_PORT": ""})

    assert 8000 in {first.port, second.port}
    assert first.port != second.port


def secure(cluster: Cluster, certificates: Certificates, password: str, ca: str) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": cluster.secure_bootstrap_servers,
        "KAFKA_SECURITY_PROTOCOL": "sasl_ssl",
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "KAFKA_SASL_USERNAME": USER,
        "KAFKA_SASL_PASSWORD": password,
        "KAFKA_SSL_CA_LOCATION": ca,
    }


def test_tls_with_scram_works_for_every_command(
    processes: Processes, cluster: Cluster, certificates: Certificates, topic: str, group: str
) -> None:
    env = secure(cluster, certificates, PASSWORD, certificates.ca)
    assert processes.run("produce", "--topic", topic, "--count", "30", env=env).returncode == 0
    assert processes.consume(topic, group, "--max-messages", "30", env=env).wait() == 0
    assert processes.run("lag", "--group-id", group, "--max-lag", "0", env=env).returncode == 0
    assert processes.run("verify", "--topic", topic, env=env).returncode == 0


def test_the_password_can_come_from_a_file(
    processes: Processes, cluster: Cluster, certificates: Certificates, topic: str
) -> None:
    env = secure(cluster, certificates, PASSWORD, certificates.ca)
    del env["KAFKA_SASL_PASSWORD"]
    path = processes.write("password", PASSWORD + "\n")
    result = processes.run("produce", "--topic", topic, "--count", "3", "--sasl-password-file", str(path), env=env)

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", ["produce", "consume", "lag", "verify"])
def test_a_wrong_password_ends_it_at_once_and_is_not_shown(
    processes: Processes, cluster: Cluster, certificates: Certificates, command: str
) -> None:
    env = secure(cluster, certificates, "hunter2", certificates.ca)
    result = processes.run(command, env=env)

    assert result.returncode == 2, result.stderr
    assert "check the password" in result.stderr.splitlines()[-1]
    assert "hunter2" not in result.stderr


def test_a_ca_that_did_not_sign_the_brokers_ends_it_at_once(
    processes: Processes, cluster: Cluster, certificates: Certificates
) -> None:
    result = processes.run("produce", env=secure(cluster, certificates, PASSWORD, certificates.other_ca))

    assert result.returncode == 2, result.stderr
    assert "the CA" in result.stderr.splitlines()[-1]


def test_a_ca_file_that_is_not_there_is_named(
    processes: Processes, cluster: Cluster, certificates: Certificates
) -> None:
    result = processes.run("produce", env=secure(cluster, certificates, PASSWORD, "/no/such/ca.pem"))

    assert result.returncode == 2, result.stderr
    assert "/no/such/ca.pem" in result.stderr


def test_an_unreadable_file_is_named(processes: Processes, topic: str, tmp_path: Path) -> None:
    path = tmp_path / "loop"
    os.symlink(path, path)
    result = processes.run("produce", "--topic", topic, "--input", str(path))

    assert result.returncode == 2
    assert f"--input {path} cannot be read" in result.stderr


def test_nothing_was_sent_by_any_mistake(processes: Processes, untouched: str, bootstrap_servers: str) -> None:
    """Neither by these nor by those of the test above."""
    for arguments in (["--rate", "0"], ["--property", "acks=1"], ["--input", "/no/such/file"], ["--source", "no:f"]):
        assert processes.run("produce", "--topic", untouched, *arguments).returncode == 2
    client = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "looks"})
    ends = [client.get_watermark_offsets(TopicPartition(untouched, number), timeout=10)[1] for number in range(3)]
    client.close()
    assert ends == [0, 0, 0]


def test_show_config_says_where_each_value_comes_from_and_hides_secrets(processes: Processes) -> None:
    path = processes.write("client.properties", "linger.ms=50\nsasl.password=from-the-file\nbatch.size=9999\n")
    result = processes.run(
        "produce", "--show-config", "--properties-file", str(path), "--property", "linger.ms=7", "--rate", "5",
        env={"KAFKA_SASL_PASSWORD": "hunter2", "KAFKA_CLIENT_ID": "from-env", "KAFKA_SECURITY_PROTOCOL": "sasl_ssl"},
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert rows["linger.ms"].split()[1:3] == ["7", "--property"]
    assert f"{path} line 3" in rows["batch.size"]
    assert "variable KAFKA_CLIENT_ID" in rows["client.id"]
    assert rows["--rate"].split()[1:] == ["5.0", "--rate"]
    assert "variable KAFKA_SASL_PASSWORD" in rows["sasl.password"]
    assert "hunter2" not in result.stdout
    assert "from-the-file" not in result.stdout


def test_a_session_timeout_that_the_brokers_refuse_ends_the_consumer(processes: Processes, topic: str) -> None:
    """It repeated the error until it was killed."""
    result = processes.run(
        "consume", "--topic", topic, "--no-metrics", "--property", "session.timeout.ms=1", "--group-id", topic
    )

    assert result.returncode == 2, result.stderr
    (last,) = [line for line in result.stderr.splitlines() if line.startswith("kafka-workers consume: ")]
    assert "--property: session.timeout.ms=1: the brokers refuse it: " in last
    assert "group.min.session.timeout.ms" in last
