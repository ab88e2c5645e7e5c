"""The accounts of deliveries."""

from confluent_kafka import KafkaError, Message

from workers.messages import encode, stream_of
from workers.producer import Deliveries


def test_a_stamped_message_of_another_run_that_fails_is_counted() -> None:
    deliveries = Deliveries("orders")
    deliveries.enqueued = 1
    deliveries.on_delivery(
        KafkaError(KafkaError._MSG_TIMED_OUT), Message(topic="orders", value=encode(stream_of("old", 0, 0), 7, 1))
    )

    assert (deliveries.unknown, deliveries.outstanding, deliveries.streams) == (1, 0, {})
