"""Other people's programs that tests compare with, or run."""

import shutil

import pytest


def program(name: str, package: str = "") -> str:
    """The path of a program; skips the test where there is none, with Debian's package where it has one."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} command" + (f" (Debian's package {package} has it)" if package else ""))
    return path
