"""Skaffold's objects and Strimzi's Kafka cluster, checked against their schemas and against one another."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.chart.rendering import CHART, REPOSITORY, helm, one
from tests.chart.schemas import check, check_skaffold
from tests.documents import load, load_all


def documents(path: str) -> list[dict[str, Any]]:
    return load_all((REPOSITORY / path).read_text())


def test_the_kafka_cluster_is_what_strimzi_takes() -> None:
    found = documents("k8s/kafka/kafka.yaml")
    assert [(each["kind"], each["metadata"]["name"]) for each in found] == [
        ("KafkaNodePool", "brokers"),
        ("Kafka", "events"),
    ]
    for document in found:
        check(document)


def with_profile(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The configuration with the JSON patches of a profile done, as `skaffold -p` does them."""
    changed: dict[str, Any] = json.loads(json.dumps(config))
    for profile in changed.pop("profiles", []):
        for patch in profile["patches"] if profile["name"] == name else []:
            *parents, last = patch["path"].strip("/").split("/")
            place: Any = changed
            for each in parents:
                place = place[int(each)] if isinstance(place, list) else place[each]
            if patch["op"] == "remove":
                del place[last]
            else:
                place[last] = patch["value"]
    return changed


PROFILES = ["", "existing", "plain"]


@pytest.mark.parametrize("profile", PROFILES)
def test_skaffold_takes_its_configuration(profile: str) -> None:
    for document in documents("skaffold.yaml"):
        check_skaffold(document)
        check_skaffold(with_profile(document, profile))


@pytest.mark.parametrize("profile", PROFILES)
def test_skaffold_deploys_the_operator_then_kafka_then_the_workers(profile: str) -> None:
    """It goes through the configurations of a file in their order."""
    configs = [with_profile(each, profile) for each in documents("skaffold.yaml")]
    deployed = [each["metadata"]["name"] for each in configs if each.get("deploy")]
    assert deployed == (["workers"] if profile else ["operator", "kafka", "workers"])


def test_the_fast_loop_deploys_and_deletes_the_workers_only() -> None:
    """`-m workers` takes with it all that it requires."""
    configs = documents("skaffold.yaml")
    assert [each.get("requires") for each in configs] == [None, [{"configs": ["operator"]}], None]


def test_kafka_is_waited_for_in_the_cluster_that_skaffold_deploys_to() -> None:
    _, kafka, _ = documents("skaffold.yaml")
    (hook,) = kafka["deploy"]["kubectl"]["hooks"]["after"]
    shell, _, command = hook["host"]["command"]
    assert shell == "sh"
    assert 'kubectl --context "$SKAFFOLD_KUBE_CONTEXT" wait kafka/events' in command


