"""Commands whose client may crash run in a child process, so that its end is said, and what shows groups goes on.

An admin client of librdkafka 2.16 can end its process while brokers restart: with SIGSEGV when a broker that is not the
coordinator of a group refuses a request for its offsets (librdkafka#5040), and with SIGABRT when a request to a
coordinator fails (librdkafka#4605).
"""

import os
import signal
import sys
import threading
import time
from collections import Counter
from functools import partial
from types import FrameType
from typing import NoReturn

from workers.errors import ExitCode
from workers.lifecycle import SAME_SIGNAL_S

# These change nothing, so that doing them again loses nothing but what they have seen.
STARTED_AGAIN = ("lag", "lag-exporter", "offsets show", "top")
ENDED = ("offsets reset",)
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
# The signals that end a command, and those by which parent and child tell each other of them: these are queued, so none
# is lost.
TOLD_BY: dict[int, int] = {
    signal.SIGTERM: signal.SIGRTMIN,
    signal.SIGINT: signal.SIGRTMIN + 1,
    signal.SIGHUP: signal.SIGRTMIN + 2,
}
STOPS = tuple(TOLD_BY)
# This many crashes in a row, each sooner than SOON_S after the start, are no passing state of the brokers.
MOST_CRASHES = 5
SOON_S = 10.0
# The brokers move a coordinator in this time, most often.
PAUSE_S = 1.0


def supervise(command: str) -> None:
    """Return in a child process, which does the work; this process ends as the child does.

    Call it before any thread is started.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (*STOPS, *TOLD_BY.values(), signal.SIGCHLD))
    crashes = 0
    while True:
        began = time.monotonic()
        child = _fork()
        if child is None:
            return
        status, stopped_by = _wait(child)
        if not os.WIFSIGNALED(status):
            os._exit(os.WEXITSTATUS(status))
        number = os.WTERMSIG(status)
        if number not in CRASHES:
            os._exit(128 + number)
        crashes = crashes + 1 if time.monotonic() - began < SOON_S else 1
        code: int | None = None
        what = f"the Kafka client has crashed ({signal.Signals(number).name}), as it can while brokers restart"
        remedy = "it starts again"
        if command not in STARTED_AGAIN or crashes == MOST_CRASHES:
            code, remedy = ExitCode.FAILED, "run it again when all brokers run"
        elif stopped_by is not None:
            code, remedy = 128 + stopped_by, "it was asked to stop, so it does not start again"
        print(f"kafka-workers {command}: {what}; {remedy}", file=sys.stderr, flush=True)
        if code is not None:
            os._exit(code)
        received = signal.sigtimedwait(STOPS, PAUSE_S)
        if received is not None:
            os._exit(128 + received.si_signo)


def _fork() -> int | None:
    """The process id of the child; None in the child, which ends when this process does."""
    parent = os.getpid()
    parent_lives, of_parent = os.pipe()
    child = os.fork()
    if child:
        os.close(parent_lives)
        return child
    os.close(of_parent)
    threading.Thread(target=_end_with_parent, args=(parent_lives,), name="parent", daemon=True).start()
    threading.Thread(target=_tell, args=(parent,), name="signals", daemon=True).start()
    for number, told_by in TOLD_BY.items():
        signal.signal(told_by, partial(_handle, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*TOLD_BY.values(), signal.SIGCHLD))
    return None


def _end_with_parent(parent_lives: int) -> NoReturn:
    os.read(parent_lives, 1)
    os._exit(ExitCode.FAILED)


def _tell(parent: int) -> NoReturn:
    """Tell the parent of signals that have come here: it knows whether they have come to both."""
    while True:
        os.kill(parent, TOLD_BY[signal.sigwaitinfo(STOPS).si_signo])


def _handle(number: int, _told_by: int, frame: FrameType | None) -> None:
    """Do what this process does at a signal, which stays blocked."""
    handler = signal.getsignal(number)
    if callable(handler):
        handler(number, frame)
    elif handler == signal.SIG_DFL:
        os._exit(128 + number)


def _wait(child: int) -> tuple[int, int | None]:
    """Pass stops on until the child has ended; return its status, and the signal of the first stop.

    A signal to the process group or to each process of a service comes to both processes, and counts once; so does one
    that comes to a process twice within SAME_SIGNAL_S.
    """
    came: Counter[int] = Counter()
    passed_on: Counter[int] = Counter()
    came_at: dict[int, float] = {}
    while True:
        received = signal.sigwaitinfo((*STOPS, *TOLD_BY.values(), signal.SIGCHLD)).si_signo
        now = time.monotonic()
        came[received] += now - came_at.get(received, float("-inf")) > SAME_SIGNAL_S
        came_at[received] = now
        for number, told_by in TOLD_BY.items():
            if max(came[number], came[told_by]) > passed_on[number]:
                passed_on[number] += 1
                os.kill(child, told_by)
        if received == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status, next(iter(passed_on.elements()), None)
