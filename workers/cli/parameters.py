"""The options of each command as a typed object: mypy checks each use, and a misspelt name is an error.

A field has the name of click's parameter; the declarations in `main.py` say what each means.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from workers.errors import ConfigError


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProduceOptions:
    connection: ConnectionOptions
    metrics: MetricsOptions
    worker: WorkerOptions
    registry: RegistryOptions
    topic: str
    count: int | None
    rate: float | None
    size: int | None
    duration: float | None
    forever: bool
    input_path: str | None
    key_separator: str | None
    key_field: str | None
    on_invalid: Literal["stop", "dead-letter"]
    dead_letter_topic: str | None
    source: str | None
    key_format: Format | None
    value_format: Format | None
    key_schema_file: Path | None
    value_schema_file: Path | None
    stamp: bool
    run_name: str | None
    producer_index: int | None
    verbose: bool
    linger: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumeOptions:
    connection: ConnectionOptions
    metrics: MetricsOptions
    worker: WorkerOptions
    registry: RegistryOptions
    topics: tuple[str, ...]
    group_id: str
    group_protocol: Literal["classic", "consumer"]
    client_rack: str | None
    format_name: Literal["text", "json", "value"]
    handler: str | None
    middlewares: tuple[str, ...]
    key_format: Format | None
    value_format: Format | None
    output_key_format: Format | None
    output_value_format: Format | None
    on_error: Literal["retry", "dead-letter", "stop"]
    max_attempts: int
    retry_backoff: float
    retry_backoff_max: float
    dead_letter_topic: str | None
    from_beginning: bool
    max_messages: int | None
    max_rate: float | None
    max_dead_letter_share: float | None
    idle_timeout: float | None
    stall_timeout: float
    concurrency: int
    order: Literal["partition", "key", "none"] | None
    batch_size: int
    max_offset_distance: int
    on_deleted: Literal["continue", "stop"]
    exactly_once: bool
    transactional_id: str | None
    commit_interval: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LagOptions:
    connection: ConnectionOptions
    group_id: str
    topics: tuple[str, ...]
    watch: bool
    interval: float
    as_json: bool
    max_lag: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LagExporterOptions:
    connection: ConnectionOptions
    metrics: MetricsOptions
    group_ids: tuple[str, ...]
    group_filter: re.Pattern[str] | None
    topics: tuple[str, ...]
    topic_filter: re.Pattern[str] | None
    interval: float
    keep: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TopOptions:
    connection: ConnectionOptions
    group_ids: tuple[str, ...]
    group_filter: re.Pattern[str] | None
    topics: tuple[str, ...]
    topic_filter: re.Pattern[str] | None
    interval: float
    once: bool
    plain: bool
    as_json: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryOptions:
    connection: ConnectionOptions
    metrics: MetricsOptions
    no_metrics: bool
    topic: str
    interval: float
    max_latency: float
    lost_after: float
    create: bool
    replication_factor: int
    min_insync_replicas: int
    shutdown_timeout: float
    summary: Literal["text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    connection: ConnectionOptions
    topic: str
    account: str | None
    runs: tuple[str, ...]
    as_json: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowOffsetsOptions:
    connection: ConnectionOptions
    group_id: str
    topics: tuple[str, ...]
    as_json: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetOffsetsOptions:
    connection: ConnectionOptions
    group_id: str
    topics: tuple[str, ...]
    partitions: tuple[int, ...]
    to: str | int | datetime
    yes: bool
    as_json: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterOptions:
    """Which dead letters; every command on them has these."""

    topic: str
    group_id: str
    letters: tuple[tuple[int, int], ...]
    partitions: tuple[int, ...]
    errors: tuple[str, ...]
    keys: tuple[str, ...]
    source_topics: tuple[str, ...]
    source_partitions: tuple[int, ...]
    source_offsets: tuple[int, ...]
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListDeadLettersOptions:
    connection: ConnectionOptions
    dead_letters: DeadLetterOptions
    format_name: Literal["text", "json"]
    state: Literal["waiting", "replayed", "discarded", "all"]
    by: Literal["error", "message", "source-topic", "key"] | None
    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowseDeadLettersOptions:
    connection: ConnectionOptions
    dead_letters: DeadLetterOptions
    state: Literal["waiting", "replayed", "discarded", "all"]
    limit: int
    to_topics: tuple[str, ...]
    shutdown_timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowDeadLettersOptions:
    connection: ConnectionOptions
    dead_letters: DeadLetterOptions
    format_name: Literal["text", "json"]
    state: Literal["waiting", "replayed", "discarded", "all"]
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    connection: ConnectionOptions
    dead_letters: DeadLetterOptions
    format_name: Literal["text", "json"]
    to_topics: tuple[str, ...]
    skip_other_topics: bool
    max_messages: int | None
    again: bool
    dry_run: bool
    shutdown_timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscardOptions:
    connection: ConnectionOptions
    dead_letters: DeadLetterOptions
    format_name: Literal["text", "json"]
    reason: str
    everything: bool
    dry_run: bool
    shutdown_timeout: float


_Options = TypeVar("_Options")
_PARTS = (ConnectionOptions, MetricsOptions, WorkerOptions, RegistryOptions, DeadLetterOptions)


def build(kind: type[_Options], parameters: Mapping[str, Any]) -> _Options:
    """Make options of `kind`, and the parts in it, from click's parameters; raises KeyError for one that is missing."""
    values = {
        name: build(hint, parameters) if hint in _PARTS else parameters[name]
        for name, hint in get_type_hints(kind).items()
    }
    return kind(**values)


def check_dead_letter_topic(name: str | None, topics: Sequence[str]) -> None:
    if name is not None and name in topics:
        raise ConfigError(
            f"--dead-letter-topic {name}: dead letters need a topic of their own, and --topic names it too"
        )
