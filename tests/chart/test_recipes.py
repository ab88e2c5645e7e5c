"""The recipes of the pages on Kubernetes and on authentication: what they give the chart, and what it makes of it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, REPOSITORY, helm
from tests.chart.schemas import check
from tests.documents import load, load_all

PAGES = "".join((REPOSITORY / "docs" / name).read_text() for name in ("kubernetes.md", "authentication.md"))
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGES, re.DOTALL)


def values_of(block: str) -> dict[str, Any] | None:
    """The chart's values in a block: all of it, or those in an Application of Argo CD or a HelmRelease of Flux."""
    document: dict[str, Any] = load(block)
    if block.startswith("# values.yaml"):
        return document
    if document["kind"] == "Application":
        found: dict[str, Any] = document["spec"]["source"]["helm"]["valuesObject"]
        return found
    return document["spec"].get("values") if document["kind"] == "HelmRelease" else None


RECIPES = [values for values in map(values_of, BLOCKS) if values is not None]


def rendered(values: dict[str, Any], directory: Path, program: str = "helm") -> list[dict[str, Any]]:
    path = directory / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    options = ("--kube-version", "1.34.0", "--namespace", "shop", "--values", str(path))
    result = helm("template", "workers", str(CHART), *options, program=program)
    assert result.returncode == 0, result.stderr
    return load_all(result.stdout)


@pytest.mark.parametrize("program", ["helm", "helm4"])
@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_what_a_recipe_makes_is_what_kubernetes_takes(number: int, program: str, tmp_path: Path) -> None:
    for document in rendered(RECIPES[number], tmp_path, program):
        check(document)
        assert document["metadata"]["namespace"] == ("kafka" if is_elsewhere(document, RECIPES[number]) else "shop")


def is_elsewhere(document: dict[str, Any], values: dict[str, Any]) -> bool:
    return document["kind"] in ("KafkaTopic", "KafkaUser") and "namespace" in values.get("strimzi", {})


def test_a_recipe_for_argo_and_flux_leaves_replicas_alone_and_loops_with_no_job(tmp_path: Path) -> None:
    gitops = [values for values in RECIPES if "producer" in values]
    assert len(gitops) == 2
    kinds = set()
    for values in gitops:
        for document in rendered(values, tmp_path):
            if document["kind"] == "Deployment":
                assert "replicas" not in document["spec"]
            if document["kind"] in ("Job", "CronJob"):
                kinds.add(document["kind"])
                spec = document["spec"].get("jobTemplate", document)["spec"]
                assert "ttlSecondsAfterFinished" not in spec
                hooked = "argocd.argoproj.io/hook" in document["metadata"].get("annotations", {})
                assert hooked == (document["kind"] == "Job")
    assert kinds == {"Job", "CronJob"}


def test_two_renderings_of_the_same_values_are_the_same(tmp_path: Path) -> None:
    """Or else Argo CD would never be in sync."""
    assert rendered(RECIPES[0], tmp_path) == rendered(RECIPES[0], tmp_path)
