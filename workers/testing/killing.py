"""A middleware that kills its worker at a chosen message: `--middleware workers.testing.killing:kill`."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workers.handlers import Handler, around, is_batch

# WHEN:VALUE says at which message: "before" its call, "during" it, or "after" it and before its offset is committed.
VARIABLE = "KAFKA_WORKERS_KILL"
WHEN = ("before", "during", "after")
# "during" is so long after the call has begun, or as it ends, if that is sooner.
DURING_S = 0.02


def chosen(kill: object) -> str:
    """The text of `VARIABLE` for (when, value); raises ValueError for anything else."""
    match kill:
        case (str() as when, str() as value) if when in WHEN:
            return f"{when}:{value}"
        case _:
            raise ValueError(
                f"kill is {kill!r}; give {', '.join(map(repr, WHEN[:-1]))} or {WHEN[-1]!r}, and the value of a message "
                "as text"
            )


def kill(handler: Handler) -> Handler:
    """Send the process SIGKILL at the first message whose value is the one that KAFKA_WORKERS_KILL names."""
    when, _, value = os.environ[VARIABLE].partition(":")
    wanted = value.encode()

    @contextmanager
    def dying(given: Any) -> Iterator[None]:
        due = any(each.value() == wanted for each in (given if is_batch(handler) else [given]))
        if due and when == "before":
            _die()
        if due and when == "during":
            threading.Timer(DURING_S, _die).start()
        try:
            yield
        finally:
            # The call's result or error does not count yet.
            if due and when == "during":
                _die()
        if due and when == "after":
            _die()

    return around(handler, dying)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
