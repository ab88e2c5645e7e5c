"""Clients of librdkafka."""

import ctypes
import logging
import time
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from tests.faults.recorder import MallInfo
from workers.config import COMMON_DEFAULTS, ClientConfig, Precedence, Setting
from workers.errors import WorkerError
from workers.kafka.client import (
    BESIDE_A_CONSUMER,
    LIBRDKAFKA,
    TURN_S,
    UNPOLLED,
    ClientState,
    create_client,
    poll_producer,
    wait_for_topics,
)
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


class Fatal:
    """A client that has met a fatal error: the binding raises it."""

    def __init__(self, error: KafkaError) -> None:
        self._error = KafkaException(error)

    def list_topics(self, *_: Any, **__: Any) -> Any:
        raise self._error

    def poll(self, _timeout_s: float) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (KafkaError.FENCED_INSTANCE_ID, "give each member a group.instance.id of its own"),
        (KafkaError.UNSUPPORTED_VERSION, "update the brokers, or leave out --group-protocol consumer"),
        (KafkaError._FATAL, "start again"),
    ],
)
def test_a_fatal_error_is_said_in_the_same_words_wherever_it_is_met(code: int, remedy: str) -> None:
    error = KafkaError(code, "two\nlines", fatal=True)
    client: Any = Fatal(error)
    config = ClientConfig(COMMON_DEFAULTS, [])
    by_callback, by_poll = ClientState(), ClientState()
    by_callback.on_error(error)
    poll_producer(client, by_poll, 0)
    with pytest.raises(WorkerError) as raised:
        wait_for_topics(client, [], config, ClientState(), timeout_s=1)

    said = f"fatal Kafka error {error.name()}: two lines; {remedy}"
    assert [str(each) for each in (by_callback.fatal, by_poll.fatal, raised.value)] == [said] * 3


def test_only_turns_of_the_loop_count_as_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was suspended, or a slow callback, must not pass for a client that hangs."""
    now = 100.0
    monkeypatch.setattr("workers.kafka.client.time.monotonic", lambda: now)
    state = ClientState()
    for turn_s in (0.25, 0.25, 3600.0, 0.5):
        state.note_turn()
        now += turn_s
    state.note_turn()
    assert state.silent_s == 0.25 + 0.25 + TURN_S + 0.5