def evaluated(template: str, variables: dict[str, str], directory: Path) -> str:
    """Evaluate a Go template with Sprig's functions; Helm has both."""
    (directory / "templates").mkdir(exist_ok=True)
    (directory / "Chart.yaml").write_text("{apiVersion: v2, name: one, version: 0.0.1}")
    (directory / "templates" / "one.yaml").write_text(f"{{{{with .Values}}}}# {template}{{{{end}}}}\n")
    (directory / "values.yaml").write_text(json.dumps(variables))
    result = helm("template", "one", str(directory))
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].removeprefix("# ")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("program", ["helm", "helm4"])
def test_every_path_and_value_that_skaffold_names_is_there(profile: str, program: str, tmp_path: Path) -> None:
    _, kafka, workers = (with_profile(each, profile) for each in documents("skaffold.yaml"))
    for path in [*kafka["manifests"].get("rawYaml", []), workers["build"]["artifacts"][0]["docker"]["dockerfile"]]:
        assert (REPOSITORY / path).exists(), path
    (release,) = workers["deploy"]["helm"]["releases"]
    assert REPOSITORY / release["chartPath"] == CHART
    variables = {
        "IMAGE_FULLY_QUALIFIED_kafka_workers": "kafka-workers:built",
        "KAFKA_BOOTSTRAP_SERVERS": "a:9092,b:9092",
    }
    values = {name: json.dumps(value) for name, value in release.get("setValues", {}).items()}
    values |= {name: evaluated(value, variables, tmp_path) for name, value in release["setValueTemplates"].items()}
    options = [word for path in release["valuesFiles"] for word in ("--values", path)]
    options += [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    # The chart's schema refuses what it does not know.
    result = helm("template", release["name"], str(CHART), "--kube-version", "1.34.0", *options, program=program)
    assert result.returncode == 0, result.stderr
    rendered = load_all(result.stdout)
    assert (profile != "plain") == any(each["kind"] == "KafkaTopic" for each in rendered)
    container = one(rendered, "Deployment", "producer")["spec"]["template"]["spec"]["containers"][0]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert container["image"] == "kafka-workers:built"
    assert environment.keys() & {"KAFKA_COUNT", "KAFKA_FOREVER"} == {"KAFKA_FOREVER"}
    servers = "a:9092,b:9092" if profile == "plain" else "events-kafka-bootstrap.default.svc:9093"
    assert environment["KAFKA_BOOTSTRAP_SERVERS"] == servers


# Of kind's own pods on one node, as seen; and what is left of two cores for all of them.
KIND_MILLICORES = 850
ROOM_MILLICORES = 1_800
CONSUMERS = 4


def millicores(text: str) -> int:
    return int(text.removesuffix("m")) if text.endswith("m") else int(float(text) * 1000)


def requested(spec: dict[str, Any]) -> int:
    """The CPU that Kubernetes reserves for a pod: that of all containers, or of one init container if that is more."""
    together = sum(millicores(each["resources"]["requests"]["cpu"]) for each in spec["containers"])
    before = [millicores(each["resources"]["requests"]["cpu"]) for each in spec.get("initContainers", [])]
    return max([together, *before])


def test_what_skaffold_deploys_fits_two_cores_with_four_consumers() -> None:
    operator, _, workers = documents("skaffold.yaml")
    (strimzi,) = operator["deploy"]["helm"]["releases"]
    asked = {"operator": millicores(strimzi["setValues"]["resources.requests.cpu"])}
    pool, kafka = documents("k8s/kafka/kafka.yaml")
    asked["brokers"] = pool["spec"]["replicas"] * millicores(pool["spec"]["resources"]["requests"]["cpu"])
    entity = kafka["spec"]["entityOperator"]
    for name in ("topicOperator", "userOperator"):
        asked[name] = millicores(entity[name]["resources"]["requests"]["cpu"])
    (release,) = workers["deploy"]["helm"]["releases"]
    files = [word for path in release["valuesFiles"] for word in ("--values", path)]
    result = helm("template", "workers", str(CHART), *files, "--set", f"consumer.replicas={CONSUMERS}")
    assert result.returncode == 0, result.stderr
    for document in load_all(result.stdout):
        if document["kind"] == "Pod":
            asked["helm test"] = requested(document["spec"])
        elif document["metadata"]["name"] == "producer" and document["kind"] == "Deployment":
            asked["producer"] = document["spec"]["replicas"] * requested(document["spec"]["template"]["spec"])
        elif document["kind"] == "Deployment":
            # One more while they are replaced.
            asked["consumers"] = (CONSUMERS + 1) * requested(document["spec"]["template"]["spec"])

    assert asked.keys() == {
        "operator", "brokers", "topicOperator", "userOperator", "helm test", "producer", "consumers"
    }  # fmt: skip
    assert all(asked.values())
    assert KIND_MILLICORES + sum(asked.values()) < ROOM_MILLICORES, asked


@pytest.mark.parametrize("profile", PROFILES)
def test_every_port_forward_names_its_namespace(profile: str) -> None:
    """Without one Skaffold looks into the namespace of the first release, the operator's."""
    configs = [with_profile(each, profile) for each in documents("skaffold.yaml")]
    forwards = [forward for config in configs for forward in config.get("portForward", [])]
    assert forwards
    assert {forward.get("namespace") for forward in forwards} == {"default"}


def test_the_workers_look_for_the_cluster_that_is_there() -> None:
    pool, kafka = documents("k8s/kafka/kafka.yaml")
    values = load((CHART / "values.yaml").read_text())
    (listener,) = kafka["spec"]["kafka"]["listeners"]
    assert kafka["metadata"]["name"] == values["strimzi"]["cluster"] == pool["metadata"]["labels"]["strimzi.io/cluster"]
    assert listener["port"] == values["strimzi"]["port"]
    assert listener["authentication"]["type"] == values["strimzi"]["authentication"]
    assert pool["spec"]["replicas"] == values["strimzi"]["topic"]["replicas"]
