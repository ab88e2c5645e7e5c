"""Commands whose client may crash: the crash is said, what shows groups starts again, and signals reach the child."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import run_python
from workers.testing.processes import eventually

# The child writes its process id to a file at each start, and then does what the test says.
CHILD = """
import os, signal, sys, time
from workers.cli.supervision import supervise
supervise(sys.argv[1])
with open(sys.argv[2], "a") as starts:
    print(os.getpid(), file=starts)
"""


class Command:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "starts"
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, command: str, then: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD + then, command, str(self.path)], stderr=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        return process

    @property
    def children(self) -> list[int]:
        return [int(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    for process in command.processes:
        process.kill()
        process.communicate()


def crash(number: str) -> str:
    return f"import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), signal.{number})"


@pytest.mark.parametrize("number", ["SIGSEGV", "SIGABRT"])
@pytest.mark.parametrize("name", ["top", "lag", "offsets show"])
def test_what_shows_groups_starts_again_after_a_crash_of_the_client(command: Command, name: str, number: str) -> None:
    process = command.start(name, f"if len(open(sys.argv[2]).readlines()) < 3: {crash(number)}\nsys.exit(7)")
    _, said = process.communicate(timeout=60)

    assert process.returncode == 7
    assert len(set(command.children)) == 3
    again = (
        f"kafka-workers {name}: the Kafka client has crashed ({number}), as it can while brokers restart; "
        "it starts again"
    )
    assert said.splitlines() == [again] * 2


def test_a_client_that_always_crashes_ends_the_command(command: Command) -> None:
    process = command.start("lag-exporter", crash("SIGSEGV"))
    _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    assert len(command.children) == 5
    assert said.splitlines()[-1].endswith("; run it again when all brokers run")


def test_a_command_that_changes_something_is_not_done_again_and_says_the_crash_in_one_line(command: Command) -> None:
    process = command.start("offsets reset", crash("SIGABRT"))
    _, said = process.communicate(timeout=60)

    assert process.returncode == 1
    assert said == (
        "kafka-workers offsets reset: the Kafka client has crashed (SIGABRT), as it can while brokers restart; run it "
        "again when all brokers run\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_the_next_start_ends_the_command(command: Command, number: signal.Signals) -> None:
    process = command.start("lag", crash("SIGSEGV"))
    assert process.stderr is not None
    assert "it starts again" in process.stderr.readline()
    process.send_signal(number)

    assert process.wait(30) == 128 + number
    assert len(command.children) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_child_once(command: Command, number: signal.Signals) -> None:
    ends = (
        "seen = []\n"
        f"signal.signal({int(number)}, lambda *_: seen.append(1))\n"
        "print(0, file=open(sys.argv[2], 'a'))\n"
        "while not seen: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "sys.exit(40 + len(seen))"
    )
    process = command.start("top", ends)
    eventually(lambda: len(command.children) == 2, "the child handles the signal")
    process.send_signal(number)

    assert process.wait(30) == 41


def test_the_child_ends_with_its_parent(command: Command) -> None:
    process = command.start("lag-exporter", "time.sleep(60)")
    (child,) = eventually(lambda: command.children, "the child runs")
    process.kill()
    process.wait()

    eventually(lambda: not _lives(child), "the child has ended")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


COMMAND_LINE = """
import os
import workers.cli.main
from workers.cli.entry import main
began = os.getpid()
workers.cli.main.main = lambda: print("same" if os.getpid() == began else "child", flush=True)
main()
"""


@pytest.mark.parametrize(
    ("name", "runs_in"),
    [
        ("top", "child"),
        ("lag-exporter", "child"),
        ("lag", "child"),
        ("offsets show", "child"),
        ("offsets reset", "child"),
        ("consume", "same"),
    ],
)
def test_commands_that_ask_coordinators_run_in_a_child_and_others_do_not(name: str, runs_in: str) -> None:
    words = [sys.executable, "-c", COMMAND_LINE, *name.split()]
    assert subprocess.run(words, capture_output=True, text=True, timeout=60).stdout == f"{runs_in}\n"


def test_where_python_cannot_wait_for_signals_the_command_runs_by_itself() -> None:
    """As on macOS."""
    code = (
        "import signal, sys\n"
        "sys.platform = 'darwin'\n"
        "del signal.sigwaitinfo, signal.sigtimedwait\n"
        "sys.argv = ['kafka-workers', 'lag', '--help']\n"
        "from workers.cli.entry import main\n"
        "main()\n"
    )
    told = run_python(code)
    assert told.returncode == 0, told.stderr
    assert "Show a consumer group as the brokers see it" in told.stdout
