"""Whether the package was compiled, and modules as they are where it was not."""

import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

import pytest

from workers.kafka.fields import COMPILED

# Never where CI has asked for it.
compiled_here = pytest.mark.skipif(
    not COMPILED and os.environ.get("KAFKA_WORKERS_COMPILE") != "yes",
    reason="not compiled: install gcc and python3-dev, then say: rm .venv/ready",
)


def without_compiled(module: ModuleType) -> Any:
    """The module as it is where the package was not compiled."""
    parent, _, name = module.__name__.rpartition(".")
    compiled = f"{parent}._{name}"
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_in_python", module.__file__ or "")
    assert spec is not None
    assert spec.loader is not None
    before = sys.modules.get(compiled)
    sys.modules[compiled] = None  # type: ignore[assignment]  # so an import of it fails
    try:
        made = importlib.util.module_from_spec(spec)
        # Dataclasses and named tuples look their module up.
        sys.modules[spec.name] = made
        spec.loader.exec_module(made)
    finally:
        del sys.modules[compiled]
        if before is not None:
            sys.modules[compiled] = before
    return made
