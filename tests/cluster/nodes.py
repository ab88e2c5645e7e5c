"""A kind cluster of its own with three worker nodes, beside the cluster of the machine.

Brokers, KEDA and the load run on its control plane, so that what is done to a worker node is done to consumers alone.
Its context has the name of the other's in a kubeconfig of its own: `Release` and `kubectl` are the same for both.
"""

import json
import os
import secrets
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from tests.cluster.kind import CONTEXT, KAFKA_CLUSTER, REPOSITORY, found, kubectl, output, run
from tests.programs import program
from workers.testing.processes import eventually

NAME = "kafka-workers-nodes"
IMAGE = "kafka-workers:nodes"
CONTROL_PLANE = f"{NAME}-control-plane"
WORKERS = (f"{NAME}-worker", f"{NAME}-worker2", f"{NAME}-worker3")
SHAPE = "k8s/kind/cluster.yaml"
# Where kubectl and kind find this cluster, and no other.
KUBECONFIG = REPOSITORY / "build" / "nodes" / "kubeconfig"
# Scripts that put brokers under Strimzi's names, and KEDA, into the cluster of the current context.
KAFKA_SCRIPT = os.environ.get("KAFKA_SCRIPT", str(KAFKA_CLUSTER))
KEDA_SCRIPT = os.environ.get("KEDA_SCRIPT", str(KAFKA_CLUSTER.with_name("keda-operator")))
# One that puts Prometheus and an adapter there, into the namespace MONITORING, with the adapter's rules in a file.
PROMETHEUS_SCRIPT = os.environ.get("PROMETHEUS_SCRIPT", str(Path(__file__).with_name("prometheus-adapter")))
MONITORING = "monitoring"
# kind gives each node 30 s to start, so a node image that unpacks others as it starts may need another one.
NODE_IMAGE = os.environ.get("NODE_IMAGE", "")
# Set while one works on these tests: the next run goes on with the same cluster, and what is in it.
KEEP = os.environ.get("KEEP_NODES") == "1"
# kind's own for Services and for pods.
SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"
TAINT = "node-role.kubernetes.io/control-plane:NoSchedule"
EXTERNAL_METRICS = "v1beta1.external.metrics.k8s.io"
START_S = 600.0
# KEDA and the adapter are compiled the first time.
KEDA_S = 2400.0
ADAPTER_S = 1200.0
KEDA_END_S = 90.0
LOAD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "load"},
    "spec": {
        "nodeName": CONTROL_PLANE,
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {
                "name": "load",
                "image": IMAGE,
                "imagePullPolicy": "Never",
                "command": ["sleep", "infinity"],
                "env": [
                    {"name": "KAFKA_BOOTSTRAP_SERVERS", "value": "events-kafka-bootstrap:9092"},
                    # Several producers run beside each other.
                    {"name": "KAFKA_METRICS_PORT", "value": "0"},
                ],
            }
        ],
    },
}


@contextmanager
def cluster() -> Iterator[None]:
    """The cluster, for as long as the `with` block runs; with KEEP_NODES=1 for longer."""
    for name in ("kind", "kubectl", "docker"):
        program(name)
    if not Path(KAFKA_SCRIPT).exists() or not Path(KEDA_SCRIPT).exists():
        pytest.skip("there is nothing to install Kafka and KEDA with; name scripts in KAFKA_SCRIPT and KEDA_SCRIPT")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", str(KUBECONFIG))
        patch.setenv("KIND_CLUSTER_NAME", NAME)
        try:
            _create()
            _install()
            yield
        finally:
            if not KEEP:
                run("kind", "delete", "cluster", "--name", NAME)


def _create() -> None:
    if NAME in output("kind", "get", "clusters").split():
        return
    KUBECONFIG.parent.mkdir(parents=True, exist_ok=True)
    KUBECONFIG.unlink(missing_ok=True)
    output("kind", "create", "cluster", "--config", SHAPE, "--wait", "300s", *_image(), timeout_s=START_S)
    output("kubectl", "config", "rename-context", f"kind-{NAME}", CONTEXT)
    _connect()


