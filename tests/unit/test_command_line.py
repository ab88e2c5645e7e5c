"""Mistakes on the command line and in the environment that end a command before it connects."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from tests.programs import run_python
from workers.cli import parameters
from workers.cli.browse import KafkaDesk
from workers.cli.main import SUMMARIES, cli
from workers.errors import WorkerError

COMMAND = [sys.executable, "-m", "workers"]

# Nothing listens there, and the wait for it is short: a mistake that is not found ends in another error.
NOWHERE = ["--bootstrap-servers", "127.0.0.1:1", "--timeout", "0.5"]


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code, and what is on standard error."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
    result = subprocess.run(
        [*COMMAND, *arguments],
        env={**clean, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "place"),
    [
        (["--sasl-password-file", "hunter2"], {}, "--sasl-password-file"),
        ([], {"KAFKA_SASL_PASSWORD_FILE": "hunter2"}, "variable KAFKA_SASL_PASSWORD_FILE"),
        ([], {"KAFKA_SSL_KEY_PASSWORD_FILE": "hunter2"}, "variable KAFKA_SSL_KEY_PASSWORD_FILE"),
        (["--sasl-password", "hunter2"], {}, "--sasl-password"),
        (["--sasl-password=hunter2"], {}, "--sasl-password"),
        (["--property", "sasl.password: hunter2"], {}, "--property"),
        (["--property", "sasl.password: aHVudGVyMg==hunter2="], {}, "--property"),
        (["--property", "sasl.password=", "hunter2"], {}, "no option"),
        ([], {"KAFKA_PROPERTY": "sasl.password: hunter2"}, "variable KAFKA_PROPERTY"),
        ([], {"KAFKA_PROPERTY": "sasl.password=one hunter2"}, "variable KAFKA_PROPERTY"),
        ([], {"KAFKA_SASL_PASSWORD": "hunter2\udcff"}, "variable KAFKA_SASL_PASSWORD"),
    ],
)
def test_a_mistake_with_a_secret_is_named_and_the_secret_is_not_printed(
    arguments: list[str], environment: dict[str, str], place: str
) -> None:
    code, errors = run("lag", *NOWHERE, *arguments, **environment)

    assert code == 2, errors
    assert len(errors.splitlines()) == 1, errors
    assert place in errors
    assert "hunter2" not in errors
    assert "aHVudGVyMg" not in errors


def test_a_password_that_is_sent_unencrypted_is_warned_of_once() -> None:
    plain = ["--security-protocol", "sasl_plaintext", "--sasl-mechanism", "PLAIN", "--sasl-username", "me"]
    # This command makes the configurations of a consumer and of a producer.
    command = ["dead-letters", "replay", "--topic", "teste.dlq", *NOWHERE, "--log-format", "text"]
    _, errors = run(*command, *plain, KAFKA_SASL_PASSWORD="hunter2")

    assert errors.count("--sasl-mechanism: PLAIN with security protocol sasl_plaintext sends the password") == 1, errors
    assert "hunter2" not in errors


@pytest.mark.parametrize(
    ("arguments", "begin", "end"),
    [
        (["dead-letters", "lst"], "kafka-workers dead-letters: No such command 'lst'.", "dead-letters --help)"),
        (["dead-letters", "browse"], "kafka-workers dead-letters browse: Missing", "dead-letters browse --help)"),
        (["offsets", "reset"], "kafka-workers offsets reset: Missing option", "offsets reset --help)"),
        (["completion", "tcsh"], "kafka-workers completion: ", "completion --help)"),
    ],
)
def test_a_mistake_names_the_command_and_its_help(arguments: list[str], begin: str, end: str) -> None:
    code, errors = run(*arguments)

    assert code == 2, errors
    assert errors.startswith(begin)
    assert errors.strip().endswith(end)


BROWSE = ["dead-letters", "browse", "--topic", "orders.dlq", *NOWHERE]


def test_the_view_needs_a_terminal_and_names_the_commands_that_need_none() -> None:
    code, errors = run(*BROWSE)

    assert code == 2, errors
    assert len(errors.splitlines()) == 1, errors
    assert "needs a terminal" in errors
    assert "`dead-letters list` and `dead-letters show`" in errors


def test_a_mistaken_topic_of_replays_is_named_before_the_view_begins() -> None:
    code, errors = run(*BROWSE, "--to-topic", "orders.dlq")

    assert code == 2, errors
    assert "--to-topic orders.dlq: this is the dead-letter topic itself" in errors


def test_without_textual_the_view_says_how_to_install_it() -> None:
    code = (
        "import sys; sys.modules['textual'] = None\n"
        "for stream in (sys.stdin, sys.stdout, sys.stderr): stream.isatty = lambda: True\n"
        f"sys.argv = ['kafka-workers', *{BROWSE}]\n"
        "from workers.cli.main import main; main()"
    )
    done = run_python(code)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.endswith("the view needs the extra 'tui': pip install 'kafka-workers[tui]'")


def test_only_the_view_imports_textual() -> None:
    code = "import sys, workers.cli.main, workers.cli.browse, workers.cli.discard; sys.exit('textual' in sys.modules)"
    assert run_python(code).returncode == 0


OFF = (
    "workers.consumer.transactions", "workers.kafka.transactional", "workers.schemas.codecs", "workers.tracing",
    "workers.canary", "workers.monitoring.group_lag", "workers.kafka.aws", "workers.testing", "workers.local",
    "confluent_kafka.schema_registry", "fastavro", "google.protobuf", "httpx2", "jsonschema", "opentelemetry", "boto3",
    "rich", "textual", "yaml",
)  # fmt: skip


@pytest.mark.parametrize(
    ("command", "of_another"),
    [
        (["consume", "--topic", "t", "--group-id", "g"], ("workers.producer.loop", "workers.cli.commands.produce")),
        (["produce", "--topic", "t"], ("workers.consumer", "workers.cli.commands.consume")),
    ],
)
def test_a_worker_starts_without_the_modules_of_what_is_off(command: list[str], of_another: tuple[str, ...]) -> None:
    """So that what is off costs no time at a start. It gets as far as it can without brokers."""
    arguments = [*command, "--bootstrap-servers", "127.0.0.1:9", "--timeout", "0.1", "--metrics-port", "0"]
    code = (
        "import sys\n"
        "from workers.cli.main import cli\n"
        "from workers.errors import WorkerError\n"
        "try:\n"
        f"    cli.main({arguments}, standalone_mode=False)\n"
        "except WorkerError:\n"
        f"    print([name for name in sys.modules if name.startswith({(*OFF, *of_another)})])\n"
    )
    result = run_python(code)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize(
    "words",
    [
        "lag",
        "verify",
        "top --once",
        "offsets show",
        "offsets reset --group-id g --to end",
        "dead-letters list --topic t",
        "dead-letters show --topic t --letter 0:1",
        "dead-letters replay --topic t.dlq",
        "dead-letters replay --topic t.dlq --dry-run",
        "dead-letters discard --topic t.dlq --all --reason r",
    ],
)
@pytest.mark.usefixtures("signal_handlers")
def test_a_command_that_looks_and_ends_does_not_wait_for_brokers_for_ever(
    monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr(parameters, "LOOK_TIMEOUT_S", 0.5)
    with pytest.raises(WorkerError, match=re.escape("no answer from 127.0.0.1:1 within 0.5 s")):
        cli.main([*words.split(), "--bootstrap-servers", "127.0.0.1:1"], standalone_mode=False)


@pytest.mark.parametrize(
    "ask",
    [lambda desk: desk.read(), lambda desk: desk.replay([]), lambda desk: desk.discard([], "")],
    ids=["read", "replay", "discard"],
)
@pytest.mark.usefixtures("signal_handlers")
def test_the_view_of_dead_letters_does_not_wait_for_brokers_for_ever(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[KafkaDesk], object]
) -> None:
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("workers.cli.browse.sys", SimpleNamespace(stdin=terminal, stdout=terminal, stderr=terminal))
    monkeypatch.setattr(
        "workers.deadletters.view.DeadLetterView",
        lambda desk, *_: SimpleNamespace(show=lambda: ask(desk), outcomes=[]),
    )
    monkeypatch.setattr(parameters, "LOOK_TIMEOUT_S", 0.5)
    with pytest.raises(WorkerError, match=re.escape("no answer from 127.0.0.1:1 within 0.5 s")):
        cli.main(
            ["dead-letters", "browse", "--topic", "t.dlq", "--bootstrap-servers", "127.0.0.1:1"], standalone_mode=False
        )


def test_printing_and_a_handler_exclude_each_other_and_the_error_says_what_to_do_in_a_pod() -> None:
    code, errors = run("consume", *NOWHERE, "--format", "value", KAFKA_HANDLER="shop:store")
    assert code == 2, errors
    (line,) = errors.splitlines()
    assert "--format says how messages are printed, and variable KAFKA_HANDLER has them handled instead" in line
    assert "env -u KAFKA_HANDLER" in line


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--forever"], {"COUNT": "1"}, "--forever and variable KAFKA_COUNT exclude each other; give one"),
        (["--source", "a:b"], {"INPUT": "f"}, "variable KAFKA_INPUT and --source exclude each other; give one"),
        (
            ["--input", "f", "--key-separator", ":"],
            {"KEY_FIELD": "id"},
            "--key-separator and variable KAFKA_KEY_FIELD exclude each other; give one",
        ),
        (
            ["--key-separator", "", "--input", "f"],
            {},
            "--key-separator is empty; give the characters between key and value",
        ),
        (
            ["--size", "99"],
            {"INPUT": "f"},
            "--size is about test messages, and those of variable KAFKA_INPUT have sizes of their own; leave one out",
        ),
        (
            [],
            {"STAMP": "yes"},
            "variable KAFKA_STAMP is about --input and --source; test messages always carry a stamp; leave it out",
        ),
        (
            ["--topic", "t", "--input", "-", "--key-field", "id", "--on-invalid", "dead-letter"],
            {"DEAD_LETTER_TOPIC": "t"},
            "variable KAFKA_DEAD_LETTER_TOPIC: dead letters need a topic of their own, and t has the messages too; "
            "name another",
        ),
        (
            ["--input", "f"],
            {"KEY_SCHEMA_FILE": "s"},
            "variable KAFKA_KEY_SCHEMA_FILE is for --key-format avro, protobuf or json-schema; give one of these",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_named_where_it_is_set(
    arguments: list[str], environment: dict[str, str], says: str
) -> None:
    code, errors = run("produce", *NOWHERE, *arguments, **{f"KAFKA_{name}": text for name, text in environment.items()})
    assert code == 2, errors
    assert errors == f"kafka-workers produce: {says}\n"


def test_a_flag_that_a_variable_turns_off_excludes_nothing() -> None:
    _, errors = run("produce", *NOWHERE, "--count", "1", KAFKA_FOREVER="no")
    assert "no answer from" in errors


@pytest.mark.parametrize("reference", ["shop/orders.py:store", "./shop/orders.py:store", "shop/orders:store"])
def test_a_file_in_place_of_a_module_is_answered_with_the_modules_name(reference: str) -> None:
    code, errors = run("consume", *NOWHERE, "--handler", reference)
    assert code == 2, errors
    assert errors.strip().endswith("a module has dots and no .py in its name; write shop.orders:store")


def test_the_list_of_commands_has_the_first_sentence_of_each_help_and_imports_none() -> None:
    found = {name: each.get_short_help_str(1000) for name, each in cli.commands.items()}
    assert found == SUMMARIES
    code = (
        "import sys\n"
        "from workers.cli.main import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "sys.exit(any(name.startswith('workers.cli.commands.') for name in sys.modules))"
    )
    told = run_python(code)
    assert told.returncode == 0, told.stderr
    assert all(f"  {name}  " in told.stdout for name in SUMMARIES)


@pytest.mark.parametrize("kind", ["tcp", "udp", "sctp"])
def test_a_variable_that_a_service_has_set_is_named_with_the_service_and_the_remedy(kind: str) -> None:
    """As Kubernetes sets them in each pod of the namespace for a Service `kafka-metrics`."""
    variables = {
        "KAFKA_METRICS_SERVICE_HOST": "10.0.0.1",
        "KAFKA_METRICS_SERVICE_PORT": "8000",
        "KAFKA_METRICS_PORT": f"{kind}://10.0.0.1:8000",
        "KAFKA_METRICS_PORT_8000_TCP": f"{kind}://10.0.0.1:8000",
    }
    code, errors = run("produce", *NOWHERE, **variables)

    assert code == 2, errors
    assert len(errors.splitlines()) == 1, errors
    assert "variable KAFKA_METRICS_PORT" in errors
    assert "the Service kafka-metrics" in errors
    assert "enableServiceLinks: false" in errors


def test_an_address_of_a_service_is_not_taken_for_the_value_of_any_option() -> None:
    code, errors = run("lag", "--timeout", "0.5", KAFKA_BOOTSTRAP_SERVERS="tcp://10.0.0.1:9092")

    assert code == 2, errors
    assert "variable KAFKA_BOOTSTRAP_SERVERS" in errors
    assert "a Service" in errors


def test_variables_of_services_that_are_no_options_do_not_matter() -> None:
    """Those for Services `kafka` and `kafka-metrics` beside the option that is set on purpose."""
    variables = {
        "KAFKA_PORT": "tcp://10.0.0.1:9092",
        "KAFKA_SERVICE_HOST": "10.0.0.1",
        "KAFKA_PORT_9092_TCP": "tcp://10.0.0.1:9092",
        "KAFKA_METRICS_SERVICE_HOST": "10.0.0.2",
        "KAFKA_METRICS_PORT": "0",
    }
    code, errors = run("produce", *NOWHERE, "--property", "linger.ms=5", **variables)

    assert code == 1, errors
    assert "no answer from 127.0.0.1:1" in errors


def test_a_mistyped_variable_is_named_with_the_one_that_was_meant() -> None:
    variables = {"KAFKA_TOPICS": "teste", "KAFKA_SASL_PASWORD": "hunter2", "KAFKA_METRICS_PORT": "0"}
    _, errors = run("produce", *NOWHERE, **variables)

    assert "variable KAFKA_TOPICS is no option's and changes nothing; did you mean KAFKA_TOPIC?" in errors
    assert "did you mean KAFKA_SASL_PASSWORD?" in errors
    assert "hunter2" not in errors


def test_variables_of_other_commands_and_programs_are_left_alone() -> None:
    variables = {
        # Nearly --count and --rate, and options of `verify` and `canary`.
        "KAFKA_ACCOUNT": "account.json",
        "KAFKA_CREATE": "1",
        # Of Kafka's own programs, and of a Service `kafka-metrics`.
        "KAFKA_OPTS": "-Xmx1g",
        "KAFKA_LOG_DIRS": "/data",
        "KAFKA_METRICS_SERVICE_HOST": "10.0.0.2",
        "KAFKA_METRICS_PORT_8000_TCP": "tcp://10.0.0.2:8000",
    }
    _, errors = run("produce", *NOWHERE, **variables)

    assert "no answer from" in errors
    assert "did you mean" not in errors


def test_the_command_line_wins_over_a_variable_that_a_service_has_set() -> None:
    code, errors = run("produce", *NOWHERE, "--metrics-port", "0", KAFKA_METRICS_PORT="tcp://10.0.0.1:8000")

    assert code == 1, errors


@pytest.mark.parametrize(
    "arguments",
    [
        ["consume", "--no-metrics", "--group-id"],
        ["lag", "--group-id"],
        ["top", "--once", "--group-id"],
        ["lag-exporter", "--group-id"],
        ["offsets", "show", "--group-id"],
        ["offsets", "reset", "--to", "end", "--group-id"],
        *(
            ["dead-letters", each, "--topic", "t.dlq", "--replay-group"]
            for each in ("list", "show", "replay", "discard")
        ),
    ],
)
def test_an_empty_group_is_wrong_usage(arguments: list[str]) -> None:
    """It aborted the process in the binding, or the brokers refused it."""
    with pytest.raises(click.BadParameter, match="a consumer group needs a name; give one") as raised:
        cli.main([*arguments, ""], standalone_mode=False)

    assert raised.value.param is not None
    assert arguments[-1] in raised.value.param.opts


@pytest.mark.parametrize("module", ["click", "confluent_kafka", "workers.cli.main"])
def test_an_interrupt_while_the_command_is_imported_ends_it_without_a_traceback(module: str, tmp_path: Path) -> None:
    """It had 15 to 25 lines in the first second."""
    interrupting = (
        "import importlib.abc, os, runpy, signal, sys\n"
        "class Interrupting(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        # Tests that a shell runs in the background ignore it, and so would the command.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv = ['kafka-workers', 'verify', '--show-config']\n"
        "runpy.run_module('workers', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", interrupting], capture_output=True, text=True, timeout=60)

    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "descriptor", "code", "says"),
    [
        ("produce --input - --no-metrics", 0, 2, "--input -: standard input is closed"),
        ("verify --account -", 0, 2, "--account -: standard input is closed"),
        ("consume --no-metrics", 1, 2, "standard output is closed; send it to /dev/null"),
        ("verify", 1, 2, "standard output is closed"),
        ("lag", 1, 2, "standard output is closed"),
        ("lag --watch", 2, 1, ""),
        ("verify", 2, 1, ""),
    ],
)
def test_a_stream_that_is_closed_is_said_in_one_line(arguments: str, descriptor: int, code: int, says: str) -> None:
    result = subprocess.run(
        ["sh", "-c", f'"$@" {descriptor}>&-', "sh", *COMMAND, *arguments.split(), *NOWHERE],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert result.returncode == code, result.stderr
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == (1 if says else 0), result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("lag --watch hunter2", "--watch takes no value; leave out the word after it (not shown"),
        ("produse", "No such command 'produse'"),
        ("produse", "(see kafka-workers --help)"),
        ("produce --count abc", "'abc' is not a whole number from 1 on."),
        ("produce --producer-index 10000", "'10000' is not a whole number from 0 to 9999."),
        ("consume --topc t", "kafka-workers consume: No such option"),
        ("consume --metrics 1", "; see kafka-workers consume --help)"),
        ("cluster --create-topic", "cannot be a topic"),
        ("cluster --partitions 1001 --create-topic", "'1001' is not a whole number from 1 to 1000."),
        ("consume --shutdown-timeout 1e300", "1e300 is more than 1000000000."),
        ("canary --no-metrics --metrics-port x", "'x' is not a whole number from 0 to 65535."),
        ("consume --handler m\x1b[31m:f", "consume: --handler m\\x1b[31m:f: importing m\\x1b[31m raised "),
        ("canary --metrics-host nosuch.invalid", "--metrics-host: cannot listen on nosuch.invalid: "),
        ("lag --security-protocol ssl", "and that it speaks TLS there (--security-protocol)"),
        (
            "consume --property max.poll.interval.ms=1",
            "kafka-workers consume: --property: max.poll.interval.ms=1 cannot be used: ",
        ),
    ],
)
def test_a_mistake_is_said_with_its_own_name(arguments: str, says: str) -> None:
    words = arguments.split()
    with_place = words[0] in ("lag", "consume", "canary")
    code, errors = run(*words, *(["a b"] if words[0] == "cluster" else []), *(NOWHERE if with_place else []))

    assert code == (1 if "ssl" in words else 2), errors
    assert says in errors.splitlines()[-1]
    assert "hunter2" not in errors
    assert ") (" not in errors
