"""The figures that the demo shows while it runs."""

from types import SimpleNamespace
from typing import Any

from workers.local.demo import _look


class Running:
    """A producer and two consumers whose counters grow between any two looks, of one and of half as many messages."""

    def __init__(self) -> None:
        self.messages = 0

    def producer(self) -> dict[str, Any]:
        self.messages += 100
        return {"kafka_producer_deliveries_total": [({"outcome": "success"}, self.messages)]}

    def consumer(self) -> dict[str, Any]:
        self.messages += 100
        return {
            "kafka_consumer_messages_total": [({"outcome": "success"}, self.messages / 2)],
            "kafka_consumer_assigned_partitions": [({}, 0)],
        }


def test_a_line_of_the_demo_never_shows_more_consumed_than_produced() -> None:
    running = Running()
    producer: Any = SimpleNamespace(metrics=running.producer)
    consumers: Any = [SimpleNamespace(name=name, metrics=running.consumer) for name in "ab"]
    cluster: Any = SimpleNamespace(brokers=[])
    moment = _look(cluster, producer, consumers, {}, None, 1.0, "")

    assert (moment.handled, moment.acknowledged) == (150, 300)
