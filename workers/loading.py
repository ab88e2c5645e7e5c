"""Finds the user's code, `package.module:name` as in Python's own entry points, and names what that code raises."""

import importlib
import os
import sys
import traceback
from typing import Any

from workers.errors import ConfigError

_REMEMBERED = "_kafka_workers_traceback"
_PYTHON, _PACKAGE = (os.path.dirname(each) + os.sep for each in (os.__file__, __file__))
_INSTALLED = ("site-packages", "dist-packages")


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
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        remedy = ""
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            top = module_name.partition(".")[0]
            elsewhere = f"run the command in the directory that holds {top}, or add that directory to PYTHONPATH"
            remedy = f"; {_remedy(module_name, f'correct the name, {elsewhere}')}"
        raise ConfigError(f"{option} {reference}: importing {module_name} raised {located(error)}{remedy}") from None
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            file = _short(getattr(module, "__file__", None) or module_name)
            remedy = _remedy(module_name, f"correct the name, or define it in {file}")
            raise ConfigError(f"{option} {reference}: {module_name} has no {name!r}; {remedy}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{option} {reference}: {name} is {kind_of(found)}, which is not callable; name a function")
    return found


def _remedy(module_name: str, usual: str) -> str:
    """The remedy for what is not found in a module; this package hides another one of its name."""
    hidden = module_name.partition(".")[0] == __package__
    return "kafka-workers itself has the name workers; give your package another one" if hidden else usual


def _short(file: str) -> str:
    """The path from the working directory, for a file below it."""
    return file.removeprefix(os.getcwd() + os.sep)


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


def located(error: BaseException) -> str:
    """Name an error with the last line of its traceback that is in the user's own code, as `(orders.py:12)`. In code
    that was installed, that is the line that the worker has called.
    """
    try:
        frames = [each for each in traceback_of(error).stack if _is_users(each.filename)]
        own = next((each for each in reversed(frames) if not _is_installed(each.filename)), frames[0])
        file = _short(own.filename)
    except Exception:  # no line is the user's, there is no working directory, or the user's `__str__` raised
        return named(error)
    return f"{named(error)} ({file}:{own.lineno})"


def _is_users(file: str) -> bool:
    """Whether it is neither of this package, nor of Python, nor from no file."""
    return not file.startswith(("<", _PACKAGE)) and (not file.startswith(_PYTHON) or _is_installed(file))


def _is_installed(file: str) -> bool:
    return any(directory in file for directory in _INSTALLED)


def remember_traceback(error: BaseException) -> None:
    """Keep the text of the traceback with `error`, without the frames that the traceback itself keeps alive.

    Called from the thread of the handler. The lines of the source are read when a dead letter is written.
    """
    try:
        error.__dict__[_REMEMBERED] = traceback.TracebackException.from_exception(error, lookup_lines=False)
    except Exception:  # it calls the user's __str__, __cause__ and __notes__
        error.__dict__.pop(_REMEMBERED, None)


def traceback_of(error: BaseException) -> traceback.TracebackException:
    """The traceback that was remembered, or else the error's own, which calls the user's code and so may raise."""
    return error.__dict__.get(_REMEMBERED) or traceback.TracebackException.from_exception(error)
