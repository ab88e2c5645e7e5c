"""A process that is looked at while it runs, and told to stop."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.handlers import RECORD
from bench.measure import TIMEOUT_S, memory_mb, metrics_port, scrape

# Seen by one member: when a message came, its partition, when it was sent; seconds after the epoch.
Notes = list[tuple[float, int, float]]


class Running:
    """A process whose log says where its metrics are and whose handler notes what it sees. It ends with the stack."""

    def __init__(self, stack: ExitStack, command: list[str]) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._log = directory / "log"
        self._notes = directory / "notes.json"
        self.started_at = time.time()
        with self._log.open("w") as log:
            environment = {**os.environ, RECORD: str(self._notes)}
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
        stack.callback(self.kill)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def end(self) -> None:
        """Waits for the process, which must end well."""
        if self.process.wait(TIMEOUT_S) != 0:
            raise AssertionError(self.log[-2000:])

    def notes(self) -> Notes:
        """End the process, and return the notes that it took."""
        self.end()
        notes: Notes = json.loads(self._notes.read_text())
        return notes

    @property
    def record(self) -> list[str]:
        """The lines that a handler has written so far."""
        return self._notes.read_text().splitlines()

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.end()

    def metrics(self) -> str:
        port = metrics_port(self.log)
        return scrape(port) if port else ""

    def sample(self, name: str, label: str = "") -> float:
        """The sum of the samples of a metric that have a label."""
        lines = self.metrics().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name) and label in line)

    def status_mb(self, field: str) -> float:
        """VmRSS or VmHWM, the most it ever had."""
        return memory_mb(Path(f"/proc/{self.process.pid}/status"), field)

    def assigned(self) -> int:
        return int(self.sample("kafka_consumer_assigned_partitions"))

    def wait_for(self, condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"no {what}: {self.log[-2000:]}")
            time.sleep(0.1)
