"""Completion of values: topics and groups that the brokers have, and users' functions.

It runs while somebody types: it never says anything, and takes a second at the most to ask brokers.
"""

import ast
import contextlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)
from confluent_kafka.admin import AdminClient

from workers.cli.context import Context
from workers.cli.options import COMPLETION_VARIABLE
from workers.cli.parameters import ConnectionOptions, build
from workers.config import COMMON_DEFAULTS
from workers.deadletters.headers import SUFFIX
from workers.kafka.client import UNPOLLED, create_client
from workers.lifecycle import call_with_timeout

PROGRAM = "kafka-workers"
ANSWER_TIMEOUT_S = 1.0


class _Bash(BashComplete):
    """Bash cuts words at each colon, as in localhost:9092 and mine:handle: take the line, and give back the piece that
    is behind the last one.
    """

    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' response completion
    response=$(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_BREAKS="$COMP_WORDBREAKS" \
%(complete_var)s=bash_complete $1 2> /dev/null)
    for completion in $response; do
        case $completion in
            dir,*) compopt -o dirnames ;;
            file,*) compopt -o default ;;
            plain,*:) compopt -o nospace; COMPREPLY+=("${completion#plain,}") ;;
            plain,*) COMPREPLY+=("${completion#plain,}") ;;
        esac
    done
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_LINE"]
        words = split_arg_string(line)[1:]
        return (words, "") if line[-1:].isspace() or not words else (words[:-1], words[-1])

    def format_completion(self, item: CompletionItem[str]) -> str:
        typed = split_arg_string(os.environ["COMP_LINE"])[-1]
        # As typed, with --option= before it or not.
        before, colon, _ = typed.rpartition("=")[2].rpartition(":")
        value = str(item.value)
        if colon and ":" in os.environ.get("COMP_BREAKS", ":"):
            value = value.removeprefix(before + colon)
        return f"{item.type},{value}"


def script(shell: str) -> str:
    """The script that makes `shell` (bash, zsh, fish) complete the command line."""
    add_completion_class(_Bash)
    found = get_completion_class(shell)
    assert found is not None
    return found(click.Group(), {}, PROGRAM, COMPLETION_VARIABLE).source()


def complete(cli: click.Command) -> int:
    """Answer the shell, which has set COMPLETION_VARIABLE; return the exit code. Never raises, never prints errors."""
    add_completion_class(_Bash)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            cli.main(prog_name=PROGRAM, standalone_mode=False)
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 1
        except (Exception, KeyboardInterrupt):
            return 1
    return 0


def topics(context: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    """Topics of the brokers; of the commands on dead letters, those that look like dead-letter topics if there are."""
    names = _ask(context, lambda admin: admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics)
    matching = _matching(names, incomplete)
    if not incomplete.startswith("_"):
        matching = [name for name in matching if not name.startswith("__")]
    if "source_topics" in context.params:
        matching = [name for name in matching if name.endswith(SUFFIX)] or matching
    return [CompletionItem(name) for name in matching]


def groups(context: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    """Groups of the brokers."""

    def ask(admin: AdminClient) -> Iterable[str]:
        listed = admin.list_consumer_groups(request_timeout=ANSWER_TIMEOUT_S).result()
        return [each.group_id for each in listed.valid]

    return [CompletionItem(name) for name in _matching(_ask(context, ask), incomplete)]


def functions(incomplete: str) -> list[CompletionItem[str]]:
    """Functions and classes of the modules in the working directory, as MODULE:NAME. Nothing is imported.

    Where several modules match, they come first, without their names.
    """
    module, colon, _ = incomplete.partition(":")
    if not colon:
        modules = [".".join(path.with_suffix("").parts) for path in (*Path().glob("*.py"), *Path().glob("*/*.py"))]
        matching = [name for name in _matching(modules, incomplete) if re.fullmatch(r"[\w.]+", name)]
        if len(matching) != 1:
            return [CompletionItem(f"{name}:") for name in matching]
        [module] = matching
    try:
        tree = ast.parse(Path(*module.split(".")).with_suffix(".py").read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [f"{module}:{node.name}" for node in tree.body if isinstance(node, kinds) and node.name[0] != "_"]
    return [CompletionItem(name) for name in _matching(names, incomplete)]


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def _ask(context: click.Context, ask: Callable[[AdminClient], Iterable[str]]) -> list[str]:
    """The brokers' answer within a second to a client with the options typed so far; empty without an answer."""
    answer: list[str] = []

    def run() -> None:
        # A wrong option, a file that cannot be read, unreachable brokers: somebody is still typing.
        with contextlib.suppress(Exception), context:
            config = Context(build(ConnectionOptions, context.params)).client_config(COMMON_DEFAULTS)
            answer.extend(ask(create_client(AdminClient, config, UNPOLLED)))

    call_with_timeout(run, ANSWER_TIMEOUT_S)
    return answer
