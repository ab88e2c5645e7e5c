"""What the commands do, put together from the modules that do it."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from confluent_kafka import KafkaError, Message
from confluent_kafka.admin import AdminClient

from workers.accounting.accounts import read_accounts
from workers.accounting.stamps import check_run, new_run, stream_of
from workers.accounting.verify import as_table as verified_as_table
from workers.config import (
    CLASSIC_DEFAULTS,
    COMMON_DEFAULTS,
    CONSUMER_DEFAULTS,
    PRODUCER_DEFAULTS,
    ClientConfig,
    Precedence,
    Setting,
    read_text,
)
from workers.consumer.failures import ErrorPolicy
from workers.consumer.loop import Consumer
from workers.consumer.printer import printer
from workers.deadletters import replay as letters
from workers.deadletters.headers import ORIGINAL_TOPIC
from workers.deadletters.writer import DeadLetters
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.handlers import load_handler
from workers.kafka import groups
from workers.kafka.client import ClientState, create_client, wait_for_topics
from workers.kafka.reader import read_topic
from workers.lifecycle import Shutdown, settle_memory
from workers.loading import load
from workers.monitoring.metrics import ConsumerCollector, ProducerCollector
from workers.producer.deliveries import outcome_of
from workers.producer.generator import DEFAULT_COUNT, DEFAULT_SIZE, StampedSource
from workers.producer.lines import LineFormat, read_file
from workers.producer.loop import Producer
from workers.producer.prefetch import ThreadedSource
from workers.producer.summary import as_text, summarize
from workers.sources import Source, SourceError, SourceRaisedError, call_source

if TYPE_CHECKING:
    from workers.cli.context import Context
    from workers.monitoring.server import Server

log = logging.getLogger("workers")
# Kubernetes sets it in the pods of an Indexed Job.
IN_A_JOB = "JOB_COMPLETION_INDEX"


def produce(context: "Context") -> None:
    """Runs the producer; raises WorkerError when a message was not acknowledged."""
    values = context.values
    config = context.client_config(PRODUCER_DEFAULTS)
    context.show_config(config)
    context.set_up_logging()
    _check_combinations(context)
    run, index = _run_and_index(context)
    shutdown = Shutdown(values["shutdown_timeout"])
    records = _records(context)
    producer = Producer(
        config,
        values["topic"],
        shutdown,
        rate=values["rate"],
        dead_letter_topic=_dead_letter_topic(values),
        report=_delivery_printer(shutdown) if values["verbose"] else None,
    )
    shutdown.install()
    collector = ProducerCollector(producer, config.get("client.id"))
    with context.serve(collector, producer.ready, producer.live) as server:
        producer.start(values["timeout"])
        source: Source
        if records is None:
            size = values["size"] or DEFAULT_SIZE
            source = StampedSource(run, index, size, _count(values), producer.partitions)
        else:
            stamp = stream_of(run, index, None) if values["stamp"] else None
            source = ThreadedSource(records, stamp, values["count"])
        settle_memory()
        trouble = _send_all(producer, source, values)
        _show_account(producer, run, values["summary"])
        _linger(server, values["linger"], shutdown)
    producer.close()
    if trouble is not None:
        raise trouble
    accounts = (producer.deliveries, producer.dead_letters)
    undelivered = sum(each.failed + each.unknown for each in accounts)
    if undelivered:
        raise WorkerError(f"{undelivered} of {sum(each.enqueued for each in accounts)} messages were not acknowledged")


def _dead_letter_topic(values: dict[str, Any]) -> str | None:
    """Where invalid lines go, None where they stop the producer."""
    if values["on_invalid"] != "dead-letter":
        return None
    _check_dead_letter_topic(values["dead_letter_topic"], [values["topic"]])
    return values["dead_letter_topic"] or f"{values['topic']}.dlq"


def _check_dead_letter_topic(name: str | None, topics: Sequence[str]) -> None:
    if name is not None and name in topics:
        raise ConfigError(f"--dead-letter-topic {name}: letters need a topic of their own, and --topic names it too")


def _check_combinations(context: "Context") -> None:
    values = context.values
    if values["input_path"] is not None and values["source"] is not None:
        raise ConfigError("--input and --source exclude each other; give one")
    if values["forever"] and values["count"] is not None:
        raise ConfigError("--forever and --count exclude each other; give one")
    own = values["input_path"] is not None or values["source"] is not None
    for name in ("key_separator", "key_field"):
        if values[name] is not None and values["input_path"] is None:
            raise ConfigError(f"{context.origin(name)} is about the lines of --input; give that too")
    if values["key_separator"] is not None and values["key_field"] is not None:
        raise ConfigError("--key-separator and --key-field exclude each other; give one")
    if values["key_separator"] == "":
        raise ConfigError("--key-separator is empty; give the characters between key and value")
    if values["size"] is not None and own:
        raise ConfigError("--size is about test messages; --input and --source have sizes of their own")
    if values["stamp"] and not own:
        raise ConfigError("--stamp is about --input and --source; test messages always carry a stamp")


def _run_and_index(context: "Context") -> tuple[str, int]:
    values = context.values
    try:
        run = check_run(values["run_name"]) if values["run_name"] is not None else new_run()
    except ValueError as error:
        raise ConfigError(f"{context.origin('run_name')}: {error}") from None
    if values["producer_index"] is not None:
        return run, values["producer_index"]
    # Kubernetes tells each pod of an Indexed Job its number in this variable.
    index = os.environ.get(IN_A_JOB, "0")
    if not index.isdecimal() or int(index) > 9999:
        raise ConfigError(f"variable {IN_A_JOB}: expected a number from 0 to 9999, got {index!r}")
    return run, int(index)


def _records(context: "Context") -> Iterator[dict[str, Any]] | None:
    """The user's own messages, or None for test messages. Opened now: a mistake must show before anything is sent."""
    values = context.values
    if values["source"] is not None:
        return call_source(load("--source", values["source"]), values["source"])
    if values["input_path"] is None:
        return None
    separator = values["key_separator"]
    line_format = LineFormat(
        separator.encode() if separator is not None else None,
        values["key_field"],
        values["on_invalid"] == "dead-letter",
    )
    return read_file(values["input_path"], line_format)


