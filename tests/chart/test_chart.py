"""What the chart renders, every switch on and off."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.chart.rendering import CHART, helm, one, render, template
from tests.chart.schemas import KUBERNETES_SCHEMAS, check
from tests.chart.values import table
from workers.cli import cli

PLAIN = ("strimzi.enabled=false", 'kafka.bootstrapServers="a:9092,b:9092"')
TLS = (*PLAIN, "kafka.tls.enabled=true", 'kafka.tls.caSecret="ca"')
SASL = (
    *TLS, 'kafka.sasl.mechanism="SCRAM-SHA-256"', 'kafka.sasl.username="me"', 'kafka.sasl.passwordSecret="mine"'
)  # fmt: skip
SWITCHES: dict[str, tuple[str, ...]] = {
    "as shipped": (),
    "no consumer": ("consumer.enabled=false",),
    "no producer": ("producer.enabled=false",),
    "mTLS with Strimzi": ('strimzi.authentication="tls"',),
    "no topic": ("strimzi.topic.create=false",),
    "no users": ("strimzi.users.create=false",),
    "plain": PLAIN,
    "TLS": TLS,
    "mTLS": (*TLS, 'kafka.tls.clientSecret="me"'),
    "SASL": SASL,
    "schedule": ('producer.schedule="0 * * * *"',),
    "parallel producers": ("producer.parallelism=4", "producer.ttlSecondsAfterFinished=60"),
    "properties": ('kafka.properties={"client.rack":"a","fetch.max.bytes":1000000}',),
    "KEDA": ("consumer.keda.enabled=true",),
    "KEDA without secrets": (*PLAIN, "consumer.keda.enabled=true"),
    "KEDA with mTLS": ('strimzi.authentication="tls"', "consumer.keda.enabled=true"),
    "no disruption budget": ("consumer.podDisruptionBudget.enabled=false",),
    "pod monitor": ("metrics.podMonitor.enabled=true", 'metrics.podMonitor.labels={"release":"prometheus"}'),
    "alerts": ("metrics.prometheusRule.enabled=true",),
    "dashboard": ("metrics.dashboard.enabled=true",),
    "network policy": ("networkPolicy.enabled=true", 'networkPolicy.scrapers=[{"namespaceSelector":{}}]'),
    "hooks": (
        'consumer.env=[{"name":"TZ","value":"UTC"}]',
        'consumer.volumes=[{"name":"data","emptyDir":{}}]',
        'consumer.volumeMounts=[{"name":"data","mountPath":"/data"}]',
        'consumer.podLabels={"team":"a"}',
        'consumer.nodeSelector={"disk":"ssd"}',
        'consumer.tolerations=[{"operator":"Exists"}]',
        'consumer.affinity={"nodeAffinity":{}}',
        'consumer.priorityClassName="high"',
        "consumer.topologySpreadConstraints=[]",
        'commonLabels={"owner":"us"}',
        'imagePullSecrets=[{"name":"pull"}]',
        'image.digest="sha256:' + 64 * "0" + '"',
    ),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_whatever_is_switched_the_objects_are_what_kubernetes_and_strimzi_take(switch: str) -> None:
    documents = render(*SWITCHES[switch])
    assert documents
    for document in documents:
        check(document)
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names))


def test_helm_3_and_helm_4_render_the_same() -> None:
    settings = ("metrics.prometheusRule.enabled=true", "consumer.keda.enabled=true")
    assert render(*settings, program="helm4") == render(*settings)


def test_kubeconform_finds_nothing(tmp_path: Path) -> None:
    kubeconform = shutil.which("kubeconform")
    if kubeconform is None:
        pytest.skip("there is no kubeconform")
    for path in KUBERNETES_SCHEMAS.glob("*.json"):
        # Their references are to a server; kubeconform looks beside them.
        schema = json.loads(path.read_text().replace("/api/_definitions.json", "_definitions.json"))
        schema.pop("$id", None)
        (tmp_path / path.name).write_text(json.dumps(schema))
    location = f"{tmp_path}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(yaml.safe_dump_all([each for each in render() if "strimzi" not in each["apiVersion"]]))
    result = subprocess.run(
        [kubeconform, "-strict", "-summary", "-schema-location", location, str(manifests)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("program", ["helm", "helm4"])
def test_helm_lint_finds_nothing(program: str) -> None:
    result = helm("lint", "--strict", str(CHART), program=program)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("consumer.replica=3", "'replica' not allowed"),
        ('consumer.replicas="three"', "got string, want integer"),
        ('consumer.options={"max-attempt":3}', "'max-attempt' not allowed"),
        ('consumer.options={"on-error":"ignore"}', "'retry', 'dead-letter', 'stop'"),
        ('producer.options={"count":0}', "minimum"),
        ('kafka.topic="no spaces"', "pattern"),
        ('kafka.bootstrapServers="nowhere"', "pattern"),
        ("strimzi.enabled=false", "kafka.bootstrapServers is needed when strimzi.enabled is false"),
        ('image.digest="latest"', "pattern"),
    ],
)
def test_a_mistyped_value_is_refused_by_name(setting: str, says: str) -> None:
    result = template(setting)
    assert result.returncode != 0
    assert says in result.stderr


def options_of(command: str) -> set[str]:
    parameters = cli.commands[command].params
    return {parameter.opts[-1].removeprefix("--") for parameter in parameters if isinstance(parameter, click.Option)}


# What the chart decides by values of its own.
OWN = {
    "topic", "group-id", "bootstrap-servers", "security-protocol", "sasl-mechanism", "sasl-username",
    "sasl-password-file", "ssl-ca-location", "ssl-certificate-location", "ssl-key-location",
    "ssl-key-password-file", "property", "properties-file", "metrics-port", "metrics-host", "no-metrics",
    "shutdown-timeout", "linger", "show-config", "help",
}  # fmt: skip


@pytest.mark.parametrize(("worker", "command"), [("consumer", "consume"), ("producer", "produce")])
def test_the_schema_knows_just_the_options_of_the_commands(worker: str, command: str) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(schema["properties"][worker]["properties"]["options"]["properties"])
    assert known == options_of(command) - OWN


def test_the_readme_of_the_chart_has_every_value() -> None:
    assert table() in (CHART / "README.md").read_text()


def container(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["spec"]["template"]["spec"]["containers"][0]
    return found


def environment(document: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(document)["env"]}


def test_options_become_variables_that_the_worker_reads() -> None:
    settings = ('producer.options={"count":2000000,"rate":0.5,"forever":true,"run":"a b"}',)
    variables = environment(one(render(*settings), "Job"))
    assert variables["KAFKA_COUNT"] == "2000000"
    assert variables["KAFKA_RATE"] == "0.5"
    assert variables["KAFKA_FOREVER"] == "true"
    assert variables["KAFKA_RUN"] == "a b"


def test_a_job_gets_another_name_when_its_contents_change_and_only_then() -> None:
    def name(*settings: str) -> str:
        found: str = one(render(*settings), "Job")["metadata"]["name"]
        return found

    assert name() == name("consumer.replicas=5")
    assert len({name(), name('producer.options={"count":7}'), name('image.tag="other"')}) == 3


def test_kubernetes_waits_longer_than_the_worker_does() -> None:
    documents = render("consumer.shutdownTimeout=100", "producer.shutdownTimeout=50")
    for kind, seconds in (("Deployment", 100), ("Job", 50)):
        document = one(documents, kind)
        assert environment(document)["KAFKA_SHUTDOWN_TIMEOUT"] == str(seconds)
        assert document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > seconds


def test_secrets_are_mounted_and_never_in_the_environment() -> None:
    for settings in ((), SASL):
        variables = environment(one(render(*settings), "Deployment"))
        assert variables["KAFKA_SASL_PASSWORD_FILE"] == "/etc/kafka-workers/password/password"
        assert "KAFKA_SASL_PASSWORD" not in variables


def test_users_may_do_what_their_worker_does_and_no_more() -> None:
    rights = {
        user["metadata"]["name"]: {
            (acl["resource"]["type"], acl["resource"]["name"], operation)
            for acl in user["spec"]["authorization"]["acls"]
            for operation in acl["operations"]
        }
        for user in render()
        if user["kind"] == "KafkaUser"
    }
    assert rights["producer"] == {("topic", "teste", "Describe"), ("topic", "teste", "Write")}
    assert rights["consumer"] == {
        ("topic", "teste", "Describe"),
        ("topic", "teste", "Read"),
        ("group", "kafka-workers", "Describe"),
        ("group", "kafka-workers", "Read"),
        ("topic", "teste.dlq", "Describe"),
        ("topic", "teste.dlq", "Write"),
    }


def test_keda_never_asks_for_more_consumers_than_partitions() -> None:
    documents = render("consumer.keda.enabled=true", "strimzi.topic.partitions=12")
    scaled = one(documents, "ScaledObject")["spec"]
    assert scaled["maxReplicaCount"] == 12
    metadata = scaled["triggers"][0]["metadata"]
    assert metadata["allowIdleConsumers"] == "false"
    assert (metadata["sasl"], metadata["tls"]) == ("scram_sha512", "enable")
    # The autoscaler owns the count.
    assert "replicas" not in one(documents, "Deployment")["spec"]


def test_two_releases_with_other_names_share_nothing() -> None:
    second = render('consumer.name="consumer-b"', 'producer.name="producer-b"', 'kafka.topic="other"')
    first = {(each["kind"], each["metadata"]["name"]) for each in render()}
    shared = first & {(each["kind"], each["metadata"]["name"]) for each in second}
    # The same release name here, so the test's pod has the same name.
    assert {kind for kind, _ in shared} <= {"Pod"}


def test_a_network_policy_lets_through_brokers_dns_and_scrapes_only() -> None:
    policy = one(render("networkPolicy.enabled=true"), "NetworkPolicy")["spec"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {53, 9092, 9093}
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == ["metrics"]


def test_the_image_is_the_one_of_the_chart_unless_told_otherwise() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert container(one(render(), "Deployment"))["image"] == f"kafka-workers:{version}"
    assert re.fullmatch(
        r"kafka-workers@sha256:0{64}", container(one(render(*SWITCHES["hooks"]), "Deployment"))["image"]
    )


def test_the_values_of_the_example_run_its_handler_and_no_producer() -> None:
    result = helm(
        "template", "orders", str(CHART), "--kube-version", "1.34.0", "--values", "examples/orders/values.yaml"
    )
    assert result.returncode == 0, result.stderr
    documents = [document for document in yaml.safe_load_all(result.stdout) if document]
    consumer = one(documents, "Deployment", "consumer")
    assert container(consumer)["image"] == "orders:1"
    assert environment(consumer)["KAFKA_HANDLER"] == "orders:store"
    assert environment(consumer)["ORDERS_DATABASE"].startswith("/data/")
    assert not [document for document in documents if document["kind"] == "Job"]
