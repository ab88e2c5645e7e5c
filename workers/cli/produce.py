"""`produce`: sends messages, and accounts for every delivery."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from confluent_kafka import KafkaError, Message

from workers.accounting.stamps import MAX_PRODUCERS, check_run, new_run, stream_of
from workers.cli.commands.produce import ProduceOptions
from workers.cli.context import Context, show
from workers.cli.parameters import check_dead_letter_topic
from workers.cli.tracing import start_tracing
from workers.config import PRODUCER_DEFAULTS, ClientConfig
from workers.deadletters.headers import dead_letter_topic
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.lifecycle import Shutdown, Stopped, settle_memory
from workers.loading import load
from workers.monitoring.metrics import ProducerCollector
from workers.producer.deliveries import outcome_of
from workers.producer.generator import DEFAULT_COUNT, DEFAULT_SIZE, StampedSource
from workers.producer.loop import Producer
from workers.producer.summary import as_text, summarize
from workers.sources import Source, SourceError, SourceRaisedError, call_source

if TYPE_CHECKING:
    from workers.monitoring.server import Server
    from workers.schemas.codecs import Codecs
    from workers.tracing.sdk import Tracing

log = logging.getLogger("workers")
# Kubernetes sets it in the pods of an Indexed Job.
IN_A_JOB = "JOB_COMPLETION_INDEX"


def produce(options: ProduceOptions, context: Context, shutdown: Shutdown) -> None:
    """Runs the producer; raises WorkerError when a message was not acknowledged."""
    config = context.client_config(PRODUCER_DEFAULTS)
    registry_config = context.registry_config(options.registry)
    context.show_config(config, registry_config)
    context.set_up_logging()
    _check_combinations(options, context)
    run, index = _run_and_index(options, context)
    try:
        with shutdown.at_once():
            records = _records(options, _codecs(options, context, registry_config))
    except Stopped:
        if _must_finish(options):
            raise WorkerError("stopped before the source was ready; nothing was sent") from None
        log.info("stopped before the source was ready; nothing was sent")
        return
    tracing = start_tracing(context) if options.worker.tracing else None
    producer = Producer(
        config,
        options.topic,
        shutdown,
        rate=options.rate,
        dead_letter_topic=_dead_letter_topic(options, context),
        report=_delivery_printer(shutdown) if options.verbose else None,
        auth_timeout_s=options.worker.auth_timeout,
    )
    collector = ProducerCollector(producer, config.get("client.id"))
    metrics = None if options.worker.no_metrics else options.metrics
    with context.serve(metrics, collector, producer.ready, producer.live) as server:
        producer.start(options.connection.timeout)
        source: Source
        # At a stop the user's source is not begun: nothing that it gives could be sent.
        if records is None or shutdown.requested:
            size = options.size or DEFAULT_SIZE
            source = StampedSource(run, index, size, _count(options), producer.partitions)
        else:
            from workers.producer.prefetch import ThreadedSource, ahead_at

            stamp = stream_of(run, index, None) if options.stamp else None
            source = ThreadedSource(records, stamp, options.count, ahead_at(options.rate))
        if tracing is not None:
            source = _traced(source, tracing, producer, config.get("client.id"))
        settle_memory()
        trouble = _send_all(producer, source, options)
        _show_account(producer, run, options.worker.summary)
        if tracing is not None:
            tracing.close(shutdown.remaining_s())
        _linger(server, options.linger, shutdown)
    producer.close()
    if trouble is not None:
        raise trouble
    accounts = (producer.deliveries, producer.dead_letters)
    undelivered = sum(each.failed + each.unknown for each in accounts)
    if undelivered:
        sent = sum(each.enqueued for each in accounts)
        first = next(each.first_error for each in accounts if each.first_error)
        raise WorkerError(f"{undelivered} of {sent} messages were not acknowledged; the first: {first}")


def _traced(source: Source, tracing: "Tracing", producer: Producer, client_id: str) -> Source:
    from workers.tracing.producing import TracedSource

    return TracedSource(source, tracing, producer.deliveries.topic, producer.dead_letters.topic, client_id)


def _dead_letter_topic(options: ProduceOptions, context: Context) -> str | None:
    """Where invalid lines go, None where they stop the producer."""
    if options.on_invalid != "dead-letter":
        return None
    check_dead_letter_topic(context.origin("dead_letter_topic"), options.dead_letter_topic, [options.topic])
    return dead_letter_topic(options.topic, options.dead_letter_topic)


def _check_combinations(options: ProduceOptions, context: Context) -> None:
    for one, other in (("input_path", "source"), ("forever", "count"), ("key_separator", "key_field")):
        if all(getattr(options, name) not in (None, False) for name in (one, other)):
            raise ConfigError(f"{context.origin(one)} and {context.origin(other)} exclude each other; give one")
    own = options.input_path is not None or options.source is not None
    for name, value in (("key_separator", options.key_separator), ("key_field", options.key_field)):
        if value is not None and options.input_path is None:
            raise ConfigError(f"{context.origin(name)} applies only to lines of --input; add --input")
    if options.key_separator == "":
        raise ConfigError(f"{context.origin('key_separator')} is empty; give the characters between key and value")
    if options.size is not None and own:
        raise ConfigError(
            f"{context.origin('size')} is about test messages, and those of "
            f"{context.origin('source' if options.source else 'input_path')} have sizes of their own; leave one out"
        )
    for name in ("key_format", "value_format"):
        if context.given(name) and not own:
            raise ConfigError(f"{context.origin(name)} is about --input and --source; test messages have no format")
    if options.key_format is not None and options.input_path and not (options.key_separator or options.key_field):
        raise ConfigError(
            f"{context.origin('key_format')}: lines have no keys; give --key-separator or --key-field, or leave it out"
        )
    if options.stamp and not own:
        raise ConfigError(
            f"{context.origin('stamp')} is about --input and --source; test messages always carry a stamp; leave it out"
        )


def _run_and_index(options: ProduceOptions, context: Context) -> tuple[str, int]:
    try:
        run = check_run(options.run_name) if options.run_name is not None else new_run()
    except ValueError as error:
        raise ConfigError(f"{context.origin('run_name')}: {error}") from None
    if options.producer_index is not None:
        return run, options.producer_index
    # Kubernetes tells each pod of an Indexed Job its number in this variable.
    index = os.environ.get(IN_A_JOB, "0")
    if not index.isdecimal() or int(index) >= MAX_PRODUCERS:
        raise ConfigError(f"variable {IN_A_JOB}: expected a number from 0 to {MAX_PRODUCERS - 1}, got {index!r}")
    return run, int(index)


def _codecs(options: ProduceOptions, context: Context, registry_config: ClientConfig) -> "Codecs | None":
    """How keys and values are written, None for bytes; the schemas are had now, so that nothing is sent without one."""
    if not any((options.key_format, options.value_format, options.key_schema_file, options.value_schema_file)):
        return None
    from workers.cli.formats import CodecMaker, prepare

    codecs = CodecMaker(context, registry_config, options.registry, options.worker.auth_timeout).codecs(
        "",
        {"key": options.key_format, "value": options.value_format},
        {"key": options.key_schema_file, "value": options.value_schema_file},
    )
    prepare(codecs, options.topic, options.connection.timeout)
    return codecs


def _records(options: ProduceOptions, codecs: "Codecs | None") -> Iterable[dict[str, Any]] | None:
    """The user's own messages, or None for test messages. Opened now: a mistake must show before anything is sent."""
    if options.source is not None:
        encode = partial(codecs.encode, topic=options.topic) if codecs else None
        return call_source(load("--source", options.source), options.source, encode)
    if options.input_path is None:
        return None
    from workers.producer.lines import LineFormat, read_file
    from workers.schemas.codecs import NO_CODECS

    separator = options.key_separator
    line_format = LineFormat(
        separator.encode() if separator is not None else None,
        options.key_field,
        options.on_invalid == "dead-letter",
        codecs or NO_CODECS,
        options.topic,
    )
    return read_file(options.input_path, line_format)


