"""The command line: options, and wiring the modules together. Nothing is decided here.

A command imports its modules when it runs: `--help` and a worker's start pay only for what they use.
"""

import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from confluent_kafka import KafkaException

from workers.cli.context import Context
from workers.cli.dead_letters import dead_letters, replay
from workers.cli.offsets import offsets, reset_offsets
from workers.cli.options import (
    COMPLETION_VARIABLE,
    FUNCTION,
    GROUP,
    POSITIVE,
    POSITIVE_NUMBER,
    SECONDS,
    TOPIC,
    Command,
    Whole,
    connection_options,
    format_option,
    group_selection_options,
    metrics_options,
    no_metrics_option,
    option,
    registry_options,
    shutdown_timeout_option,
    summary_option,
    worker_options,
)
from workers.cli.parameters import (
    CanaryOptions,
    ConsumeOptions,
    LagExporterOptions,
    LagOptions,
    ProduceOptions,
    TopOptions,
    VerifyOptions,
    build,
)
from workers.errors import ConfigError, ExitCode, WorkerError
from workers.lifecycle import LEFT_BEHIND, installed_shutdown
from workers.producer.generator import DEFAULT_COUNT, DEFAULT_SIZE

# How long the end of a command waits for threads that the user's code has started.
THREADS_TIMEOUT_S = 2.0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="kafka-workers", message="%(prog)s %(version)s")
def cli() -> None:
    """Kafka workers that account for every message.

    Every option is an environment variable too: --some-option is KAFKA_SOME_OPTION.
    Exit codes: 0 all well, 1 something failed to deliver or a fatal Kafka error, 2 wrong usage or configuration, 3 a
    verification found loss.
    """


@cli.command(cls=Command)
@option("--topic", type=TOPIC, default="teste", show_default=True, help="Topic to write to.")
@option("--count", type=POSITIVE, help=f"Messages to send.  [default: {DEFAULT_COUNT}, or all of the input]")
@option("--rate", type=POSITIVE_NUMBER, help="Messages per second.  [default: as fast as it goes]")
@option("--size", type=Whole(57, 100_000_000), help=f"Bytes of a test message's value.  [default: {DEFAULT_SIZE}]")
@option("--duration", type=POSITIVE_NUMBER, help="Stop after this many seconds.")
@option("--forever", is_flag=True, help="Send until stopped.")
@option("--input", "input_path", metavar="FILE|-", help="Send the lines of a file, or of standard input.")
@option("--key-separator", help="Lines are KEY<separator>VALUE.")
@option("--key-field", help="Lines are JSON objects; this field is the key.")
@option(
    "--on-invalid",
    type=click.Choice(["stop", "dead-letter"]),
    default="stop",
    show_default=True,
    help="How to treat a line that is not such JSON, or cannot be written in its format.",
)
@option("--dead-letter-topic", type=TOPIC, help="Where invalid lines go.  [default: TOPIC.dlq]")
@option("--source", type=FUNCTION, metavar="MODULE:FUNCTION", help="Send what this function yields.")
@format_option("--key-format", "Format of keys, which are JSON in lines")
@format_option("--value-format", "Format of values, which are JSON in lines")
@option("--key-schema-file", type=Path, metavar="FILE", help="Schema of keys.  [default: the latest of TOPIC-key]")
@option(
    "--value-schema-file", type=Path, metavar="FILE", help="Schema of values.  [default: the latest of TOPIC-value]"
)
@registry_options
@option("--stamp", is_flag=True, help="Give messages of --input or --source a stamp in a header, for `verify`.")
@option("--run", "run_name", help="Name of this run in the stamps.  [default: a new one]")
@option(
    "--producer-index",
    type=Whole(0, 9999),
    default=None,
    help="Number of this producer in the stamps.  [default: JOB_COMPLETION_INDEX, or 0]",
)
@option("--verbose", is_flag=True, help="Print each delivery on standard output.")
@option(
    "--linger",
    type=SECONDS,
    default=0.0,
    show_default=True,
    help="Stay up at the end until the metrics have been scraped once, at most this many seconds.",
)
@worker_options
@connection_options
def produce(**parameters: Any) -> None:
    """Send messages, and account for every delivery.

    Without --input or --source they are stamped test messages, so that `verify` can tell what became of each.
    """
    options = build(ProduceOptions, parameters)
    shutdown = installed_shutdown(options.worker.shutdown_timeout)
    from workers.cli.produce import produce as run

    run(options, Context(options.connection), shutdown)


