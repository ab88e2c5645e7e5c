"""Runs programs as whole processes, in turns, and keeps what each run took."""

import os
import re
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TypeVar

_Item = TypeVar("_Item")

# No run takes a tenth of this; what takes longer hangs.
TIMEOUT_S = 180.0
SCRAPE_S = 1.0
TICK_S = 0.02


@dataclass(frozen=True, slots=True)
class Run:
    """One process from its start to its end: wall clock, CPU (user and system) and the most memory it had."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Output:
    """Standard output and error of a process, and its metrics; `scrapes` counts the scrapes that were answered."""

    out: str
    err: str
    scrapes: int


@dataclass(frozen=True, slots=True)
class Program:
    """A contender. `command` is asked for each run, as a consumer needs a new group every time. `check` raises
    ProgramError when a run did not do its work; `silent` throws standard output away.
    """

    name: str
    command: Callable[[], Sequence[str]]
    check: Callable[[Output], None] = lambda _: None
    silent: bool = False


class ProgramError(Exception):
    """A program under measurement did not end well, so its time means nothing."""


def run(program: Program) -> Run:
    """Runs a program to its end; raises ProgramError with its last words when it fails, hangs or was checked in vain.

    Where it says on which port its metrics are, they are read once a second, as Prometheus would.
    """
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        out = stack.enter_context(Path(os.devnull if program.silent else home / "out").open("wb"))
        errors = stack.enter_context((home / "err").open("wb"))
        command = list(program.command())
        begin = perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
        watcher = _Watcher(process.pid, home / "err")
        killer = threading.Timer(TIMEOUT_S, process.kill)
        killer.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - begin
        killer.cancel()
        watcher.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
        err = (home / "err").read_text(errors="replace")
        if process.returncode:
            raise ProgramError(f"{program.name} exited {process.returncode}: {err[-2000:]}")
        program.check(
            Output("" if program.silent else (home / "out").read_text(errors="replace"), err, watcher.scrapes)
        )
    return Run(seconds, usage.ru_utime + usage.ru_stime, watcher.peak_mb)


def metrics_port(log: str) -> int | None:
    """Where a worker says that its metrics are."""
    found = re.search(r"metrics on port (\d+)", log)
    return int(found[1]) if found else None


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


class _Watcher:
    """Reads what a process knows only while it runs: its metrics each second, and the most memory that it had.

    The memory that wait4() tells includes that of whoever started the process.
    """

    def __init__(self, pid: int, log: Path) -> None:
        self.scrapes = 0
        self.peak_mb = 0.0
        self._status = Path(f"/proc/{pid}/status")
        self._log = log
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        port, scraped_at = None, float("-inf")
        while not self._ended.wait(TICK_S):
            self.peak_mb = memory_mb(self._status, "VmHWM") or self.peak_mb
            port = port or metrics_port(self._log.read_text(errors="replace"))
            if port and perf_counter() - scraped_at > SCRAPE_S:
                try:
                    scrape(port)
                except OSError:  # it has just ended
                    return
                self.scrapes += 1
                scraped_at = perf_counter()


def memory_mb(status: Path, name: str) -> float:
    """A line of /proc/PID/status, 0 when the process has ended."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """The measurements of one program, one for each round."""

    program: str
    runs: list[Run]

    def values(self, what: str) -> list[float]:
        return [getattr(run, what) for run in self.runs]

    def median(self, what: str) -> float:
        return float(median(self.values(what)))

    def ratios(self, peer: "Sample", what: str) -> list[float]:
        """Round by round: what slows the machine slows both."""
        return ratios(self.values(what), peer.values(what))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def in_turns(programs: Sequence[Program], rounds: int, say: Callable[[str], None]) -> list[Sample]:
    """Runs the programs `rounds` times, one after the other, each round beginning with another one, after a round
    that does not count.
    """
    samples = [Sample(program.name, []) for program in programs]
    pairs = list(zip(programs, samples, strict=True))
    for number in range(rounds + 1):
        for program, sample in rotated(pairs, number):
            result = run(program)
            took = f"{result.seconds:6.2f} s {result.cpu_seconds:6.2f} CPU-s {result.peak_mb:6.0f} MB"
            say(f"  {program.name:<52} {took}")
            if number:
                sample.runs.append(result)
    return samples


def rotated(items: Sequence[_Item], number: int) -> list[_Item]:
    """The items from another one on in every round, so that none has always the same neighbour in time."""
    begin = number % len(items)
    return [*items[begin:], *items[:begin]]
