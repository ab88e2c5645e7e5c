"""Finds the user's code, `package.module:name` as in Python's own entry points, and names what that code raises."""

import importlib
import os
import sys
from typing import Any

from workers.errors import ConfigError


def load(option: str, reference: str) -> Any:
    """The object that `reference` names; raises ConfigError naming `option` when there is none.

    The working directory is searched too, as `python -m` does: a handler can be tried before it is packaged.
    """
    module_name, separator, name = reference.partition(":")
    if not separator or not module_name or not name:
        raise ConfigError(f"{option} {reference}: expected package.module:name")
    if "/" in module_name or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigError(f"{option} {reference}: a module has dots and no .py in its name; write {dotted}:{name}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise ConfigError(f"{option} {reference}: importing {module_name} raised {named(error)}") from None
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{option} {reference}: {module_name} has no {name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{option} {reference}: {name} is not callable")
    return found


def kind_of(value: object) -> str:
    """The type of a value with its article."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def text_of(error: BaseException) -> str:
    """The text of an error of the user's code, even when its `__str__` raises."""
    try:
        return str(error)
    except Exception:  # it is the user's code that runs here
        return "(its text cannot be had)"


def named(error: BaseException) -> str:
    return f"{type(error).__name__}: {text_of(error)}"
