"""How a worker begins and ends: signals, deadlines, exit codes and log lines."""

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from workers.escaping import one_line

log = logging.getLogger(__name__)
# Names of daemon threads that may be stuck for ever: in the user's handler, in closing a client, or in a request.
HANDLER_THREAD = "handler"
CLOSING_THREAD = "closing"
WATERMARKS_THREAD = "watermarks"
TRANSACTION_THREAD = "transaction"
PLACEMENT_THREAD = "placement"
BROWSING_THREAD = "browsing"
LEFT_BEHIND = frozenset(
    {HANDLER_THREAD, CLOSING_THREAD, WATERMARKS_THREAD, TRANSACTION_THREAD, PLACEMENT_THREAD, BROWSING_THREAD}
)
# A stop that is asked for while a call is waited for is noticed after so long.
STOP_LOOK_S = 0.1
# `timeout` signals a process and then its group, microseconds apart: one stop. Nobody asks twice as quickly.
SAME_SIGNAL_S = 0.1
# Python looks for cycles after this many new objects instead of 700: at 700 it would walk through each batch of
# messages, which have none, several times while they are alive.
NEW_OBJECTS_BEFORE_COLLECTION = 50_000


def settle_memory() -> None:
    """To call once all is set up: what lives until the end is not looked through for garbage again."""
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS_BEFORE_COLLECTION)


class Stopped(BaseException):
    """Raised by a signal inside `Shutdown.at_once`; like KeyboardInterrupt it passes `except Exception`."""


class Shutdown:
    """Whether the worker was asked to stop, and how long it may still take.

    The first SIGTERM or SIGINT asks; a second, later than SAME_SIGNAL_S, ends the process at once with 128 + the
    signal's number, as a shell reports a process that a signal ended.
    """

    def __init__(self, timeout_s: float) -> None:
        self.requested = False
        self._signalled_at: float | None = None
        self._at_once = False
        self.timeout_s = timeout_s
        self._deadline = float("inf")

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal raise Stopped while the block runs: nothing is under way yet that must be brought to its end.

        Raises Stopped for an earlier signal too. For the main thread, where Python runs the handlers of signals.
        """
        self._at_once = True
        try:
            if self.requested:
                raise Stopped
            yield
        except SystemError as error:
            # Code in C may not pass on what its Python code raised, as confluent-kafka's `list_consumer_groups`.
            if isinstance(error.__cause__, Stopped):
                raise Stopped from None
            raise
        finally:
            self._at_once = False
        # The user's module may have put handlers of its own in place.
        self.install()

    def request(self) -> None:
        if not self.requested:
            self.requested = True
            self._deadline = time.monotonic() + self.timeout_s

    def remaining_s(self) -> float:
        """Seconds until the deadline, infinite while nobody asked to stop, never negative."""
        return max(0.0, self._deadline - time.monotonic())

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # A worker that stops by itself has asked too; the first signal must not cut that short.
        now = time.monotonic()
        if self._signalled_at is not None:
            if now - self._signalled_at > SAME_SIGNAL_S:
                os._exit(128 + number)
            return
        self._signalled_at = now
        self.request()
        if self._at_once:
            raise Stopped


def installed_shutdown(timeout_s: float) -> Shutdown:
    """Handle signals from now on, before the command's modules are imported.

    Process 1 of a container ignores a signal that it does not handle.
    """
    shutdown = Shutdown(timeout_s)
    shutdown.install()
    return shutdown


def call_in_thread(call: Callable[[], object]) -> threading.Thread:
    """Make `call` in a daemon thread, and return that; logs what it raised.

    For `close()` of a client, which can wait for brokers that are gone.
    """

    def run() -> None:
        try:
            call()
        except Exception as error:
            log.warning("closing failed: %s: %s", type(error).__name__, error)

    thread = threading.Thread(target=run, name=CLOSING_THREAD, daemon=True)
    thread.start()
    return thread


def call_with_timeout(call: Callable[[], object], timeout_s: float) -> bool:
    """Whether `call` returned within `timeout_s`; it is left in its thread when time is up. Logs what it raised."""
    thread, returned = _begin(call)
    thread.join(timeout_s)
    return returned.is_set()


def call_until_stopped(call: Callable[[], object], shutdown: Shutdown, timeout_s: float = float("inf")) -> bool:
    """Whether `call` returned within `timeout_s`, and before the time to stop was up. Logs what it raised.

    For a call that waits for brokers: in the main thread it would keep Python from running the handlers of signals.
    """
    until = time.monotonic() + timeout_s
    thread, returned = _begin(call)
    while thread.is_alive() and (left_s := min(shutdown.remaining_s(), until - time.monotonic())) > 0:
        thread.join(min(STOP_LOOK_S, left_s))
    return returned.is_set()


def _begin(call: Callable[[], object]) -> tuple[threading.Thread, threading.Event]:
    """The thread in which `call` is made, and what is set when it has returned and not raised."""
    returned = threading.Event()

    def run() -> None:
        call()
        returned.set()

    return call_in_thread(run), returned


class _TextFormatter(logging.Formatter):
    """A line for each event: its message may quote an error, and that a message of Kafka's that anybody has sent."""

    def __init__(self, level: str = "%(levelname)-7s") -> None:
        super().__init__(f"%(asctime)s {level} %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the name is that of `logging`)
        record.message = one_line(record.message)
        return super().formatMessage(record)


class _TerminalFormatter(logging.Formatter):
    """Text with the level in the colour of its weight; those of ECMA-48, which a light and a dark theme both define."""

    def __init__(self) -> None:
        super().__init__()
        codes = {logging.WARNING: 33, logging.ERROR: 31, logging.CRITICAL: 31, logging.DEBUG: 2}
        self._plain = _TextFormatter()
        self._by_level = {level: _TextFormatter(f"\x1b[{code}m%(levelname)-7s\x1b[0m") for level, code in codes.items()}

    def format(self, record: logging.LogRecord) -> str:
        return self._by_level.get(record.levelno, self._plain).format(record)


class _FieldsFormatter(JsonFormatter):
    """JSON, with the fields that an event's arguments have for it: topic, partition and offset."""

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        for argument in record.args or ():
            message_dict.update(getattr(argument, "log_fields", {}))
        super().add_fields(log_data, record, message_dict)


def set_up_logging(log_format: str | None, level: str) -> None:
    """One line per event on standard error; text on a terminal and JSON elsewhere unless `log_format` says which."""
    handler = logging.StreamHandler(sys.stderr)
    formatter: logging.Formatter
    if (log_format or ("text" if sys.stderr.isatty() else "json")) == "json":
        formatter = _FieldsFormatter(
            "{levelname}{name}{message}",
            style="{",
            timestamp=True,
            rename_fields={"levelname": "level", "name": "logger"},
        )
    else:
        formatter = _TerminalFormatter() if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else _TextFormatter()
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