@cli.command(cls=Command)
@option(
    "--topic",
    "topics",
    type=TOPIC,
    multiple=True,
    default=["teste"],
    show_default=True,
    help="Topic to read; repeatable.",
)
@option("--group-id", type=GROUP, default="kafka-workers", show_default=True, help="Consumer group to join.")
@option(
    "--group-protocol",
    type=click.Choice(["classic", "consumer"]),
    default="classic",
    show_default=True,
    help="Rebalance protocol; consumer is KIP-848, for brokers from 4.0 on.",
)
@option("--client-rack", help="Our rack, or zone: the nearest replica is read instead of the leader.")
@option(
    "--format",
    "format_name",
    type=click.Choice(["text", "json", "value"]),
    default="text",
    show_default=True,
    help="How messages are printed.",
)
@option("--handler", type=FUNCTION, metavar="MODULE:NAME", help="Call this instead of printing.")
@option(
    "--middleware",
    "middlewares",
    type=FUNCTION,
    multiple=True,
    metavar="MODULE:NAME",
    help="Wrap the handler in this; repeatable, the first is the outermost.",
)
@format_option("--key-format", "Format of keys, which the handler gets as objects")
@format_option("--value-format", "Format of values, which the handler gets as objects")
@format_option("--output-key-format", "Format of the keys of what the handler gives back")
@format_option("--output-value-format", "Format of the values of what the handler gives back")
@registry_options
@option(
    "--on-error",
    type=click.Choice(["retry", "dead-letter", "stop"]),
    default="dead-letter",
    show_default=True,
    help="When the handler raises: retry for ever, or after --max-attempts write a dead letter or stop.",
)
@option("--max-attempts", type=POSITIVE, default=5, show_default=True, help="Calls of the handler for one message.")
@option(
    "--retry-backoff",
    type=POSITIVE_NUMBER,
    default=0.1,
    show_default=True,
    help="Seconds before the second call; then doubled.",
)
@option(
    "--retry-backoff-max", type=POSITIVE_NUMBER, default=30.0, show_default=True, help="Seconds between calls at most."
)
@option(
    "--dead-letter-topic",
    type=TOPIC,
    help="Where messages go that the handler never takes.  [default: TOPIC.dlq]",
)
@option(
    "--from-beginning/--from-end",
    default=True,
    show_default=True,
    help="Where the group has committed nothing: begin at the oldest message, or at what comes next.",
)
@option("--max-messages", type=POSITIVE, help="Stop after this many messages.")
@option(
    "--max-rate", type=POSITIVE_NUMBER, help="Messages a second that the handler is given at most.  [default: no limit]"
)
@option(
    "--max-dead-letter-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="When a larger share of the last minute's messages fails, they are tried again and none becomes a dead "
    "letter, as what the handler needs may be away.  [default: no limit]",
)
@option("--idle-timeout", type=POSITIVE_NUMBER, help="Stop when no message was received for this many seconds.")
@option(
    "--stall-timeout",
    type=POSITIVE_NUMBER,
    default=300.0,
    show_default=True,
    help="Seconds without progress after which /livez fails.",
)
@option(
    "--concurrency",
    type=Whole(1, 1000),
    default=1,
    show_default=True,
    help="Calls of the handler at once: threads, or for an async handler calls in its event loop.",
)
@option(
    "--order",
    type=click.Choice(["partition", "key", "none"]),
    help="Handle messages of a partition, or of a key, one after the other; none: in any order.  "
    "[default: partition; key when --concurrency is above 1]",
)
@option(
    "--batch-size",
    type=Whole(1, 2000),
    default=2000,
    show_default=True,
    help="Messages in a batch at most; a slow handler gets fewer.",
)
@option(
    "--max-offset-distance",
    type=Whole(min=100),
    default=10_000,
    show_default=True,
    help="Messages of a partition that may be ahead of the first one that is not done.",
)
@option(
    "--on-deleted",
    type=click.Choice(["continue", "stop"]),
    default="continue",
    show_default=True,
    help="When retention has deleted messages before they were handled: count them and go on, or stop.",
)
@option(
    "--exactly-once",
    is_flag=True,
    help="Write outputs, dead letters and offsets in one Kafka transaction; see docs/exactly-once.md.",
)
@option(
    "--transactional-id",
    help="With --exactly-once: a name of this process alone that it keeps when it starts again.  [default: a new one]",
)
@option(
    "--commit-interval",
    type=click.FloatRange(0.01, 5),
    help="With --exactly-once: seconds between the commits of transactions.  [default: 0.1]",
)
@worker_options
@connection_options
def consume(**parameters: Any) -> None:
    """Read topics as a member of a group, at least once; print each message or have a handler called."""
    options = build(ConsumeOptions, parameters)
    shutdown = installed_shutdown(options.worker.shutdown_timeout)
    from workers.cli.consume import consume as run

    run(options, Context(options.connection), shutdown)


