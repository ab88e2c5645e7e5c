"""Programs that tests run: other people's, and Python with nothing imported yet."""

import shutil
import subprocess
import sys

import pytest

from workers.testing.processes import COMMAND, DEADLINE_S, Processes


def program(name: str, package: str = "") -> str:
    """The path of a program; skips the test where there is none, with Debian's package where it has one."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} command" + (f" (Debian's package {package} has it)" if package else ""))
    return path


def run_in_bash(processes: Processes, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which "$@" is kafka-workers with these arguments."""
    words = ["bash", "-c", script, "-", *COMMAND, *arguments]
    return subprocess.run(words, env=processes.environment(), capture_output=True, text=True, timeout=DEADLINE_S)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    words = [sys.executable, "-c", code]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
