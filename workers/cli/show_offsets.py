"""`offsets show`: what a group has committed, and how far it is behind."""

import json

import click

from workers.cli import lag
from workers.cli.admin import connected_admin
from workers.cli.commands.offsets import ShowOffsetsOptions
from workers.cli.context import Context
from workers.columns import aligned, or_dash
from workers.errors import ConfigError, WorkerError
from workers.kafka import groups
from workers.kafka.groups import Group, PartitionKey, PartitionLag
from workers.lifecycle import Shutdown, Stopped
from workers.monitoring.group_lag import GroupLag, Selection


def show_offsets(options: ShowOffsetsOptions, context: Context, shutdown: Shutdown) -> None:
    """Shows the offsets of a group; raises ConfigError for one that is not there, WorkerError when a stop came before
    it was shown, and as `groups.describe`.
    """
    try:
        with shutdown.at_once():
            admin = connected_admin(context, options.topics, shutdown, options.connection.look_timeout)
            group = groups.describe(admin, options.group_id, list(options.topics))
    except Stopped:
        raise WorkerError("stopped before the group was shown") from None
    if not group.partitions:
        where = ", ".join(options.topics) or "any topic"
        raise ConfigError(f"group {group.group_id} has committed nothing and owns nothing of {where}; check --topic")
    # One round of what the lag exporter does.
    seconds = GroupLag(admin, Selection(group_ids=(group.group_id,), topics=options.topics), interval_s=1.0)
    seconds.look()
    lag_s = {key: found_s for (_, key), found_s in seconds.picture.lag_s.items()}
    click.echo(json.dumps(as_document(group, lag_s)) if options.as_json else as_table(group, lag_s))


def lag_seconds(each: PartitionLag, lag_s: dict[PartitionKey, float]) -> float | None:
    """The age of the oldest message that the group has not committed; 0 without one, None where it is not known."""
    return 0.0 if each.lag_messages == 0 else lag_s.get((each.topic, each.partition))


def as_table(group: Group, lag_s: dict[PartitionKey, float]) -> str:
    """The group as text, a line for each partition."""
    rows: list[tuple[str, ...]] = [
        ("TOPIC", "PARTITION", "COMMITTED", "FURTHEST", "BEGINNING", "END", "LAG", "SECONDS", "MEMBER")
    ]
    for each in group.partitions:
        behind_s = lag_seconds(each, lag_s)
        rows.append(
            (
                each.topic,
                *map(or_dash, (each.partition, each.committed, each.furthest, each.beginning, each.end)),
                or_dash(each.lag_messages),
                "-" if behind_s is None else f"{behind_s:.0f}",
                each.member or "-",
            )
        )
    members = ", ".join(f"{each.client_id} ({each.host.lstrip('/')})" for each in group.members) or "none"
    return f"group {group.group_id}: {group.state}, lag {group.total_lag}\n{aligned(rows)}\nmembers: {members}"


def as_document(group: Group, lag_s: dict[PartitionKey, float]) -> dict[str, object]:
    """The group for JSON, as `lag --json` has it, with the seconds and the furthest completed offset."""
    document = lag.as_document(group)
    document["partitions"] = [
        {**found, "furthest": each.furthest, "lag_seconds": lag_seconds(each, lag_s)}
        for found, each in zip(lag.partition_documents(group), group.partitions, strict=True)
    ]
    return document