def _count(values: dict[str, Any]) -> int | None:
    if values["forever"] or (values["count"] is None and values["duration"] is not None):
        return None
    return values["count"] or DEFAULT_COUNT


def _send_all(producer: Producer, source: Source, values: dict[str, Any]) -> WorkerError | None:
    """Runs the producer; what went wrong is returned, because the account comes first."""
    length = values["count"] or (None if values["input_path"] or values["source"] else _count(values))
    show = length is not None and sys.stderr.isatty() and not values["verbose"]
    bar = click.progressbar(length=length or 1, label="sending", file=sys.stderr, show_pos=True) if show else None
    try:
        with bar if bar is not None else nullcontext():
            producer.run(source, values["duration"], bar.update if bar is not None else lambda _: None)
    except SourceError as error:
        code = ExitCode.FAILED if isinstance(error, SourceRaisedError) else ExitCode.USAGE
        return WorkerError(f"{error}; what came before it was sent", code)
    except WorkerError as error:
        return error
    if producer.interrupted and (not values["forever"] or IN_A_JOB in os.environ):
        # A Job that is stopped half way must count as failed, or nobody sends the rest.
        return WorkerError("stopped before the source was at its end; what was sent is accounted for above")
    return None


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
        except BrokenPipeError:
            # Nobody reads any more; an exception here would end up inside librdkafka.
            shutdown.request()

    return show


def _show_account(producer: Producer, run: str, form: str) -> None:
    letters = producer.dead_letters if producer.writes_letters else None
    summary = summarize(producer.deliveries, run, producer.finished_at - producer.started_at, letters)
    click.echo(json.dumps(summary) if form == "json" else as_text(summary))


def _linger(server: "Server | None", linger_s: float, shutdown: Shutdown) -> None:
    """A Job's last numbers must be scraped before its pod is gone."""
    if server is None or not linger_s:
        return
    server.scraped.clear()
    deadline = time.monotonic() + linger_s
    while time.monotonic() < deadline and not shutdown.requested:
        if server.scraped.wait(0.1):
            return


def consume(context: "Context") -> None:
    """Runs the consumer."""
    values = context.values
    config = _consumer_config(context)
    context.show_config(config)
    context.set_up_logging()
    _check_dead_letter_topic(values["dead_letter_topic"], values["topics"])
    shutdown = Shutdown(values["shutdown_timeout"])
    handler = load_handler(values["handler"]) if values["handler"] is not None else printer(values["format_name"])
    # The consumer's own properties mean nothing to the producer of dead letters, so it gets what is about the
    # connection.
    dead_letter_config = context.client_config(PRODUCER_DEFAULTS)
    consumer = Consumer(
        config,
        values["topics"],
        handler,
        shutdown,
        policy=ErrorPolicy(
            values["on_error"], values["max_attempts"], values["retry_backoff"], values["retry_backoff_max"]
        ),
        dead_letters=DeadLetters(dead_letter_config, values["dead_letter_topic"], config.get("group.id")),
        max_messages=values["max_messages"],
        idle_timeout_s=values["idle_timeout"],
        stall_timeout_s=values["stall_timeout"],
    )
    shutdown.install()
    with context.serve(ConsumerCollector(consumer, config.get("client.id")), consumer.ready, consumer.live):
        consumer.start(values["timeout"])
        settle_memory()
        try:
            consumer.run()
        finally:
            _show_consumed(consumer, values["summary"])
    if consumer.trouble is not None:
        raise WorkerError(consumer.trouble)


