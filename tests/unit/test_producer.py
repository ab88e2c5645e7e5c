"""The accounts of deliveries."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message

from tests.processes import eventually
from workers.accounting.stamps import encode, stream_of
from workers.config import PRODUCER_DEFAULTS, ClientConfig, Precedence, Setting
from workers.errors import WorkerError
from workers.lifecycle import Shutdown
from workers.producer.deliveries import Deliveries
from workers.producer.loop import Producer
from workers.producer.prefetch import ThreadedSource
from workers.sources import Delivery


def test_a_stamped_message_of_another_run_that_fails_is_counted() -> None:
    deliveries = Deliveries("orders")
    deliveries.enqueued = 1
    deliveries.on_delivery(
        KafkaError(KafkaError._MSG_TIMED_OUT), Message(topic="orders", value=encode(stream_of("old", 0, 0), 7, 1))
    )

    assert (deliveries.unknown, deliveries.outstanding, deliveries.streams) == (1, 0, {})


def test_a_source_is_told_no_more_when_the_time_to_stop_is_up() -> None:
    servers = Setting("bootstrap.servers", "127.0.0.1:1", Precedence.COMMAND_LINE, "")
    shutdown = Shutdown(0)
    producer = Producer(ClientConfig(PRODUCER_DEFAULTS, [servers]), "orders", shutdown)
    told: list[Delivery] = []
    producer.turned_at = 0.0
    for _ in range(2):
        producer._tell_source(producer.deliveries.on_delivery, told.append, None, Message(topic="orders"))
        shutdown.request()

    assert (len(told), producer.deliveries.acknowledged) == (1, 2)
    # A slow function is no stall.
    assert producer.turned_at > 0


class Fatal:
    """A client that has met a fatal error."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def __len__(self) -> int:
        return len(self._client)

    def poll(self, timeout_s: float) -> int:
        self._client.poll(timeout_s)
        raise KafkaException(KafkaError(KafkaError._FATAL, "fatal"))


def test_a_client_that_gives_up_leaves_no_message_without_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("workers.producer.loop.MAX_QUEUE_MESSAGES", 3000)
    servers = Setting("bootstrap.servers", "127.0.0.1:1", Precedence.COMMAND_LINE, "")
    quiet = Setting("log_level", "0", Precedence.COMMAND_LINE, "")
    producer = Producer(ClientConfig(PRODUCER_DEFAULTS, [servers, quiet]), "orders", Shutdown(1))

    def give_up() -> None:
        eventually(lambda: producer.buffer_full, "the queue is full")
        # So the binding tells of a fatal error: it raises.
        monkeypatch.setattr(producer, "_client", Fatal(producer._client))

    def tell(delivery: Delivery) -> None:
        told.append(delivery.outcome)

    def rows() -> Iterator[dict[str, Any]]:
        for _ in range(10_000):
            yield {"value": b"x", "key": None, "on_delivery": tell}

    watcher = threading.Thread(target=give_up)
    watcher.start()
    with pytest.raises(WorkerError, match="fatal"):
        producer.run(ThreadedSource(rows()))
    watcher.join()

    deliveries = producer.deliveries
    assert deliveries.enqueued == deliveries.failed + deliveries.unknown == len(told)
    # What was never handed to the client is not in the log; what was may be, for all that is known.
    assert deliveries.errors["_QUEUE_FULL"] == deliveries.failed > 0
