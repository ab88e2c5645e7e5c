"""The end of a broker of the embedded cluster; other processes stand in for the brokers."""

import os
import signal
import sys
from pathlib import Path

import pytest

from workers.errors import ClusterError
from workers.local import supervisor
from workers.local.cluster import Broker, Cluster
from workers.local.supervisor import MAX_FAILURES, Supervisor
from workers.testing.processes import eventually

# Runs until it is killed, unless it finds the file `broken` beside its log.
PROGRAM = """
import os, sys, time
if os.path.exists(sys.argv[1]):
    print("java.io.IOException: the disk is gone", flush=True)
    sys.exit(3)
time.sleep(600)
"""


class Scene:
    """A cluster of one broker, and the lines that were said."""

    def __init__(self, directory: Path, *, restart: bool) -> None:
        self.broken = directory / "broken"
        self.broker = Broker(0, 0, directory, [sys.executable, "-c", PROGRAM, str(self.broken)])
        self.cluster = Cluster()
        self.cluster.brokers = [self.broker]
        self.said: list[str] = []
        self.supervisor = Supervisor(
            self.cluster, self.said.append, restart=restart, answers=lambda broker: broker.running
        )
        self.cluster.start_broker(0)

    def kill(self) -> int:
        pid = self.broker.pid
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self.broker.running, "the broker has ended")
        return pid

    def says(self, text: str) -> bool:
        self.supervisor.look()
        return any(text in line for line in self.said)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RESTART_DELAY_S", 0.1)


def test_a_broker_that_is_killed_is_started_again_each_time(tmp_path: Path, quick: None) -> None:
    scene = Scene(tmp_path, restart=True)
    try:
        for _ in range(MAX_FAILURES + 2):
            scene.said.clear()
            killed = scene.kill()
            eventually(lambda: scene.says("is back"), "it is back")

            assert scene.said[0] == f"broker 0 (PID {killed}) has ended: SIGKILL; it starts again in 0 s"
            assert scene.said[1:] == [f"broker 0 is back: PID {scene.broker.pid}"]
            assert scene.broker.pid != killed
    finally:
        scene.broker.kill()


def test_a_broker_that_does_not_come_back_ends_the_cluster_with_its_last_words(tmp_path: Path, quick: None) -> None:
    scene = Scene(tmp_path, restart=True)
    scene.broken.touch()
    scene.supervisor._answers = lambda _: False
    scene.kill()
    with pytest.raises(ClusterError, match=r"exit code 3; it did not come back 3 times: .*the disk is gone"):
        eventually(lambda: scene.supervisor.look(), "it is given up")

    assert len(scene.said) == MAX_FAILURES


def test_a_broker_that_starts_and_never_answers_is_killed_and_given_up(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "START_TIMEOUT_S", 0.3)
    scene = Scene(tmp_path, restart=True)
    scene.supervisor._answers = lambda _: False
    scene.kill()
    with pytest.raises(ClusterError, match="has not answered within"):
        eventually(lambda: scene.supervisor.look(), "it is given up")

    assert not scene.broker.running


def test_brokers_that_never_answer_are_named_with_their_last_words(tmp_path: Path) -> None:
    """`stop` deletes their logs with their data."""
    program = "import time; print('waiting for a quorum', flush=True); time.sleep(600)"
    broker = Broker(0, 1, tmp_path, [sys.executable, "-c", program])
    cluster = Cluster()
    cluster.brokers = [broker]
    broker.start()
    try:
        eventually(broker.log_path.read_text, "it has said something")
        with pytest.raises(ClusterError) as raised:
            cluster.wait_until_ready(0.1)
    finally:
        broker.kill()
    assert str(raised.value) == "brokers [0] were not ready after 0 s; broker 0: waiting for a quorum"


def test_a_broker_stays_down_when_that_is_asked_for(tmp_path: Path, quick: None) -> None:
    scene = Scene(tmp_path, restart=False)
    pid = scene.kill()
    assert scene.says("it stays down")
    scene.supervisor.look()

    assert scene.said == [f"broker 0 (PID {pid}) has ended: SIGKILL; it stays down (--no-restart)"]
    assert not scene.broker.running


def test_a_broker_that_was_stopped_from_here_is_not_started_again(tmp_path: Path, quick: None) -> None:
    scene = Scene(tmp_path, restart=True)
    scene.cluster.kill_broker(0)
    scene.supervisor.look()

    assert scene.said == []
    assert not scene.broker.running
