"""The beginning of the command: what has to be in place before the rest is imported, which takes a second on a busy
machine.
"""

import os
import signal
import sys
from types import FrameType

from workers.errors import ExitCode

INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Run the command; ends the process with its exit code."""
    # A process that was started to ignore Ctrl-C, as by nohup, goes on ignoring it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    _check_streams()
    command = " ".join(sys.argv[1 : 3 if sys.argv[1:2] == ["offsets"] else 2])
    if sys.platform == "linux":
        # Elsewhere Python has no `sigwaitinfo`.
        from workers.cli.supervision import ENDED, STARTED_AGAIN, supervise

        if command in (*STARTED_AGAIN, *ENDED):
            supervise(command)
    from workers.cli.main import main as run

    run()


def _leave(_number: int, _frame: FrameType | None) -> None:
    """Nothing is under way yet."""
    os._exit(INTERRUPTED)


def _check_streams() -> None:
    """Open what the parent has closed, or the first socket would get its descriptor and with it what is printed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8")  # noqa: SIM115  (open until the process ends)
    if sys.stdout is None:
        sys.stderr.write("kafka-workers: standard output is closed; send it to /dev/null if nobody reads it\n")
        raise SystemExit(ExitCode.USAGE)
