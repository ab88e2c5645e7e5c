"""The accounts of deliveries."""

import itertools
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message

from workers.accounting.stamps import encode, stream_of
from workers.config import PRODUCER_DEFAULTS, ClientConfig, Precedence, Setting
from workers.errors import WorkerError
from workers.lifecycle import Shutdown
from workers.producer.deliveries import Deliveries
from workers.producer.loop import Producer
from workers.producer.prefetch import ThreadedSource
from workers.sources import BATCH_MESSAGES, Delivery, Outgoing, Record, SourceError, call_source
from workers.testing.processes import eventually

AWAY = {"bootstrap.servers": "127.0.0.1:1"}
# librdkafka's own mock cluster, inside the client.
MOCK = {"test.mock.num.brokers": "1"}


def producer_with(shutdown: Shutdown, properties: dict[str, str], rate: float | None = None) -> Producer:
    settings = [Setting(*each, Precedence.COMMAND_LINE, "") for each in {**properties, "log_level": "0"}.items()]
    return Producer(ClientConfig(PRODUCER_DEFAULTS, settings), "orders", shutdown, rate=rate)


class Orders:
    """A source without end that counts what was taken from it, and what it was told."""

    def __init__(self) -> None:
        self.taken = 0
        self.told: Counter[str] = Counter()
        self.at: dict[int, Any] = {}
        self.leaves_at = 0

    def rows(self) -> Iterator[Outgoing]:
        """Yield for ever, calling `at[number]` before message `number`."""
        for number in itertools.count(1):
            if number in self.at:
                self.at[number]()
            self.taken = number
            yield Outgoing("order", on_delivery=self._tell)

    def records(self) -> Iterator[Record]:
        return call_source(self.rows, "mine:rows")

    def _tell(self, delivery: Delivery) -> None:
        self.told.update([delivery.outcome])
        if self.told.total() == self.leaves_at:
            sys.exit(0)

    def check(self, producer: Producer) -> None:
        """Every message that was taken has one outcome, and the source was told of it."""
        sent = producer.deliveries
        assert self.taken == sent.enqueued == sent.acknowledged + sent.failed + sent.unknown == self.told.total()


def test_a_stamped_message_of_another_run_that_fails_is_counted() -> None:
    deliveries = Deliveries("orders")
    deliveries.enqueued = 1
    deliveries.on_delivery(
        KafkaError(KafkaError._MSG_TIMED_OUT), Message(topic="orders", value=encode(stream_of("old", 0, 0), 7, 1))
    )

    assert (deliveries.unknown, deliveries.outstanding, deliveries.streams) == (1, 0, {})


