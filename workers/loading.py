"""Finds the user's code: `package.module:name`, the form that Python's own entry points have."""

import importlib
import os
import sys
from typing import Any

from workers.config import ConfigError


def load(option: str, reference: str) -> Any:
    """The object that `reference` names; raises ConfigError naming `option` when there is none.

    The working directory is searched too, as `python -m` does: a handler can be tried before it is packaged.
    """
    module_name, separator, name = reference.partition(":")
    if not separator or not module_name or not name:
        raise ConfigError(f"{option} {reference}: expected package.module:name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise ConfigError(
            f"{option} {reference}: importing {module_name} raised {type(error).__name__}: {error}"
        ) from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{option} {reference}: {module_name} has no {name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{option} {reference}: {name} is not callable")
    return found
