"""A worker whose Kafka client hangs: the main thread of librdkafka stands still."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.conftest import Topics
from tests.workers.test_consume import committed
from workers.testing.kafka import QUICK
from workers.testing.processes import Process, Processes, eventually

LIBC = ctypes.CDLL(None, use_errno=True)
# Of ptrace(2): stop one thread, without a signal that the others would see.
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000
# Of futex(2): how a thread waits for a condition. One that waits for a lock waits with FUTEX_WAIT.
FUTEX_COMMAND, FUTEX_WAIT_BITSET = 0x7F, 9


def main_thread_of_the_consumer(process: Process) -> int:
    """The first of librdkafka's main threads: later ones are of the client that asks for watermarks."""
    tasks = Path(f"/proc/{process.popen.pid}/task")
    named = [int(task.name) for task in tasks.iterdir() if (task / "comm").read_text().strip() == "rdk:main"]
    return min(named)


def stop(thread_id: int) -> bool:
    """Stop a thread, and let it go on where it does not wait for a condition; return whether it is stopped."""
    if LIBC.ptrace(PTRACE_SEIZE, thread_id, None, None):
        pytest.skip(f"a thread of another process cannot be stopped here: {os.strerror(ctypes.get_errno())}")
    LIBC.ptrace(PTRACE_INTERRUPT, thread_id, None, None)
    os.waitpid(thread_id, WALL)
    call = Path(f"/proc/{thread_id}/syscall").read_text().split()
    if len(call) > 2 and int(call[2], 16) & FUTEX_COMMAND == FUTEX_WAIT_BITSET:
        return True
    LIBC.ptrace(PTRACE_DETACH, thread_id, None, None)
    return False


@contextmanager
def stopped(thread_id: int) -> Iterator[Callable[[], bool]]:
    """Stop one thread of a process, and give a function that tells whether it has ended: the process cannot before that
    is known. Skips the test where that is not allowed.
    """
    eventually(lambda: stop(thread_id), "it is stopped where it waits, so that it holds no lock")
    try:
        yield lambda: os.waitpid(thread_id, WALL | os.WNOHANG)[0] == thread_id
    finally:
        LIBC.ptrace(PTRACE_DETACH, thread_id, None, None)


@pytest.mark.parametrize("idle", [False, True])
def test_a_consumer_whose_client_hangs_goes_on_with_another(
    processes: Processes, topics: Topics, group: str, admin: AdminClient, idle: bool
) -> None:
    """Its heartbeats, commits and statistics end, and some calls never return; the process must not hang with it."""
    topic = topics.create(partitions=1)
    consumer = processes.consume(topic, group, *QUICK)
    eventually(lambda: consumer.metric("kafka_consumer_assigned_partitions") == 1, "assigned")
    processes.produce(topic, "--count", "100")
    eventually(lambda: committed(admin, group) == {0: 100}, "all are committed")
    with stopped(main_thread_of_the_consumer(consumer)) as has_ended:
        if not idle:
            processes.produce(topic, "--count", "100")
        eventually(
            lambda: consumer.metric("kafka_consumer_fetch_recoveries_total", action="rejoin") == 1,
            "it joins with another client",
            60,
        )
        eventually(lambda: consumer.get("/readyz")[0] == 200, "it has joined")
        assert consumer.get("/livez")[0] == 200
        if idle:
            processes.produce(topic, "--count", "100")
        eventually(lambda: committed(admin, group) == {0: 200}, "all are committed by the new client")
        # Its other threads go on to fetch, so those that came meanwhile were handled, and not committed.
        assert len(consumer.lines) == (200 if idle else 300)
        assert "; joining the group with a new client" in consumer.stderr
        consumer.popen.send_signal(signal.SIGTERM)
        eventually(has_ended, "it ends though a client of it hangs")
    assert consumer.wait() == 0, consumer.stderr
