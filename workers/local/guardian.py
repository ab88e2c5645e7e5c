"""Ends the brokers of an embedded cluster, and removes their data, when the process that started them is gone.

A separate process, because one that was killed cannot clean up. Its standard input is a pipe from the owner: lines
`watch PID` and `forget PID`, and the end of the pipe when the owner ends in any way.
"""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterable


def guard(lines: Iterable[str], directory: str) -> None:
    """Follows `lines` to their end, then kills what is still watched and removes `directory`."""
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
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    guard(sys.stdin, sys.argv[1])