@pytest.mark.parametrize("hangs", [False, True])
def test_a_client_that_tells_nothing_any_more_is_not_live(monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    """Its messages would fail for ever: it learns of no new leader."""
    monkeypatch.setattr("workers.producer.loop.STALL_S", 1.5)
    # Statistics come each second; those of a client that hangs do not come within the test.
    shutdown = Shutdown(0.1)
    producer = producer_with(shutdown, {**AWAY, "statistics.interval.ms": "10000" if hangs else "1000"})
    producer.running = True
    seen: set[str | None] = set()

    def wait() -> Iterator[Outgoing]:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            seen.add(producer.live())
            yield Outgoing("order")
            time.sleep(0.1)
        shutdown.request()

    producer.run(ThreadedSource(call_source(wait, "mine:wait")))
    assert any("the Kafka client has sent no statistics for 2 s" in (said or "") for said in seen) == hangs


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

    def flush(self, timeout_s: float) -> int:
        self._client.flush(timeout_s)
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
        monkeypatch.setattr(producer._producer, "client", Fatal(producer._producer.client))

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
    # A message that was never handed to the client is not in the log; one that was handed over may be.
    assert deliveries.errors["_STOPPED"] == deliveries.failed > 0


@pytest.mark.parametrize("rate", [None, 500.0])
def test_a_stop_sends_what_was_taken_from_the_source(rate: float | None) -> None:
    shutdown, orders = Shutdown(20), Orders()
    orders.at[5000 if rate is None else 700] = shutdown.request
    producer = producer_with(shutdown, MOCK, rate)
    producer.run(ThreadedSource(orders.records()))

    orders.check(producer)
    assert producer.deliveries.acknowledged == orders.taken
    assert producer.interrupted


def test_the_end_of_the_duration_sends_what_was_taken_from_the_source() -> None:
    orders = Orders()
    producer = producer_with(Shutdown(20), MOCK)
    producer.run(ThreadedSource(orders.records()), duration_s=0.2)

    orders.check(producer)
    assert producer.deliveries.acknowledged == orders.taken
    assert not producer.interrupted


def test_what_was_taken_and_cannot_be_sent_in_time_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.producer.loop.MAX_QUEUE_MESSAGES", 3 * BATCH_MESSAGES)
    shutdown, orders = Shutdown(5), Orders()
    producer = producer_with(shutdown, AWAY)
    source = ThreadedSource(orders.records())

    def stop() -> None:
        # The source is read ahead in another thread, by more than a batch beyond what the queue holds.
        more = 4 * BATCH_MESSAGES
        eventually(lambda: producer.buffer_full and orders.taken > more, "the producer waits for room")
        shutdown.request()

    stopper = threading.Thread(target=stop)
    stopper.start()
    producer.run(source)
    stopper.join()

    sent = producer.deliveries
    assert orders.taken == sent.enqueued == sent.failed + sent.unknown
    assert sent.errors["_STOPPED"] == sent.failed
    assert 0 < orders.told["failure"] <= sent.failed
    assert sent.failed > BATCH_MESSAGES
    assert 0 < sent.unknown <= 3 * BATCH_MESSAGES


def test_a_fatal_error_leaves_no_message_that_was_taken_without_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = Orders()
    producer = producer_with(Shutdown(2), AWAY)
    orders.at[5000] = lambda: monkeypatch.setattr(producer._producer, "client", Fatal(producer._producer.client))
    with pytest.raises(WorkerError, match="fatal"):
        producer.run(ThreadedSource(orders.records()))

    orders.check(producer)


def test_an_on_delivery_that_exits_leaves_no_message_without_an_outcome() -> None:
    orders = Orders()
    orders.leaves_at = 6
    producer = producer_with(Shutdown(2), MOCK)
    with pytest.raises(WorkerError, match="on_delivery raised SystemExit: 0"):
        producer.run(ThreadedSource(orders.records()))

    orders.check(producer)


def test_a_source_that_does_not_come_back_holds_up_a_stop_for_a_second() -> None:
    shutdown, never, orders = Shutdown(20), threading.Event(), Orders()

    def stop_and_block() -> None:
        shutdown.request()
        never.wait(20)

    orders.at[501] = stop_and_block
    producer = producer_with(shutdown, MOCK)
    began = time.monotonic()
    producer.run(ThreadedSource(orders.records()))
    took_s = time.monotonic() - began
    never.set()

    assert took_s < 10
    assert producer.deliveries.acknowledged == orders.told["success"] == 500


def test_an_error_of_the_source_at_the_stop_is_raised_after_all_that_was_taken_is_sent() -> None:
    shutdown, orders = Shutdown(20), Orders()
    orders.at[2000] = shutdown.request

    def rows() -> Iterator[Outgoing]:
        try:
            yield from orders.rows()
        finally:
            raise RuntimeError("cannot commit")

    producer = producer_with(shutdown, MOCK)
    with pytest.raises(SourceError, match="cannot commit"):
        producer.run(ThreadedSource(call_source(rows, "mine:rows")))

    orders.check(producer)
    assert producer.deliveries.acknowledged == orders.taken


def test_a_stop_behind_the_last_message_interrupts_nothing() -> None:
    shutdown, orders = Shutdown(20), Orders()
    orders.at[2000] = shutdown.request
    producer = producer_with(shutdown, MOCK)
    producer.run(ThreadedSource(orders.records(), count=2000))

    orders.check(producer)
    assert not producer.interrupted
