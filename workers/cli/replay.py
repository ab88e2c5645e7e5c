"""`replay`: sends dead letters back to the topics that they came from."""

import click

from workers.cli.context import Context
from workers.cli.parameters import ReplayOptions
from workers.config import CONSUMER_DEFAULTS, PRODUCER_DEFAULTS, Setting
from workers.deadletters import replay as dead_letters
from workers.deadletters.headers import ORIGINAL_TOPIC
from workers.errors import WorkerError
from workers.lifecycle import Shutdown


def replay(options: ReplayOptions, context: Context, shutdown: Shutdown) -> None:
    """Replays a dead-letter topic; raises WorkerError when a dead letter cannot be sent. It stays to be replayed."""
    group = Setting("group.id", options.group_id, context.precedence("group_id"), context.origin("group_id"))
    config = context.client_config(CONSUMER_DEFAULTS, [group])
    context.show_config(config)
    context.set_up_logging()
    allowed = dead_letters.allowed_topics(options.topic, options.to_topics)
    done = dead_letters.replay(
        config,
        context.client_config(PRODUCER_DEFAULTS),
        options.topic,
        shutdown,
        timeout_s=options.connection.timeout,
        limit=options.max_messages,
        allowed=allowed,
        skip_others=options.skip_other_topics,
    )
    click.echo(f"{done.sent} dead letters replayed from {options.topic}")
    if done.skipped:
        click.echo(f"{done.skipped} dead letters of other topics passed over")
    complaints = []
    if done.without_origin:
        complaints.append(
            f"{done.without_origin} messages of {options.topic} do not say which topic they came from (header "
            f"{ORIGINAL_TOPIC}); they were passed over"
        )
    if done.refused:
        topics, partitions = sorted(set(done.refused.values())), ", ".join(map(str, sorted(done.refused)))
        remedy = " ".join(f"--to-topic {topic}" for topic in sorted(allowed.union(topics)))
        complaints.append(
            f"dead letters of {options.topic} that say they came from {', '.join(topics)} may not be sent there; they "
            f"wait, and so do those behind them in partition {partitions}: allow it with {remedy}, or pass them over "
            "with --skip-other-topics"
        )
    if complaints:
        raise WorkerError("; ".join(complaints))
