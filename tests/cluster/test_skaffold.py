"""`skaffold dev` as the head of skaffold.yaml lists it, beside a Kafka that is there: up, a change, Ctrl-C."""

import os
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.kind import CONTEXT, REPOSITORY, Release, found, kubectl, output
from workers.testing.processes import eventually

pytestmark = pytest.mark.timeout(600)

UP_S = 300.0
# Two addresses: Helm's --set would take the comma for the next value.
BROKERS = "events-kafka-bootstrap:9092,events-kafka-bootstrap.default:9092"
WAYS = {
    "existing": ("--profile", "existing"),
    "workers": ("--module", "workers"),
    "plain": ("--profile", "plain"),
}
SELECTOR = "app.kubernetes.io/instance=workers"
MADE = "deploy,job,pod,serviceaccount,configmap,pdb,kafkauser,kafkatopic,networkpolicy"
FORWARDED = re.compile(r"Port forwarding deployment/consumer in namespace default, .*http://127\.0\.0\.1:(\d+)")


class Dev:
    """One `skaffold dev` and what it has said."""

    def __init__(self, repository: Path, log: Path, *arguments: str) -> None:
        self._log = log
        command = ["skaffold", "dev", "--kube-context", CONTEXT, "--config", str(log.with_name("config")), *arguments]
        environment = {
            **os.environ,
            "SKAFFOLD_UPDATE_CHECK": "false",
            "KAFKA_BOOTSTRAP_SERVERS": BROKERS,
        }
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                cwd=repository,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def eventually(self, condition: Callable[[], object], what: str) -> None:
        """Waits for it while Skaffold runs."""
        eventually(lambda: condition() or self.process.poll() is not None, f"{what}\n{self.said[-3000:]}", UP_S)
        assert self.process.poll() is None, self.said[-3000:]

    def forwarded(self, path: str) -> str:
        """What the consumer answers at the port that Skaffold forwards; empty while there is none."""
        ports = FORWARDED.findall(self.said)
        if not ports:
            return ""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[-1]}{path}", timeout=10) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return ""

    def stop(self) -> None:
        """Ctrl-C, after which Skaffold deletes what it has deployed."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(UP_S) == 0, self.said[-3000:]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, kafka: None) -> Path:
    """A copy that may be changed."""
    if shutil.which("skaffold") is None:
        pytest.skip("there is no skaffold command")
    copy = tmp_path_factory.mktemp("skaffold") / "kafka-workers"
    needed = ("workers", "charts", "k8s", "skaffold.yaml", *(path.name for path in REPOSITORY.glob("requirements*.txt")))
    copy.mkdir()
    for name in (*needed, "Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, copy / name)
    return copy


@pytest.fixture(params=WAYS)
def dev(request: pytest.FixtureRequest, repository: Path, tmp_path: Path) -> Iterator[Dev]:
    Release("helm").uninstall()
    dev = Dev(repository, tmp_path / "log", *WAYS[request.param])
    yield dev
    if dev.process.poll() is None:
        dev.process.kill()
        dev.process.wait()
        Release("helm").uninstall()


def images() -> set[str]:
    (deployment,) = found("deploy", "--selector", f"{SELECTOR},app.kubernetes.io/component=consumer")
    return {container["image"] for container in deployment["spec"]["template"]["spec"]["containers"]}


def test_skaffold_dev_shows_messages_takes_a_change_and_leaves_nothing(dev: Dev, repository: Path) -> None:
    def handled() -> bool:
        return bool(re.search(r'^kafka_consumer_messages_total\{.*\} [1-9]', dev.forwarded("/metrics"), re.MULTILINE))

    dev.eventually(handled, "the forwarded port shows that messages are handled")
    before = images()

    with (repository / "workers" / "__init__.py").open("a") as module:
        module.write(f"\n# {len(dev.said)}\n")
    dev.eventually(lambda: images() != before, "another image is deployed")
    output("kubectl", "--context", CONTEXT, "rollout", "status", "deploy/consumer", "--timeout=120s")
    dev.eventually(handled, "the port is forwarded to the new pods")

    dev.stop()
    eventually(lambda: found(MADE, "--selector", SELECTOR) == [], "nothing of the release is left")
    assert "events-brokers" in kubectl("get", "statefulset", "--output", "name")
