"""`consume`: reads topics as a member of a group, and has each message handled."""

import json
import logging
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from confluent_kafka import IsolationLevel
from confluent_kafka.admin import AdminClient

from workers.cli.commands.consume import ConsumeOptions
from workers.cli.context import Context
from workers.cli.parameters import check_dead_letter_topic
from workers.cli.tracing import start_tracing
from workers.config import (
    CLASSIC_DEFAULTS,
    COMMON_DEFAULTS,
    CONSUMER_DEFAULTS,
    OUTPUT_DEFAULTS,
    TRANSACTION_DEFAULTS,
    ClientConfig,
)
from workers.consumer.failures import ErrorPolicy
from workers.consumer.loop import Consumer
from workers.consumer.options import Handling, Limits
from workers.consumer.outputs import Outputs
from workers.consumer.parts import DeadLetterWriter, OutputSender
from workers.deadletters.writer import DeadLetters
from workers.errors import ConfigError, WorkerError
from workers.handlers import Lifespan, Middleware, load_handler, load_middlewares
from workers.kafka.client import UNPOLLED, create_client
from workers.kafka.watermarks import Watermarks
from workers.lifecycle import Shutdown, Stopped, settle_memory
from workers.monitoring.metrics import ConsumerCollector

if TYPE_CHECKING:
    from workers.consumer.held_dead_letters import HeldDeadLetters
    from workers.consumer.transactions import Transaction
    from workers.tracing.consuming import HandlerSpans

log = logging.getLogger("workers")
# As Kafka Streams commits with exactly-once.
COMMIT_INTERVAL_S = 0.1


def consume(options: ConsumeOptions, context: Context, shutdown: Shutdown) -> None:
    """Runs the consumer."""
    config = _consumer_config(options, context)
    registry_config = context.registry_config(options.registry)
    context.show_config(config, registry_config)
    context.set_up_logging()
    check_dead_letter_topic(context.origin("dead_letter_topic"), options.dead_letter_topic, options.topics)
    if options.handler is not None and context.given("format_name"):
        raise ConfigError(
            f"{context.origin('format_name')} says how messages are printed, and {context.origin('handler')} has them "
            "handled instead; leave one out, in a worker's pod with env -u KAFKA_HANDLER"
        )
    _check_exactly_once(options, context, config)
    try:
        with shutdown.at_once():
            handler = _handler(options)
            middlewares = [*_coding(options, context, registry_config), *load_middlewares(options.middlewares)]
    except Stopped:
        log.info("stopped before the handler was ready; nothing was read")
        return
    spans = _start_tracing(context, config) if options.worker.tracing else None
    if spans is not None:
        middlewares.insert(0, spans.middleware)
    # The consumer's own properties mean nothing to the producers of dead letters and outputs, so they get what is about
    # the connection.
    producer_config = context.client_config(OUTPUT_DEFAULTS)
    policy = ErrorPolicy(options.on_error, options.max_attempts, options.retry_backoff, options.retry_backoff_max)
    admin_config = context.client_config(COMMON_DEFAULTS)
    committed_only = config.get("isolation.level", "read_committed") == "read_committed"
    watermarks = Watermarks(
        lambda: create_client(AdminClient, admin_config, UNPOLLED),
        IsolationLevel.READ_COMMITTED if committed_only else IsolationLevel.READ_UNCOMMITTED,
    )
    outputs: OutputSender
    dead_letters: DeadLetterWriter
    if options.exactly_once:
        outputs, dead_letters = _transaction(options, context, config.get("group.id"), policy)
    else:
        outputs = Outputs(producer_config, options.worker.auth_timeout)
        dead_letters = DeadLetters(
            producer_config, options.dead_letter_topic, config.get("group.id"), options.worker.auth_timeout
        )
    handling = Handling(
        handler,
        middlewares,
        concurrency=options.concurrency,
        order=options.order or ("partition" if options.concurrency == 1 else "key"),
        policy=policy,
        on_decision=spans.on_decision if spans is not None else None,
    )
    limits = Limits(
        max_messages=options.max_messages,
        max_rate=options.max_rate,
        max_dead_letter_share=options.max_dead_letter_share,
        idle_timeout_s=options.idle_timeout,
        stall_timeout_s=options.stall_timeout,
        batch_size=options.batch_size,
        max_distance=options.max_offset_distance,
    )
    consumer = Consumer(
        config,
        options.topics,
        handling,
        limits,
        shutdown,
        dead_letters=dead_letters,
        outputs=outputs,
        watermarks=watermarks,
        stop_on_deleted=options.on_deleted == "stop",
        auth_timeout_s=options.worker.auth_timeout,
    )
    metrics = None if options.worker.no_metrics else options.metrics
    with context.serve(metrics, ConsumerCollector(consumer, config.get("client.id")), consumer.ready, consumer.live):
        consumer.start(options.connection.timeout)
        settle_memory()
        try:
            consumer.run()
        finally:
            _show_consumed(consumer, options.worker.summary)
            if spans is not None:
                spans.close(shutdown.remaining_s())
    if consumer.trouble is not None:
        raise WorkerError(consumer.trouble)


