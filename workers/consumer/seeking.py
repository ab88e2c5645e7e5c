"""A seek that does not wait for ever. Called by the loop's thread, and not inside of a rebalance callback."""

from typing import Any

from confluent_kafka import TopicPartition

from workers.errors import WorkerError
from workers.lifecycle import call_in_thread

# librdkafka answers within milliseconds, without a broker.
SEEK_TIMEOUT_S = 5.0
LOOK_S = 0.1


class ClientHangsError(WorkerError):
    """The Kafka client does not answer; the text is the sign of that. The loop joins with another client."""


def seek(client: Any, place: TopicPartition) -> None:
    """Fetch a partition from another offset.

    The binding (2.16) waits without a limit for librdkafka's main thread, which can hang. Raises KafkaException where
    the client cannot seek, and ClientHangsError when it does not answer.
    """
    raised: list[Exception] = []

    def call() -> None:
        try:
            client.seek(place)
        except Exception as error:  # for the loop's thread, whatever it is
            raised.append(error)

    thread = call_in_thread(call)
    looks = 0
    while thread.is_alive():
        # Looks are counted, and not time: the process may have been suspended.
        if looks * LOOK_S >= SEEK_TIMEOUT_S:
            raise ClientHangsError(f"a seek of the Kafka client has not returned for {SEEK_TIMEOUT_S:g} s")
        thread.join(LOOK_S)
        looks += 1
    if raised:
        raise raised[0]
