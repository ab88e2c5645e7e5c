"""The command line: the commands, and their errors as one line and an exit code.

`commands/` declares each command in a module of its name, which is imported when the command is used, and which
imports what does the work when it runs: `--help` and a worker's start pay only for what they use.
"""

import errno
import itertools
import os
import select
import signal
import sys
import threading
from collections import UserDict
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click
from confluent_kafka import KafkaException

from workers.cli.options import COMPLETION_VARIABLE
from workers.errors import TOO_MANY_FILES, ConfigError, ExitCode, WorkerError
from workers.escaping import one_line
from workers.lifecycle import LEFT_BEHIND

# How long the end of a command waits for threads that the user's code has started.
THREADS_TIMEOUT_S = 2.0
# Errors of a write, of which standard output is the only one that nobody else reports.
_OF_A_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


# The commands, with the first sentence of their help, which the list of all commands shows without importing them.
SUMMARIES = {
    "canary": "Probe the brokers all the time: send a message to each partition of a topic, read it back, export the "
    "outcome.",
    "cluster": "Run a real Apache Kafka cluster on loopback until Ctrl-C; leaves nothing behind.",
    "completion": "Print the script that completes commands, options, topics, groups and handlers in a shell.",
    "consume": "Read topics as a member of a group, at least once; print each message, or call a handler with it.",
    "dead-letters": "List, show, browse, replay and discard dead letters.",
    "demo": "See it work: three brokers, a producer, four consumers on three partitions, and a broker that is killed.",
    "lag": "Show a consumer group as the brokers see it: members, their partitions, lag, idle members.",
    "lag-exporter": "Export the lag of consumer groups from the brokers, in messages and in seconds, also of "
    "groups without members.",
    "new": "Make a project to start from: a source, a handler, their tests, an image, and values for Kubernetes.",
    "offsets": "Show a group's committed offsets, or change them.",
    "produce": "Send messages, and account for every delivery.",
    "top": "Watch consumer groups: members, lag, rates and health; a live table on a terminal, lines elsewhere.",
    "verify": "Read a topic to its end and account for the stamped messages in it; exit 3 when one was lost.",
}


class Declared(UserDict[str, Any]):
    """The commands by name; the module of one is imported when it is asked for."""

    def __getitem__(self, name: str) -> click.Command:
        command: click.Command | None = self.data[name]
        if command is None:
            attribute = name.replace("-", "_")
            command = self.data[name] = getattr(import_module(f"workers.cli.commands.{attribute}"), attribute)
        return command


class OutputClosedError(Exception):
    """Nobody reads standard output any more: click would end with 1."""


class Commands(click.Group):
    """The group of all commands, whose help imports none of them."""

    def invoke(self, ctx: click.Context) -> Any:
        """Raise OutputClosedError where standard output is closed, as by `| head -1`."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            if not _reader_has_gone():
                raise
            raise OutputClosedError from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        listed = click.Group(commands={name: click.Command(name, help=summary) for name, summary in SUMMARIES.items()})
        listed.format_commands(ctx, formatter)


@click.group(
    cls=Commands,
    commands=Declared(dict.fromkeys(SUMMARIES)),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="kafka-workers", message="%(prog)s %(version)s")
def cli() -> None:
    """Kafka workers that account for every message.

    Every option of a command that connects to brokers is an environment variable too: --some-option is
    KAFKA_SOME_OPTION.
    Exit codes: 0 all well, 1 something failed to deliver or a fatal Kafka error, 2 wrong usage or configuration, 3 a
    verification found loss.
    """


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
    except OutputClosedError:
        code = ExitCode.OK
    except OSError as error:
        code = _complain(command, _described(error), ExitCode.FAILED)
    _end(code)


def _command_words(arguments: Sequence[str]) -> Sequence[str]:
    """The words that name the command: one, or two for one that a group has."""
    words = [*itertools.takewhile(lambda word: not word.startswith("-"), arguments)]
    group = cli.commands.get(words[0]) if words else None
    if group is None:
        return []
    return words[: 2 if isinstance(group, click.Group) and set(words[1:2]) & group.commands.keys() else 1]


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads."""
    looked = select.poll()
    looked.register(sys.stdout, 0)
    return any(events & select.POLLERR for _, events in looked.poll(0))


def _described(error: OSError) -> str:
    if error.errno in TOO_MANY_FILES:
        return f"{error.strerror}; raise the limit of the process (ulimit -n)"
    if error.filename is None and error.errno in _OF_A_WRITE:
        return f"standard output cannot be written: {error.strerror}"
    return str(error)


def _complain(command: str, text: str, code: ExitCode) -> ExitCode:
    click.echo(f"{command}: {one_line(' '.join(text.split()))}", err=True)
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
