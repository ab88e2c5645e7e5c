"""The files of a release: the same bytes from every build, usable without the checkout, and of one version."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import workers
from tests.chart.rendering import CHART
from tests.documents import load
from tests.unit.compiled import compiled_here
from workers.cli.main import cli

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
# With what says which files are not ours.
SOURCES = (".gitignore", "LICENSE", "README.md", "hatch_build.py", "pyproject.toml", "tests", "workers")
EPOCH = "1790000000"

# A page as its reader follows it: text, code in Python, and commands, which are indented.
TUTORIAL = ROOT / "docs" / "testing.md"
STEPS = re.compile(
    r"`(?P<file>\w+\.py)`|^```python\n(?P<code>.*?)^```|(?P<commands>(?:^    \S[^\n]*\n)+)", re.DOTALL | re.MULTILINE
)


def run(*arguments: str | Path, cwd: Path = ROOT, timeout_s: float = 300, **env: str) -> str:
    """The standard output of a command that must succeed. It knows nothing of this checkout but its arguments."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KAFKA_", "PYTHON"))}
    result = subprocess.run(
        arguments, cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert result.returncode == 0, f"{arguments}: {result.returncode}\n{result.stdout[-4000:]}{result.stderr[-4000:]}"
    return result.stdout


def build(source: Path, dist: Path, *kinds: str, **environment: str) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(dist), *kinds]
    run(*command, cwd=source, timeout_s=300, SOURCE_DATE_EPOCH=EPOCH, **environment)
    return dist


