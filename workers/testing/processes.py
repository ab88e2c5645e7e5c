"""Runs `kafka-workers` as a user does: as a process, looked at from outside.

Everything that waits raises AssertionError, with what the process said, when it waits in vain.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

# pytest shows no frames of this module: a fault is the handler's, and stands in the error's message.
__tracebackhide__ = True

COMMAND = [sys.executable, "-m", "workers"]
LISTENING = "metrics on port "
# Nothing waits so long on a quiet machine; on a busy one it is no reason to fail.
DEADLINE_S = 120.0

# The labels and the value of each sample, by the name of its metric.
Samples: TypeAlias = dict[str, list[tuple[dict[str, str], float]]]


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """The first true value of `condition`; fails the test, naming `what`, when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)


class Process:
    """One running command. Its HTTP port is waited for `http_timeout_s`: on a busy machine it does not always answer in
    milliseconds.
    """

    http_timeout_s = 30.0

    def __init__(
        self, arguments: list[str], environment: Mapping[str, str], stdin: Any, directory: Path, name: str
    ) -> None:
        self.name = name
        self.out = directory / f"{name}.out"
        self.err = directory / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.popen = subprocess.Popen(
                [*COMMAND, *arguments], env=environment, stdin=stdin, stdout=out, stderr=err, start_new_session=True
            )

    @property
    def stdout(self) -> str:
        return self.out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.err.read_text(errors="replace")

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout_s:g} s:\n{self.stderr[-3000:]}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = DEADLINE_S) -> int:
        self.popen.send_signal(number)
        return self.wait(timeout_s)

    @property
    def peak_rss_mib(self) -> float:
        """The most memory that it has had so far."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def kill(self) -> None:
        if self.running:
            self.popen.kill()
        self.popen.wait()

    def says(self, text: str, timeout_s: float = DEADLINE_S) -> None:
        """Waits until `text` is on standard error."""
        eventually(lambda: text in self.stderr or not self.running, f"{self.name} says {text!r}", timeout_s)
        assert text in self.stderr, f"{self.name} ended without saying {text!r}:\n{self.stderr[-3000:]}"

    @property
    def listens(self) -> bool:
        """Whether it has opened its metrics port."""
        return LISTENING in self.stderr

    @property
    def port(self) -> int:
        """The metrics port, which it logs when it listens."""
        self.says(LISTENING)
        return int(self.stderr.split(LISTENING)[1].split(":")[0])

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of its HTTP answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=self.http_timeout_s) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metrics(self) -> Samples:
        """Its samples by name."""
        samples: Samples = {}
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        return samples

    def metric(self, name: str, **labels: str) -> float | None:
        """The sum of the samples of `name` that have `labels`, None where there is none."""
        values = [value for found, value in self.metrics().get(name, []) if labels.items() <= found.items()]
        return sum(values) if values else None


class Processes:
    """Starts commands against one cluster, with their files in one directory."""

    def __init__(self, bootstrap_servers: str, directory: Path) -> None:
        self._bootstrap_servers = bootstrap_servers
        self.directory = directory
        self._started: list[Process] = []

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
        return {
            **clean,
            "KAFKA_BOOTSTRAP_SERVERS": self._bootstrap_servers,
            "KAFKA_METRICS_PORT": "0",
            "KAFKA_LOG_FORMAT": "text",
            "PYTHONPATH": str(self.directory),
            **(extra or {}),
        }

    def start(self, *arguments: str, env: Mapping[str, str] | None = None, stdin: Any = subprocess.DEVNULL) -> Process:
        name = f"{len(self._started)}-{arguments[0]}"
        process = Process(list(arguments), self.environment(env), stdin, self.directory, name)
        self._started.append(process)
        return process

    def run(
        self, *arguments: str, env: Mapping[str, str] | None = None, stdin: bytes = b"", timeout_s: float = DEADLINE_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        result = subprocess.run(
            [*COMMAND, *arguments], env=self.environment(env), input=stdin, capture_output=True, timeout=timeout_s
        )
        out, err = (stream.decode(errors="replace") for stream in (result.stdout, result.stderr))
        return subprocess.CompletedProcess(result.args, result.returncode, out, err)

    def produce(self, topic: str, *arguments: str, **options: Any) -> dict[str, Any]:
        """Runs a producer that must succeed, and returns its account."""
        result = self.run("produce", "--topic", topic, "--summary", "json", *arguments, **options)
        assert result.returncode == 0, result.stderr
        account: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return account

    def lag(self, group: str, *arguments: str) -> int:
        """The lag of a group in messages, which must be known. Brokers of a busy machine are asked again."""
        for _ in range(3):
            result = self.run("lag", "--group-id", group, "--json", *arguments)
            if "was not answered within" not in result.stderr:
                break
        assert result.returncode == 0, result.stderr
        lag: int = json.loads(result.stdout)["lag"]
        return lag

    def consume(self, topic: str, group: str, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        """Starts a member of a group that reads a topic from its beginning."""
        return self.start("consume", "--topic", topic, "--group-id", group, "--from-beginning", *arguments, env=env)

    def write(self, name: str, text: str) -> Path:
        """A file that processes find: a module is importable, as their PYTHONPATH has the directory."""
        path = self.directory / name
        path.write_text(text)
        return path

    def kill_all(self) -> None:
        for process in self._started:
            process.kill()
