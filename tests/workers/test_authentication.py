"""Authentication by tokens, which brokers check: OAUTHBEARER with a token endpoint, and Amazon MSK with IAM."""

import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Certificates
from tests.identity import CLIENT, SECRET, Endpoint, Identity, serving
from tests.mounted import Secret
from workers.local.cluster import Cluster
from workers.testing.processes import Processes, eventually

HANDLER = """
from workers import Outgoing, Reject

def forward(message):
    if message.offset() == 0:
        raise Reject("the first of each partition")
    return Outgoing(message.value(), topic="{topic}")
"""
# In the place of the library that signs for MSK: it gives a token that the brokers of the tests accept.
SIGNER = """
import time

class MSKAuthTokenProvider:
    @staticmethod
    def generate_auth_token_from_credentials_provider(region, provider):
        assert region == "eu-west-1"
        assert provider.load().access_key == "AKIDEXAMPLE"
        return {token!r}, int(time.time() * 1000) + 900_000
"""
AWS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture
def endpoint(identity: Identity) -> Iterator[Endpoint]:
    with serving(identity) as served:
        yield served


@pytest.fixture
def listener(cluster: Cluster, certificates: Certificates) -> dict[str, str]:
    """The variables of a client of the listener with TLS; no AWS configuration of this machine."""
    return {
        "KAFKA_BOOTSTRAP_SERVERS": cluster.secure_bootstrap_servers,
        "KAFKA_SECURITY_PROTOCOL": "sasl_ssl",
        "KAFKA_SSL_CA_LOCATION": certificates.ca,
        "AWS_CONFIG_FILE": "/no/such/file",
        "AWS_SHARED_CREDENTIALS_FILE": "/no/such/file",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def oauth(listener: dict[str, str], endpoint: Endpoint) -> dict[str, str]:
    return {
        **listener,
        "KAFKA_SASL_MECHANISM": "OAUTHBEARER",
        "KAFKA_OAUTH_TOKEN_URL": endpoint.url,
        "KAFKA_OAUTH_CLIENT_ID": CLIENT,
        "KAFKA_OAUTH_CLIENT_SECRET": SECRET,
        "KAFKA_OAUTH_SCOPE": "orders payments",
        "KAFKA_OAUTH_EXTENSIONS": "logicalCluster=lkc-1",
    }


@pytest.fixture
def msk(listener: dict[str, str], processes: Processes, identity: Identity) -> dict[str, str]:
    processes.write("aws_msk_iam_sasl_signer.py", SIGNER.format(token=identity.token()))
    return {**listener, **AWS, "KAFKA_SASL_MECHANISM": "AWS_MSK_IAM", "KAFKA_AWS_REGION": "eu-west-1"}


@pytest.mark.parametrize("way", ["oauth", "msk"])
def test_every_client_authenticates_with_a_token(
    request: pytest.FixtureRequest, processes: Processes, topic: str, group: str, way: str
) -> None:
    env = request.getfixturevalue(way)
    topics = request.getfixturevalue("topics")
    target = topics.create()
    topics.create_named(f"{topic}.dlq")
    processes.write("handlers.py", HANDLER.format(topic=target))
    assert processes.produce(topic, "--count", "30", env=env)["acknowledged"] == 30
    consumed = processes.consume(
        topic, group, "--handler", "handlers:forward", "--on-error", "dead-letter", "--exactly-once",
        "--max-messages", "30", env=env,
    )  # fmt: skip
    assert consumed.wait() == 0, consumed.stderr
    for arguments, expected in (
        (("verify", "--topic", topic), "30"),
        (("lag", "--group-id", group, "--max-lag", "0"), topic),
        (("offsets", "show", "--group-id", group), topic),
        (("dead-letters", "list", "--topic", f"{topic}.dlq"), "the first of each partition"),
        (("dead-letters", "replay", "--topic", f"{topic}.dlq"), ""),
    ):
        result = processes.run(*arguments, env=env)
        assert result.returncode == 0, (arguments, result.stderr)
        assert expected in result.stdout + result.stderr, arguments
    exporter = processes.start("lag-exporter", "--group-id", group, env=env)
    eventually(lambda: exporter.get("/readyz")[0] == 200, "the lag exporter is ready")
    assert exporter.stop() == 0, exporter.stderr


def test_the_scope_is_asked_for(processes: Processes, oauth: dict[str, str], endpoint: Endpoint, topic: str) -> None:
    processes.produce(topic, "--count", "3", env=oauth)

    assert endpoint.asked[0] == {"grant_type": ["client_credentials"], "scope": ["orders payments"]}


@pytest.mark.parametrize("command", ["produce", "consume", "lag", "verify"])
def test_a_wrong_client_secret_ends_it_at_once_and_is_not_shown(
    processes: Processes, oauth: dict[str, str], command: str
) -> None:
    result = processes.run(command, env={**oauth, "KAFKA_OAUTH_CLIENT_SECRET": "hunter2"})

    assert result.returncode == 2, result.stderr
    assert "check the client id, the client secret" in result.stderr.splitlines()[-1]
    assert "invalid_client" in result.stderr.splitlines()[-1]
    assert "hunter2" not in result.stderr


def test_the_certificate_of_the_endpoint_is_checked(
    processes: Processes, oauth: dict[str, str], identity: Identity, certificates: Certificates, topic: str
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.broker)
    with serving(identity, tls) as endpoint:
        env = {**oauth, "KAFKA_OAUTH_TOKEN_URL": endpoint.url, "KAFKA_OAUTH_CA_LOCATION": certificates.ca}
        processes.produce(topic, "--count", "3", env=env)
        del env["KAFKA_OAUTH_CA_LOCATION"]
        result = processes.run("produce", "--topic", topic, "--count", "3", env=env)

    assert result.returncode == 2, result.stderr
    assert "check the CA of the token endpoint (--oauth-ca-location)" in result.stderr.splitlines()[-1]


def test_a_token_that_the_brokers_refuse_ends_it_at_once(
    processes: Processes, oauth: dict[str, str], endpoint: Endpoint, topic: str
) -> None:
    endpoint.audience = "another"
    result = processes.run("produce", "--topic", topic, "--count", "3", env=oauth)

    assert result.returncode == 2, result.stderr
    assert "the brokers refuse the token; check the issuer, audience and scope" in result.stderr.splitlines()[-1]


def test_a_token_endpoint_that_is_away_is_waited_for(
    processes: Processes, oauth: dict[str, str], identity: Identity, topic: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    env = {**oauth, "KAFKA_OAUTH_TOKEN_URL": f"http://127.0.0.1:{port}/token"}
    result = processes.run("produce", "--topic", topic, "--count", "3", "--timeout", "3", env=env)

    assert result.returncode == 1, result.stderr
    assert "the token endpoint does not answer; check --oauth-token-url; still trying" in result.stderr
    assert "no answer from" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_workers_run_on_through_tokens_that_expire_within_seconds(
    processes: Processes, oauth: dict[str, str], endpoint: Endpoint, topic: str, group: str
) -> None:
    endpoint.life_s = 5
    producer = processes.start("produce", "--topic", topic, "--forever", "--rate", "50", "--summary", "json", env=oauth)
    consumer = processes.consume(topic, group, env=oauth)

    def handled() -> float:
        return consumer.metric("kafka_consumer_messages_total") or 0

    eventually(lambda: handled() > 0, "messages are handled")
    refreshed = len(endpoint.asked) + 6
    eventually(lambda: len(endpoint.asked) > refreshed, "several tokens of each client")
    before = handled()
    eventually(lambda: handled() > before + 100, "messages are handled after that")
    code = producer.stop()
    account = json.loads(producer.lines[-1])
    # On a busy machine the next token may come late, and librdkafka fails what waits in a connection that is refused.
    assert set(account["errors"]) <= {"_AUTHENTICATION"}, account
    assert account["failed"] == 0
    assert account["unknown"] < 50
    assert code == (1 if account["unknown"] else 0), producer.stderr
    assert consumer.stop() == 0, consumer.stderr
    assert "refuse" not in producer.stderr + consumer.stderr


def test_a_changed_client_secret_is_taken_up_while_it_runs(
    processes: Processes, oauth: dict[str, str], endpoint: Endpoint, topic: str, tmp_path: Path
) -> None:
    mounted = Secret(tmp_path / "client")
    mounted.write({"secret": SECRET.encode()})
    del oauth["KAFKA_OAUTH_CLIENT_SECRET"]
    env = {**oauth, "KAFKA_OAUTH_CLIENT_SECRET_FILE": str(mounted.directory / "secret")}
    producer = processes.start("produce", "--topic", topic, "--forever", "--rate", "50", "--summary", "json", env=env)

    def acknowledged() -> float:
        return producer.metric("kafka_producer_deliveries_total", outcome="success") or 0

    eventually(lambda: acknowledged() > 0, "messages are acknowledged")
    endpoint.secret = "battery-staple"
    mounted.write({"secret": b"battery-staple"})
    eventually(
        lambda: producer.metric("kafka_client_credentials_renewals_total", kind="password") == 1,
        "the secret is renewed",
    )
    before = acknowledged()
    eventually(lambda: acknowledged() > before, "messages are acknowledged with it")
    assert producer.stop() == 0, producer.stderr


def test_the_real_signer_makes_a_token_that_other_brokers_refuse(
    processes: Processes, listener: dict[str, str], topic: str
) -> None:
    env = {**listener, **AWS, "KAFKA_SASL_MECHANISM": "AWS_MSK_IAM", "AWS_REGION": "eu-west-1"}
    result = processes.run("consume", "--topic", topic, env=env)

    assert result.returncode == 2, result.stderr
    assert "the brokers refuse the token" in result.stderr.splitlines()[-1]
    assert "hunter2" not in result.stderr


@pytest.mark.parametrize("command", ["produce", "consume", "lag"])
def test_missing_aws_credentials_are_named(processes: Processes, listener: dict[str, str], command: str) -> None:
    env = {**listener, "KAFKA_SASL_MECHANISM": "AWS_MSK_IAM", "KAFKA_AWS_REGION": "eu-west-1"}
    result = processes.run(command, env=env)

    assert result.returncode == 2, result.stderr
    assert "no AWS credentials for AWS_MSK_IAM" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_missing_extra_is_named_with_its_command(processes: Processes, msk: dict[str, str]) -> None:
    processes.write("aws_msk_iam_sasl_signer.py", "raise ModuleNotFoundError('no such module')\n")
    result = processes.run("produce", env=msk)

    assert result.returncode == 2, result.stderr
    assert result.stderr.strip().splitlines()[-1].count("pip install 'kafka-workers[aws]'") == 1


def test_a_consumer_reads_from_the_replica_in_its_rack(
    processes: Processes, cluster: Cluster, topic: str, group: str
) -> None:
    """A leader names a follower that is nearer, and the client says so."""
    processes.produce(topic, "--count", "30")
    arguments = ["--client-rack", "rack-1", "--log-level", "debug", "--property", "debug=fetch", "--max-messages", "30"]
    consumer = processes.consume(topic, group, *arguments)

    assert consumer.wait() == 0, consumer.stderr
    assert "preferred replica updated" in consumer.stderr