def _count(options: ProduceOptions) -> int | None:
    if options.forever or (options.count is None and options.duration is not None):
        return None
    return options.count or DEFAULT_COUNT


def _send_all(producer: Producer, source: Source, options: ProduceOptions) -> WorkerError | None:
    """Runs the producer; what went wrong is returned, because the account comes first."""
    length = options.count or (None if options.input_path or options.source else _count(options))
    show = length is not None and sys.stderr.isatty() and not options.verbose
    bar = click.progressbar(length=length or 1, label="sending", file=sys.stderr, show_pos=True) if show else None
    try:
        with bar if bar is not None else nullcontext():
            producer.run(source, options.duration, bar.update if bar is not None else lambda _: None)
    except SourceError as error:
        code = ExitCode.FAILED if isinstance(error, SourceRaisedError) else ExitCode.USAGE
        sent = producer.deliveries.enqueued + producer.dead_letters.enqueued
        return WorkerError(f"{error}; earlier messages were sent" if sent else str(error), code)
    except WorkerError as error:
        return error
    if producer.interrupted and _must_finish(options):
        return WorkerError("stopped before the source was at its end; what was sent is accounted for above")
    return None


def _must_finish(options: ProduceOptions) -> bool:
    """Whether a stop before the end is a failure: a Job must count as failed, or nobody sends the rest."""
    return not options.forever or IN_A_JOB in os.environ


def _delivery_printer(shutdown: Shutdown) -> Callable[[KafkaError | None, Message], None]:
    def show(error: KafkaError | None, message: Message) -> None:
        if error is None:
            # Brokers do not say the offset of a message that they had already when its retry came.
            offset = message.offset()
            line = f"delivered {message.topic()}[{message.partition()}]@{'unknown' if offset is None else offset}"
        else:
            line = f"{outcome_of(error)} {message.topic()}: {error.name()}: {error.str()}"
        try:
            print(line)
        except OSError:
            # Nobody reads any more, or a disk is full: `poll` raised it before the other deliveries were accounted for.
            shutdown.request()

    return show


def _show_account(producer: Producer, run: str, form: str) -> None:
    dead_letters = producer.dead_letters if producer.writes_dead_letters else None
    summary = summarize(producer.deliveries, run, producer.finished_at - producer.started_at, dead_letters)
    text = json.dumps(summary) if form == "json" else as_text(summary)
    try:
        show(text)
    except OSError:
        click.echo(text, err=True)
        raise


def _linger(server: "Server | None", linger_s: float, shutdown: Shutdown) -> None:
    """A Job's last numbers must be scraped before its pod is gone."""
    if server is None or not linger_s:
        return
    server.scraped.clear()
    deadline = time.monotonic() + linger_s
    while time.monotonic() < deadline and not shutdown.requested:
        if server.scraped.wait(0.1):
            return
