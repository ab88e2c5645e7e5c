"""`replay`: sends dead letters back to the topics that they came from."""

import click

from workers.cli.context import Context
from workers.cli.parameters import ReplayOptions
from workers.config import CONSUMER_DEFAULTS, PRODUCER_DEFAULTS, Setting
from workers.deadletters import replay as letters
from workers.deadletters.headers import ORIGINAL_TOPIC
from workers.errors import WorkerError
from workers.lifecycle import Shutdown


def replay(options: ReplayOptions, context: Context, shutdown: Shutdown) -> None:
    """Replays a dead-letter topic; raises WorkerError when a letter cannot be sent, which then stays to be replayed."""
    group = Setting("group.id", options.group_id, context.precedence("group_id"), context.origin("group_id"))
    config = context.client_config(CONSUMER_DEFAULTS, [group])
    context.show_config(config)
    context.set_up_logging()
    done = letters.replay(
        config,
        context.client_config(PRODUCER_DEFAULTS),
        options.topic,
        shutdown,
        timeout_s=options.connection.timeout,
        limit=options.max_messages,
    )
    click.echo(f"{done.sent} dead letters replayed from {options.topic}")
    if done.without_origin:
        raise WorkerError(
            f"{done.without_origin} messages of {options.topic} do not say which topic they came from (header "
            f"{ORIGINAL_TOPIC}); they were passed over"
        )
