"""Declares `demo`."""

import sys
from pathlib import Path

import click

from workers.cli.options import Command
from workers.lifecycle import installed_shutdown


@click.command(cls=Command)
@click.option("--quick", is_flag=True, help="Fewer messages: on an idle machine under 25 s instead of under 60.")
@click.option("--plain", is_flag=True, help="Lines instead of a live table, as where there is no terminal.")
@click.option("--svg", metavar="FILE", help="Draw the table with a broker down, and the account, into this file.")
def demo(quick: bool, plain: bool, svg: str | None) -> None:
    """See it work: three brokers, a producer, four consumers on three partitions, and a broker that is killed."""
    from workers.local.demo import run

    shutdown = installed_shutdown(10)
    live = not plain and sys.stdout.isatty()
    picture = None if svg is None else Path(svg)
    raise SystemExit(run(quick=quick, live=live, picture=picture, shutdown=shutdown, say=_say))


def _say(line: str) -> None:
    click.echo(line, err=True)