def _image() -> list[str]:
    """The option for the node image: the one that was asked for, or one that is here; kind pulls its own otherwise."""
    here = output("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "kindest/node").split()
    images = [NODE_IMAGE] if NODE_IMAGE else [image for image in here if not image.endswith("<none>")]
    return ["--image", images[0]] if images else []


def _connect() -> None:
    """Makes the routes to the pods of other nodes that kindnet makes, for a node image without it. Pods in a node's
    network may have another resolver than the node there, so the node's hosts file names the control plane.

    The address of a Service that kube-proxy does not know yet is refused, and that of a pod that has gone is
    unreachable: a connection to it would leave the machine. Where something out there accepts it, the API server keeps
    that connection, and KEDA's API stays 404.
    """
    addresses, subnets = {}, {}
    for node in found("nodes"):
        name = node["metadata"]["name"]
        subnets[name] = node["spec"]["podCIDR"]
        (addresses[name],) = (each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP")
    for name in WORKERS:
        hosts = f"echo {addresses[CONTROL_PLANE]} {CONTROL_PLANE} >> /etc/hosts"
        output("docker", "exec", name, "sh", "-c", hosts)
    for name in addresses:
        for chain in ("OUTPUT", "FORWARD"):
            output("docker", "exec", name, "iptables", "-A", chain, "-d", SERVICES, "-j", "REJECT")
        output("docker", "exec", name, "ip", "route", "replace", "unreachable", PODS)
        for other in addresses.keys() - {name}:
            output("docker", "exec", name, "ip", "route", "replace", subnets[other], "via", addresses[other])
    kubectl("--namespace", "kube-system", "rollout", "restart", "daemonset/kube-proxy")
    kubectl("--namespace", "kube-system", "rollout", "status", "daemonset/kube-proxy", "--timeout=120s")


def _install() -> None:
    if KEEP and run("kubectl", "--context", CONTEXT, "get", "pod", "load").returncode == 0:
        return
    output("docker", "build", "--tag", IMAGE, ".", timeout_s=START_S)
    output("kind", "load", "docker-image", IMAGE, "--name", NAME, timeout_s=START_S)
    with _only_the_control_plane():
        output("bash", KAFKA_SCRIPT, timeout_s=START_S)
        _install_keda()
    kubectl("apply", "--filename", "-", stdin=json.dumps(LOAD))
    kubectl("wait", "pod/load", "--for=condition=Ready", "--timeout=60s")


def _install_keda() -> None:
    output("bash", KEDA_SCRIPT, timeout_s=KEDA_S)
    _wait_for_external_metrics()


def _wait_for_external_metrics() -> None:
    wanted = f"apiservice/{EXTERNAL_METRICS}"
    waited = run("kubectl", "--context", CONTEXT, "wait", wanted, "--for=condition=Available", "--timeout=120s")
    if waited.returncode != 0:
        path = "jsonpath={.spec.service} {.status.conditions}"
        raise AssertionError(f"{wanted} is not available: {kubectl('get', wanted, '--output', path)}")


@contextmanager
def prometheus_adapter(rules: str) -> Iterator[None]:
    """Has an adapter for Prometheus serve the external metrics by `rules`, while the `with` block runs. KEDA does not
    run meanwhile: its operator writes its own CA into their APIService, whosever that is.
    """
    file = KUBECONFIG.with_name("rules.yaml")
    file.write_text(rules)
    try:
        kubectl("--namespace", "keda", "scale", "deploy", "--all", "--replicas=0")
        eventually(lambda: not found("pods", "--namespace", "keda"), "KEDA has ended", KEDA_END_S)
        kubectl("delete", "apiservice", EXTERNAL_METRICS, "--ignore-not-found")
        output("bash", PROMETHEUS_SCRIPT, str(file), timeout_s=ADAPTER_S)
        _wait_for_external_metrics()
        yield
    finally:
        # First, as no namespace goes while an API does not answer.
        kubectl("delete", "apiservice", EXTERNAL_METRICS, "--ignore-not-found")
        kubectl("delete", "namespace", MONITORING, "--ignore-not-found")
        with _only_the_control_plane():
            _install_keda()


@contextmanager
def _only_the_control_plane() -> Iterator[None]:
    """Has pods that are made in the `with` block scheduled on the control plane, and later ones on the workers."""
    run("kubectl", "--context", CONTEXT, "taint", "nodes", CONTROL_PLANE, f"{TAINT}-")
    kubectl("cordon", *WORKERS)
    try:
        yield
    finally:
        kubectl("uncordon", *WORKERS)
        kubectl("taint", "nodes", CONTROL_PLANE, TAINT, "--overwrite")


def in_load(*command: str, stdin: str = "") -> str:
    """Runs a command in the pod of the load."""
    return kubectl("exec", "-i", "load", "--", *command, stdin=stdin)


MAKE_TOPICS = """
import sys
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic
admin = AdminClient({"bootstrap.servers": "events-kafka-bootstrap:9092"})
topics = [NewTopic(name, 3, 3, config={"min.insync.replicas": "2"}) for name in sys.argv[1:]]
for done in admin.create_topics(topics).values():
    try:
        done.result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
"""


def make_topics(*names: str) -> None:
    """Does what Strimzi's topic operator does: three partitions, three replicas."""
    in_load("/opt/kafka-workers/bin/python", "-", *names, stdin=MAKE_TOPICS)


MAKE_USER = """
import sys
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
name, password = sys.argv[1:]
admin = AdminClient({"bootstrap.servers": "events-kafka-bootstrap:9092"})
how = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
user = UserScramCredentialUpsertion(name, how, password.encode())
for done in admin.alter_user_scram_credentials([user]).values():
    done.result()
"""


def make_user(name: str) -> None:
    """Does what Strimzi's user operator does: a password, with the brokers and in the Secret `name`."""
    password = secrets.token_hex(16)
    in_load("/opt/kafka-workers/bin/python", "-", name, password, stdin=MAKE_USER)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"password": password}}
    kubectl("apply", "--filename", "-", stdin=json.dumps(secret))


