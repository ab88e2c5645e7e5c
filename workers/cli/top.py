"""`top`: consumer groups at a glance, round after round."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from workers.cli.admin import connected_admin, serve_until
from workers.cli.commands.top import TopOptions
from workers.cli.context import Context
from workers.columns import counted
from workers.errors import ConfigError
from workers.escaping import one_line
from workers.kafka.groups import REQUEST_TIMEOUT_S
from workers.lifecycle import Shutdown, Stopped
from workers.live import has_tables, live_table
from workers.monitoring.group_lag import GroupLag, Selection
from workers.monitoring.overview import GroupRow, Overview, Rates

if TYPE_CHECKING:
    from rich.console import Console, Group

log = logging.getLogger("workers")
# Holds the offsets of all groups; its metadata is small, and names the brokers.
OFFSETS_TOPIC = "__consumer_offsets"
# Lines that are no rows: the title, the head of the table, and the line below.
FRAME_LINES = 3
# Columns that all but the names take at most.
NUMBERS_WIDTH = 60
_COLOURS = {
    "ok": "green", "catching up": "yellow", "rebalancing": "yellow", "behind": "yellow", "falling behind": "red",
    "no progress": "bold red", "no members": "bold red", "nothing committed": "yellow", "not there": "bold red",
}  # fmt: skip


def top(options: TopOptions, context: Context, shutdown: Shutdown) -> None:
    """Show groups until a signal, or once. Unreachable brokers are said in the view; raises as `connected_admin`."""
    try:
        with shutdown.at_once():
            timeout_s = options.connection.look_timeout if options.once else options.connection.timeout
            admin = connected_admin(context, (), shutdown, timeout_s)
            selection = Selection(options.group_ids, options.group_filter, options.topics, options.topic_filter)
            group_lag = GroupLag(admin, selection, options.interval)
            rates = Rates(options.group_ids)
            brokers: set[int] = set()
            with _view(options, context) as show:
                while True:
                    following = time.monotonic() + options.interval
                    group_lag.look()
                    overview = rates.look(group_lag.picture, group_lag.ready(), time.monotonic(), time.time())
                    show(replace(overview, missing_brokers=_missing_brokers(admin, brokers)))
                    if options.once:
                        break
                    serve_until(admin, following)
    except Stopped:
        return
    if overview.missing and overview.problem is None:
        raise ConfigError(f"not known to the brokers: group {', '.join(overview.missing)}; check --group-id")


def _missing_brokers(admin: AdminClient, known: set[int]) -> tuple[int, ...]:
    """Brokers that the others do not list: those in `known`, which grows, and those with a replica of the offsets."""
    try:
        metadata = admin.list_topics(OFFSETS_TOPIC, timeout=REQUEST_TIMEOUT_S)
    except KafkaException:
        # The round has said so already.
        return ()
    partitions = metadata.topics[OFFSETS_TOPIC].partitions.values()
    known |= metadata.brokers.keys() | {broker for each in partitions for broker in each.replicas}
    return tuple(sorted(known - metadata.brokers.keys()))


@contextmanager
def _view(options: TopOptions, context: Context) -> Iterator[Callable[[Overview], None]]:
    wants_table = sys.stdout.isatty() and not (options.as_json or options.plain or options.once)
    if wants_table and has_tables():
        if not context.given("log_level"):
            # Log lines would go through the table; it names the brokers that do not answer itself.
            logging.getLogger().setLevel(logging.CRITICAL)
        with live_table(as_table, screen=True) as show:
            yield show
        return
    if wants_table:
        log.info("for a live table: pip install 'kafka-workers[local]'")
    yield _print_document if options.as_json else _print_lines


def _print_document(overview: Overview) -> None:
    print(json.dumps(as_document(overview)), flush=True)


def _print_lines(overview: Overview) -> None:
    print(as_lines(overview), flush=True)


def as_document(overview: Overview) -> dict[str, object]:
    """The overview for JSON; rates are messages a second."""
    return {
        "time": datetime.fromtimestamp(overview.at_s).astimezone().isoformat(timespec="seconds"),
        "problem": overview.problem,
        "missing_brokers": list(overview.missing_brokers),
        "missing": list(overview.missing),
        "groups": [_document(row) for row in overview.rows],
    }


def _document(row: GroupRow) -> dict[str, object]:
    group = row.group
    return {
        "group": group.group_id,
        "health": row.health,
        "state": group.state,
        "protocol": group.protocol,
        "partitions": len(group.partitions),
        "uncommitted_partitions": len(group.unread),
        "lag": group.total_lag,
        "lag_seconds": _rounded(row.lag_s),
        "in_per_s": _rounded(row.in_per_s),
        "out_per_s": _rounded(row.out_per_s),
        "deleted": group.deleted,
        "members": [
            {
                "member_id": each.member.member_id,
                "client_id": each.member.client_id,
                "host": each.member.host,
                "partitions": len(each.member.partitions),
                "lag": each.lag,
                "out_per_s": _rounded(each.out_per_s),
                "idle": each.idle,
            }
            for each in row.members
        ],
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 3)


def as_lines(overview: Overview) -> str:
    """A line for each group, and one for a broker that does not answer."""
    at = datetime.fromtimestamp(overview.at_s).strftime("%H:%M:%S")
    found = [_line(row) for row in overview.rows] + [f"{one_line(name)}: not there" for name in overview.missing]
    found += _troubles(overview)
    return "\n".join(f"{at} {line}" for line in found or ["no group"])


def _troubles(overview: Overview) -> list[str]:
    brokers = ", ".join(map(str, overview.missing_brokers))
    return [
        *([f"the other brokers do not list {brokers}"] if brokers else []),
        *([overview.problem] if overview.problem else []),
    ]


def _line(row: GroupRow) -> str:
    idle = sum(each.idle for each in row.members)
    members = f"{counted(len(row.members), 'member')}{f' ({idle} idle)' if idle else ''}"
    words = [
        f"{one_line(row.group.group_id)}: {row.health}",
        members,
        counted(len(row.group.partitions), "partition"),
        f"lag {row.group.total_lag:,} ({_age(row.lag_s)})",
        f"in {_rate(row.in_per_s, '/s')}",
        f"out {_rate(row.out_per_s, '/s')}",
    ]
    if row.group.unread:
        words.append(f"{counted(len(row.group.unread), 'partition')} without a commit")
    return ", ".join(words)


def as_table(overview: Overview, console: "Console") -> "Group":
    """The table, as large as the terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    rows = [cells for row in overview.rows for cells in _cells(row)]
    rows += [(one_line(name), "-", "-", "-", "-", "-", "not there") for name in overview.missing]
    longest = max((len(cells[0]) for cells in rows), default=0)
    table = Table(width=min(console.width, longest + NUMBERS_WIDTH), box=None, pad_edge=False, header_style="bold")
    table.add_column("GROUP, members", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in ("PARTS", "LAG", "AGE", "IN/s", "OUT/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("HEALTH", no_wrap=True, min_width=len("nothing committed"))
    room = max(1, console.height - FRAME_LINES - len(_troubles(overview)))
    for name, *numbers, health in rows[:room]:
        table.add_row(Text(name), *numbers, Text(health, _COLOURS.get(health, "dim")))
    at = datetime.fromtimestamp(overview.at_s).strftime("%H:%M:%S")
    total = sum(row.group.total_lag for row in overview.rows)
    lines = [Text(f"{at}  {counted(len(overview.rows), 'group')}, lag {total:,}", "bold")]
    lines += [Text(trouble, "bold red", no_wrap=True, overflow="ellipsis") for trouble in _troubles(overview)]
    hidden = len(rows) - room
    more = f"{counted(hidden, 'more line')}; choose groups with --group-id or --group-filter" if hidden > 0 else ""
    return Group(*lines, table, Text(more, "dim", no_wrap=True, overflow="ellipsis"))


def _cells(row: GroupRow) -> Iterator[tuple[str, ...]]:
    group = row.group
    yield (
        one_line(group.group_id),
        str(len(group.partitions)),
        f"{group.total_lag:,}",
        _age(row.lag_s),
        _rate(row.in_per_s),
        _rate(row.out_per_s),
        row.health,
    )
    for each in row.members:
        yield (
            f"  {one_line(each.member.client_id)} {one_line(each.member.host.lstrip('/'))}",
            str(len(each.member.partitions)),
            f"{each.lag:,}",
            "",
            "",
            _rate(each.out_per_s),
            "idle" if each.idle else "",
        )


def _rate(per_s: float | None, unit: str = "") -> str:
    return "-" if per_s is None else f"{per_s:,.{1 if per_s < 100 else 0}f}{unit}"


def _age(seconds: float | None) -> str:
    """Whole seconds, or the two largest units."""
    if seconds is None:
        return "-"
    for unit_s, unit, smaller_s, smaller in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= unit_s:
            return f"{int(seconds // unit_s)}{unit}{int(seconds % unit_s // smaller_s)}{smaller}"
    return f"{int(seconds)}s"
