"""Declares `canary`."""

from dataclasses import dataclass
from typing import Any, Literal

import click

from workers.cli.context import Context
from workers.cli.options import (
    POSITIVE_NUMBER,
    TOPIC,
    Command,
    Whole,
    auth_timeout_option,
    connection_options,
    metrics_options,
    no_metrics_option,
    option,
    shutdown_timeout_option,
    summary_option,
)
from workers.cli.parameters import ConnectionOptions, MetricsOptions, build
from workers.lifecycle import installed_shutdown


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
    auth_timeout: float
    shutdown_timeout: float
    summary: Literal["text", "json"]


@click.command(cls=Command)
@option("--topic", type=TOPIC, default="kafka-workers-canary", show_default=True, help="Topic of the canary alone.")
@option(
    "--interval",
    type=POSITIVE_NUMBER,
    default=1.0,
    show_default=True,
    help="Seconds between two messages to a partition.",
)
@option(
    "--max-latency",
    type=POSITIVE_NUMBER,
    default=5.0,
    show_default=True,
    help="Seconds within which a message has to be received; else its partition is unavailable.",
)
@option(
    "--lost-after",
    type=POSITIVE_NUMBER,
    default=15.0,
    show_default=True,
    help="An acknowledged message is lost when it was not received after this many seconds, and a later one was.",
)
@option(
    "--create/--no-create",
    default=True,
    show_default=True,
    help="Create the topic, add a partition for each new broker, and move leaders back; or leave it as it is.",
)
@option(
    "--replication-factor",
    type=Whole(1, 32767),
    default=3,
    show_default=True,
    help="Replicas of each partition of a new topic; no more than there are brokers.",
)
@option(
    "--min-insync-replicas",
    type=Whole(1, 32767),
    default=2,
    show_default=True,
    help="min.insync.replicas of a new topic; lowered where there are fewer brokers than replicas.",
)
@auth_timeout_option
@shutdown_timeout_option
@summary_option
@no_metrics_option
@metrics_options
@connection_options
def canary(**parameters: Any) -> None:
    """Probe the brokers all the time: send a message to each partition of a topic, read it back, export the outcome.

    Counts lost and duplicate messages, and measures latency and availability by broker. Exit code 3 when one was lost.
    """
    options = build(CanaryOptions, parameters)
    shutdown = installed_shutdown(options.shutdown_timeout)
    from workers.cli.canary import canary as run

    run(options, Context(options.connection), shutdown)
