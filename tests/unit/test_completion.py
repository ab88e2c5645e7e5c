"""Completion of a command line, requested as shells request it; for bash through its own script."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAMS = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
# As readline does it: bash sets these, and calls the function.
ASK = """
eval "$(kafka-workers completion bash)"
complete -p kafka-workers > /dev/null || exit
COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
_kafka_workers_completion kafka-workers 2> /dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A user's code; importing it would be seen."""
    (tmp_path / "mine.py").write_text(
        "open('imported', 'w')\ndef handle(m): ...\nasync def hot(m): ...\nclass House: ...\ndef _hidden(m): ...\n"
    )
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "inner.py").write_text("def handle(m): ...\n")
    (tmp_path / "broken.py").write_text("def handle(:\n")
    return tmp_path


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
    return {**clean, "PATH": PROGRAMS, **extra}


def in_bash(line: str, directory: Path, **extra: str) -> list[str]:
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", line],
        cwd=directory, env=environment(**extra), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("kafka-workers dead", ["dead-letters"]),
        ("kafka-workers dead-letters ", ["browse", "discard", "list", "replay", "show"]),
        ("kafka-workers offsets ", ["reset", "show"]),
        ("kafka-workers dead-letters list --sta", ["--state"]),
        ("kafka-workers dead-letters list --state d", ["discarded"]),
        ("kafka-workers completion z", ["zsh"]),
        ("kafka-workers consume --handler mi", ["mine:House", "mine:handle", "mine:hot"]),
        ("kafka-workers consume --handler package.", ["package.inner:handle"]),
        ("kafka-workers consume --handler ", ["broken:", "mine:", "package.inner:"]),
        # Bash puts it in place of what is behind the colon.
        ("kafka-workers consume --handler mine:h", ["handle", "hot"]),
        ("kafka-workers consume --handler=mine:", ["House", "handle", "hot"]),
        ("kafka-workers consume --bootstrap-servers 127.0.0.1:1 --handler mine:ha", ["handle"]),
        ("kafka-workers consume --handler broken:", []),
        ("kafka-workers consume --handler nowhere:", []),
    ],
)
def test_bash_completes_commands_options_choices_and_handlers(directory: Path, line: str, offered: list[str]) -> None:
    assert in_bash(line, directory) == offered
    assert not (directory / "imported").exists()


@pytest.mark.parametrize(
    ("shell", "words", "number", "offered"),
    [
        ("zsh", "kafka-workers dead-letters dis", "2", "discard"),
        ("fish", "kafka-workers dead-letters dis", "dis", "discard"),
        ("zsh", "kafka-workers consume --handler mine:ho", "3", "mine"),
        ("fish", "kafka-workers consume --handler mine:ho", "mine:ho", "mine:hot"),
    ],
)
def test_zsh_and_fish_are_answered(directory: Path, shell: str, words: str, number: str, offered: str) -> None:
    asked = {"_KAFKA_WORKERS_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": number}
    done = subprocess.run(
        ["kafka-workers"], cwd=directory, env=environment(**asked), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert offered in done.stdout


@pytest.mark.parametrize(
    ("shell", "begin"), [("bash", "_kafka"), ("zsh", "#compdef kafka-workers"), ("fish", "function")]
)
def test_each_shell_has_a_script(shell: str, begin: str) -> None:
    done = subprocess.run(
        ["kafka-workers", "completion", shell], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.strip().startswith(begin)
    assert "_KAFKA_WORKERS_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("kafka-workers lag --topic ", {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}),
        ("kafka-workers lag --group-id ", {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}),
        # Nobody answers there: packets to it get lost.
        ("kafka-workers lag --topic ", {"KAFKA_BOOTSTRAP_SERVERS": "192.0.2.1:9092"}),
        ("kafka-workers lag --properties-file /no/such/file --topic ", {}),
        ("kafka-workers lag --property nonsense --topic ", {}),
        ("kafka-workers lag --topic ", {"KAFKA_BOOTSTRAP_SERVERS": "tcp://10.0.0.1:9092"}),
        ("kafka-workers lag --log-level x --group-id ", {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}),
    ],
)
def test_whatever_is_wrong_completion_says_nothing_and_returns_soon(
    directory: Path, line: str, extra: dict[str, str]
) -> None:
    started = time.monotonic()
    assert in_bash(line, directory, **extra) == []
    # A second for the brokers; the rest is for starting Python twice, where tests run beside each other.
    assert time.monotonic() - started < 10