@cli.command(cls=Command)
@option("--group-id", type=GROUP, default="kafka-workers", show_default=True, help="Consumer group.")
@option(
    "--topic", "topics", type=TOPIC, multiple=True, help="Only this topic; repeatable.  [default: all of the group]"
)
@option("--watch", is_flag=True, help="Show it again every --interval seconds until stopped.")
@option("--interval", type=POSITIVE_NUMBER, default=2.0, show_default=True, help="Seconds between two looks.")
@option("--json", "as_json", is_flag=True, help="One JSON document for each look.")
@option("--max-lag", type=Whole(min=0), help="Exit 1 when the group is further behind, in messages.")
@connection_options
def lag(**parameters: Any) -> None:
    """Show a consumer group as the brokers see it: members, their partitions, lag, idle members."""
    options = build(LagOptions, parameters)
    shutdown = installed_shutdown(0)
    from workers.cli.lag import lag as run

    run(options, Context(options.connection), shutdown)


@cli.command(cls=Command)
@group_selection_options
@option("--interval", type=POSITIVE_NUMBER, default=2.0, show_default=True, help="Seconds between two rounds.")
@option("--once", is_flag=True, help="Show one round as lines, without rates, which need two.")
@option("--plain", is_flag=True, help="Lines instead of a live table, as where there is no terminal.")
@option("--json", "as_json", is_flag=True, help="One JSON document for each round.")
@connection_options
def top(**parameters: Any) -> None:
    """Watch consumer groups: members, lag, rates and health; a live table on a terminal, lines elsewhere.

    Ctrl-C ends it with exit code 0. Rates are messages a second over the last 10 s: IN is written, OUT is committed.
    """
    options = build(TopOptions, parameters)
    shutdown = installed_shutdown(0)
    from workers.cli.top import top as run

    run(options, Context(options.connection), shutdown)


@cli.command(cls=Command)
@group_selection_options
@option("--interval", type=POSITIVE_NUMBER, default=15.0, show_default=True, help="Seconds between two rounds.")
@option(
    "--keep",
    type=POSITIVE_NUMBER,
    default=300.0,
    show_default=True,
    help="Seconds that the last values stay while a broker does not answer.",
)
@metrics_options
@connection_options
def lag_exporter(**parameters: Any) -> None:
    """Export the lag of consumer groups from the brokers, in messages and in seconds, also of groups without members.

    Scrapes read the last round, and ask the brokers for nothing.
    """
    options = build(LagExporterOptions, parameters)
    shutdown = installed_shutdown(0)
    from workers.cli.lag_exporter import lag_exporter as run

    run(options, Context(options.connection), shutdown)


