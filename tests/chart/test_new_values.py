"""A project that `kafka-workers new` has made, on Kubernetes: its values in the chart, and its skaffold.yaml."""

from pathlib import Path
from typing import Any

import pytest

from tests.chart.rendering import CHART, helm, one
from tests.chart.schemas import check, check_skaffold
from tests.documents import load, load_all
from workers.cli.new import LONGEST, new


@pytest.fixture(params=["my-readings", "my_readings", "r" * LONGEST])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    directory = tmp_path / "project"
    new(request.param, directory)
    return directory


def skaffold(project: Path) -> dict[str, Any]:
    configuration: dict[str, Any] = load((project / "skaffold.yaml").read_text())
    return configuration


@pytest.mark.parametrize("program", ["helm", "helm4"])
def test_the_chart_makes_of_its_values_what_kubernetes_and_strimzi_take(project: Path, program: str) -> None:
    (release,) = skaffold(project)["deploy"]["helm"]["releases"]
    values = [word for path in release["valuesFiles"] for word in ("--values", str(project / path))]
    result = helm("template", release["name"], str(CHART), "--kube-version", "1.34.0", *values, program=program)
    assert result.returncode == 0, result.stderr
    documents = load_all(result.stdout)
    for document in documents:
        check(document)

    package = next(path.parent.name for path in project.glob("*/handlers.py"))
    told: dict[str, str] = {}
    for kind, name in (("Deployment", "consumer"), ("Job", "producer")):
        (container,) = one(documents, kind, name)["spec"]["template"]["spec"]["containers"]
        told |= {each["name"]: each["value"] for each in container["env"] if "value" in each}
        assert container["image"] == f"{package.replace('_', '-')}:1"
    assert told["KAFKA_HANDLER"] == f"{package}.handlers:enrich"
    assert told["KAFKA_SOURCE"] == f"{package}.sources:readings"
    assert told["KAFKA_GROUP_ID"] == package.replace("_", "-")


def test_every_topic_that_its_handler_writes_to_is_made_and_may_be_written_to(project: Path) -> None:
    values = ("--values", str(project / "values.yaml"), "--set", "strimzi.cluster=other")
    result = helm("template", "project", str(CHART), *values)
    assert result.returncode == 0, result.stderr
    documents = load_all(result.stdout)
    topics = {each["metadata"]["name"]: each["metadata"] for each in documents if each["kind"] == "KafkaTopic"}
    rights = one(documents, "KafkaUser", "consumer")["spec"]["authorization"]["acls"]
    writable = {each["resource"]["name"] for each in rights if "Write" in each["operations"]}

    assert topics.keys() == {"readings", "readings.dlq", "readings-enriched"}
    assert {each["labels"]["strimzi.io/cluster"] for each in topics.values()} == {"other"}
    assert {each["annotations"]["helm.sh/resource-policy"] for each in topics.values()} == {"keep"}
    assert writable == {"readings.dlq", "readings-enriched"}


def test_skaffold_takes_its_configuration_and_gives_the_chart_the_image_that_it_builds(project: Path) -> None:
    configuration = skaffold(project)
    check_skaffold(configuration)
    (artifact,) = configuration["build"]["artifacts"]
    (release,) = configuration["deploy"]["helm"]["releases"]
    # Skaffold's variable has underscores where the image's name has dashes.
    variable = f"IMAGE_FULLY_QUALIFIED_{artifact['image'].replace('-', '_')}"

    assert release["setValueTemplates"] == {"image.reference": f"{{{{.{variable}}}}}"}
    assert (project / artifact["docker"]["dockerfile"]).is_file()
