"""`lag`: shows a consumer group as the brokers see it."""

import json
import sys
import time
from collections.abc import Sequence

import click

from workers.cli.admin import connected_admin
from workers.cli.commands.lag import LagOptions
from workers.cli.context import Context
from workers.errors import WorkerError
from workers.kafka import groups
from workers.lifecycle import Shutdown, Stopped


def lag(options: LagOptions, context: Context, shutdown: Shutdown) -> None:
    """Shows a group; raises WorkerError when it is further behind than allowed, or when a stop came before it."""
    group = None
    try:
        with shutdown.at_once():
            admin = connected_admin(context, options.topics, shutdown, options.connection.look_timeout)
            while group is None or options.watch:
                group = groups.describe(admin, options.group_id, list(options.topics))
                _show(group, options)
                until = time.monotonic() + options.interval
                while options.watch and time.monotonic() < until:
                    # Also serves the statistics, which would pile up.
                    admin.poll(0.1)
    except Stopped:
        if group is None:
            raise WorkerError("stopped before the group was shown") from None
    if options.max_lag is not None:
        _check_lag(group, options.max_lag, options.topics)


def _show(group: groups.Group, options: LagOptions) -> None:
    if options.as_json:
        click.echo(json.dumps(groups.as_document(group)))
        return
    if options.watch and sys.stdout.isatty():
        click.clear()
    click.echo(groups.as_table(group))


def _check_lag(group: groups.Group, max_lag: int, topics: Sequence[str]) -> None:
    """Raises WorkerError when the group is further behind than `max_lag`, or when that is not known."""
    if not group.partitions:
        raise WorkerError(f"group {group.group_id} has no partition of {', '.join(topics) or 'any topic'}")
    if group.unread:
        partitions = "1 partition" if len(group.unread) == 1 else f"{len(group.unread)} partitions"
        raise WorkerError(
            f"group {group.group_id} has committed nothing for {partitions} with messages, so how far it is behind is "
            "not known"
        )
    if group.total_lag > max_lag:
        raise WorkerError(f"group {group.group_id} is {group.total_lag} messages behind, --max-lag is {max_lag}")
