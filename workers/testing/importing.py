"""Imports a handler as a new process does, and leaves the modules of this one as they were."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

from prometheus_client import REGISTRY, CollectorRegistry

from workers.handlers import Lifespan, load_handler

# Another copy of these modules would not fit to the one that runs.
OURS = frozenset({"workers", "__main__"})


@contextmanager
def imported_anew(reference: str) -> Iterator[Lifespan]:
    """The handler MODULE:NAME, whose top-level package is imported anew with all of its modules.

    Within the context, sys.modules has the new modules, and prometheus_client's registry their metrics only. Contexts
    may be nested, not interleaved. Raises ConfigError when it cannot be imported.
    """
    package = reference.partition(":")[0].partition(".")[0]
    if package in OURS:
        yield load_handler(reference)
        return
    before = _forget(package)
    try:
        # Metrics of a module are registered when it is imported, and each name only once.
        with mock.patch.dict(vars(REGISTRY), vars(CollectorRegistry(auto_describe=True))):
            yield load_handler(reference)
    finally:
        _forget(package)
        sys.modules.update(before)


def _forget(package: str) -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    return {name: sys.modules.pop(name) for name in names}
