"""Clients of librdkafka."""

import ctypes
import logging
import time
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient

from tests.faults.recorder import MallInfo
from workers.config import COMMON_DEFAULTS, ClientConfig, Precedence, Setting
from workers.kafka.client import BESIDE_A_CONSUMER, LIBRDKAFKA, UNPOLLED, create_client
from workers.testing.processes import eventually

KEPT_BYTES = 500_000


def allocated_bytes() -> int:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo
    return int(mallinfo2().uordblks)


def test_a_client_that_nobody_polls_does_not_keep_its_statistics() -> None:
    told = {"bootstrap.servers": "127.0.0.1:1", "statistics.interval.ms": "10"}
    config = ClientConfig(COMMON_DEFAULTS, [Setting(*each, Precedence.COMMAND_LINE, "") for each in told.items()])
    before, begun_at = allocated_bytes(), time.monotonic()
    keeps = create_client(AdminClient, config, {"log_level": 0})
    eventually(lambda: allocated_bytes() - before > KEPT_BYTES, "another one keeps them", 30)
    took_s = time.monotonic() - begun_at
    del keeps

    client = create_client(AdminClient, config, UNPOLLED)
    before = allocated_bytes()
    time.sleep(took_s)
    assert allocated_bytes() - before < KEPT_BYTES / 2
    assert client is not None


@pytest.mark.parametrize(
    ("kind", "own", "name", "level"),
    [
        (Producer, {"logger": LIBRDKAFKA}, "session.timeout.ms", logging.WARNING),
        (Producer, BESIDE_A_CONSUMER, "session.timeout.ms", logging.DEBUG),
        (Consumer, {"logger": LIBRDKAFKA}, "transaction.timeout.ms", logging.DEBUG),
    ],
    ids=["a producer alone", "a producer beside a consumer", "a consumer"],
)
def test_a_property_is_warned_of_only_where_no_client_of_the_command_uses_it(
    kind: Any, own: dict[str, Any], name: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    told = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", name: "7000"}
    if kind is Producer:
        del told["group.id"]
    config = ClientConfig((), [Setting(*each, Precedence.COMMAND_LINE, "") for each in told.items()])
    with caplog.at_level(logging.DEBUG):
        client = create_client(kind, config, own)
        client.poll(0)

    assert [each.levelno for each in caplog.records if "will be ignored" in each.getMessage()] == [level]


@pytest.mark.parametrize(("reason", "shown"), [("Coordinator load in progress", False), ("Not authorized", True)])
def test_a_coordinator_that_has_just_been_elected_is_no_warning(
    reason: str, shown: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for logger in (LIBRDKAFKA, BESIDE_A_CONSUMER["logger"]):
            logger.warning(
                "GETPID [p#producer-1] [thrd:main]: Failed to acquire PID from broker b:9092/1: %s: retrying", reason
            )

    assert len(caplog.records) == 2 * shown
