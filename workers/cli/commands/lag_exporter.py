"""Declares `lag-exporter`."""

import re
from dataclasses import dataclass
from typing import Any

import click

from workers.cli.context import Context
from workers.cli.options import (
    POSITIVE_NUMBER,
    Command,
    auth_timeout_option,
    connection_options,
    group_selection_options,
    metrics_options,
    option,
)
from workers.cli.parameters import ConnectionOptions, MetricsOptions, build
from workers.lifecycle import installed_shutdown


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
    auth_timeout: float


@click.command(cls=Command)
@group_selection_options
@option("--interval", type=POSITIVE_NUMBER, default=15.0, show_default=True, help="Seconds between two rounds.")
@option(
    "--keep",
    type=POSITIVE_NUMBER,
    default=300.0,
    show_default=True,
    help="Seconds that the last values stay while a broker does not answer.",
)
@auth_timeout_option
@metrics_options
@connection_options
def lag_exporter(**parameters: Any) -> None:
    """Export the lag of consumer groups from the brokers, in messages and in seconds, also of groups without members.

    Scrapes read the last round, and ask the brokers for nothing.
    """
    options = build(LagExporterOptions, parameters)
    shutdown = installed_shutdown(0)
    from workers.cli.lag_exporter import lag_exporter as run

    run(options, Context(options.connection), shutdown)
