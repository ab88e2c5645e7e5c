"""`lag`: shows a consumer group as the brokers see it."""

import json
import sys
import time
from collections.abc import Sequence

import click

from workers.cli.admin import connected_admin, serve_until
from workers.cli.commands.lag import LagOptions
from workers.cli.context import Context, show
from workers.columns import aligned, or_dash
from workers.errors import WorkerError
from workers.kafka import groups
from workers.kafka.groups import Group
from workers.lifecycle import Shutdown, Stopped


def lag(options: LagOptions, context: Context, shutdown: Shutdown) -> None:
    """Shows a group; raises WorkerError when it is further behind than allowed, or when a stop came before it."""
    group = None
    try:
        with shutdown.at_once():
            admin = connected_admin(context, options.topics, shutdown, options.connection.look_timeout)
            while group is None or options.watch:
                group = groups.describe(admin, options.group_id, list(options.topics))
                if not options.watch:
                    _check_topics(group, options.topics)
                _show(group, options)
                if options.watch:
                    serve_until(admin, time.monotonic() + options.interval)
    except Stopped:
        if group is None:
            raise WorkerError("stopped before the group was shown") from None
    if options.max_lag is not None:
        _check_lag(group, options.max_lag, options.topics)


def _show(group: Group, options: LagOptions) -> None:
    text = json.dumps(as_document(group)) if options.as_json else as_table(group)
    if not options.watch:
        show(text)
        return
    if not options.as_json and sys.stdout.isatty():
        click.clear()
    click.echo(text)


def _check_topics(group: Group, topics: Sequence[str]) -> None:
    """Raises WorkerError when the group has nothing to do with `topics`, if any are given."""
    if topics and not group.partitions:
        raise WorkerError(
            f"group {group.group_id} owns no partition of {', '.join(topics)} and has committed no offset of it, so "
            "its lag is unknown; check --topic and --group-id"
        )


def _check_lag(group: Group, max_lag: int, topics: Sequence[str]) -> None:
    """Raises WorkerError when the group is further behind than `max_lag`, or when that is not known."""
    _check_topics(group, topics)
    if not group.partitions:
        raise WorkerError(
            f"group {group.group_id} has no partition of any topic, so its lag is unknown; check --group-id and that "
            "its members run"
        )
    if group.unread:
        partitions = "1 partition" if len(group.unread) == 1 else f"{len(group.unread)} partitions"
        raise WorkerError(
            f"group {group.group_id} has committed nothing for {partitions} with messages, so its lag is unknown; run "
            "its consumers until each partition has a committed offset"
        )
    if group.total_lag > max_lag:
        raise WorkerError(f"group {group.group_id} is {group.total_lag} messages behind, --max-lag is {max_lag}")


def as_table(group: Group) -> str:
    """The group as text: partitions with their lag, then the idle members."""
    rows = [("TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER")]
    rows += [
        (
            each.topic,
            str(each.partition),
            or_dash(each.committed),
            str(each.end),
            or_dash(each.lag_messages),
            each.member or "-",
        )
        for each in group.partitions
    ]
    lines = [aligned(rows)]
    if group.unread:
        has = "partition has" if len(group.unread) == 1 else "partitions have"
        lines.append(f"{len(group.unread)} {has} messages and no committed offset: their lag is not counted")
    if group.deleted:
        were, them = ("message was", "it") if group.deleted == 1 else ("messages were", "them")
        lines.append(f"{group.deleted} {were} deleted before the group committed {them}, and not counted in the lag")
    lines += [
        f"{each.topic}[{each.partition}]: done in part up to offset {each.furthest}, {each.distance} beyond the "
        "committed one"
        for each in group.partitions
        if each.distance
    ]
    lines += [f"idle: {member.client_id} ({member.host.lstrip('/')})" for member in group.idle]
    members = f"{len(group.members)} member{'' if len(group.members) == 1 else 's'}"
    head = f"group {group.group_id}: {group.state}, {group.protocol} protocol, {members}, lag {group.total_lag}"
    return "\n".join([head, *lines])


def as_document(group: Group) -> dict[str, object]:
    """The group for JSON."""
    return {
        "group": group.group_id,
        "state": group.state,
        "protocol": group.protocol,
        "lag": group.total_lag,
        "deleted": group.deleted,
        "members": [
            {
                "member_id": member.member_id,
                "client_id": member.client_id,
                "host": member.host,
                "partitions": [{"topic": topic, "partition": number} for topic, number in member.partitions],
                "idle": member in group.idle,
            }
            for member in group.members
        ],
        "partitions": partition_documents(group),
    }


def partition_documents(group: Group) -> list[dict[str, object]]:
    """The partitions of the group for JSON."""
    return [
        {
            "topic": each.topic,
            "partition": each.partition,
            "committed": each.committed,
            "beginning": each.beginning,
            "end": each.end,
            "lag": each.lag_messages,
            "distance": each.distance,
            "member": each.member,
        }
        for each in group.partitions
    ]
