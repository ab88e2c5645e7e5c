"""Debian's Prometheus, which scrapes workers on loopback, evaluates the chart's alerts, and answers queries."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Any, Self

import click

from workers.local.cluster import free_ports
from workers.testing.processes import eventually


@dataclass(frozen=True, slots=True)
class Target:
    """A process with metrics on a port of loopback, and the labels that its series have beside `instance`."""

    instance: str
    port: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Series:
    """Labels, and the values at times in seconds since 1970."""

    labels: dict[str, str]
    times: list[float]
    values: list[float]


class Prometheus:
    """Runs while the context is open. Raises RuntimeError with Prometheus' own words when it refuses a query."""

    def __init__(
        self, directory: Path, targets: Iterable[Target], *, interval_s: int = 1, rules: Mapping[str, Any] | None = None
    ) -> None:
        program = which("prometheus")
        if program is None:
            raise click.ClickException("there is no prometheus on PATH; install the Debian package prometheus")
        scraped = [
            {
                "job_name": each.instance,
                "static_configs": [{"targets": [f"127.0.0.1:{each.port}"], "labels": dict(each.labels)}],
                "relabel_configs": [{"target_label": "instance", "replacement": each.instance}],
            }
            for each in targets
        ]
        every = {"scrape_interval": f"{interval_s}s", "evaluation_interval": f"{interval_s}s"}
        # YAML has all of JSON.
        (directory / "rules.yml").write_text(json.dumps(rules or {"groups": []}))
        config = directory / "prometheus.yml"
        config.write_text(json.dumps({"global": every, "rule_files": ["rules.yml"], "scrape_configs": scraped}))
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        self._log = directory / "prometheus.log"
        self._command = [
            program, f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]  # fmt: skip

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        eventually(self._ready, "Prometheus is ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def range(self, expression: str, begun_at: float, ended_at: float, step_s: float) -> list[Series]:
        """The values of an expression between two times, in seconds since 1970."""
        asked = {"query": expression, "start": begun_at, "end": ended_at, "step": step_s}
        try:
            with urllib.request.urlopen(
                f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(asked)}", timeout=30
            ) as answer:
                found = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(f"Prometheus refused {expression}: {error.read().decode()}") from None
        return [_series(each) for each in found]


def _series(result: dict[str, Any]) -> Series:
    points = [(float(at), float(value)) for at, value in result["values"]]
    return Series(result["metric"], [at for at, _ in points], [value for _, value in points])
