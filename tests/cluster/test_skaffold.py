"""`skaffold dev` as the head of skaffold.yaml lists it, beside a Kafka that is there: up, a change, Ctrl-C."""

import os
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.kind import CONTEXT, REPOSITORY, Release, found, kubectl
from tests.programs import program
from workers.testing.processes import eventually

pytestmark = pytest.mark.timeout(600)

UP_S = 300.0
# Two addresses: Helm's --set would take the comma for the next value.
BROKERS = "events-kafka-bootstrap:9092,events-kafka-bootstrap.default:9092"
# The release that skaffold.yaml names.
RELEASE = Release("helm")
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
        try:
            eventually(lambda: condition() or self.process.poll() is not None, what, UP_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said[-3000:]}") from None
        assert self.process.poll() is None, self.said[-3000:]

    def metrics(self) -> str:
        """The consumer's page at the port that Skaffold forwards; empty while there is none."""
        ports = FORWARDED.findall(self.said)
        if not ports:
            return ""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[-1]}/metrics", timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def stop(self) -> None:
        """Ctrl-C, after which Skaffold deletes what it has deployed."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(UP_S) == 0, self.said[-3000:]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, kafka: None) -> Path:
    """A copy that may be changed."""
    program("skaffold")
    copy = tmp_path_factory.mktemp("skaffold") / "kafka-workers"
    copy.mkdir()
    files = ("skaffold.yaml", "Dockerfile", ".dockerignore", "hatch_build.py", "pyproject.toml", "README.md", "LICENSE")
    requirements = [path.name for path in REPOSITORY.glob("requirements*.txt")]
    for name in ("workers", "charts", "k8s", *files, *requirements):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, copy / name)
    return copy


@pytest.fixture
def started(repository: Path, tmp_path: Path) -> Iterator[Callable[..., Dev]]:
    """Starts `skaffold dev` with some arguments; a test that fails leaves no release behind."""
    devs: list[Dev] = []

    def start(*arguments: str) -> Dev:
        RELEASE.uninstall()
        devs.append(Dev(repository, tmp_path / "log", *arguments))
        return devs[-1]

    yield start
    for dev in devs:
        if dev.process.poll() is None:
            dev.process.kill()
            dev.process.wait()
    # Skaffold that ended with an error has left one too.
    RELEASE.uninstall()


def images() -> set[str]:
    (deployment,) = found("deploy", "--selector", f"{RELEASE.selector},app.kubernetes.io/component=consumer")
    return {container["image"] for container in deployment["spec"]["template"]["spec"]["containers"]}


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [(("--profile", "existing"), False), (("--module", "workers"), True), (("--profile", "plain"), False)],
    ids=["existing", "workers", "plain"],
)
def test_skaffold_dev_shows_messages_takes_a_change_and_leaves_nothing(
    started: Callable[..., Dev], repository: Path, arguments: tuple[str, ...], changes: bool
) -> None:
    dev = started(*arguments)

    def handled() -> bool:
        return bool(re.search(r"^kafka_consumer_messages_total\{.*\} [1-9]", dev.metrics(), re.MULTILINE))

    dev.eventually(handled, "the forwarded port shows that messages are handled")
    if changes:
        before = images()
        with (repository / "workers" / "__init__.py").open("a") as module:
            module.write("\n# A change.\n")
        dev.eventually(lambda: images() != before, "another image is deployed")
        kubectl("rollout", "status", "deploy/consumer", "--timeout=120s")
        dev.eventually(handled, "the port is forwarded to the new pods")

    dev.stop()
    eventually(lambda: RELEASE.objects() == [], "nothing of the release is left")
    eventually(lambda: found("kafkatopic", "--selector", RELEASE.selector) == [], "its topics are gone too")
    assert "events-brokers" in kubectl("get", "statefulset", "--output", "name")
