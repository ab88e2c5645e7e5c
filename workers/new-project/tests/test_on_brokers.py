"""The source and the handler as worker processes, on a real three-broker Kafka."""

import json

from workers.testing.kafka import Kafka, Workers

from new_project.handlers import SENSORS
from new_project.sources import MINUTES, readings


def test_no_reading_is_lost_when_a_consumer_is_killed(kafka: Kafka, topic: str, worker: Workers) -> None:
    kafka.create_topic(f"{topic}-enriched")
    source = worker.produce("new_project.sources:readings").wait()
    assert source["acknowledged"] == len(SENSORS) * MINUTES

    # It is killed when it has handled this reading, and before the offset is committed.
    half_way = str([*readings()][len(SENSORS) * MINUTES // 2].value)
    worker.consume("new_project.handlers:enrich", kill=("after", half_way)).until_killed()
    second = worker.consume("new_project.handlers:enrich")
    second.until_done()
    second.stop()

    enriched = [json.loads(each.value() or b"") for each in kafka.messages(f"{topic}-enriched")]
    assert {(each["sensor"], each["minute"]) for each in enriched} == {
        (sensor, minute) for sensor in SENSORS for minute in range(MINUTES)
    }
    assert {each["place"] for each in enriched} == {sensor.place for sensor in SENSORS.values()}
