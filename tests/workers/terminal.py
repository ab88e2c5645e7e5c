"""A terminal for commands that draw on one."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping
from contextlib import suppress
from threading import Thread
from typing import Self

from workers.testing.processes import COMMAND, eventually


class Terminal:
    """A command on a terminal of 80 columns and 24 lines. As a context manager it is killed at the end."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.shown = bytearray()
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            env={**environment, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        # The end of a terminal whose program has ended is an error.
        with suppress(OSError):
            while data := os.read(self._ours, 65536):
                self.shown.extend(data)

    def press(self, keys: str, then: str) -> None:
        """Press keys, and wait until `then` is drawn, which the command draws without a change of colour in it."""
        before = len(self.shown)
        os.write(self._ours, keys.encode())
        eventually(lambda: then.encode() in self.shown[before:], f"{then!r} is drawn")

    def sees(self, text: str, times: int = 1) -> None:
        eventually(lambda: self.shown.count(text.encode()) >= times, f"{text!r} is drawn")

    def wait(self) -> int:
        """The exit code; all that was drawn is in `shown`."""
        code = self.process.wait(60)
        self._reader.join()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._ours)
