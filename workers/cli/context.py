"""Where the options of the command that runs came from, and what every command makes of them."""

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

import click
from click.core import ParameterSource

from workers import config as configuration
from workers.cli.options import CONNECTION, SECRETS
from workers.cli.parameters import ConnectionOptions, MetricsOptions, RegistryOptions
from workers.columns import aligned
from workers.config import ClientConfig, Default, Precedence, Setting
from workers.errors import ConfigError, ExitCode
from workers.kafka.authentication import complete, plaintext_warning
from workers.lifecycle import set_up_logging
from workers.schemas import config as schemas

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from workers.monitoring.server import Check, Server

log = logging.getLogger("workers")
PREFIX = "KAFKA_"
# Variables that are read without being an option.
SECRET_VARIABLES = {variable for _, variable, _ in SECRETS} | {schemas.PASSWORD_VARIABLE}
# How similar a mistyped name is, from 0 to 1: KAFKA_TOPICS is meant for KAFKA_TOPIC, KAFKA_OPTS for nothing here.
SIMILAR = 0.8


def show(text: str) -> None:
    """Print a result, on standard error where nobody reads standard output any more: the exit code is still to come."""
    try:
        click.echo(text)
    except BrokenPipeError:
        click.echo(text, err=True)


def terminal_columns() -> int | None:
    """The columns of the terminal; None where the output goes elsewhere, and nothing is to be folded or cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def mistyped_variables(context: click.Context, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Variables that no command reads, each with the one of this command that is nearly named so.

    Others are left alone: an environment may have many KAFKA_... of other programs.
    """
    own = _variables(context.command)
    unknown = {name for name in environment if name.startswith(PREFIX)} - own
    if not unknown:
        return []
    from difflib import get_close_matches

    meant = {name.removeprefix(PREFIX): name for name in own - environment.keys()}
    near = {name: get_close_matches(name.removeprefix(PREFIX), meant, 1, SIMILAR) for name in unknown}
    if any(near.values()):
        for command in _all_commands(context.find_root().command):
            unknown -= _variables(command)
    return [(name, meant[near[name][0]]) for name in sorted(unknown) if near[name]]


def _variables(command: click.Command) -> set[str]:
    return {str(each.envvar) for each in command.params if each.envvar} | SECRET_VARIABLES


def _all_commands(command: click.Command) -> Iterator[click.Command]:
    """Imports the declarations of all of them."""
    yield command
    if isinstance(command, click.Group):
        for each in command.commands.values():
            yield from _all_commands(each)


