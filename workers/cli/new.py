"""`new`: makes a project to start from, a copy of `workers/new-project` with the user's name in it.

The template is a project that works as it lies there, so ruff and mypy check it like all other code.
"""

import keyword
import re
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import click

from workers import __version__
from workers.errors import ConfigError

TEMPLATE = Path(__file__).parents[1] / "new-project"
# Helm adds to it in the names of objects, which may have 63.
LONGEST = 40
# The project's own folder, and what its code and its pyproject.toml ask for, installed here or not.
TAKEN = {"kafka", "kafka_workers", "pytest", "test", "tests", "workers"}


def new(name: str, directory: Path) -> None:
    """Write the project and print what to do next; raises ConfigError, with nothing written, for a name or a directory
    that cannot be used.
    """
    fill = filler(name)
    try:
        _check_free(directory)
        _write(directory, fill)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or directory} cannot be written: {error.strerror}; choose another place with --directory"
        ) from None
    click.echo(f"{directory} is a project with a source, a handler, tests, an image and values for Kubernetes. Next:\n")
    click.echo(f"    cd {shlex.quote(str(directory))}")
    click.echo("    pip install -e '.[dev]'")
    click.echo("    pytest    # in memory, and on three real brokers\n")
    click.echo("README.md says how to run and to deploy it.")


def filler(name: str) -> Callable[[str], str]:
    """Return what puts `name` into a text of the template; raises ConfigError for a name that cannot be used."""
    if len(name) > LONGEST or not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise ConfigError(
            f"{name!r} cannot name a package, an image and a Helm release; use at most {LONGEST} lower-case letters, "
            "digits and single dashes, a letter first, such as my-readings"
        )
    package = name.replace("-", "_")
    if keyword.iskeyword(package):
        raise ConfigError(f"no package can be called {package}: it is a keyword of Python; choose another name")
    # A package that is installed as editable is in no list, and a directory here is no package.
    found = find_spec(package)
    importable = found is not None and found.origin is not None
    if importable or package in TAKEN | sys.stdlib_module_names | packages_distributions().keys():
        raise ConfigError(
            f"the package {package} would hide another one of that name, of Python or installed; choose another name"
        )

    def fill(text: str) -> str:
        for placeholder, value in (
            ("new_project", package),
            ("new-project", name.replace("_", "-")),
            ("0.0.0", __version__),
        ):
            text = text.replace(placeholder, value)
        return text

    return fill


def _check_free(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is a file; remove it, or choose another place with --directory")
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty; empty it, or choose another place with --directory")


def _write(directory: Path, fill: Callable[[str], str]) -> None:
    for source in sorted(TEMPLATE.rglob("*")):
        relative = source.relative_to(TEMPLATE)
        # Caches: pip compiles what it installs, and in the repository ruff and pytest leave theirs.
        cached = any(part.startswith((".", "__pycache__")) for part in relative.parts[:-1])
        if source.is_file() and not cached:
            path = directory / fill(str(relative))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fill(source.read_text(encoding="utf-8")), encoding="utf-8")
