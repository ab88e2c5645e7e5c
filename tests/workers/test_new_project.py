"""A project that `kafka-workers new` has made: its tests, its style, its types, and the commands of its README."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Topics
from workers.cli.new import LONGEST
from workers.testing.processes import Processes

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
READINGS = 180
# Lines are as long as the name lets them be.
NAMES = ["my-readings", "r", "r" * LONGEST]


def run(directory: Path, *arguments: str | Path) -> str:
    """Run a command that must succeed, and return its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
    result = subprocess.run(
        arguments, cwd=directory, env={**clean, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert result.returncode == 0, f"{arguments}: {result.returncode}\n{result.stdout[-4000:]}{result.stderr[-4000:]}"
    return result.stdout


@pytest.fixture
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    name = getattr(request, "param", NAMES[0])
    run(tmp_path, sys.executable, "-m", "workers", "new", name)
    return tmp_path / name


def test_its_tests_pass_as_it_is_made_those_with_real_brokers_too(project: Path) -> None:
    options = ("-q", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist")
    out = run(project, sys.executable, "-m", "pytest", *options)
    assert re.search(r"^9 passed in", out, re.MULTILINE), out


@pytest.mark.parametrize("project", NAMES, indirect=True)
def test_ruff_and_hadolint_find_nothing_whatever_its_name(project: Path) -> None:
    run(project, PROGRAMS / "ruff", "check", "--no-cache")
    run(project, PROGRAMS / "ruff", "format", "--check", "--no-cache")
    run(project, PROGRAMS / "hadolint", "Dockerfile")


def test_mypy_finds_nothing(project: Path) -> None:
    run(project, PROGRAMS / "mypy", "--strict")


def test_the_commands_of_its_readme_run_it(
    project: Path, processes: Processes, topics: Topics, group: str, bootstrap_servers: str
) -> None:
    """On topics of this test, and each consumer ends when it has read all."""
    readme = (project / "README.md").read_text()
    cluster, produce, consume, look = (
        line.split() for line in re.findall(r"^    kafka-workers (.*)$", readme, re.MULTILINE)
    )
    topic = topics.create()
    names = {"ADDRESS": bootstrap_servers, "my-readings": group, "look": f"{group}-look"}
    for name in cluster[2::2]:
        names[name] = name.replace("readings", topic)
        if name != "readings":
            topics.create_named(names[name])

    def start(words: list[str], *more: str) -> str:
        told = [names.get(word, word) for word in words]
        process = processes.start(*told, "--metrics-port", "0", *more, env={"PYTHONPATH": f"{project}:{ROOT}"})
        assert process.wait() == 0, process.stderr
        return process.stdout

    start(produce)
    start(consume, "--max-messages", str(READINGS))
    written = [json.loads(line) for line in start(look, "--max-messages", str(READINGS)).splitlines()]
    assert len({(each["sensor"], each["minute"]) for each in written}) == READINGS
    assert {each["place"] for each in written} == {"boiler room", "cellar", "attic"}
