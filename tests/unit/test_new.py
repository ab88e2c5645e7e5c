"""`kafka-workers new`: which names it takes, what it writes, and that it writes nothing where it refuses."""

import keyword
import re
from pathlib import Path

import pytest

import workers
from tests.unit.test_command_line import run
from workers.cli.new import LONGEST, TEMPLATE, filler, new
from workers.errors import ConfigError

FILES = {
    ".dockerignore", ".gitignore", "Dockerfile", "README.md", "pyproject.toml", "skaffold.yaml", "values.yaml",
    "my_readings/__init__.py", "my_readings/handlers.py", "my_readings/sources.py",
    "tests/test_in_memory.py", "tests/test_on_brokers.py",
}  # fmt: skip


def texts(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_project_has_all_files_and_nothing_of_the_template_s_name(here: Path) -> None:
    new("my-readings", Path("my-readings"))

    made = texts(here / "my-readings")
    assert made.keys() == FILES
    placeholders = re.compile(r"new.project|(?<![\d.])0\.0\.0")
    assert {name for name, text in made.items() if placeholders.search(text)} == set()
    assert "FROM ${KAFKA_WORKERS}\nCOPY my_readings /app/my_readings\n" in made["Dockerfile"]
    assert f"ARG KAFKA_WORKERS=kafka-workers:{workers.__version__}\n" in made["Dockerfile"]
    assert '\nname = "my-readings"\n' in made["pyproject.toml"]


def test_underscores_are_dashes_where_a_name_may_have_none(here: Path) -> None:
    new("my_readings", Path("my_readings"))

    made = texts(here / "my_readings")
    assert made.keys() == FILES
    assert "repository: my-readings\n" in made["values.yaml"]
    assert "handler: my_readings.handlers:enrich\n" in made["values.yaml"]


def test_caches_beside_the_template_are_not_copied(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = here / "template"
    for name in (".gitignore", "new_project/__pycache__/a.pyc", ".ruff_cache/0.1/b"):
        path = template / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff" if "cache" in name else b"c")
    monkeypatch.setattr("workers.cli.new.TEMPLATE", template)
    new("a", Path("a"))

    assert texts(here / "a") == {".gitignore": "c"}


@pytest.mark.parametrize("name", ["a", "readings2", "my-2-readings", "my_readings", "match", "a" * LONGEST])
def test_a_name_that_can_be_a_package_an_image_and_a_release_is_taken(name: str) -> None:
    assert filler(name)("new_project") == name.replace("-", "_")


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "a/b", "a b", "a\n", "A", "Readings", "1readings", "-a", "_a", "a-", "a--b", "a-_b", "a.b",
        "lösung", "a" * (LONGEST + 1), "$(id)", "new-project\0",
    ],
)  # fmt: skip
def test_a_name_that_cannot_is_refused_with_one_that_can(name: str) -> None:
    with pytest.raises(ConfigError, match="such as my-readings"):
        filler(name)


@pytest.mark.parametrize("name", [each for each in keyword.kwlist if each.islower()])
def test_a_keyword_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"called {name}: it is a keyword of Python; choose another name"):
        filler(name)


@pytest.mark.parametrize(
    "name", ["workers", "kafka", "kafka-workers", "tests", "json", "sqlite3", "confluent-kafka", "click", "pytest"]
)
def test_the_name_of_a_package_that_is_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="choose another name"):
        filler(name)


def test_the_name_of_an_importable_package_is_refused_though_no_distribution_lists_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a project that was installed with `pip install -e`. A directory is no package."""
    (here / "installed").mkdir()
    filler("installed")
    (here / "installed" / "__init__.py").touch()
    monkeypatch.syspath_prepend(here)
    with pytest.raises(ConfigError, match="the package installed would hide another one"):
        filler("installed")


def test_an_empty_directory_and_one_that_is_not_there_are_taken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "empty").mkdir()
    for directory, typed in (("empty", "empty"), ("deep/er", "deep/er"), ("My Work", "'My Work'")):
        new("my-readings", Path(directory))

        assert texts(here / directory).keys() == FILES
        assert f"    cd {typed}\n" in capsys.readouterr().out


def test_a_directory_that_is_in_use_is_left_alone(here: Path) -> None:
    (here / "my-readings").mkdir()
    (here / "my-readings" / "mine.py").write_text("mine")
    (here / "file").write_text("mine")

    with pytest.raises(ConfigError, match=r"^my-readings is not empty; .* --directory$"):
        new("my-readings", Path("my-readings"))
    with pytest.raises(ConfigError, match=r"^file is a file; .* --directory$"):
        new("my-readings", Path("file"))
    with pytest.raises(ConfigError, match=r"^file/in cannot be written: Not a directory; .* --directory$"):
        new("my-readings", Path("file/in"))
    assert texts(here) == {"my-readings/mine.py": "mine", "file": "mine"}


@pytest.mark.parametrize("arguments", [["class"], ["kafka"], ["No"], ["taken"], ["fine", "--directory", "taken"], []])
def test_a_refusal_is_one_line_and_exit_code_2_and_nothing_is_written(here: Path, arguments: list[str]) -> None:
    (here / "taken").mkdir()
    (here / "taken" / "mine.py").write_text("mine")
    code, errors = run("new", *arguments, PYTHONPATH=str(TEMPLATE.parents[1]))

    assert code == 2, errors
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("kafka-workers new: ")
    assert texts(here) == {"taken/mine.py": "mine"}


def test_the_last_lines_say_what_to_do_next(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new("my-readings", Path("my-readings"))

    *_, change, install, test, _, last = capsys.readouterr().out.splitlines()
    assert change == "    cd my-readings"
    assert install.split("#")[0].split() == ["pip", "install", "-e", "'.[dev]'"]
    assert test.split("#")[0].split() == ["pytest"]
    assert last.startswith("README.md ")
