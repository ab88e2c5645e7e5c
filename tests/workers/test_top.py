"""`top` on real brokers: plain, as JSON, and on a terminal."""

import json
import signal
import subprocess
import sys

from tests.programs import run_in_bash
from tests.workers.terminal import Terminal
from workers.local.cluster import Cluster
from workers.testing.processes import Processes, eventually


def test_one_round_shows_members_and_lag_as_lines_and_as_json(processes: Processes, topic: str, group: str) -> None:
    processes.produce(topic, "--count", "30")
    assert processes.consume(topic, group, "--max-messages", "30").wait() == 0
    processes.produce(topic, "--count", "12")
    words = ("top", "--once", "--group-id", group)
    plain = processes.run(*words)
    assert plain.returncode == 0, plain.stderr
    (line,) = plain.stdout.splitlines()
    assert f"{group}: no members, 0 members, 3 partitions, lag 12 (" in line

    absent = processes.run("top", "--once", "--group-id", "nowhere")
    assert (absent.returncode, "nowhere: not there" in absent.stdout) == (2, True)
    assert absent.stderr.splitlines()[-1].endswith("not known to the brokers: group nowhere; check --group-id")

    consumer = processes.consume(topic, group)
    eventually(lambda: consumer.metric("kafka_consumer_assigned_partitions") == 3, "the group has a member")

    def seen() -> bool:
        document = json.loads(processes.run(*words, "--json", "--group-id", "nowhere").stdout)
        (found,) = document["groups"]
        assert (found["group"], document["missing"], found["out_per_s"]) == (group, ["nowhere"], None)
        (member,) = found["members"]
        return bool((found["lag"], found["health"], member["partitions"]) == (0, "ok", 3))

    eventually(seen, "all is read")


def test_it_says_that_a_broker_is_missing_goes_on_and_ends_with_ctrl_c(
    processes: Processes, cluster: Cluster, topic: str, group: str
) -> None:
    processes.produce(topic, "--count", "30")
    assert processes.consume(topic, group, "--max-messages", "30").wait() == 0
    # Every group: the brokers are asked for their lists.
    top = processes.start("top", "--interval", "0.5", env={"PYTHONFAULTHANDLER": "1"})
    eventually(lambda: f"{group}: empty" in top.stdout, "the group is shown")
    try:
        cluster.kill_broker(2)
        eventually(lambda: "the other brokers do not list 2" in top.stdout or not top.running, "a broker is missing")
        assert top.running, (top.popen.returncode, top.stderr)
    finally:
        cluster.start_broker(2)
        cluster.wait_until_ready()
    before = top.stdout.count(f"{group}: empty")
    eventually(lambda: top.stdout.count(f"{group}: empty") > before + 1 or not top.running, "it goes on")
    assert top.running, (top.popen.returncode, top.stderr)
    assert top.stop(signal.SIGINT) == 0


def test_on_a_terminal_it_draws_a_table_and_leaves_the_terminal_as_it_was(
    processes: Processes, topic: str, group: str
) -> None:
    processes.produce(topic, "--count", "30")
    assert processes.consume(topic, group, "--max-messages", "30").wait() == 0
    with Terminal(["top", "--group-id", group, "--interval", "0.3"], processes.environment()) as terminal:
        terminal.sees("HEALTH", times=3)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 0
    shown = terminal.shown
    assert b"\x1b[?1049h" in shown
    assert group.encode() in shown
    # The screen of before, with the cursor.
    assert shown.index(b"\x1b[?1049l") > shown.rindex(b"HEALTH")
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


def test_without_rich_it_prints_lines_also_on_a_terminal_and_says_how_to_get_the_table(processes: Processes) -> None:
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'rich' else find(name, *more)\n"
        "sys.stdout.isatty = lambda: True\n"
        "sys.argv = ['kafka-workers', 'top', '--interval', '0.2', '--group-id', 'nowhere']\n"
        "from workers.cli.main import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=processes.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert b"nowhere: not there" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"pip install 'kafka-workers[local]'" in errors


def test_a_closed_pipe_is_no_failure(processes: Processes, topic: str, group: str) -> None:
    processes.produce(topic, "--count", "9")
    assert processes.consume(topic, group, "--max-messages", "9").wait() == 0
    script = 'set -o pipefail; "$@" | head -1'
    result = run_in_bash(processes, script, "top", "--plain", "--group-id", group, "--interval", "0.2")

    assert result.returncode == 0, result.stderr
    assert group in result.stdout
