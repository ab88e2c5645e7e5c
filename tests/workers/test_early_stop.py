"""A signal is heard from the first moment on: while the user's module is imported and while the input is read through.

Without a cluster: no broker is needed to stop before the first message. As process 1, where the kernel drops signals
that nobody handles, each test runs in a PID namespace of its own.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.test_shutdown import stop_again
from workers.testing.processes import COMMAND, Process, Processes, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
# For a busy machine. A stop that waits for something takes 25 s or more.
PROMPTLY_S = 20.0
# Imported, it says which handler SIGTERM has and sleeps longer than any test waits.
SLOW_MODULE = """
import signal, sys, time
print("SIGTERM:", signal.getsignal(signal.SIGTERM), file=sys.stderr, flush=True)
time.sleep(300)
def handle(message): ...
def generate(): yield b"never"
"""
CONSUME = ("consume", "--handler", "slow:handle")
PRODUCE = ("produce", "--source", "slow:generate")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Processes]:
    """Starts commands that find no broker."""
    processes = Processes("127.0.0.1:1", tmp_path)
    processes.write("slow.py", SLOW_MODULE)
    yield processes
    processes.kill_all()


def _stop(process: Process) -> int:
    began = time.monotonic()
    code = process.stop()
    assert time.monotonic() - began < PROMPTLY_S
    return code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_consumer_that_imports_its_handler_stops_at_once_and_well(alone: Processes, number: signal.Signals) -> None:
    consumer = alone.start(*CONSUME)
    consumer.says("SIGTERM:")

    assert consumer.stop(number, PROMPTLY_S) == 0
    assert "nothing was read" in consumer.stderr
    assert "Traceback" not in consumer.stderr


@pytest.mark.parametrize(("options", "code"), [((), 1), (("--forever",), 0)])
def test_a_producer_that_imports_its_source_stops_at_once_and_fails_if_it_was_to_end(
    alone: Processes, options: tuple[str, ...], code: int
) -> None:
    producer = alone.start(*PRODUCE, *options)
    producer.says("SIGTERM:")

    assert _stop(producer) == code
    assert "nothing was sent" in producer.stderr
    assert "Traceback" not in producer.stderr


def test_a_job_that_is_stopped_while_it_imports_its_source_has_failed(alone: Processes) -> None:
    producer = alone.start(*PRODUCE, "--forever", env={"JOB_COMPLETION_INDEX": "0"})
    producer.says("SIGTERM:")

    assert _stop(producer) == 1


def test_a_producer_that_reads_its_input_through_stops_at_once(alone: Processes) -> None:
    path = alone.write("large.jsonl", '{"id": 1}\n' * 5_000_000)
    producer = alone.start("produce", "--input", str(path), "--key-field", "id")
    eventually(lambda: _has_open(producer, path), "the input is being read")

    assert _stop(producer) == 1
    assert "nothing was sent" in producer.stderr


def test_a_producer_that_waits_for_a_writer_of_its_input_stops_at_once(alone: Processes) -> None:
    path = alone.directory / "pipe"
    os.mkfifo(path)
    producer = alone.start("produce", "--input", str(path), "--key-field", "id")
    eventually(lambda: _waits_in(producer, "wait_for_partner"), "the pipe is being opened")

    assert _stop(producer) == 1
    assert "nothing was sent" in producer.stderr


def test_verify_that_waits_for_the_account_stops_at_once(alone: Processes) -> None:
    verify = alone.start("verify", "--account", "-", stdin=subprocess.PIPE)
    eventually(lambda: _waits_in(verify, "pipe_read"), "standard input is being read")

    with verify.popen:  # closes the pipe
        assert _stop(verify) == 1
    assert "nothing is verified" in verify.stderr


def test_a_second_signal_ends_a_consumer_whose_handler_swallows_the_first_while_it_is_imported(
    alone: Processes,
) -> None:
    alone.write(
        "deaf.py",
        "import sys, time\n"
        "while True:\n"
        "    try:\n"
        "        print('trying', file=sys.stderr, flush=True)\n"
        "        time.sleep(300)\n"
        "    except:\n"
        "        print('swallowed', file=sys.stderr, flush=True)\n",
    )
    consumer = alone.start("consume", "--handler", "deaf:handle")
    consumer.says("trying")
    consumer.popen.send_signal(signal.SIGTERM)
    consumer.says("swallowed")

    assert stop_again(consumer) == 128 + signal.SIGTERM


@pytest.mark.parametrize(("arguments", "code"), [(CONSUME, 0), (PRODUCE, 1)])
def test_process_1_of_a_container_hears_a_signal_while_it_imports(
    alone: Processes, arguments: tuple[str, ...], code: int
) -> None:
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("a PID namespace needs root")
    err = alone.directory / "err"
    with err.open("wb") as stream:
        container = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", *COMMAND, *arguments],
            env=alone.environment(),
            stdin=subprocess.DEVNULL,
            stderr=stream,
        )
    try:
        eventually(lambda: "SIGTERM:" in err.read_text(), "the module is being imported")
        children = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        assert container.wait(PROMPTLY_S) == code
    finally:
        container.kill()
        container.wait()
    # `signal.SIG_DFL` for process 1 means that the kernel drops the signal.
    assert "SIG_DFL" not in err.read_text()


def _has_open(process: Process, path: Path) -> bool:
    assert process.running, process.stderr
    descriptors = Path(f"/proc/{process.popen.pid}/fd").iterdir()
    return any(os.path.realpath(each) == str(path.resolve()) for each in descriptors)


def _waits_in(process: Process, place: str) -> bool:
    """Whether the main thread waits in this place of the kernel."""
    assert process.running, process.stderr
    return place in Path(f"/proc/{process.popen.pid}/wchan").read_text()
