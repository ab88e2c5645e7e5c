"""Declares `consume`."""

from dataclasses import dataclass
from typing import Any, Literal

import click

from workers.cli.context import Context
from workers.cli.options import (
    FUNCTION,
    GROUP,
    POSITIVE,
    POSITIVE_NUMBER,
    TOPIC,
    Command,
    Whole,
    connection_options,
    each_once,
    format_option,
    option,
    registry_options,
    worker_options,
)
from workers.cli.parameters import ConnectionOptions, Format, MetricsOptions, RegistryOptions, WorkerOptions, build
from workers.lifecycle import installed_shutdown


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


@click.command(cls=Command)
@option(
    "--topic",
    "topics",
    type=TOPIC,
    multiple=True,
    callback=each_once,
    default=["teste"],
    show_default=True,
    help="Topic to read; repeatable.",
)
@option("--group-id", type=GROUP, default="kafka-workers", show_default=True, help="Consumer group to join.")
@option(
    "--group-protocol",
    type=click.Choice(["classic", "consumer"]),
    default="classic",
    show_default=True,
    help="Rebalance protocol; consumer is KIP-848, for brokers from 4.0 on.",
)
@option("--client-rack", help="Rack, or zone, of this consumer: it reads from the replica there instead of the leader.")
@option(
    "--format",
    "format_name",
    type=click.Choice(["text", "json", "value"]),
    default="text",
    show_default=True,
    help="How messages are printed.",
)
@option("--handler", type=FUNCTION, metavar="MODULE:NAME", help="Call this with each message, instead of printing.")
@option(
    "--middleware",
    "middlewares",
    type=FUNCTION,
    multiple=True,
    metavar="MODULE:NAME",
    help="Wrap the handler in this; repeatable, the first is the outermost.",
)
@format_option("--key-format", "Format of keys, which the handler gets as objects")
@format_option("--value-format", "Format of values, which the handler gets as objects")
@format_option("--output-key-format", "Format of the keys of the handler's outputs")
@format_option("--output-value-format", "Format of the values of the handler's outputs")
@registry_options
@option(
    "--on-error",
    type=click.Choice(["retry", "dead-letter", "stop"]),
    default="dead-letter",
    show_default=True,
    help="When the handler raises: retry for ever, or after --max-attempts write a dead letter or stop.",
)
@option("--max-attempts", type=POSITIVE, default=5, show_default=True, help="Calls of the handler for one message.")
@option(
    "--retry-backoff",
    type=POSITIVE_NUMBER,
    default=0.1,
    show_default=True,
    help="Seconds before the second call; then doubled.",
)
@option(
    "--retry-backoff-max", type=POSITIVE_NUMBER, default=30.0, show_default=True, help="Most seconds between calls."
)
@option(
    "--dead-letter-topic",
    type=TOPIC,
    help="Topic for messages that the handler fails to handle.  [default: TOPIC.dlq]",
)
@option(
    "--from-beginning/--from-end",
    default=True,
    show_default=True,
    help="Without a committed offset: begin at the oldest message, or at the next one.",
)
@option("--max-messages", type=POSITIVE, help="Stop after this many messages.")
@option("--max-rate", type=POSITIVE_NUMBER, help="Most messages a second that the handler gets.  [default: no limit]")
@option(
    "--max-dead-letter-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="When a larger share of the last minute's messages fails, retry them and write no dead letters: a dependency "
    "of the handler may be unavailable.  [default: no limit]",
)
@option("--idle-timeout", type=POSITIVE_NUMBER, help="Stop when no message was received for this many seconds.")
@option(
    "--stall-timeout",
    type=POSITIVE_NUMBER,
    default=300.0,
    show_default=True,
    help="Seconds without progress after which /livez fails.",
)
@option(
    "--concurrency",
    type=Whole(1, 1000),
    default=1,
    show_default=True,
    help="Calls of the handler at once: threads, or for an async handler calls in its event loop.",
)
@option(
    "--order",
    type=click.Choice(["partition", "key", "none"]),
    help="Handle messages of a partition, or of a key, one after the other; none: in any order.  "
    "[default: partition; key when --concurrency is above 1]",
)
@option(
    "--batch-size",
    type=Whole(1, 2000),
    default=2000,
    show_default=True,
    help="Most messages in a batch; a slow handler gets fewer.",
)
@option(
    "--max-offset-distance",
    type=Whole(min=100),
    default=10_000,
    show_default=True,
    help="Most messages of a partition that are received from the first one on that is not done.",
)
@option(
    "--on-deleted",
    type=click.Choice(["continue", "stop"]),
    default="continue",
    show_default=True,
    help="When retention has deleted messages before they were handled: count them and go on, or stop.",
)
@option(
    "--exactly-once",
    is_flag=True,
    help="Write outputs, dead letters and offsets in one Kafka transaction; see docs/exactly-once.md.",
)
@option(
    "--transactional-id",
    help="With --exactly-once: a name that only this process has, and keeps over restarts.  [default: a new one]",
)
@option(
    "--commit-interval",
    type=click.FloatRange(0.01, 5),
    help="With --exactly-once: seconds between the commits of transactions.  [default: 0.1]",
)
@worker_options
@connection_options
def consume(**parameters: Any) -> None:
    """Read topics as a member of a group, at least once; print each message, or call a handler with it."""
    options = build(ConsumeOptions, parameters)
    shutdown = installed_shutdown(options.worker.shutdown_timeout)
    from workers.cli.consume import consume as run

    run(options, Context(options.connection), shutdown)