class Sending:
    """A producer in the pod of the load, for as long as the `with` block runs or until it has sent its count."""

    def __init__(self, topic: str, run_name: str, *options: str) -> None:
        self.topic = topic
        self.run_name = run_name
        self._words = ["kafka-workers", "produce", "--topic", topic, "--run", run_name, "--summary", "json", *options]
        self._account = ""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._out = self._stack.enter_context(tempfile.TemporaryFile("w+"))
        # `kubectl exec` passes no signal on, so the process is ended by its number.
        shell = f"echo $$ > /tmp/{self.run_name}; exec {' '.join(self._words)}"
        command = ["kubectl", "--context", CONTEXT, "exec", "load", "--", "sh", "-c", shell]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._out, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if self._process.poll() is None:
                self.stop()
            if kind is None:
                self.account()

    def stop(self) -> None:
        """Has it deliver what it has, and end."""
        in_load("sh", "-c", f"kill -TERM $(cat /tmp/{self.run_name})")
        self._process.wait(60)

    def account(self, timeout_s: float = 300.0) -> str:
        """Its account, when it has ended; fails where a delivery did."""
        if not self._account:
            code = self._process.wait(timeout_s)
            self._out.seek(0)
            said = self._out.read()
            assert code == 0, f"produce of run {self.run_name} ended with {code}\n{said[-1000:]}"
            self._account = next(line for line in said.splitlines() if '"acknowledged"' in line)
        return self._account


def verified(sending: Sending, topic: str) -> dict[str, Any]:
    """The report of `verify` on `topic`, which holds what was sent, or what a handler has made of it, one for one."""
    account = json.dumps(json.loads(sending.account()) | {"topic": topic})
    words = ("verify", "--topic", topic, "--json", "--account", "-", "--run", sending.run_name)
    report: dict[str, Any] = json.loads(in_load("kafka-workers", *words, stdin=account))
    return report


class Watch:
    """Every state of some objects, as the API server tells it, with the seconds since the beginning."""

    def __init__(self, *arguments: str, path: str) -> None:
        self._began = time.monotonic()
        command = [
            "kubectl",
            "--context",
            CONTEXT,
            "get",
            *arguments,
            "--watch",
            "--output",
            f'jsonpath={path}{{"\\n"}}',
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._lines: list[tuple[float, list[str]]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append((time.monotonic() - self._began, line.rstrip("\n").split("|")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def states(self) -> list[tuple[float, list[str]]]:
        """When, and the fields of `path`, which `|` separates."""
        return list(self._lines)


class Numbers(Watch):
    """How many members a Deployment is to have, and how many are Ready, over time."""

    def __init__(self, deployment: str) -> None:
        super().__init__("deploy", deployment, path="{.spec.replicas}|{.status.readyReplicas}")

    @property
    def steps(self) -> list[tuple[float, int]]:
        """The numbers that it was told to have, each once, with when."""
        steps: list[tuple[float, int]] = []
        for at, (wanted, _) in self.states:
            if not steps or steps[-1][1] != int(wanted or 0):
                steps.append((at, int(wanted or 0)))
        return steps

    def reached(self, members: int) -> bool:
        """Whether it has this many, all Ready, now."""
        if not self.states:
            return False
        _, (wanted, ready) = self.states[-1]
        return int(wanted or 0) == int(ready or 0) == members

    def until(self, members: int, timeout_s: float) -> float:
        """When it had them; fails with the steps so far."""
        try:
            eventually(lambda: self.reached(members), f"{members} members are Ready", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; it was told to have {self.steps}") from None
        return self.seconds


class Members(Watch):
    """The pods of a consumer over time."""

    def __init__(self, selector: str) -> None:
        ready = '{.status.conditions[?(@.type=="Ready")].status}'
        path = f"{{.metadata.name}}|{{.spec.nodeName}}|{ready}|{{.metadata.deletionTimestamp}}"
        super().__init__("pods", "--selector", selector, path=path)

    @property
    def counts(self) -> list[tuple[float, int]]:
        """How many were Ready, at each change. One that is told to end counts no more."""
        ready: set[str] = set()
        counts = []
        for at, (name, _, state, leaving) in self.states:
            if state == "True" and not leaving:
                ready.add(name)
            else:
                ready.discard(name)
            counts.append((at, len(ready)))
        return counts

    def ready(self) -> int:
        """How many are Ready now."""
        return self.counts[-1][1] if self.states else 0

    def fewest_ready(self, since_s: float) -> int:
        """The lowest number of Ready ones at a time, from `since_s` on."""
        return min(count for at, count in self.counts if at >= since_s)


def nodes_of(selector: str) -> list[str]:
    """The node of each pod that is not being deleted, sorted."""
    pods = [pod for pod in found("pods", "--selector", selector) if "deletionTimestamp" not in pod["metadata"]]
    return sorted(str(pod["spec"].get("nodeName")) for pod in pods)