class Context:
    """The command that runs: the origin of its options, its connection, its logs and its metrics port."""

    def __init__(self, connection: ConnectionOptions) -> None:
        self._click = click.get_current_context()
        self._connection = connection
        self._warning: str | None = None

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
        parameter = self._parameter(name)
        match self._source(name):
            case ParameterSource.COMMANDLINE:
                return max(parameter.opts, key=len)
            case ParameterSource.ENVIRONMENT:
                return f"variable {parameter.envvar}"
        return "default"

    def setting(self, key: str, name: str, value: str) -> Setting:
        """The librdkafka property `key` with the value that the option `name` makes of it."""
        return Setting(key, value, self.precedence(name), self.origin(name))

    def _source(self, name: str) -> ParameterSource | None:
        self._parameter(name)
        return self._click.get_parameter_source(name)

    def _parameter(self, name: str) -> click.Parameter:
        """Raises KeyError for a name that no option has: click would say that its value is a default."""
        return {each.name: each for each in self._click.command.params}[name]

    def client_config(self, defaults: Sequence[Default], extra: Sequence[Setting] = ()) -> ClientConfig:
        """The librdkafka configuration that the options, the environment and the properties file make."""
        settings = list(extra)
        if self._connection.properties_file is not None:
            settings += configuration.read_properties_file(self._connection.properties_file)
        for text in self._connection.properties:
            settings.append(
                configuration.parse_property(text, self.precedence("properties"), self.origin("properties"))
            )
        for name, key in CONNECTION.items():
            value: str | None = getattr(self._connection, name)
            if value is not None:
                settings.append(self.setting(key, name, value.strip()))
        for name, variable, key in SECRETS:
            path: Path | None = getattr(self._connection, name)
            if path is not None:
                secret = configuration.read_secret(path, self.origin(name), variable)
                settings.append(Setting(key, secret, self.precedence(name), f"{self.origin(name)} {path}", path))
            elif variable in os.environ:
                settings.append(Setting(key, os.environ[variable], Precedence.ENVIRONMENT, f"variable {variable}"))
        config = ClientConfig(defaults, settings)
        following = complete(config)
        self._warning = plaintext_warning(config)
        return ClientConfig(defaults, [*settings, *following]) if following else config

    def registry_config(self, options: RegistryOptions) -> ClientConfig:
        """The properties of the schema registry's client that the options, the environment and the file make."""
        settings = []
        if options.schema_registry_properties_file is not None:
            file = options.schema_registry_properties_file
            settings += configuration.read_properties_file(file, schemas.parse_property)
        name = "schema_registry_properties"
        for text in options.schema_registry_properties:
            settings.append(schemas.parse_property(text, self.precedence(name), self.origin(name)))
        if options.schema_registry_url:
            name = "schema_registry_url"
            settings.append(schemas.url_setting(options.schema_registry_url, self.precedence(name), self.origin(name)))
        if options.schema_registry_ca_location:
            name = "schema_registry_ca_location"
            settings.append(self.setting("ssl.ca.location", name, options.schema_registry_ca_location))
        if options.schema_registry_username:
            name = "schema_registry_username"
            user, path = options.schema_registry_username, options.schema_registry_password_file
            settings.append(schemas.user_info_setting(user, path, self.origin(name), self.precedence(name)))
        return schemas.registry_config(settings)

    def show_config(self, config: ClientConfig, registry: ClientConfig | None = None) -> None:
        """With --show-config: prints it and ends the command."""
        if not self._connection.show_config:
            return
        connection = {*CONNECTION, "properties", "properties_file", "show_config", *(name for name, _, _ in SECRETS)}
        connection |= get_type_hints(RegistryOptions).keys()
        rows = [
            (max(parameter.opts, key=len), str(self._click.params[parameter.name]), self.origin(parameter.name))
            for parameter in self._click.command.params
            if parameter.name in self._click.params and parameter.name not in connection
        ]
        click.echo("\n".join(["# options", aligned(rows), "", "# librdkafka properties", config.show()]))
        if registry is not None and "url" in registry.settings:
            click.echo(f"\n# properties of the schema registry's client\n{registry.show()}")
        raise SystemExit(ExitCode.OK)

    def set_up_logging(self) -> None:
        """Logs as the options say, and warns of variables that are nearly ours, and of a secret that is sent readable.

        A command does this once, when it knows its configuration.
        """
        set_up_logging(self._connection.log_format, self._connection.log_level)
        if self._warning is not None:
            log.warning("%s", self._warning)
        for name, meant in mistyped_variables(self._click, os.environ):
            log.warning("variable %s is no option's and changes nothing; did you mean %s?", name, meant)

    @contextmanager
    def serve(
        self, options: MetricsOptions | None, collector: "Collector", ready: "Check", live: "Check"
    ) -> Iterator["Server | None"]:
        """The metrics port, while the command runs; none without `options`.

        Metrics that the user's code makes are served too. Raises ConfigError where one has the name of ours.
        """
        from prometheus_client import REGISTRY

        from workers.monitoring.server import Server

        if options is None:
            yield None
            return
        try:
            REGISTRY.register(collector)
        except ValueError as error:
            raise ConfigError(f"a metric of yours has the name of one of ours; rename it: {error}") from None
        try:
            with Server(REGISTRY, ready, live) as server:
                # Two workers on one laptop must not need an option; a port that was asked for must be that port.
                any_port = not self.given("metrics_port")
                bound = server.start(options.metrics_host, options.metrics_port, any_port_if_taken=any_port)
                log.info("metrics on port %d: /metrics, /livez, /readyz", bound)
                yield server
        finally:
            REGISTRY.unregister(collector)
