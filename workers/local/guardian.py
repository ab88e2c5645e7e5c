"""Ends the processes of an embedded cluster, and removes their data, when the process that started them is gone.

A separate process, because one that was killed cannot clean up. Its standard input is a pipe from the owner: lines
`watch PID` and `forget PID`, and the end of the pipe when the owner ends in any way.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable

# A killed process that nobody reaps, as under some process 1 of a container, is found for ever. It writes no more.
END_TIMEOUT_S = 5.0
LOOK_S = 0.01


def guard(lines: Iterable[str], directory: str) -> None:
    """Follows `lines` to their end, then kills what is still watched, waits for its end, and removes `directory`."""
    watched: set[int] = set()
    for line in lines:
        verb, number = line.split()
        if verb == "watch":
            watched.add(int(number))
        else:
            watched.discard(int(number))
    for pid in watched:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # One that still writes would make the directory again.
    deadline = time.monotonic() + END_TIMEOUT_S
    while any(map(_exists, watched)) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    shutil.rmtree(directory, ignore_errors=True)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    guard(sys.stdin, sys.argv[1])
