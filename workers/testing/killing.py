"""A middleware that kills its worker at a chosen message: `--middleware workers.testing.killing:kill`."""

import functools
import os
import signal
import threading
from typing import Any

from workers.handlers import Handler, is_async, is_batch

# WHEN:VALUE says at which message: "before" its call, "during" it, or "after" it and before its offset is committed.
VARIABLE = "KAFKA_WORKERS_KILL"
# "during" is so long after the call has begun.
DURING_S = 0.02


def kill(handler: Handler) -> Handler:
    """Send the process SIGKILL at the first message whose value is the one that KAFKA_WORKERS_KILL names."""
    when, _, value = os.environ[VARIABLE].partition(":")
    wanted = value.encode()
    function: Any = handler

    def is_due(given: Any) -> bool:
        return any(each.value() == wanted for each in (given if is_batch(handler) else [given]))

    def before(given: Any) -> bool:
        due = is_due(given)
        if due and when == "before":
            _die()
        if due and when == "during":
            threading.Timer(DURING_S, _die).start()
        return due

    if is_async(handler):

        @functools.wraps(function)
        async def call_async(given: Any) -> object:
            due = before(given)
            answer = await function(given)
            if due and when == "after":
                _die()
            return answer

        return call_async

    @functools.wraps(function)
    def call(given: Any) -> object:
        due = before(given)
        answer = function(given)
        if due and when == "after":
            _die()
        return answer

    return call


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
