"""Runs programs as whole processes, in turns, and keeps what each run took."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Run:
    """One process from its start to its end: wall clock, CPU (user and system) and the most memory it had."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Program:
    """A contender. `command` is asked for each run, as a consumer needs a new group every time."""

    name: str
    command: Callable[[], Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)


class ProgramError(Exception):
    """A program under measurement did not end well, so its time means nothing."""


def run(program: Program) -> Run:
    """Runs a program to its end; raises ProgramError with its last words when it exits non-zero."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(
            program.command(),
            env={**environment, **program.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            words = errors.read().decode(errors="replace")[-2000:]
            raise ProgramError(f"{program.name} exited {process.returncode}: {words}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one program took in every round."""

    program: str
    runs: list[Run]

    def median(self, what: str) -> float:
        return float(median(getattr(run, what) for run in self.runs))

    def spread(self, what: str) -> tuple[float, float]:
        values = [getattr(run, what) for run in self.runs]
        return min(values), max(values)

    def ratio(self, peer: "Sample", what: str) -> float:
        """The median of the ratios of runs that were neighbours: what slows the machine slows both."""
        pairs = zip(self.runs, peer.runs, strict=True)
        return float(median(getattr(ours, what) / getattr(theirs, what) for ours, theirs in pairs))


def in_turns(programs: Sequence[Program], rounds: int, say: Callable[[str], None]) -> list[Sample]:
    """Runs the programs `rounds` times, one after the other, each round in the reverse order of the one before, after
    a round that does not count.
    """
    samples = [Sample(program.name, []) for program in programs]
    pairs = list(zip(programs, samples, strict=True))
    for number in range(rounds + 1):
        for program, sample in pairs if number % 2 else reversed(pairs):
            result = run(program)
            took = f"{result.seconds:6.2f} s {result.cpu_seconds:6.2f} CPU-s {result.peak_mb:6.0f} MB"
            say(f"  {program.name:<44} {took}")
            if number:
                sample.runs.append(result)
    return samples
