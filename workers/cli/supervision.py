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
from typing import NoReturn

from workers.errors import ExitCode

# These change nothing, so that doing them again loses nothing but what they have seen.
STARTED_AGAIN = ("lag", "lag-exporter", "offsets show", "top")
ENDED = ("offsets reset",)
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# This many crashes in a row, each sooner than SOON_S after the start, are no passing state of the brokers.
MOST_CRASHES = 5
SOON_S = 10.0
# The brokers move a coordinator in this time, most often.
PAUSE_S = 1.0
# Linux: a signal of the terminal, which the child got too.
SI_KERNEL = 128


def supervise(command: str) -> None:
    """Return in a child process, which does the work; this process ends as the child does.

    Call it before any thread is started.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (*FORWARDED, signal.SIGCHLD))
    crashes = 0
    while True:
        began = time.monotonic()
        child = _fork()
        if child is None:
            return
        status = _wait(child)
        if not os.WIFSIGNALED(status):
            os._exit(os.WEXITSTATUS(status))
        number = os.WTERMSIG(status)
        if number not in CRASHES:
            os._exit(128 + number)
        crashes = crashes + 1 if time.monotonic() - began < SOON_S else 1
        again = command in STARTED_AGAIN and crashes < MOST_CRASHES
        what = f"the Kafka client has crashed ({signal.Signals(number).name}), as it can while brokers restart"
        remedy = "it starts again" if again else "run it again when all brokers run"
        print(f"kafka-workers {command}: {what}; {remedy}", file=sys.stderr, flush=True)
        if not again:
            os._exit(ExitCode.FAILED)
        received = signal.sigtimedwait(FORWARDED, PAUSE_S)
        if received is not None:
            os._exit(128 + received.si_signo)


def _fork() -> int | None:
    """The process id of the child; None in the child, which ends when this process does."""
    parent_lives, of_parent = os.pipe()
    child = os.fork()
    if child:
        os.close(parent_lives)
        return child
    os.close(of_parent)
    threading.Thread(target=_end_with_parent, args=(parent_lives,), name="parent", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*FORWARDED, signal.SIGCHLD))
    return None


def _end_with_parent(parent_lives: int) -> NoReturn:
    os.read(parent_lives, 1)
    os._exit(ExitCode.FAILED)


def _wait(child: int) -> int:
    """Pass signals on until the child has ended; return its status."""
    while True:
        received = signal.sigwaitinfo((*FORWARDED, signal.SIGCHLD))
        if received.si_signo != signal.SIGCHLD:
            if received.si_code != SI_KERNEL:
                os.kill(child, received.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