def hashes(dist: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dist.iterdir()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist of this checkout."""
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


class Reader:
    """Follows the tutorial in a new directory: writes its code into the files that it names, and runs its commands.

    The shell finds no program of this environment. pip takes the wheel for a release, and versions of the lock file.
    """

    def __init__(self, directory: Path, wheel: Path) -> None:
        self.directory = directory / "tutorial"
        self.directory.mkdir()
        self.programs = self.directory / ".venv" / "bin"
        python = directory / "python3"
        python.write_text(f'#!/bin/sh\nexec {os.path.realpath(sys.executable)} "$@"\n')
        python.chmod(0o755)
        pins = re.findall(r"^(\S+==[^\\\n]*)", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
        constraints = directory / "constraints.txt"
        constraints.write_text("\n".join([*pins, f"kafka-workers=={workers.__version__}"]))
        self._environment = {
            "PATH": f"{directory}:{os.defpath}",
            "PIP_CONSTRAINT": str(constraints),
            "PIP_FIND_LINKS": str(wheel.parent),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        self._steps = STEPS.finditer(TUTORIAL.read_text())
        self._entered: list[str] = []
        self._file = ""

    def until(self, text: str) -> list[str]:
        """Follow the page through the commands that hold `text`; return what each block of commands has printed."""
        printed = []
        for step in self._steps:
            self._file = step["file"] or self._file
            if step["code"]:
                with (self.directory / self._file).open("a") as file:
                    file.write(f"{step['code']}\n\n")
            if step["commands"]:
                printed.append(self._run(step["commands"]))
                if text in step["commands"]:
                    return printed
        raise AssertionError(f"the tutorial has no command {text!r} any more; adapt this test to {TUTORIAL.name}")

    def _run(self, commands: str) -> str:
        lines = [line.strip() for line in commands.splitlines()]
        printed = run(
            "bash", "-ec", "\n".join([*self._entered, *lines]), cwd=self.directory, timeout_s=300, **self._environment
        )
        # The environment that the reader has entered is entered for all later commands.
        self._entered += [line for line in lines if line.startswith(". ")]
        return printed


@pytest.fixture(scope="module")
def reader(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """One who has installed the wheel as the tutorial says."""
    reader = Reader(tmp_path_factory.mktemp("reader"), wheel)
    reader.until("pip install 'kafka-workers[testing]'")
    return reader


@pytest.fixture(scope="module")
def installed(reader: Reader) -> Path:
    """The programs of the reader's environment."""
    return reader.programs


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A copy of the sources with other file times and rights."""
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, other / name)
    for path in other.rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            os.utime(path, (0, 1_000_000_000))
    return other


def test_a_build_elsewhere_from_other_file_times_and_rights_gives_the_same_bytes(
    dist: Path, elsewhere: Path, tmp_path: Path
) -> None:
    again = hashes(build(elsewhere, tmp_path / "dist"))
    assert len(again) == 2
    assert again == hashes(dist)


@compiled_here
def test_a_wheel_is_compiled_where_that_is_asked_for_and_has_the_same_bytes_too(
    wheel: Path, elsewhere: Path, tmp_path: Path
) -> None:
    builds = [
        build(source, tmp_path / f"dist-{source.name}", "-t", "wheel", KAFKA_WORKERS_COMPILE="yes")
        for source in (ROOT, elsewhere)
    ]
    assert hashes(builds[0]) == hashes(builds[1])
    (made,) = builds[0].glob("*.whl")
    assert re.search(r"-cp3\d+-cp3\d+-linux_", made.name), made.name
    pure, compiled = _members(wheel), _members(made)
    added = {re.sub(r"\.[\w-]+\.so$", "", name) for name in compiled.keys() - pure.keys()}
    assert added == {"workers/accounting/_stamps", "workers/kafka/_fields"}
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", tmp_path / "site", made)
    program = "import workers; from workers.kafka.fields import COMPILED; print(COMPILED, workers.__file__)"
    found, file = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).split()
    assert (found, Path(file).is_relative_to(tmp_path)) == ("True", True)


def test_without_a_compiler_a_wheel_is_pure_or_fails_as_asked(wheel: Path, tmp_path: Path) -> None:
    no_compiler = {"CC": "no-such-compiler"}
    tried = build(ROOT, tmp_path / "try", "-t", "wheel", KAFKA_WORKERS_COMPILE="try", **no_compiler)
    assert hashes(tried) == {wheel.name: hashes(wheel.parent)[wheel.name]}
    with pytest.raises(AssertionError, match="no-such-compiler"):
        build(ROOT, tmp_path / "yes", "-t", "wheel", KAFKA_WORKERS_COMPILE="yes", **no_compiler)
    with pytest.raises(AssertionError, match="KAFKA_WORKERS_COMPILE is 'on'; it is yes, try or no"):
        build(ROOT, tmp_path / "on", "-t", "wheel", KAFKA_WORKERS_COMPILE="on")


def test_the_sdist_builds_the_same_wheel(dist: Path, wheel: Path, tmp_path: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert hashes(build(source, tmp_path / "dist", "-t", "wheel")) == {wheel.name: hashes(dist)[wheel.name]}


def test_what_is_published_names_the_pages_of_the_project(dist: Path, tmp_path: Path) -> None:
    address = "https://example.org/team/kafka-workers"
    run(ROOT / ".ci" / "package-python", address, tmp_path / "dist", SOURCE_DATE_EPOCH=EPOCH)
    assert {path.name for path in (tmp_path / "dist").iterdir()} == {path.name for path in dist.iterdir()}
    ours, published = (_members(next(each.glob("*.whl"))) for each in (dist, tmp_path / "dist"))
    changed = {name for name in ours | published if ours.get(name) != published.get(name)}
    assert {name.rpartition("/")[2] for name in changed} == {"METADATA", "RECORD"}
    (metadata,) = (data.decode() for name, data in published.items() if name.endswith("/METADATA"))
    assert re.findall(r"^Project-URL: (\w+), (.*)$", metadata, re.MULTILINE) == [
        ("Repository", address),
        ("Documentation", f"{address}/tree/main/docs"),
        ("Changelog", f"{address}/blob/main/CHANGELOG.md"),
        ("Issues", f"{address}/issues"),
    ]
    for page in ("docs", "CHANGELOG.md"):
        assert (ROOT / page).exists(), page


def _members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    tracked = run("git", "ls-files", "workers").split()
    assert len(tracked) > 50
    assert names == set(tracked)


def test_the_installed_wheel_runs_without_the_checkout(installed: Path, wheel: Path, tmp_path: Path) -> None:
    version = wheel.name.split("-")[1]
    assert run(installed / "kafka-workers", "--version", cwd=tmp_path) == f"kafka-workers {version}\n"
    for command in cli.commands:
        assert run(installed / "kafka-workers", command, "--help", cwd=tmp_path)
    program = "import workers, workers.testing; print(workers.__version__, workers.__file__)"
    found, file = run(installed / "python", "-c", program, cwd=tmp_path).split()
    assert found == version
    assert Path(file).is_relative_to(installed.parent)
    # An index may have one of this version too.
    with zipfile.ZipFile(wheel) as archive:
        ours = {name: archive.read(name) for name in archive.namelist() if name.startswith("workers/")}
    assert {name: (Path(file).parents[1] / name).read_bytes() for name in ours} == ours


def test_the_tutorial_of_the_test_kit_passes_as_it_is_written_with_the_installed_wheel(reader: Reader) -> None:
    (in_memory,) = reader.until("pytest")
    assert re.search(r"\b2 passed in", in_memory), in_memory
    (all_of_it,) = reader.until("pytest")
    assert re.search(r"\b6 passed in", all_of_it), all_of_it


def test_the_installed_wheel_makes_a_project_whose_tests_pass(installed: Path, tmp_path: Path) -> None:
    run(installed / "kafka-workers", "new", "my-readings", cwd=tmp_path)
    in_memory = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_in_memory.py")
    assert "8 passed" in run(installed / "python", *in_memory, cwd=tmp_path / "my-readings")


def test_everything_that_is_published_has_one_version() -> None:
    chart = load((CHART / "Chart.yaml").read_text())
    (of_image,) = re.findall(r"^ARG VERSION=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    of_readme = re.findall(r"name: kafka-workers, version: ([\d.]+)", (CHART / "README.md").read_text())
    assert of_readme
    assert {chart["version"], chart["appVersion"], of_image, *of_readme} == {workers.__version__}


def test_the_notes_of_a_release_are_its_section_of_the_changelog(tmp_path: Path) -> None:
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(
        "# Changelog\n\n## Unreleased\n\n## 1.2.0 - 2027-01-31\n\n### Added\n\n- A.\n\n## 1.2\n\n- B.\n"
    )
    notes = ROOT / ".ci" / "release-notes"
    assert run(notes, "1.2.0", CHANGELOG=str(changelog)) == "### Added\n\n- A.\n"
    assert run(notes, "1.2", CHANGELOG=str(changelog)) == "- B.\n"
    for missing in ("1.2.1", "Unreleased"):
        with pytest.raises(AssertionError, match=f'no text under "## {missing}"; rename "## Unreleased"'):
            run(notes, missing, CHANGELOG=str(changelog))


def test_the_locks_of_the_extras_hold_what_the_image_has_in_the_same_versions() -> None:
    def pins(path: Path) -> dict[str, str]:
        return dict(re.findall(r"^([\w.-]+)==([^\\\s;]+)", path.read_text(), re.MULTILINE))

    image = pins(ROOT / "requirements.txt")
    dockerfile, ignored = (ROOT / "Dockerfile").read_text(), (ROOT / ".dockerignore").read_text()
    extras = {"tracing": "opentelemetry-sdk", "schemas": "fastavro", "aws": "botocore"}
    for extra, package in extras.items():
        lock = pins(ROOT / f"requirements-{extra}.txt")
        assert image.items() <= lock.items()
        # The tests run with the versions that the image has.
        assert lock.items() <= pins(ROOT / "requirements-dev.txt").items()
        assert package in lock
        assert f"requirements-{extra}.txt" in dockerfile
        assert f"!requirements-{extra}.txt" in ignored


def test_the_full_image_of_a_release_has_every_extra_that_the_dockerfile_has_a_lock_of() -> None:
    steps = load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]["image"]["steps"]
    tags = {}
    for step in steps:
        if "tags" in step.get("with", {}):
            arguments = dict(line.split("=", 1) for line in step["with"]["build-args"].splitlines())
            tags[step["with"]["tags"].rpartition(":")[2]] = arguments.get("EXTRAS", "").split()
    version = "${{ needs.build.outputs.version }}"
    (copied,) = re.findall(r"^COPY requirements\.txt (.*) \./$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert tags.keys() == {version, f"{version}-full"}
    assert tags[version] == []
    assert {f"requirements-{extra}.txt" for extra in tags[f"{version}-full"]} == set(copied.split())
