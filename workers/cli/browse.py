"""`dead-letters browse`: the view of dead letters, and the commands' own functions behind its keys."""

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass

import click

from workers.cli import discard as discarding
from workers.cli import replay as replaying
from workers.cli.commands.dead_letters import BrowseDeadLettersOptions
from workers.cli.context import Context
from workers.cli.show_dead_letters import reading_config, selection_of, states_of
from workers.config import PRODUCER_DEFAULTS, ClientConfig
from workers.deadletters.discard import discard
from workers.deadletters.listing import Listing, listing_of
from workers.deadletters.reading import open_topic
from workers.deadletters.replay import Rules, allowed_topics, replay
from workers.deadletters.stored import Place, Selection
from workers.errors import ConfigError, WorkerError
from workers.lifecycle import Shutdown


def browse(options: BrowseDeadLettersOptions, context: Context, shutdown: Shutdown) -> None:
    """Show the view until it is left, then print what was done in it.

    Raises ConfigError without a terminal or without textual, and for a topic or a filter that cannot be used, and
    WorkerError when the view itself failed.
    """
    config = reading_config(options.dead_letters, context)
    producer_config = context.client_config(PRODUCER_DEFAULTS)
    topic = options.dead_letters.topic
    if options.to_topics:
        allowed_topics(topic, options.to_topics)
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)) or os.environ.get("TERM") == "dumb":
        raise ConfigError(
            "the view needs a terminal for its input and its output; use `dead-letters list` and `dead-letters show`"
        )
    try:
        from workers.deadletters.view import DeadLetterView
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "textual":
            raise
        raise ConfigError("the view needs the extra 'tui': pip install 'kafka-workers[tui]'") from None
    view = DeadLetterView(KafkaDesk(options, config, producer_config, shutdown), topic, options.state, shutdown)
    try:
        view.show()
    finally:
        for outcome in view.outcomes:
            click.echo(outcome)


@dataclass(frozen=True)
class KafkaDesk:
    """A `Desk` with brokers. Each call makes clients of its own, as each command does."""

    options: BrowseDeadLettersOptions
    config: ClientConfig
    producer_config: ClientConfig
    shutdown: Shutdown

    def read(self) -> Listing:
        chosen, timeout_s = self.options.dead_letters, self.options.connection.look_timeout
        with open_topic(self.config, chosen.topic, chosen.group_id, self.shutdown, timeout_s) as dead_letters:
            return listing_of(dead_letters, selection_of(chosen), states_of(self.options.state), self.options.limit)

    def replay(self, places: Collection[Place]) -> str:
        chosen = self.options.dead_letters
        rules = Rules(
            topic=chosen.topic,
            allowed=allowed_topics(chosen.topic, self.options.to_topics),
            group_id=chosen.group_id,
            by=self.options.connection.client_id,
            selection=Selection(letters=frozenset(places)),
        )
        timeout_s = self.options.connection.look_timeout
        done = replay(self.config, self.producer_config, rules, self.shutdown, timeout_s=timeout_s)
        outcome = replaying.outcome_of(rules, done)
        complaints = replaying.complaints_about(rules, done, "discard them")
        if complaints:
            raise WorkerError("; ".join([outcome, *complaints]))
        return outcome

    def discard(self, places: Collection[Place], reason: str) -> str:
        chosen = self.options.dead_letters
        count = discard(
            self.config,
            self.producer_config,
            chosen.topic,
            chosen.group_id,
            self.shutdown,
            selection=Selection(letters=frozenset(places)),
            reason=reason,
            by=self.options.connection.client_id,
            dry_run=False,
            timeout_s=self.options.connection.look_timeout,
        )
        return discarding.outcome_of(chosen.topic, count)
