"""`offsets reset`: moves the committed offsets of a group."""

import json
from collections.abc import Iterable

import click

from workers.cli.admin import connected_admin
from workers.cli.commands.offsets import ResetOffsetsOptions
from workers.cli.context import Context
from workers.columns import aligned, or_dash
from workers.errors import WorkerError
from workers.kafka import group_offsets
from workers.kafka.group_offsets import Move
from workers.lifecycle import Shutdown, Stopped


def reset_offsets(options: ResetOffsetsOptions, context: Context, shutdown: Shutdown) -> None:
    """Shows what moving the offsets would skip and repeat, and with --yes moves them.

    Raises WorkerError when a stop came before that.
    """
    try:
        with shutdown.at_once():
            admin = connected_admin(context, options.topics, shutdown, options.connection.look_timeout)
            moves = group_offsets.plan(admin, options.group_id, options.topics, options.partitions, options.to)
    except Stopped:
        raise WorkerError("stopped before the offsets were read; nothing was changed") from None
    if options.yes:
        group_offsets.commit(admin, options.group_id, moves)
    skipped, repeated = sum(each.skipped for each in moves), sum(each.repeated for each in moves)
    if options.as_json:
        click.echo(
            json.dumps(
                {
                    "group": options.group_id,
                    "changed": options.yes,
                    "skipped": skipped,
                    "repeated": repeated,
                    "partitions": [
                        {
                            "topic": each.topic,
                            "partition": each.partition,
                            "committed": None if each.committed is None else each.committed.offset,
                            "new": each.offset,
                            "skipped": each.skipped,
                            "repeated": each.repeated,
                        }
                        for each in moves
                    ],
                }
            )
        )
        return
    click.echo(as_table(moves))
    if options.yes:
        click.echo(f"group {options.group_id}: offsets changed; {skipped} messages skipped, {repeated} to be repeated")
    else:
        click.echo(
            f"group {options.group_id}: nothing was changed; {skipped} messages would be skipped, {repeated} repeated; "
            "do it with --yes"
        )


def as_table(moves: Iterable[Move]) -> str:
    """The moves as text."""
    rows = [("TOPIC", "PARTITION", "COMMITTED", "NEW", "SKIPPED", "REPEATED")]
    rows += [
        (
            each.topic,
            str(each.partition),
            or_dash(None if each.committed is None else each.committed.offset),
            str(each.offset),
            str(each.skipped),
            str(each.repeated),
        )
        for each in moves
    ]
    return aligned(rows)
