"""Clients of librdkafka."""

import ctypes
import time

from confluent_kafka.admin import AdminClient

from tests.faults.recorder import MallInfo
from workers.config import COMMON_DEFAULTS, ClientConfig, Precedence, Setting
from workers.kafka.client import UNPOLLED, create_client

WINDOW_S = 2.0


def allocated_bytes() -> int:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo
    return int(mallinfo2().uordblks)


def test_a_client_that_nobody_polls_does_not_keep_its_statistics() -> None:
    told = {"bootstrap.servers": "127.0.0.1:1", "statistics.interval.ms": "10"}
    config = ClientConfig(COMMON_DEFAULTS, [Setting(*each, Precedence.COMMAND_LINE, "") for each in told.items()])
    client = create_client(AdminClient, config, UNPOLLED)
    before = allocated_bytes()
    # 200 intervals, of which each would leave some 10 KiB.
    time.sleep(WINDOW_S)

    assert allocated_bytes() - before < 500_000
    assert client is not None