@cli.command(cls=Command)
@option(
    "--topic", type=TOPIC, default="kafka-workers-canary", show_default=True, help="Topic of its own for the messages."
)
@option(
    "--interval",
    type=POSITIVE_NUMBER,
    default=1.0,
    show_default=True,
    help="Seconds between two messages to a partition.",
)
@option(
    "--max-latency",
    type=POSITIVE_NUMBER,
    default=5.0,
    show_default=True,
    help="Seconds within which a message has to be received; else its partition is unavailable.",
)
@option(
    "--lost-after",
    type=POSITIVE_NUMBER,
    default=15.0,
    show_default=True,
    help="An acknowledged message is lost when it was not received after this many seconds, and a later one was.",
)
@option(
    "--create/--no-create",
    default=True,
    show_default=True,
    help="Create the topic, add a partition for each new broker, and move leaders back; or leave it as it is.",
)
@option(
    "--replication-factor",
    type=Whole(1, 32767),
    default=3,
    show_default=True,
    help="Replicas of each partition of a new topic; no more than there are brokers.",
)
@option(
    "--min-insync-replicas",
    type=Whole(1, 32767),
    default=2,
    show_default=True,
    help="min.insync.replicas of a new topic; lowered where there are fewer brokers than replicas.",
)
@shutdown_timeout_option
@summary_option
@no_metrics_option
@metrics_options
@connection_options
def canary(**parameters: Any) -> None:
    """Probe the brokers all the time: send a message to each partition of a topic, read it back, export the outcome.

    Counts lost and duplicate messages, and measures latency and availability by broker. Exit code 3 when one was lost.
    """
    options = build(CanaryOptions, parameters)
    shutdown = installed_shutdown(options.shutdown_timeout)
    from workers.cli.canary import canary as run

    run(options, Context(options.connection), shutdown)


@cli.command(cls=Command)
@option("--topic", type=TOPIC, default="teste", show_default=True, help="Topic to read.")
@option(
    "--account",
    metavar="FILE|-",
    help="Output of `produce --summary json`: distinguishes lost messages from failed and unknown ones.",
)
@option("--run", "runs", multiple=True, help="Only this run; repeatable.")
@option("--json", "as_json", is_flag=True, help="One JSON document for each run.")
@connection_options
def verify(**parameters: Any) -> None:
    """Read a topic to its end and account for the stamped messages in it; exit 3 when one was lost.

    Without --account every gap below the highest sequence counts as lost.
    """
    options = build(VerifyOptions, parameters)
    shutdown = installed_shutdown(0)
    from workers.cli.verify import verify as run

    run(options, Context(options.connection), shutdown)


cli.add_command(dead_letters)
cli.add_command(replay)
cli.add_command(offsets)
cli.add_command(reset_offsets, "reset-offsets")


@cli.command(cls=Command)
@option("--brokers", type=Whole(1, 9), default=3, show_default=True, help="How many brokers.")
@option(
    "--create-topic",
    "topics",
    type=TOPIC,
    multiple=True,
    default=["teste", "teste.dlq"],
    show_default=True,
    help="Topics to create.",
)
@option("--partitions", type=POSITIVE, default=3, show_default=True, help="Partitions of each.")
@option(
    "--heap",
    "heap_mb",
    type=Whole(min=128),
    default=256,
    show_default=True,
    help="Java heap of a broker, MiB.",
)
@option(
    "--restart/--no-restart",
    default=True,
    show_default=True,
    help="Start a broker that has ended again after 5 s, or leave it down.",
)
def cluster(brokers: int, topics: tuple[str, ...], partitions: int, heap_mb: int, restart: bool) -> None:
    """Run a real Apache Kafka cluster on loopback until Ctrl-C; leaves nothing behind.

    It prints the PID of each broker: kill one to see what happens. The cluster ends by itself only when a broker
    fails to start three times.
    """
    from workers.local.cluster import Cluster
    from workers.local.supervisor import Supervisor

    shutdown = installed_shutdown(0)
    with Cluster(brokers, heap_mb=heap_mb, say=_say) as running:
        for topic in topics:
            running.create_topic(topic, partitions)
        # On standard output, alone on its line: scripts read it.
        click.echo(running.bootstrap_servers)
        _say(f"topics {', '.join(topics)}; to use it: export KAFKA_BOOTSTRAP_SERVERS={running.bootstrap_servers}")
        for broker in running.brokers:
            _say(f"broker {broker.node_id}: PID {broker.pid}, 127.0.0.1:{broker.port}, log {broker.log_path}")
        supervisor = Supervisor(running, _say, restart=restart)
        while not shutdown.requested:
            supervisor.look()
            time.sleep(0.1)


