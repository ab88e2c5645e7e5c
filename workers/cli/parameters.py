"""Options as typed objects, so that mypy checks each use and a misspelt name is an error: those that commands share.

A field has the name of click's parameter. The options of one command are beside its declaration in `commands/`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from workers.errors import ConfigError

# Workers wait for brokers for ever; a look that nobody answers shall end, as in a script.
LOOK_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """How to reach the brokers; every command that does has these."""

    bootstrap_servers: str
    security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] | None
    sasl_mechanism: str | None
    sasl_username: str | None
    sasl_password_file: Path | None
    oauth_token_url: str | None
    oauth_client_id: str | None
    oauth_client_secret_file: Path | None
    oauth_scope: str | None
    oauth_extensions: str | None
    oauth_ca_location: str | None
    aws_region: str | None
    ssl_ca_location: str | None
    ssl_certificate_location: str | None
    ssl_key_location: str | None
    ssl_key_password_file: Path | None
    client_id: str
    properties: tuple[str, ...]
    properties_file: Path | None
    timeout: float | None
    show_config: bool
    log_format: Literal["text", "json"] | None
    log_level: Literal["debug", "info", "warning", "error"]

    @property
    def look_timeout(self) -> float:
        """`timeout` in seconds, for a command that looks at something and ends."""
        return LOOK_TIMEOUT_S if self.timeout is None else self.timeout


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsOptions:
    """Where a command that keeps running serves its metrics and probes."""

    metrics_port: int
    metrics_host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """The options that both `produce` and `consume` have."""

    no_metrics: bool
    auth_timeout: float
    shutdown_timeout: float
    summary: Literal["text", "json"]
    tracing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """How to reach a schema registry."""

    schema_registry_url: str | None
    schema_registry_username: str | None
    schema_registry_password_file: Path | None
    schema_registry_ca_location: str | None
    schema_registry_properties: tuple[str, ...]
    schema_registry_properties_file: Path | None


Format = Literal["json", "avro", "protobuf", "json-schema"]

_Options = TypeVar("_Options")


def build(kind: type[_Options], parameters: Mapping[str, Any]) -> _Options:
    """Make options of `kind`, and the parts in it, from click's parameters; raises KeyError for one that is missing."""
    values = {
        name: build(hint, parameters) if isinstance(hint, type) and is_dataclass(hint) else parameters[name]
        for name, hint in get_type_hints(kind).items()
    }
    return kind(**values)


def check_dead_letter_topic(origin: str, name: str | None, topics: Sequence[str]) -> None:
    if name is not None and name in topics:
        raise ConfigError(
            f"{origin}: dead letters need a topic of their own, and {name} has the messages too; name another"
        )
