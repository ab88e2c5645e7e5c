"""What Skaffold deploys and the Kafka cluster that Strimzi makes: against their schemas, and against one another."""

import json
from typing import Any

import yaml

from tests.chart.rendering import CHART, REPOSITORY, helm, one
from tests.chart.schemas import check, check_skaffold


def documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((REPOSITORY / path).read_text()))


def test_the_kafka_cluster_is_what_strimzi_takes() -> None:
    found = documents("k8s/kafka/kafka.yaml")
    assert [(each["kind"], each["metadata"]["name"]) for each in found] == [
        ("KafkaNodePool", "brokers"),
        ("Kafka", "events"),
    ]
    for document in found:
        check(document)


def test_skaffold_takes_its_configuration() -> None:
    for document in documents("skaffold.yaml"):
        check_skaffold(document)


def test_skaffold_deploys_the_operator_then_kafka_then_the_workers() -> None:
    configs = documents("skaffold.yaml")
    assert [each["metadata"]["name"] for each in configs] == ["operator", "kafka", "workers"]
    assert [each.get("requires") for each in configs] == [None, [{"configs": ["operator"]}], [{"configs": ["kafka"]}]]


def test_every_path_and_value_that_skaffold_names_is_there() -> None:
    _, kafka, workers = documents("skaffold.yaml")
    for path in [*kafka["manifests"]["rawYaml"], workers["build"]["artifacts"][0]["docker"]["dockerfile"]]:
        assert (REPOSITORY / path).exists(), path
    (release,) = workers["deploy"]["helm"]["releases"]
    assert REPOSITORY / release["chartPath"] == CHART
    # The chart's schema refuses what it does not know.
    files = [word for path in release["valuesFiles"] for word in ("--values", path)]
    for profile in ({}, {"strimzi.enabled": False, "kafka.bootstrapServers": "kafka:9092"}):
        settings = {**profile, **dict.fromkeys(release["setValueTemplates"], "kafka-workers:built")}
        options = [word for name, value in settings.items() for word in ("--set-json", f"{name}={json.dumps(value)}")]
        result = helm("template", release["name"], release["chartPath"], "--kube-version", "1.34.0", *files, *options)
        assert result.returncode == 0, result.stderr
        job = one([each for each in yaml.safe_load_all(result.stdout) if each], "Job")
        container = job["spec"]["template"]["spec"]["containers"][0]
        assert container["image"] == "kafka-workers:built"
        assert {each["name"] for each in container["env"]} & {"KAFKA_COUNT", "KAFKA_FOREVER"} == {"KAFKA_FOREVER"}


def test_the_workers_look_for_the_cluster_that_is_there() -> None:
    pool, kafka = documents("k8s/kafka/kafka.yaml")
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    (listener,) = kafka["spec"]["kafka"]["listeners"]
    assert kafka["metadata"]["name"] == values["strimzi"]["cluster"] == pool["metadata"]["labels"]["strimzi.io/cluster"]
    assert listener["port"] == values["strimzi"]["port"]
    assert listener["authentication"]["type"] == values["strimzi"]["authentication"]
    assert pool["spec"]["replicas"] == values["strimzi"]["topic"]["replicas"]
