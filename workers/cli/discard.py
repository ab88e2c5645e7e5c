"""`dead-letters discard`."""

import json

import click

from workers.cli.commands.dead_letters import DiscardOptions
from workers.cli.context import Context
from workers.cli.show_dead_letters import reading_config, selection_of
from workers.config import PRODUCER_DEFAULTS
from workers.deadletters import discard as dead_letters
from workers.errors import ConfigError
from workers.lifecycle import Shutdown


def discard(options: DiscardOptions, context: Context, shutdown: Shutdown) -> None:
    """Discards dead letters; raises ConfigError when none is chosen, and as `discard` of `workers.deadletters`."""
    chosen = options.dead_letters
    selection = selection_of(chosen)
    config = reading_config(chosen, context)
    if selection.is_empty != options.everything:
        raise ConfigError(
            "--all goes without a filter; leave one of them out"
            if options.everything
            else "no filter names the dead letters to discard; give one, such as --letter or --error, or --all"
        )
    count = dead_letters.discard(
        config,
        context.client_config(PRODUCER_DEFAULTS),
        chosen.topic,
        chosen.group_id,
        shutdown,
        selection=selection,
        reason=options.reason,
        by=options.connection.client_id,
        dry_run=options.dry_run,
        timeout_s=options.connection.look_timeout,
    )
    if options.format_name == "json":
        click.echo(json.dumps({"topic": chosen.topic, "changed": not options.dry_run, "discarded": count}))
    elif options.dry_run:
        click.echo(f"{count} dead letters of {chosen.topic} would be discarded; nothing was changed")
    else:
        click.echo(outcome_of(chosen.topic, count))


def outcome_of(topic: str, count: int) -> str:
    return f"{count} dead letters of {topic} discarded, and recorded there"
