"""Runs helm and kubectl as a user does, against the kind cluster of the machine."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = "charts/kafka-workers"
CONTEXT = "kind-kind"
IMAGE = "kafka-workers:test"
# Where the operator's image cannot be had: a script that puts three brokers into kind under the names of Strimzi.
KAFKA_CLUSTER = REPOSITORY.parent / "shared" / "lab" / "kafka-cluster"


def run(*command: str, stdin: str = "", timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, whatever its exit code."""
    return subprocess.run(
        command, cwd=REPOSITORY, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def output(*command: str, stdin: str = "", timeout_s: float = 300.0) -> str:
    """The standard output of a command that must succeed."""
    result = run(*command, stdin=stdin, timeout_s=timeout_s)
    assert result.returncode == 0, f"{' '.join(command)}: {result.returncode}\n{result.stdout}\n{result.stderr[-3000:]}"
    return result.stdout


def kubectl(*arguments: str, stdin: str = "", timeout_s: float = 300.0) -> str:
    return output("kubectl", "--context", CONTEXT, *arguments, stdin=stdin, timeout_s=timeout_s)


def found(*arguments: str) -> list[dict[str, Any]]:
    """The objects that `kubectl get` finds."""
    items: list[dict[str, Any]] = json.loads(kubectl("get", *arguments, "--output", "json"))["items"]
    return items


def why_not() -> str | None:
    """Why nothing can be run on Kubernetes here, or None."""
    for name in ("kubectl", "helm", "kind", "docker"):
        if shutil.which(name) is None:
            return f"there is no {name} command"
    if run("kubectl", "--context", CONTEXT, "get", "nodes").returncode != 0:
        return f"no cluster answers in the context {CONTEXT}; kind create cluster makes one"
    if not KAFKA_CLUSTER.exists() and not strimzi_runs():
        return "Strimzi has no Kafka cluster `events` in it; skaffold run -m operator,kafka makes one"
    return None


def strimzi_runs() -> bool:
    """Whether the cluster `events` is Strimzi's own, as in the workflow of .github."""
    ready = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
    return run("kubectl", "--context", CONTEXT, "get", "kafka", "events", "--output", ready).stdout == "True"


class Pod:
    """A worker's pod."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.name = str(document["metadata"]["name"])
        self.phase = str(document["status"].get("phase"))
        self.leaving = "deletionTimestamp" in document["metadata"]
        conditions = document["status"].get("conditions", [])
        self.ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def metric(self, name: str, **labels: str) -> float | None:
        """The sum of the samples of `name` that have `labels`, None where there is none or the pod does not answer."""
        path = f"/api/v1/namespaces/default/pods/{self.name}:8000/proxy/metrics"
        answer = run("kubectl", "--context", CONTEXT, "get", "--raw", path, timeout_s=20)
        if answer.returncode != 0:
            return None
        values = [
            sample.value
            for family in text_string_to_metric_families(answer.stdout)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(values) if values else None


class Release:
    """A release of the chart, installed by one of the versions of Helm. `suffix` tells two in a namespace apart."""

    def __init__(self, helm: str, name: str = "workers", suffix: str = "") -> None:
        self.helm = [helm, "--kube-context", CONTEXT]
        self.name = name
        self.consumer, self.producer = f"consumer{suffix}", f"producer{suffix}"
        # Helm 4 needs this option when `kubectl scale` owns a field that Helm changes.
        self.force_conflicts = ("--force-conflicts",) if helm == "helm4" else ()
        self._settings = ["--set", f"image.tag={IMAGE.partition(':')[2]}"]
        self._settings += ["--set", f"consumer.name={self.consumer},producer.name={self.producer}"]
        self._settings += ["--set", "producer.enabled=true"]

    def install(self, *settings: str) -> None:
        output(*self.helm, "install", self.name, CHART, *self._settings, *settings, timeout_s=200)

    def upgrade(self, *settings: str) -> None:
        output(*self.helm, "upgrade", self.name, CHART, *self._settings, *settings, timeout_s=200)

    def uninstall(self) -> None:
        run(*self.helm, "uninstall", self.name, "--wait", timeout_s=200)

    def revision(self) -> str:
        """Number of the revision that is deployed."""
        history = json.loads(output(*self.helm, "history", self.name, "--output", "json"))
        return str(history[-1]["revision"])

    @property
    def selector(self) -> str:
        """The label of all that the release has made."""
        return f"app.kubernetes.io/instance={self.name}"

    def objects(self) -> list[dict[str, Any]]:
        """Its objects of every kind but topics, which an uninstall keeps."""
        kinds = "deploy,job,pod,serviceaccount,configmap,pdb,kafkauser,networkpolicy,cronjob"
        return found(kinds, "--selector", self.selector)

    def pods(self, component: str) -> list[Pod]:
        """The pods of a worker that are not being deleted."""
        labels = f"{self.selector},app.kubernetes.io/component={component}"
        return [pod for pod in map(Pod, found("pods", "--selector", labels)) if not pod.leaving]

    def jobs(self) -> list[str]:
        found_jobs = found("jobs", "--selector", self.selector)
        return [str(job["metadata"]["name"]) for job in found_jobs]

    def workers(self, *arguments: str, stdin: str = "") -> str:
        """Runs `kafka-workers` in a consumer's pod, with its rights."""
        return kubectl("exec", "-i", f"deploy/{self.consumer}", "--", "kafka-workers", *arguments, stdin=stdin)

    def group(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.workers("lag", "--json"))
        return document

    def shares(self) -> list[float | None]:
        """How many partitions each consumer that is Ready says that it owns."""
        return [pod.metric("kafka_consumer_assigned_partitions") for pod in self.pods("consumer") if pod.ready]
