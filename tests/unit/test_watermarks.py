"""The end of the watermarks' thread."""

import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from confluent_kafka import OFFSET_INVALID, IsolationLevel, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from workers.kafka.watermarks import Watermark, Watermarks
from workers.testing.processes import eventually

# A broker that takes connections and never answers: a request is under way when the process ends. The C library's exit
# handler waits for the end of that request, when the interpreter is gone.
PROCESS = """
import ctypes, socket, threading
from confluent_kafka import IsolationLevel
from confluent_kafka.admin import AdminClient
from workers.cli import main
from workers.kafka import watermarks

under_way = threading.Event()

class Asking(AdminClient):
    def list_offsets(self, *arguments, **options):
        answers = super().list_offsets(*arguments, **options)
        under_way.set()
        return answers

watermarks.REQUEST_TIMEOUT_S = 1.0
broker = socket.create_server(("127.0.0.1", 0))
address = "127.0.0.1:%d" % broker.getsockname()[1]
asked = watermarks.Watermarks(
    lambda: Asking({"bootstrap.servers": address, "log_level": 0}), IsolationLevel.READ_COMMITTED
)
asked.wanted = (("t", 0),)
asked.start()
under_way.wait()
asked.close(5.0)
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.usleep, ctypes.c_void_p(2_000_000), None)
main._end(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="calls the C library")
def test_a_request_under_way_does_not_crash_a_process_that_ends() -> None:
    ended = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, timeout=60)

    assert ended.returncode == 0, ended.stderr


def test_closing_waits_no_longer_than_it_may() -> None:
    goes_on = threading.Event()

    def connect() -> AdminClient:
        goes_on.wait(60)
        return AdminClient({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})

    watermarks = Watermarks(connect, IsolationLevel.READ_COMMITTED)
    watermarks.wanted = (("t", 0),)
    watermarks.start()
    began = time.monotonic()

    assert not watermarks.close(0.1)
    assert time.monotonic() - began < 30
    goes_on.set()
    assert watermarks.close(60)


def test_a_beginning_that_no_leader_has_told_is_not_known() -> None:
    def list_offsets(wanted: dict[TopicPartition, OffsetSpec], **_: object) -> dict[TopicPartition, Future[Any]]:
        answers: dict[TopicPartition, Future[Any]] = {}
        for place, spec in wanted.items():
            answers[place] = Future()
            offset = 7 if isinstance(spec, type(OffsetSpec.latest())) else OFFSET_INVALID
            answers[place].set_result(SimpleNamespace(offset=offset))
        return answers

    admin = MagicMock(list_offsets=list_offsets)
    watermarks = Watermarks(lambda: admin, IsolationLevel.READ_COMMITTED)
    watermarks.wanted = (("t", 0),)
    watermarks.start()
    eventually(lambda: watermarks.round, "an answer is there")
    watermarks.close(60)

    assert watermarks.latest == {("t", 0): Watermark(-1, 7)}


def test_watermarks_that_were_never_started_are_closed() -> None:
    assert Watermarks(lambda: AdminClient({}), IsolationLevel.READ_COMMITTED).close(0.0)
