"""The commands on a group's committed offsets: `offsets show` and `reset`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from workers.cli.context import Context
from workers.cli.options import GROUP, OFFSET_TARGET, TOPIC, Command, Whole, connection_options, option
from workers.cli.parameters import ConnectionOptions, build
from workers.lifecycle import installed_shutdown


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


@click.group()
def offsets() -> None:
    """Show a group's committed offsets, or change them."""


@offsets.command(cls=Command)
@option("--group-id", type=GROUP, default="kafka-workers", show_default=True, help="Consumer group.")
@option(
    "--topic", "topics", type=TOPIC, multiple=True, help="Only this topic; repeatable.  [default: all of the group]"
)
@option("--json", "as_json", is_flag=True, help="One JSON document.")
@connection_options
def show(**parameters: Any) -> None:
    """Show the offsets of a group by partition, and its lag in messages and in seconds.

    FURTHEST is the end of what members have completed beyond the committed offset, with --concurrency.
    """
    options = build(ShowOffsetsOptions, parameters)
    shutdown = installed_shutdown(0)
    from workers.cli.show_offsets import show_offsets as run

    run(options, Context(options.connection), shutdown)


@offsets.command(cls=Command)
@option("--group-id", type=GROUP, required=True, help="Consumer group; it must have no members.")
@option(
    "--topic", "topics", type=TOPIC, multiple=True, help="Only this topic; repeatable.  [default: all of the group]"
)
@option("--partition", "partitions", type=Whole(min=0), multiple=True, help="Only this one; repeatable.")
@option("--to", type=OFFSET_TARGET, required=True, help="Where the group begins: a time as 2026-11-24T12:00:00Z.")
@option("--yes", is_flag=True, help="Change the offsets.  [default: show how many messages that skips and repeats]")
@option("--json", "as_json", is_flag=True, help="One JSON document.")
@connection_options
def reset(**parameters: Any) -> None:
    """Move a group without members: show how many messages that skips and repeats, and with --yes do it."""
    options = build(ResetOffsetsOptions, parameters)
    shutdown = installed_shutdown(0)
    from workers.cli.reset_offsets import reset_offsets as run

    run(options, Context(options.connection), shutdown)
