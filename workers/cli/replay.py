"""`replay`: sends dead letters back to the topics that they came from."""

import json

import click

from workers.cli.commands.dead_letters import ReplayOptions
from workers.cli.context import Context
from workers.cli.show_dead_letters import reading_config, selection_of
from workers.config import PRODUCER_DEFAULTS
from workers.deadletters import replay as dead_letters
from workers.deadletters.headers import INVALID_LINE, ORIGINAL_TOPIC
from workers.errors import WorkerError
from workers.lifecycle import Shutdown


def replay(options: ReplayOptions, context: Context, shutdown: Shutdown) -> None:
    """Replays a dead-letter topic; raises WorkerError when a dead letter cannot be sent. It stays to be replayed."""
    chosen = options.dead_letters
    config = reading_config(chosen, context)
    rules = dead_letters.Rules(
        topic=chosen.topic,
        allowed=dead_letters.allowed_topics(chosen.topic, options.to_topics),
        group_id=chosen.group_id,
        by=options.connection.client_id,
        selection=selection_of(chosen),
        skip_others=options.skip_other_topics,
        limit=options.max_messages,
        again=options.again,
        dry_run=options.dry_run,
    )
    producer_config = context.client_config(PRODUCER_DEFAULTS)
    done = dead_letters.replay(config, producer_config, rules, shutdown, timeout_s=options.connection.look_timeout)
    if options.format_name == "json":
        click.echo(json.dumps(_document(rules, done)))
    elif options.dry_run:
        _say_what_would_be(chosen.topic, done)
    else:
        click.echo(outcome_of(rules, done))
        if done.skipped:
            click.echo(f"{done.skipped} dead letters of other topics passed over")
    complaints = complaints_about(rules, done, "pass them over with --skip-other-topics")
    if complaints:
        raise WorkerError("; ".join(complaints))


def outcome_of(rules: dead_letters.Rules, done: dead_letters.Replayed) -> str:
    return f"{done.sent} dead letters replayed from {rules.topic}"


def _document(rules: dead_letters.Rules, done: dead_letters.Replayed) -> dict[str, object]:
    return {
        "topic": rules.topic,
        "changed": not rules.dry_run,
        "replayed": done.sent,
        "to": dict(done.by_topic),
        "skipped": done.skipped,
        "without_origin": done.without_origin,
        "invalid_lines": done.invalid_lines,
        "refused": {str(partition): topic for partition, topic in done.refused.items()},
    }


def _say_what_would_be(topic: str, done: dead_letters.Replayed) -> None:
    to = ", ".join(f"{count} to {name}" for name, count in sorted(done.by_topic.items()))
    click.echo(f"{done.sent} dead letters of {topic} would be replayed{f', {to}' if to else ''}; nothing was changed")
    if done.skipped:
        click.echo(f"{done.skipped} dead letters of other topics would be passed over for good")


def complaints_about(rules: dead_letters.Rules, done: dead_letters.Replayed, remedy: str) -> list[str]:
    """Sentences about dead letters that were passed over without being asked for, and about those that were refused.

    `remedy` is the remedy for a refused one, beside --to-topic.
    """
    complaints = []
    if done.without_origin:
        complaints.append(
            f"{done.without_origin} messages of {rules.topic} do not say which topic they came from (header "
            f"{ORIGINAL_TOPIC}); they {'would be' if rules.dry_run else 'were'} passed over, and recorded as discarded"
        )
    if done.invalid_lines:
        complaints.append(
            f"{done.invalid_lines} dead letters of {rules.topic} are lines that `produce` could not send, so they wait"
            f"; mend them, send them with `produce --input`, and take them out with `dead-letters discard --error "
            f"{INVALID_LINE}`"
        )
    if done.refused:
        topics, partitions = sorted(set(done.refused.values())), ", ".join(map(str, sorted(done.refused)))
        allow = " ".join(f"--to-topic {topic}" for topic in sorted(rules.allowed.union(topics)))
        complaints.append(
            f"dead letters of {rules.topic} that say they came from {', '.join(topics)} may not be sent there; they "
            f"wait, and so do those behind them in partition {partitions}: allow it with {allow}, or {remedy}"
        )
    return complaints
