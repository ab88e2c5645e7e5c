"""Two releases whose KafkaUsers would be the same object, against an API server that knows of nothing else."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from threading import Thread
from typing import Any

import pytest

from tests.chart.rendering import CHART, helm, one
from tests.documents import load_all

USER = "/apis/kafka.strimzi.io/v1/namespaces/kafka/kafkausers/consumer"


# The kinds that the API server knows, by group and version: those that the chart makes.
KINDS = {
    "apps/v1": ["Deployment"],
    "policy/v1": ["PodDisruptionBudget"],
    "kafka.strimzi.io/v1": ["KafkaTopic", "KafkaUser"],
}


def discovery() -> dict[str, Any]:
    """The answers to a client that asks which kinds there are, by path."""

    def resources(group_version: str, kinds: list[str]) -> dict[str, Any]:
        known = [
            {"name": f"{kind.lower()}s", "singularName": "", "kind": kind, "namespaced": True, "verbs": ["get"]}
            for kind in kinds
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": known}

    groups = []
    for group_version in KINDS:
        group, version = group_version.split("/")
        versions = {"groupVersion": group_version, "version": version}
        groups.append({"name": group, "versions": [versions], "preferredVersion": versions})
    return {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/api/v1": resources("v1", ["ServiceAccount", "Pod"]),
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups},
        **{f"/apis/{group_version}": resources(group_version, kinds) for group_version, kinds in KINDS.items()},
    }


def kafka_user(namespace: str) -> dict[str, Any]:
    """The user of a release `workers` in a namespace, as Helm has labelled it."""
    annotations = {"meta.helm.sh/release-name": "workers", "meta.helm.sh/release-namespace": namespace}
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    metadata = {"name": "consumer", "namespace": "kafka", "annotations": annotations, "labels": labels}
    return {"apiVersion": "kafka.strimzi.io/v1", "kind": "KafkaUser", "metadata": metadata}


@contextmanager
def api_server(user: dict[str, Any] | None) -> Iterator[tuple[str, list[str]]]:
    """An API server with one KafkaUser, or with none: its address, and the paths that it was asked for."""
    answers = {**discovery(), **({} if user is None else {USER: user})}
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            body = json.dumps(answers.get(path, missing)).encode()
            self.send_response(200 if path in answers else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the output of the tests readable."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def render_beside(user: dict[str, Any] | None, directory: Path, program: str, *settings: str) -> CompletedProcess[str]:
    """Render the release `workers` of the namespace `shop` as an installation does, with users in `kafka`."""
    with api_server(user) as (address, asked):
        cluster = {"name": "only", "cluster": {"server": address}}
        context = {"name": "only", "context": {"cluster": "only", "user": ""}}
        kubeconfig = directory / "kubeconfig"
        # Every JSON document is one of YAML.
        kubeconfig.write_text(
            json.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "only",
                "clusters": [cluster], "contexts": [context],
            })
        )  # fmt: skip
        rendered = helm(
            "template", "workers", str(CHART), "--namespace", "shop", "--kubeconfig", str(kubeconfig),
            "--dry-run=server", "--disable-openapi-validation", "--kube-version", "1.34.0",
            "--api-versions", "kafka.strimzi.io/v1/KafkaUser",
            "--set", "strimzi.namespace=kafka", *settings, program=program,
        )  # fmt: skip
    # Or else nothing was looked up, and nothing is proven.
    assert any(path.startswith("/apis/kafka.strimzi.io/v1/namespaces/kafka/kafkausers/") for path in asked), rendered
    return rendered


@pytest.mark.parametrize("program", ["helm", "helm4"])
def test_the_kafka_user_of_a_release_in_another_namespace_is_left_alone(program: str, tmp_path: Path) -> None:
    theirs = kafka_user("billing")
    refused = render_beside(theirs, tmp_path, program)
    assert refused.returncode != 0
    assert (
        "consumer.name: the KafkaUser consumer in the namespace kafka belongs to the release workers in the namespace "
        "billing" in refused.stderr
    )
    assert "set fullnameOverride, or consumer.name, to another name" in refused.stderr

    other = render_beside(theirs, tmp_path, program, "--set", "fullnameOverride=shop")
    assert other.returncode == 0, other.stderr
    assert one(load_all(other.stdout), "KafkaUser")["metadata"]["name"] == "shop-consumer"


@pytest.mark.parametrize("program", ["helm", "helm4"])
@pytest.mark.parametrize(
    "user",
    [
        None,
        kafka_user("shop"),
    ],
)
def test_the_own_kafka_user_is_upgraded_and_a_missing_one_is_made(
    program: str, user: dict[str, Any] | None, tmp_path: Path
) -> None:
    rendered = render_beside(user, tmp_path, program)
    assert rendered.returncode == 0, rendered.stderr
    assert one(load_all(rendered.stdout), "KafkaUser")["metadata"]["name"] == "consumer"
