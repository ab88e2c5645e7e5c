"""`dead-letters list` and `dead-letters show`."""

import json
from collections.abc import Iterator

import click

from workers.cli.commands.dead_letters import (
    DEFAULT_LIMIT,
    DeadLetterOptions,
    ListDeadLettersOptions,
    ShowDeadLettersOptions,
)
from workers.cli.context import Context, terminal_columns
from workers.config import CONSUMER_DEFAULTS, ClientConfig
from workers.deadletters.reading import ALL_STATES, DeadLetterTopic, oldest, open_topic
from workers.deadletters.stored import Place, Selection, StoredDeadLetter
from workers.deadletters.text import (
    BY,
    Tally,
    as_document,
    as_table,
    as_text,
    tallies_as_table,
)
from workers.deadletters.treated import State
from workers.errors import ConfigError
from workers.lifecycle import Shutdown


def list_dead_letters(options: ListDeadLettersOptions, context: Context, shutdown: Shutdown) -> None:
    """Lists or counts dead letters; raises as `open_topic` and `DeadLetterTopic`."""
    selection = selection_of(options.dead_letters)
    as_json = options.format_name == "json"
    config = reading_config(options.dead_letters, context)
    topic = options.dead_letters.topic
    with open_topic(
        config, topic, options.dead_letters.group_id, shutdown, options.connection.look_timeout
    ) as dead_letters:
        found = dead_letters.find(selection, states_of(options.state))
        if options.by is not None:
            _print_tallies(options.by, found, as_json=as_json)
            return
        if as_json:
            for number, (letter, state) in enumerate(found, 1):
                click.echo(_json_line(dead_letters, letter, state))
                if number == options.limit:
                    break
            return
        rows, count = oldest(found, options.limit or DEFAULT_LIMIT)
    if rows:
        click.echo(as_table(rows, show_state=options.state == "all", width=terminal_columns()))
    kind = "" if options.state == "all" else f" {options.state}"
    more = f"; {len(rows)} are listed, the oldest, --limit lists more" if len(rows) < count else ""
    click.echo(f"{topic}: {count}{kind} dead letters{more}")


def show_dead_letters(options: ShowDeadLettersOptions, context: Context, shutdown: Shutdown) -> None:
    """Shows dead letters; raises ConfigError when none is chosen, and as `open_topic` and `DeadLetterTopic`."""
    selection = selection_of(options.dead_letters)
    config = reading_config(options.dead_letters, context)
    if selection.is_empty:
        raise ConfigError(
            "no filter names the dead letters to show; give one, such as --letter 0:12 with an id that "
            "`dead-letters list` prints"
        )
    topic = options.dead_letters.topic
    shown = 0
    with open_topic(
        config, topic, options.dead_letters.group_id, shutdown, options.connection.look_timeout
    ) as dead_letters:
        for letter, state in dead_letters.find(selection, states_of(options.state)):
            if shown == options.limit:
                click.echo(f"{topic}: there are more; --limit shows them", err=True)
                break
            shown += 1
            if options.format_name == "json":
                click.echo(_json_line(dead_letters, letter, state))
            else:
                record = dead_letters.treated.record_about(letter.place)
                click.echo(("\n" if shown > 1 else "") + as_text(topic, letter, state, record))
    if not shown:
        raise ConfigError(f"no dead letter of {topic} matches the filter; `dead-letters list` shows the waiting ones")


def selection_of(options: DeadLetterOptions) -> Selection:
    return Selection(
        letters=frozenset(Place(*each) for each in options.letters),
        partitions=frozenset(options.partitions),
        errors=frozenset(options.errors),
        keys=frozenset(key.encode(errors="surrogateescape") for key in options.keys),
        source_topics=frozenset(options.source_topics),
        source_partitions=frozenset(options.source_partitions),
        source_offsets=frozenset(options.source_offsets),
        since=options.since,
        until=options.until,
    )


def reading_config(options: DeadLetterOptions, context: Context) -> ClientConfig:
    """The configuration of the client that reads dead letters.

    With --show-config it is printed, and the command ends.
    """
    group = context.setting("group.id", "group_id", options.group_id)
    config = context.client_config(CONSUMER_DEFAULTS, [group])
    context.show_config(config)
    context.set_up_logging()
    return config


def states_of(option: str) -> frozenset[State]:
    """The states that --state chooses."""
    return ALL_STATES if option == "all" else frozenset({State(option)})


def _print_tallies(by: str, found: Iterator[tuple[StoredDeadLetter, State]], *, as_json: bool) -> None:
    tallies: dict[str, Tally] = {}
    for letter, _ in found:
        tallies.setdefault(BY[by](letter), Tally()).add(letter)
    # The most frequent first.
    ranked = sorted(tallies.items(), key=lambda each: (-each[1].count, each[0]))
    if as_json:
        for value, tally in ranked:
            click.echo(json.dumps(tally.document(by.replace("-", "_"), value)))
    else:
        click.echo(tallies_as_table(by, ranked, terminal_columns()))


def _json_line(dead_letters: DeadLetterTopic, letter: StoredDeadLetter, state: State) -> str:
    record = dead_letters.treated.record_about(letter.place)
    return json.dumps(as_document(dead_letters.topic, letter, state, record))
