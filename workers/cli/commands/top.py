"""Declares `top`."""

import re
from dataclasses import dataclass
from typing import Any

import click

from workers.cli.context import Context
from workers.cli.options import POSITIVE_NUMBER, Command, connection_options, group_selection_options, option
from workers.cli.parameters import ConnectionOptions, build
from workers.lifecycle import installed_shutdown


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


@click.command(cls=Command)
@group_selection_options
@option("--interval", type=POSITIVE_NUMBER, default=2.0, show_default=True, help="Seconds between two rounds.")
@option("--once", is_flag=True, help="Show one round as lines, without rates, which need two.")
@option("--plain", is_flag=True, help="Lines instead of a live table, as where there is no terminal.")
@option("--json", "as_json", is_flag=True, help="One JSON document for each round.")
@connection_options
def top(**parameters: Any) -> None:
    """Watch consumer groups: members, lag, rates and health; a live table on a terminal, lines elsewhere.

    Ctrl-C ends it with exit code 0. Rates are messages a second over the last 10 s: IN is written, OUT is committed.
    """
    options = build(TopOptions, parameters)
    shutdown = installed_shutdown(0)
    from workers.cli.top import top as run

    run(options, Context(options.connection), shutdown)