@cli.command()
@click.argument("name")
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where to make it; an empty directory, or none yet.  [default: NAME]",
)
def new(name: str, directory: Path | None) -> None:
    """Make a project to start from: a source, a handler, their tests, an image, and values for Kubernetes.

    NAME becomes that of the directory, of the image and, with dashes as underscores, of the Python package.
    """
    from workers.cli.new import new as run

    run(name, directory or Path(name))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, options, topics, groups and handlers in a shell."""
    from workers.cli.completion import script

    click.echo(script(shell), nl=False)


@cli.command(cls=Command)
@click.option("--quick", is_flag=True, help="Fewer messages: on an idle machine under 25 s instead of under 60.")
@click.option("--plain", is_flag=True, help="Lines instead of a live table, as where there is no terminal.")
@click.option("--svg", metavar="FILE", help="Draw the table with a broker down, and the account, into this file.")
def demo(quick: bool, plain: bool, svg: str | None) -> None:
    """See it work: three brokers, a producer, four consumers on three partitions, and a broker that is killed."""
    from workers.local.demo import run

    shutdown = installed_shutdown(10)
    live = not plain and sys.stdout.isatty()
    picture = None if svg is None else Path(svg)
    raise SystemExit(run(quick=quick, live=live, picture=picture, shutdown=shutdown, say=_say))


def _say(line: str) -> None:
    click.echo(line, err=True)


def main() -> None:
    """Runs the command; every error is one line on standard error and an exit code."""
    if COMPLETION_VARIABLE in os.environ:
        from workers.cli.completion import complete

        _end(complete(cli))
    command = " ".join(["kafka-workers", *_command_words(sys.argv[1:])])
    code: int = ExitCode.OK
    try:
        # From here on an interrupt is an exception, until the command handles signals itself.
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main(prog_name="kafka-workers", standalone_mode=False)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else ExitCode.FAILED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = ExitCode.USAGE
    except click.ClickException as error:
        text = error.format_message()
        # Click has its suggestions in brackets already.
        text, opening = (text[:-1], "; ") if text.endswith(")") else (text, " (")
        code = _complain(command, f"{text}{opening}see {command} --help)", ExitCode.USAGE)
    except ConfigError as error:
        code = _complain(command, str(error), ExitCode.USAGE)
    except WorkerError as error:
        code = _complain(command, str(error), error.code)
    except KafkaException as error:
        code = _complain(command, f"Kafka error: {error.args[0].str()}", ExitCode.FAILED)
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        code = ExitCode.OK
    except OSError as error:
        code = _complain(command, f"standard output cannot be written: {error.strerror}", ExitCode.FAILED)
    _end(code)


def _command_words(arguments: Sequence[str]) -> Sequence[str]:
    """The words that name the command: one, or two for one that a group has."""
    words = [*itertools.takewhile(lambda word: not word.startswith("-"), arguments)]
    group = cli.commands.get(words[0]) if words else None
    if group is None:
        return []
    return words[: 2 if isinstance(group, click.Group) and set(words[1:2]) & group.commands.keys() else 1]


def _complain(command: str, text: str, code: ExitCode) -> ExitCode:
    click.echo(f"{command}: {' '.join(text.split())}", err=True)
    return code


def _end(code: int) -> None:
    """Ends, at once where something was left behind: the interpreter would wait for it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.stderr.flush()
    if any(thread.name in LEFT_BEHIND for thread in threading.enumerate()):
        os._exit(code)
    # Threads of the user's own may never end.
    leaving = threading.Timer(THREADS_TIMEOUT_S, os._exit, [code])
    leaving.daemon = True
    leaving.start()
    sys.exit(code)