def replay(context: "Context") -> None:
    """Replays a dead-letter topic; raises WorkerError when a letter cannot be sent, which then stays to be replayed."""
    values = context.values
    name = "group_id"
    group = Setting("group.id", values[name], context.precedence(name), context.origin(name))
    config = context.client_config(CONSUMER_DEFAULTS, [group])
    context.show_config(config)
    context.set_up_logging()
    shutdown = Shutdown(values["shutdown_timeout"])
    shutdown.install()
    done = letters.replay(
        config,
        context.client_config(PRODUCER_DEFAULTS),
        values["topic"],
        shutdown,
        timeout_s=values["timeout"],
        limit=values["max_messages"],
    )
    click.echo(f"{done.sent} dead letters replayed from {values['topic']}")
    if done.without_origin:
        raise WorkerError(
            f"{done.without_origin} messages of {values['topic']} do not say which topic they came from (header "
            f"{ORIGINAL_TOPIC}); they were passed over"
        )


def _consumer_config(context: "Context") -> ClientConfig:
    values = context.values
    settings = [
        Setting(key, values[name], context.precedence(name), context.origin(name))
        for name, key in (("group_id", "group.id"), ("group_protocol", "group.protocol"))
    ]
    name = "from_beginning"
    if context.given(name):
        reset = "earliest" if values[name] else "latest"
        settings.append(Setting("auto.offset.reset", reset, context.precedence(name), context.origin(name)))
    config = context.client_config(CONSUMER_DEFAULTS, settings)
    if config.get("group.protocol") == "classic":
        return context.client_config((*CONSUMER_DEFAULTS, *CLASSIC_DEFAULTS), settings)
    return config


def _show_consumed(consumer: Consumer, form: str) -> None:
    """On standard error: standard output belongs to the messages."""
    topics = {
        topic.name: {
            "handled": topic.handled,
            "retried": topic.retried,
            "dead_lettered": topic.dead_lettered,
            **asdict(topic.order),
        }
        for topic in consumer.topics.values()
    }
    if form == "json":
        click.echo(json.dumps({"group": consumer.group_id, "topics": topics}), err=True)
        return
    for name, counts in topics.items():
        log.info("%s: %s", name, ", ".join(f"{count} {what.replace('_', '-')}" for what, count in counts.items()))


def lag(context: "Context") -> None:
    """Shows a group; raises WorkerError when it is further behind than allowed."""
    values = context.values
    config = context.client_config(COMMON_DEFAULTS)
    context.show_config(config)
    context.set_up_logging()
    shutdown = Shutdown(0)
    shutdown.install()
    client_state = ClientState()
    admin = create_client(AdminClient, config, client_state.callbacks())
    wait_for_topics(admin, list(values["topics"]), config, client_state, timeout_s=values["timeout"], shutdown=shutdown)
    while True:
        group = groups.describe(admin, values["group_id"], list(values["topics"]))
        if values["as_json"]:
            click.echo(json.dumps(groups.as_document(group)))
        else:
            if values["watch"] and sys.stdout.isatty():
                click.clear()
            click.echo(groups.as_table(group))
        until = time.monotonic() + values["interval"]
        while values["watch"] and not shutdown.requested and time.monotonic() < until:
            time.sleep(0.1)
        if not values["watch"] or shutdown.requested:
            break
    if values["max_lag"] is not None:
        _check_lag(group, values["max_lag"], values["topics"])


def _check_lag(group: groups.Group, max_lag: int, topics: Sequence[str]) -> None:
    """Raises WorkerError when the group is further behind than `max_lag`, or when that is not known."""
    if not group.partitions:
        raise WorkerError(f"group {group.group_id} has no partition of {', '.join(topics) or 'any topic'}")
    if group.unread:
        raise WorkerError(
            f"group {group.group_id} has committed nothing for {group.unread} partitions with messages, so how far it "
            "is behind is not known"
        )
    if group.total_lag > max_lag:
        raise WorkerError(f"group {group.group_id} is {group.total_lag} messages behind, --max-lag is {max_lag}")


def verify(context: "Context") -> None:
    """Verifies a topic; raises WorkerError with the code for loss when something acknowledged is not there."""
    values = context.values
    group = Setting("group.id", "kafka-workers-verify", Precedence.DEFAULT, "default: nothing is committed to it")
    config = context.client_config(CONSUMER_DEFAULTS, [group])
    context.show_config(config)
    context.set_up_logging()
    shutdown = Shutdown(0)
    shutdown.install()
    accounts = None
    if values["account"] == "-":
        accounts = read_accounts(sys.stdin.read(), "standard input", values["topic"])
    elif values["account"] is not None:
        accounts = read_accounts(read_text(Path(values["account"])), values["account"], values["topic"])
    observations = read_topic(config, values["topic"], shutdown, values["timeout"])
    reports = observations.report(accounts, values["runs"])
    if not reports:
        wanted = f"run {', '.join(values['runs'])}" if values["runs"] else "any run"
        raise ConfigError(f"no stamped message of {wanted} in {values['topic']}, so nothing is verified")
    if values["as_json"]:
        for report in reports:
            click.echo(json.dumps(asdict(report)))
    else:
        click.echo(verified_as_table(reports, observations))
    lost = sum(report.lost for report in reports)
    if lost:
        raise WorkerError(f"{lost} messages are lost: they should be in {values['topic']} and are not", ExitCode.LOSS)
