"""Declares `lag`."""

from dataclasses import dataclass
from typing import Any

import click

from workers.cli.context import Context
from workers.cli.options import GROUP, POSITIVE_NUMBER, TOPIC, Command, Whole, connection_options, option
from workers.cli.parameters import ConnectionOptions, build
from workers.lifecycle import installed_shutdown


@dataclass(frozen=True, slots=True, kw_only=True)
class LagOptions:
    connection: ConnectionOptions
    group_id: str
    topics: tuple[str, ...]
    watch: bool
    interval: float
    as_json: bool
    max_lag: int | None


@click.command(cls=Command)
@option("--group-id", type=GROUP, default="kafka-workers", show_default=True, help="Consumer group.")
@option(
    "--topic", "topics", type=TOPIC, multiple=True, help="Only this topic; repeatable.  [default: all of the group]"
)
@option("--watch", is_flag=True, help="Show it again every --interval seconds until stopped.")
@option("--interval", type=POSITIVE_NUMBER, default=2.0, show_default=True, help="Seconds between two rounds.")
@option("--json", "as_json", is_flag=True, help="One JSON document for each round.")
@option("--max-lag", type=Whole(min=0), help="Exit 1 when the group's lag is higher, in messages.")
@connection_options
def lag(**parameters: Any) -> None:
    """Show a consumer group as the brokers see it: members, their partitions, lag, idle members."""
    options = build(LagOptions, parameters)
    shutdown = installed_shutdown(0)
    from workers.cli.lag import lag as run

    run(options, Context(options.connection), shutdown)
