"""The image: what is in it, and that it needs nothing but itself. Each test runs with either of Docker's builders."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import workers
from tests.compose.engine import BASE_IMAGE, DOWNLOAD_TIMEOUT_S, REPOSITORY, build, docker, output, there
from workers.testing.processes import eventually

pytestmark = pytest.mark.timeout(900)

MEGABYTE = 1_000_000
# Prints the modules of which no bytecode is there, or bytecode that would be compared with its source whenever it is
# loaded: the flags of PEP 552 are 1 for a hash that is not checked.
WITHOUT_BYTECODE = """
import importlib.util, pathlib, sys
for source in pathlib.Path(sys.prefix, "lib").rglob("*.py"):
    compiled = pathlib.Path(importlib.util.cache_from_source(source))
    if not compiled.exists() or compiled.read_bytes()[4:8] != bytes([1, 0, 0, 0]):
        print(source)
"""


def inspect(image: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(output("image", "inspect", image))
    return found[0]


def base() -> dict[str, Any]:
    # BuildKit does not give the base that it pulls to the engine.
    assert there(BASE_IMAGE)
    return inspect(BASE_IMAGE)


def layers(image: str) -> list[str]:
    """The layers that we put over the base: an init, dependencies, our code, the working directory."""
    return list(inspect(image)["RootFS"]["Layers"][len(base()["RootFS"]["Layers"]) :])


def test_our_layers_are_under_40_megabytes(image: str) -> None:
    assert inspect(image)["Size"] - base()["Size"] < 40 * MEGABYTE


def test_it_runs_without_privileges_on_a_read_only_root_and_without_a_network(image: str) -> None:
    locked_down = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none")
    assert output("run", "--rm", *locked_down, image, "--version").startswith("kafka-workers ")
    config = inspect(image)["Config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["tini", "--", "kafka-workers"]


def test_a_signal_ends_a_container_whose_python_has_only_just_begun(image: str, tmp_path: Path) -> None:
    """Process 1 gets no signal before it handles it. `sitecustomize` runs before all of ours, and makes that longer."""
    code = "import sys, time\nprint('begun', file=sys.stderr, flush=True)\ntime.sleep(300)\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    tmp_path.chmod(0o755)
    early = ("--volume", f"{tmp_path}:/early:ro", "--env", "PYTHONPATH=/early")
    container = output("run", "--detach", "--network", "none", *early, image, "consume").strip()
    try:
        eventually(lambda: "begun" in docker("logs", container).stderr, "Python has begun")
        output("kill", "--signal", "TERM", container)
        assert output("wait", container, timeout_s=30).strip() == str(128 + signal.SIGTERM)
    finally:
        docker("rm", "--force", container)


def test_brokers_know_a_worker_by_the_host_name_of_its_container(image: str) -> None:
    alone = ("--rm", "--network", "none", "--hostname", "consumer-x7k2p")
    shown = output("run", *alone, image, "consume", "--show-config")
    assert re.search(r"^client\.id +consumer-x7k2p ", shown, re.MULTILINE)


def test_its_labels_name_it_and_its_version(image: str) -> None:
    labels = inspect(image)["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "kafka-workers"
    assert labels["org.opencontainers.image.version"] == workers.__version__
    assert workers.__version__ in output("run", "--rm", image, "--version")


def test_every_module_has_bytecode_that_is_loaded_without_a_look_at_its_source(image: str) -> None:
    """As nobody can write it later."""
    assert output("run", "--rm", "--entrypoint", "python", image, "-c", WITHOUT_BYTECODE) == ""


def test_its_package_is_compiled(image: str) -> None:
    program = "from workers.accounting import _stamps; from workers.kafka.fields import COMPILED; print(COMPILED)"
    assert output("run", "--rm", "--entrypoint", "python", image, "-c", program).strip() == "True"


def test_a_change_of_the_code_keeps_the_layer_with_the_dependencies(image: str, buildkit: bool, tmp_path: Path) -> None:
    for name in ("Dockerfile", ".dockerignore", "LICENSE", "README.md", "hatch_build.py", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for path in REPOSITORY.glob("requirements*.txt"):
        shutil.copy(path, tmp_path)
    shutil.copytree(REPOSITORY / "workers", tmp_path / "workers")
    with (tmp_path / "workers" / "cli.py").open("a") as code:
        code.write("# changed\n")
    changed = f"{image}-changed"
    build(changed, tmp_path, buildkit=buildkit)
    try:
        assert layers(changed)[:2] == layers(image)[:2]
        assert layers(changed)[2] != layers(image)[2]
    finally:
        docker("image", "rm", changed)


@pytest.mark.parametrize("buildkit", [True], indirect=True, ids=["BuildKit"])
def test_the_tests_of_a_new_project_pass_in_its_image_by_the_commands_of_its_readme(image: str, tmp_path: Path) -> None:
    name = "my-readings"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def run(*arguments: str, cwd: Path = tmp_path) -> str:
        result = subprocess.run(
            arguments, cwd=cwd, env=environment, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S
        )
        assert result.returncode == 0, f"{arguments}: {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout

    run(sys.executable, "-m", "workers", "new", name)
    project = tmp_path / name
    readme = (project / "README.md").read_text().partition("## Test the image")[2].partition("## ")[0]
    lines = re.findall(r"^    (.*)$", readme, re.MULTILINE)
    assert [line.split()[0] for line in lines] == ["docker", "pip", "docker"]
    # An image of our own in the place of the one of a release, and a name that no image of the developer's has.
    tag = f"{image}-{name}"
    of_release = f"kafka-workers:{workers.__version__}"
    dockerfile = (project / "Dockerfile").read_text()
    assert f"ARG KAFKA_WORKERS={of_release}\n" in dockerfile
    (project / "Dockerfile").write_text(dockerfile.replace(f"={of_release}\n", f"={image}\n"))
    commands = "\n".join(lines).replace(f"{name}:1", tag).replace("pip install", f"{sys.executable} -m pip install -q")
    try:
        assert "8 passed" in run("bash", "-ec", commands, cwd=project)
    finally:
        docker("image", "rm", tag)
