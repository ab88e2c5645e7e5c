"""The parameters of the command that runs, with the places that they came from."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from workers import config as configuration
from workers.cli.options import CONNECTION, SECRETS
from workers.config import ClientConfig, Default, Precedence, Setting
from workers.errors import ExitCode
from workers.lifecycle import set_up_logging

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from workers.monitoring.server import Check, Server


class Context:
    """The parameters of the command that runs, with the places they came from."""

    def __init__(self) -> None:
        self._click = click.get_current_context()
        self.values: dict[str, Any] = self._click.params

    def given(self, name: str) -> bool:
        return self._source(name) in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)

    def precedence(self, name: str) -> Precedence:
        match self._source(name):
            case ParameterSource.COMMANDLINE:
                return Precedence.COMMAND_LINE
            case ParameterSource.ENVIRONMENT:
                return Precedence.ENVIRONMENT
        return Precedence.DEFAULT

    def origin(self, name: str) -> str:
        """Where the user finds the value: the option, the variable, or that it is a default."""
        parameter = next(each for each in self._click.command.params if each.name == name)
        match self._source(name):
            case ParameterSource.COMMANDLINE:
                return max(parameter.opts, key=len)
            case ParameterSource.ENVIRONMENT:
                return f"variable {parameter.envvar}"
        return "default"

    def _source(self, name: str) -> ParameterSource | None:
        return self._click.get_parameter_source(name)

    def client_config(self, defaults: Sequence[Default], extra: Sequence[Setting] = ()) -> ClientConfig:
        """The librdkafka configuration that the options, the environment and the properties file make."""
        settings = list(extra)
        path: Path | None = self.values["properties_file"]
        if path is not None:
            settings += configuration.read_properties_file(path)
        for text in self.values["properties"]:
            settings.append(
                configuration.parse_property(text, self.precedence("properties"), self.origin("properties"))
            )
        for name, key in CONNECTION.items():
            if self.values[name] is not None:
                settings.append(Setting(key, str(self.values[name]).strip(), self.precedence(name), self.origin(name)))
        for name, variable, key in SECRETS:
            path = self.values[name]
            if path is not None:
                settings.append(
                    Setting(key, configuration.read_secret(path), self.precedence(name), f"{self.origin(name)} {path}")
                )
            elif variable in os.environ:
                settings.append(Setting(key, os.environ[variable], Precedence.ENVIRONMENT, f"variable {variable}"))
        return ClientConfig(defaults, settings)

    def show_config(self, config: ClientConfig) -> None:
        """With --show-config: prints it and ends the command."""
        if not self.values["show_config"]:
            return
        connection = {*CONNECTION, "properties", "properties_file", "show_config", *(name for name, _, _ in SECRETS)}
        rows = [
            (max(parameter.opts, key=len), str(self.values[parameter.name]), self.origin(parameter.name))
            for parameter in self._click.command.params
            if parameter.name in self.values and parameter.name not in connection
        ]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        lines = [f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}" for name, value, origin in rows]
        click.echo("\n".join(["# options", *lines, "", "# librdkafka properties", config.show()]))
        raise SystemExit(ExitCode.OK)

    def set_up_logging(self) -> None:
        set_up_logging(self.values["log_format"], self.values["log_level"])

    @contextmanager
    def serve(self, collector: "Collector", ready: "Check", live: "Check") -> Iterator["Server | None"]:
        """The metrics port, while the worker runs."""
        from prometheus_client import CollectorRegistry, ProcessCollector

        from workers.monitoring.server import Server

        if self.values["no_metrics"]:
            yield None
            return
        registry = CollectorRegistry()
        registry.register(collector)
        ProcessCollector(registry=registry)
        with Server(registry, ready, live) as server:
            # Two workers on one laptop must not need an option; a port that was asked for must be that port.
            host, port = self.values["metrics_host"], self.values["metrics_port"]
            bound = server.start(host, port, any_port_if_taken=not self.given("metrics_port"))
            logging.getLogger("workers").info("metrics on port %d: /metrics, /livez, /readyz", bound)
            yield server
