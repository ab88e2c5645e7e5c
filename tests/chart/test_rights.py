"""The rights that the chart gives its users, in force on a real cluster: enough for all that they do."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Message, Producer
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
from workers.deadletters.headers import dead_letter_headers
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
    with Cluster(properties=properties, scram_users=dict.fromkeys((*USERS, "reader", "canary"), "secret")) as cluster:
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


def credentials(user: str, certificates: Certificates) -> dict[str, str]:
    return {
        "KAFKA_SECURITY_PROTOCOL": "sasl_ssl",
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "KAFKA_SASL_USERNAME": user,
        "KAFKA_SASL_PASSWORD": "secret",
        "KAFKA_SSL_CA_LOCATION": certificates.ca,
    }


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
    as_user = {user: credentials(user, certificates) for user in USERS}

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

    replay = ("dead-letters", "replay", "--topic", "teste.dlq")
    refused = processes.run(*replay, env=as_user["consumer"])
    assert refused.returncode == 1
    assert "may the user read the group?" in refused.stderr.splitlines()[-1]
    grant(admin, "strimzi.users.replay=true")
    eventually(lambda: "30 dead letters replayed" in succeeds("consumer", *replay, "--max-messages", "30"), "replayed")
    assert "0 waiting dead letters" in succeeds("consumer", "dead-letters", "list", "--topic", "teste.dlq")
    again = ("dead-letters", "replay", "--topic", "teste.dlq", "--partition", "0", "--again")
    succeeds("consumer", *again)
    succeeds("consumer", "dead-letters", "discard", "--topic", "teste.dlq", "--error", "ValueError")


def test_the_canary_creates_its_topic_and_measures_with_the_rights_of_its_user(
    guarded: Cluster, certificates: Certificates, tmp_path: Path
) -> None:
    admin = AdminClient({"bootstrap.servers": guarded.bootstrap_servers, "log_level": 0})
    processes = Processes(guarded.secure_bootstrap_servers, tmp_path)
    user = credentials("canary", certificates)
    refused = processes.run("canary", env=user)
    assert refused.returncode == 2
    assert "kafka-workers-canary does not exist and cannot be created" in refused.stderr.splitlines()[-1]

    grant(admin, "canary.enabled=true", "strimzi.topic.create=false")
    topic = "kafka-workers-canary"
    # Brokers learn of a right a moment later, each by itself.
    looks = ("canary", "--no-create", "--timeout", "0.5")
    eventually(
        lambda: all("does not exist" in processes.run(*looks, env=user).stderr for _ in "12"),
        "the brokers know the rights",
    )
    canary = processes.start("canary", env=user)
    eventually(lambda: canary.metric("kafka_canary_availability_ratio") == 1 or not canary.running, "all is available")
    assert canary.metric("kafka_canary_partitions") == len(admin.list_topics(topic).topics[topic].partitions) == 3
    assert canary.stop() == 0
    # No partition is read in a group, and no broker complains of one.
    assert "AUTHORIZATION" not in canary.stderr


def test_what_a_user_of_dead_letters_may_not_do_is_said_and_changes_nothing(
    guarded: Cluster, certificates: Certificates, tmp_path: Path
) -> None:
    admin = AdminClient({"bootstrap.servers": guarded.bootstrap_servers, "log_level": 0})
    for topic in ("guarded", "guarded.dlq"):
        guarded.create_topic(topic, partitions=1)
    processes = Processes(guarded.secure_bootstrap_servers, tmp_path)
    writer = Producer({"bootstrap.servers": guarded.bootstrap_servers})
    for error in (ValueError("first"), KeyError("second")):
        origin = Message(topic="guarded", partition=0, offset=0)
        writer.produce("guarded.dlq", "x", headers=dead_letter_headers(origin, "g", error, 1))
    writer.flush()

    def run(command: str, *arguments: str) -> tuple[int, str]:
        options = ["dead-letters", command, "--topic", "guarded.dlq", "--timeout", "5", *arguments]
        done = processes.run(*options, env=credentials("reader", certificates))
        return done.returncode, (done.stderr.splitlines() or [""])[-1]

    def allow(kind: str, name: str, *operations: str) -> None:
        resource = {"type": kind, "name": name, "patternType": "literal"}
        for done in admin.create_acls([binding("reader", resource, each) for each in operations]).values():
            done.result()

    def eventually_says(words: str, command: str, *arguments: str) -> tuple[int, str]:
        """Brokers learn of a right a moment later."""
        found: tuple[int, str] = eventually(
            lambda: said if words in (said := run(command, *arguments))[1] else None, f"{command} says {words!r}"
        )
        return found

    assert eventually_says("the user has no right to guarded.dlq", "list")[0] == 2
    allow("topic", "guarded.dlq", "Describe")
    assert eventually_says("may the user read the group?", "list")[0] == 1
    allow("group", "kafka-workers-replay", "Describe", "Read")
    assert eventually_says("the user has no right to read guarded.dlq", "list")[0] == 1
    allow("topic", "guarded.dlq", "Read")
    eventually(lambda: run("list")[0] == 0, "it is listed")
    for arguments in (["discard", "--all"], ["replay", "--error", "KeyError"]):
        code, said = run(*arguments)
        assert (code, "uthoriz" in said) == (1, True), said
    allow("topic", "guarded", "Describe", "Write")
    code, said = eventually_says("could not be recorded in guarded.dlq", "replay", "--error", "KeyError")
    assert (code, "May the user write to it?" in said) == (1, True), said
    code, said = run("discard", "--all")
    assert (code, "0 dead letters were discarded" in said, "may the user write to it?" in said) == (1, True, True), said
    listed = processes.run(
        "dead-letters", "list", "--topic", "guarded.dlq", env=credentials("reader", certificates)
    )  # fmt: skip
    assert listed.stdout.splitlines()[-1] == "guarded.dlq: 2 waiting dead letters"
