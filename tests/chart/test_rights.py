"""The rights that the chart gives its users, in force on a real cluster: enough for all that they do."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.chart.rendering import render
from tests.conftest import Certificates, secure
from workers.local.cluster import Cluster
from workers.testing.processes import Processes, eventually

USERS = ("producer", "consumer")
FORWARD = """
from workers import Outgoing

def forward(message):
    return Outgoing(message.value(), topic="out")
"""
BAD_HANDLER = "def handle(message):\n    raise ValueError('never')\n"


@pytest.fixture(scope="module")
def guarded(certificates: Certificates) -> Iterator[Cluster]:
    """A cluster where nobody may do anything that was not granted, as Strimzi's with `authorization: simple`."""
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",  # the listener without users, for brokers and this test
        **secure(certificates),
    }
    with Cluster(properties=properties, scram_users=dict.fromkeys(USERS, "secret")) as cluster:
        yield cluster


def grant(admin: AdminClient, *settings: str) -> None:
    """Does what Strimzi's user operator does with the KafkaUsers that the chart renders."""
    for user in render(*settings):
        if user["kind"] == "KafkaUser":
            rights = [
                binding(user["metadata"]["name"], acl["resource"], operation)
                for acl in user["spec"]["authorization"]["acls"]
                for operation in acl["operations"]
            ]
            for done in admin.create_acls(rights).values():
                done.result()


def binding(user: str, resource: dict[str, str], operation: str) -> AclBinding:
    # Strimzi's words, and those of Kafka's protocol where they differ.
    kind = ResourceType[{"transactionalId": "TRANSACTIONAL_ID"}.get(resource["type"], resource["type"].upper())]
    pattern = ResourcePatternType[{"prefix": "PREFIXED"}.get(resource["patternType"], "LITERAL")]
    allowed = AclOperation[operation.upper()], AclPermissionType.ALLOW
    return AclBinding(kind, resource["name"], pattern, f"User:{user}", "*", *allowed)


def test_the_rights_are_enough_for_everything_and_without_them_that_is_said(
    guarded: Cluster, certificates: Certificates, tmp_path: Path
) -> None:
    admin = AdminClient({"bootstrap.servers": guarded.bootstrap_servers, "log_level": 0})
    for topic in ("teste", "teste.dlq", "invalid", "out"):
        guarded.create_topic(topic)
    processes = Processes(guarded.secure_bootstrap_servers, tmp_path)
    processes.write("bad.py", BAD_HANDLER)
    processes.write("forward.py", FORWARD)
    (lines := tmp_path / "lines").write_text("no JSON\n")
    as_user = {
        user: {
            "KAFKA_SECURITY_PROTOCOL": "sasl_ssl",
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA_SASL_USERNAME": user,
            "KAFKA_SASL_PASSWORD": "secret",
            "KAFKA_SSL_CA_LOCATION": certificates.ca,
        }
        for user in USERS
    }

    def succeeds(user: str, *command: str) -> str:
        result = processes.run(*command, env=as_user[user])
        assert result.returncode == 0, (command, result.stdout, result.stderr)
        return result.stdout

    for user, command in (("producer", "produce"), ("consumer", "consume")):
        result = processes.run(command, env=as_user[user])
        assert result.returncode == 2, result.stderr
        assert "the user has no right to teste at" in result.stderr.splitlines()[-1]

    grant(admin, "producer.enabled=true", 'producer.options={"on-invalid":"dead-letter","dead-letter-topic":"invalid"}')
    # Brokers learn of a right a moment later, each by itself.
    eventually(
        lambda: all(processes.run("produce", "--count", "3", env=as_user["producer"]).returncode == 0 for _ in "123"),
        "all brokers know the rights",
    )
    account = tmp_path / "account.json"
    account.write_text(succeeds("producer", "produce", "--count", "30", "--summary", "json"))
    to_invalid = ("--on-invalid", "dead-letter", "--dead-letter-topic", "invalid")
    succeeds("producer", "produce", "--input", str(lines), "--key-field", "id", *to_invalid)
    succeeds("consumer", "verify", "--account", str(account), "--run", json.loads(account.read_text())["run"])
    always_fails = ("--handler", "bad:handle", "--max-attempts", "1", "--max-messages", "30")
    succeeds("consumer", "consume", "--from-beginning", *always_fails)
    succeeds("consumer", "lag")

    exactly_once = [
        "--handler", "forward:forward", "--exactly-once", "--transactional-id", "kafka-workers-consumer-0",
        "--max-messages", "3", "--idle-timeout", "60",
    ]  # fmt: skip
    refused = processes.run("consume", "--from-beginning", *exactly_once, env=as_user["consumer"])
    assert refused.returncode == 2
    assert "no right to transactional id kafka-workers-consumer-0; grant" in refused.stderr.splitlines()[-1]
    grant(admin, 'consumer.options={"exactly-once":true}', 'consumer.outputTopics=["out"]')
    processes.run("produce", "--count", "300", env=as_user["producer"])
    eventually(
        lambda: processes.run("consume", *exactly_once, env=as_user["consumer"]).returncode == 0,
        "all brokers know the rights to transactions",
    )

    replay = ("replay", "--topic", "teste.dlq", "--group-id", "kafka-workers-replay")
    refused = processes.run(*replay, env=as_user["consumer"])
    assert refused.returncode == 1
    assert "may the user read the group?" in refused.stderr.splitlines()[-1]
    grant(admin, "strimzi.users.replay=true")
    eventually(lambda: "30 dead letters replayed" in succeeds("consumer", *replay, "--max-messages", "30"), "replayed")
