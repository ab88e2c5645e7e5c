"""The commands on dead letters: `dead-letters list`, `show`, `browse`, `replay`, `discard`."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeVar

import click

from workers.cli.context import Context
from workers.cli.options import (
    GROUP,
    LETTER,
    POSITIVE,
    TIME,
    TOPIC,
    Command,
    Whole,
    apply,
    connection_options,
    option,
    shutdown_timeout_option,
)
from workers.cli.parameters import ConnectionOptions, build
from workers.lifecycle import installed_shutdown

_Command = TypeVar("_Command", bound=Callable[..., Any])
DEFAULT_LIMIT = 100
# The view holds them in memory.
BROWSE_LIMIT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterOptions:
    """Which dead letters; every command on them has these."""

    topic: str
    group_id: str
    letters: tuple[tuple[int, int], ...]
    partitions: tuple[int, ...]
    errors: tuple[str, ...]
    keys: tuple[str, ...]
    source_topics: tuple[str, ...]
    source_partitions: tuple[int, ...]
    source_offsets: tuple[int, ...]
    since: datetime | None
    until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListDeadLettersOptions:
    connection: ConnectionOptions
    dead_letters: DeadLetterOptions
    format_name: Literal["text", "json"]
    state: Literal["waiting", "replayed", "discarded", "all"]
    by: Literal["error", "message", "source-topic", "key"] | None
    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowseDeadLettersOptions:
    connection: ConnectionOptions
    dead_letters: DeadLetterOptions
    state: Literal["waiting", "replayed", "discarded", "all"]
    limit: int
    to_topics: tuple[str, ...]
    shutdown_timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowDeadLettersOptions:
    connection: ConnectionOptions
    dead_letters: DeadLetterOptions
    format_name: Literal["text", "json"]
    state: Literal["waiting", "replayed", "discarded", "all"]
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    connection: ConnectionOptions
    dead_letters: DeadLetterOptions
    format_name: Literal["text", "json"]
    to_topics: tuple[str, ...]
    skip_other_topics: bool
    max_messages: int | None
    again: bool
    dry_run: bool
    shutdown_timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscardOptions:
    connection: ConnectionOptions
    dead_letters: DeadLetterOptions
    format_name: Literal["text", "json"]
    reason: str
    everything: bool
    dry_run: bool
    shutdown_timeout: float


@click.group("dead-letters")
def dead_letters() -> None:
    """List, show, browse, replay and discard dead letters.

    A dead letter is named by its partition and offset in the dead-letter topic, as 0:12. Filters can be combined; a
    repeatable one matches any of its values.
    """


# Not --group-id: a consumer's pod has KAFKA_GROUP_ID, which names another group.
_replay_group = option(
    "--replay-group",
    "group_id",
    type=GROUP,
    default="kafka-workers-replay",
    show_default=True,
    help="Group that remembers what was replayed.",
)


def _filter_options(command: _Command) -> _Command:
    return apply(
        command,
        [
            option("--topic", type=TOPIC, required=True, help="Dead-letter topic."),
            option("--letter", "letters", type=LETTER, multiple=True, help="Only this dead letter; repeatable."),
            option("--error", "errors", multiple=True, metavar="CLASS", help="Only of this error class; repeatable."),
            option("--key", "keys", multiple=True, help="Only with this key; repeatable."),
            option("--since", type=TIME, help="Only dead letters since then, as 2026-11-24T12:00:00Z."),
            option("--until", type=TIME, help="Only dead letters before then."),
            option("--source-topic", "source_topics", type=TOPIC, multiple=True,
                   help="Only from this topic; repeatable."),
            option("--source-partition", "source_partitions", type=Whole(min=0), multiple=True,
                   help="Only from this partition of the source topic; repeatable."),
            option("--source-offset", "source_offsets", type=Whole(min=0), multiple=True,
                   help="Only from this offset of the source topic; repeatable."),
            option("--partition", "partitions", type=Whole(min=0), multiple=True,
                   help="Only this partition of the dead-letter topic; repeatable."),
        ],
    )  # fmt: skip


def _selection_options(command: _Command) -> _Command:
    return apply(
        command,
        [
            _filter_options,
            option("--format", "format_name", type=click.Choice(["text", "json"]), default="text", show_default=True,
                   help="Text for people, or JSON lines."),
        ],
    )  # fmt: skip


def _state_option(default: str) -> Callable[[_Command], _Command]:
    return option(
        "--state",
        type=click.Choice(["waiting", "replayed", "discarded", "all"]),
        default=default,
        show_default=True,
        help="Only dead letters in this state.",
    )


_to_topic = option(
    "--to-topic",
    "to_topics",
    type=TOPIC,
    multiple=True,
    help="A topic that dead letters may go back to; repeatable.  [default: X where the dead-letter topic is X.dlq]",
)
_dry_run = option("--dry-run", is_flag=True, help="Print the effect, and change nothing.")


@dead_letters.command("list", cls=Command)
@_state_option("waiting")
@option(
    "--by",
    type=click.Choice(["error", "message", "source-topic", "key"]),
    help="Count them by this instead of listing each.",
)
@option("--limit", type=POSITIVE, help="List at most this many.  [default: the 100 oldest as text, all as JSON]")
@_selection_options
@_replay_group
@connection_options
def list_(**parameters: Any) -> None:
    """List dead letters, oldest first, or count them."""
    options = build(ListDeadLettersOptions, parameters)
    shutdown = installed_shutdown(0)
    from workers.cli.show_dead_letters import list_dead_letters as run

    run(options, Context(options.connection), shutdown)


@dead_letters.command(cls=Command)
@_state_option("all")
@option("--limit", type=POSITIVE, default=10, show_default=True, help="Show at most this many.")
@_selection_options
@_replay_group
@connection_options
def show(**parameters: Any) -> None:
    """Show all of one dead letter, or of a few: headers, error, traceback, value."""
    options = build(ShowDeadLettersOptions, parameters)
    shutdown = installed_shutdown(0)
    from workers.cli.show_dead_letters import show_dead_letters as run

    run(options, Context(options.connection), shutdown)


@dead_letters.command(cls=Command)
@_state_option("waiting")
@option("--limit", type=POSITIVE, default=BROWSE_LIMIT, show_default=True, help="List at most this many, the oldest.")
@_filter_options
@_to_topic
@_replay_group
@shutdown_timeout_option
@connection_options
def browse(**parameters: Any) -> None:
    """Look through dead letters on a full screen, and replay or discard the marked ones.

    It needs a terminal, and the extra `tui`: pip install 'kafka-workers[tui]'.
    """
    options = build(BrowseDeadLettersOptions, parameters)
    shutdown = installed_shutdown(options.shutdown_timeout)
    from workers.cli.browse import browse as run

    run(options, Context(options.connection), shutdown)


@dead_letters.command(cls=Command)
@_selection_options
@_to_topic
@option("--skip-other-topics", is_flag=True, help="Skip dead letters of other topics for good.")
@option("--max-messages", type=POSITIVE, help="Stop after this many messages.")
@option("--again", is_flag=True, help="Also those that were replayed or discarded already.")
@_dry_run
@_replay_group
@shutdown_timeout_option
@connection_options
def replay(**parameters: Any) -> None:
    """Send dead letters back to the topics they came from, if no earlier replay has sent them.

    A dead letter of a topic that it may not be sent to stays, and so do the chosen ones behind it in its partition.
    """
    options = build(ReplayOptions, parameters)
    shutdown = installed_shutdown(options.shutdown_timeout)
    from workers.cli.replay import replay as run

    run(options, Context(options.connection), shutdown)


@dead_letters.command(cls=Command)
@option("--reason", default="", help="Reason, which is recorded.")
@option("--all", "everything", is_flag=True, help="All waiting dead letters, without a filter.")
@_dry_run
@_selection_options
@_replay_group
@shutdown_timeout_option
@connection_options
def discard(**parameters: Any) -> None:
    """Exclude dead letters from every later replay.

    The topic keeps them, and beside them a record of when, by which client and why they were discarded.
    """
    options = build(DiscardOptions, parameters)
    shutdown = installed_shutdown(options.shutdown_timeout)
    from workers.cli.discard import discard as run

    run(options, Context(options.connection), shutdown)
