"""Compiles what the package has in C as well as in Python (PEP 399), where KAFKA_WORKERS_COMPILE asks for it.

`yes` compiles, or fails; `try` compiles where there are a compiler and Python's headers. Without it the wheel has only
Python: it is the same from every build, and installs everywhere.
"""

import os
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "KAFKA_WORKERS_COMPILE"
SOURCES = ("workers/accounting/_stamps.c", "workers/kafka/_fields.c")


class CompilingHook(BuildHookInterface[Any]):
    """Adds the compiled modules to a wheel, or puts them beside their sources where the checkout is installed."""

    def dependencies(self) -> list[str]:
        return ["setuptools>=77"] if _wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wanted = _wanted()
        root = Path(self.root)
        if version == "editable":
            # One of an earlier source would be loaded beside the Python of today.
            for source in SOURCES:
                (root / source).with_suffix(sysconfig.get_config_var("EXT_SUFFIX")).unlink(missing_ok=True)
            if wanted:
                _compile(root, root, optional=wanted == "try")
        elif wanted:
            self._built = tempfile.TemporaryDirectory()
            target = Path(self._built.name)
            built = _compile(root, target, optional=wanted == "try")
            if built:
                build_data["force_include"].update({str(target / name): name for name in built})
                build_data.update(pure_python=False, infer_tag=True)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002  (the interface)
        if hasattr(self, "_built"):
            self._built.cleanup()


def _wanted() -> str:
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "no", "try", "yes"):
        raise ValueError(f"{VARIABLE} is {wanted!r}; it is yes, try or no")
    return "" if wanted == "no" else wanted


def _compile(root: Path, target: Path, *, optional: bool) -> list[str]:
    """Compile all modules below `target`; return their names, none where that cannot be done here."""
    from setuptools import Distribution, Extension

    extensions = [
        # Without -g0 the build's own directory would be in the file.
        Extension(source.removesuffix(".c").replace("/", "."), [source], extra_compile_args=["-g0"], optional=optional)
        for source in SOURCES
    ]
    command: Any = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
    command.force = True
    command.build_lib = str(target)
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as objects:
        command.build_temp = objects
        os.chdir(root)
        try:
            command.ensure_finalized()
            command.run()
        finally:
            os.chdir(before)
    outputs = [Path(output) for output in command.get_outputs()]
    if not all(output.exists() for output in outputs):
        for output in outputs:
            output.unlink(missing_ok=True)
        return []
    return [str(output.relative_to(target)) for output in outputs]
