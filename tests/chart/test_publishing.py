"""The chart of a release: packed, pushed to a registry on loopback as the release does it, and used from there."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import workers
from tests.chart.rendering import REPOSITORY, helm
from tests.documents import load_all
from tests.programs import program
from workers.local.cluster import free_ports
from workers.testing.processes import eventually

IMAGE = "registry.example.com/someone/kafka-workers"
PACKED = f"kafka-workers-{workers.__version__}.tgz"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of an empty registry, the one that Debian packs."""
    command = program("docker-registry", "docker-registry")
    (port,) = free_ports(1)
    config, log = tmp_path / "registry.yaml", tmp_path / "registry.log"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    # Every JSON document is one of YAML.
    config.write_text(json.dumps({"version": "0.1", "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}}))
    with log.open("w") as output, subprocess.Popen([command, "serve", config], stdout=output, stderr=output) as server:
        try:
            eventually(lambda: "listening on" in log.read_text() or server.poll() is not None, "the registry listens")
            assert server.poll() is None, log.read_text()
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    helm("version")
    directory = tmp_path_factory.mktemp("packed")
    subprocess.run([REPOSITORY / ".ci" / "package-chart", IMAGE, directory], check=True, capture_output=True)
    return directory / PACKED


@pytest.mark.parametrize("program", ["helm", "helm4"])
def test_a_chart_that_was_pushed_is_used_from_the_registry_with_the_published_image(
    program: str, registry: str, packed: Path, tmp_path: Path
) -> None:
    repository = f"oci://{registry}/charts"
    pushed = helm("push", str(packed), repository, "--plain-http", program=program)
    assert pushed.returncode == 0, pushed.stderr
    # The release signs the digest that it finds there.
    assert re.search(r"^Digest: sha256:[0-9a-f]{64}$", pushed.stdout + pushed.stderr, re.MULTILINE)

    source = [f"{repository}/kafka-workers", "--version", workers.__version__, "--plain-http"]
    pulled = helm("pull", *source, "--destination", str(tmp_path), program=program)
    rendered = helm("template", "workers", *source, program=program)

    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / PACKED).read_bytes() == packed.read_bytes()
    assert rendered.returncode == 0, rendered.stderr
    deployments = [each for each in load_all(rendered.stdout) if each["kind"] == "Deployment"]
    images = {each["image"] for found in deployments for each in found["spec"]["template"]["spec"]["containers"]}
    assert images == {f"{IMAGE}:{workers.__version__}"}


def test_a_version_that_was_not_pushed_is_refused(registry: str) -> None:
    refused = helm("pull", f"oci://{registry}/charts/kafka-workers", "--version", "9.9.9", "--plain-http")

    assert refused.returncode != 0
    assert "9.9.9: not found" in refused.stderr
