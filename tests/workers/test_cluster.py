"""The embedded cluster and the demo: they start, show what they promise, and leave nothing behind."""

import html
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workers.local.cluster import START_TIMEOUT_S, Cluster
from workers.testing.processes import Process, Processes, eventually

# The cluster itself gives brokers so long, on a busy machine, and says when they are late.
START_S = START_TIMEOUT_S + 10


def brokers_under(directory: Path) -> list[int]:
    """Ids of the Java processes whose command line names `directory`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            program, *arguments = entry.read_bytes().split(b"\0")
            if program.endswith(b"/java") and str(directory).encode() in b" ".join(arguments):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def own_tmp(tmp_path: Path) -> Path:
    path = tmp_path / "tmp"
    path.mkdir()
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_cluster_that_is_stopped_or_killed_leaves_nothing_behind(
    processes: Processes, own_tmp: Path, number: signal.Signals
) -> None:
    cluster = processes.start("cluster", "--brokers", "1", env={"TMPDIR": str(own_tmp)})
    servers = bootstrap_servers_of(cluster)
    assert processes.run("produce", "--count", "10", env={"KAFKA_BOOTSTRAP_SERVERS": servers}).returncode == 0
    assert brokers_under(own_tmp)

    code = cluster.stop(number)

    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0), cluster.stderr
    eventually(lambda: not brokers_under(own_tmp), "no broker is left")
    eventually(lambda: not list(own_tmp.iterdir()), "no file is left")


def test_a_cluster_that_is_killed_while_it_formats_leaves_nothing_behind(processes: Processes, own_tmp: Path) -> None:
    cluster = processes.start("cluster", "--brokers", "1", env={"TMPDIR": str(own_tmp)})
    # With its threads, Java reads the configuration soon, and then writes the directory.
    eventually(
        lambda: any(len(os.listdir(f"/proc/{pid}/task")) > 1 for pid in brokers_under(own_tmp)), "a formatter", START_S
    )

    cluster.stop(signal.SIGKILL)

    eventually(lambda: not list(own_tmp.iterdir()), "no file is left")
    assert not brokers_under(own_tmp), "a process that outlives the files may write them again"


def test_a_demo_that_is_killed_leaves_nothing_behind(processes: Processes, own_tmp: Path) -> None:
    demo = processes.start("demo", "--quick", "--plain", env={"TMPDIR": str(own_tmp)})
    demo.says("consumers join group", START_S)

    demo.stop(signal.SIGKILL)

    eventually(lambda: not list(own_tmp.iterdir()), "no file is left")


def bootstrap_servers_of(cluster: Process) -> str:
    """The address that the cluster prints when it is ready."""
    printed = eventually(lambda: cluster.stdout.strip() or not cluster.running, "the bootstrap address", START_S)
    assert cluster.running, cluster.stderr
    return str(printed)


def broker_pid(cluster: Process) -> int:
    """The PID that the cluster has printed for its broker."""
    cluster.says("broker 0: PID ", START_S)
    return int(cluster.stderr.split("broker 0: PID ")[1].split(",")[0])


def test_brokers_start_with_the_cache_of_javas_classes() -> None:
    said: list[str] = []
    with Cluster(1):
        # The first cluster on a machine makes it.
        pass
    with Cluster(1, say=said.append) as again:
        command = Path(f"/proc/{again.brokers[0].pid}/cmdline").read_text()
        complaints = [line for line in again.brokers[0].log_path.read_text().splitlines() if "[aot" in line]

    assert said == []
    assert "-XX:AOTCache=" in command
    assert complaints == []


def test_a_broker_that_is_killed_comes_back_with_its_messages(processes: Processes, own_tmp: Path) -> None:
    cluster = processes.start("cluster", "--brokers", "1", env={"TMPDIR": str(own_tmp)})
    servers = bootstrap_servers_of(cluster)
    env = {"KAFKA_BOOTSTRAP_SERVERS": servers}
    assert processes.run("produce", "--count", "10", env=env).returncode == 0
    pid = broker_pid(cluster)
    os.kill(pid, signal.SIGKILL)
    cluster.says(f"broker 0 (PID {pid}) has ended: SIGKILL; it starts again")
    cluster.says("broker 0 is back: PID ", START_S)

    verified = processes.run("verify", env=env)
    assert verified.returncode == 0, verified.stderr
    assert cluster.running
    assert cluster.stop() == 0
    assert not list(own_tmp.iterdir())


def test_a_topic_that_is_named_twice_is_created_and_listed_once(processes: Processes) -> None:
    names = [word for name in ("b", "a", "b") for word in ("--create-topic", name)]
    cluster = processes.start("cluster", "--brokers", "1", *names)

    cluster.says("topics b, a; to use it", START_S)
    assert cluster.stop() == 0


def test_a_broker_that_is_killed_stays_down_when_asked(processes: Processes, own_tmp: Path) -> None:
    cluster = processes.start("cluster", "--brokers", "1", "--no-restart", env={"TMPDIR": str(own_tmp)})
    os.kill(broker_pid(cluster), signal.SIGKILL)
    cluster.says("has ended: SIGKILL; it stays down")

    assert cluster.stop() == 0
    assert "is back" not in cluster.stderr
    assert not list(own_tmp.iterdir())


def test_the_demo_loses_nothing_and_shows_the_idle_member_and_the_killed_broker(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KAFKA_")}
    temporary, picture = tmp_path / "tmp", tmp_path / "demo.svg"
    temporary.mkdir()
    result = subprocess.run(
        [sys.executable, "-m", "workers", "demo", "--quick", "--svg", str(picture)],
        env={**environment, "TMPDIR": str(temporary)}, capture_output=True, text=True, timeout=280,
    )  # fmt: skip

    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing acknowledged was lost" in result.stdout
    assert "killed (SIGKILL)" in result.stdout
    assert any(line.count(":idle") == 1 for line in result.stdout.splitlines())
    rows = result.stdout.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    account = {row[:40].strip(): int(row[40:].replace(",", "")) for row in rows}
    assert account["consumed"] >= account["acknowledged"] > 5_000
    assert account["missing (acknowledged, not consumed)"] == 0
    assert account["duplicated in the log"] == 0
    assert not list(temporary.iterdir())
    drawn = html.unescape(picture.read_text()).replace("\xa0", " ")
    assert "down" in drawn
    assert "idle" in drawn
    assert all(row in drawn for row in rows)
    assert "url(" not in drawn.replace("url(#", "")


def test_a_picture_that_cannot_be_written_is_said_before_anything_starts(processes: Processes) -> None:
    answer = processes.run("demo", "--svg", "/nowhere/demo.svg")

    assert answer.returncode == 2
    assert answer.stderr.splitlines()[-1] == (
        "kafka-workers demo: --svg: /nowhere/demo.svg cannot be written: No such file or directory; name a file in a "
        "directory that exists"
    )
