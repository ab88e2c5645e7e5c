"""Declares `verify`."""

from dataclasses import dataclass
from typing import Any

import click

from workers.cli.context import Context
from workers.cli.options import TOPIC, Command, connection_options, option
from workers.cli.parameters import ConnectionOptions, build
from workers.lifecycle import installed_shutdown


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    connection: ConnectionOptions
    topic: str
    account: str | None
    runs: tuple[str, ...]
    as_json: bool


@click.command(cls=Command)
@option("--topic", type=TOPIC, default="teste", show_default=True, help="Topic to read.")
@option(
    "--account",
    metavar="FILE|-",
    help="Output of `produce --summary json`: distinguishes lost messages from failed and unknown ones.",
)
@option("--run", "runs", multiple=True, help="Only this run; repeatable.")
@option("--json", "as_json", is_flag=True, help="One JSON document for each run.")
@connection_options
def verify(**parameters: Any) -> None:
    """Read a topic to its end and account for the stamped messages in it; exit 3 when one was lost.

    Without --account every gap below the highest sequence counts as lost.
    """
    options = build(VerifyOptions, parameters)
    shutdown = installed_shutdown(0)
    from workers.cli.verify import verify as run

    run(options, Context(options.connection), shutdown)
