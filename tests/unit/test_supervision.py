"""Commands whose client may crash: the crash is said, what shows groups starts again, and signals reach the child."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.programs import run_python
from workers.testing.processes import eventually

# The child writes its process id to a file at each start, and then does what the test says.
CHILD = """
import os, signal, sys, time
from workers.cli import supervision
supervision.SAME_SIGNAL_S = float(sys.argv[3])
supervision.supervise(sys.argv[1])
with open(sys.argv[2], "a") as starts:
    print(os.getpid(), file=starts)
"""


class Command:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "starts"
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, command: str, then: str, same_signal_s: float = 0.0) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD + then, command, str(self.path), str(same_signal_s)],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    @property
    def children(self) -> list[int]:
        return [int(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def has_counted(self, number: int) -> bool:
        return self.children[-1] >= number


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


# Counts signals, and ends with their number at a SIGUSR1.
COUNTS = """
seen, ended = [], []
signal.signal(signal.SIGUSR1, lambda *_: ended.append(1))
for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(each, lambda *_: seen.append(1))
print(0, file=open(sys.argv[2], 'a'))
written = 0
while not ended:
    time.sleep(0.01)
    if len(seen) > written:
        written = len(seen)
        print(written, file=open(sys.argv[2], 'a'))
sys.exit(40 + len(seen))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("to", ["parent", "child", "group", "both, one after the other"])
def test_a_signal_reaches_the_child_once_whoever_is_sent_it(command: Command, number: signal.Signals, to: str) -> None:
    """The group: Ctrl-C, `timeout`, `kill -- -PGID`. Both: systemd, which sends it to each process of a service."""
    process = command.start("top", COUNTS)
    eventually(lambda: len(command.children) == 2, "the child handles the signal")
    child = command.children[0]
    for times in range(1, 6):
        if to == "group":
            os.killpg(process.pid, number)
        else:
            if to != "parent":
                os.kill(child, number)
            if to != "child":
                process.send_signal(number)
        eventually(partial(command.has_counted, times), f"signal {times}")
    os.kill(child, signal.SIGUSR1)

    assert process.wait(30) == 45


def test_a_signal_that_comes_twice_in_a_moment_reaches_the_child_once(command: Command) -> None:
    """As from `timeout`, which signals the command and then its group."""
    process = command.start("top", COUNTS, same_signal_s=60.0)
    eventually(lambda: len(command.children) == 2, "the child handles the signal")
    process.send_signal(signal.SIGHUP)
    eventually(partial(command.has_counted, 1), "the first")
    process.send_signal(signal.SIGHUP)
    # Of two that wait, the one with the lower number comes first.
    process.send_signal(signal.SIGTERM)
    eventually(partial(command.has_counted, 2), "another signal")
    os.kill(command.children[0], signal.SIGUSR1)

    assert process.wait(30) == 42


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_the_child_does_not_handle_ends_the_command(command: Command, number: signal.Signals) -> None:
    process = command.start(
        "lag", f"signal.signal({int(number)}, signal.SIG_DFL)\nprint(0, file=open(sys.argv[2], 'a'))\ntime.sleep(60)"
    )
    eventually(lambda: len(command.children) == 2, "the child runs")
    process.send_signal(number)

    assert process.wait(30) == 128 + number


def test_a_signal_that_the_child_ignores_does_not_end_it(command: Command) -> None:
    """As Ctrl-C and the end of the terminal under nohup."""
    process = command.start(
        "top",
        COUNTS.replace("signal.signal(each, ", "signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else "),
    )
    eventually(lambda: len(command.children) == 2, "the child handles signals")
    os.killpg(process.pid, signal.SIGHUP)
    os.killpg(process.pid, signal.SIGTERM)
    eventually(partial(command.has_counted, 1), "SIGTERM")
    os.kill(command.children[0], signal.SIGUSR1)

    assert process.wait(30) == 41


def test_a_client_that_crashes_while_it_stops_is_not_started_again(command: Command) -> None:
    crashes = f"def stop(*_):\n    {crash('SIGSEGV')}\nsignal.signal(signal.SIGTERM, stop)"
    process = command.start("lag-exporter", f"{crashes}\nprint(0, file=open(sys.argv[2], 'a'))\ntime.sleep(60)")
    eventually(lambda: len(command.children) == 2, "the child handles the signal")
    process.terminate()
    _, said = process.communicate(timeout=30)

    assert process.returncode == 128 + signal.SIGTERM
    assert len(command.children) == 2
    assert said == (
        "kafka-workers lag-exporter: the Kafka client has crashed (SIGSEGV), as it can while brokers restart; "
        "it was asked to stop, so it does not start again\n"
    )


WITHOUT_BROKERS = ["--bootstrap-servers", "127.0.0.1:1", "--metrics-port", "0"]


@pytest.mark.parametrize("words", [[], ["timeout", "--preserve-status", "600"]], ids=["killpg", "timeout"])
def test_a_stop_of_the_whole_process_group_is_an_orderly_one(words: list[str]) -> None:
    exporter = [sys.executable, "-m", "workers", "lag-exporter", *WITHOUT_BROKERS]
    with subprocess.Popen([*words, *exporter], stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        assert any("metrics on port" in line for line in process.stderr)
        if words:
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGTERM)
        said = process.stderr.read()

    assert (process.returncode, "stopped after" in said) == (0, True), said


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
