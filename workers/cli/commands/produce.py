"""Declares `produce`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from workers.accounting.stamps import MAX_PRODUCERS
from workers.cli.context import Context
from workers.cli.options import (
    FUNCTION,
    POSITIVE,
    POSITIVE_NUMBER,
    SECONDS,
    TOPIC,
    Command,
    Whole,
    connection_options,
    format_option,
    option,
    registry_options,
    worker_options,
)
from workers.cli.parameters import ConnectionOptions, Format, MetricsOptions, RegistryOptions, WorkerOptions, build
from workers.lifecycle import installed_shutdown
from workers.producer.generator import DEFAULT_COUNT, DEFAULT_SIZE


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


@click.command(cls=Command)
@option("--topic", type=TOPIC, default="teste", show_default=True, help="Topic to write to.")
@option("--count", type=POSITIVE, help=f"Messages to send.  [default: {DEFAULT_COUNT}, or all of the input]")
@option("--rate", type=POSITIVE_NUMBER, help="Messages per second.  [default: as fast as possible]")
@option("--size", type=Whole(57, 100_000_000), help=f"Bytes of a test message's value.  [default: {DEFAULT_SIZE}]")
@option("--duration", type=POSITIVE_NUMBER, help="Stop after this many seconds.")
@option("--forever", is_flag=True, help="Send until stopped.")
@option("--input", "input_path", metavar="FILE|-", help="Send the lines of a file, or of standard input.")
@option("--key-separator", help="Lines are KEY<separator>VALUE.")
@option("--key-field", help="Lines are JSON objects; this field is the key.")
@option(
    "--on-invalid",
    type=click.Choice(["stop", "dead-letter"]),
    default="stop",
    show_default=True,
    help="When a line is no such JSON, or cannot be encoded: stop, or write it to the dead-letter topic.",
)
@option("--dead-letter-topic", type=TOPIC, help="Topic for invalid lines.  [default: TOPIC.dlq]")
@option("--source", type=FUNCTION, metavar="MODULE:FUNCTION", help="Send what this function yields.")
@format_option("--key-format", "Format of keys, which are JSON in lines")
@format_option("--value-format", "Format of values, which are JSON in lines")
@option("--key-schema-file", type=Path, metavar="FILE", help="Schema of keys.  [default: the latest of TOPIC-key]")
@option(
    "--value-schema-file", type=Path, metavar="FILE", help="Schema of values.  [default: the latest of TOPIC-value]"
)
@registry_options
@option("--stamp", is_flag=True, help="Give messages of --input or --source a stamp in a header, for `verify`.")
@option("--run", "run_name", help="Name of this run in the stamps.  [default: a new one]")
@option(
    "--producer-index",
    type=Whole(0, MAX_PRODUCERS - 1),
    default=None,
    help="Number of this producer in the stamps.  [default: JOB_COMPLETION_INDEX, or 0]",
)
@option("--verbose", is_flag=True, help="Print each delivery on standard output.")
@option(
    "--linger",
    type=SECONDS,
    default=0.0,
    show_default=True,
    help="Stay up at the end until the metrics have been scraped once, at most this many seconds.",
)
@worker_options
@connection_options
def produce(**parameters: Any) -> None:
    """Send messages, and account for every delivery.

    Without --input or --source they are stamped test messages, so that `verify` can tell what became of each.
    """
    options = build(ProduceOptions, parameters)
    shutdown = installed_shutdown(options.worker.shutdown_timeout)
    from workers.cli.produce import produce as run

    run(options, Context(options.connection), shutdown)
