"""Renders the chart as `helm template` does."""

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from tests.documents import load_all
from tests.programs import program as path_of

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "kafka-workers"


def helm(*arguments: str, program: str = "helm") -> subprocess.CompletedProcess[str]:
    """Runs a Helm; skips the test where there is none."""
    return subprocess.run([path_of(program), *arguments], capture_output=True, text=True, cwd=REPOSITORY, check=False)


@cache
def template(*settings: str, program: str = "helm") -> subprocess.CompletedProcess[str]:
    """`helm template` with `--set` of each of `settings`; once for the same ones, as it is most of the tests' time."""
    options = [word for setting in settings for word in ("--set-json", setting)]
    return helm("template", "workers", str(CHART), "--kube-version", "1.34.0", *options, program=program)


def render(*settings: str, program: str = "helm") -> list[dict[str, Any]]:
    """The objects that the chart makes."""
    result = template(*settings, program=program)
    assert result.returncode == 0, result.stderr
    return load_all(result.stdout)


def second_release() -> list[str]:
    """The arguments of `helm install second` in the chart's README, after the chart."""
    (words,) = re.findall(r"helm install second \S+ (.*?)\n\n", (CHART / "README.md").read_text(), re.DOTALL)
    return str(words).replace("\\\n", " ").split()


def one(documents: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The only object of a kind, whose name begins with `name`."""
    (document,) = [each for each in documents if each["kind"] == kind and each["metadata"]["name"].startswith(name)]
    return document