def _handler(options: ConsumeOptions) -> Lifespan:
    if options.handler is not None:
        return load_handler(options.handler)
    from workers.consumer.printer import printer

    return printer(options.format_name)


def _transaction(
    options: ConsumeOptions, context: Context, group_id: str, policy: ErrorPolicy
) -> "tuple[Transaction, HeldDeadLetters]":
    from workers.consumer.held_dead_letters import HeldDeadLetters
    from workers.consumer.transactions import Transaction

    transaction = Transaction(
        context.client_config(TRANSACTION_DEFAULTS),
        options.transactional_id or f"{group_id}-{uuid.uuid4().hex[:12]}",
        options.commit_interval or COMMIT_INTERVAL_S,
        policy,
        options.worker.auth_timeout,
    )
    return transaction, HeldDeadLetters(options.dead_letter_topic, group_id, transaction)


def _start_tracing(context: Context, config: ClientConfig) -> "HandlerSpans":
    tracing = start_tracing(context)
    from workers.tracing.consuming import HandlerSpans

    return HandlerSpans(tracing, config.get("group.id"), config.get("client.id"))


def _coding(options: ConsumeOptions, context: Context, registry_config: ClientConfig) -> list[Middleware]:
    """The middleware of the formats, where there is one; around the user's own, which get decoded messages."""
    for name in ("output_key_format", "output_value_format"):
        if context.given(name) and options.handler is None:
            raise ConfigError(f"{context.origin(name)} is about the outputs of a handler; add --handler")
    formats = (options.key_format, options.value_format, options.output_key_format, options.output_value_format)
    if not any(formats):
        return []
    from workers.cli.formats import CodecMaker
    from workers.schemas.middleware import coding

    maker = CodecMaker(context, registry_config, options.registry, options.worker.auth_timeout)
    incoming = maker.codecs("", {"key": options.key_format, "value": options.value_format}, {})
    outgoing = maker.codecs("output_", {"key": options.output_key_format, "value": options.output_value_format}, {})
    return [coding(incoming, outgoing)]


def _check_exactly_once(options: ConsumeOptions, context: Context, config: ClientConfig) -> None:
    if not options.exactly_once:
        for name in ("transactional_id", "commit_interval"):
            if context.given(name):
                raise ConfigError(f"{context.origin(name)} is for --exactly-once; add that, or leave it out")
        return
    if options.transactional_id == "":
        raise ConfigError(f"{context.origin('transactional_id')} is empty; give it a name, or leave it out")
    isolation = config.settings["isolation.level"]
    if isolation.value != "read_committed":
        raise ConfigError(
            f"{isolation.origin}: isolation.level={isolation.value} reads messages of aborted transactions, and "
            "--exactly-once needs read_committed; leave it out"
        )


def _consumer_config(options: ConsumeOptions, context: Context) -> ClientConfig:
    settings = [
        context.setting("group.id", "group_id", options.group_id),
        context.setting("group.protocol", "group_protocol", options.group_protocol),
    ]
    if options.client_rack is not None:
        settings.append(context.setting("client.rack", "client_rack", options.client_rack))
    if context.given("from_beginning"):
        reset = "earliest" if options.from_beginning else "latest"
        settings.append(context.setting("auto.offset.reset", "from_beginning", reset))
    config = context.client_config(CONSUMER_DEFAULTS, settings)
    if config.get("group.protocol") == "classic":
        return context.client_config((*CONSUMER_DEFAULTS, *CLASSIC_DEFAULTS), settings)
    return config


def _show_consumed(consumer: Consumer, form: str) -> None:
    """On standard error: standard output belongs to the messages."""
    topics = {
        topic.name: {
            "handled": topic.handled - topic.rolled_back,
            "rolled_back": topic.rolled_back,
            "retried": topic.retried,
            "dead_lettered": topic.dead_lettered,
            "deleted": topic.deleted,
            **asdict(topic.order),
        }
        for topic in consumer.status.topics.values()
    }
    outputs = {
        name: {"acknowledged": each.acknowledged, "failed": each.failed, "unknown": each.unknown}
        for name, each in consumer.status.outputs.items()
    }
    if form == "json":
        click.echo(json.dumps({"group": consumer.group_id, "topics": topics, "outputs": outputs}), err=True)
        return
    for name, outcomes in outputs.items():
        log.info("outputs to %s: %s", name, ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
    for name, counts in topics.items():
        log.info("%s: %s", name, ", ".join(f"{count} {what.replace('_', '-')}" for what, count in counts.items()))
